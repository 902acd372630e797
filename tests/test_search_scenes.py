"""Scenes: bands, brightness and windows are those that the file and the options name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import rasterio
from PIL import Image

from search.pictures import records_of
from search.rasters import RasterRules, open_scene
from search.windows import selo_windows
from tests.searching import levels, seen, write
from utils import InputError


def test_bands_come_in_the_order_that_file_or_rules_give(tmp_path: Path) -> None:
    plain = write(tmp_path / "plain.tif", levels(5), photometric="MINISBLACK")
    assert seen(plain)[0, 0].tolist() == [10, 20, 30]
    assert seen(plain, RasterRules((5, 1, 3)))[0, 0].tolist() == [50, 10, 30]
    for bands in ((6, 1, 3), (0, 1, 2)):
        with pytest.raises(InputError, match="5 bands"):
            seen(plain, RasterRules(bands))
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
        found = seen(path, RasterRules(stretch=percent)).astype(int)
        assert np.abs(found - expected[..., None]).max() <= 1
    with open_scene(path) as scene:  # a window is as bright as in the whole
        window = np.asarray(scene.read((40, 60, 0, 50)))
    np.testing.assert_array_equal(window, seen(path)[40:60, :50])


def test_what_is_longer_than_two_of_the_largest_windows_is_a_scene(tmp_path: Path) -> None:
    for side, is_scene in ((128, False), (129, True)):
        Image.new("RGB", (side, 30)).save(tmp_path / "a.png")
        records = records_of(tmp_path, "a.png", (tmp_path / "a.png").stat(), [32, 64], RasterRules())
        expected = selo_windows(30, side, [32, 64]).tolist() if is_scene else [[0, 30, 0, side]]
        assert [list(record[3:7]) for record in records] == expected
        assert {record.windows for record in records} == {len(expected)}


def test_a_sparse_raster_is_read(tmp_path: Path) -> None:
    how = {"driver": "GTiff", "count": 3, "dtype": "uint8", "tiled": True, "sparse_ok": True, "compress": "jpeg"}
    with rasterio.open(tmp_path / "a.tif", "w", height=10_240, width=10_240, photometric="ycbcr", **how) as file:
        file.write(np.full((3, 256, 256), 100, np.uint8), window=rasterio.windows.Window(5120, 5120, 256, 256))
    with open_scene(tmp_path / "a.tif") as scene:
        window = np.asarray(scene.read((5000, 5400, 5000, 5400)))
    assert abs(int(window[200, 200, 0]) - 100) < 3 and window[0, 0].tolist() == [0, 0, 0]


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
