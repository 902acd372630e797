"""Put detections, as files give them, onto the images of the lists."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np

from layers.drea import Regions
from util.lists import match, whole_stem
from util.regions.classes import DROPPED, ClassMap, class_index, plain
from utils import InputError, some

logger = logging.getLogger("galr")

Hull = tuple[float, float, float, float]  # left, top, right, bottom
_PATCH = re.compile(r"(?P<image>.+)__(?P<number>[0-9]{1,5}(\.[0-9]{1,5})?)__(?P<left>[0-9]{1,7})___(?P<top>[0-9]{1,7})")


class Row(NamedTuple):
    """Hold one detection."""

    class_name: str
    score: float
    hull: Hull


def hull(corners: Sequence[float]) -> Hull:
    return min(corners[0::2]), min(corners[1::2]), max(corners[0::2]), max(corners[1::2])


class Patch(NamedTuple):
    """Hold the place of a part that was cut out of an image for detection."""

    image: str
    scale: float
    left: float
    top: float

    def put_back(self, row: Row) -> Row:
        left, top, right, bottom = (np.array(row.hull) + [self.left, self.top] * 2) / self.scale
        return row._replace(hull=(left, top, right, bottom))


def patch_of(name: str) -> Patch | None:
    """Return the patch that a name such as `P0770__0.5__0___512` stands for; None for any other name.

    DOTA's devkit writes the factor by which the image was scaled before it was cut; mmrotate and Ultralytics write the
    side of the patch, which is never below 16, and do not scale.
    """
    found = _PATCH.fullmatch(name)
    if not found or float(found["number"]) == 0:
        return None
    number = float(found["number"])
    return Patch(found["image"], number if number < 16 else 1.0, float(found["left"]), float(found["top"]))


@dataclass
class Detections:
    """Hold the content of a folder or file of detections."""

    rows: dict[str, list[Row]]  # image name, as the source writes it -> its detections
    normalised: bool = False  # hulls are in units of the image sides, not in pixels
    names_all: bool = True  # an image that is not in `rows` was never looked at; result text names no empty images
    size: dict[str, tuple[float, float]] = field(default_factory=dict)  # image name -> width, height in pixels
    source: str = "the regions"  # the name for messages


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
    found, strangers = by_image(detections, names)
    _check_missing(found, names, strangers, allow_missing)
    index = _class_indices(found, class_map or {})
    outside = over_edge = 0
    regions = []
    for name in names:
        rows = [row for row in found.rows.get(name, []) if index[row.class_name] is not None]
        if not rows:
            regions.append(Regions.empty())
            continue
        size = (1.0, 1.0) if found.normalised else found.size.get(name) or size_of(name)
        corners = np.array([row.hull for row in rows], np.float64) / [*size, *size]
        clipped = np.clip(corners, 0, 1)
        low, high = clipped[:, :2], clipped[:, 2:]
        inside = (high > low).all(axis=1)
        outside += int((~inside).sum())
        over_edge += int((inside & (clipped != corners).any(axis=1)).sum())
        class_id, score = np.array([index[row.class_name] for row in rows]), np.array([row.score for row in rows])
        box = np.concatenate([(low + high) / 2, high - low], axis=1)
        regions.append(Regions(class_id[inside], score[inside], box[inside]))
    if outside:
        logger.warning(f"dropped {outside} regions that have no area inside their image")
    if over_edge:
        logger.warning(f"clipped {over_edge} regions that reach over the edge of their image")
    return regions


def by_image(detections: Detections, names: Sequence[str]) -> tuple[Detections, list[str]]:
    """Return the detections under the names of the lists, patches put back, and the source's names of no image."""
    found = replace(detections, rows={}, size={})
    patches = {} if found.normalised else _patches(detections, names)
    others = [key for key in detections.rows if key not in patches]
    name_of = {key: name for name, key in zip(names, match(names, others, found.source), strict=True)}
    for key, rows in detections.rows.items():
        if key in patches:
            patch, name = patches[key]
            found.rows.setdefault(name, []).extend(patch.put_back(row) for row in rows)
        elif name := name_of.get(key):
            found.rows.setdefault(name, []).extend(rows)
            if key in detections.size:
                found.size[name] = detections.size[key]
    return found, [key for key in others if key not in name_of]


def _patches(detections: Detections, names: Sequence[str]) -> dict[str, tuple[Patch, str]]:
    themselves = {form for name in names for form in (name, whole_stem(name))}
    patches = {key: patch_of(key) or patch_of(whole_stem(key)) for key in detections.rows if key not in themselves}
    images = list(dict.fromkeys(patch.image for patch in patches.values() if patch))
    name_of = dict(zip(images, match(images, names, detections.source), strict=True))
    return {key: (patch, name) for key, patch in patches.items() if patch and (name := name_of[patch.image])}


def _check_missing(found: Detections, names: Sequence[str], strangers: list[str], allow_missing: bool) -> None:
    missing = [name for name in names if name not in found.rows]
    if missing and not allow_missing and (found.names_all or len(missing) == len(names)):
        others = f"; it names others: {some(strangers)}" if strangers else ""
        if strangers and all(map(str.isdecimal, strangers)):
            others += " (if these are the numbers of COCO's images, give --coco-images)"
        raise InputError(
            f"{found.source}: no regions for {len(missing)} of {len(names)} images: {some(missing)}{others}; "
            "add them (an empty file where nothing was found), or give --allow-missing"
        )
    if missing:
        logger.warning(
            f"{found.source}: no region in {len(missing)} of {len(names)} images, which count as looked at: "
            f"{some(missing)}"
        )
    if strangers:
        logger.warning(f"{found.source}: {len(strangers)} names are no images of the lists: {some(strangers)}")


def _class_indices(found: Detections, class_map: ClassMap) -> dict[str, int | None]:
    count = Counter(row.class_name for rows in found.rows.values() for row in rows)
    index = {name: class_map.get(plain(name), class_index(name)) for name in count}
    dropped = [name for name in count if index[name] is None and plain(name) in class_map]
    unknown = Counter({name: count[name] for name in count if index[name] is None and name not in dropped})
    named = some([f"{name} ({number})" for name, number in unknown.most_common()])
    if 2 * unknown.total() > count.total():
        raise InputError(
            f"{found.source}: {unknown.total()} of {count.total()} regions are of classes outside DOTA-v1.0: {named}; "
            f"say what they are with --class-map NAME=CLASS ..., or NAME={DROPPED} for what is to be dropped"
        )
    if unknown:
        logger.warning(f"dropped {unknown.total()} regions of classes outside DOTA-v1.0: {named}")
    return index
