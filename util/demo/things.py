"""List the things that are drawn: their names, their usual size, where they stand, and how they look from above."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

Colour = tuple[int, ...]
Points = list[tuple[float, float]]

COLOURS: dict[str, Colour] = {
    "white": (240, 240, 236),
    "black": (36, 36, 42),
    "red": (200, 44, 40),
    "blue": (44, 92, 190),
    "yellow": (236, 200, 50),
    "green": (74, 140, 70),
    "brown": (156, 100, 58),
    "olive": (132, 140, 74),
    "wheat": (168, 158, 92),
    "meadow": (112, 140, 80),
    "soil": (160, 132, 94),
}
GROUNDS: dict[str, tuple[Colour, str | None]] = {  # colour, and what decorates it
    "grass": ((104, 138, 76), "trees"),
    "bare land": ((176, 148, 110), None),
    "concrete": ((150, 150, 146), "slab"),
    "farmland": ((142, 146, 84), "field"),
    "residential": ((134, 138, 116), "house"),
}
ASPHALT, LINE, DARK, ROTOR = (86, 86, 90), (226, 226, 220), (50, 54, 62), (235, 235, 235, 70)
GRASS, TREE, LEAVES, SAND = (92, 146, 74), (50, 84, 44), (80, 112, 75), (204, 186, 148)
WATER, POOL, SHALLOW, RIM = (46, 90, 124), (50, 160, 206), (84, 196, 226), (222, 214, 198)
BRIGHT = ("white", "red", "blue", "yellow")


class Line(NamedTuple):
    """Mark points as a line: points alone are a polygon to be filled."""

    points: Points


class Kind(NamedTuple):
    """Hold a kind of thing: its usual size in shares of the image's side, and the most that stand together."""

    length: float  # along the heading
    width: float
    noun: str = ""
    most: int = 1
    colours: tuple[str, ...] = ("black",)
    flat: bool = False  # throws no shadow


def box(x0: float, y0: float, x1: float, y1: float) -> Points:
    return [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]


def disc(x: float, y: float, a: float, b: float, start: float = 0, end: float = 360) -> Points:
    """Return an ellipse with half axes a and b, or its arc between two angles in degrees."""
    angles = np.radians(np.linspace(start, end, 33)).tolist()
    return [(x + a * math.cos(angle), y + b * math.sin(angle)) for angle in angles]


def frame(points: Points) -> Line:
    return Line([*points, points[0]])


def mirrored(*values: float) -> Points:
    """Return points, given as x y x y ..., and their mirror images across the heading."""
    half = list(zip(values[::2], values[1::2], strict=True))
    return half + [(x, -y) for x, y in reversed(half)]


def oval(inset: float) -> Points:
    """Return an edge of a running track, at a distance from the outermost."""
    a, b = 0.6 - inset, 1 - 1.7 * inset
    return disc(0.4, 0, a, b, -90, 90) + disc(-0.4, 0, a, b, 90, 270)


def banks(half: float) -> Points:
    """Return a strip with wavy edges."""
    along = np.linspace(-1, 1, 61).tolist()
    upper, lower = ([(x, side * half + 0.04 * math.sin(9 * x + 2 * side)) for x in along] for side in (-1, 1))
    return upper + lower[::-1]


CLUMP = (-0.5, -0.4, 0.38), (0.4, -0.5, 0.26), (0.2, 0.4, 0.34)  # x, y, radius of three trees
ROUND = mirrored(-1, 0.5, -0.85, 1, 0.85, 1, 1, 0.5)

KINDS = {
    "plane": Kind(0.20, 0.19, "plane", 7, BRIGHT),
    "ship": Kind(0.19, 0.06, "ship", 8, (*BRIGHT, "black")),
    "storage-tank": Kind(0.13, 0.13, "storage tank", 9, ("white", "brown", "blue", "black")),
    "baseball-diamond": Kind(0.31, 0.31, "baseball field", 2, ("brown",), flat=True),
    "tennis-court": Kind(0.24, 0.13, "tennis court", 4, ("green", "blue", "red"), flat=True),
    "basketball-court": Kind(0.22, 0.13, "basketball court", 3, ("brown", "blue", "red"), flat=True),
    "ground-track-field": Kind(0.46, 0.27, "running track", 1, ("red", "blue", "brown"), flat=True),
    "harbor": Kind(0.30, 0.14, "pier", 2, ("brown", "white")),
    "bridge": Kind(0.38, 0.17, "bridge", 1, ("white", "black", "red")),
    "large-vehicle": Kind(0.17, 0.052, "truck", 6, BRIGHT),
    "small-vehicle": Kind(0.095, 0.046, "car", 9, BRIGHT),
    "helicopter": Kind(0.20, 0.15, "helicopter", 4, ("white", "red", "black", "yellow")),
    "roundabout": Kind(0.34, 0.34, "roundabout", 1, ("green",), flat=True),
    "soccer-ball-field": Kind(0.36, 0.24, "soccer field", 2, ("green",), flat=True),
    "swimming-pool": Kind(0.15, 0.09, "swimming pool", 5, ("blue",)),
}
CLASSES = tuple(KINDS)  # those of DOTA-v1.0 in their order; the kinds that follow have no boxes
KINDS |= {
    "road": Kind(1.2, 0.13),
    "water": Kind(1.2, 0.35),
    "field": Kind(0.27, 0.27, colours=("olive", "wheat", "meadow", "soil"), flat=True),
    "slab": Kind(0.15, 0.15, flat=True),
    "house": Kind(0.085, 0.064, colours=("red", "brown", "white")),
    "trees": Kind(0.17, 0.17),
}

# Colour and points of each stroke, in the order of drawing, in a box from (-1, -1) to (1, 1) of which the first
# coordinate runs along the heading. A number for a colour is a tone of the thing's own.
STROKES: dict[str, list[tuple[Colour | float, Points | Line]]] = {
    "plane": [
        (0.9, mirrored(0.34, 0.06, -0.2, 1, -0.4, 1, -0.14, 0)),
        (0.8, mirrored(-0.66, 0.04, -0.9, 0.4, -1, 0.4, -0.9, 0)),
        (1.1, mirrored(1, 0, 0.93, 0.06, 0.75, 0.11, -0.55, 0.1, -1, 0.03)),
    ],
    "ship": [
        (1.0, mirrored(1, 0, 0.78, 0.55, 0.4, 1, -0.9, 1, -1, 0.8)),
        (0.72, mirrored(0.85, 0, 0.36, 0.6, -0.9, 0.6)),
        (LINE, box(-0.78, -0.5, -0.36, 0.5)),
        *((1.3, box(x, -0.36, x + 0.2, 0.36)) for x in (-0.2, 0.12, 0.44)),
    ],
    "storage-tank": [
        (0.62, disc(0, 0, 1, 1)),
        (1.02, disc(0, 0, 0.86, 0.86)),
        (0.88, [(0, 0), *disc(0, 0, 0.86, 0.86, -30, 60)]),
        (1.2, [(0, 0), *disc(0, 0, 0.86, 0.86, 150, 240)]),
        (0.5, disc(0, 0, 0.16, 0.16)),
    ],
    "baseball-diamond": [
        (1.0, [(-1, -1), *disc(-1, -1, 2, 2, 0, 90)]),
        (GRASS, [(-1, -1), *disc(-1, -1, 1.86, 1.86, 0, 90)]),
        (1.0, [(-1, -1), *disc(-1, -1, 1.12, 1.12, 0, 90)]),
        (GRASS, box(-0.86, -0.86, -0.16, -0.16)),
        (1.0, disc(-0.5, -0.5, 0.14, 0.14)),
        (LINE, Line([(1, -0.98), (-0.98, -0.98), (-0.98, 1)])),
    ],
    "tennis-court": [
        (0.7, box(-1, -1, 1, 1)),
        (1.15, box(-0.74, -0.68, 0.74, 0.68)),
        (LINE, frame(box(-0.74, -0.68, 0.74, 0.68))),
        (LINE, frame(box(-0.38, -0.5, 0.38, 0.5))),
        (LINE, Line([(-0.38, 0), (0.38, 0)])),
        (LINE, Line([(0, -0.8), (0, 0.8)])),
    ],
    "basketball-court": [
        (1.1, box(-1, -1, 1, 1)),
        *((0.6, disc(side * 0.92, 0, 0.4, 0.7, 90 * side, 90 * side + 180)) for side in (-1, 1)),
        (LINE, frame(box(-0.92, -0.88, 0.92, 0.88))),
        (LINE, frame(disc(0, 0, 0.18, 0.3))),
        (LINE, Line([(0, -0.88), (0, 0.88)])),
    ],
    "ground-track-field": [
        (0.95, oval(0)),
        *((1.4, frame(oval(inset))) for inset in (0.06, 0.12)),
        (GRASS, oval(0.2)),
        (LINE, frame(oval(0.2))),
    ],
    "harbor": [(1.1, box(-1, -0.15, 1, 0.15)), *((1.1, box(x, -1, x + 0.1, 1)) for x in (-0.56, -0.04, 0.48, 0.9))],
    "bridge": [
        (0.8, box(-1, -1, 1, 1)),
        (ASPHALT, box(-1, -0.6, 1, 0.6)),
        *((LINE, box(x, -0.04, x + 0.15, 0.04)) for x in (-0.94, -0.64, -0.34, -0.04, 0.26, 0.56)),
        *((0.7, box(x, -1, x + 0.07, 1)) for x in (-0.6, 0.52)),  # the pylons' cross-beams
    ],
    "large-vehicle": [
        (1.0, box(-1, -1, 0.5, 1)),
        *((0.75, box(x, -0.9, x + 0.05, 0.9)) for x in (-0.7, -0.4, -0.1, 0.2)),
        (0.72, box(0.6, -0.9, 1, 0.9)),
        (DARK, box(0.5, -0.5, 0.6, 0.5)),
    ],
    "small-vehicle": [(1.0, ROUND), (DARK, box(-0.6, -0.78, 0.38, 0.78)), (1.12, box(-0.42, -0.72, 0.12, 0.72))],
    "helicopter": [
        (ROTOR, disc(0.25, 0, 0.75, 1)),
        (0.85, box(-1, -0.07, 0.25, 0.07)),
        (0.75, box(-1, -0.34, -0.86, 0.34)),
        (1.0, disc(0.26, 0, 0.44, 0.3)),
        (DARK, disc(0.55, 0, 0.13, 0.2)),
        *((DARK, Line([(-0.25, -y), (0.75, y)])) for y in (0.7, -0.7)),
    ],
    "roundabout": [
        (LINE, disc(0, 0, 1, 1)),
        (ASPHALT, disc(0, 0, 0.96, 0.96)),
        *((LINE, Line(disc(0, 0, 0.72, 0.72, start, start + 15))) for start in range(0, 360, 30)),
        (LINE, disc(0, 0, 0.5, 0.5)),
        (1.1, disc(0, 0, 0.44, 0.44)),
        (TREE, disc(0, 0, 0.18, 0.18)),
    ],
    "soccer-ball-field": [
        (1.05, box(-1, -1, 1, 1)),
        *((1.2, box(x, -0.88, x + 0.18, 0.88)) for x in (-0.9, -0.54, -0.18, 0.18, 0.54)),
        *((LINE, frame(box(x, -0.45, x + 0.29, 0.45))) for x in (-0.91, 0.62)),
        (LINE, frame(box(-0.91, -0.88, 0.91, 0.88))),
        (LINE, frame(disc(0, 0, 0.19, 0.28))),
        (LINE, Line([(0, -0.88), (0, 0.88)])),
    ],
    "swimming-pool": [
        (RIM, ROUND),
        (POOL, [(0.87 * x, 0.8 * y) for x, y in ROUND]),
        (SHALLOW, box(-0.7, -0.5, 0.7, 0.5)),
    ],
    "road": [
        (ASPHALT, box(-1, -1, 1, 1)),
        *((LINE, Line([(-1, y), (1, y)])) for y in (-0.86, 0.86)),
        *((LINE, Line([(x / 12, 0), ((x + 1) / 12, 0)])) for x in range(-12, 12, 2)),
    ],
    "water": [(SAND, banks(0.94)), (WATER, banks(0.85))],
    "field": [(1.0, box(-1, -1, 1, 1)), *((0.94, box(x / 5, -1, x / 5 + 0.1, 1)) for x in range(-5, 5))],
    "slab": [((128, 128, 124), frame(box(-1, -1, 1, 1)))],
    "house": [(0.75, box(-1, -1, 1, 0)), (0.55, box(-1, 0, 1, 1))],
    "trees": [
        *((TREE, disc(x, y, size, size)) for x, y, size in CLUMP),
        *((LEAVES, disc(x, y, 0.6 * size, 0.6 * size)) for x, y, size in CLUMP),
    ],
}
