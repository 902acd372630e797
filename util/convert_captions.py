"""Convert captions in the JSON form of Karpathy's splits (dataset_rsicd.json and the like) to the published lists.

    python -m util.convert_captions --json dataset_rsicd.json --out data/rsicd_precomp

As in the published lists, the images of the split `val` are in the train list; val_filename.txt names them, for
`dataset.val_list`.
"""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path, PurePosixPath

from util.lists import warn_of_shared_images
from utils import Entry, InputError, Parser, check_writable, read_as, read_text, run_command, write_text

logger = logging.getLogger("galr")

SPLITS = {"train": "train", "restval": "train", "val": "train", "test": "test"}  # -> whose list an image goes to


class Sentence(Entry):
    raw: str


class Image(Entry):
    """An image with its captions; `filepath` is a folder within that of the images, as in COCO."""

    filename: str
    split: str
    sentences: list[Sentence]
    filepath: str = ""

    @property
    def name(self) -> str:
        return str(PurePosixPath("" if self.filepath.startswith("/") else self.filepath, self.filename))

    @property
    def captions(self) -> list[str]:
        """Return the captions, each on one line."""
        return [" ".join(sentence.raw.split()) for sentence in self.sentences]


class Captions(Entry):
    images: list[Image]


def main() -> None:
    parser = Parser(
        prog="python -m util.convert_captions", description="Convert dataset_*.json to the published lists."
    )
    parser.add_argument("--json", type=Path, required=True, help="captions in the form of Karpathy's splits")
    parser.add_argument("--out", type=Path, required=True, help="folder for the lists, such as data/rsicd_precomp")
    arguments = parser.parse_args()
    check_writable(arguments.out, "lists go to")
    images = read_images(arguments.json)
    files = lists(images)
    for name, text in files.items():
        there = arguments.out / name
        if there.exists() and read_text(there, "list") != text:
            raise InputError(f"{there} holds something else; remove it, or choose another folder for --out")
    for name, text in files.items():
        write_text(arguments.out / name, text)
    number = Counter(image.split for image in images)
    logger.info(f"{arguments.out}: {', '.join(f'{count} {split}' for split, count in number.items())} images")
    if number["val"]:
        logger.info(f"validate on the val images with --set dataset.val_list={arguments.out / 'val_filename.txt'}")
    warn_of_shared_images(arguments.out)


def read_images(path: Path) -> list[Image]:
    """Read the images with captions. Raises InputError for a file of another form, or without train or test images."""
    images = read_as(Captions, path, "captions").images
    for number, image in enumerate(images, 1):
        if image.split not in SPLITS:
            raise InputError(
                f"captions {path}, image {number}: the split is {image.split!r}; one of {', '.join(SPLITS)} is needed"
            )
        if not image.filename.strip() or image.name != image.name.strip() or len(image.name.splitlines()) != 1:
            raise InputError(f"captions {path}, image {number}: {image.name!r} cannot stand in a list of names")
        if "\0" in image.name or any("\0" in caption for caption in image.captions):
            raise InputError(f"captions {path}, image {number}: a NUL character; the file is damaged")
    there = [image for image in images if image.sentences]
    for split in ("train", "test"):
        if all(SPLITS[image.split] != split for image in there):
            raise InputError(f"captions {path}: no image of the {split} split")
    if len(there) < len(images):
        logger.warning(f"{path}: {len(images) - len(there)} images without captions are left out")
    return there


def lists(images: list[Image]) -> dict[str, str]:
    """Return the text files of the published layout: name -> content."""
    files = {}
    for split in ("train", "test"):
        chosen = [image for image in images if SPLITS[image.split] == split]
        alike = len({len(image.sentences) for image in chosen}) == 1
        once = split == "train" and alike  # as published; a line for each caption says what belongs to what in any case
        names = [image.name for image in chosen for _ in range(1 if once else len(image.sentences))]
        files[f"{split}_caps.txt"] = _text([caption for image in chosen for caption in image.captions])
        files[f"{split}_filename.txt"] = _text(names)
    if listed := [image.name for image in images if image.split == "val"]:
        files["val_filename.txt"] = _text(listed)
    return files


def _text(lines: list[str]) -> str:
    return "".join(line + "\n" for line in lines)


if __name__ == "__main__":
    run_command(main)
