"""Draws docs/figures/demo_scenes.png: demonstration scenes with one of their captions, every class at least once.

python -m docs.figures.demo
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from textwrap import fill

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
from PIL import Image

from util.demo.captions import write_captions
from util.demo.drawing import draw_scene
from util.demo.planning import plan_scenes
from util.demo.scene import Scene

FOLDER = Path(__file__).resolve().parent
ROWS, COLUMNS, SEED = 3, 5, 0


def choose(scenes: list[Scene], number: int) -> list[Scene]:
    """Scenes that each show what the ones chosen before them show least: classes first, then grounds."""
    seen, chosen = Counter(), []
    for _ in range(number):
        rest = [scene for scene in scenes if scene not in chosen]
        weight = {
            scene.index: sum(3.0 ** -seen[group.kind] for group in scene.groups)
            + 3.0 ** -seen[scene.setting.ground, scene.setting.layout]
            for scene in rest
        }
        best = max(rest, key=lambda scene: weight[scene.index])
        seen.update([group.kind for group in best.groups] + [(best.setting.ground, best.setting.layout)])
        chosen.append(best)
    return chosen


def main() -> None:
    matplotlib.use("Agg")
    scenes = choose(plan_scenes(200, SEED), ROWS * COLUMNS)
    figure, axes = plt.subplots(ROWS, COLUMNS, figsize=(1.75 * COLUMNS, 2.15 * ROWS))
    figure.subplots_adjust(left=0.01, right=0.99, top=0.995, bottom=0.07, wspace=0.05, hspace=0.2)
    for axis, scene in zip(axes.flat, scenes, strict=True):
        axis.imshow(draw_scene(scene, 160), interpolation="nearest")
        captions = write_captions(scene, np.random.default_rng([SEED, 2, scene.index]))
        caption = captions[1 if len(scene.groups) > 1 else 2].removesuffix(" .")
        axis.text(0.5, -0.04, fill(caption, 29), fontsize=6.5, transform=axis.transAxes, ha="center", va="top")
        axis.axis("off")
    path = FOLDER / "demo_scenes.png"
    figure.savefig(path, dpi=110)
    small = (
        Image.open(path).convert("RGB").quantize(256, Image.Quantize.MAXCOVERAGE, kmeans=3, dither=Image.Dither.NONE)
    )
    small.save(path, optimize=True)
    print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
