"""Lines of detections: numbers, scores and corners, each fault named by file and line."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from utils import InputError, read_text

CLASS_FILE = "classes.txt"  # labelling tools write it among the label files

Hull = tuple[float, float, float, float]


def label_files(folder: Path) -> list[Path]:
    """The text files of a folder, by name, without a `classes.txt` of names. Raises InputError where there are none."""
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() == ".txt" and not path.name.startswith("."))
    paths = [path for path in paths if path != class_file(folder)]
    if not paths:
        raise InputError(f"regions {folder} holds no .txt files" + (" of labels" if class_file(folder) else ""))
    return paths


def class_file(folder: Path) -> Path | None:
    """The folder's `classes.txt`, if it holds names of classes and not the labels of an image of that name."""
    path = folder / CLASS_FILE
    if not path.is_file():
        return None
    names = all(sum(map(is_number, line.split())) < 4 for _, line in numbered_lines(path))
    return path if names else None


def numbered_lines(path: Path, headers: tuple[str, ...] = ()) -> Iterator[tuple[int, str]]:
    """Line numbers and lines that are not blank and do not begin with one of `headers` (in lower case)."""
    for number, line in enumerate(read_text(path, "regions").split("\n"), 1):
        if line.strip() and not (headers and line.strip().lower().startswith(headers)):
            yield number, line


def parsed(path: Path, parse: Callable[[str], Any], headers: tuple[str, ...] = ()) -> Iterator[Any]:
    """Each line through `parse`; its ValueError becomes an InputError with file and line."""
    for number, line in numbered_lines(path, headers):
        try:
            yield parse(line)
        except ValueError as error:
            raise InputError(f"regions {path}, line {number}: {error}; the line is {quoted(line)}") from None


def is_number(word: str) -> bool:
    try:
        return abs(float(word)) < 1e9  # larger ones, infinity and nan are no pixels
    except ValueError:
        return False


def numbers(words: list[str]) -> list[float]:
    for word in words:
        if not is_number(word):
            raise ValueError(f"{quoted(word)} is not a number")
    return [float(word) for word in words]


def checked_score(score: float) -> float:
    if not 0 <= score <= 1:
        raise ValueError(f"the score is {score:g}; 0 to 1 is needed")
    return score


def hull(corners: list[float]) -> Hull:
    """Axis-aligned hull (left, top, right, bottom) of corner points x1 y1 x2 y2 ..."""
    return min(corners[0::2]), min(corners[1::2]), max(corners[0::2]), max(corners[1::2])


def quoted(text: str, most: int = 60) -> str:
    return repr(text if len(text) <= most else text[:most] + "...")
