"""Plans the demonstration scenes: which objects stand where, so that no two scenes say the same."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from util.demo.scene import (
    CROWDS,
    KINDS,
    LAND,
    LAYOUTS,
    LOOSE,
    MARGIN,
    ROAD_WIDTH,
    SCENES_PER_SETTING,
    SPECIAL_GROUNDS,
    Group,
    Rectangle,
    Scene,
    Setting,
    Thing,
    turned,
)


def plan_scenes(images: int, seed: int) -> list[Scene]:
    """The first `images` scenes of a seed. Classes and combinations that have been rare so far are preferred."""
    settings = plan_settings(np.random.default_rng([seed, 0]))
    used, combinations, scenes = Counter(), Counter(), []
    for index in range(images):
        if index % SCENES_PER_SETTING == 0:
            setting = next(settings)
        rng = np.random.default_rng([seed, 1, index])
        kinds = choose_kinds(rng, setting, used, combinations)
        scenes.append(Scene(index, setting, place_groups(rng, setting, kinds)))
        used.update(kinds)
        combinations[frozenset(kinds)] += 1
    return scenes


def plan_settings(rng: np.random.Generator) -> Iterator[Setting]:
    """Settings without end: every pair of ground and layout once, in a random order, then again."""
    pairs = [("water", "open"), *((ground, layout) for ground in LAND for layout in LAYOUTS)]
    while True:
        for i in rng.permutation(len(pairs)):
            ground, layout = pairs[i]
            middle, level, river = rng.uniform(0.44, 0.56), rng.uniform(0.44, 0.56), rng.uniform(0.28, 0.34)
            start, end = middle - ROAD_WIDTH / 2, middle + ROAD_WIDTH / 2
            if layout == "river":
                start, end, level = middle - river / 2, middle + river / 2, level - 0.35
            elif layout == "shore":
                start, end = middle, 1.0
            trees = ground in ("grass", "bare land", "farmland") and bool(rng.random() < 0.6)
            yield Setting(ground, layout, int(rng.integers(4)), start, end, level, trees, int(rng.integers(2**31)))


def grounds_offered(setting: Setting) -> set[str]:
    """What a class may stand on in this setting."""
    return {setting.ground, *SPECIAL_GROUNDS[setting.layout]}


def choose_kinds(rng: np.random.Generator, setting: Setting, used: Counter, combinations: Counter) -> list[str]:
    """One to three classes that the setting has room for; of eight draws the combination that has been used least."""
    offered = grounds_offered(setting)
    possible = [name for name, kind in KINDS.items() if offered & set(kind.grounds)]
    weights = np.array([(1.0 + used[name]) ** -2 for name in possible])
    draws = []
    for _ in range(8):
        number = min(len(possible), int(rng.choice([1, 2, 3], p=[0.2, 0.6, 0.2])))
        draws.append([str(name) for name in rng.choice(possible, number, replace=False, p=weights / weights.sum())])
    return min(draws, key=lambda kinds: combinations[frozenset(kinds)])


def choose_grounds(rng: np.random.Generator, setting: Setting, kinds: list[str]) -> dict[str, str]:
    """The ground of each class, mostly the first that its kind names; the road takes one class only."""
    offered, chosen = grounds_offered(setting), {}
    for name in sorted(kinds, key=lambda name: len(offered & set(KINDS[name].grounds))):
        taken = {"road"} & set(chosen.values())
        possible = [ground for ground in KINDS[name].grounds if ground in offered - taken]
        chosen[name] = possible[0] if rng.random() < 0.85 else str(rng.choice(possible))
    return chosen


def place_groups(rng: np.random.Generator, setting: Setting, kinds: list[str]) -> tuple[Group, ...]:
    """Give each class a zone of its own on its ground and arrange its objects there; then turn the whole."""
    grounds = choose_grounds(rng, setting, kinds)
    bridges = int(rng.choice([1, 1, 2])) if "bridge" in kinds else 0
    zones = free_zones(setting, bridges, "roundabout" in kinds)
    groups = {}
    for ground, rectangles in zones.items():
        names = [name for name in kinds if ("water" if grounds[name] == "pier" else grounds[name]) == ground]
        for name, zone in zip(names, split_zones(rng, rectangles, len(names)), strict=False):
            if name == "bridge":
                group = build_bridges(rng, setting, bridges)
            elif name == "roundabout":
                group = build_roundabout(rng, setting)
            elif name == "harbor":
                group = build_piers(rng, setting, zone)
            elif ground == "road":
                group = drive(rng, name, zone)
            else:
                group = arrange(rng, name, ground, zone, 1.0 if len(kinds) > 1 else 1.25)
            groups[name] = turn_group(group, setting.turn)
    return tuple(groups[name] for name in kinds)


def free_zones(setting: Setting, bridges: int, roundabout: bool) -> dict[str, list[Rectangle]]:
    """The rectangles where objects may stand, for each surface of the upright plan."""
    start, end, level, half = setting.start, setting.end, setting.level, ROAD_WIDTH / 2
    if setting.layout == "open":
        return {setting.ground: [(0, 0, 1, 1)]}
    if setting.layout == "shore":
        return {setting.ground: [(0, 0, start - 0.03, 1)], "water": [(start + 0.03, 0, 1, 1)]}
    if setting.layout == "road":
        return {setting.ground: [(0, 0, start, 1), (end, 0, 1, 1)], "road": [(start, 0, end, 1)]}
    if setting.layout == "river":
        top, bottom = level + half if bridges else 0, 1 - level - half if bridges == 2 else 1
        sides = [(0, top, start - 0.03, bottom), (end + 0.03, top, 1, bottom)]
        return {
            setting.ground: sides,
            "water": [(start + 0.03, top, end - 0.03, bottom)],
            "river crossing": [(0, 0, 1, 1)],
        }
    reach = KINDS["roundabout"].width / 2 if roundabout else half
    corners = [
        (x0, y0, x1, y1) for x0, x1 in ((0, start), (end, 1)) for y0, y1 in ((0, level - reach), (level + reach, 1))
    ]
    return {setting.ground: corners, "road": [(start, level + reach, end, 1)], "crossing": [(0, 0, 1, 1)]}


def split_zones(rng: np.random.Generator, zones: list[Rectangle], needed: int) -> list[Rectangle]:
    """At least `needed` zones, in a random order: the largest is cut across its longer side until there are enough."""
    zones = list(zones)
    while len(zones) < needed:
        x0, y0, x1, y1 = zones.pop(int(np.argmax([(x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in zones])))
        share = rng.uniform(0.43, 0.57)
        if (x1 - x0) * rng.uniform(0.9, 1.1) > y1 - y0:
            cut = x0 + share * (x1 - x0)
            zones += [(x0, y0, cut, y1), (cut, y0, x1, y1)]
        else:
            cut = y0 + share * (y1 - y0)
            zones += [(x0, y0, x1, cut), (x0, cut, x1, y1)]
    return [zones[i] for i in rng.permutation(len(zones))]


def arrange(rng: np.random.Generator, name: str, ground: str, zone: Rectangle, room: float) -> Group:
    """Objects in a row, in two rows or scattered, somewhere in the zone; fewer where they would be too small."""
    kind = KINDS[name]
    size = np.array([kind.length, kind.width]) * room * rng.uniform(0.85, 1.2)
    count = draw_count(rng, name)
    free = np.array([zone[2] - zone[0], zone[3] - zone[1]]) - 2 * MARGIN
    while True:
        arrangement = draw_arrangement(rng, name, count)
        for heading in rng.uniform(0, 2 * math.pi, 8):
            places, headings = block(rng, count, arrangement, size, heading)
            middle, hull = half_extent(places, headings, size)
            scale = min(1.0, *(free / (2 * hull)))
            if scale > 0.75 or (count == 1 and scale > 0.5):
                centre = np.array(zone[:2]) + MARGIN + free / 2 + rng.uniform(-1, 1, 2) * (free / 2 - scale * hull)
                return build_group(
                    rng, name, ground, arrangement, centre + scale * (places - middle), headings, scale * size
                )
        count = max(1, count - 1)
        size = size * 0.95


def draw_count(rng: np.random.Generator, name: str) -> int:
    """How many objects a group has: any number for classes that crowd, mostly few for the others."""
    numbers = np.arange(1, KINDS[name].most + 1)
    weights = np.ones(len(numbers)) if name in CROWDS else 1 / numbers
    return int(rng.choice(numbers, p=weights / weights.sum()))


def draw_arrangement(rng: np.random.Generator, name: str, count: int) -> str:
    if count < 3:
        return "pair"
    choices = ["row", "row"] + ["two rows"] * (count >= 4 and count % 2 == 0) + ["scattered"] * (name in LOOSE)
    return str(rng.choice(choices))


def block(
    rng: np.random.Generator, count: int, arrangement: str, size: np.ndarray, heading: float
) -> tuple[np.ndarray, np.ndarray]:
    """Centres (count, 2) about their common middle and headings (count,) of objects of `size` on a lattice.

    In rows, objects stand side by side; scattered ones have cells in which they can turn freely, some of them empty.
    """
    if arrangement == "scattered":
        cell = 1.05 * np.array([1, 1]) * math.hypot(*size)
        across = math.ceil(math.sqrt(count))
        along = math.ceil((count + 1) / across)
    else:
        cell, along = 1.25 * size + 0.012, 2 if arrangement == "two rows" else 1
        across = count // along
    lattice = np.stack(np.meshgrid(np.arange(along), np.arange(across), indexing="ij"), axis=-1).reshape(-1, 2)
    chosen = np.sort(rng.permutation(len(lattice))[:count])
    offsets = (lattice[chosen] - lattice.mean(axis=0)) * cell
    turn = np.array([[math.cos(heading), math.sin(heading)], [-math.sin(heading), math.cos(heading)]])
    loose = rng.uniform(0, 2 * math.pi, count) if arrangement == "scattered" else 0.0
    return offsets @ turn, heading + np.zeros(count) + loose


def half_extent(places: np.ndarray, headings: np.ndarray, size: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Middle and half extent, each (x, y), of the hull of objects of one size."""
    cos, sin = np.abs(np.cos(headings)), np.abs(np.sin(headings))
    reach = 0.5 * np.stack([cos * size[0] + sin * size[1], sin * size[0] + cos * size[1]], axis=-1)
    low, high = (places - reach).min(axis=0), (places + reach).max(axis=0)
    return (low + high) / 2, (high - low) / 2


def build_group(
    rng: np.random.Generator,
    name: str,
    ground: str,
    arrangement: str,
    places: np.ndarray,
    headings: np.ndarray,
    size: np.ndarray,
) -> Group:
    """A group of equal objects in one of the colours of its class."""
    colour = str(rng.choice(KINDS[name].colours))
    things = (
        Thing(name, colour, float(x), float(y), float(size[0]), float(size[1]), float(heading))
        for (x, y), heading in zip(places, headings, strict=True)
    )
    return Group(name, colour, ground, arrangement if arrangement in ("row", "two rows") else "", tuple(things))


def build_bridges(rng: np.random.Generator, setting: Setting, count: int) -> Group:
    """Bridges from bank to bank of the upright river."""
    middle, length = (setting.start + setting.end) / 2, setting.end - setting.start + 0.08
    places = np.array([[middle, setting.level], [middle, 1 - setting.level]])[:count]
    return build_group(rng, "bridge", "water", "", places, np.zeros(count), np.array([length, KINDS["bridge"].width]))


def build_roundabout(rng: np.random.Generator, setting: Setting) -> Group:
    kind = KINDS["roundabout"]
    place = np.array([[(setting.start + setting.end) / 2, setting.level]])
    return build_group(rng, "roundabout", "road", "", place, np.zeros(1), np.array([kind.length, kind.width]))


def build_piers(rng: np.random.Generator, setting: Setting, zone: Rectangle) -> Group:
    """One or two piers that stand out from the upright shore into the water."""
    kind, height = KINDS["harbor"], zone[3] - zone[1]
    length = min(kind.length * rng.uniform(0.9, 1.3), 1 - setting.start - MARGIN)
    count = int(rng.integers(1, 3)) if height > 0.6 else 1
    ends = np.linspace(zone[1], zone[3], count + 1)
    width = kind.width * rng.uniform(1.0, 1.3)
    free = (ends[1] - ends[0]) / 2 - MARGIN - width / 2
    levels = (ends[:-1] + ends[1:]) / 2 + rng.uniform(-1, 1, count) * free
    places = np.stack([np.full(count, setting.start + length / 2), levels], axis=-1)
    return build_group(rng, "harbor", "water", "", places, np.zeros(count), np.array([length, width]))


def drive(rng: np.random.Generator, name: str, road: Rectangle) -> Group:
    """Vehicles on the two lanes of an upright road: down on the left, up on the right."""
    x0, y0, x1, y1 = road
    room = y1 - y0 - 2 * MARGIN
    size = np.array([KINDS[name].length, KINDS[name].width]) * rng.uniform(0.9, 1.1)
    size *= min(1.0, room / (1.25 * size[0]))  # a short arm of a crossing
    slots = max(1, int(room / (1.25 * size[0])))
    slot = room / slots
    count = min(draw_count(rng, name), slots)
    cells = np.sort(rng.permutation(2 * slots)[:count])
    lane, row = cells % 2, cells // 2
    shift = rng.uniform(-0.3, 0.3, count) * (slot - size[0])
    places = np.stack([x0 + (0.27 + 0.46 * lane) * (x1 - x0), y0 + MARGIN + (row + 0.5) * slot + shift], axis=-1)
    return build_group(rng, name, "road", "", places, np.where(lane == 1, -math.pi / 2, math.pi / 2), size)


def turn_group(group: Group, turn: int) -> Group:
    """The group after `turn` quarter turns of the whole plan."""
    things = []
    for thing in group.things:
        x, y = turned(np.array([thing.x, thing.y]), turn)
        things.append(replace(thing, x=float(x), y=float(y), angle=thing.angle + turn * math.pi / 2))
    return replace(group, things=tuple(things))
