"""The text files of a data set: {train,test}_caps.txt and {train,test}_filename.txt."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from util.names import match, whole_stem
from utils import InputError, read_text, some

logger = logging.getLogger("galr")


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
    return read_image_list(Path(data_path) / f"{split}_filename.txt")


def read_image_list(path: Path) -> list[str]:
    """The lines of an image list, as they stand, without blank ones at the end. Raises InputError for others."""
    names = read_lines(path, "image list")
    names = names[: len(names) - blank_at_end(names)]
    for line, name in enumerate(names, start=1):
        if not name:
            raise InputError(f"image list {path}, line {line}: blank")
    return names


def blank_at_end(lines: list[str]) -> int:
    """How many of the last lines are blank."""
    return next((i for i, line in enumerate(reversed(lines)) if line), len(lines))


def read_pairs(data_path: str | os.PathLike, split: str) -> tuple[list[str], list[str]]:
    """The captions of `train` or `test`, and the image list, of which each line has as many of them.

    Blank lines at the end are dropped, with a warning, where the counts fit without them. Raises InputError where the
    counts do not fit.
    """
    captions, names = read_captions(data_path, split), read_names(data_path, split)
    blank = blank_at_end(captions)
    if blank and (len(captions) - blank) % len(names) == 0:
        logger.warning(f"{data_path}: {blank} blank lines at the end of {split}_caps.txt are dropped")
        captions = captions[:-blank]
    if len(captions) % len(names):
        ends = f" (the last {blank} of them blank)" if blank else ""
        raise InputError(
            f"{data_path}: {len(captions)} captions in {split}_caps.txt{ends} do not fit {len(names)} lines in "
            f"{split}_filename.txt; each line needs the same whole number of captions"
        )
    return captions, names


def validation_names(path: Path, train: list[str]) -> list[str]:
    """The images of the train list that another list names, as the train list has them.

    They are found as `util.names.match` finds them. Raises InputError for those that are not there.
    """
    listed = list(dict.fromkeys(read_image_list(path)))
    found = match(listed, train, f"image list {path}")
    absent = [name for name, there in zip(listed, found, strict=True) if there is None]
    if absent:
        raise InputError(
            f"image list {path}: {len(absent)} of {len(listed)} images are not in the train list, out of which "
            f"validation images are taken: {some(absent)}"
        )
    return [name for name in found if name]


def warn_of_shared_images(data_path: str | os.PathLike) -> None:
    """Say where test images are in the train list, by their stems: lists say .tif where files are .jpg."""
    if not all((Path(data_path) / f"{split}_filename.txt").exists() for split in ("train", "test")):
        return
    trained = {whole_stem(name) for name in read_names(data_path, "train")}
    tested = dict.fromkeys(read_names(data_path, "test"))
    if shared := [name for name in tested if whole_stem(name) in trained]:
        logger.warning(
            "%s: %d of %d images of the test list are in the train list too (%s): test scores come out too good",
            *(data_path, len(shared), len(tested), some(shared)),
        )
