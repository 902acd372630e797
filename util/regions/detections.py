"""Put detections, as files give them, onto the images of the lists: names, patches, classes and units."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from layers.drea import CLASSES, Regions
from util.lists import match, whole_stem
from utils import InputError, some

logger = logging.getLogger("galr")

# Names in DIOR(-R), NWPU VHR-10, HRRSD, UCAS-AOD, FAIR1M, VEDAI, xView, COCO. `vehicle` is mostly cars there.
ALIASES = {
    "plane": "airplane aeroplane aircraft",
    "ship": "boat vessel",
    "storage-tank": "oil-tank oil-storage-tank tank",
    "baseball-diamond": "baseball-field",
    "ground-track-field": "track-field athletic-field",
    "harbor": "harbour port",
    "small-vehicle": "vehicle car small-car van pickup",
    "large-vehicle": "truck bus lorry",
    "soccer-ball-field": "football-field soccer-field",
    "roundabout": "traffic-circle rotary",
    "swimming-pool": "pool",
}
DROPPED = "none"  # in a class map: drop regions of this name without a warning
# Image, number, left and top of a patch that was cut out for detection. The number is the factor by which the image was
# scaled before (DOTA's devkit), or the side of the patch, never below 16, without scaling (mmrotate, Ultralytics).
PATCH = re.compile(r"(.+)__(\d{1,5}(?:\.\d{1,5})?)__(\d{1,7})___(\d{1,7})(?:\.[a-z]\w*)?", re.ASCII | re.IGNORECASE)

ClassMap = dict[str, int | None]  # plain name -> index, or None for a dropped class
Hull = tuple[float, float, float, float]  # left, top, right, bottom


class Row(NamedTuple):
    """Hold one detection."""

    class_name: str
    score: float
    hull: Hull


@dataclass
class Detections:
    """Hold the content of a folder or file of detections."""

    rows: dict[str, list[Row]]  # image name, as the source writes it -> its detections
    normalised: bool = False  # hulls are in units of the image sides, not in pixels
    names_all: bool = True  # an image that is not in `rows` was never looked at; result text names no empty images
    size: dict[str, tuple[float, float]] = field(default_factory=dict)  # image name -> width, height in pixels
    source: str = "the regions"  # the name for messages


# ---------------------------------------------------------------- classes


def _plain(name: str) -> str:
    """Return a name without case, spaces and marks."""
    return re.sub("[^a-z0-9]", "", name.lower())


_INDEX = {
    _plain(alias): index for index, name in enumerate(CLASSES) for alias in (name, *ALIASES.get(name, "").split())
}


def class_index(name: str) -> int | None:
    """Return the DOTA-v1.0 index of a class name in any spelling, None for an unknown one."""
    return _INDEX.get(_plain(name))


def parse_class_map(pairs: Sequence[str]) -> ClassMap:
    """Parse `NAME=CLASS` words; CLASS must be a class of DOTA-v1.0, or `none`. Raise InputError."""
    class_map: ClassMap = {}
    for pair in pairs:
        name, _, target = pair.rpartition("=")
        if not _plain(name) or (class_index(target) is None and target.strip().lower() != DROPPED):
            raise InputError(
                f"--class-map {pair} must be NAME=CLASS, with a class of DOTA-v1.0 ({', '.join(CLASSES)}) or {DROPPED}"
            )
        class_map[_plain(name)] = class_index(target)
    return class_map


def _indices(rows: Sequence[Row], class_map: ClassMap, source: str) -> dict[str, int | None]:
    """Return the index of each class name, None for those to drop. Raise InputError if most regions would go so."""
    count = Counter(row.class_name for row in rows)
    index = {name: class_map.get(_plain(name), class_index(name)) for name in count}
    unknown = {name: count[name] for name in count if index[name] is None and _plain(name) not in class_map}
    total = sum(unknown.values())
    named = some([f"{name} ({number})" for name, number in Counter(unknown).most_common()])
    if 2 * total > len(rows):
        raise InputError(
            f"{source}: {total} of {len(rows)} regions are of classes outside DOTA-v1.0: {named}; say what they are "
            f"with --class-map NAME=CLASS ..., or NAME={DROPPED} for what is to be dropped"
        )
    if unknown:
        logger.warning(f"dropped {total} regions of classes outside DOTA-v1.0: {named}")
    return index


# ---------------------------------------------------------------- images


def to_regions(
    detections: Detections,
    names: Sequence[str],
    size_of: Callable[[str], tuple[float, float]],
    allow_missing: bool = False,
    class_map: ClassMap | None = None,
) -> list[Regions]:
    """Return the regions of each image of `names`, in units of the image sides, clipped to the image.

    size_of(name) returns (width, height) in pixels, for sources that do not know it. class_map adds class names to
    those that `class_index` knows. Raise InputError if the source lacks images, unless `allow_missing`, or if most
    regions would be dropped for their class.
    """
    size: dict[str, tuple[float, float]] = {}
    rows_of: dict[str, list[Row]] = {}
    for name, key, rows in _by_image(detections, names):
        rows_of.setdefault(name, []).extend(rows)
        if key in detections.size:
            size[name] = detections.size[key]
    missing = [name for name in names if name not in rows_of]
    if missing:
        _complain(detections, missing, len(names), allow_missing)
    index = _indices([row for rows in rows_of.values() for row in rows], class_map or {}, detections.source)
    outside = over_edge = 0
    regions = []
    for name in names:
        rows = [row for row in rows_of.get(name, ()) if index[row.class_name] is not None]
        if not rows:
            regions.append(Regions.empty())
            continue
        sides = (1.0, 1.0) if detections.normalised else size.get(name) or size_of(name)
        corners = np.array([row.hull for row in rows], np.float64) / [*sides, *sides]
        clipped = np.clip(corners, 0, 1)
        low, high = clipped[:, :2], clipped[:, 2:]
        inside = (high > low).all(axis=1)
        outside += np.count_nonzero(~inside)
        over_edge += np.count_nonzero((clipped != corners).any(axis=1) & inside)
        class_id, score = np.array([index[row.class_name] for row in rows]), np.array([row.score for row in rows])
        box = np.concatenate([(low + high) / 2, high - low], axis=1)
        regions.append(Regions(class_id[inside], score[inside], box[inside]))
    if outside:
        logger.warning(f"dropped {outside} regions that have no area inside their image")
    if over_edge:
        logger.warning(f"clipped {over_edge} regions that reach over the edge of their image")
    return regions


def _complain(detections: Detections, missing: list[str], total: int, allow_missing: bool) -> None:
    """Name the images without regions. Raise InputError unless they may be missing."""
    where = f"{detections.source}: no regions for {len(missing)} of {total} images"
    if not allow_missing and (detections.names_all or len(missing) == total):
        raise InputError(
            f"{where}: {some(missing)}; add them (an empty file where nothing was found), or give --allow-missing"
        )
    logger.warning(f"{where}, which count as looked at: {some(missing)}")


def _by_image(detections: Detections, names: Sequence[str]) -> Iterator[tuple[str, str, list[Row]]]:
    """Yield the image of `names`, the source's name and the detections of each entry, patches put back."""
    patch_of = {}
    if not detections.normalised:  # in units of the image sides, it is not known where a patch lies
        themselves = {form for name in names for form in (name, whole_stem(name))}
        found = {key: PATCH.fullmatch(key) for key in detections.rows if key not in themselves}
        patch_of = {key: patch for key, patch in found.items() if patch and float(patch[2])}
    images = list(dict.fromkeys(patch[1] for patch in patch_of.values()))
    name_of_image = dict(zip(images, match(images, names, detections.source), strict=True))
    name_of = {key: name for key, patch in patch_of.items() if (name := name_of_image[patch[1]])}
    others = [key for key in detections.rows if key not in name_of]
    name_of |= {key: name for name, key in zip(names, match(names, others, detections.source), strict=True) if key}
    for key, rows in detections.rows.items():
        if key in patch_of:
            rows = [_put_back(row, *map(float, patch_of[key].group(2, 3, 4))) for row in rows]
        if key in name_of:
            yield name_of[key], key, rows
    if strangers := [key for key in detections.rows if key not in name_of]:
        logger.warning(f"{detections.source}: {len(strangers)} names are no images of the lists: {some(strangers)}")


def _put_back(row: Row, number: float, left: float, top: float) -> Row:
    scale = number if number < 16 else 1
    corner = np.array([left, top, left, top])
    return row._replace(hull=tuple((corner + row.hull) / scale))
