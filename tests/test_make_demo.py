"""The demonstration data: layout, exact boxes, true captions, the same bytes for the same arguments, no overwriting."""

from __future__ import annotations

import hashlib
import math
import re
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, listing
from PIL import Image

from layers.drea import CLASSES
from util.demo.captions import NOUNS, write_captions
from util.demo.draw import SHADOW, draw_scene, paste
from util.demo.plan import KINDS, SCENES_PER_SETTING, Scene, Thing, plan_scenes
from util.demo.things import COLOURS, STROKES
from util.make_demo import annotation, main, make_demo
from utils import InputError, exit_status

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


def lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


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
        listed, captions = lines(demo / f"{split}_filename.txt"), lines(demo / f"{split}_caps.txt")
        assert listed == [name for name in listed[::step] for _ in range(step)]
        assert len(set(listed)) == images and len(captions) == 5 * images
        names += listed[::step]
        for i, name in enumerate(listed[::step]):
            scene = planned[name]
            assert captions[5 * i : 5 * i + 5] == captions_of(scene, 3)
            assert (demo / "boxes" / f"{scene.name}.txt").read_text() == annotation(scene, SIZE)
            with Image.open(demo / "images" / name) as image:
                assert image.mode == "RGB" and np.array_equal(image, draw_scene(scene, SIZE))
    assert {path.name for path in (demo / "images").iterdir()} == set(names) == set(planned)
    assert {path.stem for path in (demo / "boxes").iterdir()} == {Path(name).stem for name in names}


def test_captions_and_boxes_of_the_default_set_are_what_they_were(scenes: list[Scene]) -> None:
    """Hold the data on which the README's figures of the demo were measured."""
    sha = hashlib.sha256()
    for scene in scenes:
        sha.update("\n".join(captions_of(scene, 0)).encode())
        sha.update(annotation(scene, 128).encode())
    assert sha.hexdigest() == "351039ecadefc08c539f99d2a7d4c815904604d54a52cc1727abfa8c75cffcbb"


def test_pictures_of_the_default_set_are_what_they_were(scenes: list[Scene]) -> None:
    """Hold the mean colours of 8 x 8 blocks of pictures that show all classes, grounds and layouts."""
    pictures = (draw_scene(scenes[i], SIZE) for i in (11, 0, 47, 70, 23, 52, 4))
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


@pytest.mark.parametrize("arguments", [(6, 32, 0), (5, 64, 0), (5, 32, 1)])
def test_a_set_of_other_arguments_is_refused(arguments: tuple[int, int, int], tmp_path: Path) -> None:
    make_demo(tmp_path, 5, 32, 0)
    before = listing(tmp_path)
    with pytest.raises(InputError, match="made with"):
        make_demo(tmp_path, *arguments)
    assert listing(tmp_path) == before


@pytest.mark.parametrize("arguments", ["--images 4", "--images many", "--size 10", "--size 99999", "--seed -1"])
def test_bad_arguments_write_nothing(arguments: str, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["make_demo", "--out", str(tmp_path / "out"), *arguments.split()])
    assert exit_status(main) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ") and arguments.split()[0] in message and message.count("\n") == 1
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------- scenes


def test_classes_are_those_of_dota() -> None:
    assert tuple(KINDS) == CLASSES and set(STROKES) == {*CLASSES, "house", "tree"}


@pytest.mark.parametrize("seed", [0, 1])
def test_boxes_lie_inside_are_rectangles_and_do_not_overlap(seed: int) -> None:
    """Every box is a rectangle within the image, at least three pixels wide at 128, without another one's centre."""
    for scene in plan_scenes(60, seed):
        boxes = read_boxes(annotation(scene, 128))
        assert 1 <= len(boxes) <= 20
        for _, corners in boxes:
            assert corners.min() >= 0 and corners.max() <= 128
            sides = np.roll(corners, -1, axis=0) - corners
            assert np.abs(sides[0] + sides[2]).max() <= 0.021 and abs(sides[0] @ sides[1]) < 1
            assert np.linalg.norm(sides[:2], axis=1).min() > 3
            steps = np.array([other.mean(axis=0) - corners.mean(axis=0) for _, other in boxes])
            reach = np.abs(steps @ sides[:2].T) / (sides[:2] ** 2).sum(axis=1)  # 1/2 at the box's sides
            assert (reach.max(axis=1) < 0.5).sum() == 1, scene.name  # itself


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize("angle", [0.0, 0.6, 2.5])
def test_drawing_fills_its_box(kind: str, angle: float) -> None:
    """Check that what is drawn reaches every side of the oriented box to a pixel, and leaves it nowhere."""
    picture = Image.new("RGB", (1024, 1024), SHADOW)  # shadows, which do leave the box, are invisible here
    length, width = 2 * KINDS[kind].length / 1.2, 2 * KINDS[kind].width / 1.2
    paste(picture, Thing(kind, KINDS[kind].colours[0], 0.5, 0.5, length, width, angle))
    drawn = np.abs(np.asarray(picture.reduce(4)).astype(int) - np.array(SHADOW)).max(axis=2) > 8
    y, x = ((place + 0.5) / 256 - 0.5 for place in np.nonzero(drawn))
    along, across = x * math.cos(angle) + y * math.sin(angle), y * math.cos(angle) - x * math.sin(angle)
    for extent, side in ((along, length), (across, width)):
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


@pytest.mark.parametrize("index", [0, 77])
def test_any_size_shows_the_same_scene(scenes: list[Scene], index: int) -> None:
    large, small = (np.asarray(draw_scene(scenes[index], size)).astype(int) for size in (256, 64))
    assert large.shape == (256, 256, 3) and small.shape == (64, 64, 3)
    assert np.abs(large.reshape(64, 4, 64, 4, 3).mean(axis=(1, 3)) - small).mean() < 3
    corners = [np.array([corners for _, corners in read_boxes(annotation(scenes[index], size))]) for size in (256, 64)]
    assert corners[0] / corners[1] == pytest.approx(4, rel=0.01)
    assert draw_scene(scenes[index], 100).size == (100, 100)


# ---------------------------------------------------------------- captions

NUMBERS = {"a": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6}
WORDS = {kind: NOUNS.get(kind, kind) for kind in CLASSES}
KIND_OF = {word + end: kind for kind, word in WORDS.items() for end in ("", "s")}
NOUN = "|".join(sorted(KIND_OF, key=len, reverse=True))
MENTION = re.compile(rf"\b(a|two|three|four|five|six|many) (?:({'|'.join(COLOURS)}) )?({NOUN})\b")
SIDES = {"to the left of": (0, 1), "to the right of": (0, -1), "above": (1, 1), "below": (1, -1)}
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
Boxes = dict[str, np.ndarray]  # class -> corners (n, 4, 2) as the box file has them, in units of the side


@pytest.fixture(scope="module", params=[0, 7])
def captions(request: pytest.FixtureRequest) -> list[tuple[Scene, Boxes, str]]:
    """Return scene, boxes and one caption in lower case, for five captions of 100 scenes."""
    rows = []
    for scene in plan_scenes(100, request.param):
        boxes: dict[str, list[np.ndarray]] = {}
        for kind, corners in read_boxes(annotation(scene, 1000)):
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
        for words, (axis, sign) in SIDES.items():
            if f" {words} " in caption:
                (a_low, a_high), (b_low, b_high) = hulls(boxes, caption)
                gap = b_low[axis] - a_high[axis] if sign > 0 else a_low[axis] - b_high[axis]
                assert gap > -0.002, f"{scene.name}: {caption}"
                seen[words] += 1
        if " between " in caption:
            middle, first, second = (sum(hull) / 2 for hull in hulls(boxes, caption))
            assert ((first - middle) * (second - middle)).min() < 0, f"{scene.name}: {caption}"
            seen["between"] += 1
    assert len(seen) == 5


def test_places_agree_with_the_boxes(captions: list) -> None:
    """Each "... is on the left" holds of the group named just before it."""
    seen = set()
    for _, boxes, caption in captions:
        for clause in caption.split(" and " if caption.count(" corner") + caption.count(" the ") > 1 else " . "):
            for words, place in PLACES.items():
                if re.search(rf"{words}(?! of)\b", clause):
                    for middle, side in zip(sum(hulls(boxes, clause)[-1]) / 2, place, strict=True):
                        assert np.sign(middle - 0.5) == side if side else 0.355 < middle < 0.645, caption
                    seen.add(words)
    assert seen == set(PLACES)
