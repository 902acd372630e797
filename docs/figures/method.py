"""Draws docs/figures/method.svg and method.png: GaLR from image, regions and caption to the ranking.

python -m docs.figures.method
"""

from __future__ import annotations

from pathlib import Path
from textwrap import fill

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch, Polygon

from util.demo.captions import write_captions
from util.demo.drawing import draw_scene
from util.demo.planning import plan_scenes

FOLDER = Path(__file__).resolve().parent
SCENE = 74  # a demonstration scene with several classes
GLOBAL, LOCAL, FUSION, TEXT, PLAIN = "#dbe9f6", "#e2f0d9", "#fde8cf", "#eadcf4", "#f2f2f2"
EDGE = "#404040"


def box(axes: Axes, x: float, y: float, width: float, height: float, title: str, text: str, colour: str) -> None:
    """A rounded box about (x, y) with a bold title and, below it, plain text."""
    style = "round,pad=0,rounding_size=0.12"
    corner = (x - width / 2, y - height / 2)
    axes.add_patch(FancyBboxPatch(corner, width, height, boxstyle=style, facecolor=colour, edgecolor=EDGE, lw=1))
    top = y + 0.085 * (text.count("\n") + 1)
    axes.text(x, top, title, ha="center", va="center", fontsize=10.5, weight="bold")
    axes.text(x, top - 0.16, text, ha="center", va="top", fontsize=9, linespacing=1.4)


def arrow(
    axes: Axes, start: tuple[float, float], end: tuple[float, float], label: str = "", dashed: bool = False
) -> None:
    style = {"arrowstyle": "-|>", "color": EDGE, "lw": 1.2, "shrinkA": 0, "shrinkB": 0, "mutation_scale": 12}
    axes.annotate("", end, start, arrowprops=style | ({"linestyle": "--"} if dashed else {}))
    if label:
        axes.text((start[0] + end[0]) / 2, (start[1] + end[1]) / 2 + 0.14, label, ha="center", va="center", fontsize=10)


def main() -> None:
    matplotlib.use("Agg")
    plt.rcParams.update({"svg.hashsalt": "galr", "mathtext.fontset": "dejavusans"})
    figure, axes = plt.subplots(figsize=(13, 5.9))
    axes.set(xlim=(0, 13), ylim=(0, 5.9), aspect="equal")
    axes.axis("off")
    figure.subplots_adjust(0, 0, 1, 1)

    scene = plan_scenes(SCENE + 1, 0)[SCENE]
    picture = draw_scene(scene, 128)
    for y, title in ((4.85, "image"), (2.95, "detected regions")):
        axes.imshow(picture, extent=(0.25, 1.65, y - 0.7, y + 0.7), zorder=2)
        axes.text(0.95, y + 0.83, title, ha="center", fontsize=10)
    for thing in scene.things:
        corners = thing.corners() * (1.4, -1.4) + (0.25, 2.95 + 0.7)
        axes.add_patch(Polygon(corners, fill=False, edgecolor="#ffe600", lw=1.4, zorder=3))
    axes.set(xlim=(0, 13), ylim=(0, 5.9))
    axes.text(0.95, 1.63, "caption", ha="center", fontsize=10)
    caption = write_captions(scene, np.random.default_rng([0, 2, SCENE]))[1].removesuffix(" .")
    axes.text(
        0.95, 1.05, fill(f"“{caption}”", 19), ha="center", va="center", fontsize=8.5, style="italic", linespacing=1.3
    )

    box(axes, 2.95, 4.85, 1.6, 1.1, "ResNet-18", "feature maps of\nfour stages", GLOBAL)
    box(axes, 5.2, 4.85, 2.0, 1.1, "MVSA", "multi-scale visual\nself-attention mask", GLOBAL)
    box(axes, 2.95, 2.95, 1.6, 1.1, "DREA", "denoised nodes $X$,\nenhanced edges $A$", LOCAL)
    box(axes, 5.2, 2.95, 2.0, 1.1, "GCN", "three graph layers,\nthen one linear", LOCAL)
    box(axes, 2.95, 1.05, 1.6, 1.1, "skip-thoughts", "word embedding,\nGRU", TEXT)
    box(axes, 5.2, 1.05, 2.0, 1.1, "Linear, ReLU", "of the state at\nthe last word", TEXT)
    box(axes, 8.3, 3.9, 2.3, 3.0, "MIDF", MIDF_TEXT, FUSION)
    box(axes, 11.55, 3.9, 2.2, 1.3, "cosine similarity", "training: triplet loss,\nboth directions,\nmargin 0.2", PLAIN)
    box(axes, 11.55, 1.05, 2.2, 1.1, "multivariate rerank", "forward, similarity and\nreverse components", PLAIN)

    for y in (4.85, 2.95, 1.05):
        arrow(axes, (1.7, y), (2.15, y))
        arrow(axes, (3.75, y), (4.2, y))
    arrow(axes, (6.2, 4.85), (7.15, 4.85), "$v_g$")
    arrow(axes, (6.2, 2.95), (7.15, 2.95), "$v_l$")
    arrow(axes, (9.45, 3.9), (10.45, 3.9), "$v$")
    axes.plot([6.2, 9.95, 9.95], [1.05, 1.05, 3.55], color=EDGE, lw=1.2)
    arrow(axes, (9.95, 3.55), (10.45, 3.55))
    axes.text(9.72, 2.3, "$t$", ha="center", va="center", fontsize=10)
    arrow(axes, (11.55, 3.25), (11.55, 1.6), dashed=True)
    axes.text(11.65, 2.42, "test time:\nsimilarity matrix", ha="left", va="center", fontsize=8.5)
    arrow(axes, (11.55, 0.5), (11.55, 0.22), dashed=True)
    axes.text(11.55, 0.1, "ranking", ha="center", va="center", fontsize=10)

    for y, title, colour in (
        (5.66, "global branch", "#2f6ea5"),
        (3.76, "local branch", "#4c8a2b"),
        (1.86, "text", "#7a4a9c"),
    ):
        axes.text(4.1, y - 0.1, title, ha="center", va="center", fontsize=10, color=colour, style="italic")
    figure.savefig(FOLDER / "method.svg", metadata={"Date": None})
    figure.savefig(FOLDER / "method.png", dpi=110)


MIDF_TEXT = (
    "interaction:\n"
    "SA on $v_g$ and on $v_l$,\n"
    "SGA of $v_l$ guided by $v_g$,\n"
    "SGA of $v_g$ guided by $v_l$\n"
    "\n"
    "dynamic fusion:\n"
    "$v_g' = \\sigma(v_l)\\, v_g$,  $v_l' = v_g + v_l$\n"
    "gate $\\gamma = \\mathrm{softmax}(\\ldots)$\n"
    "$v = \\gamma_1 v_g' + \\gamma_2 v_l'$"
)


if __name__ == "__main__":
    main()
