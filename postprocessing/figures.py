"""Pictures of a run: training curve, recall beside the published numbers, retrieval sheets.

    python -m postprocessing.figures --run checkpoint/EXPERIMENT

Everything is drawn from the files that training and test.py left. Each figure function returns a matplotlib Figure
that belongs to no window; matplotlib is imported only where one is made.
"""

from __future__ import annotations

import logging
import os
import textwrap
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from postprocessing.matrices import gallery_file, load, load_gallery
from postprocessing.published import published
from postprocessing.recall import Scores
from postprocessing.rerank import Setting
from postprocessing.results import History, Results, Summary
from postprocessing.results import load as load_file
from postprocessing.sheet import retrieval_sheet
from postprocessing.style import BANK, GREY, INK, PALE, PLAIN, RERANK, RUN, new_figure, save_figure
from postprocessing.tables import AT_RANDOM, MEASURES, SIX, chance_of, gallery_of
from utils import InputError, Parser, check_writable, run_command

if TYPE_CHECKING:
    from matplotlib.figure import Figure

logger = logging.getLogger("galr")


def training_curve(history: History, title: str = "") -> Figure:
    """Loss of the batches, smoothed where there are many, and validation mR on a second axis, with chance dashed.

    Raises InputError for a history without rows.
    """
    train = np.array([(row.step, row.loss) for row in history.train if row.loss is not None]).reshape(-1, 2)
    val = np.array([(row.step, row.mr) for row in history.val if row.mr is not None]).reshape(-1, 2)
    if not len(train) and not len(val):
        raise InputError("the history has no rows yet; it is written at the first validation")
    epochs = 1 + max(row.epoch for row in history.train + history.val)
    chance = next((row.chance for row in history.val if row.chance is not None), None)
    figure = new_figure(9, 4.8)
    left = figure.subplots()
    right = left.twinx()
    figure.subplots_adjust(left=0.09, right=0.91, top=0.80, bottom=0.13)
    if len(train):
        _draw_loss(left, train)
    _draw_validation(right, val, chance)
    left.set_xlabel(f"batch ({epochs:g} epoch{'s' * (epochs != 1)})", color=INK)
    left.set_xlim(left=0)
    for axes in (left, right):
        axes.spines["top"].set_visible(False)
    left.grid(axis="y", color=PALE, linewidth=0.5)
    figure.suptitle(title, fontsize=12, color=INK, y=0.97, **PLAIN)
    figure.legend(loc="upper center", bbox_to_anchor=(0.5, 0.91), ncols=4, frameon=False, fontsize=9)
    return figure


def _draw_loss(axes, train: np.ndarray) -> None:
    smooth = _moving_mean(train[:, 1], len(train) // 40)
    if len(train) < 80:
        axes.plot(*train.T, color=RERANK, linewidth=1.4, marker=".", label="loss")
    else:
        axes.plot(*train.T, color=RERANK, linewidth=0.7, alpha=0.3)
        axes.plot(train[:, 0], smooth, color=RERANK, linewidth=1.8, label="loss (moving mean)")
    axes.set_ylim(0, 1.05 * max(smooth.max(), np.percentile(train[:, 1], 99)) or 1)
    axes.set_ylabel("training loss", color=RERANK)


def _draw_validation(axes, val: np.ndarray, chance: float | None) -> None:
    if len(val):
        axes.plot(
            *val.T,
            color=RUN,
            linewidth=1.8,
            marker="o" if len(val) <= 40 else None,
            markersize=4,
            label="validation mR",
        )
        step, best = val[val[:, 1].argmax()]
        axes.plot(step, best, marker="*", markersize=13, color=RUN, linestyle="", label=f"best mR {best:.2f}")
    if chance is not None:
        axes.axhline(chance, color=GREY, linestyle="--", linewidth=1.2, label=f"chance mR {chance:.2f}")
    axes.set_ylim(0, 1.12 * max([chance or 0, *val[:, 1:].ravel()]) or 1)
    axes.set_ylabel("validation mR (%)", color=RUN)


def _moving_mean(values: np.ndarray, reach: int) -> np.ndarray:
    """Mean over the values up to `reach` places before and after each; fewer at the ends."""
    total = np.concatenate([[0], np.cumsum(values)])
    at = np.arange(len(values))
    first, last = np.maximum(at - reach, 0), np.minimum(at + reach + 1, len(values))
    return (total[last] - total[first]) / (last - first)


class Series(NamedTuple):
    """Bars of one colour: scores of a run, with or without rerank; or a published row, which has no folds."""

    name: str
    color: str
    mean: Scores
    std: Scores | None = None
    folds: Sequence[Scores] = ()


def recall_bars(results: Results) -> Figure:
    """The recalls of a run: mean, deviation and every fold; plain, with rerank and query bank; beside published ones.

    Left the six recalls, with GaLR's where they are published; right mR, with all published. Where ties matter, mR with
    ties broken at random has bars of its own.
    """
    figure = new_figure(13, 5.2)
    left, right = figure.subplots(1, 2, width_ratios=[1.9, 1])
    figure.subplots_adjust(left=0.05, right=0.985, top=0.84, bottom=0.1, wspace=0.4)
    series = _series("this run", RUN, results)
    if results.rerank:
        series += _series("this run + rerank", RERANK, results.rerank)
    if results.bank:
        series += _series("this run + bank", BANK, results.bank)
    others = [Series(row.name, "#c4c4c4", row.scores) for row in published(results.dataset)]
    galrs = [row for row in others if row.name.startswith("GaLR") and row.mean.i2t.r1 is not None]
    gallery = gallery_of(results.folds, results.lists)
    at_random = chance_of(gallery.images, gallery.captions) if gallery.images and gallery.captions else None
    against = [row for row in series if not row.name.endswith(AT_RANDOM)]
    shaded = [row._replace(color=shade) for row, shade in zip(galrs, ("#b5b5b5", "#dcdcdc"), strict=False)]
    _six_bars(left, [*against, *shaded], at_random)
    _mr_bars(right, [*series, *others], at_random)
    folds = f"{len(results.folds)} fold{'s' * (len(results.folds) != 1)}"
    sizes = f"{gallery.split} split, {gallery.images} images, {gallery.captions} captions, {folds}"
    figure.suptitle(f"{results.experiment} on {results.dataset}: {sizes}", fontsize=12, y=0.97, **PLAIN)
    return figure


def _series(name: str, color: str, part: Summary) -> list[Series]:
    folds, spread = part.folds, len(part.folds) > 1
    series = [Series(name, color, part.mean.against, part.std.against if spread else None, [f.against for f in folds])]
    if part.mean.ties_matter:
        std = part.std.random if spread else None
        series.append(Series(f"{name}{AT_RANDOM}", color, part.mean.random, std, [fold.random for fold in folds]))
    return series


def _six(scores: Scores) -> list[float]:
    return [*scores.i2t[:3], *scores.t2i[:3]]


def _six_bars(axes, series: list[Series], at_random: Scores | None) -> None:
    width = 0.84 / len(series)
    place = np.arange(6) - 0.42 + width / 2
    for row in series:
        _bars_of_folds(axes, place, row, width)
        place = place + width
    if at_random:
        for at, level in enumerate(_six(at_random)):
            label = "chance" if at == 0 else None
            axes.plot([at - 0.45, at + 0.45], [level, level], color=INK, linestyle="--", linewidth=1.2, label=label)
    axes.set_xticks(range(6), [f"{direction}\n{MEASURES[at]}" for direction, at in SIX])
    axes.set_ylabel("recall (%)")
    axes.set(xlim=(-0.6, 5.6), ylim=(0, 1.08 * axes.get_ylim()[1]))
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=5, frameon=False, fontsize=8.5)
    _quiet(axes, "y")


def _bars_of_folds(axes, place: np.ndarray, row: Series, width: float) -> None:
    """Bars of the mean with its deviation, a dot for each fold, and the mean's number above them."""
    mean, spread = np.array(_six(row.mean)), None if row.std is None else np.array(_six(row.std))
    axes.bar(
        place,
        mean,
        width * 0.94,
        color=row.color,
        label=row.name,
        yerr=spread,
        error_kw={"elinewidth": 1, "ecolor": INK},
    )
    tops = mean if spread is None else mean + spread
    if len(row.folds) > 1:
        folds = np.array([_six(fold) for fold in row.folds])
        axes.plot(place, folds.T, ".", color=INK, markersize=3, alpha=0.6)
        tops = np.maximum(tops, folds.max(axis=0))
    for x, y, value in zip(place, tops, mean, strict=True):
        axes.annotate(f"{value:.3g}", (x, y), (0, 3), textcoords="offset points", ha="center", fontsize=7, color=INK)


def _mr_bars(axes, series: list[Series], at_random: Scores | None) -> None:
    axes.barh(range(len(series)), [row.mean.mr for row in series], 0.7, color=[row.color for row in series])
    for y, row in enumerate(series):
        end = row.mean.mr
        if len(row.folds) > 1:
            folds = [fold.mr for fold in row.folds]
            axes.errorbar(row.mean.mr, y, xerr=row.std.mr, color=INK, elinewidth=1)
            axes.plot(folds, [y] * len(folds), ".", color=INK, markersize=4, alpha=0.6)
            end = max(*folds, end + row.std.mr)
        text = f"{row.mean.mr:.2f}"
        axes.annotate(text, (end, y), (4, 0), textcoords="offset points", va="center", fontsize=8, color=INK)
    if at_random:
        axes.axvline(at_random.mr, color=INK, linestyle="--", linewidth=1.2)
        axes.set_title(f"mR (%); chance is {at_random.mr:.2f}", fontsize=10)
    few = len(series) < 10
    names = [textwrap.fill(row.name, 24 if few else 36, break_on_hyphens=False) for row in series]
    axes.set_yticks(range(len(series)), names, fontsize=9 if few else 7.5)
    axes.set_xlim(right=1.15 * max(axes.get_xlim()[1], 1e-9))
    axes.set_ylim(max(len(names), 5) - 0.4, -0.6)
    _quiet(axes, "x")


def _quiet(axes, grid: str) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis=grid, color=PALE, linewidth=0.5)
    axes.set_axisbelow(True)


# The command


def draw_run(
    run: str | os.PathLike, out: str | os.PathLike | None = None, matrices: str | os.PathLike = "postprocessing/file"
) -> tuple[list[Path], list[Path]]:
    """Draw what a run's files allow: its curves, recall bars and retrieval sheets (test and validation).

    `run` is checkpoint/EXPERIMENT, `matrices` the folder of its similarity matrices; the pictures go to `out`, or to
    figures/ in the run. Returns the pictures written and the files that were missing for others. Raises InputError
    where there is nothing to draw, or a file is damaged.
    """
    run = Path(run)
    out = run / "figures" if out is None else Path(out)
    check_writable(out, "the folder of the pictures")
    if not run.is_dir():
        raise InputError(f"the run's folder {run} is not there; train.py makes checkpoint/EXPERIMENT")
    figures, missing = {}, []
    for name, drawing in _drawings(run, Path(matrices)).items():
        absent = [file for file in drawing.files if not file.is_file()]
        missing += absent
        if not absent:
            figures[name] = drawing.draw()
    if not figures:
        raise InputError(f"nothing to draw in {run}: {', '.join(map(str, missing))} missing")
    written = [out / f"{name}.png" for name in figures]
    for path, figure in zip(written, figures.values(), strict=True):
        save_figure(figure, path)
    return written, missing


class Drawing(NamedTuple):
    """A picture of a run: the files that it is made from, and how."""

    files: list[Path]
    draw: Callable[[], Figure]


def _drawings(run: Path, matrices: Path) -> dict[str, Drawing]:
    """The pictures of a run by their names."""
    file = run / "results.json"
    results = load_file(file, Results) if file.is_file() else None
    name = results.experiment if results else run.name
    setting = results.rerank.setting if results and results.rerank else None
    drawings = {"recall": Drawing([file], partial(recall_bars, results))}
    for fold in sorted((path.name for path in run.iterdir() if path.is_dir() and path.name.isdigit()), key=int):
        title, history = f"{name}, fold {fold}", run / fold / "history.json"
        drawings[f"curve_{fold}"] = Drawing([history], partial(_curve_of_file, history, title))
        for split, suffix in (("test", ""), ("validation", "_val")):
            sims = matrices / f"{name}_{fold}{suffix}.npy"
            draw = partial(_sheet_of_file, sims, setting, f"{title}, {split} split")
            drawings[f"sheet_{fold}{suffix}"] = Drawing([sims, gallery_file(sims)], draw)
    return drawings


def _curve_of_file(file: Path, title: str) -> Figure:
    history = load_file(file, History)
    try:
        return training_curve(history, f"{title}: training")
    except InputError as error:
        raise InputError(f"{file}: {error}") from None


def _sheet_of_file(file: Path, setting: Setting | None, title: str) -> Figure:
    (sims, owner), gallery = load(file), load_gallery(gallery_file(file))
    try:
        return retrieval_sheet(sims, *gallery, owner, setting, f"{title}: {len(sims)} images, {len(owner)} captions")
    except InputError as error:
        raise InputError(f"{gallery_file(file)}: {error}") from None


def main() -> None:
    """Draw the training curves, recall bars and retrieval sheets of a run from the files that it left."""
    parser = Parser(prog="python -m postprocessing.figures", description=main.__doc__)
    parser.add_argument("--run", required=True, metavar="DIR", help="the run's folder, checkpoint/EXPERIMENT")
    parser.add_argument("--out", metavar="DIR", help="where the pictures go (figures/ in the run's folder)")
    parser.add_argument(
        "--matrices",
        default="postprocessing/file",
        metavar="DIR",
        help="where test.py left the similarity matrices (%(default)s)",
    )
    args = parser.parse_args()
    written, missing = draw_run(args.run, args.out, args.matrices)
    for path in written:
        logger.info(path)
    for path in missing:
        logger.info(f"not there, so its picture is left out: {path}")


if __name__ == "__main__":
    run_command(main)
