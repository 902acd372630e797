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
from typing import Any, NamedTuple, get_args

import numpy as np

from layers.drea import CLASSES
from util.images import Truncated
from util.regions.classes import class_index, read_classes
from util.regions.coco import read_coco
from util.regions.detections import Detections, Row, hull
from utils import InputError, read_text

logger = logging.getLogger("galr")

CLASS_FILE = "classes.txt"  # labelling tools write it among the label files
HEADERS = ("imagesource:", "gsd:")  # of DOTA annotations
_RESULT_PREFIX = re.compile(r"^Task[12]_", re.IGNORECASE)


class Reader(NamedTuple):
    """Describe a format: its function, the suffix of its file (empty for a folder of .txt files), its options.

    fits(words, result): a line of such words is in this format; result: the files are named after classes.
    """

    read: Callable[..., Detections]
    suffix: str = ""
    options: tuple[str, ...] = ()
    fits: Callable[[list[str], bool], bool] = lambda words, result: False


def read_detections(
    source: Path, form: str = "auto", classes: Path | None = None, coco_images: Path | None = None
) -> tuple[Detections, str]:
    """Read a folder (DOTA, YOLO-OBB) or a file (COCO) of detections; return them and the name of their format.

    form: a key of READERS, or `auto`. classes: a file of class names in the order of the indices (default: a
    `classes.txt` among the labels, else CLASSES). coco_images: the JSON file of COCO's `images` and `categories`.
    Raise InputError for a source that is missing, of no known format, malformed, or in another unit.
    """
    if not source.exists():
        raise InputError(f"regions {source} is not there; give a folder or file of detections, or the word proposals")
    form = detect_format(source) if form == "auto" else form
    reader = READERS[form]
    if source.is_dir() == bool(reader.suffix):
        needed = f"one {reader.suffix[1:].upper()} file" if reader.suffix else "a folder of text files"
        raise InputError(f"regions {source}: the {form} format is {needed}")
    options = {name: value for name, value in (("classes", classes), ("coco_images", coco_images)) if value}
    for name in options.keys() - set(reader.options):
        takers = " and ".join(key for key, other in READERS.items() if name in other.options)
        raise InputError(f"regions {source} are in the {form} format; --{name.replace('_', '-')} belongs to {takers}")
    found = reader.read(source, **options)
    found.source = str(source)
    hulls = np.array([row.hull for rows in found.rows.values() for row in rows])
    if not found.normalised and hulls.size and hulls.min() >= -1 and hulls.max() <= 2:
        raise InputError(
            f"regions {source}: all coordinates are within 0 to 1, or nearly; these look like units of the image "
            f"sides, and the {form} format is in pixels"
        )
    return found, form


def detect_format(source: Path) -> str:
    """Return the format of a file by its suffix, that of a folder by the first line that is not blank."""
    if not source.is_dir():
        for form, reader in READERS.items():
            if reader.suffix == source.suffix.lower():
                return form
        raise InputError(f"regions {source}: give a folder of text files or a .json file, or say --format")
    paths = label_files(source)
    result = all(_RESULT_PREFIX.match(path.name) or class_index(path.stem) is not None for path in paths)
    for path in paths:
        for number, line in lines_of(path):
            for form, reader in READERS.items():
                if reader.fits(line.split(), result):
                    return form
            raise InputError(
                f"regions {path}, line {number}: neither DOTA nor YOLO-OBB text ({line[:60]!r}); see docs/data.md, or "
                f"say --format {'|'.join(READERS)} for a clearer message"
            )
    return "dota-result" if result else "dota"  # only empty files: nothing was found in any image


def add_detector_options(parser: argparse.ArgumentParser) -> None:
    """Add --format, --classes, --class-map and --coco-images, which describe the files that --regions names."""
    add = parser.add_argument_group("a detector's files").add_argument
    add("--format", choices=("auto", *READERS), default="auto", help="default: told from the content")
    classes = "YOLO-OBB, COCO: class names in index order (default: a classes.txt, or DOTA-v1.0)"
    add("--classes", type=Path, help=classes)
    class_map = "what other names of classes mean; NAME=none drops them"
    add("--class-map", nargs="+", action="extend", default=[], metavar="NAME=CLASS", help=class_map)
    add("--coco-images", type=Path, help="COCO: the JSON file that names images and categories")


def add_truncated(parser: argparse.ArgumentParser) -> None:
    """Add --truncated, which says what becomes of damaged images."""
    text = "truncated image files: raise an error (default) or decode what is readable"
    parser.add_argument("--truncated", choices=get_args(Truncated), default="error", help=text)


# ---------------------------------------------------------------- formats


def read_dota(folder: Path) -> Detections:
    """Read annotations: a file per image of `x1 y1 x2 y2 x3 y3 x4 y4 class [difficulty]` in pixels; scores are 1."""
    return Detections(_per_image(folder, _dota_row))


def _dota_row(line: str) -> Row:
    words = line.split()
    names = words[8:]
    if len(names) > 1 and class_index(" ".join(names)) is None:  # the last is a difficulty: 0, 1, in some data -1 or 2
        int(names.pop())
    if not names or is_number(names[0]):
        raise ValueError("must be 8 coordinates and a class")
    return _row(" ".join(names), 1.0, numbers(words[:8], 8))


def _like_dota(words: list[str], result: bool) -> bool:
    return len(words) >= 9 and all(map(is_number, words[:8])) and not is_number(words[8])


def read_results(folder: Path) -> Detections:
    """Read results: a file per class of `image score` and 8 coordinates (Task1) or left, top, right, bottom (Task2).

    Images without detections are not named.
    """
    rows: dict[str, list[Row]] = {}
    for path in label_files(folder):
        class_name = _RESULT_PREFIX.sub("", path.stem)
        coordinates = {"task1_": 8, "task2_": 4}.get(path.name[:6].lower())
        for name, row in parsed(path, lambda line, c=class_name, n=coordinates: _result_row(line, c, n)):
            rows.setdefault(name, []).append(row)
    return Detections(rows, names_all=False)


def _result_row(line: str, class_name: str, coordinates: int | None) -> tuple[str, Row]:
    """Return image and row. `coordinates` None: told from the number of words, for names without spaces."""
    found = {6: 4, 10: 8}.get(len(line.split()))
    coordinates = coordinates or found
    if coordinates is None:
        raise ValueError("must be image, score and 8 or 4 coordinates")
    if found not in (None, coordinates):
        raise ValueError(f"{found} coordinates in a Task{1 if coordinates == 8 else 2} file, which has {coordinates}")
    name, *words = line.rsplit(maxsplit=coordinates + 1)
    score, *place = numbers(words, coordinates + 1)
    return name, _row(class_name, score, place)


def _like_result(words: list[str], result: bool) -> bool:
    return len(words) in (6, 10) and all(map(is_number, words[1:])) and (result or not is_number(words[0]))


def read_yolo(folder: Path, classes: Path | None = None) -> Detections:
    """Read Ultralytics' text: `class x1 y1 x2 y2 x3 y3 x4 y4 confidence [track]`, in units of the image sides."""
    if classes is None and (folder / CLASS_FILE).is_file():
        classes = folder / CLASS_FILE
        logger.info(f"class names are those of {classes}")
    names = read_classes(classes) if classes else list(CLASSES)
    return Detections(_per_image(folder, lambda line: _yolo_row(line, names)), normalised=True)


def _yolo_row(line: str, names: list[str]) -> Row:
    words = line.split()
    if len(words) not in (10, 11):
        raise ValueError("must be class, 8 corner coordinates and confidence (Ultralytics: save_conf=True)")
    if not words[0].isdecimal() or int(words[0]) >= len(names):
        raise ValueError(f"the class is {words[0]!r}; an index from 0 to {len(names) - 1} is needed")
    if len(words) == 11 and not words[10].isdecimal():
        raise ValueError(f"column 11 (track id) must be an integer, got {words[10]!r}")
    *corners, confidence = numbers(words[1:10], 9)
    if words[9].isdecimal() and confidence > 1:
        raise ValueError(
            f"the confidence is {words[9]}; this looks like the number of a track (Ultralytics: save_conf=True)"
        )
    if sum(not -1 <= value <= 2 for value in corners) > 4:  # one corner may lie far out: it is clipped
        raise ValueError("corners must be in units of the image sides (0 to 1); these look like pixels")
    return _row(names[int(words[0])], confidence, corners)


def _like_yolo(words: list[str], result: bool) -> bool:
    return len(words) in (9, 10, 11) and all(map(is_number, words))


READERS = {
    "dota": Reader(read_dota, fits=_like_dota),
    "dota-result": Reader(read_results, fits=_like_result),
    "yolo-obb": Reader(read_yolo, options=("classes",), fits=_like_yolo),
    "coco": Reader(read_coco, ".json", options=("classes", "coco_images")),
}


# ---------------------------------------------------------------- lines


def label_files(folder: Path) -> list[Path]:
    """Return the text files of a folder, sorted, without a `classes.txt` of names. Raise InputError for none."""
    paths = sorted(p for p in folder.glob("[!.]*") if p.suffix.lower() == ".txt" and p.name != CLASS_FILE)
    if not paths:
        raise InputError(f"regions {folder} holds no .txt files of labels")
    return paths


def lines_of(path: Path) -> Iterator[tuple[int, str]]:
    """Yield line numbers and lines, without blank ones and DOTA's headers."""
    for number, line in enumerate(read_text(path, "regions").split("\n"), 1):
        if line.strip() and not line.strip().lower().startswith(HEADERS):
            yield number, line


def parsed(path: Path, parse: Callable[[str], Any]) -> Iterator[Any]:
    """Yield each line through `parse`. Raise its ValueError as an InputError with file and line."""
    for number, line in lines_of(path):
        try:
            yield parse(line)
        except ValueError as error:
            raise InputError(f"regions {path}, line {number}: {error}; the line is {line[:60]!r}") from None


def _per_image(folder: Path, row: Callable[[str], Row]) -> dict[str, list[Row]]:
    rows: dict[str, list[Row]] = {}
    for path in label_files(folder):
        if path.stem in rows:
            raise InputError(f"regions {path}: a second file for image {path.stem}")
        rows[path.stem] = list(parsed(path, row))
    return rows


def _row(class_name: str, score: float, corners: list[float]) -> Row:
    if not 0 <= score <= 1:
        raise ValueError(f"the score must be from 0 to 1, got {score:g}")
    return Row(class_name, score, hull(corners))


def is_number(word: str) -> bool:
    try:
        return abs(float(word)) < 1e9  # not infinity, not nan
    except ValueError:
        return False


def numbers(words: list[str], count: int) -> list[float]:
    """Parse `count` numbers. Raise ValueError for anything else."""
    if len(words) != count:
        raise ValueError(f"must be {count} numbers, got {len(words)}")
    for word in words:
        if not is_number(word):
            raise ValueError(f"{word!r} is not a number")
    return list(map(float, words))
