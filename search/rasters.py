"""Open pictures and large scenes, and read them window by window as 8-bit RGB with their place on the earth.

TIFF and JPEG 2000 are read through rasterio, other pictures through util/images.py. Nothing but the file itself is
opened: a TIFF can name others (overviews), the Erdas Imagine format consists of several, and GDAL would open whatever
they name, addresses on the network too. Bands and brightness follow rules (`RasterRules`) that hold for a whole scene,
so that its windows stay comparable.
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import rasterio
from PIL import ExifTags, Image
from rasterio.enums import ColorInterp, Resampling
from rasterio.transform import from_gcps
from rasterio.warp import transform_bounds
from rasterio.windows import Window as Pane

from util.images import Truncated, from_bands, image_size, open_image
from utils import InputError, one_line

SUFFIXES = (".tif", ".tiff", ".jp2", ".img")
DRIVERS = {
    b"II*\0": "GTiff",
    b"MM\0*": "GTiff",
    b"II+\0": "GTiff",
    b"MM\0+": "GTiff",
    b"\0\0\0\x0cjP  ": "JP2OpenJPEG",
    b"\xff\x4f\xff\x51": "JP2OpenJPEG",
}  # by the first bytes of a file; no other driver of GDAL is asked
GDAL = {
    "GDAL_PAM_ENABLED": "NO",  # no .aux.xml
    "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",  # no .ovr, .msk, .tfw beside the file
    "GDAL_GEOREF_SOURCES": "INTERNAL",
    "CPL_VSIL_CURL_ALLOWED_FILENAME": "none",  # no address
    "PROJ_NETWORK": "OFF",
}
# Drivers that read other files or addresses, left out when GDAL registers its drivers: a second line of defence.
os.environ["GDAL_SKIP"] = (
    "VRT,DERIVED,GTI,STACTA,STACIT,WMS,WMTS,WCS,HTTP,PLMOSAIC,EEDA,EEDAI,DAAS,MRF,Zarr,netCDF,HDF5,HDF5Image,BAG,S102,"
    "S104,S111,GPKG,SQLite,Rasterlite,MBTiles,PDF,HFA,PDS,PDS4,ISIS3,VICAR,NITF,RPFTOC,ECRGTOC,SENTINEL2,SAFE,DIMAP,"
    "TIL,TSX,RS2,ESRIC,KMLSUPEROVERLAY,ENVI,EHdr,ERS,PCIDSK,MFF,MFF2,DOQ2,GenBin,ROI_PAC,ISCE,RRASTER,PCRaster,MAP,OZI"
)
FILLS = (0, -9999, -32768)  # with the least and the largest of the type: no datum, where a whole pixel has it
LARGEST_SIDE = 1_000_000  # pixels
LARGEST_BLOCK = 256 * 2**20  # bytes that a file may make us unpack at once
PACKING = 200_000  # a file that promises more bytes than this for each of its own is not read; sparse ones do
SAMPLE = 1024  # pixels: sides of the reduced scene that the percentiles are taken from

Window = Sequence[int]  # first row, end row, first column, end column


class RasterRules(NamedTuple):
    """Say how a file becomes 8-bit RGB.

    bands: three numbers from 1, or None: the bands that the file calls red, green and blue, else the first three, else
    the first one thrice. stretch: of more than 8 bits, this percentile of each band over the scene becomes 0 and 100
    minus it 255; 8 bits are taken as they are. truncated: as in `open_image`, for pictures.
    """

    bands: tuple[int, int, int] | None = None
    stretch: float = 2.0
    truncated: Truncated = "error"


@functools.lru_cache(maxsize=1)
def _decoded(path: str, mtime_ns: int, truncated: Truncated) -> Image.Image:
    """Open a picture, and keep the last one for its other windows."""
    return open_image(path, truncated)


class Scene:
    """Read an open picture of `height` x `width` pixels. Use it through `open_scene`, which closes it.

    crs, transform: as rasterio gives them, None where the file does not say. georeference: for rasterio.open, to write
    a file in the same place.
    """

    crs, transform, rpcs, georeference = None, None, None, {}

    def __init__(self, path: Path, rules: RasterRules) -> None:
        self.path, self.rules = path, rules
        self.width, self.height = image_size(path)

    def read(self, window: Window) -> Image.Image:
        """Read a window as RGB. Raises InputError for damaged pixels."""
        top, bottom, left, right = window
        picture = _decoded(str(self.path), self.path.stat().st_mtime_ns, self.rules.truncated)
        return picture.crop((left, top, right, bottom))

    def overview(self, side: int) -> Image.Image:
        """Read the whole scene, reduced so that its longer side has at most `side` pixels."""
        image = self.read((0, self.height, 0, self.width))
        image.thumbnail((side, side))
        return image

    def place(self, window: Window) -> tuple[float, float, float, float] | None:
        """Return west, south, east, north of a window in degrees, west from -180 and below 180; None where unknown."""
        if self.crs is None or self.transform is None:
            return None
        top, bottom, left, right = window
        xs, ys = zip(*(self.transform @ (x, y) for x in (left, right) for y in (top, bottom)), strict=True)
        try:
            west, south, east, north = transform_bounds(self.crs, "EPSG:4326", min(xs), min(ys), max(xs), max(ys))
        except Exception:  # a reference system that PROJ cannot follow there
            return None
        south, north = max(south, -90.0), min(north, 90.0)
        if not np.isfinite([west, south, east, north]).all() or south > north:
            return None
        east += 360 * (west > east)
        if east - west >= 360:
            return -180.0, south, 180.0, north
        turn = 360 * math.floor((west + 180) / 360)
        return west - turn, south, east - turn, north

    def notes(self) -> list[str]:
        """Return what the user had better know of scenes of this kind: why they have no place, though it seems so."""
        suffix = self.path.suffix.lower()
        ends = (f"{suffix[:2]}{suffix[-1:]}w", f"{suffix}w", ".wld", f"{suffix}.aux.xml", ".rpb", "_rpc.txt")
        if self.crs is not None and self.transform is not None:
            if self.place((0, self.height, 0, self.width)):
                return []
            why = f"PROJ cannot follow their reference system {str(self.crs)[:60]}; see PROJ_DATA"
        elif any(self.path.with_name(self.path.stem + end).exists() for one in ends for end in (one, one.upper())):
            why = "a file beside them (.tfw, .aux.xml, _rpc.txt) is not read; gdal_translate OLD NEW.tif takes it in"
        elif self.rpcs:
            why = "they have rational polynomials (RPC) alone; gdalwarp -rpc OLD NEW.tif helps"
        elif self.crs is not None or self.transform is not None:
            why = "they have a transform but no reference system, or the reverse"
        else:
            return []
        return [f"scenes without a place on the earth: {why}"]


class Raster(Scene):
    """Read an open TIFF or JPEG 2000."""

    def __init__(self, path: Path, file: rasterio.DatasetReader, rules: RasterRules) -> None:
        if file.tags(ns="OVERVIEWS"):  # before anything is read
            raise InputError(f"scene {path} names another file as its overviews (domain OVERVIEWS); take that name out")
        self.path, self.rules, self.file = path, rules, file
        self.height, self.width, self.rpcs = file.height, file.width, file.rpcs
        _check_promises(path, file)
        points, self.crs = file.gcps if file.gcps[0] else ([], file.crs)
        if not file.transform.is_identity:
            self.crs, self.transform = file.crs, file.transform
            self.georeference = {"crs": self.crs, "transform": self.transform}
        elif points:
            self.transform, self.georeference = _fitted(points), {"crs": self.crs, "gcps": points}
        self.bands = _chosen_bands(path, file, rules)
        self._form = _stored_form(file, self.bands)
        self._raw = self._form["palette"] is not None or set(file.dtypes) == {"uint8"}
        if not self._raw:
            self._low, self._high = self._percentiles(rules.stretch)

    def read(self, window: Window) -> Image.Image:
        top, bottom, left, right = window
        return self._rgb(window=Pane(left, top, right - left, bottom - top))

    def overview(self, side: int) -> Image.Image:
        scale = min(1.0, side / max(self.height, self.width))
        shape = [max(1, round(length * scale)) for length in (self.height, self.width)]
        how = Resampling.average if self._form["palette"] is None else Resampling.nearest
        return self._rgb(out_shape=(3, *shape), resampling=how)

    def notes(self) -> list[str]:
        notes, count = super().notes(), self.file.count
        if count > 4 and not self.rules.bands and ColorInterp.red not in self.file.colorinterp:
            notes.append(f"scenes of {count} bands without names: the first three are shown; --bands chooses")
        return notes

    def _rgb(self, **how: Any) -> Image.Image:
        pixels = self._values(**how)
        if not self._raw:
            share = (pixels - self._low) / (self._high - self._low)
            pixels = np.nan_to_num(share * 255, nan=0, posinf=255, neginf=0).clip(0, 255).astype(np.uint8)
        return from_bands(pixels, **self._form)

    def _values(self, **how: Any) -> np.ndarray:
        """Read the three bands (3, h, w): raw, or as float32 with NaN where the file says that there is no datum."""
        try:
            if self._raw:
                return self.file.read(self.bands, **how)
            masked = self.file.read(self.bands, masked=True, **how)
        except Exception as error:  # GDAL raises errors of many kinds on damaged files
            raise InputError(f"scene {self.path} cannot be decoded ({one_line(error)})") from None
        return masked.astype(np.float32).filled(np.nan)

    def _percentiles(self, stretch: float) -> tuple[np.ndarray, np.ndarray]:
        """Return the values of each band that become 0 and 255, (3, 1, 1) each."""
        shape = [min(SAMPLE, length) for length in (self.height, self.width)]
        values = self._values(out_shape=(3, *shape), resampling=Resampling.nearest).reshape(3, -1)
        values[~np.isfinite(values)] = np.nan
        kind = np.dtype(self.file.dtypes[0])
        limits = np.finfo(kind) if kind.kind == "f" else np.iinfo(kind)
        fills = np.array([*FILLS, limits.min, limits.max], np.float32)
        filled = (values == values[0]).all(axis=0) & np.isin(values[0], fills)
        if not filled.all():
            values[:, filled] = np.nan
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a band without any datum
            low, high = np.nan_to_num(np.nanpercentile(values, [stretch, 100 - stretch], axis=1))
        return low[:, None, None], np.where(high > low, high, low + 1)[:, None, None]


@contextlib.contextmanager
def open_scene(path: str | os.PathLike, rules: RasterRules = RasterRules()) -> Iterator[Scene]:  # noqa: B008 - immutable
    """Open a picture or raster. Raises InputError for one that is missing, damaged, hostile, or not of these rules."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"scene {path} is not " + ("a file" if os.path.lexists(path) else "there"))
    with path.open("rb") as file:
        head = file.read(16)
    if head.startswith(b"EHFA"):
        raise InputError(
            f"scene {path}: an Erdas Imagine file may refer to others; make a GeoTIFF of it: gdal_translate OLD NEW.tif"
        )
    driver = next((name for magic, name in DRIVERS.items() if head.startswith(magic)), None)
    if driver is None or _turned(path):
        yield Scene(path, rules)
        return
    with rasterio.Env(**GDAL), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of files without georeference
        try:
            scene = Raster(path, rasterio.DatasetReader(str(path.absolute()), driver=[driver]), rules)
        except InputError:
            raise
        except Exception as error:  # as in Raster
            raise InputError(f"scene {path} cannot be opened ({one_line(error)})") from None
        with scene.file:
            yield scene


def _turned(path: Path) -> bool:
    """Return whether a file is a TIFF with an orientation mark, which GDAL does not follow."""
    try:
        with Image.open(path, formats=["TIFF"]) as image:
            return image.tag_v2.get(ExifTags.Base.Orientation, 1) != 1
    except Exception:  # Pillow knows fewer kinds of TIFF
        return False


def _check_promises(path: Path, file: rasterio.DatasetReader) -> None:
    """Raise InputError for numbers that are no brightness, and for a file that would unfold beyond reason."""
    if any(dtype.startswith("complex") for dtype in file.dtypes):
        raise InputError(f"scene {path} holds complex numbers; convert it to amplitudes")
    if max(file.height, file.width) > LARGEST_SIDE:
        raise InputError(f"scene {path} must have sides of at most {LARGEST_SIDE}, got {file.width} x {file.height}")
    of_pixel = sum(np.dtype(dtype).itemsize for dtype in file.dtypes)
    if file.height * file.width * of_pixel > PACKING * path.stat().st_size:
        raise InputError(f"scene {path} promises {file.width} x {file.height} pixels, more than the file can hold")
    largest = max(height * width for height, width in file.block_shapes) * of_pixel
    if largest > LARGEST_BLOCK:
        raise InputError(
            f"scene {path} is stored in pieces of {largest / 2**20:.0f} MiB; store it in tiles: "
            "gdal_translate -co TILED=YES OLD NEW.tif"
        )


def _chosen_bands(path: Path, file: rasterio.DatasetReader, rules: RasterRules) -> list[int]:
    if rules.bands:
        if min(rules.bands) < 1 or max(rules.bands) > file.count:
            asked = " ".join(map(str, rules.bands))
            raise InputError(f"scene {path} has {file.count} bands, from 1 on; --bands {asked} asks for others")
        return list(rules.bands)
    named = {colour: band for band, colour in enumerate(file.colorinterp, start=1)}
    colours = ColorInterp.red, ColorInterp.green, ColorInterp.blue
    if named.keys() >= set(colours):
        return [named[colour] for colour in colours]
    shown = [band for band, colour in enumerate(file.colorinterp, start=1) if colour != ColorInterp.alpha] or [1]
    return shown[:3] if len(shown) >= 3 else shown[:1] * 3


def _stored_form(file: rasterio.DatasetReader, bands: list[int]) -> dict[str, Any]:
    """Return what the file says of its values, as `from_bands` takes it."""
    palette, kind = None, np.dtype(file.dtypes[0])
    if file.colorinterp[0] == ColorInterp.palette and bands == [1, 1, 1] and kind in (np.uint8, np.uint16):
        palette = np.zeros((np.iinfo(kind).max + 1, 3), np.uint8)
        for value, colour in file.colormap(1).items():
            palette[value] = colour[:3]
    bits = min(max(int(file.tags(1, ns="IMAGE_STRUCTURE").get("NBITS", 8)), 1), 8)
    white_is_zero = file.tags(ns="IMAGE_STRUCTURE").get("MINISWHITE") == "YES"
    return {"palette": palette, "bits": bits, "white_is_zero": white_is_zero}


def _fitted(points: Sequence[Any]) -> rasterio.Affine | None:
    """Return the transform that control points give; None where it misses one by a tenth of their extent or more."""
    transform = from_gcps(points)  # for too few points, or points on a line, rasterio returns what memory held
    wanted = np.array([(point.x, point.y) for point in points])
    found = np.array([transform @ (point.col, point.row) for point in points])
    return transform if np.abs(found - wanted).max() < 0.1 * np.ptp(wanted, axis=0).max() else None
