"""Scenes: bands, brightness, windows, places and outlines are those that the file and the options name."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("cv2", reason="pip install -r requirements-search.txt")
pytest.importorskip("pymilvus", reason="pip install -r requirements-search.txt")
pytest.importorskip("rasterio", reason="pip install -r requirements-search.txt")

import rasterio
from PIL import Image
from rasterio.transform import from_origin

from search.localise import overlay, regions_above, write_map
from search.pictures import records_of, warn_once
from search.rasters import RasterRules, open_scene
from search.store import NOWHERE
from search.windows import selo_windows
from util.images import open_image
from utils import InputError

UTM = {"crs": "EPSG:32633", "transform": from_origin(5e5, 5e6, 10, 10)}


def write(path: Path, pixels: np.ndarray, **more: object) -> Path:
    """Write a GeoTIFF of pixels (bands, height, width)."""
    count, height, width = pixels.shape
    how = {"driver": "GTiff", "count": count, "height": height, "width": width, "dtype": pixels.dtype.name}
    with rasterio.open(path, "w", **how | more) as file:
        file.write(pixels)
    return path


def seen(path: Path, rules: RasterRules = RasterRules()) -> np.ndarray:  # noqa: B008 - immutable
    """Return all pixels of a scene as RGB (height, width, 3)."""
    with open_scene(path, rules) as scene:
        return np.asarray(scene.read((0, scene.height, 0, scene.width)))


def levels(bands: int) -> np.ndarray:
    """Return bands of one value each: 10, 20, 30 and so on."""
    return np.repeat(np.arange(1, bands + 1, dtype=np.uint8) * 10, 64).reshape(bands, 8, 8)


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


def test_a_window_lies_where_its_pixels_lie(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", levels(1), crs="EPSG:4326", transform=from_origin(10, 50, 0.5, 0.25))
    with open_scene(path) as scene:
        assert tuple(scene.place((2, 6, 1, 4))) == pytest.approx((10.5, 48.5, 12, 49.5))
    with open_scene(write(tmp_path / "b.tif", levels(1))) as scene:
        assert scene.place((0, 8, 0, 8)) is None


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


def test_a_picture_is_turned_as_its_mark_says_in_windows_too(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[274] = 6
    PICTURE.save(tmp_path / "a.png", exif=exif)
    turned = np.asarray(PICTURE.transpose(Image.Transpose.ROTATE_270))
    with open_scene(tmp_path / "a.png") as scene:
        assert (scene.height, scene.width) == (64, 48)
        np.testing.assert_array_equal(np.asarray(scene.read((10, 30, 5, 40))), turned[10:30, 5:40])


def test_a_colour_map_gives_its_colours(tmp_path: Path) -> None:
    indexed = PICTURE.quantize(16)
    colours = indexed.getpalette()
    how = {"driver": "GTiff", "count": 1, "height": 48, "width": 64, "dtype": "uint8", "photometric": "PALETTE"}
    with rasterio.open(tmp_path / "a.tif", "w", **how) as file:
        file.write_colormap(1, {i: (*colours[3 * i : 3 * i + 3], 255) for i in range(16)})
        file.write(np.asarray(indexed)[None])
    expected = np.asarray(indexed.convert("RGB"))
    np.testing.assert_array_equal(seen(tmp_path / "a.tif"), expected)
    with open_scene(tmp_path / "a.tif") as scene:
        small = np.asarray(scene.overview(16)).reshape(-1, 3)
    assert {tuple(one) for one in small.tolist()} <= {tuple(one) for one in expected.reshape(-1, 3).tolist()}


def test_one_bit_is_black_and_white_and_white_may_be_zero(tmp_path: Path) -> None:
    bits = PICTURE.convert("1")
    bits.save(tmp_path / "bits.tif", compression="group4")
    np.testing.assert_array_equal(seen(tmp_path / "bits.tif"), np.asarray(bits.convert("RGB")))
    grey = np.asarray(PICTURE.convert("L"))
    write(tmp_path / "white.tif", 255 - grey[None], photometric="MINISWHITE")
    np.testing.assert_array_equal(seen(tmp_path / "white.tif"), np.repeat(grey[..., None], 3, axis=2))


@pytest.mark.parametrize("kind", ["RGB", "P", "1", "white is zero", "turned", "turned png", "jpg", "webp"])
def test_a_scene_shows_what_training_sees(tmp_path: Path, kind: str) -> None:
    exif = Image.Exif()
    exif[274] = 6
    how = {"white is zero": {"tiffinfo": {262: 0}, "compression": "group4"}, "turned": {"exif": exif}}
    mode = {"P": "P", "1": "1", "white is zero": "1"}.get(kind, "RGB")
    path = tmp_path / f"a.{kind if kind in ('jpg', 'webp') else 'png' if kind == 'turned png' else 'tif'}"
    PICTURE.convert(mode).save(path, **how.get(kind.removesuffix(" png"), {}))
    np.testing.assert_array_equal(seen(path), np.asarray(open_image(path)))


def test_a_rotated_raster_lies_in_the_hull_of_its_corners(tmp_path: Path) -> None:
    turned = rasterio.Affine.translation(10, 50) * rasterio.Affine.rotation(45) * rasterio.Affine.scale(1, -1)
    path = write(tmp_path / "a.tif", levels(1), crs="EPSG:4326", transform=turned)
    half = 8 * np.sqrt(0.5)
    with open_scene(path) as scene:
        assert scene.place((0, 8, 0, 8)) == pytest.approx((10, 50 - half, 10 + 2 * half, 50 + half))


@pytest.mark.parametrize(
    ("west", "expected"), [(179.5, (179.5, 180.5)), (200, (-160, -159)), (-190, (170, 171)), (-0.5, (-0.5, 0.5))]
)
def test_longitudes_begin_between_minus_180_and_180(tmp_path: Path, west: float, expected: tuple) -> None:
    path = write(tmp_path / "a.tif", levels(1), crs="EPSG:4326", transform=from_origin(west, 10, 0.125, 0.125))
    with open_scene(path) as scene:
        found = scene.place((0, 8, 0, 8))
    assert (found[0], found[2]) == pytest.approx(expected) and (found[1], found[3]) == pytest.approx((9, 10))


def test_a_raster_that_crosses_the_antimeridian_in_metres(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", levels(1), crs="EPSG:32701", transform=from_origin(151021, 8117000, 4000, 4000))
    with open_scene(path) as scene:
        west, _, east, _ = scene.place((0, 8, 0, 8))
    assert 179 < west < 180 < east < 181


def test_control_points_give_a_place_and_stay_with_the_map(tmp_path: Path) -> None:
    point = rasterio.control.GroundControlPoint
    points = [point(row, column, 15 + column / 80, 45 - row / 80) for row in (0, 8) for column in (0, 8)]
    path = write(tmp_path / "a.tif", levels(1))
    with rasterio.open(path, "r+") as file:
        file.gcps = points, "EPSG:4326"
    with open_scene(path) as scene:
        assert scene.place((0, 8, 0, 8)) == pytest.approx((15, 44.9, 15.1, 45))
    write_map(tmp_path / "map.tif", path, np.zeros((8, 8), np.uint8), RasterRules(), 0.5)
    with rasterio.open(tmp_path / "map.tif") as file:
        assert [(one.row, one.col, one.x, one.y) for one in file.gcps[0]] == [
            (one.row, one.col, one.x, one.y) for one in points
        ]


def test_a_system_of_a_site_gives_no_place_but_a_note_and_outlines_in_pixels(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    site = 'LOCAL_CS["site",UNIT["metre",1],AXIS["Easting",EAST],AXIS["Northing",NORTH]]'
    path = write(tmp_path / "a.tif", levels(1), crs=site, transform=from_origin(0, 128, 0.5, 0.5))
    with open_scene(path) as scene:
        assert scene.place((0, 8, 0, 8)) is None
    warn_once.cache_clear()
    [record] = records_of(tmp_path, "a.tif", path.stat(), [256], RasterRules())
    assert record.west == NOWHERE and "cannot follow" in capsys.readouterr().err
    write_map(tmp_path / "a.geojson", path, np.full((8, 8), 255, np.uint8), RasterRules(), 0.5)
    [feature] = json.loads((tmp_path / "a.geojson").read_text())["features"]
    assert feature["properties"]["coordinates"] == "pixels" and [8, 8] in feature["geometry"]["coordinates"][0]


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


def test_what_a_scene_does_not_say_is_noted_once(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    warn_once.cache_clear()
    bands = write(tmp_path / "bands.tif", levels(13), photometric="MINISBLACK")
    world = write(tmp_path / "world.tif", levels(1))
    (tmp_path / "world.tfw").write_text("0.1\n0\n0\n-0.1\n15\n45\n")
    for path in (bands, world, bands, world):
        records_of(tmp_path, path.name, path.stat(), [256], RasterRules())
    said = capsys.readouterr().err
    assert said.count("scenes of 13 bands without names") == 1 and said.count("a world file beside") == 1
    records_of(tmp_path, bands.name, bands.stat(), [256], RasterRules((4, 3, 2)))
    assert capsys.readouterr().err == ""
