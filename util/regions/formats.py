"""Read what detectors write: DOTA annotation and result text, YOLO-OBB text, COCO result JSON -> Regions of each image.

docs/REGIONS.md shows an example of each format. Every reader checks every line; a malformed one is an InputError that
names file and line. Oriented boxes become their axis-aligned hull (design, section 6).
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, TypeAdapter, ValidationError

from layers.drea import CLASSES, Regions
from util.errors import InputError
from util.files import read_json, read_text, some
from util.local_features import stem

logger = logging.getLogger("galr")

FORMATS = ("dota", "dota-result", "yolo-obb", "coco")
_RESULT_PREFIX = re.compile(r"^Task[12]_", re.IGNORECASE)


class Row(NamedTuple):
    """One detection as written: class name, score in [0, 1], and hull (left, top, right, bottom)."""

    class_name: str
    score: float
    hull: tuple[float, float, float, float]


@dataclass
class Detections:
    """All that a folder or file of detections says.

    rows: image stem -> its detections; for the formats with one file per image, and COCO, every image that the source
        names is here, if only with an empty list.
    normalised: hulls are in units of the image sides, not in pixels.
    names_all: an image that is not in `rows` was never looked at; without it (DOTA result text), nothing was found.
    size: image stem -> (width, height) in pixels, where the source knows it.
    """

    rows: dict[str, list[Row]]
    normalised: bool = False
    names_all: bool = True
    size: dict[str, tuple[float, float]] = field(default_factory=dict)


def read_detections(
    source: Path, form: str = "auto", classes: Path | None = None, coco_images: Path | None = None
) -> tuple[Detections, str]:
    """Read a folder (DOTA, YOLO-OBB) or a file (COCO) of detections; returns them and the name of their format.

    form: one of FORMATS, or `auto`: told from the content (`detect_format`).  classes: for YOLO-OBB, a file with one
    class name a line, in the order of the indices; else the order of CLASSES.  coco_images: for COCO, the JSON file
    whose `images` and `categories` the results refer to.

    Raises InputError for a source that is missing, of no known format, or malformed (naming file and line).
    """
    if not source.exists():
        raise InputError(f"regions {source} is not there; give a folder or file of detections, or the word proposals")
    form = detect_format(source) if form == "auto" else form
    if source.is_dir() == (form == "coco"):
        needed = "one JSON file" if form == "coco" else "a folder of text files"
        raise InputError(f"regions {source}: the {form} format is {needed}")
    for given, option, wanted in ((classes, "--classes", "yolo-obb"), (coco_images, "--coco-images", "coco")):
        if given and form != wanted:
            raise InputError(f"regions {source} are in the {form} format; {option} belongs to {wanted}")
    if form == "coco":
        if coco_images is None:
            raise InputError(
                f"regions {source}: a file is read as COCO results; also give --coco-images, the file that names their "
                "images and categories (the other formats are folders)"
            )
        return _read_coco(source, coco_images), form
    if form == "dota-result":
        return _read_dota_results(source), form
    if form == "yolo-obb":
        names = read_classes(classes) if classes else list(CLASSES)
        return Detections(_read_per_image(source, lambda line: yolo_obb_row(line, names)), normalised=True), form
    return Detections(_read_per_image(source, dota_row, headers=2)), form


def detect_format(source: Path) -> str:
    """The format of a folder or file of detections, from the first line that is not blank.

    A file is COCO JSON. In a folder of text files, a line of 8 numbers and a word is DOTA annotation text; a word
    (an image), a number and 4 or 8 numbers more is DOTA result text; ten numbers are YOLO-OBB text, unless all files
    are named after classes (image names may be numbers). Raises InputError where none fits.
    """
    if not source.is_dir():
        return "coco"
    paths = _text_files(source)
    after_classes = all(
        _RESULT_PREFIX.match(path.name) or class_index(_result_class(path)) is not None for path in paths
    )
    for path in paths:
        for number, line in _lines(path, "regions", headers=2):
            words = line.split()
            numbers = [_is_number(word) for word in words]
            if len(words) >= 9 and all(numbers[:8]) and not numbers[8]:
                return "dota"
            if len(words) in (6, 10) and all(numbers[1:]) and (not numbers[0] or after_classes):
                return "dota-result"
            if len(words) in (9, 10) and all(numbers):
                return "yolo-obb"
            raise InputError(
                f"regions {path}, line {number}: neither DOTA nor YOLO-OBB text ({_quoted(line)}); "
                f"see docs/REGIONS.md, or say --format {'|'.join(FORMATS)} for a clearer message"
            )
    return "dota-result" if after_classes else "dota"  # only empty files: nothing was found anywhere


def to_regions(
    detections: Detections,
    stems: list[str],
    size_of: Callable[[str], tuple[float, float]],
    allow_missing: bool = False,
) -> list[Regions]:
    """The regions of each image of `stems`, in units of the image sides, clipped to the image.

    size_of(stem) gives (width, height) in pixels, and is asked only where the detections are in pixels and the source
    does not know. Regions of classes outside DOTA-v1.0, and those with no area inside the image, are dropped; one line
    on standard error counts each. Raises InputError if the source lacks images of `stems`, unless `allow_missing`.
    """
    missing = [name for name in stems if name not in detections.rows]
    if missing and not allow_missing and (detections.names_all or len(missing) == len(stems)):
        raise InputError(
            f"no regions for {len(missing)} of {len(stems)} images: {some(missing)}; "
            "add them (an empty file where nothing was found), or give --allow-missing"
        )
    unknown: Counter[str] = Counter()
    outside = 0
    regions = []
    for name in stems:
        rows = detections.rows.get(name, [])
        if not rows:
            regions.append(Regions.empty())
            continue
        size = (1.0, 1.0) if detections.normalised else detections.size.get(name) or size_of(name)
        one, lost = _scaled(rows, size, unknown)
        outside += lost
        regions.append(one)
    if unknown:
        named = ", ".join(f"{name} ({count})" for name, count in unknown.most_common(5))
        more = ", ..." if len(unknown) > 5 else ""
        logger.warning(f"dropped {unknown.total()} regions of classes outside DOTA-v1.0: {named}{more}")
    if outside:
        logger.warning(f"dropped {outside} regions that have no area inside their image")
    return regions


def class_index(name: str) -> int | None:
    """The DOTA-v1.0 index of a class name in any spelling (case, spaces, marks), or None."""
    return _INDEX.get(_plain(name))


def read_classes(path: Path) -> list[str]:
    """A class file: one name a line, in the order of the detector's indices."""
    names = [line.strip() for line in read_text(path, "class file").rstrip().split("\n")]
    for number, name in enumerate(names, 1):
        if not name:
            raise InputError(f"class file {path}, line {number}: blank; one class name on each line is needed")
    return names


def dota_row(line: str) -> Row:
    """`x1 y1 x2 y2 x3 y3 x4 y4 class difficulty`, pixels. Annotations have no score: it is 1."""
    words = line.split()
    if len(words) < 10:
        raise ValueError("8 coordinates, class and difficulty are needed")
    if not re.fullmatch("[0-9]+", words[-1]):
        raise ValueError(f"the difficulty is {_quoted(words[-1])}, not a whole number")
    return Row(" ".join(words[8:-1]), 1.0, _hull(_numbers(words[:8])))


def dota_result_row(line: str, class_name: str, coordinates: int | None = None) -> tuple[str, Row]:
    """`image score` and 8 or 4 coordinates (4: left, top, right, bottom), pixels -> image stem and row.

    `coordinates` says how many there are; None tells it from the number of words, for image names without spaces.
    """
    if coordinates is None:
        coordinates = {6: 4, 10: 8}.get(len(line.split()))
    words = line.rsplit(maxsplit=coordinates + 1) if coordinates else []
    if coordinates is None or len(words) != coordinates + 2:
        raise ValueError(f"image, score and {coordinates or '8 or 4'} coordinates are needed")
    score, *place = _numbers(words[1:])
    return stem(words[0]), Row(class_name, _score(score), _hull(place))


def yolo_obb_row(line: str, classes: list[str]) -> Row:
    """`class x1 y1 x2 y2 x3 y3 x4 y4 confidence`, corners in units of the image sides."""
    words = line.split()
    if len(words) != 10:
        raise ValueError(
            "class, 8 corner coordinates and confidence are needed (Ultralytics writes it with save_conf=True)"
        )
    if not re.fullmatch("[0-9]{1,9}", words[0]) or int(words[0]) >= len(classes):
        raise ValueError(f"the class is {_quoted(words[0])}; an index from 0 to {len(classes) - 1} is needed")
    *corners, confidence = _numbers(words[1:])
    if min(corners) < -1 or max(corners) > 2:  # an oriented box may reach over the edge, but not by an image side
        raise ValueError("corners must be in units of the image sides (0 to 1), not in pixels")
    return Row(classes[int(words[0])], _score(confidence), _hull(corners))


class _CocoModel(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")


class _CocoImage(_CocoModel):
    id: int | str
    file_name: str
    width: Annotated[FiniteFloat, Field(gt=0)] | None = None
    height: Annotated[FiniteFloat, Field(gt=0)] | None = None


class _CocoCategory(_CocoModel):
    id: int
    name: str


class _CocoNames(_CocoModel):
    images: list[_CocoImage]
    categories: list[_CocoCategory]


class _CocoResult(_CocoModel):
    image_id: int | str
    category_id: int
    bbox: Annotated[list[FiniteFloat], Field(min_length=4, max_length=4)]  # left, top, width, height in pixels
    score: Annotated[FiniteFloat, Field(ge=0, le=1)]


def _read_coco(source: Path, names_file: Path) -> Detections:
    names: _CocoNames = _valid(_CocoNames, read_json(names_file, "COCO images file"), f"COCO images file {names_file}")
    results: list[_CocoResult] = _valid(list[_CocoResult], read_json(source, "COCO results"), f"COCO results {source}")
    image_of, category_of = {}, {}
    found = Detections({})
    for image in names.images:
        key = stem(image.file_name.replace("\\", "/"))
        if image.id in image_of or key in found.rows:
            raise InputError(f"COCO images file {names_file}: image {image.file_name} (id {image.id}) is there twice")
        image_of[image.id] = key
        found.rows[key] = []
        if image.width and image.height:
            found.size[key] = (image.width, image.height)
    for category in names.categories:
        if category.id in category_of:
            raise InputError(f"COCO images file {names_file}: category id {category.id} is there twice")
        category_of[category.id] = category.name
    for number, result in enumerate(results, 1):
        left, top, width, height = result.bbox
        for what, known, key in (("image", image_of, result.image_id), ("category", category_of, result.category_id)):
            if key not in known:
                raise InputError(f"COCO results {source}, entry {number}: {what}_id {key} is not in {names_file}")
        if width < 0 or height < 0:
            raise InputError(f"COCO results {source}, entry {number}: bbox has a negative width or height")
        row = Row(category_of[result.category_id], result.score, (left, top, left + width, top + height))
        found.rows[image_of[result.image_id]].append(row)
    return found


def _valid(model: Any, value: Any, where: str) -> Any:
    """The value as the model describes it, or InputError that names the first fault and its place."""
    try:
        return TypeAdapter(model).validate_python(value)
    except ValidationError as error:
        fault = error.errors(include_url=False, include_input=False)[0]
        place = [str(part + 1) if isinstance(part, int) else part for part in fault["loc"]]
        entry = f", entry {' '.join(place)}" if place else ""
        raise InputError(f"{where}{entry}: {fault['msg']}") from None


def _read_dota_results(folder: Path) -> Detections:
    found = Detections({}, names_all=False)
    for path in _text_files(folder):
        class_name = _result_class(path)
        coordinates = {"task1_": 8, "task2_": 4}.get(path.name[:6].lower())
        for name, row in _parsed(path, lambda line, c=class_name, n=coordinates: dota_result_row(line, c, n)):
            found.rows.setdefault(name, []).append(row)
    return found


def _read_per_image(folder: Path, row: Callable[[str], Row], headers: int = 0) -> dict[str, list[Row]]:
    rows: dict[str, list[Row]] = {}
    for path in _text_files(folder):
        if stem(path.name) in rows:
            raise InputError(
                f"regions {path}: a second file for image {stem(path.name)} (a name ends at its first dot)"
            )
        rows[stem(path.name)] = list(_parsed(path, row, headers))
    return rows


def _result_class(path: Path) -> str:
    """The class that a DOTA result file is named after: Task1_plane.txt -> plane."""
    return _RESULT_PREFIX.sub("", path.stem)


def _text_files(folder: Path) -> list[Path]:
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() == ".txt" and not path.name.startswith("."))
    if not paths:
        raise InputError(f"regions {folder} holds no .txt files")
    return paths


def _parsed(path: Path, parse: Callable[[str], Any], headers: int = 0) -> Iterator[Any]:
    """Each line through `parse`; its ValueError becomes an InputError with file and line."""
    for number, line in _lines(path, "regions", headers):
        try:
            yield parse(line)
        except ValueError as error:
            raise InputError(f"regions {path}, line {number}: {error}; the line is {_quoted(line)}") from None


def _lines(path: Path, what: str, headers: int) -> Iterator[tuple[int, str]]:
    """Line numbers and lines that are not blank; of the first `headers`, `imagesource:` and `gsd:` are passed over."""
    for number, line in enumerate(read_text(path, what).split("\n"), 1):
        header = number <= headers and line.strip().lower().startswith(("imagesource:", "gsd:"))
        if line.strip() and not header:
            yield number, line


def _numbers(words: list[str]) -> list[float]:
    for word in words:
        if not _is_number(word):
            raise ValueError(f"{_quoted(word)} is not a number")
    return [float(word) for word in words]


def _is_number(word: str) -> bool:
    try:
        return abs(float(word)) < 1e9  # larger ones, infinity and nan are no pixels
    except ValueError:
        return False


def _score(score: float) -> float:
    if not 0 <= score <= 1:
        raise ValueError(f"the score is {score:g}; 0 to 1 is needed")
    return score


def _hull(corners: list[float]) -> tuple[float, float, float, float]:
    """Axis-aligned hull (left, top, right, bottom) of corner points x1 y1 x2 y2 ..."""
    return min(corners[0::2]), min(corners[1::2]), max(corners[0::2]), max(corners[1::2])


def _scaled(rows: list[Row], size: tuple[float, float], unknown: Counter[str]) -> tuple[Regions, int]:
    """Rows of one image -> Regions and the number that lie outside; classes that are not known go to `unknown`."""
    class_names, scores, hulls = zip(*rows, strict=True)
    known = {name: class_index(name) for name in set(class_names)}
    unknown.update(name for name in class_names if known[name] is None)
    class_id = np.array([-1 if known[name] is None else known[name] for name in class_names])
    hull = np.clip(np.array(hulls, np.float64) / [*size, *size], 0, 1)
    low, high = hull[:, :2], hull[:, 2:]
    inside = (high > low).all(axis=1)
    keep = (class_id >= 0) & inside
    box = np.concatenate([(low + high) / 2, high - low], axis=1)
    return Regions(class_id[keep], np.array(scores)[keep], box[keep]), int((~inside & (class_id >= 0)).sum())


def _plain(name: str) -> str:
    return re.sub("[^a-z0-9]", "", name.lower())


def _quoted(text: str, most: int = 60) -> str:
    return repr(text if len(text) <= most else text[:most] + "...")


_INDEX = {_plain(name): index for index, name in enumerate(CLASSES)}
