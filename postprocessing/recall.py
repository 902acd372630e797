"""Recall at 1, 5, 10, median and mean rank in both directions, and their mean mR, from a similarity matrix.

i2t: an image is the query and its best captions rank; t2i: a caption is the query and its one image ranks.
Ranks come from counting, not sorting: the rank of a right answer is the number of wrong ones that are at least as
similar to the query. So ties count against the query, and a constant matrix scores like the worst ranking.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from util.errors import InputError
from util.files import existing_file

BLOCK = 1 << 18  # entries of the matrix that are worked on at once: they fit a core's cache


def recall(sims: np.ndarray, image_of_caption: np.ndarray) -> tuple[dict, dict, float]:
    """Recall of a similarity matrix (images, captions), float or integer; memory-mapped ones are read in blocks.

    `image_of_caption` (captions,) holds the row of each caption's image. Returns i2t, t2i and mR: the first two are
    {"r1", "r5", "r10"} in per cent and {"medr", "meanr"} as ranks from 1 (medr is floor(median of ranks from 0) + 1,
    as in the released code); mR is the mean of the six recalls. An image without captions is no query in i2t, but
    stays in the gallery of t2i. Raises InputError for NaN, infinity and shapes that do not fit.
    """
    i2t_ranks, t2i_ranks = ranks(sims, image_of_caption)
    return recall_of_ranks(i2t_ranks, t2i_ranks)


def recall_of_ranks(i2t_ranks: np.ndarray, t2i_ranks: np.ndarray) -> tuple[dict, dict, float]:
    """i2t, t2i and mR, as `recall` gives them, from the ranks (from 0) of the best right answer of each query."""
    i2t, t2i = _summary(i2t_ranks), _summary(t2i_ranks)
    return i2t, t2i, mean_recall(i2t, t2i)


def ranks(sims: np.ndarray, image_of_caption: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rank, from 0, of the best right answer of each query: i2t (images that have captions,), t2i (captions,)."""
    sims = check_matrix(sims)
    owner = check_images(image_of_caption, sims.shape)
    own = np.asarray(sims[owner, np.arange(len(owner))])  # similarity of each caption with its image
    best = np.full(len(sims), -np.inf, own.dtype)  # similarity of each image with the best of its captions
    with np.errstate(invalid="ignore"):  # a NaN is found below, with its place
        np.maximum.at(best, owner, own)
    i2t = np.empty(len(sims), np.int64)
    t2i = np.zeros(len(owner), np.int64)
    for rows, block in blocks(sims):
        i2t[rows] = np.count_nonzero(block >= best[rows, None], axis=1)
        t2i += np.count_nonzero(block >= own, axis=0)
    i2t -= np.bincount(owner[own == best[owner]], minlength=len(sims))  # these are right answers, not wrong ones
    return i2t[np.bincount(owner, minlength=len(sims)) > 0], t2i - 1


def _summary(ranks: np.ndarray) -> dict[str, float]:
    at = {f"r{k}": 100.0 * int(np.count_nonzero(ranks < k)) / len(ranks) for k in (1, 5, 10)}
    return {**at, "medr": float(np.floor(np.median(ranks)) + 1), "meanr": float(np.mean(ranks) + 1)}


def mean_recall(i2t: dict, t2i: dict) -> float:
    """mR: the mean of R@1, R@5 and R@10 of both directions."""
    return sum(direction[at] for direction in (i2t, t2i) for at in ("r1", "r5", "r10")) / 6


def chance(image_of_caption: np.ndarray, n_images: int) -> tuple[dict, dict, float]:
    """What a random ranking is expected to score, exactly: i2t and t2i as {"r1", "r5", "r10"} and mR, in per cent.

    i2t is hypergeometric: the probability that at least one of an image's captions is among the first k of all;
    t2i is min(k, images) / images.
    """
    owner = check_images(image_of_caption, (n_images, len(image_of_caption)))
    captions_of_image, images = np.unique(np.bincount(owner)[np.unique(owner)], return_counts=True)
    i2t, t2i = {}, {}
    for k in (1, 5, 10):
        first = min(k, len(owner))
        hit = [1 - math.comb(len(owner) - c, first) / math.comb(len(owner), first) for c in captions_of_image.tolist()]
        i2t[f"r{k}"] = 100.0 * float(np.average(hit, weights=images))
        t2i[f"r{k}"] = 100.0 * min(k, n_images) / n_images
    return i2t, t2i, mean_recall(i2t, t2i)


def image_of_caption(images: int, captions: int) -> np.ndarray:
    """The row of each caption's image where consecutive captions share the images evenly, (captions,) int64."""
    if images < 1 or captions < 1 or captions % images:
        raise InputError(f"{captions} captions do not share {images} images evenly; say which image each belongs to")
    return np.arange(captions) // (captions // images)


def check_matrix(sims: np.ndarray) -> np.ndarray:
    """The matrix with a floating type (a view where it has one). Raises InputError if it is no matrix of numbers."""
    sims = np.asanyarray(sims)
    if sims.ndim != 2 or sims.size == 0:
        raise InputError(f"a similarity matrix has two dimensions, neither of them empty, not the shape {sims.shape}")
    if sims.dtype.kind not in "fiu":
        raise InputError(f"a similarity matrix holds real numbers, not {sims.dtype}")
    if sims.dtype.kind != "f" or sims.dtype.itemsize < 4:
        return sims.astype(np.result_type(sims.dtype, np.float32))
    return sims


def check_images(image_of_caption: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """The row of each caption's image, (captions,). Raises InputError where it does not fit a matrix of this shape."""
    owner = np.asarray(image_of_caption)
    images, captions = shape
    if owner.dtype.kind not in "iu" or owner.shape != (captions,):
        raise InputError(
            f"the similarity matrix has {images} images x {captions} captions, so the images of the captions must be "
            f"{captions} integers, not {owner.dtype} of shape {owner.shape}"
        )
    if captions == 0:
        raise InputError("there are no captions")
    wrong = np.flatnonzero((owner < 0) | (owner >= images))
    if len(wrong):
        raise InputError(f"caption {wrong[0]} belongs to image {owner[wrong[0]]}, but the images are 0 to {images - 1}")
    return owner.astype(np.int64, copy=False)


def blocks(sims: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """Blocks of rows of a matrix, each with its slice. Raises InputError at a value that is not finite."""
    step = block_rows(sims)
    for start in range(0, len(sims), step):
        yield slice(start, start + step), read_block(sims, start, step)


def block_rows(sims: np.ndarray) -> int:
    """The rows of a block. At least 64: of a transposed view these are columns, and short runs of them read slowly."""
    return max(64, BLOCK // sims.shape[1])


def read_block(sims: np.ndarray, start: int, step: int) -> np.ndarray:
    """Some rows of a matrix, contiguous in memory. Raises InputError that names the first value that is not finite."""
    block = np.ascontiguousarray(sims[start : start + step])
    if not np.isfinite(block).all():
        row, column = np.argwhere(~np.isfinite(block))[0]
        raise InputError(f"the similarity in row {start + row}, column {column} is {block[row, column]}")
    return block


def load(path: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """A saved matrix, memory-mapped (images, captions), and the row of each caption's image (captions,).

    The latter is read from `*_images.npy` beside it; without that file, consecutive captions share the images evenly.
    Raises InputError, naming the file, for anything that is not such a file.
    """
    path = existing_file(path, "similarity matrix", "test.py and test_single.py --sims write such files")
    beside = path.with_name(path.stem + "_images.npy")
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
