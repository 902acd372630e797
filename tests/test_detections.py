"""Detections put onto the images of the lists: units, names, patches and classes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from layers.drea import CLASSES
from util.regions.classes import class_index
from util.regions.detections import to_regions
from util.regions.formats import read_detections

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
    (tmp_path / "a__1__50___0.txt").write_text("0 0.1 0.1 0.3 0.1 0.3 0.3 0.1 0.3 0.5\n")
    detections, _ = read_detections(tmp_path)
    assert to_regions(detections, ["a__1__50___0.png"], lambda _: (100, 100))[0].box.round(9).tolist() == [[0.2] * 4]
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
