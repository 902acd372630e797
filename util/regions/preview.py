"""Draw DREA: an image with its regions, which of them merged, and the graph over it."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import EllipseCollection, LineCollection, PolyCollection
from matplotlib.figure import Figure
from PIL import Image

from layers.drea import CLASSES, Denoised, Regions
from utils import atomic

ROWS = 4  # images on a sheet
LONGEST = 512  # pixels of an image's longer side on the sheet

Case = tuple[str, Image.Image, Regions, Denoised, np.ndarray]  # name, image, regions, nodes, adjacency


def write_sheets(prefix: Path, cases: list[Case]) -> list[Path]:
    """Write `{prefix}_preview_1.png` and so on, four images a sheet; return their paths."""
    paths = []
    for first in range(0, len(cases), ROWS):
        path = prefix.with_name(f"{prefix.name}_preview_{first // ROWS + 1}.png")
        with atomic(path) as temporary:
            sheet(cases[first : first + ROWS]).savefig(temporary, format="png", dpi=100)
        paths.append(path)
    return paths


def sheet(cases: list[Case]) -> Figure:
    """Draw one row for each image: its regions; the nodes, with what merged into them; the graph."""
    figure = Figure(figsize=(12, 4.25 * len(cases)), layout="constrained")
    axes = figure.subplots(len(cases), 3, squeeze=False)
    for row, (name, image, regions, denoised, adjacency) in zip(axes, cases, strict=True):
        size = np.array(image.size) * LONGEST / max(image.size)
        small = np.asarray(image.resize(np.maximum(size.round().astype(int), 1)))
        for one in row:
            dimmed = small // 2 if one is row[2] else small  # so that the graph stands out
            one.imshow(dimmed, extent=(0, size[0], size[1], 0))
            one.set(xticks=[], yticks=[], xlim=(0, size[0]), ylim=(size[1], 0))
        box = regions.box * [*size, *size]
        colour = matplotlib.colormaps["hsv"](np.arange(len(CLASSES)) / len(CLASSES))[regions.class_id]
        row[0].set_title(f"{name}: {len(box)} regions", fontsize=10)
        _boxes(row[0], box, colour, 1.2)
        _merges(row[1], box, colour, denoised)
        _graph(row[2], box, colour, denoised, adjacency)
    return figure


def _boxes(axes: Axes, box: np.ndarray, colour: np.ndarray, width: float, style: str = "solid") -> None:
    sign = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) / 2
    corners = box[:, None, :2] + sign * box[:, None, 2:]
    axes.add_collection(
        PolyCollection(corners, facecolors="none", edgecolors=colour, linewidths=width, linestyles=style)
    )


def _merges(axes: Axes, box: np.ndarray, colour: np.ndarray, denoised: Denoised) -> None:
    kept = denoised.region_of_node
    merged = np.setdiff1d(np.flatnonzero(denoised.node_of_region >= 0), kept)
    into = kept[denoised.node_of_region[merged]]
    _boxes(axes, box[merged], colour[merged], 1.0, "dotted")
    axes.add_collection(
        LineCollection(np.stack([box[merged, :2], box[into, :2]], axis=1), colors="white", linewidths=0.8)
    )
    _boxes(axes, box[kept], colour[kept], 1.8)
    dropped = len(box) - len(kept) - len(merged)
    axes.set_title(f"{len(kept)} nodes, {len(merged)} merged (dotted), {dropped} dropped", fontsize=10)


def _graph(axes: Axes, box: np.ndarray, colour: np.ndarray, denoised: Denoised, adjacency: np.ndarray) -> None:
    centre = box[denoised.region_of_node, :2]
    i, j = np.triu_indices(len(centre), 1)
    weight = adjacency[i, j] / max(adjacency[i, j].max(initial=0), 1e-9)
    shade = np.column_stack([np.ones((len(weight), 3)), weight])
    axes.add_collection(LineCollection(np.stack([centre[i], centre[j]], axis=1), colors=shade, linewidths=3 * weight))
    diameter = 12 * np.sqrt(denoised.multiplicity[: len(centre)])
    axes.add_collection(
        EllipseCollection(
            diameter,
            diameter,
            np.zeros(len(centre)),
            units="xy",
            offsets=centre,
            offset_transform=axes.transData,
            facecolors=colour[denoised.region_of_node],
            edgecolors="white",
        )
    )
    axes.set_title("graph: edges by weight, discs by multiplicity", fontsize=10)
