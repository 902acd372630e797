"""Write five English captions for a planned scene: which objects, how many, their colour, where, on what ground.

Every caption is true of the plan. The words are few, so that 1,000 captions teach each of them.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from util.demo.plan import Group, Scene

CAPTIONS_PER_IMAGE = 5
NOUNS = {  # the other classes are called by their names
    "storage-tank": "storage tank",
    "baseball-diamond": "baseball field",
    "tennis-court": "tennis court",
    "basketball-court": "basketball court",
    "ground-track-field": "running track",
    "harbor": "pier",
    "large-vehicle": "truck",
    "small-vehicle": "car",
    "soccer-ball-field": "soccer field",
    "swimming-pool": "swimming pool",
}
NUMBERS = ("no", "a", "two", "three", "four", "five", "six")  # from seven on: many
COLOURLESS = ("roundabout", "baseball-diamond")  # naming one colour of theirs would mislead
MOVING = ("plane", "ship", "large-vehicle", "small-vehicle", "helicopter")
STANDING = {"bridge": "across the river", "roundabout": "at the crossroads", "harbor": "in the sea"}
SURROUNDINGS = {"road": "a road", "crossing": "a crossroads", "river": "a river", "shore": "the sea"}
OPPOSITE = {"to the left of", "to the right of"}, {"above", "below"}


def write_captions(scene: Scene, rng: np.random.Generator) -> list[str]:
    captions: list[str] = []
    while len(set(captions)) < CAPTIONS_PER_IMAGE:
        captions = [f"{words[0].upper()}{words[1:]} ." for words in describe(scene, rng)]
    return captions


def describe(scene: Scene, rng: np.random.Generator) -> Iterator[str]:
    """Describe all objects, two in relation, the main ones alone, two side by side, and the setting."""

    def called(group: Group, colour: float = 0.7) -> str:
        return name(group, group.kind not in COLOURLESS and rng.random() < colour)

    main, last, setting = scene.groups[0], scene.groups[-1], scene.setting
    every = listed([called(group) for group in scene.groups])
    if main is last:
        yield f"there {be(main)} {every} {standing(main, rng)}"
        yield f"{called(main)} {be(main)} {pick(rng, '', 'located ')}{position(main)}"
    else:
        forms = f"there {be(main)} {{}}", "{} can be seen", "we can see {}", "the image shows {}"
        yield pick(rng, *forms).format(every)
        middle = between(scene) if rng.random() < 0.7 else None
        if middle:
            around = [called(group) for group in scene.groups if group is not middle]
            yield f"{called(middle)} {be(middle)} between {listed(around)}"
        else:
            one, other = scene.groups[:2] if rng.random() < 0.5 else scene.groups[1::-1]
            yield f"{called(one)} {be(one)} {relation(one, other)} {called(other)}"

    in_rows = arranged(main) if rng.random() < 0.7 else ""
    yield f"{called(main)} {be(main)}{in_rows} {pick(rng, standing(main, rng), position(main))}"

    if main is last:
        yield f"{called(main)}{arranged(main)} {pick(rng, 'can be seen', 'can be found')} {position(main)}"
    else:
        beside = pick(rng, "near", "beside", "next to")
        yield pick(
            rng,
            f"{called(last)}{arranged(last)} {beside} {called(main)}",
            f"{called(main)} {be(main)} {beside} {called(last)}",
            f"{called(last)} {be(last)} {position(last)} and {called(main)} {be(main)} {position(main)}",
        )

    two = scene.groups[:2]
    names, are = listed([called(group, 0.4) for group in two]), be(*two)
    around = "many houses" if setting.ground == "residential" else "green trees" if setting.trees else ""
    if setting.ground == "water":
        yield f"{names} {are} surrounded by water"
    elif around and all(group.ground == setting.ground for group in two) and rng.random() < 0.6:
        yield f"{names} {are} surrounded by {around}"
    elif setting.layout in SURROUNDINGS:
        yield f"{names} {are} {pick(rng, 'near', 'beside', 'located near')} {SURROUNDINGS[setting.layout]}"
    else:
        yield f"{names} {pick(rng, 'can be seen', 'can be found')} {on(setting.ground)}"


def pick(rng: np.random.Generator, *choices: str) -> str:
    return choices[int(rng.integers(len(choices)))]


def name(group: Group, coloured: bool = False) -> str:
    count = len(group.things)
    number = NUMBERS[count] if count < len(NUMBERS) else "many"
    return f"{number} {f'{group.colour} ' * coloured}{NOUNS.get(group.kind, group.kind)}{'s' * (count > 1)}"


def be(*groups: Group) -> str:
    return "are" if len(groups) > 1 or len(groups[0].things) > 1 else "is"


def listed(names: list[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def on(ground: str) -> str:
    inside = {"farmland": "in the farmland", "residential": "in the residential area"}
    return inside.get(ground, f"on the {ground}")


def standing(group: Group, rng: np.random.Generator) -> str:
    if group.ground == "water" and group.kind in ("plane", "helicopter"):
        return "over the water"
    parked = "parked " * (group.kind in MOVING and group.ground != "water" and rng.random() < 0.5)
    return STANDING.get(group.kind, parked + on(group.ground))


def arranged(group: Group) -> str:
    return {"row": " in a row", "two rows": " in two rows"}.get(group.arrangement, "") if len(group.things) > 2 else ""


def position(group: Group) -> str:
    """Return the place of the group's middle, by thirds of the image: "on the left", "in the top right corner"."""
    x, y = group.centre
    across = "left" if x < 0.36 else "right" if x > 0.64 else ""
    down = "top" if y < 0.36 else "bottom" if y > 0.64 else ""
    if across and down:
        return f"in the {down} {across} corner"
    return f"on the {across}" if across else f"at the {down}" if down else "in the middle"


def relation(first: Group, second: Group) -> str:
    """Return the direction in which the hull of the first group is apart from that of the second, else "near"."""
    (ax0, ay0, ax1, ay1), (bx0, by0, bx1, by1) = first.hull, second.hull
    gaps = {"to the left of": bx0 - ax1, "to the right of": ax0 - bx1, "above": by0 - ay1, "below": ay0 - by1}
    best = max(gaps, key=lambda words: gaps[words])
    return best if gaps[best] > 0 else "near"


def between(scene: Scene) -> Group | None:
    """Return the one of three groups whose neighbours lie on opposite sides of it, if there is one."""
    for group in scene.groups if len(scene.groups) == 3 else ():
        if {relation(group, other) for other in scene.groups if other is not group} in OPPOSITE:
            return group
    return None
