"""Plans of the demonstration scenes: what stands where, as data. Drawing and captions follow from the plan alone.

Lengths are shares of the image's side, x to the right and y down, so that a plan can be drawn at any size. Four
consecutive scenes share one setting (ground, roads, water, texture) and differ only in their objects: the background
alone cannot tell them apart.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

Rectangle = tuple[float, float, float, float]  # x0, y0, x1, y1

LAND = ("grass", "bare land", "concrete", "farmland", "residential")
LAYOUTS = ("open", "road", "crossing", "river", "shore")
SCENES_PER_SETTING = 4
MARGIN = 0.03  # kept free at the image's edges and between zones
ROAD_WIDTH = 0.13


@dataclass(frozen=True)
class Kind:
    """A class of objects: its usual length and width, how many may stand together, its colours and its grounds."""

    length: float
    width: float
    most: int
    colours: tuple[str, ...]
    grounds: tuple[str, ...]


# The classes of DOTA v1.0 in their order. "pier", "river crossing" and "crossing" are places that one layout offers.
KINDS = {
    "plane": Kind(0.20, 0.19, 7, ("white", "blue", "red", "yellow"), ("grass", "bare land", "concrete", "water")),
    "ship": Kind(0.19, 0.06, 8, ("white", "red", "blue", "yellow", "black"), ("water",)),
    "storage-tank": Kind(0.13, 0.13, 9, ("white", "brown", "blue", "black"), LAND),
    "baseball-diamond": Kind(0.31, 0.31, 2, ("brown",), LAND),
    "tennis-court": Kind(0.24, 0.13, 6, ("green", "blue", "red"), LAND),
    "basketball-court": Kind(0.22, 0.13, 4, ("brown", "blue", "red"), LAND),
    "ground-track-field": Kind(0.46, 0.27, 1, ("red", "blue", "brown"), LAND),
    "harbor": Kind(0.30, 0.14, 2, ("brown", "white"), ("pier",)),
    "bridge": Kind(0.36, 0.16, 2, ("white", "black", "red"), ("river crossing",)),
    "large-vehicle": Kind(
        0.17, 0.052, 6, ("white", "red", "blue", "yellow"), ("road", "concrete", "bare land", "grass")
    ),
    "small-vehicle": Kind(0.095, 0.046, 9, ("white", "red", "blue", "black", "yellow"), ("road", *LAND)),
    "helicopter": Kind(0.20, 0.15, 4, ("white", "red", "black", "yellow"), ("grass", "bare land", "concrete", "water")),
    "roundabout": Kind(0.32, 0.32, 1, ("green",), ("crossing",)),
    "soccer-ball-field": Kind(0.36, 0.24, 2, ("green",), LAND),
    "swimming-pool": Kind(0.15, 0.09, 5, ("blue",), LAND),
}
CROWDS = ("plane", "ship", "storage-tank", "large-vehicle", "small-vehicle")  # any number is as likely as one
LOOSE = (*CROWDS, "helicopter", "swimming-pool")  # may be scattered; courts and fields stand in rows
SPECIAL_GROUNDS = {
    "open": (),
    "road": ("road",),
    "crossing": ("road", "crossing"),
    "river": ("water", "river crossing"),
    "shore": ("water", "pier"),
}


@dataclass(frozen=True)
class Thing:
    """One object: centre, length along its heading, width across it. `angle` in radians, from x towards y (down)."""

    kind: str
    colour: str
    x: float
    y: float
    length: float
    width: float
    angle: float

    def corners(self) -> np.ndarray:
        """The corners (4, 2) of the oriented box, clockwise on the screen."""
        along = 0.5 * self.length * np.array([math.cos(self.angle), math.sin(self.angle)])
        across = 0.5 * self.width * np.array([-math.sin(self.angle), math.cos(self.angle)])
        return np.array([self.x, self.y]) + np.stack([-along - across, along - across, along + across, across - along])


@dataclass(frozen=True)
class Group:
    """Objects of one class and colour that stand together on one ground. `arrangement`: "row", "two rows" or ""."""

    kind: str
    colour: str
    ground: str
    arrangement: str
    things: tuple[Thing, ...]

    @property
    def hull(self) -> Rectangle:
        corners = np.concatenate([thing.corners() for thing in self.things])
        return (*corners.min(axis=0), *corners.max(axis=0))

    @property
    def centre(self) -> tuple[float, float]:
        x0, y0, x1, y1 = self.hull
        return (x0 + x1) / 2, (y0 + y1) / 2


@dataclass(frozen=True)
class Setting:
    """What scenes may share. Layouts are planned with the river, shore or road upright, then turned by quarters.

    `start` and `end`: left and right side of the upright strip (the shore's water reaches to 1); `level`: height of
    the road that crosses it (`crossing`) or may cross it on a bridge (`river`).
    """

    ground: str
    layout: str
    turn: int
    start: float
    end: float
    level: float
    trees: bool
    texture: int

    @property
    def water(self) -> Rectangle | None:
        """The water as planned, not turned; its real bank winds a little about this."""
        return (self.start, 0, self.end, 1) if self.layout in ("river", "shore") else None


@dataclass(frozen=True)
class Scene:
    """A setting and one to three groups of different classes, the main one first. Images are named by `index`."""

    index: int
    setting: Setting
    groups: tuple[Group, ...]

    @property
    def name(self) -> str:
        return f"demo_{self.index:04d}"

    @property
    def things(self) -> list[Thing]:
        return [thing for group in self.groups for thing in group.things]

    def roads(self) -> list[Rectangle]:
        """The roads as planned, not turned: those of the layout, and one over each bridge."""
        setting, half = self.setting, ROAD_WIDTH / 2
        upright, level = (setting.start, 0, setting.end, 1), (0, setting.level - half, 1, setting.level + half)
        if setting.layout == "road":
            return [upright]
        if setting.layout == "crossing":
            return [upright, level]
        bridges = next((len(group.things) for group in self.groups if group.kind == "bridge"), 0)
        return [level, mirrored(level)][:bridges]


def mirrored(rectangle: Rectangle) -> Rectangle:
    x0, y0, x1, y1 = rectangle
    return x0, 1 - y1, x1, 1 - y0


def turned(points: np.ndarray, turn: int) -> np.ndarray:
    """Points (..., 2) after `turn` quarter turns about the image's centre."""
    for _ in range(turn % 4):
        points = np.stack([1 - points[..., 1], points[..., 0]], axis=-1)
    return points
