"""Figures: training curve, recall beside the published numbers, retrieval grid; and all of them for a run.

    python -m postprocessing.figures --run checkpoint/EXPERIMENT

Each function returns a matplotlib Figure that belongs to no window; matplotlib is imported only when one is made.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING

import numpy as np

from postprocessing.matrices import GALLERY, beside, load, load_gallery
from postprocessing.recall import CUTS, DIRECTIONS, SIX
from postprocessing.rerank import multivariate_order
from postprocessing.results import History, Results, Setting
from postprocessing.results import load as load_file
from postprocessing.tables import AT_RANDOM, gallery_of, published
from utils import InputError, Parser, atomic, run_command

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

logger = logging.getLogger("galr")

INK, GREY, PALE = "#262626", "#8c8c8c", "#d0d0d0"
RIGHT = "#118833"
COLORS = {"": "#2b6cb0", "+ rerank": "#dd7711", "+ query bank": "#2f8f6b", "+ dynamic bank": "#2f8f6b"}
TIED = {"": "#9dbfe0", "+ rerank": "#f0bd8a", "+ query bank": "#a3d0bd", "+ dynamic bank": "#a3d0bd"}  # ties at random
RUN, RERANK = COLORS[""], COLORS["+ rerank"]
SEVEN = (*SIX, "mr")
PLAIN = {"parse_math": False}  # a dollar sign in a caption or a name is a dollar sign
Orders = dict[str, np.ndarray]  # for "i2t" and "t2i": the first answers of each query (queries, k), best first


def new_figure(width: float, height: float, title: str = "") -> Figure:
    """Return an empty figure of this size in inches that belongs to no window."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=120, facecolor="white")
    figure.suptitle(title, fontsize=12, color=INK, y=1 - 0.15 / height, va="top", **PLAIN)
    return figure


def save_figure(figure: Figure, path: str | os.PathLike) -> None:
    """Write the figure as a PNG, whole or not at all."""
    with atomic(path) as temporary, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # a caption in another script: boxes will do
        figure.savefig(temporary, format="png")


def quiet(axes: Axes) -> None:
    """Leave the axes without a frame, over a pale grid."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color=PALE, linewidth=0.5)
    axes.set_axisbelow(True)


# ---------------------------------------------------------------- training and recall


def training_curve(history: History, title: str = "") -> Figure:
    """Draw the loss of the batches, smoothed where there are many, and validation mR on a second axis, with chance."""
    train = np.array([(row.step, row.loss) for row in history.train if row.loss is not None]).reshape(-1, 2)
    val = np.array([(row.step, row.mr) for row in history.val if row.mr is not None]).reshape(-1, 2)
    epochs = 1 + max(row.epoch for row in history.train + history.val)
    figure = new_figure(9, 4.8, title)
    left = figure.subplots()
    right = left.twinx()
    figure.subplots_adjust(left=0.09, right=0.91, top=0.80, bottom=0.13)
    if len(train):
        window = np.ones(2 * (len(train) // 40) + 1)
        smooth = np.convolve(train[:, 1], window, "same") / np.convolve(np.ones(len(train)), window, "same")
        left.plot(*train.T, color=RERANK, linewidth=0.7, alpha=0.3, marker="." if len(train) < 80 else None)
        left.plot(train[:, 0], smooth, color=RERANK, linewidth=1.8, label="loss (moving mean)")
        left.set_ylim(0, 1.05 * max(smooth.max(), np.percentile(train[:, 1], 99)) or 1)
    if len(val):
        marker = "o" if len(val) <= 40 else None
        right.plot(*val.T, color=RUN, linewidth=1.8, marker=marker, markersize=4, label="validation mR")
        step, best = val[val[:, 1].argmax()]
        right.plot(step, best, marker="*", markersize=13, color=RUN, linestyle="", label=f"best mR {best:.2f}")
    chance = next((row.chance for row in history.val if row.chance is not None), None)
    if chance is not None:
        right.axhline(chance, color=GREY, linestyle="--", linewidth=1.2, label=f"chance mR {chance:.2f}")
    right.set_ylim(0, 1.12 * max([chance or 0, *val[:, 1:].ravel()]) or 1)
    left.set_ylabel("training loss", color=RERANK)
    right.set_ylabel("validation mR (%)", color=RUN)
    left.set_xlabel(f"batch ({epochs:g} epoch{'s' * (epochs != 1)})", color=INK)
    left.set_xlim(left=0)
    quiet(left)
    right.spines["top"].set_visible(False)
    figure.legend(loc="upper center", bbox_to_anchor=(0.5, 0.91), ncols=4, frameon=False, fontsize=9)
    return figure


def recall_bars(results: Results) -> Figure:
    """Draw the recalls and mR of a run (mean, deviation, folds), those of GaLR as published, and chance."""
    gallery = gallery_of(results.folds, results.lists)
    folds = f"{len(results.folds)} fold{'s' * (len(results.folds) != 1)}"
    sizes = f"{gallery.split} split, {gallery.images} images, {gallery.captions} captions, {folds}"
    figure = new_figure(13, 5.2, f"{results.experiment} on {results.dataset}: {sizes}")
    axes = figure.subplots()
    figure.subplots_adjust(left=0.05, right=0.985, top=0.84, bottom=0.1)
    rows = []  # name, colour, numbers (folds, 7)
    for name, part in results.parts().items():
        for ties in part.mean.ties:
            numbers = np.array([[fold.flat(ties)[key] for key in SEVEN] for fold in part.folds])
            note, color = (AT_RANDOM, TIED[name]) if ties == "random" else ("", COLORS[name])
            rows.append((f"this run {name}".strip() + note, color, numbers))
    for row in published(results.dataset):
        if row.name.startswith("GaLR") and None not in row.flat.values():
            numbers = np.array([[row.flat[key] for key in SEVEN]])
            rows.append((f"{row.name}, published", "#dcdcdc" if "rerank" in row.name else "#b5b5b5", numbers))
    places, width = np.arange(7), 0.84 / len(rows)
    for at, (name, color, numbers) in enumerate(rows):
        x, deviation = places - 0.42 + width * (at + 0.5), numbers.std(axis=0, ddof=1) if len(numbers) > 1 else None
        bars = axes.bar(x, numbers.mean(axis=0), width * 0.94, yerr=deviation, color=color, label=name, ecolor=INK)
        axes.bar_label(bars, fmt="%.3g", padding=2, fontsize=7, color=INK)
        if len(numbers) > 1:
            axes.plot(x, numbers.T, ".", color=INK, markersize=3, alpha=0.6)
    if chance := gallery.chance:
        levels = [*chance.i2t[:3], *chance.t2i[:3], chance.mr]
        axes.hlines(levels, places - 0.45, places + 0.45, color=INK, linestyle="--", linewidth=1.2, label="chance")
    axes.set_xticks(places, [*(f"{way}\nR@{k}" for way in DIRECTIONS for k in CUTS), "mR"])
    axes.set_ylabel("recall (%)")
    axes.set(xlim=(-0.6, 6.6), ylim=(0, 1.08 * axes.get_ylim()[1]))
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=5, frameon=False, fontsize=8.5)
    quiet(axes)
    return figure


# ---------------------------------------------------------------- retrieval grid


def retrieval_grid(
    sims: np.ndarray,
    image_paths: Sequence[str | os.PathLike],
    captions: Sequence[str],
    image_of_caption: np.ndarray,
    title: str = "",
    reranked: Orders | None = None,
    queries: int = 4,
) -> Figure:
    """Draw some captions with their five best images, and some images with their five best captions.

    `sims` (images, captions); `reranked`: the orders after a rerank, to show them too. Right answers are green. The
    queries are spread evenly over the gallery, not picked. Raise InputError where the sizes do not fit.
    """
    owner, (images, texts) = image_of_caption, (len(image_paths), len(captions))
    if sims.shape != (images, texts):
        raise InputError(f"{images} image paths and {texts} captions do not fit a matrix {sims.shape}")
    asked = []
    for way, size in (("t2i", texts), ("i2t", images)):
        asked += [(way, at) for at in sorted({int((n + 0.5) * size / queries) for n in range(queries)})]
    sides, places = 1 if reranked is None else 2, np.arange(images)
    height = 0.7 + 1.45 * len(asked)
    figure = new_figure(3.2 + 6 * sides, height, title)
    edges = {"left": 0.01, "right": 0.99, "top": 1 - 0.7 / height, "bottom": 0.1 / height}
    grid = figure.add_gridspec(len(asked), 1 + 5 * sides, width_ratios=[2.5] + [1] * 5 * sides, hspace=0.3, **edges)
    for row, (direction, query) in enumerate(asked):
        to_images = direction == "t2i"
        similarity, right = (sims[:, query], places == owner[query]) if to_images else (sims[query], owner == query)
        orders = [np.argsort(-similarity, kind="stable")]
        if reranked is not None:
            best = reranked[direction][query]
            orders.append(np.concatenate([best, orders[0][~np.isin(orders[0], best)]]))
        note, answers = _rank_line(orders, right, similarity), "images" if to_images else "captions"
        first = row == 0 or asked[row - 1][0] != direction
        head = figure.add_subplot(grid[row, 0])
        if to_images:
            _write_query(head, captions[query], note)
        else:
            _show_query(head, image_paths[query], note)
        if first:
            head.set_title(f"{'caption' if to_images else 'image'} \u2192 {answers}", loc="left")
        for side, order in enumerate(orders):
            cells = grid[row, 1 + 5 * side : 6 + 5 * side].subgridspec(1, 5 if to_images else 1, wspace=0.08)
            panels = cells.subplots(squeeze=False)[0]
            if to_images:
                _show_answers(panels, [(image_paths[answer], right[answer]) for answer in order[:5]])
            else:
                _write_answers(panels[0], [(captions[answer], right[answer]) for answer in order[:5]])
            if first:
                panels[0].set_title(f"five best {answers}" + ", after rerank" * side, loc="left", fontsize=10)
    return figure


def _write_query(axes: Axes, caption: str, note: str) -> None:
    axes.axis("off")
    axes.text(0, 0.95, fill(_short(caption, 136), 34), fontsize=9.5, color=INK, va="top", **PLAIN)
    axes.text(0, 0.0, fill(note, 38), fontsize=8.5, color=GREY, style="italic")


def _show_query(axes: Axes, path: str | os.PathLike, note: str) -> None:
    _show(axes, path, INK)
    axes.set_anchor("W")
    axes.text(1.06, 0.5, fill(note, 19), fontsize=8.5, color=GREY, style="italic", transform=axes.transAxes)


def _write_answers(axes: Axes, answers: list[tuple[str, bool]]) -> None:
    """Write captions below each other, each with whether it is right."""
    axes.axis("off")
    for place, (caption, right) in enumerate(answers):
        mark, color = ("\u2713", RIGHT) if right else ("\u2013", GREY)
        text = f"{mark} {_short(caption, 72)}"
        axes.text(0, 0.9 - 0.2 * place, text, fontsize=8.5, color=color, va="center", **PLAIN)


def _show_answers(panels: Sequence[Axes], answers: list[tuple[str | os.PathLike, bool]]) -> None:
    """Show image files, one a panel, each with whether it is right; panels that are left over stay empty."""
    for panel in panels[len(answers) :]:
        panel.axis("off")
    for panel, (path, right) in zip(panels, answers, strict=False):
        _show(panel, path, RIGHT if right else PALE)


def _rank_line(orders: list[np.ndarray], right: np.ndarray, similarity: np.ndarray) -> str:
    """Return the rank of the best right answer. Before the rerank it is recall's, where ties count against it."""
    if not right.any():
        return "has no right answer"
    shown, *reranked = (1 + int(np.argmax(right[order])) for order in orders)
    rank = 1 + int(np.count_nonzero(similarity[~right] >= similarity[right].max()))
    tied = " (tied)" if rank > shown else ""
    return f"right at rank {rank}{tied}" + (f", reranked {reranked[0]}" if reranked else "")


def _short(text: str, most: int) -> str:
    text = " ".join("".join(c if c.isprintable() else " " for c in str(text)).split())
    return text if len(text) <= most else text[: most - 1].rstrip() + "\u2026"


def _show(axes: Axes, path: str | os.PathLike, color: str) -> None:
    """Show an image file as a square of 160 x 160, framed in a colour, or its name if it cannot be read."""
    from PIL import Image, ImageOps

    axes.set(xticks=[], yticks=[], box_aspect=1)
    axes.spines[:].set(edgecolor=color, linewidth=4 if color == RIGHT else 1)
    try:
        with warnings.catch_warnings(), Image.open(path) as image:
            warnings.simplefilter("ignore")  # Pillow's notes about odd files
            image.draft("RGB", (320, 320))
            upright = ImageOps.exif_transpose(image).convert("RGB")
            axes.imshow(ImageOps.pad(upright, (160, 160), color="white"), aspect="auto")
    except Exception as error:  # Pillow refuses files in many ways, none of which may end a run
        why = "missing" if isinstance(error, FileNotFoundError) else "unreadable"
        axes.set_facecolor("#f0f0f0")
        lines = f"{fill(_short(Path(path).name, 45), 15)}\n({why})"
        axes.text(0.5, 0.5, lines, fontsize=6.5, color=GREY, ha="center", va="center", **PLAIN)


# ---------------------------------------------------------------- a run


def draw_run(
    run: str | os.PathLike, out: str | os.PathLike | None = None, matrices: str | os.PathLike = "postprocessing/file"
) -> tuple[list[Path], list[Path]]:
    """Draw what a run's files allow: its curves, recall bars and retrieval grids (test and validation).

    The pictures go to `out`, or to figures/ in the run. Return them and the files that were missing for others. Raise
    InputError if there is nothing to draw, or a file is damaged.
    """
    run = Path(run)
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
            drawings[f"sheet_{fold}{suffix}"] = [sims, beside(sims, GALLERY)], draw
    missing = [file for files, _ in drawings.values() for file in files if not file.is_file()]
    figures = {name: draw() for name, (files, draw) in drawings.items() if not set(files) & set(missing)}
    if not figures:
        raise InputError(f"nothing to draw in {run}: {', '.join(map(str, missing))} missing")
    pictures = {Path(out or run / "figures") / f"{name}.png": figure for name, figure in figures.items()}
    for path, figure in pictures.items():  # after all are drawn: a damaged file leaves nothing half-done
        save_figure(figure, path)
    return list(pictures), missing


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
