"""Captions in the forms that circulate, which are those that public loaders read -> the published lists."""

from __future__ import annotations

import json
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


def image(name: str, split: str, *captions: object, **more) -> dict:
    """Return an image of Karpathy's form."""
    return {"filename": name, "split": split, "sentences": list(captions), **more}


def karpathy(sentence: Callable[[str], object], train: str = "train", test: str = "test") -> str:
    """Return a file of Karpathy's form; `sentence` gives the form of a caption."""
    splits = zip(ROWS, (train, test), strict=True)
    return json.dumps({"images": [image(row["image"], split, *map(sentence, row["caption"])) for row, split in splits]})


def pairs(rows: list[dict], form: str) -> str:
    """Return a line for each image and caption."""
    pairs = [(row["image"], i, caption) for row in rows for i, caption in enumerate(row["caption"])]
    return "".join(f"{form.format(name=name, i=i, caption=caption)}\n" for name, i, caption in pairs)


def coco(rows: list[dict]) -> str:
    notes = [{"image_id": i, "caption": caption} for i, row in enumerate(rows) for caption in row["caption"]]
    images = [{"id": i, "file_name": row["image"], "width": 9} for i, row in enumerate(rows)]
    return json.dumps({"info": {}, "images": images, "annotations": notes})


ONE_FILE = {
    "Karpathy's, text under raw": karpathy(lambda caption: {"raw": caption, "tokens": caption.split()}),
    "Karpathy's, sentences are text": karpathy(str),
    "Karpathy's, tokens alone": karpathy(lambda caption: {"tokens": caption.split()}),
    "other names of splits": karpathy(str, "Training", " testing"),
    "rows with a split": json.dumps(SPLIT_ROWS),
    "rows by split": json.dumps({"train": ROWS[:1], "test": ROWS[1:]}),
    "JSON lines": "".join(f"{json.dumps(row)}\n" for row in SPLIT_ROWS),
    "a table with a column for each caption": (
        f"file_name,split,{','.join(f'caption_{i}' for i in range(5))}\n"
        f"a.tif,train,{','.join(FIVE)}\nc.tif,test,a road,a bridge,,,\n"
    ),
    "a table of the hub with lists as text, of NumPy and of Python": (
        "filename,captions,image,split\n"
        "a.tif,\"['a river' 'many trees'\n 'some ships' \"\"five planes\"\" 'a field']\",{'bytes': b'x'},train\n"
        "c.tif,\"['a road', 'a bridge']\",{},test\n"
    ),
}
TWO_FILES: dict[str, Callable[[list[dict]], str]] = {  # from the rows of a split to its file
    "lists of image and captions": json.dumps,
    "a row for each caption": lambda rows: json.dumps(
        [{"image": row["image"], "caption": caption} for row in rows for caption in row["caption"]]
    ),
    "a table of image names": lambda rows: json.dumps({row["image"]: row["caption"] for row in rows}),
    "JSON lines of the hub": lambda rows: pairs(rows, '{{"file_name": "{name}", "text": "{caption}"}}'),
    "COCO's captions": coco,
    "a table with a row for each caption": lambda rows: "image,caption\n" + pairs(rows, "{name},{caption}"),
    "a table with bars": lambda rows: "image_name| comment_number| comment\n" + pairs(rows, "{name}| {i}| {caption}"),
    "name#0 and a tab": lambda rows: pairs(rows, "{name}#{i}\t{caption}"),
    "name and a comma, without a head": lambda rows: pairs(rows, "{name},{caption}"),
}


@pytest.fixture
def convert(tmp_path, run, monkeypatch):
    """Write files (name=content) into an empty current folder, and convert them into the folder `out`."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")

    def convert(files: dict[str, str | bytes], more: str = ""):
        for name, content in files.items():
            Path(name).parent.mkdir(exist_ok=True)
            Path(name).write_bytes(content.encode() if isinstance(content, str) else content)
        return run(f"-m util.convert_captions --out out --json {' '.join(files)} {more}")

    return convert


@pytest.fixture
def convert_images(convert):
    return lambda *images: convert({"dataset.json": json.dumps({"images": images})})


def converted() -> dict[str, str]:
    return {path.name: path.read_text() for path in Path("out").iterdir()}


@pytest.mark.parametrize("form", [*ONE_FILE, *TWO_FILES])
def test_every_form_becomes_the_published_lists(form, convert) -> None:
    if form in ONE_FILE:
        files = {"captions.any": ONE_FILE[form]}
    else:
        files = {"rs_train.any": TWO_FILES[form](ROWS[:1]), "captions_test2014.any": TWO_FILES[form](ROWS[1:])}
    outcome = convert(files)
    assert outcome.status == 0, outcome.err
    assert converted() == LISTS


def test_the_lists_are_the_published_ones_and_the_val_split_validates(convert) -> None:
    outcome = convert({"dataset.json": SMALL.read_text()})
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
    assert convert({"dataset_nwpu.json": json.dumps(tree)}).status == 0
    assert converted() == {
        "train_caps.txt": "one\ntwo\nthree\n" * 2,
        "train_filename.txt": "airport/airport_001.jpg\nbridge/b.jpg\n",
        "val_filename.txt": "bridge/b.jpg\n",
        "test_caps.txt": "one\ntwo\nthree\n",
        "test_filename.txt": "bridge/bridge_001.jpg\n" * 3,
    }


def test_the_splits_name_comes_from_the_file_then_the_images_folder_then_the_files_folder(convert) -> None:
    files = {
        "coco_karpathy_train.json": json.dumps([{"image": "val2014/a.jpg", "caption": "x"}]),
        "all.json": json.dumps([{"image": "train/b.jpg", "caption": "y"}]),
        "test/metadata.csv": "file_name,text\nc.jpg,z\n",
    }
    assert convert(files).status == 0
    assert converted()["train_filename.txt"] == "val2014/a.jpg\ntrain/b.jpg\n"
    assert converted()["test_filename.txt"] == "c.jpg\n"


def test_without_a_test_split_there_are_no_test_lists_and_the_way_on_is_named(convert) -> None:
    outcome = convert({"k.json": karpathy(str, "train", "Validation")})
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
    assert converted()["train_filename.txt"] == "val2014/a.jpg\nb.jpg\n"
    assert converted()["test_filename.txt"] == "sub/c.jpg\nd.jpg\n"


def test_absolute_names_are_given_within_the_folder_that_they_share(convert) -> None:
    rows = [{"image": f"/home/someone/rs/{split}/a.tif", "caption": "x", "split": split} for split in ("train", "test")]
    outcome = convert({"all.json": json.dumps(rows)})
    assert outcome.status == 0 and "/home/someone/rs" in outcome.out
    assert converted()["train_filename.txt"] == "train/a.tif\n"
    rows += [{"image": "b.tif", "caption": "x", "split": "train"}]
    assert "2 of 3 image names are absolute" in convert({"all.json": json.dumps(rows)}).message


def test_other_lists_are_not_overwritten_and_the_same_ones_may_be_there(convert_images) -> None:
    images = image("a.jpg", "test", "x"), image("a.jpg", "train", "y")
    for _ in range(2):
        outcome = convert_images(*images)
        assert outcome.status == 0 and "(a.jpg)" in outcome.err  # an image of both splits is warned of
    Path("out/test_caps.txt").write_text("mine\n")
    Path("out/train_caps.txt").unlink()
    before = listing(Path("out"))
    outcome = convert_images(*images)
    assert outcome.status == 2 and "out/test_caps.txt holds something else" in outcome.message
    assert listing(Path("out")) == before


def test_parquet_of_the_hub_is_read_and_its_images_are_written(convert) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")

    def as_parquet(**row: object) -> bytes:
        parquet.write_table(arrow.Table.from_pylist([row]), sink := arrow.BufferOutputStream())
        return sink.getvalue().to_pybytes()

    held = {"bytes": b"pixels", "path": None}
    files = {
        f"data/{row['split']}-00000-of-00001.parquet": as_parquet(
            filename=row["image"], captions=row["caption"], image=held
        )
        for row in SPLIT_ROWS
    }
    assert convert(files, "--images pictures").status == 0
    assert converted() == LISTS
    assert listing(Path("pictures")) == {"a.tif": b"pixels", "c.tif": b"pixels"}
    raw = as_parquet(image={"bytes": b"\x89PNG", "path": None}, text="x")
    assert convert({"train.parquet": raw}, "--out other").status == 0
    assert Path("other/train_filename.txt").read_text() == "train_000001.png\n"
    assert "train.parquet: damaged" in convert({"train.parquet": raw[:-9]}).message


def test_parquet_without_its_package_is_one_line(convert, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    outcome = convert({"a.parquet": b"PAR1"})
    assert outcome.status == 2 and "pip install pyarrow" in outcome.message


COCO_IMAGE = '{"images": [{"id": 1, "file_name": "a"}], "annotations": '


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("[]", "none of the forms that docs/data.md lists, but []"),
        ('{"a": {"b": 1}}', "but {'a': {'b': 1}}"),
        ('["x"]', "entry 1: expected an image with its captions, got 'x'"),
        ('[{"caption": "x"}]', "entry 1: no image name (such as `filename` or `image`) in {'caption': 'x'}"),
        ('[{"image": "a", "conversations": []}]', "entry 1: no captions (such as"),
        ('[{"image": "a", "caption": "x"}]', "no split, neither here"),
        ('[{"image": "a", "caption": 5, "split": "train"}]', "a caption must be text, got 5"),
        ('[{"image": "a", "caption": "x\\u0000", "split": "train"}]', "entry 1: a NUL"),
        ('[{"image": "../a", "caption": "x", "split": "train"}]', "'../a' cannot stand in a list"),
        ('[{"image": "b\\nc", "caption": "x", "split": "train"}]', "entry 1: 'b\\nc' cannot stand"),
        ('[{"image": "a", "caption": "x", "split": "test"}]', "no image of the train split"),
        ('[{"image": "a", "caption": "x", "split": "eleven"}]', "the split is 'eleven'; one of train"),
        (COCO_IMAGE + '[{"image_id": 1, "bbox": []}]}', "captions_*.json"),
        (COCO_IMAGE + '[{"image_id": 2}]}', "the `image_id` of an image"),
        ('{"a": 1}\n{"b"', "line 2: not JSON"),
        ("a,b\n1,2\n", "neither JSON nor Parquet, and the first line names no column"),
        ("train/a.jpg\tship\nship\n", "line 2: no image name before the caption: 'ship'"),
    ],
)
def test_another_form_is_named_and_nothing_is_written(content, says, convert) -> None:
    outcome = convert({"captions": content})
    assert outcome.status == 2 and says in outcome.message and not Path("out").exists()
