"""Scenes: bands, brightness, windows, places and outlines are those that the file and the options name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("cv2", reason="pip install -r requirements-search.txt")
pytest.importorskip("pymilvus", reason="pip install -r requirements-search.txt")
pytest.importorskip("rasterio", reason="pip install -r requirements-search.txt")

import rasterio
from PIL import Image
from rasterio.transform import from_origin

from search.localise import overlay, regions_above
from search.pictures import records_of
from search.rasters import RasterRules, open_scene
from search.windows import selo_windows
from tests.searching import levels, write
from utils import InputError

UTM = {"crs": "EPSG:32633", "transform": from_origin(5e5, 5e6, 10, 10)}


def seen(path: Path, rules: RasterRules = RasterRules()) -> np.ndarray:  # noqa: B008 - immutable
    """Return all pixels of a scene as RGB (height, width, 3)."""
    with open_scene(path, rules) as scene:
        return np.asarray(scene.read((0, scene.height, 0, scene.width)))


def test_bands_come_in_the_order_that_file_or_rules_give(tmp_path: Path) -> None:
    plain = write(tmp_path / "plain.tif", levels(5), photometric="MINISBLACK")
    assert seen(plain)[0, 0].tolist() == [10, 20, 30]
    assert seen(plain, RasterRules((5, 1, 3)))[0, 0].tolist() == [50, 10, 30]
    with pytest.raises(InputError, match="5 bands"):
        seen(plain, RasterRules((6, 1, 3)))
    assert seen(write(tmp_path / "two.tif", levels(2), photometric="MINISBLACK"))[0, 0].tolist() == [10, 10, 10]
    named = write(tmp_path / "named.tif", levels(4), photometric="MINISBLACK")
    with rasterio.open(named, "r+") as file:
        colours = rasterio.enums.ColorInterp
        file.colorinterp = (colours.undefined, colours.blue, colours.green, colours.red)
    assert seen(named)[0, 0].tolist() == [40, 30, 20]


def test_more_than_eight_bits_are_stretched_between_two_percentiles_of_each_band(tmp_path: Path) -> None:
    ramp = np.arange(10_000, dtype=np.uint16).reshape(1, 100, 100)
    path = write(tmp_path / "ramp.tif", np.concatenate([ramp, ramp * 2, ramp + 500]))
    for percent in (2.0, 10.0):
        expected = ((ramp[0] - 99.99 * percent) / (9999 - 2 * 99.99 * percent) * 255).clip(0, 255).astype(np.uint8)
        for band in range(3):
            found = seen(path, RasterRules(stretch=percent))[..., band]
            assert np.abs(found.astype(int) - expected).max() <= 1
    with open_scene(path, RasterRules()) as scene:  # a window is as bright as in the whole
        window = np.asarray(scene.read((40, 60, 0, 50)))
    np.testing.assert_array_equal(window, seen(path)[40:60, :50])


def test_what_is_longer_than_two_of_the_largest_windows_is_a_scene(tmp_path: Path) -> None:
    for side, is_scene in ((128, False), (129, True)):
        Image.new("RGB", (side, 30)).save(tmp_path / "a.png")
        records = records_of(tmp_path, "a.png", (tmp_path / "a.png").stat(), [32, 64], RasterRules())
        expected = selo_windows(30, side, [32, 64]).tolist() if is_scene else [[0, 30, 0, side]]
        assert [list(record[3:7]) for record in records] == expected
        assert {record.windows for record in records} == {len(expected)}


def test_a_threshold_takes_what_is_at_it_and_nothing_below() -> None:
    grey = np.array([[127, 0, 128, 0, 129]], np.uint8)
    found = regions_above(grey, 0.5)["features"]
    assert sorted(one["properties"]["largest"] for one in found) == [0.502, 0.5059]
    assert len(regions_above(grey, 129 / 255)["features"]) == 1


def test_the_map_hides_less_of_the_picture_where_it_is_low() -> None:
    grey = np.zeros((4, 8), np.uint8)
    grey[:, 4:] = 255
    low, high = np.asarray(overlay(Image.new("RGB", (8, 4), (100, 100, 100)), grey, 0.8), np.float32)[0, [0, 7]]
    np.testing.assert_allclose(low, 0.8 * 100 + 0.2 * np.array([0, 0, 127.5]), atol=1.5)
    np.testing.assert_allclose(high, 0.2 * 100 + 0.8 * np.array([127.5, 0, 0]), atol=1.5)


RAMP = np.stack([np.tile(np.arange(64, dtype=np.uint8) * 4, (48, 1)), np.tile(np.arange(48)[:, None] * 5, (1, 64))])
PICTURE = Image.fromarray(np.dstack([RAMP[0], RAMP[1], RAMP[0] // 2]).astype(np.uint8))


def test_a_sparse_raster_is_read_and_one_that_promises_the_earth_is_not(tmp_path: Path) -> None:
    how = {"driver": "GTiff", "count": 3, "dtype": "uint8", "tiled": True, "sparse_ok": True, "compress": "jpeg"}
    with rasterio.open(tmp_path / "a.tif", "w", height=10_240, width=10_240, photometric="ycbcr", **how) as file:
        file.write(np.full((3, 256, 256), 100, np.uint8), window=rasterio.windows.Window(5120, 5120, 256, 256))
    with open_scene(tmp_path / "a.tif") as scene:
        window = np.asarray(scene.read((5000, 5400, 5000, 5400)))
    assert abs(int(window[200, 200, 0]) - 100) < 3 and window[0, 0].tolist() == [0, 0, 0]
    with rasterio.open(
        tmp_path / "b.tif", "w", height=900_000, width=900_000, blockxsize=4096, blockysize=4096, **how
    ) as file:
        pass
    with pytest.raises(InputError, match="promises"):
        seen(tmp_path / "b.tif")


@pytest.mark.parametrize("form", ["webp", "gif", "bmp", "png", "jpg"])
def test_every_form_of_picture_may_be_a_scene(tmp_path: Path, form: str) -> None:
    PICTURE.save(tmp_path / f"a.{form}")
    records = records_of(tmp_path, f"a.{form}", (tmp_path / f"a.{form}").stat(), [16], RasterRules())
    assert len(records) == len(selo_windows(48, 64, [16]))
    with open_scene(tmp_path / f"a.{form}") as scene:
        window = np.asarray(scene.read((16, 32, 16, 32)), int)
    assert np.abs(window - np.asarray(PICTURE, int)[16:32, 16:32]).mean() < 12


def test_a_picture_of_the_size_of_air_slt_is_opened(tmp_path: Path) -> None:
    Image.new("L", (10_000, 10_001), 77).save(tmp_path / "20.png")
    with open_scene(tmp_path / "20.png") as scene:
        assert (scene.height, scene.width) == (10_001, 10_000)
        assert np.asarray(scene.read((9_900, 10_001, 0, 10))).mean() == 77


def test_of_a_picture_that_is_cut_short_comes_what_is_there_if_the_rules_say_so(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (200, 200, 3)).astype(np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.jpg", quality=95)
    data = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "a.jpg").write_bytes(data[: len(data) * 2 // 3])
    with pytest.raises(InputError, match="cut short"):
        seen(tmp_path / "a.jpg")
    assert seen(tmp_path / "a.jpg", RasterRules(truncated="allow")).shape == (200, 200, 3)
