"""One large scene with known things in known places: a patchwork of empty ground, and among it plots with objects.

Each plot is a demonstration scene, drawn so large that a window of 512 pixels shows what a training image shows. No two
plots share a class of objects with another's main one, so that each sentence means one place.
"""

from __future__ import annotations

from itertools import product
from typing import Any, NamedTuple

import numpy as np

from util.demo.captions import write_captions
from util.demo.drawing import draw_scene
from util.demo.planning import plan_scenes, plan_settings
from util.demo.scene import Scene
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
    """Plots that stand apart: no two next to each other, and none with the main class of another."""
    rng = np.random.default_rng([seed, 4])
    places = [(2 * row + 1, 2 * column + 1) for row, column in product(range(TILES // 2), repeat=2)]
    chosen: list[Scene] = []
    for scene in plan_scenes(200, seed + 1):
        kinds = {group.kind for group in scene.groups}
        mains = {other.groups[0].kind for other in chosen}
        of_others = {group.kind for other in chosen for group in other.groups}
        if len(chosen) < MOST and not kinds & mains and scene.groups[0].kind not in of_others:
            chosen.append(scene)
    picked = rng.permutation(len(places))[: len(chosen)]
    return [Plot(scene, *places[i]) for scene, i in zip(chosen, picked, strict=True)]


def draw_large(plots: list[Plot], seed: int) -> np.ndarray:
    """The scene (SIDE, SIDE, 3) uint8."""
    rng = np.random.default_rng([seed, 5])
    open_grounds = (one for one in plan_settings(rng) if one.layout == "open")
    empty = [draw_scene(Scene(0, next(open_grounds), ()), TILE) for _ in range(GROUNDS)]
    picture = np.empty((SIDE, SIDE, 3), np.uint8)
    for row, column in product(range(TILES), repeat=2):
        _tile(picture, row, column)[:] = np.rot90(empty[rng.integers(GROUNDS)], rng.integers(4))
    for plot in Bar(plots, desc="drawing the scene", unit="plot"):
        _tile(picture, plot.row, plot.column)[:] = draw_scene(plot.scene, TILE)
    return picture


def _tile(picture: np.ndarray, row: int, column: int) -> np.ndarray:
    return picture[row * TILE : (row + 1) * TILE, column * TILE : (column + 1) * TILE]


def annotate_large(plots: list[Plot], seed: int) -> list[dict[str, Any]]:
    """The queries in the form of AIR-SLT: a caption of each plot, and the hull of its objects in pixels."""
    queries = []
    for plot in plots:
        corners = np.concatenate([thing.corners() for thing in plot.scene.things]).clip(0, 1)
        x, y = (corners + np.array([plot.column, plot.row])).T * TILE
        hull = [[x.min(), y.min()], [x.max(), y.min()], [x.max(), y.max()], [x.min(), y.max()]]
        region = [[round(float(value), 2) for value in point] for point in hull]
        caption = write_captions(plot.scene, np.random.default_rng([seed, 6, plot.scene.index]))[0]
        queries.append({"caption": caption, "jpg_name": "scene.jpg", "points": [region]})
    return queries
