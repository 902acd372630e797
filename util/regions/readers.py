"""Read what detectors write: DOTA annotation and result text, YOLO-OBB text, COCO JSON.

A format is a function from a source to Detections and one entry of READERS. Every line is checked; a malformed one is
an InputError that names file and line. Oriented boxes become their axis-aligned hull.
"""

from __future__ import annotations

import argparse
import logging
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import get_args

import numpy as np
from pydantic import Field

from layers.drea import CLASSES, Regions
from util.images import Truncated
from util.lists import whole_stem
from util.regions.detections import Detections, Row, class_index, parse_class_map, to_regions
from utils import Entry, InputError, checked, read_as, read_json, read_text

logger = logging.getLogger("galr")

CLASS_FILE = "classes.txt"  # labelling tools write it among the label files
HEADERS = ("imagesource:", "gsd:")  # of DOTA annotations
TASK = re.compile(r"^Task([12])_", re.IGNORECASE)


def read_detections(
    source: Path, form: str = "auto", classes: Path | None = None, coco_images: Path | None = None
) -> tuple[Detections, str]:
    """Read a folder (DOTA, YOLO-OBB) or a file (COCO) of detections; return them and the name of their format.

    form: a key of READERS, or `auto`. classes: a file of class names in the order of the indices (default: a
    `classes.txt` among the labels, else CLASSES). coco_images: the JSON file of COCO's `images` and `categories`.
    Raise InputError for a source that is missing, of no known format, malformed, or in another unit.
    """
    form = detect_format(source) if form == "auto" else form
    found = READERS[form](source, classes, coco_images)
    found.source = str(source)
    hulls = np.array([row.hull for rows in found.rows.values() for row in rows])
    if not found.normalised and hulls.size and hulls.min() >= -1 and hulls.max() <= 2:
        raise InputError(
            f"regions {source}: all coordinates are within 0 to 1, or nearly; these look like units of the image "
            f"sides, and the {form} format is in pixels"
        )
    return found, form


def detect_format(source: Path) -> str:
    """Return the format of a JSON file, or that of a folder by its first line that is not blank."""
    if source.suffix.lower() == ".json":
        return "coco"
    paths = _label_files(source)
    if all(TASK.match(path.name) for path in paths):
        return "dota-result"
    of_classes = all(class_index(path.stem) is not None for path in paths)
    path, number, line = next(((path, *first) for path in paths for first in _lines(path)), (None, 0, ""))
    if path is None:  # nothing was found in any image
        return "dota-result" if of_classes else "dota"
    words = line.split()
    numeric = [_is_number(word) for word in words]
    if len(words) >= 9 and all(numeric[:8]) and not numeric[8]:
        return "dota"
    if len(words) in (6, 10) and all(numeric[1:]) and (of_classes or not numeric[0]):
        return "dota-result"
    if len(words) in (9, 10, 11) and all(numeric):
        return "yolo-obb"
    raise InputError(
        f"regions {path}, line {number}: neither DOTA nor YOLO-OBB text ({line[:60]!r}); see docs/data.md, or say "
        f"--format {'|'.join(READERS)} for a clearer message"
    )


def read_classes(path: Path) -> list[str]:
    """Read a class file: one name a line, in the order of the detector's indices."""
    return [line.strip() for line in read_text(path, "class file").rstrip().split("\n")]


def add_detector_options(parser: argparse.ArgumentParser) -> None:
    """Add --format, --classes, --class-map and --coco-images, which describe the files that --regions names."""
    add = parser.add_argument_group("a detector's files").add_argument
    add("--format", choices=("auto", *READERS), default="auto", help="default: told from the content")
    classes = "YOLO-OBB, COCO: class names in index order (default: a classes.txt, or DOTA-v1.0)"
    add("--classes", type=Path, help=classes)
    class_map = "what other names of classes mean; NAME=none drops them"
    add("--class-map", nargs="+", action="extend", default=[], metavar="NAME=CLASS", help=class_map)
    add("--coco-images", type=Path, help="COCO: the JSON file that names images and categories")


def regions_of(
    arguments: argparse.Namespace, names: list[str], size_of: Callable[[str], tuple[float, float]], allow_missing: bool
) -> tuple[list[Regions], str]:
    """Read what --regions and the options of `add_detector_options` say; return each image's regions, and the format.

    size_of and allow_missing: as for `to_regions`. Raise InputError for files that do not fit.
    """
    class_map, source = parse_class_map(arguments.class_map), Path(arguments.regions)
    detections, form = read_detections(source, arguments.format, arguments.classes, arguments.coco_images)
    return to_regions(detections, names, size_of, allow_missing, class_map), form


def add_truncated(parser: argparse.ArgumentParser) -> None:
    """Add --truncated, which says what becomes of damaged images."""
    text = "truncated image files: raise an error (default) or decode what is readable"
    parser.add_argument("--truncated", choices=get_args(Truncated), default="error", help=text)


# ---------------------------------------------------------------- text: a folder of files of lines


def read_dota(source: Path, *_: Path | None) -> Detections:
    """Read annotations: a file per image of `x1 y1 x2 y2 x3 y3 x4 y4 class [difficulty]` in pixels; scores are 1."""

    def parse(path: Path, line: str) -> tuple[str, Row]:
        words = line.split()
        if len(words) > 9 and re.fullmatch("-?[0-9]+", words[-1]):
            words.pop()  # the difficulty
        if len(words) < 9 or _is_number(words[8]):
            raise ValueError("must be 8 coordinates and a class")
        return path.stem, _row(" ".join(words[8:]), 1, *map(float, words[:8]))

    return Detections(_read_folder(source, parse))


def read_results(source: Path, *_: Path | None) -> Detections:
    """Read results: a file per class of `image score` and 8 coordinates (Task1) or left, top, right, bottom (Task2).

    Images without detections are not named.
    """

    def parse(path: Path, line: str) -> tuple[str, Row]:
        task, words = TASK.match(path.name), line.split()
        plain = all(map(_is_number, words[1:]))  # else the image's name has spaces in it
        found = {6: 4, 10: 8}.get(len(words)) if plain else None
        expected = {"1": 8, "2": 4}[task[1]] if task else found
        if expected is None or len(words) < expected + 2:
            raise ValueError("must be image, score and 8 or 4 coordinates")
        if found not in (None, expected):
            raise ValueError(f"{found} coordinates in a Task{task[1]} file, which has {expected}")
        name, *words = line.rsplit(maxsplit=expected + 1)
        return name, _row(TASK.sub("", path.stem), *map(float, words))

    return Detections({image: rows for image, rows in _read_folder(source, parse).items() if rows}, names_all=False)


def read_yolo(source: Path, classes: Path | None = None, *_: Path | None) -> Detections:
    """Read Ultralytics' text: `class x1 y1 x2 y2 x3 y3 x4 y4 confidence [track]`, in units of the image sides."""
    if classes is None and (source / CLASS_FILE).is_file():
        classes = source / CLASS_FILE
        logger.info(f"class names are those of {classes}")
    names = read_classes(classes) if classes else CLASSES

    def parse(path: Path, line: str) -> tuple[str, Row]:
        words = line.split()
        if len(words) not in (10, 11):
            raise ValueError("must be class, 8 corner coordinates and confidence (Ultralytics: save_conf=True)")
        if not words[0].isdecimal() or int(words[0]) >= len(names):
            raise ValueError(f"the class is {words[0]!r}; an index from 0 to {len(names) - 1} is needed")
        *corners, confidence = map(float, words[1:10])
        if sum(not -1 <= value <= 2 for value in corners) > 4:  # one corner may lie far out: it is clipped
            raise ValueError("corners must be in units of the image sides (0 to 1); these look like pixels")
        return path.stem, _row(names[int(words[0])], confidence, *corners)

    return Detections(_read_folder(source, parse), normalised=True)


def _read_folder(folder: Path, parse: Callable[[Path, str], tuple[str, Row]]) -> dict[str, list[Row]]:
    """Return image name -> detections, those of the files' stems too. Raise a line's ValueError as an InputError."""
    paths = _label_files(folder)
    rows: dict[str, list[Row]] = {path.stem: [] for path in paths}
    for path in paths:
        for number, line in _lines(path):
            try:
                name, row = parse(path, line)
            except ValueError as error:
                raise InputError(f"regions {path}, line {number}: {error}; the line is {line[:60]!r}") from None
            rows.setdefault(name, []).append(row)
    return rows


def _label_files(folder: Path) -> list[Path]:
    """Return the text files of a folder, sorted, without a `classes.txt` of names. Raise InputError for none."""
    paths = sorted(path for path in folder.glob("[!.]*.txt") if path.name != CLASS_FILE)
    if not paths:
        raise InputError(f"regions {folder}: must be a folder of .txt files, a .json file, or the word proposals")
    return paths


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield line numbers and lines, without blank ones and DOTA's headers."""
    for number, line in enumerate(read_text(path, "regions").split("\n"), 1):
        if line.strip() and not line.strip().lower().startswith(HEADERS):
            yield number, line


def _row(class_name: str, score: float, *corners: float) -> Row:
    """Build a row from corners x, y, x, y, ... Raise ValueError."""
    if len(corners) not in (4, 8) or not all(abs(value) < 1e9 for value in corners):  # not infinity, not nan
        raise ValueError(f"must have 4 or 8 finite coordinates, got {corners}")
    if not 0 <= score <= 1:
        raise ValueError(f"the score must be from 0 to 1, got {score:g}")
    x, y = corners[0::2], corners[1::2]
    return Row(class_name, score, (min(x), min(y), max(x), max(y)))


def _is_number(word: str) -> bool:
    try:
        return abs(float(word)) < 1e9
    except ValueError:
        return False


# ---------------------------------------------------------------- COCO's JSON


class _Image(Entry):
    id: int | str
    file_name: str
    width: float | None = None
    height: float | None = None


class _Category(Entry):
    id: int
    name: str


class _Result(Entry):
    # bbox: left, top, width, height; poly: four corners, as Ultralytics writes oriented boxes; both in pixels
    image_id: int | str
    category_id: int
    bbox: list[float] | None = None
    poly: list[float] | None = None
    score: float = 1.0  # annotations have none


class _Dataset(Entry):
    images: list[_Image]
    categories: list[_Category]
    annotations: list[_Result] = Field(default_factory=list)


def read_coco(source: Path, classes: Path | None = None, coco_images: Path | None = None) -> Detections:
    """Read annotations or results. `coco_images` names their images and categories.

    Results without it know images by name and categories by position, from 1, or from 0 if there is a 0.
    """
    value, where = read_json(source, "COCO results"), f"COCO results {source}"
    dataset = read_as(_Dataset, coco_images, "COCO images file") if coco_images else None
    if isinstance(value, dict) and "annotations" in value:
        annotated = checked(_Dataset, value, where)
        dataset, results = dataset or annotated, annotated.annotations
    else:
        results = checked(list[_Result], value, where)
    found = Detections({})
    if dataset:
        files = {image.id: image.file_name.replace("\\", "/") for image in dataset.images}
        image_of = {whole_stem(file): file for file in files.values()} | files  # Ultralytics gives the image's stem
        category_of = {category.id: category.name for category in dataset.categories}
        found.rows = {file: [] for file in files.values()}
        found.size = {files[one.id]: (one.width, one.height) for one in dataset.images if one.width and one.height}
        advice = f"is not in {coco_images or source}"
    else:
        image_of = {result.image_id: str(result.image_id) for result in results}
        first = max(0, min([1, *(result.category_id for result in results)]))
        category_of = dict(enumerate(read_classes(classes) if classes else CLASSES, first))
        advice = f"is not from {first} to {first + len(category_of) - 1}; give --classes, or --coco-images"
        logger.info(
            f"regions {source}: no file names the categories (--coco-images); they are taken by their position in "
            f"{classes or 'the order of DOTA-v1.0'}, counted from {first}"
        )
    for number, result in enumerate(results, 1):
        file = image_of.get(result.image_id) or image_of.get(str(result.image_id))
        try:
            if file is None:
                raise ValueError(f"image_id {result.image_id} {advice}")
            if result.category_id not in category_of:
                raise ValueError(f"category_id {result.category_id} {advice}")
            row = _row(category_of[result.category_id], result.score, *_corners(result))
        except ValueError as error:
            raise InputError(f"{where}, entry {number}: {error}") from None
        found.rows.setdefault(file, []).append(row)
    return found


def _corners(result: _Result) -> list[float]:
    if result.poly:
        return result.poly
    if not result.bbox:
        raise ValueError("neither bbox nor poly")
    left, top, width, height = result.bbox
    return [left, top, left + width, top + height]


READERS: dict[str, Callable[[Path, Path | None, Path | None], Detections]] = {
    "dota": read_dota,
    "dota-result": read_results,
    "yolo-obb": read_yolo,
    "coco": read_coco,
}
