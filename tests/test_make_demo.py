"""The demonstration data: layout, exact boxes, true captions, the same bytes for the same arguments, no overwriting."""

from __future__ import annotations

import hashlib
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, listing
from PIL import Image

import util.make_demo
from layers.drea import CLASSES
from util.demo.captions import write_captions
from util.demo.draw import draw_scene, draw_thing
from util.demo.plan import SCENES_PER_SETTING, Scene, make, plan_scenes
from util.demo.things import CLASSES as DRAWN
from util.demo.things import COLOURS, KINDS
from util.make_demo import make_demo, make_scene
from utils import InputError

SIZE = 64


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a small set."""
    folder = tmp_path_factory.mktemp("demo") / "demo_precomp"
    make_demo(folder, images=10, size=SIZE, seed=3)
    return folder


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    """Plan the default set."""
    return plan_scenes(200, 0)


def captions_of(scene: Scene, seed: int) -> list[str]:
    return write_captions(scene, np.random.default_rng([seed, 2, scene.index]))


def read_boxes(text: str) -> list[tuple[str, np.ndarray]]:
    """Return class and corners (4, 2) of each object of DOTA text."""
    fields = [line.split(" ") for line in text.splitlines()]
    assert all(len(line) == 10 and line[9] == "0" for line in fields)
    return [(line[8], np.array(line[:8], dtype=float).reshape(4, 2)) for line in fields]


# ---------------------------------------------------------------- files


def test_the_published_layout_holds_the_plan(demo: Path) -> None:
    """Train list: one line an image, test list: its name five times in a row; five captions an image; 80/20."""
    planned, names = {f"{scene.name}.png": scene for scene in plan_scenes(10, 3)}, []
    for split, step, images in (("train", 1, 8), ("test", 5, 2)):
        listed, captions = ((demo / f"{split}_{what}.txt").read_text().splitlines() for what in ("filename", "caps"))
        assert listed == [name for name in listed[::step] for _ in range(step)]
        assert len(set(listed)) == images and len(captions) == 5 * images
        names += listed[::step]
        for i, name in enumerate(listed[::step]):
            scene = planned[name]
            assert captions[5 * i : 5 * i + 5] == captions_of(scene, 3)
            assert (demo / "boxes" / f"{scene.name}.txt").read_text() == scene.annotation(SIZE)
            with Image.open(demo / "images" / name) as image:
                assert image.mode == "RGB" and np.array_equal(image, draw_scene(scene, SIZE))
    assert {path.name for path in (demo / "images").iterdir()} == set(names) == set(planned)
    assert {path.stem for path in (demo / "boxes").iterdir()} == {Path(name).stem for name in names}


def test_the_default_set_is_what_it_was(scenes: list[Scene]) -> None:
    """Hold captions, boxes and the mean colours of 8 x 8 blocks of the pictures of docs/results.md's figures."""
    sha = hashlib.sha256()
    for scene in scenes:
        sha.update("\n".join(captions_of(scene, 0)).encode())
        sha.update(scene.annotation(128).encode())
    assert sha.hexdigest() == "005d20f15d39d4067f2c06d7b204f1e0433c61b26929723342def3233dab0d41"
    pictures = (draw_scene(scene, SIZE) for scene in scenes[:100:4])  # of every ground and layout
    blocks = [np.asarray(picture).reshape(8, 8, 8, 8, 3).mean(axis=(1, 3)) for picture in pictures]
    assert np.abs(blocks - np.load(ROOT / "tests/golden/demo_pictures.npy").astype(float)).max() < 2


def test_writing_again_gives_the_same_bytes_keeps_users_files_and_mends(demo: Path, tmp_path: Path) -> None:
    for _ in range(2):
        make_demo(tmp_path, images=10, size=SIZE, seed=3)
        assert {name: listing(tmp_path)[name] for name in listing(demo)} == listing(demo)
        (tmp_path / "local.h5").write_bytes(b"made from it")
        (tmp_path / "boxes" / "demo_0002.txt").unlink(missing_ok=True)
        (tmp_path / "images" / "demo_0001.png").write_bytes(b"damaged")
    assert (tmp_path / "local.h5").read_bytes() == b"made from it"


def test_another_seed_is_another_set_and_a_longer_set_begins_with_the_shorter(demo: Path, tmp_path: Path) -> None:
    make_demo(tmp_path, images=10, size=SIZE, seed=4)
    first, other = listing(demo), listing(tmp_path)
    assert first.keys() == other.keys()
    same = [name for name, content in first.items() if content == other[name] and content is not None]
    assert same == ["test_filename.txt", "train_filename.txt"]
    assert plan_scenes(30, 1)[:10] == plan_scenes(10, 1)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        *(((6, SIZE, 3), "made with"), ((10, 32, 3), "made with"), ((10, SIZE, 0), "made with")),
        *(((4, SIZE, 3), "--images must be from 5"), ((10, 9999, 3), "--size must"), ((10, SIZE, -1), "--seed must")),
    ],
)
def test_other_or_impossible_arguments_are_refused(arguments: tuple[int, int, int], says: str, demo: Path) -> None:
    before = listing(demo)
    with pytest.raises(InputError, match=says):
        make_demo(demo, *arguments)
    assert listing(demo) == before


def test_the_large_scene_has_what_each_query_means_once(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(util.make_demo, "TILE", 40)
    make_scene(tmp_path, 0)
    assert Image.open(tmp_path / "scene.jpg").size == (320, 320)
    boxes = read_boxes((tmp_path / "boxes" / "scene.txt").read_text())
    queries = json.loads((tmp_path / "anno.json").read_text())
    assert len({query["caption"] for query in queries}) == len(queries) >= 8
    for query in queries:
        main = KIND_OF[MENTION.search(query["caption"])[3]]
        (region,) = np.array(query["points"])
        tile = region.mean(axis=0) // 40
        inside = [(kind, corners) for kind, corners in boxes if (corners.mean(axis=0) // 40 == tile).all()]
        corners = np.concatenate([corners for _, corners in inside]).clip(40 * tile, 40 * tile + 40)
        assert region[[0, 2]] == pytest.approx(np.stack([corners.min(axis=0), corners.max(axis=0)]), abs=0.02)
        kinds = [kind for kind, _ in inside]
        assert 0 < kinds.count(main) == [kind for kind, _ in boxes].count(main)


# ---------------------------------------------------------------- scenes


def test_classes_are_those_of_dota() -> None:
    assert DRAWN == CLASSES


@pytest.mark.parametrize("seed", [0, 1])
def test_boxes_lie_inside_are_rectangles_and_do_not_overlap(seed: int) -> None:
    """Every box is a rectangle within the image, at least three pixels wide at 128, without another one's centre."""
    for scene in plan_scenes(60, seed):
        boxes = read_boxes(scene.annotation(128))
        assert 1 <= len(boxes) <= 30
        for _, corners in boxes:
            assert corners.min() >= 0 and corners.max() <= 128
            sides = np.roll(corners, -1, axis=0) - corners
            assert np.abs(sides[0] + sides[2]).max() <= 0.021 and abs(sides[0] @ sides[1]) < 1
            assert np.linalg.norm(sides[:2], axis=1).min() > 3
            steps = np.array([other.mean(axis=0) - corners.mean(axis=0) for _, other in boxes])
            reach = np.abs(steps @ sides[:2].T) / (sides[:2] ** 2).sum(axis=1)  # 1/2 at the box's sides
            assert (reach.max(axis=1) < 0.5).sum() == 1, scene.name  # itself


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize("angle", [0.0, 0.6])
def test_drawing_fills_its_box(kind: str, angle: float) -> None:
    """Check that what is drawn reaches every side of the oriented box to a pixel, and leaves it nowhere."""
    picture = Image.new("RGB", (1024, 1024), (255, 0, 255))
    thing = make(kind, 0.5, 0.5, angle, KINDS[kind].colours[0], 1.5)
    draw_thing(picture, thing)
    drawn = np.abs(np.asarray(picture.reduce(4)).astype(int) - (255, 0, 255)).max(axis=2) > 8
    y, x = ((place + 0.5) / 256 - 0.5 for place in np.nonzero(drawn))
    along, across = x * math.cos(angle) + y * math.sin(angle), y * math.cos(angle) - x * math.sin(angle)
    for extent, side in ((along, thing.length), (across, thing.width)):
        assert extent.min() == pytest.approx(-side / 2, abs=2.0 / 256)
        assert extent.max() == pytest.approx(side / 2, abs=2.0 / 256)


def test_scenes_of_one_setting_differ_in_their_objects(scenes: list[Scene]) -> None:
    """The background cannot tell images apart: four share it, pixel for pixel away from the objects."""
    for start in range(0, 40, SCENES_PER_SETTING):
        four = scenes[start : start + SCENES_PER_SETTING]
        assert len({scene.setting for scene in four}) == 1
        assert len({frozenset((group.kind, len(group.things)) for group in scene.groups) for scene in four}) == 4
    first, second = (np.asarray(draw_scene(scene, SIZE)) for scene in scenes[:2])
    assert 0.3 < (first == second).all(axis=2).mean() < 0.99


def test_any_size_shows_the_same_scene(scenes: list[Scene]) -> None:
    scene = scenes[77]
    picture, small = (np.asarray(draw_scene(scene, size)).astype(int) for size in (256, 64))
    assert picture.shape == (256, 256, 3) and small.shape == (64, 64, 3)
    assert np.abs(picture.reshape(64, 4, 64, 4, 3).mean(axis=(1, 3)) - small).mean() < 3
    corners = [np.array([corners for _, corners in read_boxes(scene.annotation(size))]) for size in (256, 64)]
    assert corners[0] / corners[1] == pytest.approx(4, rel=0.01)
    assert draw_scene(scene, 100).size == (100, 100)


# ---------------------------------------------------------------- captions

NUMBERS = {"a": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6}
KIND_OF = {KINDS[kind].noun + end: kind for kind in CLASSES for end in ("", "s")}
NOUN = "|".join(sorted(KIND_OF, key=len, reverse=True))
MENTION = re.compile(rf"\b(a|two|three|four|five|six|many) (?:({'|'.join(COLOURS)}) )?({NOUN})\b")
SIDES = {"to the left of": (0, 1), "to the right of": (0, -1), "above": (1, 1), "below": (1, -1)}
PLACE = re.compile(r"(?:on|at|in) the ((?:top |bottom )?(?:left|right|top|bottom|middle))(?! of)\b")
Boxes = dict[str, np.ndarray]  # class -> corners (n, 4, 2) as the box file has them, in units of the side


@pytest.fixture(scope="module", params=[0, 7])
def captions(request: pytest.FixtureRequest) -> list[tuple[Scene, Boxes, str]]:
    """Return scene, boxes and one caption in lower case, for five captions of 100 scenes."""
    rows = []
    for scene in plan_scenes(100, request.param):
        boxes: dict[str, list[np.ndarray]] = {}
        for kind, corners in read_boxes(scene.annotation(1000)):
            boxes.setdefault(kind, []).append(corners / 1000)
        five = captions_of(scene, request.param)
        assert len(set(five)) == 5
        rows += [(scene, {kind: np.array(of) for kind, of in boxes.items()}, one.lower()) for one in five]
    return rows


def hulls(boxes: Boxes, text: str) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return the lower and upper corner of the hull of each group that the text mentions."""
    kinds = (KIND_OF[noun] for _, _, noun in MENTION.findall(text))
    return [(boxes[kind].min(axis=(0, 1)), boxes[kind].max(axis=(0, 1))) for kind in kinds]


def test_counts_classes_and_colours_agree_with_the_boxes(captions: list) -> None:
    for scene, boxes, caption in captions:
        mentions = MENTION.findall(caption)
        assert len(mentions) == len(re.findall(rf"\b(?:{NOUN})\b", caption)) >= 1, caption
        colours = {group.kind: group.colour for group in scene.groups}
        for number, colour, noun in mentions:
            kind = KIND_OF[noun]
            count = len(boxes.get(kind, ()))
            assert count >= 7 if number == "many" else count == NUMBERS[number], f"{scene.name}: {caption}"
            assert (noun == KINDS[kind].noun) == (count == 1), caption
            assert colour in ("", colours[kind]), caption


def test_relations_agree_with_the_boxes(captions: list) -> None:
    """Left of, right of, above, below: the hulls are apart that way."""
    seen = set()
    for scene, boxes, caption in captions:
        for words, (axis, sign) in SIDES.items():
            if f" {words} " in caption:
                (a_low, a_high), (b_low, b_high) = hulls(boxes, caption)
                gap = b_low[axis] - a_high[axis] if sign > 0 else a_low[axis] - b_high[axis]
                assert gap > -0.002, f"{scene.name}: {caption}"
                seen.add(words)
    assert seen == set(SIDES)


def test_places_agree_with_the_boxes(captions: list) -> None:
    """Each "... is on the left" holds of the group named just before it."""
    seen = set()
    for _, boxes, caption in captions:
        for clause in caption.split(" and "):
            for words in PLACE.findall(clause):
                place = ("right" in words) - ("left" in words), ("bottom" in words) - ("top" in words)
                for middle, side in zip(sum(hulls(boxes, clause)[-1]) / 2, place, strict=True):
                    assert np.sign(middle - 0.5) == side if side else 0.355 < middle < 0.645, caption
                seen.add(words)
    assert len(seen) == 9
