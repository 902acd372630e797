"""A scene opens nothing but itself, whatever it names: other files, files beside it, addresses."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from xml.sax.saxutils import escape

import numpy as np
import pytest

pytest.importorskip("cv2", reason="pip install -r requirements-search.txt")
pytest.importorskip("pymilvus", reason="pip install -r requirements-search.txt")
pytest.importorskip("rasterio", reason="pip install -r requirements-search.txt")

import rasterio
from PIL import EpsImagePlugin
from rasterio.transform import from_origin

from search.pictures import records_of
from search.rasters import RasterRules, open_scene
from utils import InputError

IN_OPEN = 0x20  # linux/inotify.h
SECRET = 200  # the value of the pixels that nobody may see
OWN = 128


@contextlib.contextmanager
def unopened(*paths: Path) -> Iterator[None]:
    """Fail if one of these files is opened meanwhile, by whatever code."""
    libc = ctypes.CDLL(None, use_errno=True)
    watch = libc.inotify_init1(os.O_NONBLOCK)
    assert watch >= 0
    try:
        for path in paths:
            assert libc.inotify_add_watch(watch, os.fsencode(path), IN_OPEN) >= 0
        yield
        with pytest.raises(BlockingIOError):
            os.read(watch, 4096)
    finally:
        os.close(watch)


def write(path: Path, value: int = OWN, side: int = 2048, **more: object) -> Path:
    """Write a raster of one value, large enough that an overview is worth while."""
    how = {"driver": "GTiff", "count": 3, "height": side, "width": side, "dtype": "uint8"} | more
    with rasterio.open(path, "w", **how) as file:
        file.write(np.full((how["count"], side, side), value, "uint8"))
    return path


def look(path: Path) -> np.ndarray:
    """Do what the commands do with a scene: its windows and places, a window, the whole."""
    records_of(path.parent, path.name, path.stat(), [256], RasterRules())
    with open_scene(path) as scene:
        scene.place((0, 8, 0, 8))
        return np.stack([np.asarray(scene.read((0, 64, 0, 64))), np.asarray(scene.overview(64))])


def raw_vrt(secret: Path) -> str:
    """Return a VRT that shows the bytes of any file as pixels."""
    band = (
        '<VRTRasterBand dataType="Byte" band="{}" subClass="VRTRawRasterBand"><SourceFilename relativeToVRT="0">'
        f"{escape(str(secret))}</SourceFilename><ImageOffset>0</ImageOffset><PixelOffset>1</PixelOffset>"
        "<LineOffset>64</LineOffset></VRTRasterBand>"
    )
    inner = f'<VRTDataset rasterXSize="64" rasterYSize="64">{"".join(map(band.format, (1, 2, 3)))}</VRTDataset>'
    source = (
        '<VRTRasterBand dataType="Byte" band="{0}"><SimpleSource><SourceFilename relativeToVRT="0">'
        + escape(inner).replace("{", "{{").replace("}", "}}")
        + "</SourceFilename><SourceBand>{0}</SourceBand>"
        '<SrcRect xOff="0" yOff="0" xSize="64" ySize="64"/><DstRect xOff="0" yOff="0" xSize="1024" ySize="1024"/>'
        "</SimpleSource></VRTRasterBand>"
    )
    return f'<VRTDataset rasterXSize="1024" rasterYSize="1024">{"".join(map(source.format, (1, 2, 3)))}</VRTDataset>'


@pytest.mark.parametrize("form", ["vrt", "path", ":::BASE:::", "/vsizip/", "lower case"])
def test_a_file_that_is_named_as_overviews_is_not_opened(tmp_path: Path, form: str) -> None:
    secret = write(tmp_path / "secret.tif", SECRET, 1024)
    if form == "/vsizip/":
        secret = Path(shutil.make_archive(str(tmp_path / "z"), "zip", tmp_path, "secret.tif"))
    names = {"vrt": raw_vrt(secret), ":::BASE:::": ":::BASE:::secret.tif", "/vsizip/": f"/vsizip/{secret}/secret.tif"}
    path = write(tmp_path / "scene.tif")
    with rasterio.open(path, "r+") as file:
        key = "overview_file" if form == "lower case" else "OVERVIEW_FILE"
        file.update_tags(ns="OVERVIEWS", **{key: names.get(form, str(secret))})
    with unopened(secret), pytest.raises(InputError, match="names another file"):
        look(path)


@pytest.mark.parametrize(
    "name", ["/vsicurl/http://{}/x.tif", "http://{}/x.tif", "/vsis3/bucket/x.tif", "WMS:http://{}"]
)
def test_an_address_is_not_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        host = f"127.0.0.1:{listener.getsockname()[1]}"
        for key in ("AWS_S3_ENDPOINT", "http_proxy"):
            monkeypatch.setenv(key, host)
        path = write(tmp_path / "scene.tif")
        with rasterio.open(path, "r+") as file:
            file.update_tags(ns="OVERVIEWS", OVERVIEW_FILE=name.format(host))
        with pytest.raises(InputError, match="names another file"):
            look(path)
        with pytest.raises(BlockingIOError):
            listener.accept()


@pytest.mark.parametrize(
    ("driver", "suffix", "place"),
    [("GTiff", ".tif", True), ("GTiff", ".tif", False), ("JP2OpenJPEG", ".jp2", False), ("PNG", ".png", False)],
)
def test_files_beside_a_scene_are_not_opened(tmp_path: Path, driver: str, suffix: str, place: bool) -> None:
    where = {"crs": "EPSG:32633", "transform": from_origin(5e5, 5e6, 1, 1)} if place else {}
    path = write(tmp_path / f"scene{suffix}", driver=driver, **where)
    for stray in tmp_path.glob("*.aux.xml"):
        stray.unlink()
    secret = write(tmp_path / "secret.tif", SECRET, 1024)
    beside = []
    ends = (".ovr", ".msk", ".aux", ".aux.xml", ".OVR")
    for end in (*ends, ".tfw", ".wld", ".j2w", ".pgw", ".rrd", ".prj", ".tab", "_RPC.TXT", ".RPB", "_rpc.txt", ".IMD"):
        for name in (f"scene{suffix}{end}", f"scene{end}"):
            beside.append(tmp_path / name)
            shutil.copy(secret, beside[-1])
    with unopened(*beside, secret):
        assert np.abs(look(path).astype(int) - OWN).max() <= 2


@pytest.mark.parametrize("name", ["GTIFF_DIR:1:secret.tif", "zip!secret.tif", "secret.tif,x.tif", "a?b#c&d=%2e%2e.tif"])
def test_a_name_is_a_name_and_no_connection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    secret = write(Path("secret.tif"), SECRET)
    write(tmp_path / "plain.tif").rename(tmp_path / name)
    with unopened(secret):
        assert (look(Path(name)) == OWN).all()


def test_overviews_within_the_file_are_read(tmp_path: Path) -> None:
    path = write(tmp_path / "scene.tif", tiled=True)
    with rasterio.open(path, "r+") as file:
        file.build_overviews([2, 4])
        assert file.overviews(1) == [2, 4]
    assert (look(path) == OWN).all()


def test_a_format_of_several_files_is_refused_with_the_way_out(tmp_path: Path) -> None:
    """Refuse Erdas Imagine: GDAL opens the .ige and .rrd files that it names, and whatever lies beside it."""
    path = tmp_path / "scene.img"
    path.write_bytes(b"EHFA_HEADER_TAG\0" + bytes(100))
    with pytest.raises(InputError, match="gdal_translate"):
        look(path)
    path.write_text('<VRTDataset rasterXSize="9" rasterYSize="9"/>')
    with pytest.raises(InputError, match="cannot be decoded"):
        look(path)


def test_a_picture_that_is_a_program_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "scene.png"
    path.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n(/etc/passwd) (r) file\n%%EOF\n")
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_, **__: pytest.fail("Ghostscript was started"))
    with pytest.raises(InputError, match="cannot be decoded"):
        look(path)


def test_drivers_that_read_other_files_are_not_there() -> None:
    with rasterio.Env() as environment:
        drivers = set(environment.drivers())
    assert {"GTiff", "JP2OpenJPEG"} <= drivers
    assert not {"VRT", "WMS", "HTTP", "GTI", "HFA", "STACTA", "Zarr", "netCDF", "MRF"} & drivers
