"""Convert captions in the forms that circulate to the published lists.

    python -m util.convert_captions --json dataset_rsicd.json --out data/rsicd_precomp
    python -m util.convert_captions --json rsitmd_train.json rsitmd_val.json rsitmd_test.json --out data/rsitmd_precomp

Every form is read as rows, each an image with one or several captions; docs/data.md lists the forms. As in the
published lists, the images of the split `val` are in the train list; val_filename.txt names them, for
`dataset.val_list`.
"""

from __future__ import annotations

import ast
import json
import logging
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from util.caption_files import CAPTIONS, NAMES, SPLITS, Row, captions_of, read_rows, seen
from util.lists import warn_of_shared_images
from utils import InputError, Parser, atomic, check_writable, printable, read_text, run_command, some, write_text

logger = logging.getLogger("galr")


class Image(NamedTuple):
    """An image with its captions, each on one line; the name is its place within the folder of images."""

    name: str
    split: str  # train, val or test
    captions: list[str]


def main() -> None:
    """Convert captions to the published lists."""
    parser = Parser(prog="python -m util.convert_captions", description=main.__doc__)
    add = parser.add_argument
    add("--json", type=Path, nargs="+", required=True, metavar="FILE", help="captions: JSON, JSON lines, CSV, Parquet")
    add("--out", type=Path, required=True, help="folder for the lists, such as data/rsicd_precomp")
    add("--images", type=Path, metavar="DIR", help="write the images that Parquet files hold into this folder")
    arguments = parser.parse_args()
    for folder in filter(None, (arguments.out, arguments.images)):
        check_writable(folder, "lists and images go to")
    images = read_images(arguments.json)
    files = lists(images)
    for name, text in files.items():
        there = arguments.out / name
        if there.exists() and read_text(there, "list") != text:
            raise InputError(f"{there} holds something else; remove it, or choose another folder for --out")
    if arguments.images:
        write_images(arguments.json, arguments.images)
    for name, text in files.items():
        write_text(arguments.out / name, text)
    number = Counter(image.split for image in images)
    logger.info(f"{arguments.out}: {', '.join(f'{count} {split}' for split, count in number.items())} images")
    if number["val"]:
        logger.info(f"validate on the val images with --set dataset.val_list={arguments.out / 'val_filename.txt'}")
    if not number["test"]:
        logger.warning(
            "no image of the test split, so no test lists: build the vocabulary with vocab.py --splits train, score "
            "with test_single.py --split val, or give the file of the test split too"
        )
    warn_of_shared_images(arguments.out)


def read_images(paths: Sequence[Path]) -> list[Image]:
    """Read the images with captions of all files, in their order; rows of one image and split are put together.

    Raise InputError for a file of another form, an entry without name or split, or if no train image has a caption.
    """
    found: dict[tuple[str, str], Image] = {}
    blank = 0
    for path in paths:
        for where, row in read_rows(path):
            name = _name(row, where)
            lines = [" ".join(text.split()) for text in _texts(captions_of(row, where), where)]
            split = _split(row, path, name, where)
            if "\0" in name or any("\0" in line for line in lines):
                raise InputError(f"{where}: a NUL character; the file is damaged")
            blank += lines.count("")
            found.setdefault((name, split), Image(name, split, [])).captions.extend(filter(None, lines))
    there = [image for image in found.values() if image.captions]
    if all(image.split == "test" for image in there):
        raise InputError(
            f"captions {', '.join(map(str, paths))}: no image of the train split has a caption; give the files of all "
            "splits together: --json TRAIN.json VAL.json TEST.json"
        )
    if blank or len(there) < len(found):
        logger.warning(f"left out: {blank} blank captions, {len(found) - len(there)} images without captions")
    return _within_one_folder(there)


def lists(images: Sequence[Image]) -> dict[str, str]:
    """Return the text files of the published layout: name -> content."""
    files = {}
    for split in ("train", "test"):
        chosen = [image for image in images if (image.split == "test") == (split == "test")]
        alike = len({len(image.captions) for image in chosen}) == 1
        once = split == "train" and alike  # as published; a line for each caption says what belongs to what in any case
        files[f"{split}_caps.txt"] = [caption for image in chosen for caption in image.captions]
        files[f"{split}_filename.txt"] = [image.name for image in chosen for _ in image.captions[: 1 if once else None]]
    files["val_filename.txt"] = [image.name for image in images if image.split == "val"]
    return {name: "".join(f"{line}\n" for line in lines) for name, lines in files.items() if lines}


# ---------------------------------------------------------------- a row


def _name(row: Row, where: str) -> str:
    """Return the image's place within the folder of images. COCO's `filepath` and the class of NWPU are its folder."""
    values = [row.get(key) for key in NAMES]
    values = [value.get("path") if isinstance(value, dict) else value for value in values]  # an image of the hub
    value = next((value for value in values if isinstance(value, str) and value), None)
    if value is None:
        raise InputError(f"{where}: no image name (such as `filename` or `image`) in {seen(row)}")
    value = value.replace("\\", "/")
    folder = row.get("folder") or row.get("filepath")
    if not isinstance(folder, str) or folder.startswith("/") or "/" in value or folder == value:
        folder = ""
    name = str(PurePosixPath(folder, value))
    if not value.strip() or name != name.strip() or len(name.splitlines()) != 1 or ".." in PurePosixPath(name).parts:
        raise InputError(f"{where}: {name!r} cannot stand in a list of image names")
    return name


def _split(row: Row, path: Path, name: str, where: str) -> str:
    """Return the split that the row names, or else its file's name, the image's first folder, or the file's folder."""
    if word := row.get("split"):
        if split := SPLITS.get(str(word).strip().lower()):
            return split
        raise InputError(f"{where}: the split is {printable(str(word))!r}; one of {', '.join(SPLITS)} is needed")
    of_file = {SPLITS[word] for word in re.split("[^a-z]+", path.stem.lower()) if word in SPLITS}
    if len(of_file) == 1:
        return of_file.pop()
    for folder in (*PurePosixPath(name).parts[:-1][:1], path.absolute().parent.name):
        if split := SPLITS.get(folder.lower().rstrip("0123456789")):
            return split
    raise InputError(
        f"{where}: no split, neither here (`split`), nor in the file's name, nor as first folder of {name}; give one "
        "file for each split, named such as captions_train.json, captions_val.json, captions_test.json"
    )


def _texts(value: Any, where: str) -> Iterator[str]:
    """Yield the texts of a sentence, or of lists of them; tokens are put together with spaces."""
    if isinstance(value, str) and re.match(r"\[\s*['\"]", value):  # a list that a CSV writer turned to text
        value = _quoted(value)
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for part in value:
            yield from _texts(part, where)
    elif isinstance(value, dict) and (key := next((key for key in CAPTIONS if key in value), "")):
        yield from _texts(value[key], where)
    elif isinstance(value, dict) and isinstance(value.get("tokens"), list):
        yield " ".join(map(str, value["tokens"]))
    elif value is not None:
        raise InputError(f"{where}: a caption must be text, got {seen(value)}")


def _quoted(text: str) -> list[str]:
    """Return the strings of a list as Python, NumPy (which writes no commas) or JSON prints it.

    >>> _quoted("['a ship' \\"it's a road\\"]")
    ['a ship', "it's a road"]
    """
    try:
        return json.loads(text)
    except ValueError:
        found = re.findall(r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"", text, re.DOTALL)
        return [ast.literal_eval(part.replace("\n", " ")) for part in found]


def _within_one_folder(images: list[Image]) -> list[Image]:
    """Take the folder that absolute names share off them: a folder of the machine that wrote the file."""
    absolute = [image.name for image in images if re.match(r"/|[A-Za-z]:/", image.name)]
    if not absolute:
        return images
    if len(absolute) < len(images) or len({name[0] for name in absolute}) > 1:
        raise InputError(f"{len(absolute)} of {len(images)} image names are absolute paths: {some(absolute, 2)}")
    folder = os.path.commonpath([str(PurePosixPath(name).parent) for name in absolute])
    logger.info(f"the names of images are given within the folder {folder}")
    return [image._replace(name=str(PurePosixPath(image.name).relative_to(folder))) for image in images]


def write_images(paths: Sequence[Path], folder: Path) -> None:
    """Write the images that Parquet files hold, under the names that the lists give them."""
    count = 0
    for where, row in chain.from_iterable(map(read_rows, paths)):
        image = row.get("image")
        if isinstance(image, dict) and isinstance(image.get("bytes"), bytes):
            name = _name(row, where)
            if PurePosixPath(name).is_absolute():
                raise InputError(f"{where}: {name} leads out of {folder}")
            with atomic(folder / name) as temporary:
                temporary.write_bytes(image["bytes"])
            count += 1
    logger.info(f"{folder}: {count} images")


if __name__ == "__main__":
    run_command(main)
