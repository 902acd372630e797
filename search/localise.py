"""Find the place in a large scene that a sentence means: semantic localisation (Yuan et al., arXiv 2209.06515).

    python -m search.localise [--model FOLDER] --scene FILE --text "..." --out FILE.{png,tif,geojson}

Every window of the scene is encoded once; its similarity to the sentence is spread over the pixels that it covers. The
map is written as a picture over the scene, as a GeoTIFF in the scene's coordinates, or as the outlines of what lies
above a threshold.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import rasterio
import rasterio.features
from matplotlib import colormaps
from PIL import Image
from rasterio.warp import transform_geom
from scipy.ndimage import find_objects

from layers.drea import Regions
from search.encoder import add_model_and_scenes, encode_records, note_unknown_words, read_model
from search.pictures import given_regions, picture_size, warn_once
from search.rasters import RasterRules, open_scene
from search.store import Record
from search.windows import SCALES, selo_map, selo_windows
from util.encoder import Encoder, check_sentence
from utils import InputError, Parser, atomic, check_writable_file, run_command, write_text

logger = logging.getLogger("galr")

PICTURE = 2048  # pixels: the longer side of a map's picture
STRENGTH = 0.6  # of the map over the scene, in a picture


class SceneVectors(NamedTuple):
    """Hold a scene of `height` x `width` pixels: its windows (n, 4) and their unit vectors (n, D)."""

    height: int
    width: int
    windows: np.ndarray
    vectors: np.ndarray

    def map_of(self, sentence: np.ndarray) -> np.ndarray:
        """Return the map (height, width) uint8 of a sentence's unit vector (D,)."""
        return selo_map(self.height, self.width, self.windows, self.vectors @ sentence)


def main() -> None:
    arguments = _parse()
    path = arguments.scene
    encoder, rules = read_model(arguments)
    note_unknown_words(encoder, arguments.text)
    sentence = encoder.sentences([arguments.text])[0]
    regions = given_regions(arguments, {path.name: path}, rules)
    scene = encode_scene(encoder, path, rules, arguments.scales, arguments.workers, regions and regions[path.name])
    write_map(arguments.out, path, scene.map_of(sentence), rules, arguments.threshold)
    logger.info(f"written: {arguments.out}, from {len(scene.windows)} windows")


def encode_scene(
    encoder: Encoder,
    path: Path,
    rules: RasterRules,
    scales: Sequence[int] = SCALES,
    workers: int = 0,
    regions: Regions | None = None,
) -> SceneVectors:
    """Encode every window of a scene, in batches; regions: a detector's, of the whole scene.

    Raises InputError for a file that cannot be read.
    """
    width, height = picture_size(path, rules)
    windows = selo_windows(height, width, scales)
    records = [Record(path.name, 0, 0, *window, max(2, len(windows))) for window in windows.tolist()]
    of_scene = None if regions is None else {path.name: regions}
    vectors = []
    for _, part, faults in encode_records(encoder, path.parent, records, rules, workers, of_scene):
        if faults:
            raise InputError(faults[path.name])
        vectors.append(part)
    return SceneVectors(height, width, windows, np.concatenate(vectors))


def write_map(out: Path, path: Path, grey: np.ndarray, rules: RasterRules, threshold: float) -> None:
    """Write a map (height, width) uint8 of the scene at `path` in the form that the ending of `out` names."""
    with open_scene(path, rules) as scene:
        for note in scene.notes():
            warn_once(note)
        if out.suffix == ".png":
            with atomic(out) as temporary:
                overlay(scene.overview(PICTURE), grey).save(temporary, format="PNG")
        elif out.suffix == ".tif":
            size = {"count": 1, "dtype": "uint8", "height": scene.height, "width": scene.width}
            form = {"driver": "GTiff", "tiled": True, "compress": "deflate"} | size | scene.georeference
            with atomic(out) as temporary, rasterio.open(temporary, "w", **form) as file:
                file.write(grey, 1)
        else:
            place = (scene.crs, scene.transform) if scene.place((0, scene.height, 0, scene.width)) else ()
            write_text(out, json.dumps(regions_above(grey, threshold, *place)) + "\n")


def overlay(picture: Image.Image, grey: np.ndarray, strength: float = STRENGTH) -> Image.Image:
    """Lay a map (H, W) uint8 over a picture of the same scene: the higher, the redder and the less of the picture."""
    small = Image.fromarray(grey).resize(picture.size, Image.Resampling.BILINEAR)
    value = np.asarray(small, np.float32)[..., None] / 255
    colour = colormaps["jet"](value[..., 0])[..., :3] * 255
    share = strength * (0.25 + 0.75 * value)
    mixed = (1 - share) * np.asarray(picture, np.float32) + share * colour
    return Image.fromarray(mixed.astype(np.uint8))


def regions_above(grey: np.ndarray, threshold: float, crs: Any = None, transform: Any = None) -> dict[str, Any]:
    """Return GeoJSON of the outlines of what lies at or above a threshold in (0, 1], with mean, largest value and area.

    Coordinates are degrees (WGS 84) with a reference system and a transform, else pixels (x, y).
    """
    mask = grey >= np.ceil(255 * threshold)
    _, labels = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)
    boxes = find_objects(labels)
    place = {} if transform is None else {"transform": transform}
    features = []
    for geometry, label in rasterio.features.shapes(labels, mask=mask, connectivity=8, **place):
        box = boxes[int(label) - 1]
        values = grey[box][labels[box] == label] / 255
        properties = {
            "mean": round(float(values.mean()), 4),
            "largest": round(float(values.max()), 4),
            "pixels": len(values),
            "coordinates": "WGS 84" if place else "pixels",
        }
        if place:
            geometry = transform_geom(crs, "EPSG:4326", geometry)
        features.append({"type": "Feature", "geometry": geometry, "properties": properties})
    features.sort(key=lambda feature: -feature["properties"]["mean"])
    return {"type": "FeatureCollection", "features": features}


def _parse() -> argparse.Namespace:
    parser = Parser(prog="python -m search.localise", description="Find the place in a scene that a sentence means.")
    add_model_and_scenes(parser)
    parser.add_argument("--scene", type=Path, required=True, metavar="FILE", help="a GeoTIFF or another large picture")
    parser.add_argument("--text", required=True, help="the sentence")
    text = ".png: over the scene; .tif: the map as GeoTIFF; .geojson: outlines"
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help=text)
    parser.add_argument("--threshold", type=float, default=0.5, help="of the outlines (default 0.5)")
    arguments = parser.parse_args()
    check_sentence(arguments.text)
    if arguments.out.suffix not in (".png", ".tif", ".geojson"):
        raise InputError(f"--out {arguments.out}: the name must end in .png, .tif or .geojson")
    if not 0 < arguments.threshold <= 1:
        raise InputError(f"--threshold must be above 0, at most 1, got {arguments.threshold:g}")
    check_writable_file(arguments.out)
    return arguments


if __name__ == "__main__":
    run_command(main)
