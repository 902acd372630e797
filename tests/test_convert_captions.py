"""Captions in the forms that circulate, which are those that public loaders read -> the published lists."""

from __future__ import annotations

import csv
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ROOT, listing

import data
from option import load_options

SMALL = ROOT / "tests/cases/captions/karpathy/dataset_small.json"
FIVE = ["a river", "many trees", "some ships", "five planes", "a field"]
LISTS = {
    "train_caps.txt": "\n".join(FIVE) + "\n",
    "train_filename.txt": "a.tif\n",
    "test_caps.txt": "a road\na bridge\n",
    "test_filename.txt": "c.tif\n" * 2,
}
ROWS = [{"image": "a.tif", "caption": FIVE}, {"image": "c.tif", "caption": ["a road", "a bridge"]}]
SPLIT_ROWS = [row | {"split": split} for row, split in zip(ROWS, ("train", "test"), strict=True)]
Writer = Callable[[Path], object]


def karpathy(sentence: Callable[[str], object], train: str = "train", test: str = "test") -> dict:
    """Return the tree of Karpathy's form; `sentence` gives the form of a caption."""
    images = [
        {"filename": row["image"], "split": split, "sentences": list(map(sentence, row["caption"]))}
        for row, split in zip(ROWS, (train, test), strict=True)
    ]
    return {"images": images, "dataset": "small"}


def image(name: str, split: str, *captions: str, **more) -> dict:
    return {"filename": name, "split": split, "sentences": [{"raw": caption} for caption in captions], **more}


def as_table(columns: list[str], rows: list[list[str]], **how) -> Writer:
    def write(path: Path) -> None:
        with path.open("w", newline="") as file:
            csv.writer(file, **how).writerows([columns, *rows])

    return write


def as_json(tree: object) -> Writer:
    return lambda path: path.write_text(json.dumps(tree))


def as_lines(rows: list) -> Writer:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    return lambda path: path.write_text("".join(f"{line}\n" for line in lines))


def pairs(rows: list[dict]) -> list[list[str]]:
    return [[row["image"], caption] for row in rows for caption in row["caption"]]


def coco(rows: list[dict]) -> dict:
    notes = [{"image_id": i, "caption": caption} for i, row in enumerate(rows) for caption in row["caption"]]
    images = [{"id": i, "file_name": row["image"], "width": 9} for i, row in enumerate(rows)]
    return {"info": {}, "images": images, "annotations": notes}


NUMPY = "['a river' 'many trees'\n 'some ships' \"five planes\" 'a field']"  # as pandas writes an array of texts
ONE_FILE = {
    "Karpathy's, text under raw": as_json(karpathy(lambda caption: {"raw": caption, "tokens": caption.split()})),
    "Karpathy's, sentences are text": as_json(karpathy(str)),
    "Karpathy's, tokens alone": as_json(karpathy(lambda caption: {"tokens": caption.split()})),
    "other names of splits": as_json(karpathy(str, "Training", " testing")),
    "rows with a split": as_json(SPLIT_ROWS),
    "rows by split": as_json({"train": ROWS[:1], "test": ROWS[1:]}),
    "JSON lines": as_lines(SPLIT_ROWS),
    "a table with a column for each caption": as_table(
        ["file_name", "split", *(f"caption_{i}" for i in range(5))],
        [["a.tif", "train", *FIVE], ["c.tif", "test", "a road", "a bridge", "", "", ""]],
    ),
    "a table of the hub with lists as text": as_table(
        ["filename", "captions", "image", "split"],
        [["a.tif", NUMPY, "{'bytes': b'x'}", "train"], ["c.tif", str(ROWS[1]["caption"]), "{}", "test"]],
    ),
}
TWO_FILES: dict[str, Callable[[list[dict]], Writer]] = {  # from the rows of a split to the writer of its file
    "lists of image and captions": as_json,
    "a row for each caption": lambda rows: as_json([{"image": name, "caption": text} for name, text in pairs(rows)]),
    "a table of image names": lambda rows: as_json({row["image"]: row["caption"] for row in rows}),
    "JSON lines of the hub": lambda rows: as_lines([{"file_name": name, "text": text} for name, text in pairs(rows)]),
    "COCO's captions": lambda rows: as_json(coco(rows)),
    "a table with a row for each caption": lambda rows: as_table(["image", "caption"], pairs(rows)),
    "a table with bars": lambda rows: as_table(
        ["image_name", " comment_number", " comment"], [[n, " 0", f" {t}"] for n, t in pairs(rows)], delimiter="|"
    ),
    "name#0 and a tab": lambda rows: as_lines([f"{name}#{i}\t{text}" for i, (name, text) in enumerate(pairs(rows))]),
    "name and a comma, without a head": lambda rows: as_lines([f"{name},{text}" for name, text in pairs(rows)]),
}


@pytest.fixture
def convert(tmp_path, run, monkeypatch):
    """Write files (name=writer) into an empty current folder, and convert them into the folder `out`."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")

    def convert(files: dict[str, Writer], more: str = ""):
        for name, writer in files.items():
            Path(name).parent.mkdir(exist_ok=True)
            writer(Path(name))
        return run(f"-m util.convert_captions --out out --json {' '.join(files)} {more}")

    return convert


@pytest.fixture
def convert_images(convert):
    return lambda *images: convert({"dataset.json": as_json({"images": images})})


def converted() -> dict[str, str]:
    return {path.name: path.read_text() for path in Path("out").iterdir()}


@pytest.mark.parametrize("form", ONE_FILE)
def test_a_file_of_all_splits_becomes_the_published_lists(form, convert) -> None:
    assert convert({"captions.any": ONE_FILE[form]}).status == 0
    assert converted() == LISTS


@pytest.mark.parametrize("form", TWO_FILES)
def test_a_file_for_each_split_becomes_the_published_lists(form, convert) -> None:
    writer = TWO_FILES[form]
    outcome = convert({"rs_train.any": writer(ROWS[:1]), "captions_test2014.any": writer(ROWS[1:])})
    assert outcome.status == 0, outcome.err
    assert converted() == LISTS


def test_the_lists_are_the_published_ones_and_the_val_split_validates(convert) -> None:
    outcome = convert({"dataset.json": lambda path: path.write_text(SMALL.read_text())})
    assert outcome.status == 0 and "dataset.val_list=out/val_filename.txt" in outcome.out
    assert converted() == {
        "train_caps.txt": "".join(f"a picture of {what} .\n" * 2 for what in ("airport", "beach", "bridge")),
        "train_filename.txt": "airport.jpg\nbeach.jpg\nbridge.jpg\n",
        "test_caps.txt": "a picture of church .\n" * 2,
        "test_filename.txt": "church.jpg\n" * 2,
        "val_filename.txt": "bridge.jpg\n",
    }
    keys = ["dataset.data_path=out", "dataset.val_list=out/val_filename.txt"]
    options = load_options(ROOT / "option/DEMO/DEMO_GaLR.yaml", keys)
    assert data.make_folds(options, 0)[0].names == {"train": ["airport.jpg", "beach.jpg"], "val": ["bridge.jpg"]}


def test_images_of_nwpu_captions_lie_in_a_folder_for_each_class(convert) -> None:
    entry = {"raw": "one", "raw_1": "two", "raw_4": "three", "tokens": ["one"], "sentids": 0, "imgid": 0}
    bridges = {"split": "test", "filename": "bridge_001.jpg"}, {"split": "val", "filename": "b.jpg"}
    tree = {
        "airport": [entry | {"split": "train", "filename": "airport_001.jpg"}],
        "bridge": [entry | bridge for bridge in bridges],
    }
    assert convert({"dataset_nwpu.json": as_json(tree)}).status == 0
    assert converted() == {
        "train_caps.txt": "one\ntwo\nthree\n" * 2,
        "train_filename.txt": "airport/airport_001.jpg\nbridge/b.jpg\n",
        "val_filename.txt": "bridge/b.jpg\n",
        "test_caps.txt": "one\ntwo\nthree\n",
        "test_filename.txt": "bridge/bridge_001.jpg\n" * 3,
    }


@pytest.mark.parametrize("word", ["val", "valid", "validation", "dev", "Validation"])
def test_a_split_is_known_by_any_of_its_names(word, convert_images) -> None:
    assert convert_images(image("a.tif", "train", "x"), image("b.tif", word, "a pond")).status == 0
    assert converted()["val_filename.txt"] == "b.tif\n" and "b.tif" in converted()["train_filename.txt"]


def test_the_splits_name_comes_from_the_file_then_the_images_folder_then_the_files_folder(convert) -> None:
    files = {
        "coco_karpathy_train.json": as_json([{"image": "val2014/a.jpg", "caption": "x"}]),
        "all.json": as_json([{"image": "train/b.jpg", "caption": "y"}]),
        "test/metadata.csv": as_table(["file_name", "text"], [["c.jpg", "z"]]),
    }
    assert convert(files).status == 0
    assert converted()["train_filename.txt"] == "val2014/a.jpg\ntrain/b.jpg\n"
    assert converted()["test_filename.txt"] == "c.jpg\n"


def test_without_a_test_split_there_are_no_test_lists_and_the_way_on_is_named(convert) -> None:
    outcome = convert({"k.json": as_json(karpathy(str, "train", "val"))})
    assert outcome.status == 0 and "vocab.py --splits train" in outcome.message
    assert set(converted()) == {"train_caps.txt", "train_filename.txt", "val_filename.txt"}


def test_numbers_of_captions_that_differ_and_line_ends_within_them(convert_images) -> None:
    outcome = convert_images(
        image("a.jpg", "train", "one", "two\nthree \r\n", "  "),
        image("b.jpg", "restval", "fo\u2028ur", filepath="val2014"),
        image("c.jpg", "train"),
        image("d.jpg", "test", "five"),
    )
    assert outcome.status == 0 and "1 blank captions, 1 images without captions" in outcome.err
    split = data.read_split("out", "train")
    assert (split.images, split.captions) == (["a.jpg", "val2014/b.jpg"], ["one", "two three", "fo ur"])
    assert split.image_of_caption.tolist() == [0, 0, 1]
    assert not Path("out/val_filename.txt").exists()


def test_images_stand_in_the_lists_by_their_place_within_the_folder_of_images(convert_images) -> None:
    """COCO's `filepath` is such a place; an absolute one is a folder of the machine that wrote the file."""
    outcome = convert_images(
        image("a.jpg", "train", "x", filepath="val2014"),
        image("b.jpg", "train", "x", filepath="/home/someone/images"),
        image("c.jpg", "test", "x", filepath="sub/"),
        image("d.jpg", "test", "x", filepath=""),
    )
    assert outcome.status == 0
    assert Path("out/train_filename.txt").read_text() == "val2014/a.jpg\nb.jpg\n"
    assert Path("out/test_filename.txt").read_text() == "sub/c.jpg\nd.jpg\n"


def test_absolute_names_are_given_within_the_folder_that_they_share(convert) -> None:
    rows = [{"image": f"/home/someone/rs/{split}/a.tif", "caption": "x", "split": split} for split in ("train", "test")]
    outcome = convert({"all.json": as_json(rows)})
    assert outcome.status == 0 and "/home/someone/rs" in outcome.out
    assert converted()["train_filename.txt"] == "train/a.tif\n"
    rows += [{"image": "b.tif", "caption": "x", "split": "train"}]
    assert "2 of 3 image names are absolute" in convert({"all.json": as_json(rows)}).message


def test_published_lists_come_back_from_their_json_form(convert_images) -> None:
    if "GALR_TEST_DATA" not in os.environ:
        pytest.skip("GALR_TEST_DATA is not set: no real lists")
    folder, images = Path(os.environ["GALR_TEST_DATA"], "rsicd_precomp"), []
    for name in ("train", "test"):
        split = data.read_split(folder, name)
        captions = [[] for _ in split.images]
        for caption, owner in zip(split.captions, split.image_of_caption, strict=True):
            captions[owner].append(caption)
        images += [image(i, name, *own) for i, own in zip(split.images, captions, strict=True)]
    assert convert_images(*images).status == 0
    for path in Path("out").iterdir():
        words = [line.split() for line in (folder / path.name).read_text().splitlines()]
        assert [line.split() for line in path.read_text().splitlines()] == words


def test_an_image_of_both_splits_is_warned_of(convert_images) -> None:
    assert "(a.jpg)" in convert_images(image("a.jpg", "test", "x"), image("a.jpg", "train", "y")).err


def test_other_lists_are_not_overwritten_and_the_same_ones_may_be_there(convert_images) -> None:
    images = image("a.jpg", "test", "x"), image("b.jpg", "train", "y")
    assert convert_images(*images).status == 0
    assert convert_images(*images).status == 0
    Path("out/test_caps.txt").write_text("mine\n")
    Path("out/train_caps.txt").unlink()
    before = listing(Path("out"))
    outcome = convert_images(*images)
    assert outcome.status == 2 and "out/test_caps.txt holds something else" in outcome.message
    assert listing(Path("out")) == before


def test_parquet_of_the_hub_is_read_and_its_images_are_written(convert, run) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")

    def as_parquet(row: dict) -> Writer:
        return lambda path: parquet.write_table(arrow.Table.from_pylist([row]), path)

    files = {}
    for row in SPLIT_ROWS:
        held = {"filename": row["image"], "captions": row["caption"], "image": {"bytes": b"pixels", "path": None}}
        files[f"data/{row['split']}-00000-of-00001.parquet"] = as_parquet(held)
    assert convert(files, "--images pictures").status == 0
    assert converted() == LISTS
    assert listing(Path("pictures")) == {"a.tif": b"pixels", "c.tif": b"pixels"}
    as_parquet({"image": {"bytes": b"\x89PNG", "path": None}, "text": "x"})(Path("train.parquet"))
    assert run("-m util.convert_captions --json train.parquet --out other").status == 0
    assert Path("other/train_filename.txt").read_text() == "train_000001.png\n"
    cut_short = Path("train.parquet").read_bytes()[:-9]
    assert "train.parquet: damaged" in convert({"train.parquet": lambda path: path.write_bytes(cut_short)}).message


def test_parquet_without_its_package_is_one_line(convert, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    outcome = convert({"a.parquet": lambda path: path.write_bytes(b"PAR1")})
    assert outcome.status == 2 and "pip install pyarrow" in outcome.message


NO_IMAGE = "entry 1: no image name (such as `filename` or `image`) in an object with the keys caption"
COCO_IMAGE = '{"images": [{"id": 1, "file_name": "a"}], "annotations": '


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("[]", "none of the forms that docs/data.md lists, but an empty list"),
        ('{"a": {"b": 1}}', "but an object with the keys a"),
        ('["x"]', "entry 1: expected an image with its captions, got the text 'x'"),
        ('[{"caption": "x"}]', NO_IMAGE),
        ('[{"image": "a", "conversations": []}]', "entry 1: no captions (such as"),
        ('[{"image": "a", "caption": "x"}]', "no split, neither here"),
        ('[{"image": "a", "caption": 5, "split": "train"}]', "a caption must be text, got the value '5'"),
        ('[{"image": "a", "caption": "x\\u0000", "split": "train"}]', "entry 1: a NUL"),
        ('[{"image": "../a", "caption": "x", "split": "train"}]', "'../a' cannot stand in a list"),
        ('[{"image": "b\\nc", "caption": "x", "split": "train"}]', "entry 1: 'b\\nc' cannot stand"),
        ('[{"image": " ", "caption": "x", "split": "train"}]', "cannot stand"),
        ('[{"image": "a", "caption": "x", "split": "test"}]', "no image of the train split"),
        ('[{"image": "a", "caption": "x", "split": "eleven"}]', "the split is 'eleven'; one of train"),
        (COCO_IMAGE + '[{"image_id": 1, "bbox": []}]}', "captions_*.json"),
        (COCO_IMAGE + '[{"image_id": 2}]}', "the `image_id` of an image"),
        ('{"a": 1}\n{"b"', "line 2: not JSON"),
        ("a,b\n1,2\n", "neither JSON nor Parquet, and the first line names no column"),
        ("train/a.jpg\tship\nship\n", "line 2: no image name before the caption: 'ship'"),
        ("", "neither JSON nor Parquet"),
    ],
)
def test_another_form_is_named_and_nothing_is_written(content, says, convert) -> None:
    outcome = convert({"captions": lambda path: path.write_text(content)})
    assert outcome.status == 2 and says in outcome.message
    assert "instance of" not in outcome.message and not Path("out").exists()
