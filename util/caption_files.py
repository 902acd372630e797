"""Read the forms in which captions circulate, each as rows: an image with one or several captions, and its split."""

from __future__ import annotations

import csv
import io
import json
import re
import reprlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from util.lists import NAMED
from utils import InputError, existing_file, not_installed, one_line, printable, read_json, read_text

SPELLINGS = {
    "train": "train training trainval restval",
    "val": "val valid validation dev development",
    "test": "test testing",
}
SPLITS = {word: split for split, words in SPELLINGS.items() for word in words.split()}
NAMES = "filename file_name image_name image image_path img_path img path filepath".split()
CAPTIONS = "sentences sentence captions caption raw texts text comment description".split()
Row = dict[str, Any]


def read_rows(path: Path) -> Iterator[tuple[str, Row]]:
    """Yield the rows of a file of any form, told by its content, each with its place for messages."""
    with existing_file(path, "captions").open("rb") as file:
        start = file.read(4)
    if start == b"PAR1":
        rows: Iterable[Any] = _parquet_rows(path)
    else:
        text = read_text(path, "captions")
        read = _json_rows if text.lstrip()[:1] in ("{", "[") else _named_rows if NAMED.match(text) else _table_rows
        rows = read(text, path)
    for number, row in enumerate(rows, 1):
        where = f"captions {path}, entry {number}"
        if not isinstance(row, dict):
            raise InputError(f"{where}: expected an image with its captions, got {seen(row)}")
        yield where, row


def _json_rows(text: str, path: Path) -> list[Any]:
    """Return the rows of a JSON file, or of one that holds JSON lines."""
    try:
        return _tree_rows(read_json(path, "captions"), path)
    except InputError as error:
        if "Extra data" not in str(error):
            raise
    rows = []
    for number, line in enumerate(text.split("\n"), 1):
        try:
            rows += [json.loads(line)] if line.strip() else []
        except (ValueError, RecursionError) as error:
            raise InputError(f"captions {path}, line {number}: not JSON ({error})") from None
    return rows


def _tree_rows(tree: Any, path: Path) -> list[Any]:
    """Return the rows of a JSON value: a list of them, or one of the forms that hold such lists."""
    match tree:
        case [_, *_]:
            return tree
        case {"images": list(images), "annotations": list(annotations)}:
            return _coco_rows(images, annotations, path)
        case {"images": list(rows)} | {"annotations": list(rows)}:
            return rows
        case {**groups} if groups and all(isinstance(entries, list) for entries in groups.values()):
            return [_in_group(entry, name) for name, entries in groups.items() for entry in entries]
        case {**row} if set(NAMES) & set(row):  # JSON lines, of which there is one
            return [row]
        case {**table} if table and all(isinstance(captions, str | list) for captions in table.values()):
            return [{"filename": name, "captions": captions} for name, captions in table.items()]
    raise InputError(f"captions {path}: none of the forms that docs/data.md lists, but {seen(tree)}")


def _coco_rows(images: list, annotations: list, path: Path) -> list[Row]:
    """Return the rows of COCO's captions: images by their `id`, annotations with `image_id` and `caption`."""
    try:
        rows = {image["id"]: image | {"captions": []} for image in images}
        for annotation in annotations:
            rows[annotation["image_id"]]["captions"].append(annotation["caption"])
    except (KeyError, TypeError) as error:
        raise InputError(
            f"captions {path}: in COCO's form, an image must have an `id`, an annotation the `image_id` of an image "
            f"and a `caption` ({type(error).__name__}: {error}); give captions_*.json, not instances_*.json"
        ) from None
    return list(rows.values())


def _in_group(entry: Any, name: str) -> Any:
    """Return an entry of a list by split, by class (NWPU-Captions: images lie in CLASS/filename), or by image."""
    if isinstance(entry, str):
        return {"filename": name, "captions": [entry]}
    return {"split" if name.lower() in SPLITS else "folder": name} | entry if isinstance(entry, dict) else entry


def _named_rows(text: str, path: Path) -> Iterator[Row]:
    """Yield the rows of lines that begin with a name: `name#0<TAB>caption`, as in Flickr8k.token.txt, or without #0."""
    for number, line in enumerate(text.split("\n"), 1):
        found = NAMED.match(line)
        if found:
            yield {"filename": found[1] or found[2], "caption": line[found.end() :].strip('" ')}
        elif line.strip():
            raise InputError(f"captions {path}, line {number}: no image name before the caption: {seen(line)}")


def _table_rows(text: str, path: Path) -> Iterator[Row]:
    """Yield the rows of a CSV file, whatever its separator. Raise InputError if its first line has no such columns."""
    head = text.partition("\n")[0]
    separator = max(",\t;|", key=head.count)
    if not {column.strip().strip('"').lower() for column in head.split(separator)} & set(NAMES):
        raise InputError(
            f"captions {path}: neither JSON nor Parquet, and the first line names no column for images, such as "
            f"filename: {printable(head[:80])!r}"
        )
    csv.field_size_limit(2**27)  # images of the hub, turned to text
    table = csv.DictReader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True)
    try:
        for row in table:
            yield {key.strip().lower(): value and value.strip() for key, value in row.items() if key}
    except csv.Error as error:
        raise InputError(f"captions {path}, line {table.line_num}: not CSV ({error})") from None


def _parquet_rows(path: Path) -> Iterator[Row]:
    """Yield the rows of a Parquet file. An image that it holds is called by file and row if nothing else names it."""
    with not_installed(f"captions {path}", "pyarrow"):
        import pyarrow
        import pyarrow.parquet
    number = 0
    try:
        for batch in pyarrow.parquet.ParquetFile(path).iter_batches(64):
            for row in batch.to_pylist():
                number += 1
                image = row.get("image")
                if isinstance(image, dict) and image.get("bytes") and not image.get("path"):
                    kind = "png" if image["bytes"].startswith(b"\x89PNG") else "jpg"
                    image["path"] = f"{path.stem}_{number:06d}.{kind}"
                yield row
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f"captions {path}: damaged ({one_line(error)})") from None


def captions_of(row: Row, where: str) -> list[Any]:
    """Return what stands under the first key for captions that the row has, and under its numbered ones (raw_1)."""
    for key in CAPTIONS:
        if fields := [value for name, value in row.items() if re.fullmatch(rf"{key}(_?\d+)?", str(name))]:
            return fields
    raise InputError(f"{where}: no captions (such as `captions`, `sentences` or `raw`) in {seen(row)}")


def seen(value: Any) -> str:
    """Return the beginning of what was found where something else was expected."""
    return printable(reprlib.repr(value))
