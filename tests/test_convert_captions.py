"""Captions in the JSON form of Karpathy's splits -> the published lists."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from conftest import listing

import data
from option import load_options

SMALL = Path(__file__).parent / "cases/captions/karpathy/dataset_small.json"
CONVERT = "-m util.convert_captions --out out --json"


def image(name: str, split: str, *captions: str, **more) -> dict:
    return {"filename": name, "split": split, "sentences": [{"raw": caption} for caption in captions], **more}


@pytest.fixture
def convert(tmp_path, run, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def convert(*images: dict):
        Path("dataset.json").write_text(json.dumps({"images": images, "dataset": "small"}))
        return run(f"{CONVERT} dataset.json")

    return convert


def test_the_lists_are_the_published_ones_and_the_val_split_validates(run, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = run(f"{CONVERT} {SMALL}")
    assert outcome.status == 0 and "dataset.val_list=out/val_filename.txt" in outcome.out
    assert {path.name: path.read_text() for path in Path("out").iterdir()} == {
        "train_caps.txt": "".join(f"a picture of {what} .\n" * 2 for what in ("airport", "beach", "bridge")),
        "train_filename.txt": "airport.jpg\nbeach.jpg\nbridge.jpg\n",
        "test_caps.txt": "a picture of church .\n" * 2,
        "test_filename.txt": "church.jpg\n" * 2,
        "val_filename.txt": "bridge.jpg\n",
    }
    keys = ["dataset.data_path=out", "dataset.val_list=out/val_filename.txt"]
    options = load_options(Path(__file__).parent.parent / "option/DEMO/DEMO_GaLR.yaml", keys)
    assert data.make_folds(options, 0)[0].names == {"train": ["airport.jpg", "beach.jpg"], "val": ["bridge.jpg"]}


def test_numbers_of_captions_that_differ_and_line_ends_within_them(convert) -> None:
    outcome = convert(
        image("a.jpg", "train", "one", "two\nthree \r\n"),
        image("b.jpg", "restval", "fo\u2028ur", filepath="val2014"),
        image("c.jpg", "train"),
        image("d.jpg", "test", "five"),
    )
    assert outcome.status == 0 and "1 images without captions" in outcome.err
    split = data.read_split("out", "train")
    assert (split.images, split.captions) == (["a.jpg", "val2014/b.jpg"], ["one", "two three", "fo ur"])
    assert split.image_of_caption.tolist() == [0, 0, 1]
    assert not Path("out/val_filename.txt").exists()


def test_images_stand_in_the_lists_by_their_place_within_the_folder_of_images(convert) -> None:
    """COCO's `filepath` is such a place; an absolute one is a folder of the machine that wrote the file."""
    outcome = convert(
        image("a.jpg", "train", "x", filepath="val2014"),
        image("b.jpg", "train", "x", filepath="/home/someone/images"),
        image("c.jpg", "test", "x", filepath="sub/"),
        image("d.jpg", "test", "x", filepath=""),
    )
    assert outcome.status == 0
    assert Path("out/train_filename.txt").read_text() == "val2014/a.jpg\nb.jpg\n"
    assert Path("out/test_filename.txt").read_text() == "sub/c.jpg\nd.jpg\n"


def test_published_lists_come_back_from_their_json_form(convert) -> None:
    if "GALR_TEST_DATA" not in os.environ:
        pytest.skip("GALR_TEST_DATA is not set: no real lists")
    folder, images = Path(os.environ["GALR_TEST_DATA"], "rsicd_precomp"), []
    for name in ("train", "test"):
        split = data.read_split(folder, name)
        captions = [[] for _ in split.images]
        for caption, owner in zip(split.captions, split.image_of_caption, strict=True):
            captions[owner].append(caption)
        images += [image(i, name, *own) for i, own in zip(split.images, captions, strict=True)]
    assert convert(*images).status == 0
    for path in Path("out").iterdir():
        words = [line.split() for line in (folder / path.name).read_text().splitlines()]
        assert [line.split() for line in path.read_text().splitlines()] == words


def test_an_image_of_both_splits_is_warned_of(convert) -> None:
    assert "(a.jpg)" in convert(image("a.jpg", "test", "x"), image("a.jpg", "train", "y")).err


def test_other_lists_are_not_overwritten_and_the_same_ones_may_be_there(convert) -> None:
    images = image("a.jpg", "test", "x"), image("b.jpg", "train", "y")
    assert convert(*images).status == 0
    assert convert(*images).status == 0
    Path("out/test_caps.txt").write_text("mine\n")
    Path("out/train_caps.txt").unlink()
    before = listing(Path("out"))
    outcome = convert(*images)
    assert outcome.status == 2 and "out/test_caps.txt holds something else" in outcome.message
    assert listing(Path("out")) == before


@pytest.mark.parametrize(
    ("images", "says"),
    [
        ([image("a.jpg", "test", "x"), image("b.jpg", "train")], "no image of the train split"),
        ([image("a.jpg", "test", "x"), image("b\nc.jpg", "train", "x")], "entry 2: 'b\\nc.jpg' cannot stand"),
        ([image(" ", "test", "x")], "cannot stand"),
        ([image("a.jpg", "test", "x\0")], "entry 1: a NUL"),
        ([{"filename": "a.jpg"}], "entry 1: no captions"),
    ],
)
def test_a_fault_is_one_line_that_says_where_and_nothing_is_written(convert, images, says) -> None:
    outcome = convert(*images)
    assert outcome.status == 2 and says in outcome.message
    assert not Path("out").exists()
