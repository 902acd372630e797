"""search.localise and search.evaluate: the map is that of the windows' similarities; annotations are checked."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from PIL import Image
from rasterio.transform import from_origin

from layers.drea import Regions
from option import load_options
from search.encoder import load_encoder
from search.evaluate import read_annotations
from search.localise import encode_scene, overlay, regions_above
from search.rasters import RasterRules
from search.windows import selo_map
from tests.searching import SENTENCE, write
from util.regions.local_features import read_rules, sample
from utils import InputError

pytestmark = pytest.mark.usefixtures("short_trunk")
TEST_DATA = os.environ.get("GALR_TEST_DATA")


@pytest.fixture
def scene(work: Path) -> Path:
    """Write a GeoTIFF of 300 x 360 pixels with a bright quarter."""
    pixels = np.random.default_rng(0).integers(0, 80, (3, 300, 360)).astype(np.uint8)
    pixels[:, :150, 180:] += 150
    return write(work / "scene.tif", pixels, crs="EPSG:32633", transform=from_origin(5e5, 5e6, 10, 10))


def test_the_map_is_that_of_the_windows_similarities_in_the_scenes_coordinates(run, scene, checkpoint):
    command = f"-m search.localise --path_opt tiny.yaml --resume {checkpoint} --scene scene.tif --text '{SENTENCE}' "
    command += "--regions none --scales 64 128 --workers 0 --device cpu "
    for form in ("png", "tif", "geojson"):
        ended = run(f"{command} --out map.{form} --threshold 0.4")
        assert ended.status == 0, ended.err

    rules = read_rules("data/local.h5")
    encoder = load_encoder(load_options("tiny.yaml"), checkpoint, torch.device("cpu"), rules)
    found = encode_scene(encoder, scene, RasterRules(), [64, 128])
    assert found.vectors.shape == (len(found.windows), 32)
    seen = Regions(np.array([3]), np.array([0.9]), np.array([[0.75, 0.2, 0.1, 0.1]]))
    other = encode_scene(encoder, scene, RasterRules(), [64, 128], regions=seen)
    changed = np.abs(other.vectors - found.vectors).max(axis=1) > 0
    top, bottom, left, right = found.windows.T
    np.testing.assert_array_equal(changed, (top <= 60) & (bottom > 60) & (left <= 270) & (right > 270))
    with rasterio.open(scene) as file:
        pixels = np.moveaxis(file.read(), 0, -1)
    top, bottom, left, right = found.windows[7]
    one = sample(Image.fromarray(pixels[top:bottom, left:right]), 64, rules)
    alone = encoder.encode(*(np.stack([part]) for part in one))[0]
    np.testing.assert_allclose(found.vectors[7], alone, atol=1e-5)

    grey = selo_map(300, 360, found.windows, found.vectors @ encoder.sentences([SENTENCE])[0])
    with rasterio.open("map.tif") as file, rasterio.open(scene) as source:
        np.testing.assert_allclose(file.read(1).astype(int), grey, atol=1)
        assert file.crs == source.crs and file.transform == source.transform
    assert Image.open("map.png").size == (360, 300)
    features = json.loads(Path("map.geojson").read_text())["features"]
    assert sum(one["properties"]["pixels"] for one in features) == pytest.approx((grey >= 102).sum(), abs=40)
    longitude, latitude = features[0]["geometry"]["coordinates"][0][0]
    assert 14.99 < longitude < 15.06 and 45.1 < latitude < 45.2


def test_regions_at_or_above_a_threshold_are_outlined_apart():
    grey = np.zeros((40, 60), np.uint8)
    grey[5:10, 5:15], grey[20:30, 40:50], grey[35, [0, 2, 4]] = 200, 255, [127, 128, 129]
    first, second, *single = (one["properties"] for one in regions_above(grey, 0.5)["features"])
    assert first == {"mean": 1.0, "largest": 1.0, "pixels": 100, "coordinates": "pixels"}
    assert second["pixels"] == 50 and [one["largest"] for one in single] == [0.5059, 0.502]
    [_, outline, last] = regions_above(grey, 129 / 255)["features"]
    assert sorted(map(tuple, outline["geometry"]["coordinates"][0][:4])) == [(5, 5), (5, 10), (15, 5), (15, 10)]
    assert last["properties"]["largest"] == 0.5059 and regions_above(0 * grey, 0.1)["features"] == []


def test_the_map_hides_less_of_the_picture_where_it_is_low():
    grey = np.zeros((4, 8), np.uint8)
    grey[:, 4:] = 255
    picture = Image.new("RGB", (8, 4), (100, 100, 100))
    low, high = np.asarray(overlay(picture, grey, 0.8), np.float32)[0, [0, 7]]
    np.testing.assert_allclose(low, 0.8 * 100 + 0.2 * np.array([0, 0, 127.5]), atol=1.5)
    np.testing.assert_allclose(high, 0.2 * 100 + 0.8 * np.array([127.5, 0, 0]), atol=1.5)
    np.testing.assert_array_equal(overlay(picture, grey, 0), picture)


def test_evaluation_scores_each_query_beside_a_flat_map(run, scene, checkpoint, work):
    region = [[180.5, 0], [359, 0], [359, 149], [180.5, 149]]
    queries = [{"caption": f"{SENTENCE}\n", "jpg_name": "scene.jpg", "points": [region], "extra": 1}] * 2
    (work / "anno.json").write_text(json.dumps(queries))
    (work / "scenes").mkdir()
    scene.rename(work / "scenes/scene.tif")
    command = f"-m search.evaluate --path_opt tiny.yaml --resume {checkpoint} --annotations anno.json --images scenes "
    ended = run(command + "--scales 64 128 --workers 0 --device cpu --regions none --json scores.json")
    assert ended.status == 0, ended.err
    scores = json.loads((work / "scores.json").read_text())
    assert len(scores["queries"]) == 2 and scores["mean"]["rsu"] == pytest.approx(scores["queries"][0]["rsu"])
    assert scores["flat"]["rsu"] == pytest.approx(1 - np.exp(-0.707), abs=1e-3)
    assert "| 2 queries, 1 scenes | Rsu | Rda | Ras | Rmi |" in ended.out
    for name, key in (("this model", "mean"), ("a flat map", "flat")):
        row = next(line for line in ended.out.splitlines() if line.startswith(f"| {name} |"))
        printed = [float(cell) for cell in row.split("|")[2:6]]
        assert printed == pytest.approx([scores[key][score] for score in ("rsu", "rda", "ras", "rmi")], abs=1e-4)

    queries[1] = queries[1] | {"points": [[[900, 900], [950, 900], [950, 950]]]}
    (work / "anno.json").write_text(json.dumps(queries))
    refused = run(command + "--regions none")
    assert refused.status == 2 and "no pixel" in refused.message
    refused = run(command)
    assert refused.status == 2 and "--regions" in refused.message
    (work / "anno.json").write_text(json.dumps([queries[0] | {"jpg_name": "../scene.tif"}]))
    refused = run(command + "--regions none")
    assert refused.status == 2 and "lead out of" in refused.message


TRIANGLE = [[1, 2], [3, 4], [5, 6]]


@pytest.mark.parametrize(
    ("tree", "says"),
    [
        ([], "no query"),
        ([{"caption": "a", "jpg_name": "a.jpg", "points": [TRIANGLE[:2]]}], "entry 1 points 1"),
        ([{"caption": " ", "jpg_name": "a.jpg", "points": [TRIANGLE]}], "entry 1 caption"),
    ],
)
def test_annotations_that_do_not_fit_are_named(tmp_path, tree, says):
    (tmp_path / "anno.json").write_text(json.dumps(tree))
    with pytest.raises(InputError, match=says):
        read_annotations(tmp_path / "anno.json")


@pytest.mark.skipif(not TEST_DATA, reason="GALR_TEST_DATA is not set")
def test_the_annotations_of_air_slt_are_read():
    queries = read_annotations(Path(TEST_DATA) / "air_slt/anno.json")
    every = [query for of_scene in queries.values() for query in of_scene]
    assert (len(queries), len(every), sum(len(query.points) for query in every)) == (22, 59, 103)
    assert not any(query.caption.endswith("\n") for query in every)
