"""Plan demonstration scenes: what stands where, as data. Drawing and captions follow from the plan alone.

Lengths are shares of the image's side, x to the right and y down, so that a plan can be drawn at any size. Four
consecutive scenes share one setting and differ only in their objects: the background alone cannot tell them apart.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

Rectangle = tuple[float, float, float, float]  # x0, y0, x1, y1

LAND = ("grass", "bare land", "concrete", "farmland", "residential")
IN_PLACE = {"bridge": "river", "harbor": "shore", "roundabout": "crossing"}  # what stands in one place of a layout
LAYOUTS = ("open", "road", "crossing", "river", "shore")
SCENES_PER_SETTING = 4
MARGIN, BANK, ROAD_WIDTH = 0.03, 0.03, 0.13


class Kind(NamedTuple):
    """Hold a class of objects: usual length and width, the most that stand together, its colours and its grounds."""

    length: float
    width: float
    most: int
    colours: tuple[str, ...]
    grounds: tuple[str, ...]


BRIGHT = ("white", "red", "blue", "yellow")
AIRFIELD = ("grass", "bare land", "concrete", "water")
KINDS = {  # the classes of DOTA-v1.0 in their order
    "plane": Kind(0.20, 0.19, 7, BRIGHT, AIRFIELD),
    "ship": Kind(0.19, 0.06, 8, (*BRIGHT, "black"), ("water",)),
    "storage-tank": Kind(0.13, 0.13, 9, ("white", "brown", "blue", "black"), LAND),
    "baseball-diamond": Kind(0.31, 0.31, 2, ("brown",), LAND),
    "tennis-court": Kind(0.24, 0.13, 4, ("green", "blue", "red"), LAND),
    "basketball-court": Kind(0.22, 0.13, 3, ("brown", "blue", "red"), LAND),
    "ground-track-field": Kind(0.46, 0.27, 1, ("red", "blue", "brown"), LAND),
    "harbor": Kind(0.30, 0.14, 2, ("brown", "white"), ("shore",)),
    "bridge": Kind(0.36, 0.16, 2, ("white", "black", "red"), ("river",)),
    "large-vehicle": Kind(0.17, 0.052, 6, BRIGHT, ("road", "concrete", "bare land", "grass")),
    "small-vehicle": Kind(0.095, 0.046, 9, (*BRIGHT, "black"), ("road", *LAND)),
    "helicopter": Kind(0.20, 0.15, 4, ("white", "red", "black", "yellow"), AIRFIELD),
    "roundabout": Kind(0.32, 0.32, 1, ("green",), ("crossing",)),
    "soccer-ball-field": Kind(0.36, 0.24, 2, ("green",), LAND),
    "swimming-pool": Kind(0.15, 0.09, 5, ("blue",), LAND),
}
LOOSE = ("plane", "ship", "storage-tank", "large-vehicle", "small-vehicle", "helicopter", "swimming-pool")  # scattered


@dataclass(frozen=True)
class Thing:
    """Hold one object: centre, length along its heading, width across it; `angle` in radians, from x towards y."""

    kind: str
    colour: str
    x: float
    y: float
    length: float
    width: float
    angle: float

    def corners(self) -> np.ndarray:
        """Return the corners (4, 2) of the oriented box, clockwise on the screen."""
        along = 0.5 * self.length * np.array([math.cos(self.angle), math.sin(self.angle)])
        across = 0.5 * self.width * np.array([-math.sin(self.angle), math.cos(self.angle)])
        return np.array([self.x, self.y]) + np.stack([-along - across, along - across, along + across, across - along])


@dataclass(frozen=True)
class Group:
    """Hold objects of one class and colour that stand together on one ground, in a row, two rows or scattered."""

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
    """Hold a background, planned with its river, shore or road upright, then turned clockwise by quarters.

    start, end: left and right side of the upright strip; level: height of the road that crosses it, or its bridge.
    """

    ground: str
    layout: str
    turn: int
    start: float
    end: float
    level: float
    trees: bool
    texture: int


@dataclass(frozen=True)
class Scene:
    """Hold a setting and one to three groups of different classes, the main one first."""

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
        """Return the upright roads: those of the layout, and one over each bridge."""
        setting, half = self.setting, ROAD_WIDTH / 2
        upright = (setting.start, 0, setting.end, 1)
        across = [(0, level - half, 1, level + half) for level in (setting.level, 1 - setting.level)]
        if setting.layout in ("road", "crossing"):
            return [upright, *across[: setting.layout == "crossing"]]
        return across[: sum(thing.kind == "bridge" for thing in self.things)]


def plan_scenes(images: int, seed: int) -> list[Scene]:
    """Plan the first `images` scenes of a seed. Classes that have been rare so far are preferred."""
    settings, used, scenes = plan_settings(np.random.default_rng([seed, 0])), Counter(), []
    for index in range(images):
        if index % SCENES_PER_SETTING == 0:
            setting, shown = next(settings), {frozenset()}
        rng = np.random.default_rng([seed, 1, index])
        possible = [name for name, kind in KINDS.items() if zones_of(setting).keys() & set(kind.grounds)]
        rare = np.array([(1.0 + used[name]) ** -2 * (3 if name in IN_PLACE else 1) for name in possible])
        sight = frozenset()
        while sight in shown:
            number = min(len(possible), int(rng.choice([1, 2, 3], p=[0.2, 0.6, 0.2])))
            kinds = rng.choice(possible, number, replace=False, p=rare / rare.sum()).tolist()
            groups = place_groups(rng, setting, kinds)
            sight = frozenset((group.kind, len(group.things)) for group in groups)
        shown.add(sight)
        used.update(group.kind for group in groups)
        scenes.append(Scene(index, setting, groups))
    return scenes


def plan_settings(rng: np.random.Generator) -> Iterator[Setting]:
    """Yield settings without end: every pair of ground and layout once, in a random order, then again."""
    pairs = [("water", "open"), *((ground, layout) for ground in LAND for layout in LAYOUTS)]
    while True:
        for i in rng.permutation(len(pairs)):
            ground, layout = pairs[i]
            middle, level = rng.uniform(0.44, 0.56, 2)
            half = (rng.uniform(0.28, 0.34) if layout == "river" else ROAD_WIDTH) / 2
            start, end = (middle, 1.0) if layout == "shore" else (middle - half, middle + half)
            level -= 0.35 * (layout == "river")
            trees = ground in ("grass", "bare land", "farmland") and bool(rng.random() < 0.6)
            yield Setting(ground, layout, int(rng.integers(4)), start, end, level, trees, int(rng.integers(2**31)))


def zones_of(setting: Setting) -> dict[str, list[Rectangle]]:
    """Return the upright rectangles of each ground on which objects may stand; none for the place of a layout."""
    start, end, level, half = setting.start, setting.end, setting.level, ROAD_WIDTH / 2
    if setting.layout == "open":
        return {setting.ground: [(0, 0, 1, 1)]}
    if setting.layout == "shore":
        return {setting.ground: [(0, 0, start - BANK, 1)], "water": [(start + BANK, 0, 1, 1)], "shore": []}
    if setting.layout == "river":
        sides = [(0, 0, start - BANK, 1), (end + BANK, 0, 1, 1)]
        return {setting.ground: sides, "water": [(start + BANK, 0, end - BANK, 1)], "river": []}
    if setting.layout == "road":
        return {setting.ground: [(0, 0, start, 1), (end, 0, 1, 1)], "road": []}
    rows = ((0, level - half), (level + half, 1))
    corners = [(x0, y0, x1, y1) for x0, x1 in ((0, start), (end, 1)) for y0, y1 in rows]
    return {setting.ground: corners, "road": [], "crossing": []}


def place_groups(rng: np.random.Generator, setting: Setting, kinds: list[str]) -> tuple[Group, ...]:
    """Place each class on a ground of its own, apart from the others; leave out what finds no room."""
    zones, taken, groups = zones_of(setting), [], {}
    for name in sorted(kinds, key=lambda name: name not in IN_PLACE):
        grounds = [ground for ground in KINDS[name].grounds if ground in zones]
        ground = grounds[0] if rng.random() < 0.8 else str(rng.choice(grounds))
        if name in IN_PLACE or ground == "road":
            group = build_in_place(rng, name, setting)
        else:
            group = arrange(rng, name, ground, zones[ground], taken)
        if group and not (ground == "road" and any(other.ground == "road" for other in groups.values())):
            groups[name] = group
            taken += [group.hull, *(Scene(0, setting, (group,)).roads() if name == "bridge" else [])]
    return tuple(turn_group(groups[name], setting.turn) for name in kinds if name in groups)


def arrange(rng: np.random.Generator, name: str, ground: str, zones: list, taken: list[Rectangle]) -> Group | None:
    """Arrange objects in rows or scattered where nothing stands; fewer and smaller ones if there is no room."""
    kind = KINDS[name]
    count = int(rng.integers(1, kind.most + 1))
    rows = ["row", "row", *["two rows"] * (count > 3), *["scattered"] * (name in LOOSE and count > 2)]
    arrangement = str(rng.choice(rows))
    step = 1 + (arrangement == "two rows")
    count -= count % step
    for attempt in range(240):
        if attempt % 24 == 23:
            count = max(step, count - step)
        size = np.array([kind.length, kind.width]) * rng.uniform(0.85, 1.25) * max(0.65, 0.99**attempt)
        places, headings = lattice(rng, count, arrangement, size)
        group = build(rng, name, ground, arrangement, places, headings, size)
        low, high = np.array(group.hull[:2]) - MARGIN, np.array(group.hull[2:]) + MARGIN
        zone = np.array(zones[rng.integers(len(zones))])
        room = zone[2:] - zone[:2] - (high - low)
        shift = zone[:2] - low + rng.random(2) * room
        x0, y0, x1, y1 = *(low + shift), *(high + shift)
        if (room > 0).all() and not any(x0 < b[2] and b[0] < x1 and y0 < b[3] and b[1] < y1 for b in taken):
            moved = (replace(thing, x=thing.x + shift[0], y=thing.y + shift[1]) for thing in group.things)
            return replace(group, things=tuple(moved))
    return None


def lattice(rng: np.random.Generator, count: int, arrangement: str, size: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return places (count, 2) and headings (count,): side by side in rows, or turned freely in cells of their own."""
    heading = rng.uniform(0, 2 * math.pi, count if arrangement == "scattered" else 1)
    cell, along = 1.25 * size + 0.012, 2 if arrangement == "two rows" else 1
    if arrangement == "scattered":
        cell, along = np.full(2, 1.05 * math.hypot(*size)), math.ceil(math.sqrt(count))
    cells = np.indices((along, -(-count // along))).reshape(2, -1).T
    cos, sin = math.cos(heading[0]), math.sin(heading[0])
    chosen = np.sort(rng.permutation(len(cells))[:count])
    return cells[chosen] * cell @ [[cos, sin], [-sin, cos]], heading + np.zeros(count)


def build(rng: np.random.Generator, name: str, ground: str, arrangement: str, places, headings, size) -> Group:
    """Build a group of equal objects in one of the colours of its class."""
    colour, (length, width) = str(rng.choice(KINDS[name].colours)), map(float, size)
    stands = zip(places, headings, strict=True)
    things = (Thing(name, colour, float(x), float(y), length, width, float(heading)) for (x, y), heading in stands)
    return Group(name, colour, ground, arrangement, tuple(things))


def build_in_place(rng: np.random.Generator, name: str, setting: Setting) -> Group:
    """Build bridges over the river, a roundabout on the crossing, piers at the shore, or vehicles on the road."""
    kind, start, end, level = KINDS[name], setting.start, setting.end, setting.level
    size, count, middle = (kind.length, kind.width), int(rng.integers(1, kind.most + 1)), (start + end) / 2
    if name == "roundabout":
        return build(rng, name, "road", "", [(middle, level)], [0], size)
    if name == "bridge":
        places = [(middle, level), (middle, 1 - level)][:count]
        return build(rng, name, "water", "", places, [0] * count, (end - start + 0.08, kind.width))
    if name == "harbor":
        places = [(start + kind.length / 2, (i + rng.uniform(0.3, 0.7)) / count) for i in range(count)]
        return build(rng, name, "water", "", places, [0] * count, size)
    first = level + KINDS["roundabout"].width / 2 if setting.layout == "crossing" else 0
    slots = int((1 - first) / (1.25 * kind.length))
    slot, lane = np.divmod(np.sort(rng.permutation(2 * slots)[:count]), 2)  # down on the left, up on the right
    places = np.stack([start + (0.27 + 0.46 * lane) * (end - start), first + (slot + 0.5) * (1 - first) / slots], -1)
    return build(rng, name, "road", "", places, math.pi / 2 - math.pi * lane, size)


def turn_group(group: Group, turn: int) -> Group:
    """Return the group after `turn` quarter turns of the whole plan, clockwise on the screen, about its centre."""
    things = []
    for thing in group.things:
        x, y = thing.x, thing.y
        for _ in range(turn):
            x, y = 1 - y, x
        things.append(replace(thing, x=x, y=y, angle=thing.angle + turn * math.pi / 2))
    return replace(group, things=tuple(things))
