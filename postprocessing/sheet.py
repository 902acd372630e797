"""The retrieval sheet: some queries of a gallery with their five best answers, to look at.

Everything on it is placed in inches on one pair of axes, from the top left corner.
"""

from __future__ import annotations

import os
import textwrap
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from postprocessing.recall import check_images, check_matrix
from postprocessing.rerank import Setting, multivariate_order
from postprocessing.style import GREY, INK, PALE, PLAIN, RIGHT, new_figure
from utils import ROOT, InputError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SIDE, QUERY, GAP, ROW = 1.12, 2.75, 0.35, 1.32


def retrieval_sheet(
    sims: np.ndarray,
    image_paths: Sequence[str | os.PathLike],
    captions: Sequence[str],
    image_of_caption: np.ndarray,
    rerank: Setting | None = None,
    title: str = "",
    queries: int = 4,
) -> Figure:
    """Some captions with their five best images, and some images with their five best captions.

    `sims` (images, captions); the paths are absolute or start at the repository root; `rerank` is a setting of the
    multivariate rerank, with which the sheet also shows the answers after it. Right answers are green (framed, or
    ticked), wrong ones grey. The queries are spread evenly over the gallery, not picked. An image that cannot be read
    is a grey panel with its name. Raises InputError where the sizes do not fit.
    """
    sims = check_matrix(sims)
    owner = check_images(image_of_caption, sims.shape)
    if sims.shape != (len(image_paths), len(captions)):
        raise InputError(
            f"{len(image_paths)} image paths and {len(captions)} captions do not fit a matrix {sims.shape}"
        )
    columns, by_image, by_caption = 1, [None] * len(sims), [None] * len(captions)
    if rerank is not None:
        columns, by_image, by_caption = 2, multivariate_order(sims, rerank), multivariate_order(sims.T, rerank)
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
    figure = new_figure(width, height)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.axis("off")
    axes.set(xlim=(0, width), ylim=(height, 0))
    axes.text(0.2, 0.25, title, fontsize=12, weight="bold", color=INK, va="center", **PLAIN)
    return figure, axes


def _answer(axes, x: float, y: float, caption: str, right: bool) -> None:
    line = ("\u2713 " if right else "\u2013 ") + _short(caption, 72)
    axes.text(
        x,
        y,
        line,
        fontsize=8.5,
        color=RIGHT if right else GREY,
        va="center",
        weight="bold" if right else "normal",
        clip_on=True,
        **PLAIN,
    )


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
    """The image as a square of 160 x 160 RGB, padded with white; of a damaged file, what is there."""
    from PIL import Image, ImageOps

    from util.images import what_is_there

    with warnings.catch_warnings(), what_is_there():
        warnings.simplefilter("ignore")  # Pillow's notes about odd files
        with Image.open(ROOT / path) as image:
            image.draft("RGB", (320, 320))
            upright = ImageOps.exif_transpose(image)
            return np.asarray(ImageOps.pad(upright.convert("RGB"), (160, 160), color="white"))
