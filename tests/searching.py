"""Help the tests of search/: the rows of an index, GeoTIFFs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import rasterio
from rasterio.transform import from_origin

from search.rasters import RasterRules, open_scene
from search.store import Record, open_index

SENTENCE = "there are two red vehicles in the road"
ALL = RasterRules()


def rows() -> dict[str, list[Record]]:
    """Return the records of i.db by path."""
    found: dict[str, list[Record]] = {}
    with open_index("i.db") as opened:
        for record in opened.records():
            found.setdefault(record.path, []).append(record)
    return found


def vectors(index: str) -> dict[str, np.ndarray]:
    """Return the vectors of an index by path. A path that is there twice is an error."""
    with open_index(index) as opened:
        pairs = [(record.path, vector) for record, vector in opened.rows()]
        assert len(dict(pairs)) == len(pairs) == opened.count()
    return dict(pairs)


def write(path: Path, pixels: np.ndarray, **more: object) -> Path:
    """Write a GeoTIFF of pixels (bands, height, width)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    count, height, width = pixels.shape
    how = {"driver": "GTiff", "count": count, "height": height, "width": width, "dtype": pixels.dtype.name}
    with rasterio.open(path, "w", **how | more) as file:
        file.write(pixels)
    return path


def write_scene(path: Path, bands: int = 4, dtype: str = "uint16", side: int = 400, west: float = 500_000) -> Path:
    """Write a GeoTIFF in UTM 33N, pixels of 10 m, its north-west corner at 45.15 degrees north."""
    pixels = np.random.default_rng(0).gamma(2, 500, (bands, side, side)).astype(dtype)
    return write(path, pixels, crs="EPSG:32633", transform=from_origin(west, 5e6, 10, 10))


def levels(bands: int) -> np.ndarray:
    """Return bands of one value each: 10, 20, 30 and so on."""
    return np.repeat(np.arange(1, bands + 1, dtype=np.uint8) * 10, 64).reshape(bands, 8, 8)


def seen(path: Path, rules: RasterRules = ALL) -> np.ndarray:
    """Return all pixels of a scene as RGB (height, width, 3)."""
    with open_scene(path, rules) as scene:
        return np.asarray(scene.read((0, scene.height, 0, scene.width)))
