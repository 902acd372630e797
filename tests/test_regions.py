"""Check the readers of detectors' files: each format, its faults named by file and line, and any text at all."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from layers.drea import CLASSES, denoise
from util.regions.detections import parse_class_map, to_regions
from util.regions.readers import READERS, detect_format, read_detections
from utils import InputError

PLACE, UNITS = "1 2 3 4 5 6 7 8", ".1 .2 .3 .4 .5 .6 .7 .8"
DOTA = "imagesource:GoogleEarth\ngsd:0.146\n20 10 60 10 60 30 20 30 plane 0\n70 40 90 50 80 70 60 60 large-vehicle 1\n"
RESULT = {
    "Task1_plane.txt": "a 0.75 20 10 60 10 60 30 20 30\nb.png 0.5 0 0 10 0 10 10 0 10\n",
    "Task1_large-vehicle.txt": "a 0.5 70 40 90 50 80 70 60 60\n",
}
YOLO = "0 0.2 0.1 0.6 0.1 0.6 0.3 0.2 0.3 0.75\n9 0.7 0.4 0.9 0.5 0.8 0.7 0.6 0.6 0.5\n"
COCO_IMAGES = {
    "images": [{"id": 7, "file_name": "folder/a.png", "width": 100, "height": 100}, {"id": 8, "file_name": "b.png"}],
    "categories": [{"id": 1, "name": "Plane"}, {"id": 3, "name": "large vehicle"}],
}
COCO = [
    {"image_id": 7, "category_id": 1, "bbox": [20, 10, 40, 20], "score": 0.75},
    {"image_id": 7, "category_id": 3, "bbox": [60, 40, 30, 30], "score": 0.5, "segmentation": []},
]
PLANE, TRUCK = [0.4, 0.2, 0.4, 0.2], [0.75, 0.55, 0.3, 0.3]  # of every source above, in a of 100 x 100 pixels


def write(folder: Path, files: dict[str, str]) -> Path:
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def coco(folder: Path, results=COCO, names=COCO_IMAGES) -> tuple[Path, Path]:
    write(folder, {"results.json": json.dumps(results), "images.json": json.dumps(names)})
    return folder / "results.json", folder / "images.json"


def square(_: str) -> tuple[int, int]:
    return 100, 100


def read(source: Path, stems: list[str], allow_missing: bool = False, class_map=(), **options):
    detections, _ = read_detections(source, **options)
    return to_regions(detections, stems, square, allow_missing, parse_class_map(class_map))


@pytest.mark.parametrize("form", READERS)
def test_each_format_is_recognised_and_gives_the_same_regions(tmp_path, form):
    options = {}
    if form == "coco":
        source, options["coco_images"] = coco(tmp_path)
    else:
        files = {"dota": {"a.txt": DOTA}, "yolo-obb": {"a.txt": YOLO}, "dota-result": RESULT}[form]
        source = write(tmp_path, files)
    detections, found = read_detections(source, **options)
    assert found == form
    (one,) = to_regions(detections, ["a"], square)
    order = np.argsort(one.class_id)
    assert one.class_id[order].tolist() == [0, 9]
    assert one.score[order].tolist() == ([1, 1] if form == "dota" else [0.75, 0.5])
    assert np.allclose(one.box[order], [PLANE, TRUCK])


def test_results_with_four_coordinates_spaces_in_image_names_and_files_named_after_classes(tmp_path):
    task2 = write(tmp_path / "task2", {"Task2_plane.txt": "a 0.75 20 10 60 30\nmy image.tif 0.5 0 0 50 100\n"})
    first, second = read(task2, ["a", "my image"])
    assert np.allclose(first.box, [PLANE]) and np.allclose(second.box, [[0.25, 0.5, 0.5, 1]])
    files = {"plane.txt": "1 0.75 20 10 60 10 60 30 20 30\n", "Large Vehicle.txt": "1 0.5 60 40 90 70\n"}
    assert detect_format(write(tmp_path / "named", files)) == "dota-result"
    (one,) = read(tmp_path / "named", ["1"])
    assert sorted(one.class_id) == [0, 9]


@pytest.mark.parametrize("text", ["", "\n\n", "imagesource:GoogleEarth\ngsd:null\n"])
def test_an_empty_file_is_an_image_without_regions(tmp_path, text):
    write(tmp_path, {"a.txt": text, "b.txt": text})  # nothing was found in any image
    assert [len(one.score) for one in read(tmp_path, ["a", "b"])] == [0, 0]
    (tmp_path / "b.txt").write_bytes(b"\xef\xbb\xbf" + DOTA.replace("\n", "\r\n").encode())  # text of Windows
    assert [len(one.score) for one in read(tmp_path, ["a", "b"])] == [0, 2]


@pytest.mark.parametrize(
    ("form", "name", "line"),
    [
        ("dota", "a.txt", f"{PLACE} 0"),
        ("dota", "a.txt", "1 2 3 4 5 6 7 plane 0"),
        ("dota", "a.txt", "1 2 3 4 5 6 7 1e999 plane 0"),
        ("dota-result", "Task1_plane.txt", f"a 1.5 {PLACE}"),
        ("dota-result", "Task1_plane.txt", "a 0.5 1 2 3 4"),
        ("dota-result", "Task2_plane.txt", "a 0.5 1 2 3"),
        ("dota-result", "plane.txt", "a 0.5 1 2 3 4 5"),
        ("yolo-obb", "a.txt", f"0 {UNITS}"),
        ("yolo-obb", "a.txt", f"15 {UNITS} 0.5"),
        ("yolo-obb", "a.txt", f"0 {UNITS} 2"),
        ("yolo-obb", "a.txt", "0 10 20 30 20 30 40 10 40 0.5"),
    ],
)
def test_a_malformed_line_is_an_error_with_file_and_line_number(tmp_path, form, name, line):
    good = {"dota": f"{PLACE} plane 0", "yolo-obb": f"0 {UNITS} 0.5", "dota-result": f"a 0.5 {PLACE}"}[form]
    good = "a 0.5 1 2 3 4" if name.startswith("Task2") else good
    write(tmp_path, {name: f"{good}\n\n{good}\n{line}\n{good}\n"})
    for tried in (form, "auto"):
        with pytest.raises(InputError, match=f"{name}, line 4: "):
            read_detections(tmp_path, tried)


@pytest.mark.parametrize(
    ("results", "names", "message"),
    [
        ({}, COCO_IMAGES, "list"),
        ([{**COCO[0], "image_id": 99}], COCO_IMAGES, "entry 1: image_id 99 is not in"),
        ([COCO[0], {**COCO[1], "category_id": 2}], COCO_IMAGES, "entry 2: category_id 2 is not in"),
        ([{**COCO[0], "bbox": [1, 2, 3, float("nan")]}], COCO_IMAGES, "entry 1: must have 4 or 8 finite coordinates"),
        ([{**COCO[0], "score": 1.1}], COCO_IMAGES, "entry 1: the score must be from 0 to 1"),
        ([{"image_id": 7, "category_id": 1, "score": 0.5}], COCO_IMAGES, "entry 1: neither bbox nor poly"),
    ],
)
def test_a_fault_in_coco_results_is_an_error_that_says_where(tmp_path, results, names, message):
    source, images = coco(tmp_path, results, names)
    with pytest.raises(InputError, match=message):
        read_detections(source, coco_images=images)


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("missing", {}, r"missing: must be a folder of \.txt files"),
        ("missing.json", {}, r"missing\.json is not there"),
        ("text", {}, r"a\.txt, line 1: neither DOTA nor YOLO-OBB"),
        ("text", {"form": "coco"}, "a folder, not a file"),
        ("coco/results.json", {"form": "dota"}, r"must be a folder of \.txt files"),
    ],
)
def test_sources_of_the_wrong_kind_are_clear_errors(tmp_path, source, options, message):
    write(tmp_path / "text", {"a.txt": "hello\n"})
    coco(tmp_path / "coco")
    with pytest.raises(InputError, match=message):
        read(tmp_path / source, ["a", "b"], **options)


# ---------------------------------------------------------------- files as people hold them (tests/cases/regions)

CASES = Path(__file__).parent / "cases/regions"
IMAGES = ["a.jpg", "b.jpg"]  # 100 x 100
BOX = [0.35, 0.25, 0.5, 0.3]  # of 10 10 60 40, which most cases hold
SMALL = [0.25, 0.25, 0.1, 0.1]  # of 20 20 30 30


def read_case(name: str, class_map=(), allow_missing: bool = True):
    """Return the regions of a case's image a.jpg: class names, scores and boxes."""
    one, _ = read(CASES / name, IMAGES, allow_missing, class_map)
    return [CLASSES[i] for i in one.class_id], one.score.tolist(), one.box.round(9).tolist()


@pytest.mark.parametrize(
    ("name", "classes", "scores", "boxes"),
    [
        ("dota_nine_columns", ["plane", "storage-tank"], [1, 1], [BOX, [0.8, 0.825, 0.2, 0.25]]),
        ("dota_difficult_minus_one", ["plane"], [1], [BOX]),
        ("dota_late_header", ["plane", "small-vehicle"], [1, 1], [BOX, SMALL]),
        ("yolo_tracked", ["plane", "large-vehicle"], [0.91, 0.55], [BOX, [0.8, 0.825, 0.2, 0.25]]),
        ("yolo_with_classes_txt", ["plane"], [0.91], [BOX]),
        ("coco_obb_predictions.json", ["plane"], [0.9], [BOX]),
        ("coco_ground_truth.json", ["plane"], [1], [BOX]),
    ],
)
def test_files_as_people_hold_them_are_read(name, classes, scores, boxes, capsys) -> None:
    assert read_case(name) == (classes, scores, boxes)
    said = {
        "yolo_with_classes_txt": "classes.txt",
        "coco_obb_predictions.json": "by their position in the order of DOTA-v1.0, counted from 1",
    }
    assert said.get(name, "") in capsys.readouterr().out


def test_units_of_the_image_sides_and_eight_coordinates_in_a_task2_file_are_named(tmp_path) -> None:
    with pytest.raises(InputError, match="these look like units of the image sides, and the dota-result format"):
        read_case("result_normalised")
    with pytest.raises(InputError, match="line 1: 8 coordinates in a Task2 file, which has 4"):
        read_case("result_eight_points_in_task2")
    source, images = coco(tmp_path, [{**COCO[0], "bbox": [0.1, 0.2, 0.5, 0.5]}])
    with pytest.raises(InputError, match="units of the image sides"):
        read_detections(source, coco_images=images)


def test_class_names_of_two_words_stand_before_a_difficulty_or_none(tmp_path) -> None:
    write(tmp_path, {"a.txt": f"{PLACE} storage tank\n{PLACE} Storage Tank 2\n"})
    assert read(tmp_path, ["a"])[0].class_id.tolist() == [2, 2]


def test_a_classes_file_among_the_labels_gives_the_order_of_names(tmp_path) -> None:
    write(tmp_path, {"a.txt": f"0 {UNITS} 0.5\n", "classes.txt": "ship\nplane\n", "own": "harbor\n"})
    assert read(tmp_path, ["a"])[0].class_id.tolist() == [CLASSES.index("ship")]
    assert read(tmp_path, ["a"], classes=tmp_path / "own")[0].class_id.tolist() == [CLASSES.index("harbor")]
    write(tmp_path, {"a.txt": f"2 {UNITS} 0.5\n"})
    with pytest.raises(InputError, match=r"a.txt, line 1: the class is '2'; an index from 0 to 1"):
        read_detections(tmp_path)
    write(tmp_path, {"a.txt": DOTA})  # the labels of another format
    assert len(read(tmp_path, ["a"])[0].score) == 2


def test_one_corner_far_outside_is_clipped_and_counted(capsys) -> None:
    assert read_case("yolo_one_corner_outside")[2] == [[0.55, 0.25, 0.9, 0.3], SMALL]
    assert "clipped 1 regions that reach over the edge of their image" in capsys.readouterr().err


def test_oriented_predictions_of_ultralytics_know_images_by_stem_and_classes_by_position(tmp_path) -> None:
    poly = {"score": 0.5, "poly": [10, 10, 60, 10, 60, 40, 10, 40]}
    write(tmp_path, {"names": "plane\nship\n", "p.json": json.dumps([{"image_id": 12, "category_id": 0, **poly}])})
    (one,) = read(tmp_path / "p.json", ["12.tif"], classes=tmp_path / "names")
    assert one.class_id.tolist() == [0] and np.allclose(one.box, [BOX])
    write(tmp_path, {"p.json": json.dumps([{"image_id": "a", "category_id": 3, **poly}])})
    with pytest.raises(InputError, match="entry 1: category_id 3 is not from 1 to 2"):
        read_detections(tmp_path / "p.json", classes=tmp_path / "names")
    write(tmp_path, {"i.json": json.dumps(COCO_IMAGES)})
    assert len(read(tmp_path / "p.json", ["a", "b"], coco_images=tmp_path / "i.json")[0].score) == 1


def test_equal_doubles_among_coco_images_and_categories_are_tolerated(tmp_path) -> None:
    source, images = coco(tmp_path, names={key: value * 2 for key, value in COCO_IMAGES.items()})
    assert len(read(source, ["a", "b"], coco_images=images)[0].score) == 2


# ---------------------------------------------------------------- anything at all

NUMBER = st.integers(-200, 200).map(str) | st.floats().map(str) | st.floats(0, 1).map(str)
WORD = NUMBER | st.sampled_from([*CLASSES, "0", "gsd:1", "nan", "1e400", "1_0", "٣"]) | st.text(max_size=5)
LINES = st.lists(st.lists(WORD, max_size=12).map(" ".join) | st.sampled_from(DOTA.split("\n") + YOLO.split("\n")))
TEXT = st.text() | LINES.map("\n".join) | st.binary().map(lambda raw: raw.decode("utf-8", "surrogateescape"))
FILE = st.sampled_from(["a.txt", "plane.txt", "Task1_ship.txt", "Task2_x.txt"])


def check_reading(source: Path, **options) -> None:
    """Check that a source gives regions, or the error that names its folder."""
    try:
        detections, _ = read_detections(source, **options)
    except InputError as error:
        assert str(source if source.is_dir() else source.parent) in str(error)
        return
    for one in to_regions(detections, sorted(detections.rows), square):
        denoise(one)  # refuses what is not a region


@settings(deadline=None, max_examples=150)
@given(TEXT, FILE, st.sampled_from([form for form in READERS if form != "coco"]))
def test_any_text_gives_regions_or_the_clear_error(tmp_path_factory, text, name, form):
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / name).write_bytes(text.encode("utf-8", "surrogateescape"))
    check_reading(folder, form=form)
    check_reading(folder)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=10,
)
RESULT_ENTRY = st.fixed_dictionaries(
    {
        "image_id": st.just(7) | JSON,
        "category_id": st.just(3) | JSON,
        "bbox": st.lists(st.floats()) | JSON,
        "score": JSON,
    }
)
IMAGE_ENTRY = st.fixed_dictionaries({"id": st.just(7) | JSON, "file_name": st.text() | JSON, "width": JSON})


@settings(deadline=None, max_examples=150)
@given(
    JSON | st.lists(RESULT_ENTRY, max_size=4),
    st.just(COCO_IMAGES) | st.fixed_dictionaries({"images": st.lists(IMAGE_ENTRY), "categories": JSON}) | JSON,
)
def test_any_json_gives_regions_or_the_clear_error(tmp_path_factory, results, names):
    source, images = coco(tmp_path_factory.mktemp("fuzz"), results, names)
    check_reading(source, coco_images=images)
