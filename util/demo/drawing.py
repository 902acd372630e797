"""Draws a planned scene as seen from above: ground, water, roads, houses and trees, then its objects."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from skimage import draw, transform

from util.demo.canvas import (
    ASPHALT,
    COLOURS,
    GRASS,
    GROUNDS,
    LINE,
    ROOFS,
    SAND,
    TREE,
    Canvas,
    Colour,
    tone,
)
from util.demo.scene import ROAD_WIDTH, Rectangle, Scene, Setting, Thing, turned
from util.demo.things import DRAW, Pen, circle


def draw_scene(scene: Scene, size: int) -> np.ndarray:
    """The scene as an image (size, size, 3), uint8. The same plan gives the same picture at every size."""
    canvas = Canvas(size)
    canvas.pixels[:] = paint_setting(scene.setting, size)
    for road in scene.roads():
        paint_road(canvas, road, scene.setting.turn)
    if scene.setting.layout == "crossing":
        paint_junction(canvas, scene.setting)
    if scene.setting.ground == "residential":
        paint_houses(canvas, scene)
    if scene.setting.trees:
        paint_trees(canvas, scene)
    for thing in scene.things:
        DRAW[thing.kind](Pen(canvas, thing), COLOURS[thing.colour])
    return canvas.image()


@lru_cache(maxsize=1)  # consecutive scenes share their setting
def paint_setting(setting: Setting, size: int) -> np.ndarray:
    """What scenes of one setting have in common, before it is averaged down: the ground and the water."""
    canvas = Canvas(size)
    rng = np.random.default_rng(setting.texture)
    canvas.pixels[:] = paint_ground(setting.ground, canvas.side, rng)
    if setting.water:
        paint_water(canvas, setting, rng)
    return canvas.pixels


def noise(rng: np.random.Generator, cells: int, side: int) -> np.ndarray:
    """Smooth noise (side, side) of mean 0 and deviation about 1/2, the same pattern at every side."""
    return transform.resize(
        rng.standard_normal((cells, cells)), (side, side), order=1, mode="edge", anti_aliasing=False
    )


def paint_ground(ground: str, side: int, rng: np.random.Generator) -> np.ndarray:
    """The texture (side, side, 3) of a ground, its tone a little different in every setting."""
    colour = np.array(GROUNDS[ground]) * rng.uniform(0.92, 1.08) + rng.uniform(-6, 6, 3)
    x, y = np.meshgrid(*[(np.arange(side) + 0.5) / side] * 2)
    light = 8 * noise(rng, 5, side) + 6 * noise(rng, 20, side) + 7 * noise(rng, 100, side)
    angle = rng.uniform(0, math.pi)
    along = x * math.cos(angle) + y * math.sin(angle)
    across = y * math.cos(angle) - x * math.sin(angle)
    if ground == "concrete":
        light = 0.6 * light - 12 * ((np.minimum((x * 8) % 1, (y * 8) % 1)) < 0.05)
    elif ground == "water":
        light = 0.4 * light + 5 * np.sin(2 * math.pi * (24 * along + noise(rng, 9, side)))
    texture = colour + light[..., None]
    if ground == "farmland":
        fields = rng.uniform(-1, 1, (5, 5, 1)) * np.array([34, 12, 14]) + rng.uniform(-1, 1, (5, 5, 1)) * 14
        texture += fields[np.floor(along * 2.3 + 1.7).astype(int) % 5, np.floor(across * 2.3 + 1.7).astype(int) % 5]
        texture += 8 * np.sin(2 * math.pi * 26 * along)[..., None]
    return texture


def paint_water(canvas: Canvas, setting: Setting, rng: np.random.Generator) -> None:
    """The river or the sea, with a winding bank of sand."""
    water = paint_ground("water", canvas.side, rng)
    y = np.linspace(-0.05, 1.05, 45)
    left = setting.start + 0.012 * np.sin(2 * math.pi * (1.6 * y + rng.random()))
    right = setting.end + 0.012 * np.sin(2 * math.pi * (1.4 * y + rng.random())) + (setting.layout == "shore")

    def outline(grown: float) -> np.ndarray:
        ends = np.concatenate([np.stack([left - grown, y], -1), np.stack([right + grown, y], -1)[::-1]])
        return turned(ends, setting.turn)

    canvas.polygon(outline(0.022), SAND)
    x, y_ = outline(0).T * canvas.side - 0.5
    rows, columns = draw.polygon(y_, x, shape=canvas.pixels.shape[:2])
    canvas.pixels[rows, columns] = water[rows, columns]


def paint_road(canvas: Canvas, road: Rectangle, turn: int) -> None:
    """Asphalt with lines along both edges and a broken line in the middle."""
    x0, y0, x1, y1 = road
    upright = y1 - y0 > x1 - x0

    def strip(start: float, end: float, middle: float, half: float, colour: Colour) -> None:
        points = np.array([(start, middle - half), (end, middle - half), (end, middle + half), (start, middle + half)])
        canvas.polygon(turned(points[:, ::-1] if upright else points, turn), colour)

    middle = (x0 + x1) / 2 if upright else (y0 + y1) / 2
    strip(-0.1, 1.1, middle, ROAD_WIDTH / 2, ASPHALT)
    for edge in (-0.43, 0.43):
        strip(-0.1, 1.1, middle + edge * ROAD_WIDTH, 0.004, LINE)
    for start in np.arange(0.02, 1, 0.1):
        strip(start, start + 0.05, middle, 0.005, LINE)


def paint_junction(canvas: Canvas, setting: Setting) -> None:
    """Bare asphalt where two roads cross, so that no line runs through."""
    low, high = setting.level - ROAD_WIDTH / 2, setting.level + ROAD_WIDTH / 2
    square = [(setting.start, low), (setting.end, low), (setting.end, high), (setting.start, high)]
    canvas.polygon(turned(np.array(square), setting.turn), ASPHALT)


def free_of(scene: Scene, points: np.ndarray, reach: float) -> np.ndarray:
    """Which of the points (n, 2) lie at least `reach` away from objects, water and roads, as rectangles."""
    setting, free = scene.setting, np.ones(len(points), dtype=bool)
    planned = scene.roads() + ([setting.water] if setting.water else [])
    corners = [turned(np.array([(x0, y0), (x1, y1)]), setting.turn) for x0, y0, x1, y1 in planned]
    for box in [*corners, *(thing.corners() for thing in scene.things)]:
        inside = (points > box.min(axis=0) - reach) & (points < box.max(axis=0) + reach)
        free &= ~inside.all(axis=1)
    return free


def paint_houses(canvas: Canvas, scene: Scene) -> None:
    """Houses with gabled roofs on a loose grid, each in its garden, where nothing else stands."""
    rng = np.random.default_rng(scene.setting.texture + 1)
    steps = (np.arange(8) + 0.5) / 8
    places = np.stack(np.meshgrid(steps, steps), axis=-1).reshape(-1, 2) + rng.uniform(-0.012, 0.012, (64, 2))
    sizes, roofs, quarter = rng.uniform(0.85, 1.1, 64), rng.integers(0, len(ROOFS), 64), rng.integers(0, 2, 64)
    free = free_of(scene, places, 0.055)
    for (x, y), size, roof, turn in zip(places[free], sizes[free], roofs[free], quarter[free], strict=True):
        colour = ROOFS[roof]
        pen = Pen(canvas, Thing("house", "", x, y, 0.085 * size, 0.064 * size, turn * math.pi / 2))
        pen.box(-1.35, -1.4, 1.35, 1.4, GRASS, 0.6)
        pen.shade([(-1, -1), (1, -1), (1, 1), (-1, 1)])
        pen.box(-1, -1, 1, 0, tone(colour, 1.15))
        pen.box(-1, 0, 1, 1, tone(colour, 0.85))


def paint_trees(canvas: Canvas, scene: Scene) -> None:
    """Round trees, in clumps, where nothing else stands."""
    rng = np.random.default_rng(scene.setting.texture + 1)
    clumps = rng.random((26, 2))
    places = np.concatenate(
        [clumps, clumps + rng.uniform(-0.05, 0.05, (26, 2)), clumps + rng.uniform(-0.05, 0.05, (26, 2))]
    )
    radii = rng.uniform(0.016, 0.03, len(places))
    free = free_of(scene, places, 0.035)
    for (x, y), radius in zip(places[free], radii[free], strict=True):
        pen = Pen(canvas, Thing("tree", "", x, y, 2 * radius, 2 * radius, 0.0))
        pen.shade(circle())
        pen.polygon(circle(), TREE)
        pen.polygon(circle(-0.25, -0.25, 0.55, 0.55), tone(TREE, 1.15))
