"""The demonstration data: layout, exact boxes, true captions, the same bytes for the same arguments, no overwriting."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from util.demo.captions import write_captions
from util.demo.draw import draw_scene
from util.demo.plan import plan_scenes
from util.make_demo import annotation, main, make_demo
from utils import InputError, exit_status

DOTA = """plane ship storage-tank baseball-diamond tennis-court basketball-court ground-track-field harbor bridge
large-vehicle small-vehicle helicopter roundabout soccer-ball-field swimming-pool""".split()
SIZE = 64


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small set on disk."""
    folder = tmp_path_factory.mktemp("demo") / "demo_precomp"
    make_demo(folder, images=10, size=SIZE, seed=3)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


def read_boxes(text: str) -> list[tuple[str, np.ndarray]]:
    """DOTA text -> class and corners (4, 2) of each object."""
    fields = [line.split(" ") for line in text.splitlines()]
    assert all(len(line) == 10 and line[9] in ("0", "1") for line in fields)
    return [(line[8], np.array(line[:8], dtype=float).reshape(4, 2)) for line in fields]


# --- files --------------------------------------------------------------------------------------------------------


def test_published_layout(demo: Path) -> None:
    """Train list: one line an image, test list: its name five times in a row; five captions an image; 80/20."""
    train, test = lines(demo / "train_filename.txt"), lines(demo / "test_filename.txt")
    assert len(train) == len(set(train)) == 8
    assert len(lines(demo / "train_caps.txt")) == 40
    assert test == [name for name in test[::5] for _ in range(5)] and len(set(test)) == 2
    assert len(lines(demo / "test_caps.txt")) == 10
    names = train + test[::5]
    assert {path.name for path in (demo / "images").iterdir()} == set(names)
    assert {path.name for path in (demo / "boxes").iterdir()} == {Path(name).stem + ".txt" for name in names}
    for name in names:
        with Image.open(demo / "images" / name) as image:
            assert image.size == (SIZE, SIZE) and image.mode == "RGB"


def test_lists_follow_the_plan(demo: Path) -> None:
    """Line 5i..5i+4 of the captions and the boxes of image i describe the same scene."""
    scenes = {f"{scene.name}.png": scene for scene in plan_scenes(10, 3)}
    for split, step in (("train", 1), ("test", 5)):
        captions = lines(demo / f"{split}_caps.txt")
        for i, name in enumerate(lines(demo / f"{split}_filename.txt")[::step]):
            scene = scenes[name]
            assert captions[5 * i : 5 * i + 5] == write_captions(scene, np.random.default_rng([3, 2, scene.index]))
            assert (demo / "boxes" / f"{scene.name}.txt").read_text() == annotation(scene, SIZE)
            assert np.array_equal(Image.open(demo / "images" / name), draw_scene(scene, SIZE))


def test_same_arguments_same_bytes(demo: Path, tmp_path: Path) -> None:
    make_demo(tmp_path / "again", images=10, size=SIZE, seed=3)
    assert contents(tmp_path / "again") == contents(demo)


def test_another_seed_another_set(demo: Path, tmp_path: Path) -> None:
    make_demo(tmp_path / "other", images=10, size=SIZE, seed=4)
    first, other = contents(demo), contents(tmp_path / "other")
    assert first.keys() == other.keys()
    assert not [name for name in first if first[name] == other.get(name) and not name.endswith("filename.txt")]


def test_a_longer_set_begins_with_the_shorter() -> None:
    assert plan_scenes(30, 1)[:10] == plan_scenes(10, 1)


def test_writing_again_is_harmless_and_mends(tmp_path: Path) -> None:
    """The same command on the same folder gives the same bytes, keeps users' files and replaces what was lost."""
    make_demo(tmp_path, images=5, size=32, seed=0)
    before = contents(tmp_path)
    (tmp_path / "local.h5").write_bytes(b"made from it")
    (tmp_path / "boxes" / "demo_0002.txt").unlink()
    (tmp_path / "images" / "demo_0001.png").write_bytes(b"damaged")
    make_demo(tmp_path, images=5, size=32, seed=0)
    assert contents(tmp_path) == before | {"local.h5": b"made from it"}


def test_other_contents_are_refused(tmp_path: Path) -> None:
    """A folder with anything else in it, or with a set of other arguments, stays as it is."""
    (tmp_path / "train_caps.txt").write_text("mine\n")
    with pytest.raises(InputError, match="other files"):
        make_demo(tmp_path, images=5, size=32, seed=0)
    assert contents(tmp_path) == {"train_caps.txt": b"mine\n"}
    made = tmp_path / "made"
    make_demo(made, images=5, size=32, seed=0)
    before = contents(made)
    for images, size, seed in ((6, 32, 0), (5, 64, 0), (5, 32, 1)):
        with pytest.raises(InputError, match="made with"):
            make_demo(made, images, size, seed)
    assert contents(made) == before


@pytest.mark.parametrize(
    "arguments",
    ["--images -3", "--images 0", "--images 4", "--images many", "--size 0", "--size 10", "--size 99999", "--seed -1"],
)
def test_bad_arguments_write_nothing(
    arguments: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(sys, "argv", ["make_demo", "--out", str(tmp_path / "out"), *arguments.split()])
    assert exit_status(main) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ") and arguments.split()[0] in message and message.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_out_that_is_or_lies_under_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(InputError):
            make_demo(out, images=5, size=32, seed=0)
    assert contents(tmp_path) == {"file": b"mine"}


def test_damaged_mark_is_reported(tmp_path: Path) -> None:
    (tmp_path / "demo.json").write_text("{")
    with pytest.raises(InputError, match=r"demo\.json"):
        make_demo(tmp_path, images=5, size=32, seed=0)


def test_mark_holds_the_arguments(demo: Path) -> None:
    assert json.loads((demo / "demo.json").read_text()) == {"images": 10, "size": SIZE, "seed": 3}
