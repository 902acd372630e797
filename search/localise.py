"""Where in a large scene is what a sentence says: semantic localisation (Yuan et al., TGRS 2022, arXiv 2209.06515).

    python -m search.localise --path_opt FILE --resume CKPT --scene FILE --text "..." --out FILE.{png,tif,geojson}

Every window of the scene is encoded once; its similarity to the sentence is spread over the pixels that it covers. The
map comes as a picture over the scene, as a GeoTIFF in the scene's coordinates, or as the outlines of what lies above a
threshold.
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
from option import load_options
from search.encoder import Encoder, check_sentence, load_encoder
from search.local import LocalRules, read_rules
from search.options import add_scene_options, check_scene_options
from search.pictures import BATCH, Pictures, picture_size
from search.query import note_unknown_words
from search.rasters import RasterRules, open_scene, raster_rules
from search.regions import check_regions_given, given_regions
from search.store import Record
from search.windows import SCALES, selo_map, selo_windows
from util.device import pick_device
from utils import Bar, InputError, Parser, atomic, check_writable_file, run_command, write_text

logger = logging.getLogger("galr")

PICTURE = 2048  # pixels: the longer side of a map's picture
STRENGTH = 0.6  # of the map over the scene, in a picture


class SceneVectors(NamedTuple):
    """A scene of `height` x `width` pixels: its windows (n, 4) and their unit vectors (n, D)."""

    height: int
    width: int
    windows: np.ndarray
    vectors: np.ndarray

    def map_of(self, sentence: np.ndarray) -> np.ndarray:
        """The map (height, width) uint8 of a sentence's unit vector (D,)."""
        return selo_map(self.height, self.width, self.windows, self.vectors @ sentence)


def main() -> None:
    arguments = _parse()
    options = load_options(arguments.path_opt, arguments.set)
    rules = read_rules(options.local_path)
    check_regions_given(rules, arguments)
    encoder = load_encoder(options, arguments.resume, pick_device(arguments.device))
    note_unknown_words(encoder, arguments.text)
    sentence = encoder.sentences([arguments.text])[0]
    how = raster_rules(arguments)
    regions = given_regions(arguments, [arguments.scene.name], lambda _: picture_size(arguments.scene, how))
    of_scene = regions.get(arguments.scene.name) if regions else None
    scene = encode_scene(encoder, rules, arguments.scene, how, arguments.scales, arguments.workers, of_scene)
    write_map(arguments.out, arguments.scene, scene.map_of(sentence), how, arguments.threshold)
    logger.info(f"written: {arguments.out}, from {len(scene.windows)} windows")


def encode_scene(
    encoder: Encoder,
    rules: LocalRules,
    path: Path,
    how: RasterRules,
    scales: Sequence[int] = SCALES,
    workers: int = 0,
    regions: Regions | None = None,
) -> SceneVectors:
    """Encode every window of a scene, in batches; regions: a detector's, of the whole scene.

    Raises InputError for a file that cannot be read.
    """
    with open_scene(path, how) as scene:
        height, width = scene.height, scene.width
    windows = selo_windows(height, width, scales)
    records = [Record(path.name, 0, 0, *window, max(2, len(windows))) for window in windows.tolist()]
    of_scene = {path.name: regions} if regions else None
    pictures = Pictures(path.parent, records, encoder.options.dataset.image_size, rules, how, of_scene)
    vectors = []
    with Bar(total=len(records), desc=f"encoding {path.name}", unit="window") as bar:
        for _, samples in pictures.batches(BATCH, workers):
            if fault := next((one for one in samples if isinstance(one, InputError)), None):
                raise fault
            vectors.append(encoder.images(*(np.stack(part) for part in zip(*samples, strict=True))))
            bar.update(len(samples))
    return SceneVectors(height, width, windows, np.concatenate(vectors))


def write_map(out: Path, path: Path, grey: np.ndarray, how: RasterRules, threshold: float) -> None:
    """Write a map (height, width) uint8 of the scene at `path` in the form that the ending of `out` names."""
    with open_scene(path, how) as scene:
        if out.suffix == ".png":
            with atomic(out) as temporary:
                overlay(scene.overview(PICTURE), grey).save(temporary, format="PNG")
        elif out.suffix == ".tif":
            form = {
                "driver": "GTiff",
                "count": 1,
                "dtype": "uint8",
                "height": scene.height,
                "width": scene.width,
                "tiled": True,
                "compress": "deflate",
            }
            if scene.crs is not None:
                form |= {"crs": scene.crs, "transform": scene.transform}
            with atomic(out) as temporary, rasterio.open(temporary, "w", **form) as file:
                file.write(grey, 1)
        else:
            regions = regions_above(grey, threshold, scene.crs, scene.transform)
            write_text(out, json.dumps(regions) + "\n")


def overlay(picture: Image.Image, grey: np.ndarray, strength: float = STRENGTH) -> Image.Image:
    """A map (H, W) uint8 over a picture of the same scene: the higher, the redder and the less of the picture."""
    small = Image.fromarray(grey).resize(picture.size, Image.Resampling.BILINEAR)
    value = np.asarray(small, np.float32)[..., None] / 255
    colour = colormaps["jet"](value[..., 0])[..., :3] * 255
    share = strength * (0.25 + 0.75 * value)
    mixed = (1 - share) * np.asarray(picture, np.float32) + share * colour
    return Image.fromarray(mixed.astype(np.uint8))


def regions_above(grey: np.ndarray, threshold: float, crs: Any = None, transform: Any = None) -> dict[str, Any]:
    """GeoJSON of the outlines of what lies at or above a threshold in (0, 1]: in degrees (WGS 84) where the scene says
    where it lies, else in pixels (x, y). Properties: the mean and the largest value, the area in pixels."""
    mask = grey >= np.ceil(255 * threshold)
    _, labels = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)
    boxes = find_objects(labels)
    features = []
    for geometry, label in rasterio.features.shapes(labels, mask=mask, connectivity=8):
        box = boxes[int(label) - 1]
        values = grey[box][labels[box] == label] / 255
        if crs is not None:
            geometry = _in_degrees(geometry, crs, transform)
        properties = {
            "mean": round(float(values.mean()), 4),
            "largest": round(float(values.max()), 4),
            "pixels": len(values),
            "coordinates": "pixels" if crs is None else "WGS 84",
        }
        features.append({"type": "Feature", "geometry": geometry, "properties": properties})
    features.sort(key=lambda feature: -feature["properties"]["mean"])
    return {"type": "FeatureCollection", "features": features}


def _in_degrees(geometry: dict[str, Any], crs: Any, transform: Any) -> dict[str, Any]:
    rings = [[transform @ tuple(point) for point in ring] for ring in geometry["coordinates"]]
    return rasterio.warp.transform_geom(crs, "EPSG:4326", {"type": "Polygon", "coordinates": rings})


def _parse() -> argparse.Namespace:
    parser = Parser(prog="python -m search.localise", description="Find the place in a scene that a sentence means.")
    parser.add_options()
    parser.add_argument("--resume", required=True, metavar="CKPT", help="checkpoint, ours or a published one")
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
        raise InputError(f"--threshold {arguments.threshold:g}: above 0, up to 1")
    check_writable_file(arguments.out)
    return arguments


if __name__ == "__main__":
    run_command(main)
