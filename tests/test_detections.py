"""Check how detections are put onto the images of the lists: units, names, patches and classes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from test_regions import BOX, DOTA, PLACE, RESULT, read, read_case, square, write

from layers.drea import CLASSES
from util.regions.classes import class_index, parse_class_map
from util.regions.detections import Detections, Row, patch_of, to_regions
from util.regions.readers import read_detections
from utils import InputError

CATEGORIES = [{"id": 1, "name": "ship"}]
POLY = [10, 10, 60, 10, 60, 40, 10, 40]


def coco_regions(folder: Path, images: list[dict], results: list[dict], names: list[str]):
    """Return the regions of COCO results; the size of an image that the file does not know is 1000 x 1000."""
    (folder / "images.json").write_text(json.dumps({"images": images, "categories": CATEGORIES}))
    (folder / "results.json").write_text(json.dumps(results))
    detections, _ = read_detections(folder / "results.json", coco_images=folder / "images.json")
    return to_regions(detections, names, lambda _: (1000, 1000))


def test_coco_sizes_scale_boxes_by_width_and_height_of_their_image(tmp_path) -> None:
    images = [{"id": 1, "file_name": "a.png", "width": 200, "height": 100}, {"id": 2, "file_name": "b.png"}]
    results = [{"image_id": i, "category_id": 1, "bbox": [20, 10, 40, 20], "score": 0.5} for i in (1, 2)]
    known, unknown = coco_regions(tmp_path, images, results, ["a.png", "b.png"])
    assert np.allclose(known.box, [[0.2, 0.2, 0.2, 0.2]])
    assert np.allclose(unknown.box, [[0.04, 0.02, 0.04, 0.02]])


def test_the_corners_of_an_oriented_coco_box_go_before_its_bbox(tmp_path) -> None:
    images = [{"id": 1, "file_name": "a.png", "width": 100, "height": 100}]
    result = {"image_id": 1, "category_id": 1, "bbox": [0, 0, 1, 1], "poly": POLY, "score": 0.5}
    (one,) = coco_regions(tmp_path, images, [result], ["a.png"])
    assert np.allclose(one.box, [[0.35, 0.25, 0.5, 0.3]])


def test_windows_paths_of_coco_images_are_found(tmp_path) -> None:
    images = [{"id": 1, "file_name": "train\\a.png", "width": 100, "height": 100}]
    result = {"image_id": 1, "category_id": 1, "poly": POLY, "score": 0.5}
    (one,) = coco_regions(tmp_path, images, [result], ["a.png"])
    assert len(one.score) == 1


def test_yolo_labels_of_patches_are_not_put_back_for_they_have_no_pixels(tmp_path) -> None:
    (tmp_path / "a__1__0___0.txt").write_text("0 0.1 0.1 0.3 0.1 0.3 0.3 0.1 0.3 0.5\n")
    detections, _ = read_detections(tmp_path)
    assert to_regions(detections, ["a__1__0___0.png"], lambda _: (100, 100))[0].box.round(9).tolist() == [[0.2] * 4]
    (whole,) = to_regions(detections, ["a.png"], lambda _: (100, 100), allow_missing=True)
    assert len(whole.score) == 0


@pytest.mark.parametrize(
    ("alias", "name"),
    [
        ("airplane", "plane"),
        ("vessel", "ship"),
        ("oiltank", "storage-tank"),
        ("baseball field", "baseball-diamond"),
        ("athletic_field", "ground-track-field"),
        ("port", "harbor"),
        ("car", "small-vehicle"),
        ("truck", "large-vehicle"),
        ("football-field", "soccer-ball-field"),
        ("rotary", "roundabout"),
        ("pool", "swimming-pool"),
    ],
)
def test_names_of_other_data_sets_mean_a_class_of_dota(alias, name) -> None:
    assert class_index(alias) == CLASSES.index(name)


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
    write(tmp_path, {"a.txt": DOTA * 2 + line.format("container-crane") * 2 + line.format("wind mill")})
    (one,) = read(tmp_path, ["a"])
    assert len(one.score) == 4
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and "dropped 3 " in message
    assert "container-crane (2)" in message and "wind mill (1)" in message


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


def test_results_of_patches_are_put_back_into_their_image(capsys, tmp_path) -> None:
    assert read_case("result_of_patches", allow_missing=False) == (["plane"], [0.91], [BOX])
    assert "no region" not in capsys.readouterr().err
    lines = ("a__0.5__10___20.png", "a__1024__10___20", "b.c__2__0___0", "x__1__0___0", "y")
    write(tmp_path, {"Task2_ship.txt": "".join(f"{name} 0.5 0 0 10 15\n" for name in lines)})
    detections, _ = read_detections(tmp_path)
    first, second, third = to_regions(detections, ["a.jpg", "b.c.jpg", "z.jpg"], square)
    assert np.allclose(first.box, [[0.3, 0.55, 0.2, 0.3], [0.15, 0.275, 0.1, 0.15]])
    assert np.allclose(second.box, [[0.025, 0.0375, 0.05, 0.075]]) and len(third.box) == 0
    said = capsys.readouterr().err
    assert "no region in 1 of 3 images, which count as looked at: z.jpg" in said
    assert "2 names are no images of the lists: x__1__0___0, y" in said


def test_patches_that_are_images_of_the_lists_themselves_stay_what_they_are(tmp_path) -> None:
    write(tmp_path, {"Task2_ship.txt": "a__1__50___0 0.5 0 0 10 10\n"})
    one, other = to_regions(read_detections(tmp_path)[0], ["a__1__50___0.png", "a.png"], square)
    assert np.allclose(one.box, [[0.05, 0.05, 0.1, 0.1]]) and len(other.box) == 0


@pytest.mark.parametrize("name", ["a", "a__1__0__0", "a__0__0___0", "__1__0___0", "a__1__-5___0", "a__x__0___0"])
def test_other_names_are_no_patches(name) -> None:
    assert patch_of(name) is None


def test_names_of_other_data_sets_are_known_and_can_be_mapped() -> None:
    assert sorted(read_case("result_other_class_names")[0]) == ["plane", "small-vehicle", "storage-tank"]
    mapped = read_case("result_other_class_names", class_map=["vehicle=large vehicle", "Air Plane=none"])
    assert sorted(mapped[0]) == ["large-vehicle", "storage-tank"]


@pytest.mark.parametrize("pair", ["vehicle", "=plane", "vehicle=crane", "vehicle=", "-=plane"])
def test_a_class_map_of_something_else_is_refused(pair) -> None:
    with pytest.raises(InputError, match="--class-map"):
        parse_class_map([pair])


def test_where_most_regions_would_be_dropped_for_their_class_it_is_an_error(tmp_path) -> None:
    write(tmp_path, {"a.txt": DOTA + f"{PLACE} crane 0\n" * 2 + f"{PLACE} dam 0\n"})
    with pytest.raises(InputError, match=r"3 of 5 regions are of classes .*: crane \(2\), dam \(1\); .*--class-map"):
        read(tmp_path, ["a"])
    detections, _ = read_detections(tmp_path)
    (one,) = to_regions(detections, ["a"], square, class_map=parse_class_map(["crane=none"]))
    assert one.class_id.tolist() == [0, 9]
