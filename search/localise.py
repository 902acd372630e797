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
import rasterio.warp
from matplotlib import colormaps
from PIL import Image
from scipy.ndimage import find_objects

from layers.drea import Regions
from search.encoder import load_encoder
from search.pictures import (
    BATCH,
    Pictures,
    add_model,
    add_scene_options,
    check_scene_options,
    given_regions,
    picture_size,
    read_options,
    warn_once,
)
from search.query import note_unknown_words
from search.rasters import RasterRules, open_scene
from search.store import Record
from search.windows import SCALES, selo_map, selo_windows
from util.device import pick_device
from util.encoder import Encoder, check_sentence
from utils import Bar, InputError, Parser, atomic, check_writable_file, run_command, write_text

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
    options, local, rules = read_options(arguments)
    encoder = load_encoder(options, arguments.resume, pick_device(arguments.device), local)
    note_unknown_words(encoder, arguments.text)
    sentence = encoder.sentences([arguments.text])[0]
    path = arguments.scene
    regions = given_regions(arguments, [path.name], lambda _: picture_size(path, rules)) or {}
    scene = encode_scene(encoder, path, rules, arguments.scales, arguments.workers, regions.get(path.name))
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
    of_scene = {path.name: regions} if regions else None
    pictures = Pictures(path.parent, records, encoder.options.dataset.image_size, encoder.rules, rules, of_scene)
    vectors = []
    with Bar(total=len(records), desc=f"encoding {path.name}", unit="window") as bar:
        for _, samples in pictures.batches(BATCH, workers):
            if fault := next((one for one in samples if isinstance(one, InputError)), None):
                raise fault
            vectors.append(encoder.encode(*(np.stack(part) for part in zip(*samples, strict=True))))
            bar.update(len(samples))
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
            regions = regions_above(grey, threshold, scene.crs, scene.transform)
            write_text(out, json.dumps(regions) + "\n")


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

    Coordinates are degrees (WGS 84) where the scene says where it lies and PROJ can follow, else pixels (x, y).
    """
    mask = grey >= np.ceil(255 * threshold)
    _, labels = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)
    boxes = find_objects(labels)
    features = []
    for geometry, label in rasterio.features.shapes(labels, mask=mask, connectivity=8):
        box = boxes[int(label) - 1]
        values = grey[box][labels[box] == label] / 255
        properties = {
            "mean": round(float(values.mean()), 4),
            "largest": round(float(values.max()), 4),
            "pixels": len(values),
            "coordinates": "pixels",
        }
        if crs is not None and transform is not None and (degrees := _in_degrees(geometry, crs, transform)):
            geometry, properties["coordinates"] = degrees, "WGS 84"
        features.append({"type": "Feature", "geometry": geometry, "properties": properties})
    features.sort(key=lambda feature: -feature["properties"]["mean"])
    return {"type": "FeatureCollection", "features": features}


def _in_degrees(geometry: dict[str, Any], crs: Any, transform: Any) -> dict[str, Any] | None:
    rings = [[transform @ tuple(point) for point in ring] for ring in geometry["coordinates"]]
    try:
        return rasterio.warp.transform_geom(crs, "EPSG:4326", {"type": "Polygon", "coordinates": rings})
    except Exception:  # a reference system that PROJ cannot follow: an engineering one, say
        return None


def _parse() -> argparse.Namespace:
    parser = Parser(prog="python -m search.localise", description="Find the place in a scene that a sentence means.")
    add_model(parser)
    parser.add_argument("--scene", type=Path, required=True, metavar="FILE", help="a GeoTIFF or another large picture")
    parser.add_argument("--text", required=True, help="the sentence")
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="FILE",
        help=".png: over the scene; .tif: the map as GeoTIFF; .geojson: outlines",
    )
    parser.add_argument("--threshold", type=float, default=0.5, help="of the outlines (default 0.5)")
    add_scene_options(parser)
    arguments = parser.parse_args()
    check_sentence(arguments.text)
    check_scene_options(arguments)
    if arguments.out.suffix not in (".png", ".tif", ".geojson"):
        raise InputError(f"--out {arguments.out}: the name must end in .png, .tif or .geojson")
    if not 0 < arguments.threshold <= 1:
        raise InputError(f"--threshold must be above 0, at most 1, got {arguments.threshold:g}")
    check_writable_file(arguments.out)
    return arguments


if __name__ == "__main__":
    run_command(main)
