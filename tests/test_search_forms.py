"""A file shows the same pixels as training image, as image of an index and as scene, whatever its form."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import rasterio
from PIL import Image

from search.pictures import Pictures, records_of
from search.rasters import RasterRules, open_scene
from tests.searching import seen, write
from util.images import decode, open_image
from util.regions.local_features import read_rules
from utils import InputError

WIDTH, HEIGHT, SIDE = 64, 48, 16
RAMP = np.mgrid[:HEIGHT, :WIDTH].astype(np.uint8)
PICTURE = Image.fromarray(np.dstack([RAMP[1] * 4, RAMP[0] * 5, (RAMP[0] // 8 + RAMP[1] // 8) % 2 * 255]))
GREY = np.asarray(PICTURE.convert("L"))
RGB = np.moveaxis(np.asarray(PICTURE), -1, 0)
COLOURS = np.stack([np.arange(256), 255 - np.arange(256), np.arange(256) // 2], axis=1).astype(np.uint8)


def pillow(mode: str = "RGB", suffix: str = "tif", mark: int = 0, **how: object) -> Callable[[Path], Path]:
    """Return a writer of the picture by Pillow, turned by an orientation mark."""
    exif = Image.Exif()
    if mark:
        exif[274] = mark

    def save(folder: Path) -> Path:
        PICTURE.convert(mode).save(folder / f"a.{suffix}", exif=exif, **how)
        return folder / f"a.{suffix}"

    return save


def gdal(bands: np.ndarray, colours: np.ndarray | None = None, **how: object) -> Callable[[Path], Path]:
    """Return a writer of bands (C, H, W) by GDAL, with a colour table."""

    def save(folder: Path) -> Path:
        if colours is None:
            return write(folder / "a.tif", bands, **how)
        _, height, width = bands.shape
        size = {"count": 1, "height": height, "width": width, "dtype": bands.dtype.name}
        with rasterio.open(folder / "a.tif", "w", driver="GTiff", **size, **how) as file:
            file.write_colormap(1, {i: (*map(int, colour), 255) for i, colour in enumerate(colours)})
            file.write(bands)  # after the colours, or GDAL drops them
        return folder / "a.tif"

    return save


def index_pixels(path: Path, scale: int, size: int) -> tuple[list, list[np.ndarray]]:
    """Return the windows of a file in an index, and the pixels of each as the model gets them."""
    records = records_of(path.parent, path.name, path.stat(), [scale], RasterRules())
    pictures = Pictures(path.parent, records, size, read_rules("zeros"), RasterRules())
    return [record.window for record in records], [pictures[row][1][0] for row in range(len(records))]


def look(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return a file's pixels in training, in the windows of an index and as scene; resized in training, in an index."""
    whole = seen(path)
    with open_scene(path) as scene:
        assert np.asarray(scene.overview(max(scene.height, scene.width))).shape == whole.shape
    joined = np.zeros_like(whole)
    windows, pixels = index_pixels(path, SIDE, SIDE)
    assert len(windows) > 1
    for (top, bottom, left, right), part in zip(windows, pixels, strict=True):
        joined[top:bottom, left:right] = part
    [small] = index_pixels(path, max(WIDTH, HEIGHT), 32)[1]
    return np.asarray(open_image(path)), joined, whole, decode(str(path), 32), small


FORMS = {
    "grey": pillow("L"),
    "grey, alpha": pillow("LA"),
    "alpha": pillow("RGBA"),
    "CMYK": pillow("CMYK"),
    "CMYK, JPEG": pillow("CMYK", compression="jpeg"),
    "YCbCr, LZW": pillow("YCbCr", compression="tiff_lzw"),
    "palette": pillow("P"),
    "palette of GDAL": gdal(GREY[None], COLOURS),
    "palette of 4 bits": gdal(GREY[None] >> 4, COLOURS[::16], nbits=4),
    "1 bit, group 4": pillow("1", compression="group4"),
    "1 bit, white is zero": pillow("1", compression="group4", tiffinfo={262: 0}),
    "2 bits": gdal(GREY[None] >> 6, nbits=2),
    "4 bits, white is zero": gdal(GREY[None] >> 4, nbits=4, photometric="MINISWHITE"),
    "white is zero": gdal(255 - GREY[None], photometric="MINISWHITE"),
    "bands apart": gdal(RGB, interleave="band"),
    "tiles": gdal(RGB, tiled=True, blockxsize=16, blockysize=16, compress="deflate", predictor=2),
    "nodata of 8 bits": gdal(RGB, nodata=0),
    "turned": pillow(mark=6),
    "turned, with a place": pillow(tiffinfo={274: 6, 33550: (1.0, 1.0, 0.0), 33922: (0.0,) * 6}),
    "turned JPEG": pillow(suffix="jpg", mark=6),
    "mirrored PNG": pillow(suffix="png", mark=5),
    "palette GIF": pillow("P", suffix="gif"),
    "WebP": pillow(suffix="webp"),
    "BMP of 1 bit": pillow("1", suffix="bmp"),
}


UPRIGHT = np.asarray(PICTURE)
SEEN = {  # what must be seen, by our own reckoning
    "palette of 4 bits": COLOURS[::16][GREY >> 4],
    "2 bits": np.repeat((GREY >> 6)[..., None] * 85, 3, axis=2),
    "white is zero": np.repeat(GREY[..., None], 3, axis=2),
    "1 bit, white is zero": np.asarray(PICTURE.convert("1").convert("RGB")),
    "CMYK": UPRIGHT,
    "turned": np.rot90(UPRIGHT, -1),
    "turned, with a place": np.rot90(UPRIGHT, -1),
    "mirrored PNG": UPRIGHT.swapaxes(0, 1),
    "nodata of 8 bits": UPRIGHT,
}


@pytest.mark.parametrize("form", FORMS)
def test_a_file_shows_the_same_pixels_in_training_in_an_index_and_as_scene(tmp_path, form):
    trained, indexed, shown, resized, small = look(FORMS[form](tmp_path))
    np.testing.assert_array_equal(indexed, trained)
    np.testing.assert_array_equal(shown, trained)
    np.testing.assert_array_equal(small, resized)
    if form in SEEN:
        np.testing.assert_array_equal(trained, SEEN[form])


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_a_palette_keeps_its_colours_when_the_scene_is_reduced(tmp_path, kind):
    values = GREY // 64 * 64
    with open_scene(gdal(values[None].astype(kind), COLOURS)(tmp_path)) as scene:
        small = np.asarray(scene.overview(16)).reshape(-1, 3)
    assert {tuple(one) for one in small.tolist()} <= {tuple(one) for one in COLOURS[values].reshape(-1, 3).tolist()}


WIDE = {  # forms of more than 8 bits: scenes are stretched, training images must be converted
    "16 bits": gdal(RGB.astype(np.uint16) * 20),
    "float": gdal(RGB.astype(np.float32) / 1000),
    "8 bits, signed": gdal((GREY[None].astype(int) - 128).astype(np.int8)),
    "16 bits, white is zero": gdal(5100 - GREY[None].astype(np.uint16) * 20, photometric="MINISWHITE"),
}


@pytest.mark.parametrize("form", WIDE)
def test_more_than_eight_bits_are_stretched_in_an_index_and_refused_in_training(tmp_path, form):
    path = WIDE[form](tmp_path)
    with pytest.raises(InputError, match=r"a\.tif (has|cannot)"):
        open_image(path)
    expected = np.stack([GREY] * 3, axis=-1) if "white" in form or "signed" in form else UPRIGHT
    assert np.corrcoef(seen(path).ravel(), expected.ravel())[0, 1] > 0.99


def test_a_palette_of_sixteen_bits_gives_its_colours_and_transparency_is_none(tmp_path):
    np.testing.assert_array_equal(seen(gdal(GREY[None].astype(np.uint16), COLOURS)(tmp_path)), COLOURS[GREY])
    path = gdal(np.stack([GREY, GREY // 2, 255 - GREY]), photometric="MINISBLACK", alpha="YES")(tmp_path)
    np.testing.assert_array_equal(seen(path)[..., 2], GREY)


@pytest.mark.parametrize(
    ("kind", "fill"),
    [("uint16", 0), ("uint16", 65535), ("int16", -9999), ("int16", -32768), ("float32", -3.4028235e38)],
)
def test_what_stands_for_no_datum_leaves_the_brightness_as_it_is(tmp_path, kind, fill):
    values = (RGB * 20.0 + 300).astype(kind)
    expected = seen(write(tmp_path / "whole.tif", values[..., 16:]))
    values[..., :16] = fill
    np.testing.assert_array_equal(seen(write(tmp_path / "filled.tif", values))[:, 16:], expected)


def test_a_colour_image_of_sixteen_bits_in_jpeg_2000_is_an_error_that_says_so(tmp_path):
    how = {"driver": "JP2OpenJPEG", "quality": 100, "reversible": True}
    for kind in ("uint8", "uint16"):
        write(tmp_path / f"{kind}.jp2", np.concatenate([RGB, GREY[None]]).astype(kind), **how)
    np.testing.assert_array_equal(np.asarray(open_image(tmp_path / "uint8.jp2")), UPRIGHT)
    with pytest.raises(InputError, match="has 16 bits a channel"):
        open_image(tmp_path / "uint16.jp2")
