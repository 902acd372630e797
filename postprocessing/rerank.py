"""The multivariate rerank: each query's k best candidates are sorted anew by what searching back with them says.

For query i and candidate j, positions from 0 (GaLR, section on the multivariate rerank; the two readings of c_reverse
are those of the released code and of the paper):

    c_forward    = exp(-xi (position of j among i's candidates + 1))
    c_similarity = s_ij / sum over all queries q of s_qj
    c_reverse    = exp(-xi (R + 1))
    score        = c_forward + w_similarity c_similarity + w_reverse c_reverse

With P the position of i when searching back with j: `paper` takes R = P, and c_reverse = 0 where P >= l; `released`
takes for R the order that P induces among the k candidates. Equal similarities keep index order everywhere.

    python -m postprocessing.rerank --sims postprocessing/file/EXPERIMENT_0.npy
"""

from __future__ import annotations

import argparse
import filecmp
import glob
import itertools
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from postprocessing.recall import (
    block_rows,
    chance,
    check_images,
    check_matrix,
    load,
    ranks,
    read_block,
    recall_of_ranks,
)
from postprocessing.style import save_figure
from postprocessing.tables import change_table, summarise
from util.errors import InputError
from util.files import check_writable_file, read_json, write_json
from utils import Parser, run_command

PUBLISHED = {"k": 30, "w_similarity": 0.3, "w_reverse": 1.1, "xi": 0.05, "variant": "released", "l": None}
VARIANTS = ("released", "paper")
LEAST_K = 10  # of the released code
GRID = {
    "k": (10, 20, 30, 50, 100),
    "w_similarity": (0.0, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0),
    "w_reverse": (0.0, 0.2, 0.5, 0.8, 1.1, 1.5, 2.0),
}


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
    check_setting(k, w_similarity, w_reverse, xi, variant, l)
    sims = check_matrix(sims)
    found = find_candidates(sims, used_k(k, variant, sims.shape[1]))
    score = scores(found, w_similarity, w_reverse, xi, variant, l).astype(sims.dtype)
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


def multivariate_order(sims: np.ndarray, **setting) -> np.ndarray:
    """The candidates of each query by their multivariate score, best first, (queries, k). Settings as there."""
    setting = {**PUBLISHED, **setting}
    check_setting(**setting)
    sims = check_matrix(sims)
    found = find_candidates(sims, used_k(setting.pop("k"), setting["variant"], sims.shape[1]))
    score = scores(found, **setting).astype(sims.dtype)
    return np.take_along_axis(found.index, np.argsort(-score, axis=1, kind="stable"), axis=1)


def rerank_recall(sims: np.ndarray, image_of_caption: np.ndarray, **setting) -> tuple[dict, dict, float]:
    """i2t, t2i and mR after the multivariate rerank of both directions; settings as in `multivariate`.

    The same as the recall of the matrices that `multivariate` gives, which are never built here.
    """
    setting = {**PUBLISHED, **setting}
    check_setting(**setting)
    return Reranker(sims, image_of_caption, setting["k"]).recall(**setting)


class Reranker:
    """What the rerank of both directions needs from a matrix, found once, so that many settings cost little more.

    A query none of whose right answers is a candidate keeps its rank: every candidate was before it and still is. So
    the ranks before, and the candidates' scores, give the ranks after.
    """

    def __init__(self, sims: np.ndarray, image_of_caption: np.ndarray, k: int) -> None:
        """`sims` (images, captions); settings up to this k can be tried."""
        sims = check_matrix(sims)
        owner = check_images(image_of_caption, sims.shape)
        asked = np.unique(owner)  # an image without captions is no query
        k = max(k, LEAST_K)
        i2t = find_candidates(sims, min(k, sims.shape[1]))
        t2i = find_candidates(sims.T, min(k, sims.shape[0]))
        self.dtype = sims.dtype
        self.before = ranks(sims, owner)
        self.found = (Candidates(*(array[asked] for array in i2t)), t2i)
        self.right = (owner[self.found[0].index] == asked[:, None], t2i.index == owner[:, None])

    def recall(self, k: int, w_similarity: float, w_reverse: float, xi: float, variant: str, l: int | None):  # noqa: E741
        """i2t, t2i and mR after the rerank with this setting."""
        after = []
        for found, right, before in zip(self.found, self.right, self.before, strict=True):
            first = used_k(k, variant, found.index.shape[1])
            score = scores(Candidates(*(array[:, :first] for array in found)), w_similarity, w_reverse, xi, variant, l)
            after.append(_ranks_after(score.astype(self.dtype), right[:, :first], before))
        return recall_of_ranks(*after)


def _ranks_after(score: np.ndarray, right: np.ndarray, before: np.ndarray) -> np.ndarray:
    best = np.where(right, score, -np.inf).max(axis=1, keepdims=True)
    ahead = np.count_nonzero((score >= best) & ~right, axis=1)
    return np.where(right.any(axis=1), ahead, before)


def scores(
    found: Candidates,
    w_similarity: float,
    w_reverse: float,
    xi: float,
    variant: str,
    l: int | None,  # noqa: E741
) -> np.ndarray:
    """The multivariate scores of the candidates, float64 (queries, k)."""
    place = np.arange(found.index.shape[1])
    fading = np.exp(-xi * (place + 1))
    if variant == "released":
        reverse = np.empty(found.back.shape)
        order = np.argsort(found.back, axis=1, kind="stable")
        np.put_along_axis(reverse, order, np.broadcast_to(fading, order.shape), axis=1)
    else:
        reverse = np.exp(-xi * (found.back + 1.0))
        if l is not None:
            reverse[found.back >= l] = 0
    score = fading + w_similarity * found.similarity + w_reverse * reverse
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


def used_k(k: int, variant: str, gallery: int) -> int:
    """The number of candidates that a setting's k comes to: at least 10 in `released`, at most the gallery's size."""
    return min(max(int(k), LEAST_K) if variant == "released" else k, gallery)


def check_setting(k: int, w_similarity: float, w_reverse: float, xi: float, variant: str, l: int | None) -> None:  # noqa: E741
    """Raises InputError for a setting that means nothing."""
    if variant not in VARIANTS:
        raise InputError(f"the rerank variant is {' or '.join(VARIANTS)}, not {variant!r}")
    numbers = {"k": k, "w_similarity": w_similarity, "w_reverse": w_reverse, "xi": xi} | ({} if l is None else {"l": l})
    for name, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, (int, float, np.number)) or not 0 <= value < 1e9:
            raise InputError(f"{name} is a number from 0 to 1e9, not {value!r}")
    if k < 1 or k != int(k):
        raise InputError(f"k, the number of candidates, is a whole number from 1 on, not {k}")


def search(rerankers: Sequence[Reranker], xi: float, variant: str, l: int | None) -> tuple[dict, np.ndarray, dict]:  # noqa: E741
    """Try the grid on validation matrices (one per fold).

    Returns the setting with the highest mean mR, all mean mRs (k, w_similarity, w_reverse), and the grid's axes. With
    both weights 0 the order stays as it was, so "no rerank" is in the grid; of equal settings the first is chosen.
    """
    from tqdm import tqdm

    gallery = max(found.index.shape[1] for reranker in rerankers for found in reranker.found)
    grid = GRID | {"k": sorted({used_k(k, variant, gallery) for k in GRID["k"]})}
    mr = np.zeros([len(axis) for axis in grid.values()])
    settings = list(itertools.product(*grid.values()))
    for at, weights in zip(np.ndindex(mr.shape), tqdm(settings, desc="search", disable=None), strict=True):
        mr[at] = np.mean([reranker.recall(*weights, xi, variant, l)[2] for reranker in rerankers])
    best = settings[int(mr.argmax())]
    return {**dict(zip(grid, best, strict=True)), "xi": xi, "variant": variant, "l": l}, mr, grid


def matrix_files(patterns: Sequence[str], option: str) -> list[Path]:
    """The files of a command line's names and globs, sorted, without the `*_images.npy` and, in a mix, `*_val.npy`."""
    files = []
    for pattern in patterns:
        is_glob = glob.has_magic(pattern) and not Path(pattern).exists()
        found = sorted(glob.glob(pattern)) if is_glob else [pattern]  # noqa: PTH207 (it takes absolute patterns)
        if not found:
            raise InputError(f"{option}: no file matches {pattern}")
        files += [Path(file) for file in found]
    files = list(dict.fromkeys(files))
    for suffix in ("_images", "_val"):
        files = [file for file in files if not file.stem.endswith(suffix)] or files
    return files


def _same_split(val: Path, test: Path) -> bool:
    """Whether two matrices share images, by the galleries that test.py leaves beside them, or else are equal."""
    galleries = [file.with_name(f"{file.stem}_gallery.json") for file in (val, test)]
    if not all(gallery.is_file() for gallery in galleries):
        return filecmp.cmp(val, test, shallow=False)
    trees = [read_json(gallery, "gallery") for gallery in galleries]
    lists = [tree.get("images") if isinstance(tree, dict) else None for tree in trees]
    if not all(isinstance(images, list) for images in lists):
        raise InputError(f'gallery {galleries[0]} or {galleries[1]}: no list "images"')
    return any(image in lists[0] for image in lists[1])


def _search_command(args: argparse.Namespace, tests: list[Path]) -> dict:
    vals = matrix_files(args.val, "--val") if args.val else [file.with_name(f"{file.stem}_val.npy") for file in tests]
    if len(vals) != len(tests):
        raise InputError(f"--val gives {len(vals)} validation matrices for {len(tests)} test matrices")
    for val, test in itertools.product(vals, tests):
        if val.exists() and test.exists() and _same_split(val, test):
            raise InputError(f"{val} is of the same images as the test matrix {test}; choose the setting on others")
    picture = tests[0].with_name(f"{tests[0].stem}_grid.png")
    check_writable_file(picture)
    setting, mr, grid = search([Reranker(*load(val), max(GRID["k"])) for val in vals], args.xi, args.variant, args.l)
    from postprocessing.figures import grid_figure

    save_figure(grid_figure(mr, grid, f"{args.variant} rerank, mR on validation"), picture)
    print(f"on {', '.join(map(str, vals))}: mR {mr[:, 0, 0].max():.2f} without rerank, {mr.max():.2f} with the best")
    print(f"of {mr.size} settings; all of them: {picture}")
    return setting


def _parse() -> argparse.Namespace:
    parser = Parser(prog="python -m postprocessing.rerank", description=main.__doc__)
    add = parser.add_argument
    add("--sims", nargs="+", required=True, metavar="FILE.npy", help="matrices, images x captions; of several the mean")
    add("--variant", choices=VARIANTS, default="released", help="reading of c_reverse (%(default)s)")
    add("--k", type=int, default=PUBLISHED["k"], help="candidates of each query (%(default)s)")
    add("--l", type=int, help="paper only: cut-off of the reverse position (none)")
    add("--w_similarity", type=float, default=PUBLISHED["w_similarity"], help="weight of c_similarity (%(default)s)")
    add("--w_reverse", type=float, default=PUBLISHED["w_reverse"], help="weight of c_reverse (%(default)s)")
    add("--xi", type=float, default=PUBLISHED["xi"], help="decay of the positions (%(default)s)")
    add("--search", action="store_true", help="choose k and the weights on validation matrices; draws the grid as PNG")
    add("--val", nargs="+", metavar="FILE.npy", help="with --search: a matrix for each of --sims (*_val.npy beside it)")
    add("--out", metavar="FILE.json", help="also write the scores here")
    args = parser.parse_args()
    if args.l is not None and args.variant != "paper":
        raise InputError("--l belongs to --variant paper; the released variant has no cut-off")
    if args.val and not args.search:
        raise InputError("--val is for --search")
    if args.out:
        check_writable_file(Path(args.out))
    return args


def _score(file: Path, sims: np.ndarray, owner: np.ndarray, setting: dict) -> dict:
    """Recall of one matrix before and after the rerank, which is also printed."""
    reranker = Reranker(sims, owner, setting["k"])
    before, after = (
        dict(zip(("i2t", "t2i", "mr"), score, strict=True))
        for score in (recall_of_ranks(*reranker.before), reranker.recall(**setting))
    )
    images, captions = sims.shape
    at_random = chance(owner, images)[2]
    print(f"{file}: {images} images, {captions} captions, chance mR {at_random:.2f}, ", end="")
    print(f"mR {before['mr']:.2f} before and {after['mr']:.2f} after ({after['mr'] - before['mr']:+.2f})")
    sizes = {"images": images, "captions": captions, "chance": at_random}
    return {"file": str(file), **sizes, "before": before, "after": after}


def main() -> None:
    """Recall before and after the multivariate rerank of saved similarity matrices, in both directions."""
    args = _parse()
    setting = {name: getattr(args, name) for name in PUBLISHED}
    check_setting(**setting)
    tests = matrix_files(args.sims, "--sims")
    matrices = [load(file) for file in tests]
    if args.search:
        setting = _search_command(args, tests)
    print(", ".join(f"{name} {value}" for name, value in setting.items() if value is not None))
    results = [_score(file, sims, owner, setting) for file, (sims, owner) in zip(tests, matrices, strict=True)]
    (before, _), (after, _) = (summarise([result[side] for result in results]) for side in ("before", "after"))
    print(f"\nmean of {len(results)} matrices" if len(results) > 1 else "")
    print(change_table(before, after), end="")
    if args.out:
        write_json(args.out, {"setting": setting, "matrices": results, "mean": {"before": before, "after": after}})


if __name__ == "__main__":
    run_command(main)
