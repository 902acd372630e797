"""The multivariate rerank: each query's k best candidates are sorted anew by what searching back with them says.

For query i and candidate j, positions from 0 (the multivariate rerank of the paper; the two readings of c_reverse
are those of the released code and of the paper):

    c_forward    = exp(-xi (position of j among i's candidates + 1))
    c_similarity = s_ij / sum over all queries q of s_qj
    c_reverse    = exp(-xi (R + 1))
    score        = c_forward + w_similarity c_similarity + w_reverse c_reverse

With P the position of i when searching back with j: `paper` takes R = P, and c_reverse = 0 where P >= l; `released`
takes for R the order that P induces among the k candidates. Equal similarities keep index order everywhere.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from postprocessing.recall import (
    Places,
    Scores,
    Standings,
    block_rows,
    check_images,
    check_matrix,
    read_block,
    standings,
)
from utils import InputError

VARIANTS = ("released", "paper")
LEAST_K = 10  # of the released code


@dataclass(frozen=True)
class Setting:
    """A setting of the rerank; the defaults are the published one. Raises InputError where it means nothing."""

    k: int = 30
    w_similarity: float = 0.3
    w_reverse: float = 1.1
    xi: float = 0.05
    variant: str = "released"
    l: int | None = None  # noqa: E741 (the paper's name; of `paper` only)

    def __post_init__(self) -> None:
        if self.variant not in VARIANTS:
            raise InputError(f"the rerank variant is {' or '.join(VARIANTS)}, not {self.variant!r}")
        for name in ("k", "w_similarity", "w_reverse", "xi") + (() if self.l is None else ("l",)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float, np.number)) or not 0 <= value < 1e9:
                raise InputError(f"{name} is a number from 0 to 1e9, not {value!r}")
        if self.k < 1 or self.k != int(self.k):
            raise InputError(f"k, the number of candidates, is a whole number from 1 on, not {self.k}")

    def candidates(self, gallery: int) -> int:
        """How many candidates k comes to: at least 10 in `released`, at most the gallery's size."""
        return min(max(int(self.k), LEAST_K) if self.variant == "released" else int(self.k), gallery)


PUBLISHED = Setting()


class Candidates(NamedTuple):
    """The k best of each query, best first, and all that their scores are made of. Each array is (queries, k)."""

    index: np.ndarray  # column of the candidate in the matrix
    similarity: np.ndarray  # c_similarity
    back: np.ndarray  # P: position of the query when searching back with the candidate


def multivariate(
    sims: np.ndarray,
    k: int,
    w_similarity: float,
    w_reverse: float,
    xi: float = 0.05,
    variant: str = "released",
    l: int | None = None,  # noqa: E741 (the paper's name)
) -> np.ndarray:
    """Scores of the multivariate rerank, with the shape and precision of `sims`; each row is a query of the columns.

    For t2i give the transposed view of images x captions. Each query's k best candidates get their score, all other
    columns stand below the lowest of these in their old order (the released code leaves them at zero). k is at most
    the number of columns and, for `released`, raised to 10; `l` is used by `paper` only. The working memory beside the
    returned matrix is a few blocks of rows. Raises InputError for NaN, infinity and settings that mean nothing.
    """
    setting = Setting(k, w_similarity, w_reverse, xi, variant, l)
    sims = check_matrix(sims)
    found = find_candidates(sims, setting.candidates(sims.shape[1]))
    score = scores(found, setting).astype(sims.dtype)
    out = np.empty(sims.shape, sims.dtype)

    def fill(rows: slice, block: np.ndarray) -> None:
        out[rows] = _below(block, found.index[rows], score[rows])
        np.put_along_axis(out[rows], found.index[rows], score[rows], axis=1)

    _each_block(fill, sims)
    return out


def reverse_order(sims: np.ndarray, k: int) -> np.ndarray:
    """The plain reverse rerank: each query's k best columns in the order of the query's position when searching back
    with them; equal positions keep the candidates' order. (queries, k), best first."""
    sims = check_matrix(sims)
    found = find_candidates(sims, min(k, sims.shape[1]))
    return np.take_along_axis(found.index, np.argsort(found.back, axis=1, kind="stable"), axis=1)


def multivariate_order(sims: np.ndarray, setting: Setting = PUBLISHED) -> np.ndarray:
    """The candidates of each query by their multivariate score, best first, (queries, k)."""
    sims = check_matrix(sims)
    found = find_candidates(sims, setting.candidates(sims.shape[1]))
    score = scores(found, setting).astype(sims.dtype)
    return np.take_along_axis(found.index, np.argsort(-score, axis=1, kind="stable"), axis=1)


def rerank_recall(
    sims: np.ndarray, image_of_caption: np.ndarray, setting: Setting = PUBLISHED, ties: str = "against"
) -> Scores:
    """i2t, t2i and mR after the multivariate rerank of both directions; `ties` as in `recall`.

    The same as the recall of the matrices that `multivariate` gives, which are never built here.
    """
    return Reranker(sims, image_of_caption, setting.k).standings(setting).scores(ties)


class Reranker:
    """What the rerank of both directions needs from a matrix, found once, so that many settings cost little more.

    A query none of whose right answers is a candidate keeps its rank: every candidate was before it and still is. So
    where queries stood before, and the candidates' scores, tell where they stand after.
    """

    def __init__(self, sims: np.ndarray, image_of_caption: np.ndarray, k: int) -> None:
        """`sims` (images, captions); settings up to this k can be tried."""
        sims = check_matrix(sims)
        owner = check_images(image_of_caption, sims.shape)
        asked = np.unique(owner)  # an image without captions is no query
        k = max(int(k), LEAST_K)
        i2t = find_candidates(sims, min(k, sims.shape[1]))
        t2i = find_candidates(sims.T, min(k, sims.shape[0]))
        self.dtype = sims.dtype
        self.before = standings(sims, owner)
        self.found = (Candidates(*(array[asked] for array in i2t)), t2i)
        self.right = (owner[self.found[0].index] == asked[:, None], t2i.index == owner[:, None])

    def standings(self, setting: Setting) -> Standings:
        """Where the best right answer of each query stands after the rerank."""
        after = []
        for found, right, before in zip(self.found, self.right, self.before, strict=True):
            first = setting.candidates(found.index.shape[1])
            score = scores(Candidates(*(array[:, :first] for array in found)), setting)
            after.append(_places_after(score.astype(self.dtype), right[:, :first], before))
        return Standings(*after)


def _places_after(score: np.ndarray, right: np.ndarray, before: Places) -> Places:
    best = np.where(right, score, -np.inf).max(axis=1, keepdims=True)
    found = right.any(axis=1)
    ahead = np.count_nonzero(score > best, axis=1)
    level = score == best
    # else all candidates are wrong and ahead, among them those that tied with the best right answer and came before it
    ahead_else = np.maximum(before.ahead, score.shape[1])
    return Places(
        np.where(found, ahead, ahead_else),
        np.where(found, np.count_nonzero(level & ~right, axis=1), before.ahead + before.tied - ahead_else),
        np.where(found, np.count_nonzero(level & right, axis=1), before.right),
    )


def scores(found: Candidates, setting: Setting) -> np.ndarray:
    """The multivariate scores of the candidates, float64 (queries, k)."""
    place = np.arange(found.index.shape[1])
    fading = np.exp(-setting.xi * (place + 1))
    if setting.variant == "released":
        reverse = np.empty(found.back.shape)
        order = np.argsort(found.back, axis=1, kind="stable")
        np.put_along_axis(reverse, order, np.broadcast_to(fading, order.shape), axis=1)
    else:
        reverse = np.exp(-setting.xi * (found.back + 1.0))
        if setting.l is not None:
            reverse[found.back >= setting.l] = 0
    score = fading + setting.w_similarity * found.similarity + setting.w_reverse * reverse
    if not np.abs(score).max() < 1e30:
        raise InputError("the similarities of some column sum to almost nothing, so c_similarity has no meaning there")
    return score


def find_candidates(sims: np.ndarray, k: int) -> Candidates:
    """The k best columns of each row, in the order of their similarity, and what their scores are made of.

    c_similarity is taken as 0 in a column whose similarities sum to 0.
    """
    queries, gallery = sims.shape
    index = np.empty((queries, k), np.int32)
    similarity = np.empty((queries, k), sims.dtype)

    def forward(rows: slice, block: np.ndarray) -> None:
        index[rows] = _best_columns(block, k)
        similarity[rows] = np.take_along_axis(block, index[rows], axis=1)

    _each_block(forward, sims)

    by_column = np.argsort(index, axis=None, kind="stable")  # the (query, candidate) pairs, grouped by candidate
    start = np.searchsorted(index.ravel()[by_column], np.arange(gallery + 1))
    least = np.full(gallery, np.inf, sims.dtype)  # the least similarity of which the position is wanted
    np.minimum.at(least, index.ravel(), similarity.ravel())
    back = np.empty(queries * k, np.int32)
    total = np.empty(gallery)

    def search_back(columns: slice, block: np.ndarray) -> None:  # its rows are columns of the matrix
        total[columns] = block.sum(axis=1, dtype=np.float64)
        wanted = block >= least[columns, None]  # few: who has j as a candidate is near the top of j's ranking
        ends = np.cumsum(np.count_nonzero(wanted, axis=1))
        top = np.split(block.ravel()[np.flatnonzero(wanted)], ends[:-1])
        for offset, j in enumerate(range(gallery)[columns]):
            pairs = by_column[start[j] : start[j + 1]]
            if len(pairs):
                back[pairs] = _positions(block[offset], top[offset], pairs // k, similarity.ravel()[pairs])

    _each_block(search_back, sims.T)
    total = total[index]
    share = np.divide(similarity, total, out=np.zeros((queries, k)), where=total != 0)
    return Candidates(index, share, back.reshape(queries, k))


def _best_columns(block: np.ndarray, k: int) -> np.ndarray:
    """The columns of the k largest values of each row, largest first, equal ones in column order."""
    rows, width = block.shape
    least = np.partition(block, width - k, axis=1)[:, width - k, None]  # the k-th largest
    chosen = block >= least
    surplus = np.count_nonzero(chosen, axis=1) - k
    for row in np.flatnonzero(surplus):  # several equal the k-th: the last ones are too many
        equal = np.flatnonzero(block[row] == least[row])
        chosen[row, equal[len(equal) - surplus[row] :]] = False
    columns = np.flatnonzero(chosen).reshape(rows, k) - width * np.arange(rows)[:, None]
    order = np.argsort(-np.take_along_axis(block, columns, axis=1), axis=1, kind="stable")
    return np.take_along_axis(columns, order, axis=1)


def _positions(column: np.ndarray, top: np.ndarray, queries: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The positions of some queries in the ranking of all queries by `column`.

    `values` are the similarities of these queries, and `top` all that are not below the least of them, in any order.
    """
    top.sort()
    after = top.searchsorted(values, side="right")
    if (after - top.searchsorted(values, side="left") == 1).all():
        return len(top) - after
    position = np.empty(len(column), np.int64)  # equal similarities: index order decides
    position[np.argsort(-column, kind="stable")] = np.arange(len(column))
    return position[queries]


def _below(block: np.ndarray, index: np.ndarray, score: np.ndarray) -> np.ndarray:
    """Each row's values in their order and with their ties, but below the row's lowest score; candidates anything.

    Where the lowest score is positive, a power of two scales the values, which is exact. Elsewhere, or if that lost a
    difference (of numbers near the smallest there are), their ranks take their place.
    """
    lowest = score.min(axis=1, keepdims=True)
    others = block.copy()
    np.put_along_axis(others, index, -np.inf, axis=1)
    top = np.maximum(others.max(axis=1, keepdims=True), 0)
    with np.errstate(all="ignore"):
        halvings = np.maximum(np.frexp(top / lowest)[1], 0)
        scaled = np.ldexp(block, -halvings)
        kept = (lowest[:, 0] > 0) & np.isfinite(top / lowest)[:, 0] & (np.ldexp(scaled, halvings) == block).all(axis=1)
    for row in np.flatnonzero(~kept):
        values, place = np.unique(others[row], return_inverse=True)
        scaled[row] = lowest[row] - max(1, abs(lowest[row, 0])) * (len(values) - place)
    return scaled


def _each_block(work: Callable[[slice, np.ndarray], None], sims: np.ndarray) -> None:
    """work(rows, block) for each block of rows, on a few cores: NumPy lets go of the interpreter while it sorts."""
    step = block_rows(sims)
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        starts = range(0, len(sims), step)
        for _ in pool.map(lambda at: work(slice(at, at + step), read_block(sims, at, step)), starts):
            pass
