"""Draws the objects of the 15 classes, each as seen from above."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np

from util.demo.canvas import (
    ASPHALT,
    COLOURS,
    DARK,
    GRASS,
    LINE,
    SHADOW,
    SHADOW_COLOUR,
    TREE,
    Canvas,
    Colour,
    tone,
)
from util.demo.scene import Thing


class Pen:
    """Draws in the frame of one object: (-1, -1) to (1, 1) is its box, the first coordinate along its heading."""

    def __init__(self, canvas: Canvas, thing: Thing) -> None:
        self.canvas, self.thing = canvas, thing
        cos, sin = math.cos(thing.angle), math.sin(thing.angle)
        self.half = np.array([thing.length, thing.width]) / 2
        self.rotation = np.array([[cos, sin], [-sin, cos]])
        self.ratio = thing.length / thing.width

    def place(self, points: Sequence | np.ndarray) -> np.ndarray:
        return np.asarray(points, dtype=float) * self.half @ self.rotation + (self.thing.x, self.thing.y)

    def polygon(self, points: Sequence | np.ndarray, colour: Colour, alpha: float = 1.0) -> None:
        self.canvas.polygon(self.place(points), colour, alpha)

    def mirrored(self, points: Sequence, colour: Colour) -> None:
        """A polygon and its mirror image on the other side of the heading."""
        self.polygon(points, colour)
        self.polygon([(a, -b) for a, b in points], colour)

    def box(self, a0: float, b0: float, a1: float, b1: float, colour: Colour, alpha: float = 1.0) -> None:
        self.polygon([(a0, b0), (a1, b0), (a1, b1), (a0, b1)], colour, alpha)

    def shade(self, points: Sequence | np.ndarray) -> None:
        self.canvas.polygon(self.place(points) + SHADOW, SHADOW_COLOUR, 0.45)

    def line(self, points: Sequence | np.ndarray, colour: Colour, thickness: float = 0.009) -> None:
        """A line through the points; its thickness is a share of the image's side."""
        ends = self.place(points)
        for start, end in pairwise(ends):
            step = end - start
            side = np.array([-step[1], step[0]]) * (0.5 * thickness / (math.hypot(*step) or 1))
            self.canvas.polygon(np.stack([start + side, end + side, end - side, start - side]), colour)

    def frame(self, a: float, b: float, colour: Colour, thickness: float = 0.009) -> None:
        """The outline of the box (-a, -b) to (a, b)."""
        self.line([(-a, -b), (a, -b), (a, b), (-a, b), (-a, -b)], colour, thickness)


def circle(
    a: float = 0,
    b: float = 0,
    along: float = 1,
    across: float = 1,
    start: float = 0,
    end: float = 360,
    points: int = 28,
) -> np.ndarray:
    """Points of an arc (degrees from the heading) of the ellipse about (a, b) with radii `along` and `across` it."""
    angle = np.radians(np.linspace(start, end, points))
    return np.stack([a + along * np.cos(angle), b + across * np.sin(angle)], axis=-1)


def stadium(ratio: float, inset: float = 0.0) -> np.ndarray:
    """A box of the given length : width with round ends, made smaller by `inset` half widths on all sides."""
    radius, straight = 1 - inset, 1 - 1 / ratio
    right = circle(straight, 0, radius / ratio, radius, -90, 90, 14)
    return np.concatenate([right, -right, right[:1]])


def draw_plane(pen: Pen, colour: Colour) -> None:
    body = [(1, 0), (0.93, 0.06), (0.75, 0.105), (-0.55, 0.095), (-1, 0.03)]
    body = body + [(a, -b) for a, b in reversed(body)]
    wing = [(0.34, 0.06), (-0.2, 1), (-0.4, 1), (-0.14, 0.06)]
    tail = [(-0.66, 0.04), (-0.9, 0.4), (-1, 0.4), (-0.9, 0.04)]
    for part in (body, wing, [(a, -b) for a, b in wing], tail, [(a, -b) for a, b in tail]):
        pen.shade(part)
    pen.mirrored(wing, tone(colour, 0.9))
    pen.mirrored(tail, tone(colour, 0.8))
    pen.mirrored([(0.24, 0.36), (0.24, 0.46), (-0.02, 0.46), (-0.02, 0.36)], DARK)
    pen.polygon(body, tone(colour, 1.1))
    pen.polygon([(0.9, 0.05), (0.82, 0.07), (0.82, -0.07), (0.9, -0.05)], DARK)
    pen.line([(-0.98, 0), (-0.7, 0)], tone(colour, 0.6), 0.008)


def draw_ship(pen: Pen, colour: Colour) -> None:
    hull = np.array(
        [(-1, -0.8), (-0.9, -1), (0.4, -1), (0.78, -0.55), (1, 0), (0.78, 0.55), (0.4, 1), (-0.9, 1), (-1, 0.8)]
    )
    pen.shade(hull)
    pen.polygon(hull, colour)
    pen.polygon(hull * (0.9, 0.6), tone(colour, 0.72))
    pen.box(-0.78, -0.5, -0.4, 0.5, COLOURS["white"])
    pen.box(-0.42, -0.4, -0.32, 0.4, DARK)
    for start in (-0.2, 0.12, 0.44):
        pen.box(start, -0.36, start + 0.2, 0.36, tone(colour, 1.3))


def draw_storage_tank(pen: Pen, colour: Colour) -> None:
    pen.shade(circle())
    pen.polygon(circle(), tone(colour, 0.62))
    pen.polygon(circle(0, 0, 0.86, 0.86), tone(colour, 1.02))
    pen.polygon(np.concatenate([circle(0, 0, 0.86, 0.86, -30, 60), [(0, 0)]]), tone(colour, 0.88))
    pen.polygon(np.concatenate([circle(0, 0, 0.86, 0.86, 150, 240), [(0, 0)]]), tone(colour, 1.2))
    pen.polygon(circle(0, 0, 0.16, 0.16), tone(colour, 0.5))


def draw_baseball_diamond(pen: Pen, colour: Colour) -> None:
    def fan(radius: float) -> np.ndarray:
        return np.concatenate([[(-1, -1)], circle(-1, -1, radius, radius, 0, 90)])

    pen.polygon(fan(2), tone(colour, 0.95))
    pen.polygon(fan(1.86), GRASS)
    pen.polygon(fan(1.12), colour)
    pen.polygon([(-0.86, -0.86), (-0.16, -0.86), (-0.16, -0.16), (-0.86, -0.16)], tone(GRASS, 1.1))
    pen.line([(1, -0.98), (-0.98, -0.98), (-0.98, 1)], LINE)
    pen.polygon(circle(-0.5, -0.5, 0.14, 0.14), colour)
    for a, b in ((-0.9, -0.9), (-0.14, -0.88), (-0.14, -0.14), (-0.88, -0.14)):
        pen.box(a - 0.06, b - 0.06, a + 0.06, b + 0.06, COLOURS["white"])


def draw_tennis_court(pen: Pen, colour: Colour) -> None:
    pen.box(-1, -1, 1, 1, tone(colour, 0.7))
    pen.box(-0.74, -0.68, 0.74, 0.68, tone(colour, 1.15))
    pen.frame(0.74, 0.68, LINE)
    for b in (-0.5, 0.5):
        pen.line([(-0.74, b), (0.74, b)], LINE, 0.006)
    for a in (-0.38, 0.38):
        pen.line([(a, -0.5), (a, 0.5)], LINE, 0.006)
    pen.line([(-0.38, 0), (0.38, 0)], LINE, 0.006)
    pen.line([(0, -0.8), (0, 0.8)], COLOURS["white"], 0.012)


def draw_basketball_court(pen: Pen, colour: Colour) -> None:
    pen.box(-1, -1, 1, 1, tone(colour, 1.1))
    pen.frame(0.92, 0.88, LINE)
    pen.line([(0, -0.88), (0, 0.88)], LINE)
    pen.polygon(circle(0, 0, 0.3 / pen.ratio, 0.3), tone(colour, 0.6))
    pen.line(circle(0, 0, 0.3 / pen.ratio, 0.3), LINE, 0.007)
    for end in (-1, 1):
        pen.box(end * 0.92, -0.3, end * 0.56, 0.3, tone(colour, 0.6))
        pen.line(circle(end * 0.92, 0, -end * 0.72 / pen.ratio, 0.72, -90, 90), LINE, 0.007)


def draw_ground_track_field(pen: Pen, colour: Colour) -> None:
    pen.polygon(stadium(pen.ratio), tone(colour, 0.95))
    for inset in (0.09, 0.18, 0.27):
        pen.line(stadium(pen.ratio, inset), tone(colour, 1.55), 0.005)
    pen.polygon(stadium(pen.ratio, 0.36), GRASS)
    pen.line(stadium(pen.ratio, 0.36), LINE, 0.008)
    pen.line([(0.55, -1), (0.55, -0.64)], LINE, 0.01)


def draw_harbor(pen: Pen, colour: Colour) -> None:
    deck, side = tone(colour, 1.15), tone(colour, 0.7)
    pen.shade([(-1, -0.2), (1, -0.2), (1, 0.2), (-1, 0.2)])
    for a in (-0.52, -0.02, 0.48, 0.92):
        pen.shade([(a - 0.08, -1), (a + 0.08, -1), (a + 0.08, 1), (a - 0.08, 1)])
        pen.box(a - 0.08, -1, a + 0.08, 1, side)
        pen.box(a - 0.045, -0.95, a + 0.045, 0.95, deck)
    pen.box(-1, -0.24, 1, 0.24, side)
    pen.box(-1, -0.15, 0.97, 0.15, deck)


def draw_bridge(pen: Pen, colour: Colour) -> None:
    pen.shade([(-0.8, -1), (0.8, -1), (0.8, 1), (-0.8, 1)])
    pen.box(-1, -1, 1, 1, tone(colour, 1.1))
    pen.box(-1, -0.58, 1, 0.58, (112, 112, 114))
    for a in np.arange(-0.94, 0.9, 0.3):
        pen.box(a, -0.03, a + 0.15, 0.03, LINE)
    girders = np.linspace(-0.96, 0.96, 9)
    for edge in (-1, 1):
        zigzag = [(a, edge * (0.68 if i % 2 else 0.92)) for i, a in enumerate(girders)]
        pen.line(zigzag, tone(colour, 0.5), 0.008)
    for a in (-0.55, 0.55):  # the pylons' cross-beams
        pen.box(a - 0.035, -1, a + 0.035, 1, tone(colour, 0.7))


def draw_large_vehicle(pen: Pen, colour: Colour) -> None:
    pen.shade([(-1, -1), (1, -1), (1, 1), (-1, 1)])
    pen.box(-1, -1, 0.5, 1, colour)
    for a in (-0.7, -0.4, -0.1, 0.2):
        pen.box(a, -0.9, a + 0.05, 0.9, tone(colour, 0.75))
    pen.box(0.5, -0.5, 0.6, 0.5, DARK)
    pen.box(0.6, -0.92, 1, 0.92, tone(colour, 0.72))
    pen.box(0.8, -0.75, 0.92, 0.75, DARK)


def draw_small_vehicle(pen: Pen, colour: Colour) -> None:
    body = [(-1, -0.7), (-0.85, -1), (0.8, -1), (1, -0.6), (1, 0.6), (0.8, 1), (-0.85, 1), (-1, 0.7)]
    pen.shade(body)
    pen.polygon(body, colour)
    pen.box(-0.6, -0.78, 0.38, 0.78, DARK)
    pen.box(-0.42, -0.72, 0.12, 0.72, tone(colour, 1.12))


def draw_helicopter(pen: Pen, colour: Colour) -> None:
    hub, rotor = 1 - 1 / pen.ratio, 1 / pen.ratio  # the rotor's disc touches three sides of the box
    body = circle(hub + 0.05, 0, 0.62 * rotor, 0.3)
    boom = [(hub, 0.12), (-1, 0.05), (-1, -0.05), (hub, -0.12)]
    for part in (body, boom):
        pen.shade(part)
    pen.polygon(circle(hub, 0, rotor, 1), (235, 235, 235), 0.22)
    pen.polygon(boom, tone(colour, 0.85))
    pen.mirrored([(-0.86, 0), (-0.86, 0.34), (-0.98, 0.34), (-0.98, 0)], tone(colour, 0.75))
    pen.polygon(body, colour)
    pen.polygon(circle(hub + 0.42 * rotor, 0, 0.2 * rotor, 0.2), DARK)
    for degrees in (45, 135):
        c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
        pen.line([(hub - rotor * c, -s), (hub + rotor * c, s)], DARK, 0.01)
    pen.polygon(circle(hub, 0, 0.09 * rotor, 0.09), DARK)


def draw_roundabout(pen: Pen, colour: Colour) -> None:
    pen.polygon(circle(), LINE)
    pen.polygon(circle(0, 0, 0.96, 0.96), ASPHALT)
    for start in range(0, 360, 30):
        pen.line(circle(0, 0, 0.73, 0.73, start, start + 15, 5), LINE, 0.008)
    pen.polygon(circle(0, 0, 0.52, 0.52), LINE)
    pen.polygon(circle(0, 0, 0.46, 0.46), tone(colour, 1.1))
    pen.polygon(circle(0, 0, 0.18, 0.18), tone(TREE, 0.9))


def draw_soccer_ball_field(pen: Pen, colour: Colour) -> None:
    pen.box(-1, -1, 1, 1, tone(colour, 1.05))
    for a in np.arange(-0.9, 0.9, 0.36):
        pen.box(a, -0.88, a + 0.18, 0.88, tone(colour, 1.2))
    pen.frame(0.91, 0.88, LINE)
    pen.line([(0, -0.88), (0, 0.88)], LINE)
    pen.line(circle(0, 0, 0.28 / pen.ratio, 0.28), LINE)
    for end in (-1, 1):
        pen.line([(end * 0.91, -0.45), (end * 0.62, -0.45), (end * 0.62, 0.45), (end * 0.91, 0.45)], LINE)


def draw_swimming_pool(pen: Pen, _: Colour) -> None:
    def rounded(size: float) -> np.ndarray:
        angle = np.linspace(0, 2 * math.pi, 33)
        cos, sin = np.cos(angle), np.sin(angle)
        return size * np.stack([np.sign(cos) * np.abs(cos) ** 0.4, np.sign(sin) * np.abs(sin) ** 0.4], axis=-1)

    pen.polygon(rounded(1), (222, 214, 198))
    pen.polygon(rounded(0.84) * (1, 0.92), (50, 160, 206))
    pen.polygon(rounded(0.6) * (1, 0.9), (84, 196, 226))
    for b in (-0.3, 0.15):
        pen.line([(-0.6, b), (0.6, b + 0.08)], (170, 228, 240), 0.007)


DRAW: dict[str, Callable[[Pen, Colour], None]] = {
    "plane": draw_plane,
    "ship": draw_ship,
    "storage-tank": draw_storage_tank,
    "baseball-diamond": draw_baseball_diamond,
    "tennis-court": draw_tennis_court,
    "basketball-court": draw_basketball_court,
    "ground-track-field": draw_ground_track_field,
    "harbor": draw_harbor,
    "bridge": draw_bridge,
    "large-vehicle": draw_large_vehicle,
    "small-vehicle": draw_small_vehicle,
    "helicopter": draw_helicopter,
    "roundabout": draw_roundabout,
    "soccer-ball-field": draw_soccer_ball_field,
    "swimming-pool": draw_swimming_pool,
}
