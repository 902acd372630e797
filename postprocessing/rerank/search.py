"""The setting of the rerank that is best on validation: a grid of k and both weights."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from postprocessing.rerank.method import Reranker, Setting
from postprocessing.style import INK, PLAIN, new_figure
from utils import Bar

if TYPE_CHECKING:
    from matplotlib.figure import Figure

GRID = {
    "k": (10, 20, 30, 50, 100),
    "w_similarity": (0.0, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0),
    "w_reverse": (0.0, 0.2, 0.5, 0.8, 1.1, 1.5, 2.0),
}


class Found(NamedTuple):
    """The best setting; the mR of every setting (k, w_similarity, w_reverse); the values along these axes."""

    setting: Setting
    mr: np.ndarray
    grid: dict[str, tuple]


def search(rerankers: Sequence[Reranker], start: Setting) -> Found:
    """Try the grid on validation matrices (one per fold), with the rest of the setting as in `start`.

    The setting with the highest mean mR is chosen, and of equal ones the first. With both weights 0 the order stays as
    it was, so "no rerank" is in the grid.
    """
    gallery = max(found.index.shape[1] for reranker in rerankers for found in reranker.found)
    grid = GRID | {"k": tuple(sorted({replace(start, k=k).candidates(gallery) for k in GRID["k"]}))}
    settings = [replace(start, **dict(zip(grid, point, strict=True))) for point in itertools.product(*grid.values())]
    mr = [
        np.mean([reranker.standings(setting).scores().mr for reranker in rerankers])
        for setting in Bar(settings, desc="search", unit="setting")
    ]
    return Found(settings[int(np.argmax(mr))], np.array(mr).reshape([len(axis) for axis in grid.values()]), grid)


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
