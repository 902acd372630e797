"""Plan demonstration scenes: what stands where, as data. Drawing and captions follow from the plan alone.

Lengths are shares of the image's side, x to the right and y down, so that a plan can be drawn at any size. Four
consecutive scenes share one setting and differ only in their objects: the background alone cannot tell them apart.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import count, product

import numpy as np

from util.demo.things import CLASSES, GROUNDS, KINDS

STRIPS = {  # layout -> what stands on the strip through its middle
    "open": (),
    "road": ("small-vehicle", "large-vehicle"),
    "crossing": ("roundabout",),
    "river": ("bridge", "ship"),
    "shore": ("harbor", "ship"),
}
LAND = [name for name in CLASSES if name not in ("ship", "harbor", "bridge", "roundabout")]
SCENES_PER_SETTING = 4
MARGIN, BANK = 0.03, 0.04
LEVEL = 0.2  # height of the road over a crossing or a bridge; what stands beside the strip stands below this road


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

    @property
    def flat(self) -> bool:
        return KINDS[self.kind].flat

    def points(self, unit: list[tuple[float, float]]) -> np.ndarray:
        """Return where points of a box from (-1, -1) to (1, 1) lie, of which the first axis is the heading: (n, 2)."""
        cos, sin = math.cos(self.angle), math.sin(self.angle)
        along, across = np.array(unit, float).T * [[self.length / 2], [self.width / 2]]
        return np.stack([self.x + along * cos - across * sin, self.y + along * sin + across * cos], axis=1)

    def corners(self) -> np.ndarray:
        """Return the corners (4, 2) of the oriented box, clockwise on the screen."""
        return self.points([(-1, -1), (1, -1), (1, 1), (-1, 1)])

    def near(self, other: Thing) -> bool:
        """Return whether the middle of the other lies in the oriented box or close to it."""
        along, across = np.abs(rotated(np.array([other.x - self.x, other.y - self.y]), -self.angle))
        return along < (self.length + other.length) / 2 and across < (self.width + other.length) / 2

    def turned(self, quarters: int) -> Thing:
        """Return the thing after quarter turns of the whole picture, clockwise."""
        x, y = self.x, self.y
        for _ in range(quarters):
            x, y = 1 - y, x
        return replace(self, x=x, y=y, angle=self.angle + quarters * math.pi / 2)


@dataclass(frozen=True)
class Group:
    """Hold objects of one class and colour that stand together, "in a row", "in two rows" or otherwise."""

    kind: str
    colour: str
    arrangement: str
    things: list[Thing]

    @property
    def hull(self) -> np.ndarray:
        """Return the corners (2, 2) of the upright box around all objects: least x and y, largest x and y."""
        corners = np.concatenate([thing.corners() for thing in self.things])
        return np.stack([corners.min(axis=0), corners.max(axis=0)])


@dataclass(frozen=True)
class Setting:
    """Hold a background, planned with its strip upright from `start` to `end`, then turned clockwise by quarters."""

    ground: str
    layout: str
    start: float
    end: float
    turn: int
    texture: int  # the seed of what decorates it


@dataclass(frozen=True)
class Scene:
    """Hold a setting and one to three groups of different classes, the main one first."""

    index: int
    setting: Setting
    groups: list[Group]

    @property
    def name(self) -> str:
        return f"demo_{self.index:04d}"

    @property
    def things(self) -> list[Thing]:
        return [thing for group in self.groups for thing in group.things]

    def strips(self) -> list[Thing]:
        """Return roads and water, in the order of drawing."""
        setting, strips = self.setting, []
        middle, width = (setting.start + setting.end) / 2, setting.end - setting.start
        if setting.layout == "crossing" or any(group.kind == "bridge" for group in self.groups):
            strips.append(make("road", 0.5, LEVEL))
        if setting.layout in ("road", "crossing"):
            strips.append(make("road", middle, 0.5, math.pi / 2))
        elif setting.layout in ("river", "shore"):
            strips.append(replace(make("water", middle, 0.5, math.pi / 2), width=width / 0.85))
        return [thing.turned(setting.turn) for thing in strips]

    def decoration(self) -> list[Thing]:
        """Return fields or slabs, which lie under everything; or houses or trees, where nothing else stands."""
        name = GROUNDS[self.setting.ground][1]
        if name is None:
            return []
        kind, rng = KINDS[name], np.random.default_rng(self.setting.texture)
        angle, spread = rng.uniform(0, math.pi), 1 if kind.flat else 1.5
        places = 0.5 + lattice(100, 10, np.full(2, spread * kind.length), angle)
        places += (spread - 1) * kind.length * rng.uniform(-0.8, 0.8, places.shape)
        found = []
        for x, y in places:
            found.append(make(name, x, y, angle + math.pi / 2 * rng.integers(4), str(rng.choice(kind.colours))))
        taken = [] if kind.flat else [*self.strips(), *self.things]
        return [thing for thing in found if not any(other.near(thing) for other in taken)]

    def annotation(self, size: int, corner: tuple[int, int] = (0, 0)) -> str:
        """Return DOTA text: `x1 y1 x2 y2 x3 y3 x4 y4 class difficulty`, one object a line, clockwise, in pixels.

        corner: x, y of the scene's own corner in a larger picture, in units of its side.
        """
        lines = []
        for thing in self.things:
            pixels = " ".join(f"{value:.2f}" for value in (size * (thing.corners() + corner)).ravel())
            lines.append(f"{pixels} {thing.kind} 0\n")
        return "".join(lines)


def make(kind: str, x: float, y: float, angle: float = 0, colour: str = "black", scale: float = 1) -> Thing:
    """Return a thing of the usual size of its kind, or `scale` times as large."""
    length, width = KINDS[kind].length, KINDS[kind].width
    return Thing(kind, colour, float(x), float(y), float(scale * length), float(scale * width), float(angle))


def plan_scenes(images: int, seed: int) -> list[Scene]:
    """Plan the first `images` scenes of a seed: every pair of ground and layout in a random order, then again."""
    pairs = list(product(GROUNDS, STRIPS))
    order = np.random.default_rng([seed, 0]).permutation(len(pairs))
    scenes = []
    while len(scenes) < images:
        at = len(scenes) // SCENES_PER_SETTING
        rng = np.random.default_rng([seed, 1, at])
        setting = plan_setting(rng, *pairs[order[at % len(pairs)]])
        shown = set()
        while len(shown) < SCENES_PER_SETTING:
            groups = plan_groups(rng, setting)
            sight = frozenset((group.kind, len(group.things)) for group in groups)
            if sight not in shown:
                shown.add(sight)
                scenes.append(Scene(len(scenes), setting, groups))
    return scenes[:images]


def plan_setting(rng: np.random.Generator, ground: str, layout: str) -> Setting:
    middle = rng.uniform(0.46, 0.54)
    half = {"open": 0, "river": rng.uniform(0.13, 0.16)}.get(layout, KINDS["road"].width / 2)
    start, end = (middle, middle + 0.7) if layout == "shore" else (middle - half, middle + half)
    return Setting(ground, layout, start, end, int(rng.integers(4)), int(rng.integers(2**31)))


def plan_groups(rng: np.random.Generator, setting: Setting) -> list[Group]:
    """Plan a group on the strip, if there is one, and up to two on the land beside it, each of another class."""
    top = LEVEL + 0.18 if setting.layout in ("river", "crossing") else 0
    zones = [[(0, top), (setting.start - BANK, 1)], [(setting.end + BANK, top), (1, 1)]]
    zones = [zones[i] for i in rng.permutation(1 if setting.layout == "shore" else 2)]
    groups, on_strip = [], STRIPS[setting.layout]
    if on_strip:
        groups.append(place_on_strip(rng, str(rng.choice(on_strip)), setting))
        zones = zones[: rng.choice(3, p=[0.15, 0.55, 0.3])]
    elif rng.random() < 0.2:
        zones = [[(0, 0), (1, 1)]]
    kinds = rng.permutation([name for name in LAND if name not in on_strip]).tolist()
    groups += [arrange(rng, kind, zone) for kind, zone in zip(kinds, zones, strict=False)]
    groups = [groups[i] for i in rng.permutation(len(groups))]
    return [replace(group, things=[thing.turned(setting.turn) for thing in group.things]) for group in groups]


def place_on_strip(rng: np.random.Generator, name: str, setting: Setting) -> Group:
    """Place ships on the water, piers at the shore, vehicles on the road, a roundabout or a bridge at its place."""
    kind, start, end = KINDS[name], setting.start, setting.end
    if name == "ship":
        return arrange(rng, name, [(start + BANK, 0), (min(end, 1) - BANK, 1)])
    number, colour = int(rng.integers(1, kind.most + 1)), str(rng.choice(kind.colours))
    places = [((start + end) / 2, LEVEL, 0)]
    if name == "harbor":
        places = [(start + kind.length / 2, (i + rng.uniform(0.3, 0.7)) / number, 0) for i in range(number)]
    elif setting.layout == "road":  # down on the left, up on the right
        slots = int(1 / (1.25 * kind.length))
        slot, lane = np.divmod(rng.permutation(2 * slots)[:number], 2)
        x = start + (0.27 + 0.46 * lane) * (end - start)
        places = np.stack([x, (slot + 0.5) / slots, math.pi / 2 - math.pi * lane], axis=1)
    return Group(name, colour, "", [make(name, *place, colour) for place in places])


def arrange(rng: np.random.Generator, name: str, zone: list[tuple[float, float]]) -> Group:
    """Arrange objects in rows or scattered in a zone; fewer and smaller ones as long as there is no room."""
    kind, low, high = KINDS[name], np.array(zone[0]) + MARGIN, np.array(zone[1]) - MARGIN
    wanted, colour = int(rng.integers(1, kind.most + 1)), str(rng.choice(kind.colours))
    scattered, two_rows = not kind.flat and rng.random() < 0.3, rng.random() < 0.5
    for attempt in count():
        number, scale = max(1, wanted - attempt // 20), rng.uniform(0.85, 1.2) * 0.995**attempt
        angle, size = rng.uniform(0, 2 * math.pi), scale * np.array([kind.length, kind.width])
        along, cell, headings = 1, 1.25 * size + 0.012, [angle] * number
        arrangement = "in a row" if number > 2 else ""
        if scattered:
            along, cell, arrangement = math.ceil(math.sqrt(number)), np.full(2, 1.05 * math.hypot(*size)), ""
            headings = rng.uniform(0, 2 * math.pi, number)
        elif two_rows and number > 3:
            along, arrangement = 2, "in two rows"
        places = lattice(number, along, cell, angle)
        things = [make(name, *place, heading, colour, scale) for place, heading in zip(places, headings, strict=True)]
        group = Group(name, colour, arrangement, things)
        room = high - low - np.ptp(group.hull, axis=0)
        if (room > 0).all():
            x, y = (low - group.hull[0] + rng.random(2) * room).tolist()
            return replace(group, things=[replace(thing, x=thing.x + x, y=thing.y + y) for thing in things])


def lattice(number: int, along: int, cell: np.ndarray, angle: float) -> np.ndarray:
    """Return the first `number` centres (number, 2) of a grid about the origin, `along` cells long at that angle."""
    cells = np.stack([np.arange(number) % along, np.arange(number) // along], axis=1)
    return rotated((cells - cells.max(axis=0) / 2) * cell, angle)


def rotated(points: np.ndarray, angle: float) -> np.ndarray:
    """Return points (..., 2) turned about the origin, from x towards y."""
    cos, sin = math.cos(angle), math.sin(angle)
    return points @ [[cos, sin], [-sin, cos]]
