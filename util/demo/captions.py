"""Five English captions for a planned scene: which objects, how many, their colour, where, beside what, on what ground.

Every caption is true of the plan. The words are few, so that 1,000 captions teach each of them.
"""

from __future__ import annotations

import numpy as np

from util.demo.scene import Group, Scene

CAPTIONS_PER_IMAGE = 5
NOUNS = {
    "plane": ("plane", "planes"),
    "ship": ("ship", "ships"),
    "storage-tank": ("storage tank", "storage tanks"),
    "baseball-diamond": ("baseball field", "baseball fields"),
    "tennis-court": ("tennis court", "tennis courts"),
    "basketball-court": ("basketball court", "basketball courts"),
    "ground-track-field": ("running track", "running tracks"),
    "harbor": ("pier", "piers"),
    "bridge": ("bridge", "bridges"),
    "large-vehicle": ("truck", "trucks"),
    "small-vehicle": ("car", "cars"),
    "helicopter": ("helicopter", "helicopters"),
    "roundabout": ("roundabout", "roundabouts"),
    "soccer-ball-field": ("soccer field", "soccer fields"),
    "swimming-pool": ("swimming pool", "swimming pools"),
}
NUMBERS = ("no", "a", "two", "three", "four", "five", "six")  # from seven on: many
COLOURLESS = ("roundabout", "baseball-diamond")  # naming one colour of theirs would mislead
MOVING = ("plane", "ship", "large-vehicle", "small-vehicle", "helicopter")
GROUND_PHRASES = {
    "grass": "on the grass",
    "bare land": "on the bare land",
    "concrete": "on the concrete",
    "farmland": "in the farmland",
    "residential": "in the residential area",
    "water": "on the water",
    "road": "on the road",
}
SETTING_PHRASES = {"road": "a road", "crossing": "a crossroads", "river": "a river", "shore": "the sea"}


def write_captions(scene: Scene, rng: np.random.Generator) -> list[str]:
    """Five different captions (one line each): all objects; two in relation; the main ones alone; two; the setting."""
    captions: list[str] = []
    kinds = (describe_all, describe_relation, describe_main, describe_pair, describe_setting)
    for describe in kinds:
        caption = finish(describe(scene, rng))
        for _ in range(20):
            if caption not in captions:
                break
            caption = finish(describe(scene, rng))
        captions.append(caption)
    return captions


def finish(words: str) -> str:
    return words[0].upper() + words[1:] + " ."


def pick(rng: np.random.Generator, *choices: str) -> str:
    return choices[int(rng.integers(len(choices)))]


def name(group: Group, rng: np.random.Generator, colour: float = 0.7) -> str:
    """The group as a noun phrase, "two white planes"; `colour` is the chance that its colour is named."""
    count = len(group.things)
    number = NUMBERS[count] if count < len(NUMBERS) else "many"
    noun = NOUNS[group.kind][count > 1]
    with_colour = group.kind not in COLOURLESS and rng.random() < colour
    return f"{number} {group.colour} {noun}" if with_colour else f"{number} {noun}"


def be(group: Group) -> str:
    return "are" if len(group.things) > 1 else "is"


def standing(group: Group, rng: np.random.Generator) -> str:
    """The ground of a group, "parked on the grass"; empty where the class says it already."""
    if group.kind in ("bridge", "roundabout"):
        return "across the river" if group.kind == "bridge" else "at the crossroads"
    if group.kind == "harbor":
        return "in the sea"
    if group.ground == "water" and group.kind in ("plane", "helicopter"):
        return "over the water"
    phrase = GROUND_PHRASES[group.ground]
    return f"parked {phrase}" if group.kind in MOVING and group.ground != "water" and rng.random() < 0.5 else phrase


def arranged(group: Group) -> str:
    return {"row": " in a row", "two rows": " in two rows", "": ""}[group.arrangement]


def position(group: Group) -> str:
    """Where the middle of the group lies, by thirds of the image: "on the left", "in the top right corner"."""
    x, y = group.centre
    across = "left" if x < 0.36 else "right" if x > 0.64 else ""
    down = "top" if y < 0.36 else "bottom" if y > 0.64 else ""
    if across and down:
        return f"in the {down} {across} corner"
    if across:
        return f"on the {across}"
    return f"at the {down}" if down else "in the middle"


def relation(first: Group, second: Group) -> str:
    """How the first group lies to the second: the direction in which their hulls are apart, else "near"."""
    (ax0, ay0, ax1, ay1), (bx0, by0, bx1, by1) = first.hull, second.hull
    gaps = {
        "to the left of": bx0 - ax1,
        "to the right of": ax0 - bx1,
        "above": by0 - ay1,
        "below": ay0 - by1,
    }
    best = max(gaps, key=lambda words: gaps[words])
    return best if gaps[best] > 0 else "near"


def listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]


def describe_all(scene: Scene, rng: np.random.Generator) -> str:
    """Every group of the scene."""
    names = [name(group, rng) for group in scene.groups]
    verb = be(scene.groups[0])
    if len(names) == 1:
        return f"there {verb} {names[0]} {standing(scene.groups[0], rng)}"
    return pick(
        rng,
        f"there {verb} {listed(names)}",
        f"{listed(names)} can be seen",
        f"we can see {listed(names)}",
        f"the image shows {listed(names)}",
    )


def describe_relation(scene: Scene, rng: np.random.Generator) -> str:
    """Two groups and how they lie to each other; one alone, its place in the image."""
    if len(scene.groups) == 1:
        group = scene.groups[0]
        return f"{name(group, rng)} {be(group)} {pick(rng, '', 'located ')}{position(group)}"
    first, second = scene.groups[:2] if rng.random() < 0.5 else scene.groups[1::-1]
    middle = middle_group(scene)
    if middle and rng.random() < 0.7:
        others = [group for group in scene.groups if group is not middle]
        return f"{name(middle, rng)} {be(middle)} between {listed([name(group, rng) for group in others])}"
    return f"{name(first, rng)} {be(first)} {relation(first, second)} {name(second, rng)}"


def middle_group(scene: Scene) -> Group | None:
    """Of three groups, one whose two neighbours lie on opposite sides of it."""
    opposite = ({"to the left of", "to the right of"}, {"above", "below"})
    for group in scene.groups if len(scene.groups) == 3 else ():
        if {relation(group, other) for other in scene.groups if other is not group} in opposite:
            return group
    return None


def describe_main(scene: Scene, rng: np.random.Generator) -> str:
    """The main group: its arrangement, its place or its ground."""
    group = scene.groups[0]
    subject = f"{name(group, rng)} {be(group)}"
    if group.arrangement and rng.random() < 0.7:
        return f"{subject}{arranged(group)} {pick(rng, standing(group, rng), position(group))}"
    return f"{subject} {pick(rng, standing(group, rng), position(group))}"


def describe_pair(scene: Scene, rng: np.random.Generator) -> str:
    """The last group, next to the main one."""
    last, main = scene.groups[-1], scene.groups[0]
    if last is main:
        return f"{name(main, rng)}{arranged(main)} {pick(rng, 'can be seen', 'can be found')} {position(main)}"
    beside = pick(rng, "near", "beside", "next to")
    return pick(
        rng,
        f"{name(last, rng)}{arranged(last)} {beside} {name(main, rng)}",
        f"{name(main, rng)} {be(main)} {beside} {name(last, rng)}",
        f"{name(last, rng)} {be(last)} {position(last)} and {name(main, rng)} {be(main)} {position(main)}",
    )


def describe_setting(scene: Scene, rng: np.random.Generator) -> str:
    """Some groups and what lies around them: houses, trees, a river, the sea, a road."""
    setting = scene.setting
    names = [name(group, rng, colour=0.4) for group in scene.groups[:2]]
    verb = "are" if len(names) > 1 else be(scene.groups[0])
    around = "many houses" if setting.ground == "residential" else "green trees" if setting.trees else ""
    on_land = all(group.ground == setting.ground for group in scene.groups[:2])
    if setting.ground == "water":
        return f"{listed(names)} {verb} surrounded by water"
    if around and on_land and rng.random() < 0.6:
        return f"{listed(names)} {verb} surrounded by {around}"
    if setting.layout in SETTING_PHRASES:
        return f"{listed(names)} {verb} {pick(rng, 'near', 'beside', 'located near')} {SETTING_PHRASES[setting.layout]}"
    return f"{listed(names)} {pick(rng, 'can be seen', 'can be found')} {GROUND_PHRASES[setting.ground]}"
