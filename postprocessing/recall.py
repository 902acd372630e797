"""Recall at 1, 5 and 10, median and mean rank, mAP in both directions, and mR, from a similarity matrix.

i2t: an image is the query, the best of its captions ranks; t2i: a caption is the query, its one image ranks. mR is the
mean of the six recalls. Ranks come from counting, not sorting: how many wrong answers are better than the best right
one, and how many tie with it. Data sets repeat captions, so it matters what becomes of the ties:

    against   pessimistic: they come before the right answer; a constant matrix scores like the worst ranking
    random    expected: the exact mean over all orders of the tied answers
    for       optimistic: they come after it
"""

from __future__ import annotations

import os
from collections import namedtuple
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, SupportsIndex

import numpy as np

from utils import InputError

BLOCK = 1 << 18  # entries of the matrix that are worked on at once: they fit a core's cache
CUTS = (1, 5, 10)
TIES = ("against", "random", "for")
NOTICEABLE = 0.05  # ties that change mR by more than this are shown
DIRECTIONS = ("i2t", "t2i")
TRANSPOSED = "a matrix of {} x {} looks transposed, captions x images; give images x captions: np.save(FILE, sims.T)"

Metrics = dict[str, float | None]  # {"i2t_r1": ..., ..., "t2i_meanr": ..., "mr": ...}; None: not known


class Answers(NamedTuple):
    """All right answers of the queries of one direction; one number an answer in each array."""

    query: np.ndarray  # row of the query
    column: np.ndarray  # the answer itself
    better: np.ndarray  # wrong answers that are more similar to the query
    tied: np.ndarray  # wrong answers that are just as similar
    before: np.ndarray  # right answers that are more similar
    right: np.ndarray  # right answers that are just as similar, itself included

    def ranks(self) -> Ranks:
        """Return the ranks of the best right answers."""
        best = np.flatnonzero(self.before == 0)
        best = best[np.unique(self.query[best], return_index=True)[1]]
        return Ranks(self.better[best], self.tied[best], self.right[best], self)

    def average_precision(self, ties: str) -> np.ndarray:
        """Return the average precision of each query: the mean, over its right answers, of the precision at each."""
        late = self.tied if ties == "against" else 0
        precision = np.zeros(len(self.query))
        for n in range(1, self.right.max() + 1):  # the n-th of those that are as similar
            at = (self.before + n) / (self.better + late + self.before + n)
            precision += np.where(n <= self.right, at, 0)
        precision /= self.right
        if ties == "random" and self.tied.any():
            mixed = np.flatnonzero(self.tied)
            places, kind = np.unique(np.stack([part[mixed] for part in self[2:]]), axis=1, return_inverse=True)
            expected = np.array([_expected_precision(*place) for place in places.T.tolist()])
            precision[mixed] = expected[kind.ravel()]
        return np.bincount(self.query, precision) / np.bincount(self.query)


def _expected_precision(better: int, tied: int, before: int, right: int) -> float:
    # the p-th of t wrong and r right tied answers has (p - 1) (r - 1) / (t + r - 1) right ones before it on average
    p = np.arange(1, tied + right + 1)
    return float(((before + 1 + (p - 1) * (right - 1) / (tied + right - 1)) / (better + before + p)).mean())


class Ranks(NamedTuple):
    """The rank of the best right answer of each query of one direction; one number a query in each array."""

    better: np.ndarray  # wrong answers that are more similar to the query
    tied: np.ndarray  # wrong answers that are just as similar
    right: np.ndarray  # right answers that are just as similar, itself included
    answers: Answers | None = None  # all right answers; None: not known

    def from_zero(self, ties: str = "against") -> np.ndarray:
        """Return the ranks from 0. Of t wrong and r right answers in random order, t / (r + 1) wrong ones are first."""
        if ties == "random":
            return self.better + self.tied / (self.right + 1)
        return self.better + self.tied if ties == "against" else self.better

    def hits(self, k: int, ties: str = "against") -> np.ndarray:
        """Return for each query the probability of a right answer among its first k: 0 or 1, unless ties are random."""
        if ties != "random":
            return (self.from_zero(ties) < k).astype(float)
        room, miss = k - self.better, np.ones(len(self.better))  # hypergeometric: only wrong ones fill the room
        for drawn in range(k):
            share = np.maximum(self.tied - drawn, 0) / np.maximum(self.tied + self.right - drawn, 1)
            miss *= np.where(drawn < room, share, 1)
        return 1 - miss


def _recall_at(k: int) -> Callable[[Ranks, str], float]:
    return lambda ranks, ties: 100.0 * float(ranks.hits(k, ties).sum()) / len(ranks.better)


MEASURES: dict[str, Callable[[Ranks, str], float]] = {
    # a further metric is one more entry: files and tables follow
    **{f"r{k}": _recall_at(k) for k in CUTS},
    "medr": lambda ranks, ties: float(np.floor(np.median(ranks.from_zero(ties))) + 1),  # as in the released code
    "meanr": lambda ranks, ties: float(np.mean(ranks.from_zero(ties)) + 1),
    "map": lambda ranks, ties: 100.0 * float(ranks.answers.average_precision(ties).mean()),
}
SIX = [f"{direction}_r{k}" for direction in DIRECTIONS for k in CUTS]  # mR is their mean


class QueryRanks(NamedTuple):
    """Both directions: the images that have captions, in their order, and the captions."""

    i2t: Ranks
    t2i: Ranks

    def metrics(self, ties: str = "against") -> Metrics:
        """Return the flat dictionary of all metrics. Raise InputError for ties that are none of `TIES`."""
        if ties not in TIES:
            raise InputError(f"ties must be {', '.join(TIES[:-1])} or {TIES[-1]}, got {ties!r}")
        flat = {f"{way}_{key}": f(getattr(self, way), ties) for way in DIRECTIONS for key, f in MEASURES.items()}
        return flat | {"mr": sum(flat[key] for key in SIX) / 6}

    def scores(self, ties: str = "against") -> Scores:
        """Return the metrics by direction."""
        flat = self.metrics(ties)
        ways = (Recalls(**{key: flat[f"{way}_{key}"] for key in Recalls._fields}) for way in DIRECTIONS)
        return Scores(*ways, flat["mr"])


class Recalls(namedtuple("Recalls", ("r1", "r5", "r10", "medr", "meanr"))):
    """One direction: R@1, R@5, R@10 in per cent, median and mean rank from 1. `x["r1"]` is `x.r1`."""

    __slots__ = ()

    def __getitem__(self, key: str | SupportsIndex | slice) -> float | tuple | None:
        return getattr(self, key) if isinstance(key, str) else tuple.__getitem__(self, key)


class Scores(NamedTuple):
    """Both directions, and mR."""

    i2t: Recalls
    t2i: Recalls
    mr: float


def recall(sims: np.ndarray, image_of_caption: np.ndarray, ties: str = "against") -> Scores:
    """Return the recall of a similarity matrix (images, captions), as i2t, t2i, mR.

    The matrix is float or integer; a memory-mapped one is read in blocks. `image_of_caption` (captions,) holds the row
    of each caption's image. `ties` are "against", "random" or "for". An image without captions is no query in i2t, but
    stays in the gallery of t2i. Raise InputError for NaN, infinity, shapes that do not fit, and other ties.

    >>> i2t, t2i, mr = recall(np.array([[0.9, 0.2], [0.8, 0.7]]), np.array([0, 1]))
    >>> i2t.r1, t2i["r1"], t2i.meanr
    (50.0, 100.0, 1.0)
    """
    return query_ranks(sims, image_of_caption).scores(ties)


def metrics(sims: np.ndarray, image_of_caption: np.ndarray, ties: str = "against") -> Metrics:
    """Return all metrics of a similarity matrix in one flat dictionary; arguments as in `recall`.

    >>> found = metrics(np.eye(3), np.arange(3))
    >>> found["i2t_r1"], found["t2i_medr"], found["mr"]
    (100.0, 1.0, 100.0)
    """
    return query_ranks(sims, image_of_caption).metrics(ties)


def query_ranks(sims: np.ndarray, image_of_caption: np.ndarray) -> QueryRanks:
    """Return the ranks of all queries, for matrices as in `recall`."""
    sims = check_matrix(sims)
    owner = check_images(image_of_caption, sims.shape)
    own = np.asarray(sims[owner, np.arange(len(owner))])  # similarity of each caption with its image
    better, equal, t2i_better, t2i_equal = np.zeros((4, len(owner)), np.int64)  # of each caption as answer and query
    by_image = np.argsort(owner, kind="stable")
    first = np.searchsorted(owner[by_image], np.arange(len(sims) + 1))
    for rows, block in blocks(sims):
        captions = by_image[first[rows.start] : first[rows.start + len(block)]]
        for caption in captions:
            row = block[owner[caption] - rows.start]
            better[caption] = np.count_nonzero(row > own[caption])
            equal[caption] = np.count_nonzero(row == own[caption])
        t2i_better += np.count_nonzero(block > own, axis=0)
        t2i_equal += np.count_nonzero(block == own, axis=0)
    before, right = _among_right(owner, own)
    asked = np.cumsum(np.bincount(owner, minlength=len(sims)) > 0) - 1  # an image without captions is no query
    captions, one = np.arange(len(owner)), np.ones_like(owner)
    i2t = Answers(asked[owner], captions, better - before, equal - right, before, right)
    return QueryRanks(i2t.ranks(), Answers(captions, owner, t2i_better, t2i_equal - 1, 0 * one, one).ranks())


def _among_right(query: np.ndarray, similarity: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return how many right answers of its query are more similar than each, and how many as similar with itself."""
    order = np.lexsort((-similarity, query))
    query, similarity = query[order], similarity[order]
    starts = np.flatnonzero(np.append(True, (np.diff(query) != 0) | (np.diff(similarity) != 0)))
    sizes = np.diff(np.append(starts, len(query)))
    before, right = np.empty(len(query), np.int64), np.empty(len(query), np.int64)
    before[order] = np.repeat(starts - np.searchsorted(query, query[starts]), sizes)
    right[order] = np.repeat(sizes, sizes)
    return before, right


def chance(image_of_caption: np.ndarray, n_images: int) -> Scores:
    """Return what a random ranking is expected to score, exactly: a constant matrix with ties at random."""
    owner = check_images(image_of_caption, (n_images, len(image_of_caption)))
    query = np.unique(owner, return_inverse=True)[1]
    right, one, column = np.bincount(query)[query], np.ones_like(owner), np.arange(len(owner))
    i2t = Answers(query, column, 0 * one, len(owner) - right, 0 * one, right)
    t2i = Answers(column, owner, 0 * one, (n_images - 1) * one, 0 * one, one)
    return QueryRanks(i2t.ranks(), t2i.ranks()).scores("random")


def image_of_caption(images: int, captions: int) -> np.ndarray:
    """Return the row of each caption's image where consecutive captions share the images evenly, (captions,) int64."""
    if images < 1 or captions < 1 or captions % images:
        if captions > 1 and images > captions and images % captions == 0:
            raise InputError(TRANSPOSED.format(images, captions))
        raise InputError(
            f"{captions} captions do not share {images} images evenly; say which image each belongs to in *_images.npy"
        )
    return np.arange(captions) // (captions // images)


def check_matrix(sims: np.ndarray) -> np.ndarray:
    """Return the matrix with a floating type (a view if it has one). Raise InputError if it is no matrix of numbers."""
    sims = np.asanyarray(sims)
    if sims.ndim != 2 or sims.size == 0:
        raise InputError(f"a similarity matrix must have two dimensions, neither of them empty, got shape {sims.shape}")
    if sims.dtype.kind not in "fiu":
        raise InputError(f"a similarity matrix must hold real numbers, got {sims.dtype}")
    if sims.dtype.kind != "f" or sims.dtype.itemsize < 4:
        return sims.astype(np.result_type(sims.dtype, np.float32))
    return sims


def check_images(image_of_caption: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Return the row of each caption's image, (captions,). Raise InputError if it does not fit such a matrix."""
    owner = np.asarray(image_of_caption)
    images, captions = shape
    if owner.shape == (images,) != (captions,):
        raise InputError(TRANSPOSED.format(images, captions))
    if owner.dtype.kind not in "iu" or owner.shape != (captions,):
        raise InputError(
            f"the similarity matrix has {images} images x {captions} captions, so the images of the captions must be "
            f"{captions} integers, got {owner.dtype} of shape {owner.shape}"
        )
    wrong = np.flatnonzero((owner < 0) | (owner >= images))
    if len(wrong):
        raise InputError(f"caption {wrong[0]} belongs to image {owner[wrong[0]]}, but the images are 0 to {images - 1}")
    return owner.astype(np.int64, copy=False)


def blocks(sims: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """Yield blocks of rows of a matrix, each with its slice. Raise InputError at a value that is not finite."""
    return ((rows, _read(sims, rows)) for rows in _block_rows(sims))


def each_block(work: Callable[[slice, np.ndarray], None], sims: np.ndarray) -> None:
    """Call work(rows, block) for each block of rows, on a few cores: NumPy releases the interpreter while it sorts."""
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        list(pool.map(lambda rows: work(rows, _read(sims, rows)), _block_rows(sims)))


def _block_rows(sims: np.ndarray) -> list[slice]:
    step = max(64, BLOCK // sims.shape[1])  # rows of a transposed view are columns, and short runs of them read slowly
    return [slice(start, start + step) for start in range(0, len(sims), step)]


def _read(sims: np.ndarray, rows: slice) -> np.ndarray:
    block = np.ascontiguousarray(sims[rows])
    if not np.isfinite(block).all():
        row, column = np.argwhere(~np.isfinite(block))[0]
        raise InputError(f"the similarity in row {rows.start + row}, column {column} is {block[row, column]}")
    return block
