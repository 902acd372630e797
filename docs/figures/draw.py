"""Draw docs/figures/method.svg and demo_scenes.png from the demo data.

python -m util.make_demo --out data/demo_precomp && python -m docs.figures.draw
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from textwrap import fill

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch, Polygon
from PIL import Image

FOLDER, DATA = Path(__file__).resolve().parent, Path("data/demo_precomp")
METHOD_IMAGE = "demo_0027"  # an image with several classes
GLOBAL, LOCAL, FUSION, TEXT, PLAIN, EDGE = "#dbe9f6", "#e2f0d9", "#fde8cf", "#eadcf4", "#f2f2f2", "#404040"
BOXES = (  # centre x, y, width, height, title, text, colour
    (2.95, 4.85, 1.6, 1.1, "ResNet-18", "feature maps of\nfour stages", GLOBAL),
    (5.2, 4.85, 2.0, 1.1, "MVSA", "multi-scale visual\nself-attention mask", GLOBAL),
    (2.95, 2.95, 1.6, 1.1, "DREA", "denoised nodes $X$,\nenhanced edges $A$", LOCAL),
    (5.2, 2.95, 2.0, 1.1, "GCN", "three graph layers,\nthen one linear", LOCAL),
    (2.95, 1.05, 1.6, 1.1, "skip-thoughts", "word embedding,\nGRU", TEXT),
    (5.2, 1.05, 2.0, 1.1, "Linear, ReLU", "of the state at\nthe last word", TEXT),
    (11.55, 3.9, 2.2, 1.3, "cosine similarity", "training: triplet loss,\nboth directions,\nmargin 0.2", PLAIN),
    (11.55, 1.05, 2.2, 1.1, "multivariate rerank", "forward, similarity and\nreverse components", PLAIN),
)
MIDF = (
    "interaction:\nSA on $v_g$ and on $v_l$,\nSGA of $v_l$ guided by $v_g$,\nSGA of $v_g$ guided by $v_l$\n\n"
    "dynamic fusion:\n"
    "$v_g' = \\sigma(v_l)\\, v_g$,  $v_l' = v_g + v_l$\ngate $\\gamma = \\mathrm{softmax}(\\ldots)$\n"
    "$v = \\gamma_1 v_g' + \\gamma_2 v_l'$"
)
ARROWS = (  # start x, y, end x, y, label
    *((1.7, y, 2.15, y, "") for y in (4.85, 2.95, 1.05)),
    *((3.75, y, 4.2, y, "") for y in (4.85, 2.95, 1.05)),
    (6.2, 4.85, 7.15, 4.85, "$v_g$"),
    (6.2, 2.95, 7.15, 2.95, "$v_l$"),
    (9.45, 3.9, 10.45, 3.9, "$v$"),
    (9.95, 3.55, 10.45, 3.55, ""),
    (11.55, 3.25, 11.55, 1.6, ""),
    (11.55, 0.5, 11.55, 0.22, ""),
)


def captions() -> dict[str, list[str]]:
    """Return the captions of every image, by its stem."""
    found = {}
    for split in ("train", "test"):
        names = list(dict.fromkeys((DATA / f"{split}_filename.txt").read_text(encoding="utf-8").split()))
        lines = (DATA / f"{split}_caps.txt").read_text(encoding="utf-8").splitlines()
        each = len(lines) // len(names)
        found |= {Path(name).stem: lines[at * each : (at + 1) * each] for at, name in enumerate(names)}
    return found


def things(stem: str) -> list[tuple[np.ndarray, str]]:
    """Return the corners (4, 2) and the class of every box of an image."""
    lines = [line.split() for line in (DATA / "boxes" / f"{stem}.txt").read_text(encoding="utf-8").splitlines()]
    return [(np.array(line[:8], float).reshape(4, 2), line[8]) for line in lines]


def draw_box(axes: Axes, x: float, y: float, width: float, height: float, title: str, text: str, colour: str) -> None:
    """Draw a rounded box about (x, y) with a bold title above plain text."""
    style, corner = "round,pad=0,rounding_size=0.12", (x - width / 2, y - height / 2)
    axes.add_patch(FancyBboxPatch(corner, width, height, boxstyle=style, facecolor=colour, edgecolor=EDGE, lw=1))
    top = y + 0.085 * (text.count("\n") + 1)
    axes.text(x, top, title, ha="center", va="center", fontsize=10.5, weight="bold")
    axes.text(x, top - 0.16, text, ha="center", va="top", fontsize=9, linespacing=1.4)


def draw_method() -> None:
    """Draw GaLR from image, regions and caption to the ranking."""
    figure, axes = plt.subplots(figsize=(13, 5.9))
    figure.subplots_adjust(0, 0, 1, 1)
    axes.axis("off")
    picture = Image.open(DATA / "images" / f"{METHOD_IMAGE}.png")
    for y, title in ((4.85, "image"), (2.95, "detected regions")):
        axes.imshow(picture, extent=(0.25, 1.65, y - 0.7, y + 0.7), zorder=2)
        axes.text(0.95, y + 0.83, title, ha="center", fontsize=10)
    for corners, _ in things(METHOD_IMAGE):
        place = corners / picture.width * (1.4, -1.4) + (0.25, 3.65)
        axes.add_patch(Polygon(place, fill=False, edgecolor="#ffe600", lw=1.4, zorder=3))
    axes.set(xlim=(0, 13), ylim=(0, 5.9), aspect="equal")
    caption = fill(f"“{captions()[METHOD_IMAGE][1].removesuffix(' .')}”", 19)
    axes.text(0.95, 1.05, caption, ha="center", va="center", fontsize=8.5, style="italic", linespacing=1.3)
    for box in (*BOXES, (8.3, 3.9, 2.3, 3.0, "MIDF", MIDF, FUSION)):
        draw_box(axes, *box)
    axes.plot([6.2, 9.95, 9.95], [1.05, 1.05, 3.55], color=EDGE, lw=1.2)
    for x, y, to_x, to_y, label in ARROWS:
        axes.annotate(
            "", (to_x, to_y), (x, y), arrowprops={"arrowstyle": "-|>", "color": EDGE, "lw": 1.2, "shrinkB": 0}
        )
        axes.text((x + to_x) / 2, (y + to_y) / 2 + 0.14, label, ha="center", va="center", fontsize=10)
    labels = {
        (0.95, 1.63): "caption",
        (9.72, 2.3): "$t$",
        (12.3, 2.42): "test time:\nsimilarity matrix",
        (11.55, 0.1): "ranking",
    }
    titles = {(4.1, 5.56): "global branch", (4.1, 3.66): "local branch", (4.1, 1.76): "text"}
    for (x, y), text in (labels | titles).items():
        axes.text(x, y, text, ha="center", va="center", fontsize=9.5, style="italic" if (x, y) in titles else "normal")
    figure.savefig(FOLDER / "method.svg", metadata={"Date": None})


def draw_scenes(rows: int = 3, columns: int = 5) -> None:
    """Draw scenes that together show every class, each with one of its captions."""
    rest, seen, chosen = captions(), Counter(), []
    classes = {stem: {name for _, name in things(stem)} for stem in rest}
    while len(chosen) < rows * columns:
        best = max(
            set(rest) - set(chosen), key=lambda stem: (sum(3.0 ** -seen[name] for name in sorted(classes[stem])), stem)
        )
        seen.update(classes[best])
        chosen.append(best)
    figure, axes = plt.subplots(rows, columns, figsize=(1.75 * columns, 2.15 * rows))
    figure.subplots_adjust(left=0.01, right=0.99, top=0.995, bottom=0.07, wspace=0.05, hspace=0.2)
    for axis, stem in zip(axes.flat, chosen, strict=True):
        axis.imshow(Image.open(DATA / "images" / f"{stem}.png"), interpolation="nearest")
        text = fill(rest[stem][1].removesuffix(" ."), 29)
        axis.text(0.5, -0.04, text, fontsize=6.5, transform=axis.transAxes, ha="center", va="top")
        axis.axis("off")
    path = FOLDER / "demo_scenes.png"
    figure.savefig(path, dpi=110)
    Image.open(path).convert("RGB").quantize(256, Image.Quantize.MAXCOVERAGE, kmeans=3, dither=Image.Dither.NONE).save(
        path, optimize=True
    )


if __name__ == "__main__":
    matplotlib.use("Agg")
    plt.rcParams.update({"svg.hashsalt": "galr", "mathtext.fontset": "dejavusans"})
    draw_method()
    draw_scenes()
