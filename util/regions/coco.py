"""Read COCO's JSON: annotations, results with the file that names their images, and results without one."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, FiniteFloat

from layers.drea import CLASSES
from util.lists import match
from util.regions.classes import read_classes
from util.regions.detections import Detections, Hull, Row, hull
from utils import Entry, InputError, checked, read_as, read_json

logger = logging.getLogger("galr")

Side = Annotated[FiniteFloat, Field(gt=0)]


class _Image(Entry):
    id: int | str
    file_name: str
    width: Side | None = None
    height: Side | None = None


class _Category(Entry):
    id: int
    name: str


class _Names(Entry):
    images: list[_Image]
    categories: list[_Category]


class _Result(Entry):
    # bbox: left, top, width, height; poly: four corners, as Ultralytics writes oriented boxes; both in pixels
    image_id: int | str
    category_id: int
    bbox: Annotated[list[FiniteFloat], Field(min_length=4, max_length=4)] | None = None
    poly: Annotated[list[FiniteFloat], Field(min_length=8, max_length=8)] | None = None
    score: Annotated[FiniteFloat, Field(ge=0, le=1)]


class _Annotation(_Result):
    score: Annotated[FiniteFloat, Field(ge=0, le=1)] = 1.0


class _Annotations(_Names):
    annotations: list[_Annotation]


def read_coco(source: Path, classes: Path | None = None, coco_images: Path | None = None) -> Detections:
    """Read annotations or results. `coco_images` names their images and categories.

    Results without it know images by name and categories by position, from 1, or from 0 if there is a 0.
    """
    value = read_json(source, "COCO results")
    where = f"COCO results {source}"
    if isinstance(value, dict) and "annotations" in value:
        names: _Names | None = checked(_Annotations, value, f"COCO annotations {source}")
        results: list[Any] = names.annotations
    else:
        names, results = None, checked(list[_Result], value, where)
    names = read_as(_Names, coco_images, "COCO images file") if coco_images else names
    if names:
        found, image_of, category_of = _named(names)
        stems = [one.image_id for one in results if one.image_id not in image_of]  # Ultralytics: the image's stem
        matched = match([str(stem) for stem in stems], found.rows, where)
        image_of |= {stem: name for stem, name in zip(stems, matched, strict=True) if name}
        advice = f"is not in {coco_images or source}"
    else:
        found, image_of = Detections({}), {result.image_id: str(result.image_id) for result in results}
        first = max(0, min([1, *(result.category_id for result in results)]))
        category_of = dict(enumerate(read_classes(classes) if classes else CLASSES, first))
        last = first + len(category_of) - 1
        advice = f"is not from {first} to {last}; give the names with --classes, or --coco-images"
        logger.info(
            f"regions {source}: no file names the categories (--coco-images); they are taken by their position in "
            f"{classes or 'the order of DOTA-v1.0'}, counted from {first}"
        )
    for number, result in enumerate(results, 1):
        entry = f"{where}, entry {number}"
        for key, known in (("image_id", image_of), ("category_id", category_of)):
            if (value := getattr(result, key)) not in known:
                raise InputError(f"{entry}: {key} {value} {advice}")
        row = Row(category_of[result.category_id], result.score, _hull(result, entry))
        found.rows.setdefault(image_of[result.image_id], []).append(row)
    return found


def _named(names: _Names) -> tuple[Detections, dict[int | str, str], dict[int, str]]:
    """Return the images without detections so far, image id -> name and category id -> name."""
    image_of = {image.id: image.file_name.replace("\\", "/") for image in names.images}
    found = Detections({name: [] for name in image_of.values()})
    found.size = {image_of[one.id]: (one.width, one.height) for one in names.images if one.width and one.height}
    return found, image_of, {category.id: category.name for category in names.categories}


def _hull(result: _Result, entry: str) -> Hull:
    if result.poly:
        return hull(result.poly)
    if not result.bbox:
        raise InputError(f"{entry}: neither bbox nor poly")
    left, top, width, height = result.bbox
    return left, top, left + width, top + height
