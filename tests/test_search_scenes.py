"""Scenes: bands, brightness, windows and places are those that the file and the options name; notes say why not."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import rasterio
from PIL import Image
from rasterio.control import GroundControlPoint
from rasterio.transform import from_origin

from search.localise import write_map
from search.pictures import records_of, warn_once
from search.rasters import RasterRules, open_scene
from search.store import NOWHERE
from search.windows import selo_windows
from tests.conftest import run_process
from tests.searching import levels, seen, write
from utils import InputError

WHOLE = (0, 8, 0, 8)
HALF = 8 * np.sqrt(0.5)
TURNED = rasterio.Affine.translation(10, 50) @ rasterio.Affine.rotation(45) @ rasterio.Affine.scale(1, -1)
EARTH = (-180, -90, 180, 90)


def corners(*places: tuple[float, float]) -> list[GroundControlPoint]:
    """Return control points of these rows and columns."""
    return [GroundControlPoint(row, column, 15 + column / 80, 45 - row / 80) for row, column in places]


def test_bands_come_in_the_order_that_file_or_rules_give(tmp_path):
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


def test_more_than_eight_bits_are_stretched_between_two_percentiles_of_each_band(tmp_path):
    ramp = np.arange(10_000, dtype=np.uint16).reshape(1, 100, 100)
    path = write(tmp_path / "ramp.tif", np.concatenate([ramp, ramp * 2, ramp + 500]))
    for percent in (2.0, 10.0):
        expected = ((ramp[0] - 99.99 * percent) / (9999 - 2 * 99.99 * percent) * 255).clip(0, 255).astype(np.uint8)
        found = seen(path, RasterRules(stretch=percent)).astype(int)
        assert np.abs(found - expected[..., None]).max() <= 1
    with open_scene(path) as scene:  # a window is as bright as in the whole
        window = np.asarray(scene.read((40, 60, 0, 50)))
    np.testing.assert_array_equal(window, seen(path)[40:60, :50])


def test_what_is_longer_than_two_of_the_largest_windows_is_a_scene(tmp_path):
    for side, is_scene in ((128, False), (129, True)):
        Image.new("RGB", (side, 30)).save(tmp_path / "a.png")
        records = records_of(tmp_path, "a.png", (tmp_path / "a.png").stat(), [32, 64], RasterRules())
        expected = selo_windows(30, side, [32, 64]).tolist() if is_scene else [[0, 30, 0, side]]
        assert [list(record[3:7]) for record in records] == expected
        assert {record.windows for record in records} == {len(expected)}


def test_a_sparse_raster_is_read(tmp_path):
    how = {"driver": "GTiff", "count": 3, "dtype": "uint8", "tiled": True, "sparse_ok": True, "compress": "jpeg"}
    with rasterio.open(tmp_path / "a.tif", "w", height=10_240, width=10_240, photometric="ycbcr", **how) as file:
        file.write(np.full((3, 256, 256), 100, np.uint8), window=rasterio.windows.Window(5120, 5120, 256, 256))
    with open_scene(tmp_path / "a.tif") as scene:
        window = np.asarray(scene.read((5000, 5400, 5000, 5400)))
    assert abs(int(window[200, 200, 0]) - 100) < 3 and window[0, 0].tolist() == [0, 0, 0]


def test_a_picture_of_the_size_of_air_slt_is_opened(tmp_path):
    Image.new("L", (10_000, 10_001), 77).save(tmp_path / "20.png")
    with open_scene(tmp_path / "20.png") as scene:
        assert (scene.height, scene.width) == (10_001, 10_000)
        assert np.asarray(scene.read((9_900, 10_001, 0, 10))).mean() == 77


def test_of_a_picture_that_is_cut_short_comes_what_is_there_if_the_rules_say_so(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (200, 200, 3)).astype(np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.jpg", quality=95)
    data = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "a.jpg").write_bytes(data[: len(data) * 2 // 3])
    with pytest.raises(InputError, match="cut short"):
        seen(tmp_path / "a.jpg")
    assert seen(tmp_path / "a.jpg", RasterRules(truncated="allow")).shape == (200, 200, 3)


# ---------------------------------------------------------------- the place on the earth


@pytest.mark.parametrize(
    ("system", "transform", "expected"),
    [
        ("EPSG:4326", from_origin(10, 50, 0.125, 0.125), (10, 49, 11, 50)),
        ("EPSG:4326", TURNED, (10, 50 - HALF, 10 + 2 * HALF, 50 + HALF)),  # the hull of its corners
        ("EPSG:4326", from_origin(179.5, 10, 0.125, 0.125), (179.5, 9, 180.5, 10)),
        ("EPSG:4326", from_origin(200, 10, 0.125, 0.125), (-160, 9, -159, 10)),
        ("EPSG:4326", from_origin(-190, 10, 0.125, 0.125), (170, 9, 171, 10)),
        ("EPSG:4326", from_origin(0, 90.125, 45.05, 22.6), EARTH),
        ("EPSG:4326", from_origin(-180, 90.125, 45.05, 22.6), EARTH),
        ("EPSG:4326", from_origin(-180.125, 90.125, 45.05, 22.6), EARTH),
        ("EPSG:32701", from_origin(151021, 8117000, 4000, 4000), (179.72, -17.29, 180.02, -17.0)),  # across 180
        ("EPSG:3413", from_origin(-4e5, 4e5, 1e5, 1e5), (-180, 84.78, 180, 90)),  # the north pole in its middle
        ("EPSG:3031", from_origin(-4e5, 4e5, 1e5, 1e5), (-180, -90, 180, -84.80)),  # the south pole
        ("EPSG:4269", from_origin(179, 52, 0.25, 0.25), (179, 50, 181, 52)),  # degrees of another datum, across 180
        ("EPSG:4269", from_origin(200, 52, 0.25, 0.25), (-160, 50, -158, 52)),
        ("EPSG:3857", from_origin(19926188, -1.9e6, 50000, 50000), (179, -20.23, 182.59, -16.82)),
        ("EPSG:4326", rasterio.Affine(0.125, 0, 10, 0, 0.125, 50), (10, 50, 11, 51)),  # south is up
        ("EPSG:32633", from_origin(5e5, 5e6, 1000, 1000), (15, 45.08, 15.1, 45.15)),  # in JPEG 2000
        ("EPSG:32633+5773", from_origin(5e5, 5e6, 1000, 1000), (15, 45.08, 15.1, 45.15)),  # with heights
    ],
)
def test_bounds_in_systems_as_people_have_them(tmp_path, system, transform, expected):
    name, driver = ("a.jp2", "JP2OpenJPEG") if system == "EPSG:32633" else ("a.tif", "GTiff")
    path = write(tmp_path / name, levels(1), driver=driver, crs=system, transform=transform)
    (tmp_path / "a.jp2.aux.xml").unlink(missing_ok=True)
    with open_scene(path) as scene:
        assert scene.place(WHOLE) == pytest.approx(expected, abs=0.01)


def test_a_window_lies_where_its_pixels_lie(tmp_path):
    path = write(tmp_path / "a.tif", levels(1), crs="EPSG:4326", transform=from_origin(10, 50, 0.5, 0.25))
    with open_scene(path) as scene:
        assert tuple(scene.place((2, 6, 1, 4))) == pytest.approx((10.5, 48.5, 12, 49.5))


def test_control_points_give_a_place_and_stay_with_the_map(tmp_path):
    points = corners((0, 0), (0, 8), (8, 0), (8, 8))
    path = write(tmp_path / "a.tif", levels(1), gcps=points, crs="EPSG:4326")
    with open_scene(path) as scene:
        assert scene.place(WHOLE) == pytest.approx((15, 44.9, 15.1, 45))
    write_map(tmp_path / "map.tif", path, np.zeros((8, 8), np.uint8), RasterRules(), 0.5)
    with rasterio.open(tmp_path / "map.tif") as file:
        found = [(one.row, one.col, one.x, one.y) for one in file.gcps[0]]
    assert found == [(one.row, one.col, one.x, one.y) for one in points]


def noted(path: Path, capsys: pytest.CaptureFixture, rules: RasterRules = RasterRules()) -> str:  # noqa: B008
    """Return what is said of a file that must have no place."""
    warn_once.cache_clear()
    capsys.readouterr()
    [record] = records_of(path.parent, path.name, path.stat(), [256], rules)
    assert record.west == NOWHERE
    return capsys.readouterr().err


def test_a_system_of_a_site_gives_no_place_but_a_note_and_outlines_in_pixels(tmp_path, capsys):
    site = 'LOCAL_CS["site",UNIT["metre",1],AXIS["Easting",EAST],AXIS["Northing",NORTH]]'
    path = write(tmp_path / "a.tif", levels(1), crs=site, transform=from_origin(0, 128, 0.5, 0.5))
    assert "cannot follow" in noted(path, capsys)
    write_map(tmp_path / "a.geojson", path, np.full((8, 8), 255, np.uint8), RasterRules(), 0.5)
    [feature] = json.loads((tmp_path / "a.geojson").read_text())["features"]
    assert feature["properties"]["coordinates"] == "pixels" and [8, 8] in feature["geometry"]["coordinates"][0]


def test_what_a_scene_does_not_say_is_noted_once(tmp_path, capsys):
    path = write(tmp_path / "bands.tif", levels(13), photometric="MINISBLACK")
    assert "scenes of 13 bands without names" in noted(path, capsys)
    records_of(path.parent, path.name, path.stat(), [256], RasterRules())
    assert capsys.readouterr().err == ""
    assert noted(path, capsys, RasterRules((4, 3, 2))) == ""


@pytest.mark.parametrize(
    ("name", "beside"),
    [
        ("A.TIF", "A.TFW"),
        ("a.tif", "a.tif.aux.xml"),
        ("a.tif", "a_RPC.TXT"),
        ("a.jpeg", "a.jgw"),
        ("a.png", "a.wld"),
        ("a.webp", "a.webp.aux.xml"),
    ],
)
def test_a_place_in_a_file_beside_the_scene_is_noted(tmp_path, capsys, name, beside):
    if name.lower().endswith("tif"):
        write(tmp_path / name, levels(1))
    else:
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    assert noted(tmp_path / name, capsys) == ""
    (tmp_path / beside).write_text("0.1\n0\n0\n-0.1\n15\n45\n")
    assert "a file beside them" in noted(tmp_path / name, capsys)


RPCS = rasterio.rpc.RPC(
    500, 500, 45, 1, [1.0] + [0.0] * 19, [1.0] * 20, 8, 4, 15, 1, [1.0] + [0.0] * 19, [1.0] * 20, 8, 4
)


@pytest.mark.parametrize(
    ("half", "says"),
    [
        ({"transform": from_origin(5e5, 5e6, 10, 10)}, "no reference system"),
        ({"crs": "EPSG:32633"}, "no reference system"),
        ({"gcps": corners((0, 0)), "crs": "EPSG:4326"}, "no reference system"),
        ({"gcps": corners((0, 0), (4, 4), (8, 8)), "crs": "EPSG:4326"}, "no reference system"),
        ({"rpcs": RPCS}, "rational polynomials"),
        ({"crs": "EPSG:4326", "transform": from_origin(10, 120, 1, 1)}, "cannot follow"),
    ],
)
def test_half_a_place_is_noted(tmp_path, capsys, half, says):
    path = write(tmp_path / "a.tif", levels(1), **half)
    for stray in tmp_path.glob("*.xml"):
        stray.unlink()
    assert says in noted(path, capsys)


def test_a_proj_that_is_not_there_is_noted(tmp_path, monkeypatch):
    """Read a scene while PROJ_DATA names a folder without PROJ's tables, as another program's environment may."""
    write(tmp_path / "a.tif", levels(1), crs="EPSG:32633", transform=from_origin(5e5, 5e6, 10, 10))
    (tmp_path / "look.py").write_text(
        "import pathlib, utils, search.pictures as p\nfrom search.rasters import RasterRules\nutils.start_logging()\n"
        "f = pathlib.Path('a.tif')\nprint(p.records_of(f.parent, f.name, f.stat(), [256], RasterRules())[0].west)\n"
    )
    monkeypatch.setenv("PROJ_DATA", "/nothing")
    ended = run_process("look.py", tmp_path)
    assert float(ended.out) == NOWHERE and "see PROJ_DATA" in ended.err and ended.status == 0
