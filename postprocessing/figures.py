"""Pictures of a run: training curve, recall beside the published numbers, retrieval sheets, the grid of a search.

    python -m postprocessing.figures --run checkpoint/EXPERIMENT

Everything is drawn from the files that training and test.py left. Each figure function returns a matplotlib Figure
that belongs to no window; matplotlib is imported only where one is made.
"""

from __future__ import annotations

import os
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from postprocessing.recall import load
from postprocessing.sheet import retrieval_sheet
from postprocessing.style import GREY, INK, PALE, PLAIN, RERANK, RUN, new_figure, save_figure
from postprocessing.tables import MEASURES, SIX, chance_of, gallery_of, published
from util.errors import InputError
from util.files import check_writable, read_json
from utils import Parser, run_command

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def training_curve(history: dict, title: str = "") -> Figure:
    """Loss of the batches, smoothed where there are many, and validation mR with its chance on a second axis.

    `history` is a fold's history.json: "train" rows with epoch, step and loss, "val" rows with epoch, step and mr, and
    with the mR of chance where it is known, which is the dashed line.
    """
    train, val, epochs, chance = _curves(history)
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


def _curves(history: dict) -> tuple[np.ndarray, np.ndarray, int, float | None]:
    """Steps and losses (n, 2), steps and validation mR (m, 2), the number of epochs, and the mR of chance."""
    try:
        train = np.array([(row["step"], row["loss"]) for row in history["train"] if row["loss"] is not None], float)
        val = np.array([(row["step"], row["mr"]) for row in history["val"] if row["mr"] is not None], float)
        epochs = 1 + max((row["epoch"] for row in history["train"] + history["val"]), default=-1)
        chance = next((row["chance"] for row in history["val"] if row.get("chance") is not None), None)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"the history is not of the form of history.json ({type(error).__name__}: {error})") from None
    if not len(train) and not len(val):
        raise InputError("the history has no rows yet; it is written at the first validation")
    return train.reshape(-1, 2), val.reshape(-1, 2), epochs, chance


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
        axes.plot(*val.T, color=RUN, linewidth=1.8, marker="o" if len(val) <= 40 else None, markersize=4,
                  label="validation mR")  # fmt: skip
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


def recall_bars(results: dict) -> Figure:
    """The recalls of a results.json: mean, deviation and every fold, before and after rerank, beside published ones.

    Left the six recalls, with those published where all six are known; right mR, with all published.
    """
    figure = new_figure(13, 5.2)
    left, right = figure.subplots(1, 2, width_ratios=[1.9, 1])
    figure.subplots_adjust(left=0.05, right=0.985, top=0.84, bottom=0.1, wspace=0.4)
    try:
        gallery, others = gallery_of(results["folds"]), published(results["dataset"])
        series = [("this run", RUN, results)]
        if results.get("rerank"):
            series.append(("this run + rerank", RERANK, results["rerank"]))
        at_random = chance_of(gallery["images"], gallery["captions"]) if gallery["images"] else None
        _six_bars(left, series, [row for row in others if row["i2t"]], at_random)
        _mr_bars(right, series, others, at_random)
        folds = f"{len(results['folds'])} fold{'s' * (len(results['folds']) != 1)}"
        sizes = f"{gallery['split']} split, {gallery['images']} images, {gallery['captions']} captions, {folds}"
        figure.suptitle(f"{results['experiment']} on {results['dataset']}: {sizes}", fontsize=12, y=0.97, **PLAIN)
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"the results are not of the form of results.json ({type(error).__name__}: {error})") from None
    return figure


def _six_bars(axes, series: list, others: list[dict], at_random: tuple | None) -> None:
    width = 0.84 / (len(series) + len(others))
    place = np.arange(6) - 0.42 + width / 2
    for name, color, part in series:
        _bars_of_folds(
            axes, place, [_six(part["mean"]), _six(part["std"])], map(_six, part["folds"]), width, color, name
        )
        place = place + width
    for row, shade in zip(others, ("#b5b5b5", "#dcdcdc"), strict=False):
        _bars_of_folds(axes, place, [_six(row)], [], width, shade, row["name"])
        place = place + width
    if at_random:
        for at, level in enumerate(_six({"i2t": at_random[0], "t2i": at_random[1]})):
            label = "chance" if at == 0 else None
            axes.plot([at - 0.45, at + 0.45], [level, level], color=INK, linestyle="--", linewidth=1.2, label=label)
    axes.set_xticks(range(6), [f"{direction}\n{MEASURES[at]}" for direction, at in SIX])
    axes.set_ylabel("recall (%)")
    axes.set(xlim=(-0.6, 5.6), ylim=(0, 1.08 * axes.get_ylim()[1]))
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=5, frameon=False, fontsize=8.5)
    _quiet(axes, "y")


def _bars_of_folds(axes, place, mean_and_std: list, folds, width: float, color: str, name: str) -> None:
    """Bars of the mean with its deviation, a dot for each fold, and the mean's number above them."""
    mean, std = [*mean_and_std, [None] * 6][:2]
    spread = None if std[0] is None else std
    axes.bar(place, mean, width * 0.94, color=color, label=name, yerr=spread, error_kw={"elinewidth": 1, "ecolor": INK})
    tops = np.array(mean, float) + (0 if spread is None else np.array(spread))
    folds = np.array(list(folds), float).reshape(-1, 6)
    if len(folds) > 1:
        axes.plot(place, folds.T, ".", color=INK, markersize=3, alpha=0.6)
        tops = np.maximum(tops, folds.max(axis=0))
    for x, y, value in zip(place, tops, mean, strict=True):
        axes.annotate(f"{value:.3g}", (x, y), (0, 3), textcoords="offset points", ha="center", fontsize=7, color=INK)


def _six(score: dict) -> list:
    return [score[direction][at] for direction, at in SIX]


def _mr_bars(axes, series: list, others: list[dict], at_random: tuple | None) -> None:
    names = [name for name, _, _ in series] + [row["name"] for row in others]
    values = [part["mean"]["mr"] for _, _, part in series] + [row["mr"] for row in others]
    colors = [color for _, color, _ in series] + ["#c4c4c4"] * len(others)
    ends = list(values)
    axes.barh(range(len(names)), values, 0.7, color=colors)
    for y, (_, _, part) in enumerate(series):
        folds = [fold["mr"] for fold in part["folds"]]
        if len(folds) > 1:
            axes.errorbar(values[y], y, xerr=part["std"]["mr"], color=INK, elinewidth=1)
            axes.plot(folds, [y] * len(folds), ".", color=INK, markersize=4, alpha=0.6)
            ends[y] = max(*folds, values[y] + part["std"]["mr"])
    for y, (end, value) in enumerate(zip(ends, values, strict=True)):
        axes.annotate(f"{value:.2f}", (end, y), (4, 0), textcoords="offset points", va="center", fontsize=9, color=INK)
    if at_random:
        axes.axvline(at_random[2], color=INK, linestyle="--", linewidth=1.2)
        axes.set_title(f"mR (%); chance is {at_random[2]:.2f}", fontsize=10)
    axes.set_yticks(
        range(len(names)),
        [textwrap.fill(name.replace(" (published)", ""), 22, break_on_hyphens=False) for name in names],
        fontsize=9,
    )
    axes.set_xlim(right=1.15 * max(ends))
    axes.set_ylim(max(len(names), 5) - 0.4, -0.6)
    _quiet(axes, "x")


def _quiet(axes, grid: str) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis=grid, color=PALE, linewidth=0.5)
    axes.set_axisbelow(True)


def grid_figure(mr: np.ndarray, grid: dict[str, Sequence], title: str = "") -> Figure:
    """Heat map of a search: mR (k, w_similarity, w_reverse), one panel per k, the best setting framed."""
    ks, similarities, reverses = grid.values()
    figure = new_figure(1.6 + 2.6 * len(ks), 3.9)
    panels = figure.subplots(1, len(ks), sharey=True, squeeze=False)[0]
    edge = figure.get_figwidth()
    figure.subplots_adjust(left=0.75 / edge, right=1 - 0.9 / edge, top=0.80, bottom=0.14, wspace=0.06)
    lowest, highest = mr.min(), mr.max()
    for panel, k, values in zip(panels, ks, mr, strict=True):
        image = panel.imshow(values, vmin=lowest, vmax=highest, cmap="viridis", aspect="auto", origin="lower")
        for (y, x), value in np.ndenumerate(values):
            dark = value < (lowest + highest) / 2
            panel.text(x, y, f"{value:.1f}", ha="center", va="center", fontsize=7, color="white" if dark else INK)
        panel.set_title(f"k = {k}", fontsize=10)
        panel.set_xticks(range(len(reverses)), [f"{w:g}" for w in reverses], fontsize=8)
        panel.set_yticks(range(len(similarities)), [f"{w:g}" for w in similarities], fontsize=8)
        panel.set_xlabel("w_reverse")
    panels[0].set_ylabel("w_similarity")
    best_k, best_y, best_x = np.unravel_index(mr.argmax(), mr.shape)
    panels[best_k].plot(
        best_x, best_y, "s", markersize=21, markerfacecolor="none", markeredgecolor="red", markeredgewidth=2
    )
    figure.colorbar(image, cax=figure.add_axes((1 - 0.8 / edge, 0.14, 0.15 / edge, 0.66)), label="mR (%)")
    setting = f"k {ks[best_k]}, w_similarity {similarities[best_y]:g}, w_reverse {reverses[best_x]:g}"
    figure.suptitle(f"{title}; best {mr.max():.2f} at {setting}".lstrip("; "), fontsize=11, y=0.97, **PLAIN)
    return figure


# The command


def draw_run(
    run: str | os.PathLike, out: str | os.PathLike | None = None, matrices: str | os.PathLike = "postprocessing/file"
) -> tuple[list[Path], list[Path]]:
    """Draw what a run's files allow: its curves, recall bars and retrieval sheets (test and validation).

    `run` is checkpoint/EXPERIMENT, `matrices` the folder of its similarity matrices; the pictures go to `out`, or to
    figures/ in the run. Returns the pictures written and the files that were missing for others. Raises InputError
    where there is nothing to draw, or a file is damaged.
    """
    run, matrices = Path(run), Path(matrices)
    out = run / "figures" if out is None else Path(out)
    check_writable(out, "the folder of the pictures")
    if not run.is_dir():
        raise InputError(f"the run's folder {run} is not there; train.py makes checkpoint/EXPERIMENT")
    figures, missing = {}, []
    for picture, (draw, files, *arguments) in _drawings(run, matrices).items():
        absent = [file for file in files if not file.is_file()]
        missing += absent
        if not absent:
            figures[picture] = draw(*files, *arguments)
    if not figures:
        raise InputError(f"nothing to draw in {run}: {', '.join(map(str, missing))} missing")
    written = [out / f"{picture}.png" for picture in figures]
    for path, figure in zip(written, figures.values(), strict=True):
        save_figure(figure, path)
    return written, missing


def _drawings(run: Path, matrices: Path) -> dict[str, tuple]:
    """The pictures of a run: what draws each, the files that it takes, and what it takes besides."""
    results_file = run / "results.json"
    results = _read(results_file, "results") if results_file.is_file() else {}
    name, rerank = results.get("experiment", run.name), results.get("rerank")
    setting = rerank.get("setting") if isinstance(rerank, dict) else None
    drawings: dict[str, tuple] = {"recall": (_naming, [results_file], recall_bars, results)}
    for fold in sorted((path.name for path in run.iterdir() if path.is_dir() and path.name.isdigit()), key=int):
        title = f"{name}, fold {fold}"
        drawings[f"curve_{fold}"] = (_curve_of_file, [run / fold / "history.json"], title)
        for split, suffix in (("test", ""), ("validation", "_val")):
            sims = matrices / f"{name}_{fold}{suffix}"
            files = [sims.with_name(f"{sims.name}.npy"), sims.with_name(f"{sims.name}_gallery.json")]
            drawings[f"sheet_{fold}{suffix}"] = (_sheet_of_files, files, setting, f"{title}, {split} split")
    return drawings


def _curve_of_file(history: Path, title: str) -> Figure:
    return _naming(history, training_curve, _read(history, "history"), f"{title}: training")


def _sheet_of_files(sims_file: Path, gallery_file: Path, rerank: dict | None, title: str) -> Figure:
    (sims, owner), gallery = load(sims_file), _read(gallery_file, "gallery")
    title = f"{title}: {len(sims)} images, {len(owner)} captions"
    return _naming(gallery_file, _sheet, sims, gallery, owner, rerank, title)


def _read(path: Path, what: str) -> dict:
    content = read_json(path, what)
    if not isinstance(content, dict):
        raise InputError(f"{what} {path}: an object is expected, not {type(content).__name__}")
    return content


def _naming(path: Path, draw, *arguments) -> Figure:
    """The figure; errors of what it draws name the file that it came from."""
    try:
        return draw(*arguments)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def _sheet(sims: np.ndarray, gallery: dict, owner: np.ndarray, rerank: dict | None, title: str) -> Figure:
    lists = [gallery.get(key) for key in ("images", "captions")]
    if not all(isinstance(names, list) and all(isinstance(name, str) for name in names) for names in lists):
        raise InputError('two lists of texts, "images" and "captions", are expected')
    return retrieval_sheet(sims, *lists, owner, rerank, title)


def main() -> None:
    """Draw the training curves, recall bars and retrieval sheets of a run from the files that it left."""
    parser = Parser(prog="python -m postprocessing.figures", description=main.__doc__)
    parser.add_argument("--run", required=True, metavar="DIR", help="the run's folder, checkpoint/EXPERIMENT")
    parser.add_argument("--out", metavar="DIR", help="where the pictures go (figures/ in the run's folder)")
    parser.add_argument("--matrices", default="postprocessing/file", metavar="DIR",
                        help="where test.py left the similarity matrices (%(default)s)")  # fmt: skip
    args = parser.parse_args()
    written, missing = draw_run(args.run, args.out, args.matrices)
    for path in written:
        print(path)
    for path in missing:
        print(f"not there, so its picture is left out: {path}")


if __name__ == "__main__":
    run_command(main)
