"""A scene opens nothing but itself, whatever it names: other files, files beside it, addresses."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import rasterio
from PIL import EpsImagePlugin
from rasterio.transform import from_origin

from search.pictures import records_of
from search.rasters import RasterRules, open_scene
from tests.searching import write
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


def flat(path: Path, value: int = OWN, side: int = 2048, **more: object) -> Path:
    """Write a raster of one value, large enough that an overview is worth while."""
    return write(path, np.full((3, side, side), value, np.uint8), **more)


def look(path: Path) -> np.ndarray:
    """Do what the commands do with a scene: its windows and places, a window, the whole."""
    records_of(path.parent, path.name, path.stat(), [256], RasterRules())
    with open_scene(path) as scene:
        scene.place((0, 8, 0, 8))
        return np.stack([np.asarray(scene.read((0, 64, 0, 64))), np.asarray(scene.overview(64))])


RAW_VRT = (  # shows the bytes of any file as pixels
    '<VRTDataset rasterXSize="64" rasterYSize="64"><VRTRasterBand dataType="Byte" band="1" subClass="VRTRawRasterBand">'
    '<SourceFilename relativeToVRT="0">{secret}</SourceFilename><ImageOffset>0</ImageOffset>'
    "<PixelOffset>1</PixelOffset><LineOffset>64</LineOffset></VRTRasterBand></VRTDataset>"
)
NAMES = [RAW_VRT, "{secret}", ":::BASE:::secret.tif", "/vsizip/{folder}/z.zip/secret.tif"]
ADDRESSES = ["/vsicurl/http://{host}/x.tif", "http://{host}/x.tif", "/vsis3/bucket/x.tif", "WMS:http://{host}"]


@pytest.mark.parametrize("key", ["OVERVIEW_FILE", "overview_file"])
@pytest.mark.parametrize("name", NAMES + ADDRESSES)
def test_what_is_named_as_overviews_is_not_opened(tmp_path, monkeypatch, name, key):
    secret = flat(tmp_path / "secret.tif", SECRET, 1024)
    archive = Path(shutil.make_archive(str(tmp_path / "z"), "zip", tmp_path, "secret.tif"))
    path = flat(tmp_path / "scene.tif")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        host = f"127.0.0.1:{listener.getsockname()[1]}"
        monkeypatch.setenv("AWS_S3_ENDPOINT", host)
        monkeypatch.setenv("http_proxy", host)
        with rasterio.open(path, "r+") as file:
            file.update_tags(ns="OVERVIEWS", **{key: name.format(secret=secret, folder=tmp_path, host=host)})
        with unopened(secret, archive), pytest.raises(InputError, match="names another file"):
            look(path)
        with pytest.raises(BlockingIOError):
            listener.accept()


@pytest.mark.parametrize(
    ("driver", "suffix", "place"),
    [("GTiff", ".tif", True), ("GTiff", ".tif", False), ("JP2OpenJPEG", ".jp2", False), ("PNG", ".png", False)],
)
def test_files_beside_a_scene_are_not_opened(tmp_path, driver, suffix, place):
    where = {"crs": "EPSG:32633", "transform": from_origin(5e5, 5e6, 1, 1)} if place else {}
    path = flat(tmp_path / f"scene{suffix}", driver=driver, **where)
    for stray in tmp_path.glob("*.aux.xml"):
        stray.unlink()
    secret = flat(tmp_path / "secret.tif", SECRET, 1024)
    beside = []
    ends = (".ovr", ".msk", ".aux", ".aux.xml", ".OVR")
    for end in (*ends, ".tfw", ".wld", ".j2w", ".pgw", ".rrd", ".prj", ".tab", "_RPC.TXT", ".RPB", "_rpc.txt", ".IMD"):
        for name in (f"scene{suffix}{end}", f"scene{end}"):
            beside.append(tmp_path / name)
            shutil.copy(secret, beside[-1])
    with unopened(*beside, secret):
        assert np.abs(look(path).astype(int) - OWN).max() <= 2


@pytest.mark.parametrize("name", ["GTIFF_DIR:1:secret.tif", "zip!secret.tif", "secret.tif,x.tif", "a?b#c&d=%2e%2e.tif"])
def test_a_name_is_a_name_and_no_connection(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    secret = flat(Path("secret.tif"), SECRET)
    flat(tmp_path / "plain.tif").rename(tmp_path / name)
    with unopened(secret):
        assert (look(Path(name)) == OWN).all()


def test_overviews_within_the_file_are_read(tmp_path):
    path = flat(tmp_path / "scene.tif", tiled=True)
    with rasterio.open(path, "r+") as file:
        file.build_overviews([2, 4])
        assert file.overviews(1) == [2, 4]
    assert (look(path) == OWN).all()


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.img", "EHFA_HEADER_TAG\0", "gdal_translate"),  # Erdas Imagine: GDAL opens the files that it names
        ("a.img", '<VRTDataset rasterXSize="9" rasterYSize="9"/>', "cannot be decoded"),
        ("a.png", "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n(/etc/passwd) (r) file\n%%EOF\n", "be decoded"),
    ],
)
def test_a_format_of_several_files_and_a_program_are_refused(tmp_path, monkeypatch, name, content, says):
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_, **__: pytest.fail("Ghostscript was started"))
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=says):
        look(tmp_path / name)


def test_drivers_that_read_other_files_are_not_there():
    with rasterio.Env() as environment:
        drivers = set(environment.drivers())
    assert {"GTiff", "JP2OpenJPEG"} <= drivers
    assert not {"VRT", "WMS", "HTTP", "GTI", "HFA", "STACTA", "Zarr", "netCDF", "MRF"} & drivers
