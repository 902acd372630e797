"""Help the tests of search/: the rows of an index, a scene with a place."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import rasterio
from rasterio.transform import from_origin

from search.store import Record, open_index


def rows() -> dict[str, list[Record]]:
    """Return the records of i.db by path."""
    with open_index("i.db") as opened:
        found: dict[str, list[Record]] = {}
        for record in opened.records():
            found.setdefault(record.path, []).append(record)
        return found


def write_scene(path: Path, bands: int = 4, dtype: str = "uint16", side: int = 400, west: float = 500_000) -> None:
    """Write a GeoTIFF in UTM 33N, pixels of 10 m, its north-west corner at 45.15 degrees north."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).gamma(2, 500, (bands, side, side)).astype(dtype)
    how = {"driver": "GTiff", "count": bands, "height": side, "width": side, "dtype": dtype}
    with rasterio.open(path, "w", **how, crs="EPSG:32633", transform=from_origin(west, 5e6, 10, 10)) as file:
        file.write(pixels)


def write(path: Path, pixels: np.ndarray, **more: object) -> Path:
    """Write a GeoTIFF of pixels (bands, height, width)."""
    count, height, width = pixels.shape
    how = {"driver": "GTiff", "count": count, "height": height, "width": width, "dtype": pixels.dtype.name}
    with rasterio.open(path, "w", **how | more) as file:
        file.write(pixels)
    return path


def levels(bands: int) -> np.ndarray:
    """Return bands of one value each: 10, 20, 30 and so on."""
    return np.repeat(np.arange(1, bands + 1, dtype=np.uint8) * 10, 64).reshape(bands, 8, 8)
