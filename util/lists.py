"""The text files of a data set: {train,test}_caps.txt and {train,test}_filename.txt."""

from __future__ import annotations

import os
from pathlib import Path

from util.errors import InputError
from util.files import read_text


def read_lines(path: Path, what: str) -> list[str]:
    """The lines of a text file, stripped. Raises InputError for an empty one."""
    text = read_text(
        path, what, "dataset.data_path or --data_path names the folder of {train,test}_{caps,filename}.txt"
    )
    lines = [line.strip() for line in text.removesuffix("\n").split("\n")]
    if not any(lines):
        raise InputError(f"{what} {path} is empty")
    return lines


def read_captions(data_path: str | os.PathLike, split: str) -> list[str]:
    """The captions of `train` or `test`, one a line; blank ones stay."""
    return read_lines(Path(data_path) / f"{split}_caps.txt", "captions")


def read_names(data_path: str | os.PathLike, split: str) -> list[str]:
    """The lines of the image list of `train` or `test`, as they stand (an image may be named once per caption)."""
    path = Path(data_path) / f"{split}_filename.txt"
    names = read_lines(path, "image list")
    for line, name in enumerate(names, start=1):
        if not name:
            raise InputError(f"image list {path}, line {line}: blank")
    return names
