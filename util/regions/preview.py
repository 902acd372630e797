"""Draw DREA: an image with its regions, which of them merged, and the graph over it."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from layers.drea import CLASSES, Denoised, Regions
from utils import atomic

logger = logging.getLogger("galr")

ROWS = 4  # images on a sheet
LONGEST = 512  # pixels of an image's longer side on the sheet

Case = tuple[str, Image.Image, Regions, Denoised, np.ndarray]  # name, image, regions, nodes, adjacency


def write_sheets(prefix: Path, cases: list[Case]) -> None:
    """Write `{prefix}_preview_1.png` and so on, of four images each, a row an image."""
    for first in range(0, len(cases), ROWS):
        part = cases[first : first + ROWS]
        figure = Figure(figsize=(12, 4.25 * len(part)), layout="constrained")
        for axes, case in zip(figure.subplots(len(part), 3, squeeze=False), part, strict=True):
            _draw(axes, *case)
        path = prefix.with_name(f"{prefix.name}_preview_{first // ROWS + 1}.png")
        with atomic(path) as temporary:
            figure.savefig(temporary, format="png", dpi=100)
        logger.info(f"drawn: {path}")


def _draw(
    axes: np.ndarray, name: str, image: Image.Image, regions: Regions, denoised: Denoised, adjacency: np.ndarray
) -> None:
    """Draw the regions; the nodes, with what merged into them; the graph."""
    size = np.array(image.size) * LONGEST / max(image.size)
    small = np.asarray(image.resize(np.maximum(size.round().astype(int), 1)))
    for one, pixels in zip(axes, (small, small, small // 2), strict=True):  # dark, so that the graph stands out
        one.imshow(pixels, extent=(0, size[0], size[1], 0))
        one.set(xticks=[], yticks=[], xlim=(0, size[0]), ylim=(size[1], 0))
    box = regions.box * [*size, *size]
    colour = matplotlib.colormaps["hsv"](np.arange(len(CLASSES)) / len(CLASSES))[regions.class_id]
    axes[0].set_title(f"{name}: {len(box)} regions", fontsize=10)
    _boxes(axes[0], box, colour, linewidth=1.2)

    kept = denoised.region_of_node
    merged = np.setdiff1d(np.flatnonzero(denoised.node_of_region >= 0), kept)
    into = kept[denoised.node_of_region[merged]]
    _boxes(axes[1], box[merged], colour[merged], linewidth=1.0, linestyle="dotted")
    _lines(axes[1], box[merged], box[into], colors="white", linewidths=0.8)
    _boxes(axes[1], box[kept], colour[kept], linewidth=1.8)
    dropped = len(box) - len(kept) - len(merged)
    axes[1].set_title(f"{len(kept)} nodes, {len(merged)} merged (dotted), {dropped} dropped", fontsize=10)

    i, j = np.triu_indices(len(kept), 1)
    weight = adjacency[i, j] / max(adjacency[i, j].max(initial=0), 1e-9)
    _lines(axes[2], box[kept[i]], box[kept[j]], colors=[(1, 1, 1, one) for one in weight], linewidths=3 * weight)
    area = 60 * denoised.multiplicity[: len(kept)]
    axes[2].scatter(*box[kept, :2].T, s=area, c=colour[kept], edgecolors="white", zorder=3)
    axes[2].set_title("graph: edges by weight, discs by multiplicity", fontsize=10)


def _boxes(axes: Axes, box: np.ndarray, colour: np.ndarray, **style: Any) -> None:
    for (x, y, width, height), edge in zip(box, colour, strict=True):
        axes.add_patch(Rectangle((x - width / 2, y - height / 2), width, height, fill=False, edgecolor=edge, **style))


def _lines(axes: Axes, starts: np.ndarray, ends: np.ndarray, **style: Any) -> None:
    axes.add_collection(LineCollection(np.stack([starts[:, :2], ends[:, :2]], axis=1), **style))
