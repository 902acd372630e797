"""Write five English captions for a planned scene: which objects, how many, their colour, where, on what ground.

Every caption is true of the plan. The words are few, so that 1,000 captions teach each of them.
"""

from __future__ import annotations

import numpy as np

from util.demo.plan import STRIPS, Group, Scene
from util.demo.things import KINDS

CAPTIONS_PER_IMAGE = 5
NUMBERS = ("no", "a", "two", "three", "four", "five", "six")  # from seven on: many
PARKED = ("plane", "large-vehicle", "small-vehicle", "helicopter")
PLACES = {  # of a class, on the strip of a layout, on a ground
    "bridge": "across the river",
    "roundabout": "at the crossroads",
    "harbor": "in the sea",
    "road": "on the road",
    "river": "on the river",
    "shore": "on the sea",
    "farmland": "in the farmland",
    "residential": "in the residential area",
}
BACKGROUND = {"road": "a road", "crossing": "a crossroads", "river": "a river", "shore": "the sea"}


def write_captions(scene: Scene, rng: np.random.Generator) -> list[str]:
    """Describe all objects, two in relation, the main ones, two and their places, and all with the background."""
    main, second = scene.groups[0], scene.groups[min(1, len(scene.groups) - 1)]
    one, other = (main, second) if rng.random() < 0.5 else (second, main)
    background = [BACKGROUND.get(scene.setting.layout), scene.setting.ground.replace("residential", "houses")]

    def every() -> list[str]:
        return [name(group, rng) for group in scene.groups]

    captions = [
        f"there {be(main)} {listed(every())}",
        f"{name(one, rng)} {be(one)} {relation(one, other)} {name(other, rng)}",
        f"{name(main, rng)} {be(main)} {standing(main, scene, rng)}",
        f"{name(main, rng)} {be(main)} {position(main)} and {name(second, rng)} {be(second)} {position(second)}",
        f"{pick(rng, 'the image shows', 'we can see')} {listed([*every(), *filter(None, background)])}",
    ]
    if main is second:
        captions[1] = f"{name(main, rng)} {be(main)} located {position(main)}"
        captions[3] = f"{name(main, rng)} can be seen {position(main)}"
    return [f"{words[0].upper()}{words[1:]} ." for words in captions]


def pick(rng: np.random.Generator, *choices: str) -> str:
    return choices[int(rng.integers(len(choices)))]


def name(group: Group, rng: np.random.Generator) -> str:
    """Return number, mostly a colour where the class has several, and noun: "two red cars"."""
    kind, count = KINDS[group.kind], len(group.things)
    number = NUMBERS[count] if count < len(NUMBERS) else "many"
    colour = f"{group.colour} " if len(kind.colours) > 1 and rng.random() < 0.7 else ""
    return f"{number} {colour}{kind.noun}{'s' * (count > 1)}"


def be(group: Group) -> str:
    return "are" if len(group.things) > 1 else "is"


def listed(names: list[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def standing(group: Group, scene: Scene, rng: np.random.Generator) -> str:
    """Return how and where a group stands: "parked in a row on the concrete"."""
    ground, layout = scene.setting.ground, scene.setting.layout
    place = PLACES.get(ground, f"on the {ground}")
    if group.kind in STRIPS[layout]:
        place = PLACES.get(group.kind) or PLACES[layout]
    parked = "parked" if group.kind in PARKED and rng.random() < 0.5 else ""
    return " ".join(filter(None, [parked, group.arrangement, place]))


def position(group: Group) -> str:
    """Return the place of the group's middle, by thirds of the image: "on the left", "in the top right corner"."""
    x, y = group.hull.mean(axis=0)
    across = "left" if x < 0.36 else "right" if x > 0.64 else ""
    down = "top" if y < 0.36 else "bottom" if y > 0.64 else ""
    if across and down:
        return f"in the {down} {across} corner"
    return f"on the {across}" if across else f"at the {down}" if down else "in the middle"


def relation(first: Group, second: Group) -> str:
    """Return the direction in which the hull of the first group is apart from that of the second."""
    gaps = [*(second.hull[0] - first.hull[1]), *(first.hull[0] - second.hull[1])]
    return ("to the left of", "above", "to the right of", "below")[np.argmax(gaps)]
