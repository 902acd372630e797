"""Scenes of the demonstration data: exact boxes, pictures that show them, captions that are true of them."""

from __future__ import annotations

import math
import re
from collections import Counter

import numpy as np
import pytest
from PIL import Image
from test_make_demo import DOTA, SIZE, read_boxes

import vocab
from util.demo.captions import NOUNS, write_captions
from util.demo.draw import SHADOW, draw_scene, paste
from util.demo.plan import KINDS, SCENES_PER_SETTING, Scene, Thing, plan_scenes, turned
from util.demo.things import COLOURS, STROKES
from util.make_demo import annotation


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    """Plan the default set."""
    return plan_scenes(200, 0)


def test_classes_are_those_of_dota() -> None:
    assert list(KINDS) == DOTA and set(STROKES) == {*DOTA, "house", "tree"}


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_boxes_lie_inside_and_are_rectangles(seed: int) -> None:
    """Every box is a rectangle within the image, at least three pixels wide at 128."""
    for scene in plan_scenes(60, seed):
        boxes = read_boxes(annotation(scene, 128))
        assert 1 <= len(boxes) <= 20
        for kind, corners in boxes:
            assert kind in DOTA
            assert corners.min() >= 0 and corners.max() <= 128
            sides = np.roll(corners, -1, axis=0) - corners
            assert np.abs(sides[0] + sides[2]).max() <= 0.021 and abs(sides[0] @ sides[1]) < 1
            assert min(math.hypot(*sides[0]), math.hypot(*sides[1])) > 3


def test_boxes_of_one_image_do_not_overlap(scenes: list[Scene]) -> None:
    """No centre lies in another object's box."""
    for scene in scenes:
        for thing in scene.things:
            cos, sin = math.cos(thing.angle), math.sin(thing.angle)
            for other in scene.things:
                if other is not thing:
                    step = np.array([other.x - thing.x, other.y - thing.y])
                    inside = abs(step @ (cos, sin)) < thing.length / 2 and abs(step @ (-sin, cos)) < thing.width / 2
                    assert not inside, f"{scene.name}: {thing.kind} and {other.kind}"


@pytest.mark.parametrize("kind", DOTA)
@pytest.mark.parametrize("angle", [0.0, 0.6, 2.5])
def test_drawing_fills_its_box(kind: str, angle: float) -> None:
    """Check that what is drawn reaches every side of the oriented box to a pixel, and leaves it nowhere."""
    picture = Image.new("RGB", (1024, 1024), SHADOW)  # shadows, which do leave the box, are invisible here
    thing = Thing(
        kind, KINDS[kind].colours[0], 0.5, 0.5, 2 * KINDS[kind].length / 1.2, 2 * KINDS[kind].width / 1.2, angle
    )
    paste(picture, thing)
    drawn = np.abs(np.asarray(picture.reduce(4)).astype(int) - np.array(SHADOW)).max(axis=2) > 8
    y, x = np.nonzero(drawn)
    x, y = (x + 0.5) / 256 - 0.5, (y + 0.5) / 256 - 0.5
    along, across = x * math.cos(angle) + y * math.sin(angle), y * math.cos(angle) - x * math.sin(angle)
    for extent, side in ((along, thing.length), (across, thing.width)):
        assert extent.min() == pytest.approx(-side / 2, abs=2.0 / 256)
        assert extent.max() == pytest.approx(side / 2, abs=2.0 / 256)


def test_every_class_occurs(scenes: list[Scene]) -> None:
    """The local branch can learn each class: at least ten of the train images show it, and some test image does."""
    train = Counter(group.kind for scene in scenes if scene.index % 5 != 4 for group in scene.groups)
    test = Counter(group.kind for scene in scenes if scene.index % 5 == 4 for group in scene.groups)
    assert min(train[kind] for kind in DOTA) >= 10
    assert min(test[kind] for kind in DOTA) >= 1


def test_scenes_of_one_setting_differ_in_their_objects(scenes: list[Scene]) -> None:
    """The background cannot tell images apart: four share it, pixel for pixel away from the objects."""
    for start in range(0, 40, SCENES_PER_SETTING):
        four = scenes[start : start + SCENES_PER_SETTING]
        assert len({scene.setting for scene in four}) == 1
        assert len({frozenset((group.kind, len(group.things)) for group in scene.groups) for scene in four}) == 4
    first, second = scenes[0], scenes[1]
    same = (np.asarray(draw_scene(first, SIZE)) == np.asarray(draw_scene(second, SIZE))).all(axis=2)
    assert 0.3 < same.mean() < 0.99


@pytest.mark.parametrize("index", [0, 5, 50, 77])
def test_any_size_shows_the_same_scene(scenes: list[Scene], index: int) -> None:
    large, small = (np.asarray(draw_scene(scenes[index], size)).astype(int) for size in (256, 64))
    assert large.shape == (256, 256, 3) and small.shape == (64, 64, 3)
    reduced = large.reshape(64, 4, 64, 4, 3).mean(axis=(1, 3))
    assert np.abs(reduced - small).mean() < 3
    ratio = read_corners(scenes[index], 256) / read_corners(scenes[index], 64)
    assert ratio == pytest.approx(4, rel=0.01)


def read_corners(scene: Scene, size: int) -> np.ndarray:
    return np.array([corners for _, corners in read_boxes(annotation(scene, size))])


def test_other_sizes_than_powers_of_two(scenes: list[Scene]) -> None:
    assert draw_scene(scenes[0], 100).size == (100, 100)


# --- captions -----------------------------------------------------------------------------------------------------

NUMBERS = {"a": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6}
WORDS = {kind: NOUNS.get(kind, kind) for kind in DOTA}
KIND_OF = {word + end: kind for kind, word in WORDS.items() for end in ("", "s")}
NOUN = "|".join(sorted(KIND_OF, key=len, reverse=True))
MENTION = rf"\b(a|two|three|four|five|six|many) (?:({'|'.join(COLOURS)}) )?({NOUN})\b"
PLACES = {
    "on the left": (-1, 0),
    "on the right": (1, 0),
    "at the top": (0, -1),
    "at the bottom": (0, 1),
    "in the middle": (0, 0),
    "in the top left corner": (-1, -1),
    "in the top right corner": (1, -1),
    "in the bottom left corner": (-1, 1),
    "in the bottom right corner": (1, 1),
}


def all_captions(seed: int, images: int = 100) -> list[tuple[Scene, dict[str, np.ndarray], str]]:
    """Scene, corners (n, 4, 2) of each class as the box file has them (unit side), and one caption in lower case."""
    rows = []
    for scene in plan_scenes(images, seed):
        boxes: dict[str, list[np.ndarray]] = {}
        for kind, corners in read_boxes(annotation(scene, 1000)):
            boxes.setdefault(kind, []).append(corners / 1000)
        for caption in write_captions(scene, np.random.default_rng([seed, 2, scene.index])):
            rows.append((scene, {kind: np.array(corners) for kind, corners in boxes.items()}, caption.lower()))
    return rows


@pytest.fixture(scope="module", params=[0, 7])
def captions(request: pytest.FixtureRequest) -> list[tuple[Scene, dict[str, np.ndarray], str]]:
    return all_captions(request.param)


def hull(corners: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return corners.min(axis=(0, 1)), corners.max(axis=(0, 1))


def test_counts_classes_and_colours_agree_with_the_boxes(captions: list) -> None:
    for scene, boxes, caption in captions:
        mentions = re.findall(MENTION, caption)
        assert len(mentions) == len(re.findall(rf"\b(?:{NOUN})\b", caption)), caption
        colours = {group.kind: group.colour for group in scene.groups}
        for number, colour, noun in mentions:
            kind = KIND_OF[noun]
            count = len(boxes.get(kind, ()))
            assert count >= 7 if number == "many" else count == NUMBERS[number], f"{scene.name}: {caption}"
            assert (noun == WORDS[kind]) == (count == 1), caption
            assert colour in ("", colours[kind]), caption


def test_relations_agree_with_the_boxes(captions: list) -> None:
    """Left of, right of, above, below: the hulls are apart that way. Between: the others lie on opposite sides."""
    seen = Counter()
    for scene, boxes, caption in captions:
        kinds = [KIND_OF[noun] for _, _, noun in re.findall(MENTION, caption)]
        for words, axis, sign in (
            ("to the left of", 0, 1),
            ("to the right of", 0, -1),
            ("above", 1, 1),
            ("below", 1, -1),
        ):
            if f" {words} " in caption:
                (a_low, a_high), (b_low, b_high) = (hull(boxes[kind]) for kind in kinds)
                gap = b_low[axis] - a_high[axis] if sign > 0 else a_low[axis] - b_high[axis]
                assert gap > -0.002, f"{scene.name}: {caption}"
                seen[words] += 1
        if " between " in caption:
            middle, first, second = (sum(hull(boxes[kind])) / 2 for kind in kinds)
            between = (first - middle) * (second - middle)
            assert between.min() < 0, f"{scene.name}: {caption}"
            seen["between"] += 1
    assert len(seen) == 5


def test_places_agree_with_the_boxes(captions: list) -> None:
    """Each "... is on the left" holds of the group named just before it."""
    seen = set()
    for scene, boxes, caption in captions:
        for clause in caption.split(" and " if caption.count(" corner") + caption.count(" the ") > 1 else " . "):
            for words, (across, down) in PLACES.items():
                if re.search(rf"{words}(?! of)\b", clause):
                    kinds = [KIND_OF[noun] for _, _, noun in re.findall(MENTION, clause)]
                    low, high = hull(boxes[kinds[-1]])
                    x, y = (low + high) / 2
                    assert np.sign(x - 0.5) == across if across else 0.355 < x < 0.645, f"{scene.name}: {caption}"
                    assert np.sign(y - 0.5) == down if down else 0.355 < y < 0.645, f"{scene.name}: {caption}"
                    seen.add(words)
    assert seen == set(PLACES)


def surface(scene: Scene, point: np.ndarray) -> str:
    """Return what lies under a point, by the plan: water, road or the setting's ground."""
    x, y = turned(point, -scene.setting.turn)
    for x0, y0, x1, y1 in scene.roads():
        if x0 <= x <= x1 and y0 <= y <= y1:
            return "road"
    if scene.setting.water and scene.setting.start <= x <= scene.setting.end:
        return "water"
    return scene.setting.ground


def test_grounds_agree_with_the_plan(captions: list) -> None:
    """ "On the grass" and the like hold of every object of the groups that the caption names."""
    words = {"on the grass": "grass", "on the bare land": "bare land", "on the concrete": "concrete"}
    words |= {"in the farmland": "farmland", "in the residential area": "residential", "on the road": "road"}
    words |= {"on the water": "water", "over the water": "water", "in the sea": "water"}
    seen = set()
    for scene, boxes, caption in captions:
        for phrase, ground in words.items():
            if phrase in caption:
                for kind in {KIND_OF[noun] for _, _, noun in re.findall(MENTION, caption)}:
                    for corners in boxes[kind]:
                        assert surface(scene, corners.mean(axis=0)) == ground, f"{scene.name}: {caption}"
                    assert kind not in ("plane", "helicopter") or phrase != "on the water", caption
                seen.add(phrase)
    assert seen == words.keys()


def test_surroundings_agree_with_the_plan(captions: list) -> None:
    layouts = {"a road": "road", "a crossroads": "crossing", "a river": "river", "the sea": "shore"}
    for scene, _, caption in captions:
        for words, layout in layouts.items():
            if re.search(rf"(near|beside) {words}\b", caption):
                assert scene.setting.layout == layout, f"{scene.name}: {caption}"
        if "surrounded by water" in caption:
            assert scene.setting.ground == "water"
        if "trees" in caption:
            assert scene.setting.trees
        if "houses" in caption:
            assert scene.setting.ground == "residential"


def test_rows_agree_with_the_boxes(captions: list) -> None:
    """The middles of the objects "in a row" lie on one line."""
    seen = 0
    for scene, boxes, caption in captions:
        for noun in re.findall(rf"({NOUN})(?: are)? in a row", caption):
            middles = boxes[KIND_OF[noun]].mean(axis=1)
            spread = np.linalg.svd(middles - middles.mean(axis=0), compute_uv=False)
            assert len(middles) >= 3 and spread[1] < 0.01, f"{scene.name}: {caption}"
            seen += 1
    assert seen


def test_five_different_captions_that_name_objects(captions: list) -> None:
    for start in range(0, len(captions), 5):
        five = [caption for _, _, caption in captions[start : start + 5]]
        assert len(set(five)) == 5
        assert sum(bool(re.search(MENTION, caption)) for caption in five) >= 4


def test_vocabulary_is_compact(captions: list) -> None:
    """Few words that all are learnt: nearly every content word occurs often enough to be kept."""
    words = Counter(token for _, _, caption in captions for token in vocab.tokenize(caption))
    content = {word: count for word, count in words.items() if word not in vocab.STOP_WORDS}
    kept = [word for word, count in content.items() if count >= 5]
    assert 60 <= len(kept) <= 150
    assert len(content) - len(kept) <= 5
