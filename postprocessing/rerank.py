"""The multivariate rerank: sort each query's k best candidates by searching back with each of them.

    python postprocessing/rerank.py --sims postprocessing/file/EXPERIMENT_0.npy

For query i and candidate j, positions from 0:

    c_forward    = exp(-xi (position of j among i's candidates + 1))
    c_similarity = s_ij / sum over all queries q of s_qj
    c_reverse    = exp(-xi (R + 1))
    score        = c_forward + w_similarity c_similarity + w_reverse c_reverse

With P the position of i when searching back with j: `paper` takes R = P, and c_reverse = 0 where P >= l; `released`
takes for R the order that P induces among the k candidates. Equal similarities keep index order everywhere.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import sys
from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

if __name__ == "__main__" and not __package__:  # run as a file: import from the project's root, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from postprocessing.matrices import load, matrix_files, share_images
from postprocessing.recall import (
    Answers,
    QueryRanks,
    Ranks,
    Scores,
    check_images,
    check_matrix,
    each_block,
    query_ranks,
)
from postprocessing.results import LEAST_K, PUBLISHED, VARIANTS, Setting
from postprocessing.tables import report
from utils import Bar, InputError, Parser, check_writable_file, run_command

logger = logging.getLogger("galr")

GRID = {
    "k": (10, 20, 30, 50, 100),
    "w_similarity": (0.0, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0),
    "w_reverse": (0.0, 0.2, 0.5, 0.8, 1.1, 1.5, 2.0),
}


class Candidates(NamedTuple):
    """The k best answers of each query, best first, and the parts of their scores. Each array is (queries, k)."""

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
    """Return the scores of the multivariate rerank, with the shape and precision of `sims`; each row is a query.

    For t2i give the transposed view of images x captions. Each query's k best candidates get their score, all other
    columns stand below the lowest of these in their old order (the released code leaves them at zero). k is at most
    the number of columns and, for `released`, raised to 10; `l` is used by `paper` only. Raise InputError for NaN,
    infinity and settings that mean nothing.

    >>> sims = np.array([[0.9, 0.8], [0.9, 0.2]])
    >>> multivariate(sims, k=2, w_similarity=0.3, w_reverse=1.1).round(2)
    array([[2.15, 2.14],
           [2.15, 1.96]])
    """
    sims = check_matrix(sims)
    setting = Setting(k, w_similarity, w_reverse, xi, variant, l)
    found = find_candidates(sims, setting.candidates(sims.shape[1]))
    score = scores(found, setting).astype(sims.dtype)
    out = np.empty(sims.shape, sims.dtype)

    def fill(rows: slice, block: np.ndarray) -> None:
        out[rows] = _below(block, found.index[rows], score[rows])
        np.put_along_axis(out[rows], found.index[rows], score[rows], axis=1)

    each_block(fill, sims)
    return out


def multivariate_order(sims: np.ndarray, setting: Setting = PUBLISHED) -> np.ndarray:
    """Return the candidates of each query by their multivariate score, best first, (queries, k)."""
    found = find_candidates(sims, setting.candidates(sims.shape[1]))
    order = np.argsort(-scores(found, setting).astype(sims.dtype), axis=1, kind="stable")
    return np.take_along_axis(found.index, order, axis=1)


def rerank_recall(
    sims: np.ndarray, image_of_caption: np.ndarray, setting: Setting = PUBLISHED, ties: str = "against"
) -> Scores:
    """Return the recall of the matrices that `multivariate` gives in both directions, without building them."""
    return Reranker(sims, image_of_caption, setting.k).ranks(setting).scores(ties)


class Reranker:
    """The candidates of both directions, found once, so that many settings cost little more than one.

    A query none of whose right answers is a candidate keeps its rank: every candidate was before it and still is. So
    the ranks before and the candidates' scores give the ranks after.
    """

    def __init__(self, sims: np.ndarray, image_of_caption: np.ndarray, k: int) -> None:
        """Find the candidates of `sims` (images, captions); settings up to this k can be tried."""
        sims = check_matrix(sims)
        owner = check_images(image_of_caption, sims.shape)
        asked = np.unique(owner)  # an image without captions is no query
        k = max(int(k), LEAST_K)
        i2t = find_candidates(sims, min(k, sims.shape[1]))
        t2i = find_candidates(sims.T, min(k, sims.shape[0]))
        self.dtype = sims.dtype
        self.before = query_ranks(sims, owner)
        self.found = (Candidates(*(array[asked] for array in i2t)), t2i)
        self.right = (owner[self.found[0].index] == asked[:, None], t2i.index == owner[:, None])
        self.place = [_place(ranks.answers, found.index) for ranks, found in zip(self.before, self.found, strict=True)]

    def ranks(self, setting: Setting) -> QueryRanks:
        """Return the ranks of all queries after the rerank."""
        after = []
        for found, right, place, before in zip(self.found, self.right, self.place, self.before, strict=True):
            k = setting.candidates(found.index.shape[1])
            score = scores(Candidates(*(array[:, :k] for array in found)), setting)
            after.append(_ranks_after(score.astype(self.dtype), right[:, :k], place, before.answers))
        return QueryRanks(*after)


def _place(answers: Answers, index: np.ndarray) -> np.ndarray:
    """Return the place of each right answer among the candidates of its query; their number where it is none."""
    same = index[answers.query] == answers.column[:, None]
    return np.where(same.any(axis=1), same.argmax(axis=1), index.shape[1])


def _ranks_after(score: np.ndarray, right: np.ndarray, place: np.ndarray, answers: Answers) -> Ranks:
    # a right answer that is no candidate comes after all candidates, among them those that tied with it
    after_right = np.count_nonzero(right, axis=1)[answers.query]
    better = np.maximum(answers.better, score.shape[1] - after_right)
    before = np.maximum(answers.before, after_right)
    tied, same = answers.better + answers.tied - better, answers.before + answers.right - before
    inside = np.flatnonzero(place < score.shape[1])
    row, of_right = answers.query[inside], right[answers.query[inside]]
    of_row = score[row]
    own = of_row[np.arange(len(inside)), place[inside]][:, None]
    for wrong, of_kind, ahead in ((better, before, of_row > own), (tied, same, of_row == own)):
        wrong[inside] = np.count_nonzero(ahead & ~of_right, axis=1)
        of_kind[inside] = np.count_nonzero(ahead & of_right, axis=1)
    return answers._replace(better=better, tied=tied, before=before, right=same).ranks()


def scores(found: Candidates, setting: Setting) -> np.ndarray:
    """Return the multivariate scores of the candidates, float64 (queries, k)."""
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
    return fading + setting.w_similarity * found.similarity + setting.w_reverse * reverse


def find_candidates(sims: np.ndarray, k: int) -> Candidates:
    """Return the k best columns of each row, best first; c_similarity is 0 where a column sums to 0."""
    queries, gallery = sims.shape
    index = np.empty((queries, k), np.int32)
    similarity = np.empty((queries, k), sims.dtype)

    def forward(rows: slice, block: np.ndarray) -> None:
        index[rows] = _best_columns(block, k)
        similarity[rows] = np.take_along_axis(block, index[rows], axis=1)

    each_block(forward, sims)

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

    each_block(search_back, sims.T)
    total = total[index]
    share = np.divide(similarity, total, out=np.zeros((queries, k)), where=total != 0)
    return Candidates(index, share, back.reshape(queries, k))


def _best_columns(block: np.ndarray, k: int) -> np.ndarray:
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
    """Return the positions of some queries in the ranking of all queries by `column`.

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
    """Return each row's values in their order and with their ties, but below its lowest score; candidates anything.

    If the lowest score is positive, a power of two scales the values, which is exact. Otherwise, or if that lost a
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


def search(rerankers: Sequence[Reranker], start: Setting) -> tuple[Setting, np.ndarray]:
    """Return the best setting on validation matrices (one per fold), and the mR of all, an axis a key of GRID.

    Of equal settings the first is chosen. With both weights 0 the order stays, and ties are broken by index.
    """
    gallery = max(found.index.shape[1] for reranker in rerankers for found in reranker.found)
    grid = GRID | {"k": sorted({replace(start, k=k).candidates(gallery) for k in GRID["k"]})}
    settings = [replace(start, **dict(zip(grid, point, strict=True))) for point in itertools.product(*grid.values())]
    mr = [
        np.mean([reranker.ranks(setting).metrics()["mr"] for reranker in rerankers])
        for setting in Bar(settings, desc="search", unit="setting")
    ]
    return settings[int(np.argmax(mr))], np.array(mr).reshape([len(axis) for axis in grid.values()])


def _searched(args: argparse.Namespace, tests: list[Path], start: Setting) -> Setting:
    vals = matrix_files(args.val) if args.val else [file.with_name(f"{file.stem}_val.npy") for file in tests]
    if len(vals) != len(tests):
        raise InputError(f"--val gives {len(vals)} validation matrices for {len(tests)} test matrices")
    matrices = [load(val) for val in vals]
    for val, test in itertools.product(vals, tests):
        if share_images(val, test):
            raise InputError(f"{val} is of the same images as the test matrix {test}; choose the setting on others")
    rerankers = [Reranker(*matrix, max(GRID["k"])) for matrix in matrices]
    setting, mr = search(rerankers, start)
    before = np.mean([reranker.before.metrics()["mr"] for reranker in rerankers])
    found = f"mR {before:.2f} without rerank, {mr.max():.2f} with the best of {mr.size} settings"
    logger.info(f"on {', '.join(map(str, vals))}: {found}")
    return setting


def main() -> None:
    """Print recall before and after the multivariate rerank of saved similarity matrices, in both directions."""
    parser = Parser(prog="python -m postprocessing.rerank", description=main.__doc__)
    add = parser.add_argument
    add("--sims", nargs="+", required=True, metavar="FILE.npy", help="matrices, images x captions; of several the mean")
    add("--variant", choices=VARIANTS, default=PUBLISHED.variant, help="reading of c_reverse (%(default)s)")
    add("--k", type=int, default=PUBLISHED.k, help="candidates of each query (%(default)s)")
    add("--l", type=int, help="paper only: cut-off of the reverse position (none)")
    add("--w_similarity", type=float, default=PUBLISHED.w_similarity, help="weight of c_similarity (%(default)s)")
    add("--w_reverse", type=float, default=PUBLISHED.w_reverse, help="weight of c_reverse (%(default)s)")
    add("--xi", type=float, default=PUBLISHED.xi, help="decay of the positions (%(default)s)")
    add("--search", action="store_true", help="choose k and the weights on validation matrices")
    add("--val", nargs="+", metavar="FILE.npy", help="with --search: a matrix for each of --sims (*_val.npy beside it)")
    add("--out", type=Path, metavar="FILE.json", help="also write the scores here")
    args = parser.parse_args()
    if args.l is not None and args.variant != "paper":
        raise InputError("--l belongs to --variant paper; the released variant has no cut-off")
    if args.val and not args.search:
        raise InputError("--val is for --search")
    if args.out:
        check_writable_file(args.out)
    setting = Setting(**{field.name: getattr(args, field.name) for field in fields(Setting)})
    tests = matrix_files(args.sims)
    if args.search:
        setting = _searched(args, tests, setting)
    logger.info(", ".join(f"{name} {value}" for name, value in asdict(setting).items() if value is not None))

    def change(sims: np.ndarray, owner: np.ndarray) -> tuple[QueryRanks, QueryRanks]:
        reranker = Reranker(sims, owner, setting.k)
        return reranker.before, reranker.ranks(setting)

    report(tests, change, asdict(setting), args.out)


if __name__ == "__main__":
    run_command(main)
