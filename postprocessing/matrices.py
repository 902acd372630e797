"""Saved similarity matrices: NAME.npy, images x captions, with NAME_images.npy (the image of each caption) beside it.

`test.py` also leaves NAME_gallery.json there, which names the images and holds the captions.
"""

from __future__ import annotations

import filecmp
import glob
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from postprocessing.recall import blocks, check_images, check_matrix, image_of_caption
from utils import InputError, atomic, existing_file, read_json, write_json


class Gallery(NamedTuple):
    """The paths of a matrix's images, and its captions."""

    images: list[str]
    captions: list[str]


class Matrix(NamedTuple):
    """Similarities, images x captions; the row of each caption's image; and the names of both, if they are known."""

    sims: np.ndarray
    image_of_caption: np.ndarray
    gallery: Gallery | None = None

    def save(self, path: Path) -> list[Path]:
        """Save the similarities as `path`, and the rest beside it. Return the files."""
        arrays = {path: self.sims, images_file(path): self.image_of_caption}
        for name, array in arrays.items():
            with atomic(name) as temporary, temporary.open("wb") as file:
                np.save(file, array)
        if self.gallery:
            write_json(gallery_file(path), self.gallery._asdict())
        return [*arrays, *([gallery_file(path)] if self.gallery else [])]


def load(path: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """Return a saved matrix, memory-mapped (images, captions), and the row of each caption's image (captions,).

    The latter is read from `*_images.npy` beside it; without that file, consecutive captions share the images evenly.
    Raise InputError, naming the file, for anything that is not such a file.
    """
    path = existing_file(path, "similarity matrix", "test.py and test_single.py --sims write such files")
    beside = images_file(path)
    try:
        sims = check_matrix(_load_array(path))
        for _ in blocks(sims):  # NaN and infinity are faults of the file, so say so here
            pass
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    if not beside.exists():
        try:
            return sims, image_of_caption(*sims.shape)
        except InputError as error:
            raise InputError(f"{path}: {error} in {beside.name} beside it") from None
    try:
        return sims, check_images(_load_array(existing_file(beside, "file")), sims.shape)
    except InputError as error:
        raise InputError(f"{beside}: {error}") from None


def _load_array(path: Path) -> np.ndarray:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception:  # NumPy raises errors of many kinds on damaged files
        raise InputError("not a .npy file of plain numbers, or only a part of one") from None
    if not isinstance(array, np.ndarray):
        raise InputError("an .npz archive, not a .npy file")
    return array


def images_file(matrix: Path) -> Path:
    """Return the file of the row of each caption's image."""
    return matrix.with_name(f"{matrix.stem}_images.npy")


def gallery_file(matrix: Path) -> Path:
    """Return the file of the names of a matrix's images and captions."""
    return matrix.with_name(f"{matrix.stem}_gallery.json")


def load_gallery(path: Path) -> Gallery:
    """Read the gallery of a matrix. Raise InputError, naming the file, for anything else."""
    tree = read_json(path, "gallery")
    lists = [tree.get(key) for key in Gallery._fields] if isinstance(tree, dict) else [None]
    if not all(isinstance(names, list) and all(isinstance(name, str) for name in names) for names in lists):
        raise InputError(f'gallery {path}: two lists of texts, "images" and "captions", are expected')
    return Gallery(*lists)


def share_images(one: Path, other: Path) -> bool:
    """Return whether two matrices share images, by the galleries that test.py leaves beside them, or else are equal."""
    galleries = [gallery_file(file) for file in (one, other)]
    if not all(gallery.is_file() for gallery in galleries):
        return filecmp.cmp(one, other, shallow=False)
    return not set(load_gallery(galleries[0]).images).isdisjoint(load_gallery(galleries[1]).images)


def matrix_files(patterns: Sequence[str], option: str) -> list[Path]:
    """Return the files of a command line's names and globs, sorted.

    Without the `*_images.npy`; and where there are others, without `*_val.npy`, `*_bank.npy` and `*_bank_dynamic*.npy`.
    """
    files = []
    for pattern in patterns:
        is_glob = glob.has_magic(pattern) and not Path(pattern).exists()
        found = sorted(glob.glob(pattern)) if is_glob else [pattern]  # noqa: PTH207 (it takes absolute patterns)
        if not found:
            raise InputError(f"{option}: no file matches {pattern}")
        files += [Path(file) for file in found]
    files = list(dict.fromkeys(files))
    for suffix in ("_images", "_val", "_bank", "_bank_dynamic", "_bank_dynamic_i2t"):
        files = [file for file in files if not file.stem.endswith(suffix)] or files
    return files
