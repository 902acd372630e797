"""Pictures of a run: training curve, recall beside the published numbers, retrieval sheets, the grid of a search.

    python -m postprocessing.figures --run checkpoint/EXPERIMENT

Everything is drawn from the files that training and test.py left. Each figure function returns a matplotlib Figure
that belongs to no window; matplotlib is imported only where one is made.
"""

from __future__ import annotations

import os
import textwrap
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from postprocessing.recall import check_images, check_matrix, load
from postprocessing.rerank import PUBLISHED, multivariate_order
from postprocessing.tables import MEASURES, SIX, chance_of, gallery_of, published
from utils import ROOT, InputError, Parser, atomic, check_writable, read_json, run_command

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK, GREY, PALE = "#262626", "#8c8c8c", "#d0d0d0"
RIGHT = "#118833"
RUN, RERANK = "#2b6cb0", "#dd7711"
PLAIN = {"parse_math": False}  # a dollar sign in a caption or a name is a dollar sign


def _new_figure(width: float, height: float) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=120, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Figure, path: str | os.PathLike) -> None:
    """Write the figure as a PNG, whole or not at all."""
    with atomic(path) as temporary, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # a caption in another script: boxes will do
        figure.savefig(temporary, format="png")


def training_curve(history: dict, title: str = "") -> Figure:
    """Loss of the batches, smoothed where there are many, and validation mR with its chance on a second axis.

    `history` is a fold's history.json: "train" rows with epoch, step and loss, "val" rows with epoch, step and mr, and
    with the mR of chance where it is known, which is the dashed line.
    """
    train, val, epochs, chance = _curves(history)
    figure = _new_figure(9, 4.8)
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
    figure = _new_figure(13, 5.2)
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
    figure = _new_figure(1.6 + 2.6 * len(ks), 3.9)
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


# The retrieval sheet. Everything on it is placed in inches on one pair of axes, from the top left corner.

SIDE, QUERY, GAP, ROW = 1.12, 2.75, 0.35, 1.32


def retrieval_sheet(
    sims: np.ndarray,
    image_paths: Sequence[str | os.PathLike],
    captions: Sequence[str],
    image_of_caption: np.ndarray,
    rerank: dict[str, Any] | None = None,
    title: str = "",
    queries: int = 4,
) -> Figure:
    """Some captions with their five best images, and some images with their five best captions.

    `sims` (images, captions); the paths are absolute or start at the repository root; `rerank` is a setting of the
    multivariate rerank (keys as in `PUBLISHED`), with which the sheet also shows the answers after it. Right answers
    are green (framed, or ticked), wrong ones grey. The queries are spread evenly over the gallery, not picked. An
    image that cannot be read is a grey panel with its name. Raises InputError where the sizes do not fit.
    """
    sims = check_matrix(sims)
    owner = check_images(image_of_caption, sims.shape)
    if sims.shape != (len(image_paths), len(captions)):
        raise InputError(
            f"{len(image_paths)} image paths and {len(captions)} captions do not fit a matrix {sims.shape}"
        )
    columns, by_image, by_caption = 1, [None] * len(sims), [None] * len(captions)
    if rerank is not None:
        setting = {name: rerank[name] for name in PUBLISHED if name in rerank}
        columns, by_image, by_caption = 2, multivariate_order(sims, **setting), multivariate_order(sims.T, **setting)
    captions_asked, images_asked = _spread(len(captions), queries), _spread(len(sims), queries)
    figure, axes = _empty_sheet(columns, len(captions_asked) + len(images_asked), title)

    y = _heading(axes, 0.65, "caption", "images", columns)
    for caption in captions_asked:
        orders = _orders(sims[:, caption], by_caption[caption])
        ranks = _rank_line(orders, owner[caption] == np.arange(len(sims)), sims[:, caption])
        _paragraph(axes, 0.2, y, captions[caption], ranks)
        for column, order in enumerate(orders):
            for place, image in enumerate(order[:5]):
                frame = RIGHT if image == owner[caption] else PALE
                _thumbnail(axes, _left(column) + place * SIDE, y, image_paths[image], frame)
        y += ROW

    y = _heading(axes, y + 0.2, "image", "captions", columns)
    for image in images_asked:
        orders = _orders(sims[image], by_image[image])
        _thumbnail(axes, 0.2, y, image_paths[image], INK)
        _paragraph(axes, 0.3 + SIDE, y, "", _rank_line(orders, owner == image, sims[image]))
        for column, order in enumerate(orders):
            for place, caption in enumerate(order[:5]):
                _answer(axes, _left(column), y + 0.14 + 0.205 * place, captions[caption], owner[caption] == image)
        y += ROW
    return figure


def _left(column: int) -> float:
    """Where the answers start: before the rerank (0) or after it (1)."""
    return 0.2 + QUERY + column * (5 * SIDE + GAP)


def _empty_sheet(columns: int, queries: int, title: str) -> tuple[Figure, Any]:
    width, height = _left(columns), 1.5 + ROW * queries
    figure = _new_figure(width, height)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.axis("off")
    axes.set(xlim=(0, width), ylim=(height, 0))
    axes.text(0.2, 0.25, title, fontsize=12, weight="bold", color=INK, va="center", **PLAIN)
    return figure, axes


def _answer(axes, x: float, y: float, caption: str, right: bool) -> None:
    line = ("\u2713 " if right else "\u2013 ") + _short(caption, 72)
    axes.text(x, y, line, fontsize=8.5, color=RIGHT if right else GREY, va="center",
              weight="bold" if right else "normal", clip_on=True, **PLAIN)  # fmt: skip


def _spread(size: int, number: int) -> list[int]:
    """Up to `number` places of a gallery of this size, spread evenly."""
    return sorted({int((at + 0.5) * size / number) for at in range(number)})


def _orders(similarity: np.ndarray, candidates: np.ndarray | None) -> list[np.ndarray]:
    """All answers of one query, best first: before the rerank and, if its candidates are given, after it."""
    before = np.argsort(-similarity, kind="stable")
    if candidates is None:
        return [before]
    return [before, np.concatenate([candidates, before[~np.isin(before, candidates)]])]


def _rank_line(orders: list[np.ndarray], right: np.ndarray, similarity: np.ndarray) -> str:
    """The rank of the best right answer. Before the rerank it is that of the recall, where ties count against it."""
    if not right.any():
        return "has no right answer"
    shown, *reranked = (1 + int(np.argmax(right[order])) for order in orders)
    rank = 1 + int(np.count_nonzero(similarity[~right] >= similarity[right].max()))
    tied = " (tied)" if rank > shown else ""
    return f"right at rank {rank}{tied}" + (f", reranked {reranked[0]}" if reranked else "")


def _heading(axes, y: float, query: str, answers: str, columns: int) -> float:
    """Draw the line above a block of queries; returns where the block starts."""
    axes.text(0.2, y, f"{query} \u2192 {answers}", fontsize=11, weight="bold", color=INK, va="center")
    for column, when in enumerate(["", ", after rerank"][:columns]):
        axes.text(_left(column), y, f"five best {answers}{when}", fontsize=10, color=INK, va="center")
    axes.plot([0.2, axes.get_xlim()[1] - 0.2], [y + 0.14] * 2, color=PALE, linewidth=1)
    return y + 0.26


def _paragraph(axes, x: float, y: float, text: str, note: str) -> None:
    lines = textwrap.wrap(_short(text, 136), 34)
    for place, line in enumerate(lines):
        axes.text(x, y + 0.14 + 0.19 * place, line, fontsize=9.5, color=INK, va="center", **PLAIN)
    for place, line in enumerate(textwrap.wrap(note, 34 if lines else 19)):
        axes.text(
            x, y + 0.16 + 0.19 * (len(lines) + place), line, fontsize=8.5, color=GREY, style="italic", va="center"
        )


def _short(text: str, most: int) -> str:
    text = " ".join("".join(c if c.isprintable() else " " for c in str(text)).split())
    return text if len(text) <= most else text[: most - 1].rstrip() + "\u2026"


def _thumbnail(axes, x: float, y: float, path: str | os.PathLike, color: str) -> None:
    from matplotlib.patches import Rectangle

    inner = SIDE - 0.12
    try:
        axes.imshow(_picture(path), extent=(x, x + inner, y + inner, y), aspect="auto")
    except Exception as error:  # Pillow refuses files in many ways, none of which may end a run
        lines = [
            *textwrap.wrap(_short(Path(path).name, 45), 15),
            f"({'missing' if isinstance(error, FileNotFoundError) else 'unreadable'})",
        ]
        axes.add_patch(Rectangle((x, y), inner, inner, facecolor="#f0f0f0", linewidth=0))
        axes.text(
            x + inner / 2, y + inner / 2, "\n".join(lines), fontsize=6.5, color=GREY, ha="center", va="center", **PLAIN
        )
    thick = 4 if color == RIGHT else 1
    axes.add_patch(Rectangle((x, y), inner, inner, fill=False, edgecolor=color, linewidth=thick))
    height, width = axes.get_ylim()[0], axes.get_xlim()[1]
    axes.set(xlim=(0, width), ylim=(height, 0))  # imshow would move them


def _picture(path: str | os.PathLike) -> np.ndarray:
    """The image as a square of 160 x 160 RGB, padded with white."""
    from PIL import Image, ImageOps

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's notes about odd files
        with Image.open(ROOT / path) as image:
            image.draft("RGB", (320, 320))
            return np.asarray(ImageOps.pad(image.convert("RGB"), (160, 160), color="white"))


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
    drawings: dict[str, tuple] = {"recall": (_recall_of_file, [results_file])}
    for fold in sorted((path.name for path in run.iterdir() if path.is_dir() and path.name.isdigit()), key=int):
        title = f"{name}, fold {fold}"
        drawings[f"curve_{fold}"] = (_curve_of_file, [run / fold / "history.json"], title)
        for split, suffix in (("test", ""), ("validation", "_val")):
            sims = matrices / f"{name}_{fold}{suffix}"
            files = [sims.with_name(f"{sims.name}.npy"), sims.with_name(f"{sims.name}_gallery.json")]
            drawings[f"sheet_{fold}{suffix}"] = (_sheet_of_files, files, setting, f"{title}, {split} split")
    return drawings


def _recall_of_file(results_file: Path) -> Figure:
    return _naming(results_file, recall_bars, _read(results_file, "results"))


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
