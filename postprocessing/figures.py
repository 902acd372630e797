"""Draw the pictures of a run from the files that training and test.py left.

python -m postprocessing.figures --run checkpoint/EXPERIMENT
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from postprocessing.drawing import recall_bars, retrieval_grid, save_figure, training_curve
from postprocessing.matrices import gallery_file, load, load_gallery
from postprocessing.rerank import multivariate_order
from postprocessing.results import History, Results, Setting
from postprocessing.results import load as load_file
from utils import InputError, Parser, run_command

if TYPE_CHECKING:
    from matplotlib.figure import Figure

logger = logging.getLogger("galr")


def draw_run(
    run: str | os.PathLike, out: str | os.PathLike | None = None, matrices: str | os.PathLike = "postprocessing/file"
) -> tuple[list[Path], list[Path]]:
    """Draw what a run's files allow: its curves, recall bars and retrieval grids (test and validation).

    `run` is checkpoint/EXPERIMENT, `matrices` the folder of its similarity matrices; the pictures go to `out`, or to
    figures/ in the run. Return the pictures written and the files that were missing for others. Raise InputError if
    there is nothing to draw, or a file is damaged.
    """
    run = Path(run)
    out = run / "figures" if out is None else Path(out)
    if not run.is_dir():
        raise InputError(f"the run's folder {run} is not there; train.py makes checkpoint/EXPERIMENT")
    file = run / "results.json"
    results = load_file(file, Results) if file.is_file() else None
    name = results.experiment if results else run.name
    setting = results.rerank.setting if results and results.rerank else None
    drawings: dict[str, tuple[list[Path], Callable[[], Figure]]] = {"recall": ([file], partial(recall_bars, results))}
    for fold in sorted((path.name for path in run.iterdir() if path.is_dir() and path.name.isdigit()), key=int):
        title, history = f"{name}, fold {fold}", run / fold / "history.json"
        drawings[f"curve_{fold}"] = [history], partial(_curve, history, title)
        for split, suffix in (("test", ""), ("validation", "_val")):
            sims = Path(matrices) / f"{name}_{fold}{suffix}.npy"
            draw = partial(_grid, sims, setting, f"{title}, {split} split")
            drawings[f"sheet_{fold}{suffix}"] = [sims, gallery_file(sims)], draw
    missing = [file for files, _ in drawings.values() for file in files if not file.is_file()]
    figures = {name: draw() for name, (files, draw) in drawings.items() if not set(files) & set(missing)}
    if not figures:
        raise InputError(f"nothing to draw in {run}: {', '.join(map(str, missing))} missing")
    for name, figure in figures.items():
        save_figure(figure, out / f"{name}.png")
    return [out / f"{name}.png" for name in figures], missing


def _curve(file: Path, title: str) -> Figure:
    return training_curve(load_file(file, History), f"{title}: training")


def _grid(file: Path, setting: Setting | None, title: str) -> Figure:
    sims, owner = load(file)
    reranked = setting and {"i2t": multivariate_order(sims, setting), "t2i": multivariate_order(sims.T, setting)}
    title = f"{title}: {len(sims)} images, {len(owner)} captions"
    return retrieval_grid(sims, *load_gallery(file), owner, title, reranked)


def main() -> None:
    """Draw the training curves, recall bars and retrieval grids of a run from the files that it left."""
    parser = Parser(prog="python -m postprocessing.figures", description=main.__doc__)
    add = parser.add_argument
    add("--run", required=True, metavar="DIR", help="the run's folder, checkpoint/EXPERIMENT")
    add("--out", metavar="DIR", help="where the pictures go (figures/ in the run's folder)")
    matrices_help = "where test.py left the similarity matrices (%(default)s)"
    add("--matrices", default="postprocessing/file", metavar="DIR", help=matrices_help)
    args = parser.parse_args()
    written, missing = draw_run(args.run, args.out, args.matrices)
    for path in written:
        logger.info(path)
    for path in missing:
        logger.info(f"not there, so its picture is left out: {path}")


if __name__ == "__main__":
    run_command(main)
