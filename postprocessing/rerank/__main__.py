"""The command `python -m postprocessing.rerank`: recall before and after the rerank of saved matrices."""

from __future__ import annotations

import argparse
import filecmp
import itertools
import logging
from dataclasses import asdict, fields
from pathlib import Path

from postprocessing.matrices import gallery_file, load, load_gallery, matrix_files
from postprocessing.recall import chance
from postprocessing.rerank.method import PUBLISHED, VARIANTS, Reranker, Setting
from postprocessing.rerank.search import GRID, grid_figure, search
from postprocessing.results import gain, score_of, summarise
from postprocessing.style import save_figure
from postprocessing.tables import change_table
from utils import InputError, Parser, check_writable_file, run_command, write_json

logger = logging.getLogger("galr")


def main() -> None:
    """Recall before and after the multivariate rerank of saved similarity matrices, in both directions."""
    args = _parse()
    setting = Setting(**{field.name: getattr(args, field.name) for field in fields(Setting)})
    tests = matrix_files(args.sims, "--sims")
    matrices = [load(file) for file in tests]
    if args.search:
        setting = _searched(args, tests, setting)
    logger.info(", ".join(f"{name} {value}" for name, value in asdict(setting).items() if value is not None))
    befores, afters, rows = [], [], []
    for file, (sims, owner) in zip(tests, matrices, strict=True):
        reranker = Reranker(sims, owner, setting.k)
        before, after = score_of(reranker.before), score_of(reranker.standings(setting))
        at_random = chance(owner, len(sims)).mr
        logger.info(
            f"{file}: {len(sims)} images, {len(owner)} captions, chance mR {at_random:.2f}, {gain(before, after)}"
        )
        befores.append(before)
        afters.append(after)
        sizes = {"images": len(sims), "captions": len(owner), "chance": at_random}
        rows.append({"file": str(file), **sizes, "before": before.model_dump(), "after": after.model_dump()})
    (before, _), (after, _) = summarise(befores), summarise(afters)
    print(f"\nmean of {len(rows)} matrices" if len(rows) > 1 else "")
    print(change_table(before, after), end="")
    if args.out:
        mean = {"before": before.model_dump(), "after": after.model_dump()}
        write_json(args.out, {"setting": asdict(setting), "matrices": rows, "mean": mean})


def _parse() -> argparse.Namespace:
    parser = Parser(prog="python -m postprocessing.rerank", description=main.__doc__)
    add = parser.add_argument
    add("--sims", nargs="+", required=True, metavar="FILE.npy", help="matrices, images x captions; of several the mean")
    add("--variant", choices=VARIANTS, default=PUBLISHED.variant, help="reading of c_reverse (%(default)s)")
    add("--k", type=int, default=PUBLISHED.k, help="candidates of each query (%(default)s)")
    add("--l", type=int, help="paper only: cut-off of the reverse position (none)")
    add("--w_similarity", type=float, default=PUBLISHED.w_similarity, help="weight of c_similarity (%(default)s)")
    add("--w_reverse", type=float, default=PUBLISHED.w_reverse, help="weight of c_reverse (%(default)s)")
    add("--xi", type=float, default=PUBLISHED.xi, help="decay of the positions (%(default)s)")
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


def _searched(args: argparse.Namespace, tests: list[Path], start: Setting) -> Setting:
    """The best setting on the validation matrices. Raises InputError where one is of images of the test split."""
    vals = matrix_files(args.val, "--val") if args.val else [file.with_name(f"{file.stem}_val.npy") for file in tests]
    if len(vals) != len(tests):
        raise InputError(f"--val gives {len(vals)} validation matrices for {len(tests)} test matrices")
    for val, test in itertools.product(vals, tests):
        if val.exists() and test.exists() and _same_split(val, test):
            raise InputError(f"{val} is of the same images as the test matrix {test}; choose the setting on others")
    picture = tests[0].with_name(f"{tests[0].stem}_grid.png")
    check_writable_file(picture)
    setting, mr, grid = search([Reranker(*load(val), max(GRID["k"])) for val in vals], start)
    save_figure(grid_figure(mr, grid, f"{args.variant} rerank, mR on validation"), picture)
    logger.info(
        f"on {', '.join(map(str, vals))}: mR {mr[:, 0, 0].max():.2f} without rerank, {mr.max():.2f} with the best of "
        f"{mr.size} settings; all of them: {picture}"
    )
    return setting


def _same_split(val: Path, test: Path) -> bool:
    """Whether two matrices share images, by the galleries that test.py leaves beside them, or else are equal."""
    galleries = [gallery_file(file) for file in (val, test)]
    if not all(gallery.is_file() for gallery in galleries):
        return filecmp.cmp(val, test, shallow=False)
    of_val, of_test = map(load_gallery, galleries)
    return not set(of_val.images).isdisjoint(of_test.images)


if __name__ == "__main__":
    run_command(main)
