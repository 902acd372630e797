"""Files of torch.save, read without running anything in them."""

from __future__ import annotations

import os
import pickle
import re
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from util.pickles import Type, scalar
from utils import InputError, existing_file, not_installed

# Numbers of NumPy among plain ones, such as a best score: by stand-ins, so that NumPy's own functions are never called.
NUMPY_SCALARS = [
    (scalar, "numpy.core.multiarray.scalar"),
    (scalar, "numpy._core.multiarray.scalar"),
    (Type, "numpy.dtype"),
]
WRAPPERS = (
    "module.",
    "_orig_mod.",
)  # what DataParallel and DistributedDataParallel, and torch.compile, put before names


def load_torch(path: str | os.PathLike, what: str) -> Any:
    """Read a file of torch.save without running anything in it (`weights_only`), onto the CPU.

    Files of before PyTorch 1.6, which are no archives, are read too; numbers of NumPy come as Python's.
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
        with torch.serialization.safe_globals(NUMPY_SCALARS):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:  # PyTorch's message goes on to advise an unsafe way
        found = re.search(r"GLOBAL (\S+)", str(error))
        reason = f"it names {found[1]}" if found else "it is no archive of tensors"
        raise InputError(f"{what} {path} is damaged, or holds more than weights, and was not read ({reason})") from None
    except MemoryError:
        raise
    except Exception as error:  # a damaged archive raises errors of many kinds
        if "TorchScript" in str(error):
            raise InputError(f"{what} {path} is a TorchScript program; save its state_dict() and give that") from None
        if "legacy .tar" in str(error):
            raise InputError(f"{what} {path} is a .tar of PyTorch 0.1; save it anew with PyTorch 1") from None
        raise InputError(f"{what} {path} is damaged ({' '.join(str(error).split())[:200]})") from None


def load_safetensors(path: str | os.PathLike, what: str) -> dict[str, Tensor]:
    """Read a file of safetensors (a package that timm, transformers and open_clip bring). Raises InputError."""
    with not_installed(f"{what} {path}"):
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    try:
        return load_file(existing_file(path, what))
    except SafetensorError as error:
        raise InputError(f"{what} {path} is damaged ({error})") from None


def weights_of(tree: Any, keys: tuple[str, ...] = ("model", "state_dict")) -> dict[str, Tensor] | None:
    """The table of weights in what `load_torch` gave: under the first of the keys that is there, or the whole of it.

    Names lose what wrappers of the model put before all of them. None where there is no such table.
    """
    for key in keys:
        tree = tree.get(key, tree) if isinstance(tree, dict) else tree
    if not isinstance(tree, dict) or not tree:
        return None
    state = OrderedDict(dict.items(tree))
    if not all(isinstance(name, str) and _is_plain(value) for name, value in state.items()):
        return None
    state._metadata = _versions(getattr(tree, "_metadata", None))
    while wrapper := next((wrapper for wrapper in WRAPPERS if all(name.startswith(wrapper) for name in state)), ""):
        torch.nn.modules.utils.consume_prefix_in_state_dict_if_present(state, wrapper)
    return state


def _is_plain(value: Any) -> bool:
    """Whether it is a tensor whose numbers are there, each by itself."""
    return (
        isinstance(value, Tensor)
        and value.layout == torch.strided
        and value.device.type == "cpu"
        and not value.is_quantized
    )


def _versions(metadata: Any) -> OrderedDict[str, dict[str, int]]:
    """The version of each module, which PyTorch stores beside a table of weights; what is no such thing is dropped."""
    found = dict.items(metadata) if isinstance(metadata, dict) else ()
    return OrderedDict(
        (name, {"version": of_module["version"]})
        for name, of_module in found
        if isinstance(name, str) and isinstance(of_module, dict) and type(of_module.get("version")) is int
    )


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
