"""Recall at 1, 5, 10, median and mean rank in both directions, and their mean mR, from a similarity matrix.

i2t: an image is the query and its best captions rank; t2i: a caption is the query and its one image ranks.
Ranks come from counting, not sorting: how many wrong answers are more similar to the query than its best right one, and
how many are just as similar. What becomes of the latter, the ties, is the caller's choice: they count against the
query, so that a constant matrix scores like the worst ranking; or for it; or they are broken at random, of which the
exact expectation is given. Data sets repeat captions, so the three differ.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, SupportsIndex

import numpy as np

from utils import InputError

BLOCK = 1 << 18  # entries of the matrix that are worked on at once: they fit a core's cache
CUTS = (1, 5, 10)
TIES = ("against", "random", "for")
NOTICEABLE = 0.05  # ties that change mR by more than this are shown


class Recalls(NamedTuple):
    """One direction: R@1, R@5, R@10 in per cent, median and mean rank from 1; None: not known. `x["r1"]` is `x.r1`."""

    r1: float | None
    r5: float | None
    r10: float | None
    medr: float | None = None
    meanr: float | None = None

    def __getitem__(self, key: str | SupportsIndex | slice) -> float | tuple | None:
        return getattr(self, key) if isinstance(key, str) else tuple.__getitem__(self, key)


class Scores(NamedTuple):
    """Both directions, and mR: the mean of their six recalls."""

    i2t: Recalls
    t2i: Recalls
    mr: float | None


class Places(NamedTuple):
    """Where the best right answer of each query stands; one number a query in each array."""

    ahead: np.ndarray  # wrong answers that are more similar to the query
    tied: np.ndarray  # wrong answers that are just as similar
    right: np.ndarray  # right answers that are just as similar, itself included

    def ranks(self, ties: str = "against") -> np.ndarray:
        """The ranks from 0. Of t wrong and r right answers in random order, t / (r + 1) wrong ones come first."""
        if ties == "random":
            return self.ahead + self.tied / (self.right + 1)
        return self.ahead + self.tied if ties == "against" else self.ahead

    def hits(self, k: int, ties: str = "against") -> np.ndarray:
        """The probability of each query that a right answer is among its first k: 0 or 1, if not by ties at random.

        At random it is hypergeometric: the first k hold no right answer if the `room` that is left among them is filled
        with wrong ones, which has the probability (t - 0) / (t + r - 0) * (t - 1) / (t + r - 1) * ..., `room` factors.
        """
        if ties != "random":
            return (self.ranks(ties) < k).astype(float)
        room, miss = k - self.ahead, np.ones(len(self.ahead))
        for drawn in range(k):
            share = np.maximum(self.tied - drawn, 0) / np.maximum(self.tied + self.right - drawn, 1)
            miss *= np.where(drawn < room, share, 1)
        return 1 - miss

    def recalls(self, ties: str = "against") -> Recalls:
        """Recalls and ranks over all queries.

        medr is floor(median of ranks from 0) + 1, as in the released code; with ties at random, of the expected ranks.
        """
        at = (100.0 * float(self.hits(k, ties).sum()) / len(self.ahead) for k in CUTS)
        ranks = self.ranks(ties)
        return Recalls(*at, medr=float(np.floor(np.median(ranks)) + 1), meanr=float(np.mean(ranks) + 1))


class Standings(NamedTuple):
    """Both directions: the images that have captions, in their order, and the captions."""

    i2t: Places
    t2i: Places

    def scores(self, ties: str = "against") -> Scores:
        """What they come to. Raises InputError for ties that are none of `TIES`."""
        if ties not in TIES:
            raise InputError(f"ties are {', '.join(TIES[:-1])} or {TIES[-1]}, not {ties!r}")
        i2t, t2i = self.i2t.recalls(ties), self.t2i.recalls(ties)
        return Scores(i2t, t2i, sum(i2t[:3] + t2i[:3]) / 6)


def recall(sims: np.ndarray, image_of_caption: np.ndarray, ties: str = "against") -> Scores:
    """Recall of a similarity matrix (images, captions), float or integer; memory-mapped ones are read in blocks.

    `image_of_caption` (captions,) holds the row of each caption's image. `ties` with wrong answers count "against" or
    "for" the query, or are broken at "random", which gives the exact expectation. The scores unpack as i2t, t2i, mR. An
    image without captions is no query in i2t, but stays in the gallery of t2i. Raises InputError for NaN, infinity,
    shapes that do not fit, and other ties.
    """
    return standings(sims, image_of_caption).scores(ties)


def ranks(sims: np.ndarray, image_of_caption: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rank, from 0, of the best right answer of each query, ties against it: i2t (images that have captions,), t2i."""
    i2t, t2i = standings(sims, image_of_caption)
    return i2t.ranks(), t2i.ranks()


def standings(sims: np.ndarray, image_of_caption: np.ndarray) -> Standings:
    """Where the best right answer of each query stands, for matrices as in `recall`."""
    sims = check_matrix(sims)
    owner = check_images(image_of_caption, sims.shape)
    own = np.asarray(sims[owner, np.arange(len(owner))])  # similarity of each caption with its image
    best = np.full(len(sims), -np.inf, own.dtype)  # similarity of each image with the best of its captions
    with np.errstate(invalid="ignore"):  # a NaN is found below, with its place
        np.maximum.at(best, owner, own)
    i2t_above, i2t_equal = np.empty(len(sims), np.int64), np.empty(len(sims), np.int64)
    t2i_above, t2i_equal = np.zeros(len(owner), np.int64), np.zeros(len(owner), np.int64)
    for rows, block in blocks(sims):
        i2t_above[rows] = np.count_nonzero(block > best[rows, None], axis=1)
        i2t_equal[rows] = np.count_nonzero(block == best[rows, None], axis=1)
        t2i_above += np.count_nonzero(block > own, axis=0)
        t2i_equal += np.count_nonzero(block == own, axis=0)
    right = np.bincount(owner[own == best[owner]], minlength=len(sims))
    i2t = Places(i2t_above, i2t_equal - right, right)
    asked = np.bincount(owner, minlength=len(sims)) > 0
    return Standings(Places(*(array[asked] for array in i2t)), Places(t2i_above, t2i_equal - 1, np.ones_like(owner)))


def chance(image_of_caption: np.ndarray, n_images: int) -> Scores:
    """What a random ranking is expected to score, exactly: a constant matrix whose ties are broken at random."""
    owner = check_images(image_of_caption, (n_images, len(image_of_caption)))
    captions, one = np.bincount(owner)[np.unique(owner)], np.ones_like(owner)
    i2t = Places(0 * captions, len(owner) - captions, captions)
    return Standings(i2t, Places(0 * one, (n_images - 1) * one, one)).scores("random")


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
