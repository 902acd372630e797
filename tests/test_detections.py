"""Check how detections are put onto the images of the lists: units, names, patches and classes."""

from __future__ import annotations

import numpy as np
import pytest
from test_regions import BOX, COCO, COCO_IMAGES, DOTA, PLACE, RESULT, coco, read, read_case, write

from layers.drea import CLASSES
from util.regions.detections import Detections, Row, class_index, parse_class_map, to_regions
from util.regions.readers import read_detections
from utils import InputError


def test_coco_sizes_scale_boxes_by_width_and_height_of_their_image(tmp_path) -> None:
    sizes = {"images": [{**COCO_IMAGES["images"][0], "width": 200}, COCO_IMAGES["images"][1]]}
    source, images = coco(tmp_path, [COCO[0], {**COCO[0], "image_id": 8}], COCO_IMAGES | sizes)
    detections, _ = read_detections(source, coco_images=images)
    known, unknown = to_regions(detections, ["a.png", "b.png"], lambda _: (1000, 1000))
    assert np.allclose(known.box, [[0.2, 0.2, 0.2, 0.2]])
    assert np.allclose(unknown.box, [[0.04, 0.02, 0.04, 0.02]])


def test_the_corners_of_an_oriented_coco_box_go_before_its_bbox_and_windows_paths_are_found(tmp_path) -> None:
    entry = {**COCO[0], "poly": [10, 10, 60, 10, 60, 40, 10, 40]}
    source, images = coco(tmp_path, [entry], COCO_IMAGES | {"images": [{"id": 7, "file_name": "train\\a.png"}]})
    assert np.allclose(read(source, ["a.png"], coco_images=images)[0].box, [BOX])


def test_yolo_labels_of_patches_are_not_put_back_for_they_have_no_pixels(tmp_path) -> None:
    write(tmp_path, {"a__1__0___0.txt": "0 0.1 0.1 0.3 0.1 0.3 0.3 0.1 0.3 0.5\n"})
    assert read(tmp_path, ["a__1__0___0.png"])[0].box.round(9).tolist() == [[0.2] * 4]
    assert len(read(tmp_path, ["a.png"], allow_missing=True)[0].score) == 0


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("Storage Tank", "storage-tank"),
        ("storage_tank", "storage-tank"),
        ("oiltank", "storage-tank"),
        ("GROUND-TRACK-FIELD", "ground-track-field"),
        ("car", "small-vehicle"),
        ("container-crane", None),
        ("", None),
        ("飞机", None),
    ],
)
def test_class_names_in_any_spelling_and_those_of_other_data_sets_mean_a_class_of_dota(written, name) -> None:
    assert class_index(written) == (name and CLASSES.index(name))


def test_unknown_classes_are_counted_and_dropped_with_one_line(tmp_path, capsys):
    line = "20 10 60 10 60 30 20 30 {} 0\n"
    write(tmp_path, {"a.txt": DOTA * 2 + line.format("container-crane") * 2 + line.format("wind mill")})
    assert len(read(tmp_path, ["a"])[0].score) == 4
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and "dropped 3 " in message
    assert "container-crane (2)" in message and "wind mill (1)" in message


def test_boxes_are_clipped_to_the_image_those_outside_dropped_and_sides_scaled_each_by_its_own_length(tmp_path, capsys):
    corners = "-50 -50 50 -50 50 50 -50 50", "200 0 300 0 300 10 200 10", "5 5 5 9 5 9 5 5"
    write(tmp_path, {"a.txt": "".join(f"{each} ship 0\n" for each in corners)})
    assert np.allclose(read(tmp_path, ["a"])[0].box, [[0.25, 0.25, 0.5, 0.5]])
    assert "dropped 2 regions" in capsys.readouterr().err
    (one,) = to_regions(Detections({"a": [Row("ship", 0.5, (0, 0, 50, 50))]}), ["a"], lambda _: (100, 200))
    assert np.allclose(one.box, [[0.25, 0.125, 0.5, 0.25]])


def test_images_without_regions_are_an_error_with_their_number_and_first_names(tmp_path):
    write(tmp_path, {"a.txt": DOTA})
    with pytest.raises(InputError, match=r"7 of 8 images: b, c, d, e, f, \.\.\."):
        read(tmp_path, list("abcdefgh"))
    assert [len(one.score) for one in read(tmp_path, list("abcdefgh"), allow_missing=True)] == [2] + [0] * 7


def test_dota_results_name_no_images_without_regions_but_must_name_some(tmp_path):
    write(tmp_path, RESULT)
    assert [len(one.score) for one in read(tmp_path, ["a", "c"])] == [2, 0]
    with pytest.raises(InputError, match="2 of 2 images"):
        read(tmp_path, ["x", "y"])


def test_results_of_patches_are_put_back_into_their_image(capsys, tmp_path) -> None:
    assert read_case("result_of_patches", allow_missing=False) == (["plane"], [0.91], [BOX])
    assert "no regions" not in capsys.readouterr().err
    lines = ("a__0.5__10___20.png", "a__1024__10___20", "b.c__2__0___0", "x__1__0___0", "y")
    write(tmp_path, {"Task2_ship.txt": "".join(f"{name} 0.5 0 0 10 15\n" for name in lines)})
    first, second, third = read(tmp_path, ["a.jpg", "b.c.jpg", "z.jpg"])
    assert np.allclose(first.box, [[0.3, 0.55, 0.2, 0.3], [0.15, 0.275, 0.1, 0.15]])
    assert np.allclose(second.box, [[0.025, 0.0375, 0.05, 0.075]]) and len(third.box) == 0
    said = capsys.readouterr().err
    assert "no regions for 1 of 3 images, which count as looked at: z.jpg" in said
    assert "2 names are no images of the lists: x__1__0___0, y" in said


def test_patches_that_are_images_of_the_lists_themselves_stay_what_they_are(tmp_path) -> None:
    write(tmp_path, {"Task2_ship.txt": "a__1__50___0 0.5 0 0 10 10\n"})
    one, other = read(tmp_path, ["a__1__50___0.png", "a.png"])
    assert np.allclose(one.box, [[0.05, 0.05, 0.1, 0.1]]) and len(other.box) == 0


@pytest.mark.parametrize("name", ["a__1__0__0", "a__0__0___0", "__1__0___0", "a__1__-5___0", "a__x__0___0"])
def test_other_names_are_no_patches(name, capsys) -> None:
    (one,) = to_regions(Detections({name: [Row("ship", 1, (0, 0, 9, 9))]}), ["a"], lambda _: (9, 9), True)
    assert len(one.score) == 0 and f"1 names are no images of the lists: {name}" in capsys.readouterr().err


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
    (one,) = read(tmp_path, ["a"], class_map=["crane=none"])
    assert one.class_id.tolist() == [0, 9]
