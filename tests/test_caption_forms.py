"""Captions in the forms that circulate -> the published lists. The forms are those that public loaders read."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import listing

FIVE = ["a river", "many trees", "some ships", "five planes", "a field"]
LISTS = {
    "train_caps.txt": "\n".join(FIVE) + "\n",
    "train_filename.txt": "a.tif\n",
    "test_caps.txt": "a road\na bridge\n",
    "test_filename.txt": "c.tif\n" * 2,
}
ROWS = [{"image": "a.tif", "caption": FIVE}, {"image": "c.tif", "caption": ["a road", "a bridge"]}]


def karpathy(sentence: Callable[[str], object], train: str = "train", test: str = "test") -> dict:
    return {
        "images": [
            {"filename": row["image"], "split": split, "sentences": [sentence(caption) for caption in row["caption"]]}
            for row, split in zip(ROWS, (train, test), strict=True)
        ]
    }


def as_table(columns: list[str], rows: list[list[str]], **how) -> Callable[[Path], object]:
    def write(path: Path) -> None:
        with path.open("w", newline="") as file:
            csv.writer(file, **how).writerows([columns, *rows])

    return write


def as_json(tree: object) -> Callable[[Path], object]:
    return lambda path: path.write_text(json.dumps(tree))


def as_lines(rows: list) -> Callable[[Path], object]:
    return lambda path: path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def one_each(keys: tuple[str, str], rows: list[dict]) -> list[list[str]]:
    return [[row["image"], caption] for row in rows for caption in row["caption"]]


NUMPY = "['a river' 'many trees'\n 'some ships' \"five planes\" 'a field']"  # as pandas writes an array of texts
ONE_FILE = {
    "Karpathy's, text under raw": as_json(karpathy(lambda caption: {"raw": caption, "tokens": caption.split()})),
    "Karpathy's, sentences are text": as_json(karpathy(str)),
    "Karpathy's, tokens alone": as_json(karpathy(lambda caption: {"tokens": caption.split()})),
    "other names of splits": as_json(karpathy(str, "Training", " testing")),
    "rows with a split": as_json([row | {"split": split} for row, split in zip(ROWS, ("train", "test"), strict=True)]),
    "rows by split": as_json({"train": ROWS[:1], "test": ROWS[1:]}),
    "JSON lines": as_lines([row | {"split": split} for row, split in zip(ROWS, ("train", "test"), strict=True)]),
    "a table with a column for each caption": as_table(
        ["file_name", "split", *(f"caption_{i}" for i in range(5))],
        [["a.tif", "train", *FIVE], ["c.tif", "test", "a road", "a bridge", "", "", ""]],
    ),
    "a table of the hub with lists as text": as_table(
        ["filename", "captions", "image", "split"],
        [["a.tif", NUMPY, "{'bytes': b'x'}", "train"], ["c.tif", str(ROWS[1]["caption"]), "{}", "test"]],
    ),
}
TWO_FILES = {
    "lists of image and captions": ("json", lambda rows: as_json(rows)),
    "a row for each caption": (
        "json",
        lambda rows: as_json([{"image": name, "caption": text} for name, text in one_each(("", ""), rows)]),
    ),
    "a table of image names": ("json", lambda rows: as_json({row["image"]: row["caption"] for row in rows})),
    "JSON lines of the hub": (
        "jsonl",
        lambda rows: as_lines([{"file_name": n, "text": t} for n, t in one_each((), rows)]),
    ),
    "COCO's captions": (
        "json",
        lambda rows: as_json(
            {
                "info": {},
                "images": [{"id": i, "file_name": row["image"], "width": 9} for i, row in enumerate(rows)],
                "annotations": [
                    {"id": 7, "image_id": i, "caption": caption}
                    for i, row in enumerate(rows)
                    for caption in row["caption"]
                ],
            }
        ),
    ),
    "a table with a row for each caption": ("csv", lambda rows: as_table(["image", "caption"], one_each((), rows))),
    "a table with bars": (
        "csv",
        lambda rows: as_table(
            ["image_name", " comment_number", " comment"],
            [[name, " 0", f" {text}"] for name, text in one_each((), rows)],
            delimiter="|",
        ),
    ),
    "name#0 and a tab": (
        "txt",
        lambda rows: (
            lambda path: path.write_text(
                "".join(f"{name}#{i}\t{text}\n" for i, (name, text) in enumerate(one_each((), rows)))
            )
        ),
    ),
    "name and a comma, without a head": (
        "txt",
        lambda rows: lambda path: path.write_text("".join(f"{name},{text}\n" for name, text in one_each((), rows))),
    ),
}


@pytest.fixture
def convert(tmp_path, run, monkeypatch):
    """Convert files of this folder into the folder `out`."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return lambda *files: run(f"-m util.convert_captions --out out --json {' '.join(files)}")


def converted() -> dict[str, str]:
    return {path.name: path.read_text() for path in Path("out").iterdir()}


@pytest.mark.parametrize("form", ONE_FILE)
def test_a_file_of_all_splits_becomes_the_published_lists(form, convert) -> None:
    ONE_FILE[form](Path("captions.any"))
    assert convert("captions.any").status == 0
    assert converted() == LISTS


@pytest.mark.parametrize("form", TWO_FILES)
def test_a_file_for_each_split_becomes_the_published_lists(form, convert) -> None:
    suffix, writer = TWO_FILES[form]
    files = [f"rs_train.{suffix}", f"captions_test2014.{suffix}"]
    for file, row in zip(files, ROWS, strict=True):
        writer([row])(Path(file))
    outcome = convert(*files)
    assert outcome.status == 0, outcome.err
    assert converted() == LISTS


def test_images_of_nwpu_captions_lie_in_a_folder_for_each_class(convert) -> None:
    entry = {"raw": "one", "raw_1": "two", "raw_4": "three", "tokens": ["one"], "sentids": 0, "imgid": 0}
    tree = {
        "airport": [entry | {"split": "train", "filename": "airport_001.jpg"}],
        "bridge": [
            entry | {"split": "test", "filename": "bridge_001.jpg"},
            entry | {"split": "val", "filename": "b.jpg"},
        ],
    }
    as_json(tree)(Path("dataset_nwpu.json"))
    assert convert("dataset_nwpu.json").status == 0
    assert converted() == {
        "train_caps.txt": "one\ntwo\nthree\n" * 2,
        "train_filename.txt": "airport/airport_001.jpg\nbridge/b.jpg\n",
        "val_filename.txt": "bridge/b.jpg\n",
        "test_caps.txt": "one\ntwo\nthree\n",
        "test_filename.txt": "bridge/bridge_001.jpg\n" * 3,
    }


@pytest.mark.parametrize("word", ["val", "valid", "validation", "dev", "Validation"])
def test_a_split_is_known_by_any_of_its_names(word, convert) -> None:
    tree = karpathy(str)
    tree["images"].append({"filename": "b.tif", "split": word, "sentences": ["a pond"]})
    as_json(tree)(Path("k.json"))
    assert convert("k.json").status == 0
    assert converted()["val_filename.txt"] == "b.tif\n" and "b.tif" in converted()["train_filename.txt"]


def test_the_splits_name_comes_from_the_file_then_the_images_folder_then_the_files_folder(convert) -> None:
    Path("test").mkdir()
    as_json([{"image": "val2014/a.jpg", "caption": "x"}])(Path("coco_karpathy_train.json"))
    as_json([{"image": "train/b.jpg", "caption": "y"}])(Path("all.json"))
    as_table(["file_name", "text"], [["c.jpg", "z"]])(Path("test/metadata.csv"))
    assert convert("coco_karpathy_train.json", "all.json", "test/metadata.csv").status == 0
    assert converted()["train_filename.txt"] == "val2014/a.jpg\ntrain/b.jpg\n"
    assert converted()["test_filename.txt"] == "c.jpg\n"


def test_without_a_test_split_there_are_no_test_lists_and_the_way_on_is_named(convert) -> None:
    as_json(karpathy(str, "train", "val"))(Path("k.json"))
    outcome = convert("k.json")
    assert outcome.status == 0 and "vocab.py --splits train" in outcome.message
    assert set(converted()) == {"train_caps.txt", "train_filename.txt", "val_filename.txt"}


def test_tokens_are_said_to_be_put_together_and_blank_captions_left_out(convert) -> None:
    tree = karpathy(lambda caption: {"tokens": caption.split()})
    tree["images"][0]["sentences"].append({"raw": "  "})
    as_json(tree)(Path("k.json"))
    outcome = convert("k.json")
    assert outcome.status == 0 and "2 images have no text" in outcome.err and "1 blank captions" in outcome.err
    assert converted() == LISTS


def test_absolute_names_are_given_within_the_folder_that_they_share(convert) -> None:
    rows = [{"image": f"/home/someone/rs/{split}/a.tif", "caption": "x", "split": split} for split in ("train", "test")]
    as_json(rows)(Path("all.json"))
    outcome = convert("all.json")
    assert outcome.status == 0 and "/home/someone/rs" in outcome.out
    assert converted()["train_filename.txt"] == "train/a.tif\n"
    as_json([*rows, {"image": "b.tif", "caption": "x", "split": "train"}])(Path("all.json"))
    assert "2 of 3 image names are absolute" in convert("all.json").message


def test_parquet_of_the_hub_is_read_and_its_images_are_written(convert, run) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    Path("data").mkdir()
    for split, row in zip(("train", "test"), ROWS, strict=True):
        row = {"filename": row["image"], "captions": row["caption"], "image": {"bytes": split.encode(), "path": None}}
        parquet.write_table(arrow.Table.from_pylist([row]), f"data/{split}-00000-of-00001.parquet")
    files = "data/train-00000-of-00001.parquet", "data/test-00000-of-00001.parquet"
    assert convert(*files, "--images pictures").status == 0
    assert converted() == LISTS
    assert listing(Path("pictures")) == {"a.tif": b"train", "c.tif": b"test"}
    unnamed = {"image": {"bytes": b"\x89PNG", "path": None}, "text": "x"}
    parquet.write_table(arrow.Table.from_pylist([unnamed]), "train.parquet")
    assert run("-m util.convert_captions --json train.parquet --out other").status == 0
    assert Path("other/train_filename.txt").read_text() == "train_000001.png\n"
    Path("train.parquet").write_bytes(Path("train.parquet").read_bytes()[:-9])
    assert "train.parquet: damaged" in convert("train.parquet").message


def test_parquet_without_its_package_is_one_line(convert, monkeypatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    Path("a.parquet").write_bytes(b"PAR1")
    outcome = convert("a.parquet")
    assert outcome.status == 2 and "pip install pyarrow" in outcome.message


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("[]", "none of the forms that docs/data.md lists, but an empty list"),
        ('{"a": {"b": 1}}', "but an object with the keys a"),
        ('["x"]', "entry 1: expected an image with its captions, got the text 'x'"),
        (
            '[{"caption": "x"}]',
            "entry 1: no image name (such as `filename` or `image`) in an object with the keys caption",
        ),
        ('[{"image": "a", "conversations": []}]', "entry 1: no captions (such as"),
        ('[{"image": "a", "caption": "x"}]', "no split, neither here"),
        ('[{"image": "a", "caption": 5, "split": "train"}]', "a caption must be text, got the value '5'"),
        ('[{"image": "../a", "caption": "x", "split": "train"}]', "'../a' cannot stand in a list"),
        ('[{"image": "a", "caption": "x", "split": "eleven"}]', "the split is 'eleven'; one of train"),
        ('{"images": [{"id": 1, "file_name": "a"}], "annotations": [{"image_id": 1, "bbox": []}]}', "captions_*.json"),
        ('{"images": [{"id": 1, "file_name": "a"}], "annotations": [{"image_id": 2}]}', "the `image_id` of an image"),
        ('{"a": 1}\n{"b"', "line 2: not JSON"),
        ("a,b\n1,2\n", "neither JSON nor Parquet, and the first line names no column"),
        ("train/a.jpg\tship\nship\n", "line 2: no image name before the caption: 'ship'"),
        ("", "neither JSON nor Parquet"),
    ],
)
def test_another_form_is_named_and_nothing_is_written(content, says, convert) -> None:
    Path("captions").write_text(content)
    outcome = convert("captions")
    assert outcome.status == 2 and says in outcome.message
    assert "instance of" not in outcome.message and not Path("out").exists()
