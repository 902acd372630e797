"""Large scenes: GeoTIFF and other rasters, read window by window through rasterio, as 8-bit RGB and with their place.

Which bands become red, green and blue, and how more than 8 bits become 8, are rules by name (`RasterRules`); both hold
for the whole scene, so that its windows stay comparable.
"""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import rasterio
from PIL import Image
from rasterio.enums import ColorInterp, Resampling
from rasterio.warp import transform_bounds
from rasterio.windows import Window

from utils import InputError

if TYPE_CHECKING:
    import argparse

    from utils import Parser

SUFFIXES = (".tif", ".tiff", ".jp2", ".img")  # always read through rasterio; a PNG or JPEG only where it is large
DRIVERS = ["GTiff", "JP2OpenJPEG", "HFA", "PNG", "JPEG"]  # none of those that fetch other files or addresses
LARGEST_SIDE = 1_000_000  # pixels
LARGEST_BLOCK = 256 * 2**20  # bytes that a file may make us unpack at once
PACKING = 2000  # a file that promises more bytes than this for each of its own is not read
SAMPLE = 1024  # sides of the reduced scene that the percentiles are taken from
GDAL = {"GDAL_PAM_ENABLED": "NO", "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR"}  # no files beside the file


class RasterRules(NamedTuple):
    """How a raster becomes 8-bit RGB.

    bands: three numbers from 1, or None: the bands that the file calls red, green and blue, else the first three, else
    the first one thrice. stretch: of more than 8 bits, this percentile of each band over the scene becomes 0 and 100
    minus it 255; 8 bits are taken as they are.
    """

    bands: tuple[int, int, int] | None = None
    stretch: float = 2.0


class Place(NamedTuple):
    """Where something lies on the earth: its bounds in degrees of longitude and latitude (WGS 84)."""

    west: float
    south: float
    east: float
    north: float


class Scene:
    """An open raster of `height` x `width` pixels. Use it through `open_scene`, which closes it."""

    def __init__(self, path: Path, file: rasterio.DatasetReader, rules: RasterRules) -> None:
        self.path, self._file = path, file
        self.height, self.width = file.height, file.width
        self.crs, self.transform = file.crs, file.transform
        _check_promises(path, file)
        self.bands = _chosen_bands(path, file, rules)
        self._plain = set(file.dtypes) == {"uint8"}
        self._range = None if self._plain else self._percentiles(rules.stretch)

    def read(self, window: tuple[int, int, int, int]) -> Image.Image:
        """A window (first row, end row, first column, end column) as RGB. Raises InputError for damaged pixels."""
        top, bottom, left, right = window
        return self._rgb(window=Window(left, top, right - left, bottom - top))

    def overview(self, side: int) -> Image.Image:
        """The whole scene, reduced so that its longer side has at most `side` pixels."""
        scale = min(1.0, side / max(self.height, self.width))
        shape = [max(1, round(length * scale)) for length in (self.height, self.width)]
        return self._rgb(out_shape=(3, *shape), resampling=Resampling.average)

    def place(self, window: tuple[int, int, int, int]) -> Place | None:
        """Where a window lies on the earth; None where the file does not say."""
        if self.crs is None or self.transform.is_identity:
            return None
        top, bottom, left, right = window
        bounds = rasterio.windows.bounds(Window(left, top, right - left, bottom - top), self.transform)
        try:
            degrees = transform_bounds(self.crs, "EPSG:4326", *bounds)
        except Exception:  # a reference system that PROJ cannot follow there
            return None
        return Place(*degrees) if np.isfinite(degrees).all() else None

    def _rgb(self, **how: Any) -> Image.Image:
        pixels = self._values(**how)
        if self._range is not None:
            low, high = self._range
            pixels = np.nan_to_num((pixels - low) / (high - low) * 255, nan=0, posinf=255, neginf=0).clip(0, 255)
        return Image.fromarray(np.moveaxis(pixels.astype(np.uint8), 0, -1))

    def _values(self, **how: Any) -> np.ndarray:
        """The three bands (3, h, w): uint8 as they are, others as float32 with NaN where there is no datum."""
        try:
            if self._plain:
                return self._file.read(self.bands, **how)
            masked = self._file.read(self.bands, masked=True, **how)
        except Exception as error:  # GDAL raises errors of many kinds on damaged files
            raise InputError(f"scene {self.path} cannot be decoded ({_short(error)})") from None
        return masked.astype(np.float32).filled(np.nan)

    def _percentiles(self, stretch: float) -> tuple[np.ndarray, np.ndarray]:
        """Of each band the values that become 0 and 255, (3, 1, 1) each."""
        shape = [min(SAMPLE, length) for length in (self.height, self.width)]
        sample = self._values(out_shape=(3, *shape), resampling=Resampling.nearest).reshape(3, -1)
        sample = np.where(np.isfinite(sample), sample, np.nan)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a band without any datum
            low, high = np.nan_to_num(np.nanpercentile(sample, [stretch, 100 - stretch], axis=1))
        return low[:, None, None], np.where(high > low, high, low + 1)[:, None, None]


@contextlib.contextmanager
def open_scene(path: str | os.PathLike, rules: RasterRules = RasterRules()) -> Iterator[Scene]:  # noqa: B008 - immutable
    """Open a raster file. Raises InputError for one that is missing, damaged, hostile, or does not fit the rules."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"scene {path} is not " + ("a file" if os.path.lexists(path) else "there"))
    with rasterio.Env(**GDAL), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of files without georeference
        try:
            file = rasterio.DatasetReader(str(path.absolute()), driver=DRIVERS)  # open() admits one driver only
        except Exception as error:  # as above
            raise InputError(f"scene {path} cannot be opened ({_short(error)})") from None
        with file:
            yield Scene(path, file, rules)


def _check_promises(path: Path, file: rasterio.DatasetReader) -> None:
    """Raise InputError for numbers that are no brightness, and for a file that would unfold beyond reason."""
    if any(dtype.startswith("complex") for dtype in file.dtypes):
        raise InputError(f"scene {path} holds complex numbers; convert it to amplitudes")
    if max(file.height, file.width) > LARGEST_SIDE:
        raise InputError(f"scene {path} is {file.width} x {file.height} pixels; more than is allowed")
    of_pixel = sum(np.dtype(dtype).itemsize for dtype in file.dtypes)
    if file.height * file.width * of_pixel > PACKING * path.stat().st_size:
        raise InputError(f"scene {path} promises {file.width} x {file.height} pixels, more than the file can hold")
    largest = max(height * width for height, width in file.block_shapes) * of_pixel
    if largest > LARGEST_BLOCK:
        raise InputError(
            f"scene {path} is stored in pieces of {largest / 2**20:.0f} MiB; store it in tiles: "
            "gdal_translate -co TILED=YES"
        )


def _chosen_bands(path: Path, file: rasterio.DatasetReader, rules: RasterRules) -> list[int]:
    if rules.bands:
        if max(rules.bands) > file.count:
            raise InputError(
                f"scene {path} has {file.count} bands; --bands {' '.join(map(str, rules.bands))} asks for more"
            )
        return list(rules.bands)
    named = {colour: band for band, colour in enumerate(file.colorinterp, start=1)}
    colours = ColorInterp.red, ColorInterp.green, ColorInterp.blue
    if all(colour in named for colour in colours):
        return [named[colour] for colour in colours]
    return [1, 2, 3] if file.count >= 3 else [1, 1, 1]


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


# ---------------------------------------------------------------- command lines


def add_raster_rules(parser: Parser) -> None:
    """What tells how rasters become 8-bit RGB."""
    parser.add_argument("--bands", nargs=3, type=int, metavar="N", help="bands for red, green and blue, from 1")
    parser.add_argument(
        "--stretch",
        type=float,
        default=2.0,
        metavar="PERCENT",
        help="of more than 8 bits: this percentile is black, 100 - it white (default 2)",
    )


def raster_rules(arguments: argparse.Namespace) -> RasterRules:
    """The rules that the arguments name. Raises InputError."""
    if arguments.bands and min(arguments.bands) < 1:
        raise InputError("--bands counts from 1")
    if not 0 <= arguments.stretch < 50:
        raise InputError(f"--stretch {arguments.stretch:g}: a percentile from 0, below 50")
    return RasterRules(tuple(arguments.bands) if arguments.bands else None, arguments.stretch)


def check_scales(scales: Sequence[int]) -> None:
    """Raise InputError for windows that are no windows."""
    if min(scales) < 16:
        raise InputError(f"--scales {min(scales)}: windows of 16 pixels or more")
