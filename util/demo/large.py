"""Draw one large scene with known things in known places: a patchwork of empty ground, and among it plots with objects.

Each plot is a demonstration scene, drawn so large that a window of 512 pixels shows what a training image shows. No
plot shows the main class of another, so that each sentence means one place.
"""

from __future__ import annotations

from itertools import product
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from util.demo.captions import write_captions
from util.demo.draw import TURNS, draw_scene
from util.demo.plan import Scene, plan_scenes, plan_settings
from utils import Bar

TILE, TILES = 500, 8  # pixels; tiles along a side
SIDE = TILE * TILES
MOST = 12  # plots with objects
GROUNDS = 6  # different empty tiles


class Plot(NamedTuple):
    """A demonstration scene at a tile of the large one."""

    scene: Scene
    row: int
    column: int


def plan_large(seed: int) -> list[Plot]:
    """Plan plots that stand apart: no two next to each other, and none with the main class of another."""
    rng = np.random.default_rng([seed, 4])
    places = [(2 * row + 1, 2 * column + 1) for row, column in product(range(TILES // 2), repeat=2)]
    chosen: list[Scene] = []
    for scene in plan_scenes(200, seed + 1):
        kinds = {group.kind for group in scene.groups}
        mains = {other.groups[0].kind for other in chosen}
        shown = {group.kind for other in chosen for group in other.groups}
        if len(chosen) < MOST and not kinds & mains and scene.groups[0].kind not in shown:
            chosen.append(scene)
    picked = rng.permutation(len(places))[: len(chosen)]
    return [Plot(scene, *places[i]) for scene, i in zip(chosen, picked, strict=True)]


def draw_large(plots: list[Plot], seed: int) -> Image.Image:
    """Draw the scene, SIDE x SIDE."""
    rng = np.random.default_rng([seed, 5])
    grounds = (setting for setting in plan_settings(rng) if setting.layout == "open")
    empty = [draw_scene(Scene(0, next(grounds), ()), TILE) for _ in range(GROUNDS)]
    picture = Image.new("RGB", (SIDE, SIDE))
    for row, column in product(range(TILES), repeat=2):
        tile, turn = empty[rng.integers(GROUNDS)], TURNS[rng.integers(4)]
        picture.paste(tile if turn is None else tile.transpose(turn), (column * TILE, row * TILE))
    for plot in Bar(plots, desc="drawing the scene", unit="plot"):
        picture.paste(draw_scene(plot.scene, TILE), (plot.column * TILE, plot.row * TILE))
    return picture


def annotate_large(plots: list[Plot], seed: int) -> list[dict[str, Any]]:
    """Return the queries in the form of AIR-SLT: a caption of each plot, and the hull of its objects in pixels."""
    queries = []
    for plot in plots:
        corners = np.concatenate([thing.corners() for thing in plot.scene.things]).clip(0, 1)
        x, y = ((corners + np.array([plot.column, plot.row])) * TILE).round(2).T
        left, top, right, bottom = map(float, (x.min(), y.min(), x.max(), y.max()))
        region = [[left, top], [right, top], [right, bottom], [left, bottom]]
        caption = write_captions(plot.scene, np.random.default_rng([seed, 6, plot.scene.index]))[0]
        queries.append({"caption": caption, "jpg_name": "scene.jpg", "points": [region]})
    return queries
