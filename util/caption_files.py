"""Read the forms in which captions circulate, each as rows: an image with one or several captions, and its split."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from util.lists import NAMED
from utils import InputError, existing_file, not_installed, printable, read_json, read_text, some

SPELLINGS = {
    "train": "train training trainval restval",
    "val": "val valid validation dev development",
    "test": "test testing",
}
SPLITS = {word: split for split, words in SPELLINGS.items() for word in words.split()}
NAMES = "filename file_name image_name image image_path img_path img path filepath".split()
CAPTIONS = "sentences sentence captions caption raw texts text comment description".split()
Row = dict[str, Any]


def read_rows(path: Path) -> Iterator[Row]:
    """Yield the rows of a file of any form, found by its content. Raise InputError that names the form it has."""
    with existing_file(path, "captions").open("rb") as file:
        if file.read(4) == b"PAR1":
            return _parquet_rows(path)
    text = read_text(path, "captions")
    if text.lstrip()[:1] in ("{", "["):
        return iter(_tree_rows(_json(path, text), f"captions {path}"))
    return (_named_rows if NAMED.match(text) else _table_rows)(text, f"captions {path}")


def _json(path: Path, text: str) -> Any:
    """Return the value of a JSON file, or the list of those of JSON lines."""
    try:
        return read_json(path, "captions")
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


def _tree_rows(tree: Any, where: str) -> list[Row]:
    """Return the rows of a JSON value: one of the forms below, or a list of rows."""
    if isinstance(tree, list) and tree:
        return tree
    if isinstance(tree, dict) and tree:
        images, annotations = tree.get("images"), tree.get("annotations")
        if isinstance(images, list):
            return _coco_rows(images, annotations, where) if isinstance(annotations, list) else images
        if isinstance(annotations, list):
            return annotations
        if all(isinstance(entries, list) for entries in tree.values()):
            return _grouped_rows(tree)
        if all(isinstance(captions, str | list) for captions in tree.values()) and "." in next(iter(tree)):
            return [{"filename": name, "captions": captions} for name, captions in tree.items()]
        if set(NAMES) & set(tree):  # JSON lines, of which there is one
            return [tree]
    raise InputError(f"{where}: none of the forms that docs/data.md lists, but {seen(tree)}")


def _coco_rows(images: list, annotations: list, where: str) -> list[Row]:
    """Return the rows of COCO's captions: images by their `id`, annotations with `image_id` and `caption`."""
    rows: dict[Any, Row] = {}
    for image in images:
        if not isinstance(image, dict) or not isinstance(image.get("id"), int | str):
            raise InputError(f"{where}: an image must be an object with an `id`, got {seen(image)}")
        rows[image["id"]] = {**image, "captions": []}
    for annotation in annotations:
        row = rows.get(annotation.get("image_id")) if isinstance(annotation, dict) else None
        if row is None:
            raise InputError(f"{where}: an annotation must have the `image_id` of an image, got {seen(annotation)}")
        row["captions"] += captions_of(annotation, where)
    return list(rows.values())


def _grouped_rows(tree: dict[str, list]) -> list[Row]:
    """Return the rows of lists of images by split, or by class (NWPU-Captions): images lie in CLASS/filename."""
    rows = []
    for name, entries in tree.items():
        more = {"split": name} if name.lower() in SPLITS else {"folder": name}
        for entry in entries:
            if isinstance(entry, str):  # a table of image names and captions
                entry = {"filename": name, "captions": [entry]}
            elif isinstance(entry, dict):
                entry = more | entry
            rows.append(entry)
    return rows


def _named_rows(text: str, where: str) -> Iterator[Row]:
    """Yield the rows of lines that begin with a name: `name#0<TAB>caption`, as in Flickr8k.token.txt, or without #0."""
    for number, line in enumerate(text.split("\n"), 1):
        found = NAMED.match(line)
        if found:
            yield {"filename": found[1] or found[2], "caption": line[found.end() :].strip('" ')}
        elif line.strip():
            raise InputError(f"{where}, line {number}: no image name before the caption: {printable(line[:60])!r}")


def _table_rows(text: str, where: str) -> Iterator[Row]:
    """Yield the rows of a CSV file, whatever its separator. Raise InputError if its first line has no such columns."""
    head = text.partition("\n")[0]
    separator = max(",\t;|", key=head.count)
    columns = {column.strip().strip('"').lower() for column in head.split(separator)}
    if not columns & set(NAMES):
        raise InputError(
            f"{where}: neither JSON nor Parquet, and the first line names no column for images, such as filename: "
            f"{printable(head[:80])!r}"
        )
    csv.field_size_limit(2**27)  # images of the hub, turned to text
    table = csv.DictReader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True)
    try:
        for row in table:
            yield {key.strip().lower(): value and value.strip() for key, value in row.items() if key}
    except csv.Error as error:
        raise InputError(f"{where}, line {table.line_num}: not CSV ({error})") from None


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
        raise InputError(f"captions {path}: damaged ({' '.join(str(error).split())[:200]})") from None


def captions_of(row: Row, where: str) -> list[Any]:
    """Return what stands under the first key for captions that the row has, and under its numbered ones (raw_1)."""
    for key in CAPTIONS:
        if fields := [value for name, value in row.items() if re.fullmatch(rf"{key}(_?\d+)?", str(name))]:
            return fields
    if "bbox" in row or "segmentation" in row:
        raise InputError(f"{where}: boxes without captions; of COCO, give captions_*.json, not instances_*.json")
    raise InputError(f"{where}: no captions (such as `captions`, `sentences` or `raw`) in {seen(row)}")


def seen(value: Any) -> str:
    """Return in words what was found where something else was expected."""
    if isinstance(value, dict):
        return f"an object with the keys {some([str(key) for key in value], 12)}" if value else "an empty object"
    if isinstance(value, list):
        return f"a list that begins with {seen(value[0])}" if value else "an empty list"
    return printable(f"the {'text' if isinstance(value, str) else 'value'} {str(value)[:60]!r}")
