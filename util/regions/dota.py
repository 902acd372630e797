"""DOTA's text: annotations, one file an image; results, one file a class; and patches of images in either."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from util.regions.classes import class_index
from util.regions.text import Hull, checked_score, hull, is_number, label_files, numbers, parsed, quoted

HEADERS = ("imagesource:", "gsd:")
_RESULT_PREFIX = re.compile(r"^Task[12]_", re.IGNORECASE)


class Row(NamedTuple):
    """One detection as written: class name, score in [0, 1], and hull (left, top, right, bottom)."""

    class_name: str
    score: float
    hull: Hull


def dota_row(line: str) -> Row:
    """`x1 y1 x2 y2 x3 y3 x4 y4 class [difficulty]`, pixels. Annotations have no score: it is 1."""
    words = line.split()
    names = words[8:]
    if len(names) > 1 and class_index(" ".join(names)) is None:  # a difficulty: 0, 1, in some data -1 or 2
        if not re.fullmatch("[+-]?[0-9]+", names[-1]):
            raise ValueError(f"the difficulty is {quoted(names[-1])}, not a whole number")
        names = names[:-1]
    if not names or is_number(names[0]):
        raise ValueError("8 coordinates and a class are needed")
    return Row(" ".join(names), 1.0, hull(numbers(words[:8])))


def read_results(folder: Path) -> dict[str, list[Row]]:
    """Result text: image name as written -> its detections. Images without any are not named in it."""
    rows: dict[str, list[Row]] = {}
    for path in label_files(folder):
        class_name = result_class(path)
        coordinates = {"task1_": 8, "task2_": 4}.get(path.name[:6].lower())
        for name, row in parsed(path, lambda line, c=class_name, n=coordinates: dota_result_row(line, c, n)):
            rows.setdefault(name, []).append(row)
    return rows


def dota_result_row(line: str, class_name: str, coordinates: int | None = None) -> tuple[str, Row]:
    """`image score` and 8 or 4 coordinates (4: left, top, right, bottom), pixels -> image name and row.

    `coordinates` says how many there are; None tells it from the number of words, for image names without spaces.
    """
    words = line.split()
    found = {6: 4, 10: 8}.get(len(words))
    if coordinates is None:
        coordinates = found
    elif found not in (None, coordinates) and all(map(is_number, words[1:])) and 0 <= float(words[1]) <= 1:
        task = {8: "Task1", 4: "Task2"}
        raise ValueError(
            f"{found} coordinates in a {task[coordinates]} file, which has {coordinates} (name the file "
            f"{task[found]}_... if these are right)"
        )
    words = line.rsplit(maxsplit=coordinates + 1) if coordinates else []
    if coordinates is None or len(words) != coordinates + 2:
        raise ValueError(f"image, score and {coordinates or '8 or 4'} coordinates are needed")
    score, *place = numbers(words[1:])
    return words[0], Row(class_name, checked_score(score), hull(place))


def result_class(path: Path) -> str:
    """The class that a result file is named after: Task1_plane.txt -> plane."""
    return _RESULT_PREFIX.sub("", path.stem)


def after_class(path: Path) -> bool:
    """Whether a file is named after a class, as result files are."""
    return bool(_RESULT_PREFIX.match(path.name)) or class_index(result_class(path)) is not None


class Patch(NamedTuple):
    """A part of an image, cut out for detection: image, and where the part lies in it."""

    image: str
    scale: float
    left: float
    top: float

    def put_back(self, row: Row) -> Row:
        """The row in the coordinates of the image."""
        left, top, right, bottom = row.hull
        x, y = self.left, self.top
        place = ((left + x) / self.scale, (top + y) / self.scale, (right + x) / self.scale, (bottom + y) / self.scale)
        return row._replace(hull=place)


_PATCH = re.compile(r"(?P<image>.+)__(?P<number>[0-9]{1,5}(\.[0-9]{1,5})?)__(?P<left>[0-9]{1,7})___(?P<top>[0-9]{1,7})")


def patch_of(name: str) -> Patch | None:
    """What the name of a patch says, `P0770__0.5__0___512` for one; None for any other name.

    The number in the middle is the factor by which the image was scaled before it was cut (DOTA's devkit), or the side
    of the patch (mmrotate, Ultralytics), which is never so small; then the patch lies in the image as it is.
    """
    found = _PATCH.fullmatch(name)
    if not found or float(found["number"]) == 0:
        return None
    number = float(found["number"])
    return Patch(found["image"], number if number < 16 else 1.0, float(found["left"]), float(found["top"]))
