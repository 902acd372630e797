"""Read what detectors write: DOTA annotation and result text, YOLO-OBB text, COCO JSON -> Detections.

docs/REGIONS.md shows an example of each format. Every reader checks every line; a malformed one is an InputError that
names file and line. Oriented boxes become their axis-aligned hull.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np

from layers.drea import CLASSES
from util.regions.classes import read_classes
from util.regions.coco import read_coco
from util.regions.detections import Detections
from util.regions.dota import HEADERS, Row, after_class, dota_row, read_results
from util.regions.text import class_file, is_number, label_files, numbered_lines, parsed, quoted
from util.regions.yolo import yolo_obb_row
from utils import InputError

logger = logging.getLogger("galr")

FORMATS = ("dota", "dota-result", "yolo-obb", "coco")


def read_detections(
    source: Path, form: str = "auto", classes: Path | None = None, coco_images: Path | None = None
) -> tuple[Detections, str]:
    """Read a folder (DOTA, YOLO-OBB) or a file (COCO) of detections; returns them and the name of their format.

    form: one of FORMATS, or `auto`: told from the content (`detect_format`).  classes: a file with one class name a
    line, in the order of the indices, for YOLO-OBB and for COCO results without a file of categories; else a
    `classes.txt` among the labels, else CLASSES.  coco_images: for COCO, the JSON file whose `images` and `categories`
    the results refer to.

    Raises InputError for a source that is missing, of no known format, or malformed (naming file and line), and for one
    whose coordinates are not in the format's unit.
    """
    if not source.exists():
        raise InputError(f"regions {source} is not there; give a folder or file of detections, or the word proposals")
    form = detect_format(source) if form == "auto" else form
    if source.is_dir() == (form == "coco"):
        needed = "one JSON file" if form == "coco" else "a folder of text files"
        raise InputError(f"regions {source}: the {form} format is {needed}")
    if classes and (form.startswith("dota") or coco_images):
        belongs = "is not needed with --coco-images" if coco_images else "belongs to yolo-obb and coco"
        raise InputError(f"regions {source} are in the {form} format; --classes {belongs}")
    if coco_images and form != "coco":
        raise InputError(f"regions {source} are in the {form} format; --coco-images belongs to coco")
    if form == "coco":
        found = _coco(source, classes, coco_images)
    elif form == "dota-result":
        found = Detections(read_results(source), names_all=False)
    elif form == "yolo-obb":
        found = Detections(_yolo(source, classes), normalised=True)
    else:
        found = Detections(_per_image(source, dota_row, HEADERS))
    found.source = str(source)
    _check_unit(found, form)
    return found, form


def detect_format(source: Path) -> str:
    """The format of a folder or file of detections, from the first line that is not blank.

    A file is COCO JSON. In a folder of text files, a line of 8 numbers and a word is DOTA annotation text; a word
    (an image), a number and 4 or 8 numbers more is DOTA result text; ten numbers are YOLO-OBB text, unless all files
    are named after classes (image names may be numbers). Raises InputError where none fits.
    """
    if not source.is_dir():
        return "coco"
    paths = label_files(source)
    named_after_classes = all(map(after_class, paths))
    for path in paths:
        for number, line in numbered_lines(path, HEADERS):
            words = line.split()
            numbers = [is_number(word) for word in words]
            if len(words) >= 9 and all(numbers[:8]) and not numbers[8]:
                return "dota"
            if len(words) in (6, 10) and all(numbers[1:]) and (not numbers[0] or named_after_classes):
                return "dota-result"
            if len(words) in (9, 10, 11) and all(numbers):
                return "yolo-obb"
            raise InputError(
                f"regions {path}, line {number}: neither DOTA nor YOLO-OBB text ({quoted(line)}); "
                f"see docs/REGIONS.md, or say --format {'|'.join(FORMATS)} for a clearer message"
            )
    return "dota-result" if named_after_classes else "dota"  # only empty files: nothing was found anywhere


def _coco(source: Path, classes: Path | None, coco_images: Path | None) -> Detections:
    names = read_classes(classes) if classes else list(CLASSES)
    found = read_coco(source, coco_images, names)
    if found.classes_by_position is not None:
        logger.info(
            f"regions {source}: no file names the categories (--coco-images); they are taken by their position in "
            f"{classes or 'the order of DOTA-v1.0'}, counted from {found.classes_by_position}"
        )
    return Detections(found.rows, names_all=found.names_all, size=found.size)


def _yolo(folder: Path, classes: Path | None) -> dict[str, list[Row]]:
    if beside := None if classes else class_file(folder):
        logger.info(f"class names are those of {beside}")
    path = classes or beside
    names = read_classes(path) if path else list(CLASSES)
    return _per_image(folder, lambda line: yolo_obb_row(line, names))


def _per_image(folder: Path, row: Callable[[str], Row], headers: tuple[str, ...] = ()) -> dict[str, list[Row]]:
    rows: dict[str, list[Row]] = {}
    for path in label_files(folder):
        if path.stem in rows:
            raise InputError(f"regions {path}: a second file for image {path.stem}")
        rows[path.stem] = list(parsed(path, row, headers))
    return rows


def _check_unit(found: Detections, form: str) -> None:
    """Raises InputError for units of the image sides in a format of pixels."""
    hulls = np.array([row.hull for rows in found.rows.values() for row in rows])
    if not found.normalised and hulls.size and hulls.min() >= -1 and hulls.max() <= 2:
        raise InputError(
            f"regions {found.source}: all coordinates are within 0 to 1, or nearly; these look like units of the image "
            f"sides, and the {form} format is in pixels"
        )
