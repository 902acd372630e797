"""Files of torch.save, read without running anything in them."""

from __future__ import annotations

import os
import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import torch

from util.errors import InputError
from util.files import existing_file


def load_torch(path: str | os.PathLike, what: str) -> Any:
    """Read a file of torch.save without running anything in it (`weights_only`), onto the CPU.

    Raises InputError for a missing or damaged file and for one that holds more than tensors and plain containers.
    """

    path = existing_file(path, what)
    try:
        archive = zipfile.is_zipfile(path)
    except zipfile.BadZipFile:  # a damaged one
        archive = True
    if archive:
        check_archive(path, what)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:  # PyTorch's message goes on to advise an unsafe way
        found = re.search(r"GLOBAL (\S+)", str(error))
        reason = f"it names {found[1]}" if found else "it is no archive of tensors"
        raise InputError(f"{what} {path} is damaged, or holds more than weights, and was not read ({reason})") from None
    except MemoryError:
        raise
    except Exception as error:  # a damaged archive raises errors of many kinds
        raise InputError(f"{what} {path} is damaged ({' '.join(str(error).split())[:200]})") from None


def check_archive(path: Path, what: str = "checkpoint") -> None:
    """Compare every part of a file of torch.save with its checksum (CRC-32), which PyTorch itself does not.

    Raises InputError for a damaged one, and for one that would unfold to more than its size (PyTorch packs nothing).
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(part.file_size for part in archive.infolist()) > path.stat().st_size:
                raise InputError(f"{what} {path} is a packed archive, not a file of torch.save, and was not read")
            damaged = archive.testzip()
    except InputError:
        raise
    except Exception as error:  # a damaged archive raises errors of many kinds
        raise InputError(f"{what} {path} is damaged ({error})") from None
    if damaged:
        raise InputError(f"{what} {path} is damaged (the checksum of {damaged} is wrong)")
