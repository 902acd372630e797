"""COCO's JSON: results with the file that names their images and categories, results without one, annotations."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import Field, FiniteFloat

from util.names import match
from util.regions.dota import Row
from util.regions.text import hull
from utils import Entry, InputError, checked, read_as, read_json


class _Image(Entry):
    id: int | str
    file_name: str
    width: Annotated[FiniteFloat, Field(gt=0)] | None = None
    height: Annotated[FiniteFloat, Field(gt=0)] | None = None

    @property
    def name(self) -> str:
        return self.file_name.replace("\\", "/")


class _Category(Entry):
    id: int
    name: str


class _Names(Entry):
    images: list[_Image]
    categories: list[_Category]


class _Result(Entry):
    """`bbox`: left, top, width, height; `poly`: four corners, as Ultralytics writes oriented boxes. Both in pixels."""

    image_id: int | str
    category_id: int
    bbox: Annotated[list[FiniteFloat], Field(min_length=4, max_length=4)] | None = None
    poly: Annotated[list[FiniteFloat], Field(min_length=8, max_length=8)] | None = None
    score: Annotated[FiniteFloat, Field(ge=0, le=1)]


class _Annotation(_Result):
    """What is there is there: its score is 1."""

    score: Annotated[FiniteFloat, Field(ge=0, le=1)] = 1.0


class _Annotations(_Names):
    annotations: list[_Annotation]


class CocoFile(NamedTuple):
    """image name -> detections; image name -> (width, height) where it is known; whether every image is named."""

    rows: dict[str, list[Row]]
    size: dict[str, tuple[float, float]]
    names_all: bool
    classes_by_position: int | None = None  # the first category's number, where no file names the categories


def read_coco(source: Path, names_file: Path | None, classes: list[str]) -> CocoFile:
    """Results, or annotations with their images and categories. Without `names_file`, results know their images by name
    and their categories by position in `classes`: from 1, or from 0 if there is a 0.

    Raises InputError that names file and entry for what does not fit.
    """
    value = read_json(source, "COCO results")
    if isinstance(value, dict) and "annotations" in value:
        annotations: _Annotations = checked(_Annotations, value, f"COCO annotations {source}")
        names = annotations if names_file is None else read_as(_Names, names_file, "COCO images file")
        return _named(annotations.annotations, names, source, names_file or source)
    results: list[_Result] = checked(list[_Result], value, f"COCO results {source}")
    if names_file is not None:
        return _named(results, read_as(_Names, names_file, "COCO images file"), source, names_file)
    first = min([1, *(result.category_id for result in results)])
    rows: dict[str, list[Row]] = {}
    for number, result in enumerate(results, 1):
        if not 0 <= result.category_id - first < len(classes) or first < 0:
            raise InputError(
                f"COCO results {source}, entry {number}: category_id {result.category_id} is not from {max(first, 0)} "
                f"to {max(first, 0) + len(classes) - 1}; give the names with --classes, or --coco-images"
            )
        row = _row(result, classes[result.category_id - first], source, number)
        rows.setdefault(str(result.image_id), []).append(row)
    return CocoFile(rows, {}, names_all=False, classes_by_position=first)


def _named(results: list[Any], names: _Names, source: Path, names_file: Path) -> CocoFile:
    image_of: dict[int | str, str] = {}
    rows: dict[str, list[Row]] = {}
    size = {}
    for image in names.images:
        if image_of.get(image.id, image.name) != image.name or (image.name in rows and image.id not in image_of):
            raise InputError(f"COCO images file {names_file}: image {image.file_name} (id {image.id}) is there twice")
        image_of[image.id] = image.name
        rows[image.name] = []
        if image.width and image.height:
            size[image.name] = (image.width, image.height)
    category_of: dict[int, str] = {}
    for category in names.categories:
        if category_of.setdefault(category.id, category.name) != category.name:
            raise InputError(f"COCO images file {names_file}: category id {category.id} is there twice")
    stems = [result.image_id for result in results if result.image_id not in image_of]  # Ultralytics: the image's stem
    by_stem = dict(zip(stems, match([str(stem) for stem in stems], rows, f"COCO results {source}"), strict=True))
    for number, result in enumerate(results, 1):
        image = image_of.get(result.image_id) or by_stem.get(result.image_id)
        for what, known, key in (
            ("image", image is not None, result.image_id),
            ("category", result.category_id in category_of, result.category_id),
        ):
            if not known:
                raise InputError(f"COCO results {source}, entry {number}: {what}_id {key} is not in {names_file}")
        rows[image].append(_row(result, category_of[result.category_id], source, number))
    return CocoFile(rows, size, names_all=True)


def _row(result: _Result, class_name: str, source: Path, number: int) -> Row:
    if result.poly:
        return Row(class_name, result.score, hull(result.poly))
    if not result.bbox:
        raise InputError(f"COCO results {source}, entry {number}: neither bbox nor poly")
    left, top, width, height = result.bbox
    if width < 0 or height < 0:
        raise InputError(f"COCO results {source}, entry {number}: bbox has a negative width or height")
    return Row(class_name, result.score, (left, top, left + width, top + height))
