"""Readers of detectors' files: each format, its faults named by file and line, and any text at all."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from layers.drea import CLASSES, denoise
from util.errors import InputError
from util.regions.formats import FORMATS, Detections, Row, class_index, detect_format, read_detections, to_regions

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


def read(source: Path, stems: list[str], **options):
    return to_regions(read_detections(source, **options)[0], stems, square)


@pytest.mark.parametrize("form", FORMATS)
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


def test_dota_results_with_four_coordinates_and_spaces_in_image_names(tmp_path):
    write(tmp_path, {"Task2_plane.txt": "a 0.75 20 10 60 30\nmy image.tif 0.5 0 0 50 100\n"})
    first, second = read(tmp_path, ["a", "my image"])
    assert np.allclose(first.box, [PLANE]) and np.allclose(second.box, [[0.25, 0.5, 0.5, 1]])


def test_result_files_named_after_classes_only_and_numbered_images(tmp_path):
    write(tmp_path, {"plane.txt": "1 0.75 20 10 60 10 60 30 20 30\n", "Large Vehicle.txt": "1 0.5 60 40 90 70\n"})
    assert detect_format(tmp_path) == "dota-result"
    (one,) = read(tmp_path, ["1"])
    assert sorted(one.class_id) == [0, 9]


@pytest.mark.parametrize("text", ["", "\n\n", "imagesource:GoogleEarth\ngsd:null\n"])
def test_an_empty_file_is_an_image_without_regions(tmp_path, text):
    write(tmp_path, {"a.txt": text, "b.txt": DOTA})
    first, second = read(tmp_path, ["a", "b"])
    assert len(first.score) == 0 and len(second.score) == 2


def test_a_folder_of_empty_files_means_that_nothing_was_found(tmp_path):
    write(tmp_path, {"a.txt": "", "b.txt": ""})
    assert [len(one.score) for one in read(tmp_path, ["a", "b"])] == [0, 0]


def test_windows_text_is_read(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbf" + DOTA.replace("\n", "\r\n").encode())
    assert len(read(tmp_path, ["a"])[0].score) == 2


@pytest.mark.parametrize(
    ("name", "index"),
    [
        ("plane", 0),
        ("Storage Tank", 2),
        ("storage_tank", 2),
        ("StorageTank", 2),
        ("GROUND-TRACK-FIELD", 6),
        ("swimming-pool", 14),
        ("container-crane", None),
        ("", None),
        ("飞机", None),
    ],
)
def test_class_names_map_in_any_spelling(name, index):
    assert class_index(name) == index


def test_unknown_classes_are_counted_and_dropped_with_one_line(tmp_path, capsys):
    line = "20 10 60 10 60 30 20 30 {} 0\n"
    write(tmp_path, {"a.txt": DOTA + line.format("container-crane") * 2 + line.format("wind mill")})
    (one,) = read(tmp_path, ["a"])
    assert len(one.score) == 2
    message = capsys.readouterr().err
    assert (
        message.count("\n") == 1 and "3" in message and "container-crane (2)" in message and "wind mill (1)" in message
    )


def test_a_class_file_gives_the_names_of_yolo_indices(tmp_path):
    classes = tmp_path / "classes"
    classes.write_text("airport\nship\n")
    write(tmp_path / "boxes", {"a.txt": YOLO.splitlines()[0].replace("0", "1", 1) + "\n"})
    (one,) = read(tmp_path / "boxes", ["a"], classes=classes)
    assert one.class_id.tolist() == [CLASSES.index("ship")]


def test_boxes_are_clipped_to_the_image_and_those_outside_are_dropped(tmp_path, capsys):
    corners = "-50 -50 50 -50 50 50 -50 50", "200 0 300 0 300 10 200 10", "5 5 5 9 5 9 5 5"
    write(tmp_path, {"a.txt": "".join(f"{each} ship 0\n" for each in corners)})
    (one,) = read(tmp_path, ["a"])
    assert np.allclose(one.box, [[0.25, 0.25, 0.5, 0.5]])
    assert "dropped 2 regions" in capsys.readouterr().err


def test_sides_are_scaled_each_by_its_own_length():
    detections = Detections({"a": [Row("ship", 0.5, (0, 0, 50, 50))]})
    (one,) = to_regions(detections, ["a"], lambda _: (100, 200))
    assert np.allclose(one.box, [[0.25, 0.125, 0.5, 0.25]])


def test_images_without_regions_are_an_error_with_their_number_and_first_names(tmp_path):
    write(tmp_path, {"a.txt": DOTA})
    stems = ["a", *"bcdefgh"]
    detections, _ = read_detections(tmp_path)
    with pytest.raises(InputError, match=r"7 of 8 images: b, c, d, e, f, \.\.\."):
        to_regions(detections, stems, square)
    regions = to_regions(detections, stems, square, allow_missing=True)
    assert [len(one.score) for one in regions] == [2] + [0] * 7


def test_dota_results_name_no_images_without_regions_but_must_name_some(tmp_path):
    write(tmp_path, RESULT)
    assert [len(one.score) for one in read(tmp_path, ["a", "c"])] == [2, 0]
    with pytest.raises(InputError, match="2 of 2 images"):
        read(tmp_path, ["x", "y"])


PLACE = "1 2 3 4 5 6 7 8"
UNITS = ".1 .2 .3 .4 .5 .6 .7 .8"


@pytest.mark.parametrize(
    ("form", "name", "line"),
    [
        ("dota", "a.txt", f"{PLACE} plane"),
        ("dota", "a.txt", f"{PLACE} plane easy"),
        ("dota", "a.txt", "1 2 3 4 5 6 7 plane 0"),
        ("dota", "a.txt", "1 2 3 4 5 6 7 nan plane 0"),
        ("dota", "a.txt", "1 2 3 4 5 6 7 1e999 plane 0"),
        ("dota", "a.txt", "gsd:0.1"),  # a header line, but not on top
        ("dota-result", "Task1_plane.txt", f"a 1.5 {PLACE}"),
        ("dota-result", "Task1_plane.txt", f"a nan {PLACE}"),
        ("dota-result", "Task1_plane.txt", "a 0.5 1 2 3 4"),
        ("dota-result", "Task1_plane.txt", "a 0.5 1 2 3 4 5 6 7 x"),
        ("dota-result", "Task2_plane.txt", "a 0.5 1 2 3"),
        ("dota-result", "plane.txt", "a 0.5 1 2 3 4 5"),
        ("yolo-obb", "a.txt", f"0 {UNITS}"),
        ("yolo-obb", "a.txt", f"15 {UNITS} 0.5"),
        ("yolo-obb", "a.txt", f"-1 {UNITS} 0.5"),
        ("yolo-obb", "a.txt", f"0.0 {UNITS} 0.5"),
        ("yolo-obb", "a.txt", f"0 {UNITS} 2"),
        ("yolo-obb", "a.txt", "0 10 20 30 20 30 40 10 40 0.5"),
        ("yolo-obb", "a.txt", "one two"),
    ],
)
def test_a_malformed_line_is_an_error_with_file_and_line_number(tmp_path, form, name, line):
    good = {"dota": f"{PLACE} plane 0", "yolo-obb": f"0 {UNITS} 0.5", "dota-result": f"a 0.5 {PLACE}"}[form]
    if name.startswith("Task2"):
        good = "a 0.5 1 2 3 4"
    write(tmp_path, {name: f"{good}\n\n{good}\n{line}\n{good}\n"})
    with pytest.raises(InputError, match=f"{name}, line 4: "):
        read_detections(tmp_path, form)
    with pytest.raises(InputError, match=f"{name}, line 4: "):
        read_detections(tmp_path)  # as does the format told from the content


@pytest.mark.parametrize(
    ("results", "names", "message"),
    [
        ({}, COCO_IMAGES, "list"),
        ([{**COCO[0], "image_id": 99}], COCO_IMAGES, "entry 1: image_id 99 is not in"),
        ([COCO[0], {**COCO[1], "category_id": 2}], COCO_IMAGES, "entry 2: category_id 2 is not in"),
        ([{**COCO[0], "bbox": [1, 2, 3]}], COCO_IMAGES, "entry 1 bbox"),
        ([{**COCO[0], "bbox": [1, 2, -3, 4]}], COCO_IMAGES, "entry 1: bbox has a negative"),
        ([{**COCO[0], "bbox": [1, 2, 3, float("nan")]}], COCO_IMAGES, "entry 1 bbox 4"),
        ([{**COCO[0], "score": 1.1}], COCO_IMAGES, "entry 1 score"),
        ([{"image_id": 7}], COCO_IMAGES, "entry 1 category_id"),
        (COCO, [], "dictionary"),
        (COCO, {**COCO_IMAGES, "images": COCO_IMAGES["images"] * 2}, "twice"),
        (COCO, {**COCO_IMAGES, "categories": COCO_IMAGES["categories"] * 2}, "twice"),
    ],
)
def test_a_fault_in_coco_results_is_an_error_that_says_where(tmp_path, results, names, message):
    source, images = coco(tmp_path, results, names)
    with pytest.raises(InputError, match=message):
        read_detections(source, coco_images=images)


def test_sources_of_the_wrong_kind_are_clear_errors(tmp_path):
    write(tmp_path, {"a.txt": "hello\n"})
    (tmp_path / "empty").mkdir()
    source, images = coco(tmp_path / "coco")
    with pytest.raises(InputError, match="not there"):
        read_detections(tmp_path / "missing")
    with pytest.raises(InputError, match=r"a\.txt, line 1: neither DOTA nor YOLO-OBB"):
        read_detections(tmp_path)
    with pytest.raises(InputError, match=r"no \.txt files"):
        read_detections(tmp_path / "empty")
    with pytest.raises(InputError, match="--coco-images"):
        read_detections(source)
    with pytest.raises(InputError, match="one JSON file"):
        read_detections(tmp_path, "coco", coco_images=images)
    with pytest.raises(InputError, match="a folder"):
        read_detections(source, "dota")
    write(tmp_path / "twice", {"a.txt": DOTA, "a.b.txt": DOTA})
    with pytest.raises(InputError, match="second file for image a"):
        read_detections(tmp_path / "twice")


NUMBER = st.integers(-200, 200).map(str) | st.floats().map(str) | st.floats(0, 1).map(str)
WORD = NUMBER | st.sampled_from([*CLASSES, "0", "gsd:1", "nan", "1e400", "1_0", "٣"]) | st.text(max_size=5)
LINES = st.lists(st.lists(WORD, max_size=12).map(" ".join) | st.sampled_from(DOTA.split("\n") + YOLO.split("\n")))
TEXT = st.text() | LINES.map("\n".join) | st.binary().map(lambda raw: raw.decode("utf-8", "surrogateescape"))


@settings(deadline=None, max_examples=150)
@given(TEXT, st.sampled_from(["a.txt", "plane.txt", "Task1_ship.txt", "Task2_x.txt"]), st.sampled_from(FORMATS[:3]))
def test_any_text_gives_regions_or_the_clear_error(tmp_path_factory, text, name, form):
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / name).write_bytes(text.encode("utf-8", "surrogateescape"))
    for tried in (form, "auto"):
        try:
            detections, _ = read_detections(folder, tried)
        except InputError as error:
            assert str(folder) in str(error)
            continue
        for one in to_regions(detections, sorted(detections.rows), square):
            denoise(one)  # refuses what is not a region


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=10,
)
RESULT_ENTRY = st.fixed_dictionaries(
    {
        "image_id": st.sampled_from([7, 8]) | JSON,
        "category_id": st.sampled_from([1, 3]) | JSON,
        "bbox": st.lists(st.floats() | st.integers(), min_size=4, max_size=4) | JSON,
        "score": st.floats(0, 1) | JSON,
    }
)
IMAGE_ENTRY = st.fixed_dictionaries(
    {"id": st.sampled_from([7, 8]) | JSON, "file_name": st.text() | JSON, "width": st.floats() | JSON, "height": JSON}
)


@settings(deadline=None, max_examples=150)
@given(
    JSON | st.lists(RESULT_ENTRY, max_size=4),
    st.just(COCO_IMAGES) | st.fixed_dictionaries({"images": st.lists(IMAGE_ENTRY), "categories": JSON}) | JSON,
)
def test_any_json_gives_regions_or_the_clear_error(tmp_path_factory, results, names):
    source, images = coco(tmp_path_factory.mktemp("fuzz"), results, names)
    try:
        detections, _ = read_detections(source, coco_images=images)
    except InputError as error:
        assert str(source.parent) in str(error)
        return
    for one in to_regions(detections, sorted(detections.rows), square):
        denoise(one)
