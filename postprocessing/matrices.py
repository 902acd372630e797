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
from utils import InputError, atomic, existing_file, read_as, write_json

IMAGES, GALLERY = "images.npy", "gallery.json"  # what stands beside NAME.npy, after NAME_


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
        files = [path, beside(path, IMAGES)]
        for file, array in zip(files, self[:2], strict=True):
            save_array(file, array)
        if self.gallery:
            files.append(beside(path, GALLERY))
            write_json(files[-1], self.gallery._asdict())
        return files


def save_array(path: Path, array: np.ndarray) -> None:
    """Save an array as .npy, whole or not at all."""
    with atomic(path) as temporary, temporary.open("wb") as file:
        np.save(file, array)


def load(path: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """Return a saved matrix, memory-mapped (images, captions), and the row of each caption's image (captions,).

    The latter is read from `*_images.npy` beside it; without that file, consecutive captions share the images evenly.
    Raise InputError, naming the file, for anything that is not such a file.
    """
    path = file = existing_file(path, "similarity matrix", "test.py and test_single.py --sims write such files")
    try:
        sims = check_matrix(_load_array(path))
        for _ in blocks(sims):  # NaN and infinity are faults of the file, so say so here
            pass
        if not beside(path, IMAGES).exists():
            return sims, image_of_caption(*sims.shape)
        file = beside(path, IMAGES)
        return sims, check_images(_load_array(file), sims.shape)
    except InputError as error:
        raise InputError(f"{file}: {error}") from None


def _load_array(path: Path) -> np.ndarray:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception:  # NumPy raises errors of many kinds on damaged files
        raise InputError("not a .npy file of plain numbers, or only a part of one") from None


def beside(matrix: Path, what: str) -> Path:
    """Return the file NAME_what beside a matrix NAME.npy."""
    return matrix.with_name(f"{matrix.stem}_{what}")


def load_gallery(matrix: Path) -> Gallery:
    """Read the gallery of a matrix. Raise InputError, naming the file, if it is missing or damaged."""
    return read_as(Gallery, beside(matrix, GALLERY), "gallery")


def gallery_beside(matrix: Path) -> Gallery | None:
    """Return the gallery of a matrix if it is known."""
    return load_gallery(matrix) if beside(matrix, GALLERY).is_file() else None


def share_images(one: Path, other: Path) -> bool:
    """Return whether two matrices share images, by the galleries that test.py leaves beside them, or else are equal."""
    mine, its = gallery_beside(one), gallery_beside(other)
    return not set(mine.images).isdisjoint(its.images) if mine and its else filecmp.cmp(one, other, shallow=False)


def matrix_files(patterns: Sequence[str]) -> list[Path]:
    """Return the files of names and globs, sorted.

    Without `*_images.npy` and `*_caption_vectors.npy`, and where there are others, `*_val.npy`, `*_bank.npy` and
    `*_bank_dynamic*.npy`.
    """
    found = (sorted(glob.glob(pattern)) or [pattern] for pattern in patterns)  # noqa: PTH207 (it takes absolute ones)
    files = list(dict.fromkeys(Path(file) for names in found for file in names))
    for suffix in ("_images", "_caption_vectors", "_val", "_bank", "_bank_dynamic", "_bank_dynamic_i2t"):
        files = [file for file in files if not file.stem.endswith(suffix)] or files
    return files
