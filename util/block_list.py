"""A validation list that is to the train images what the test list is: images that follow each other, class by class.

    python -m util.block_list --data_path data/ucm_precomp --per_class 100 --blocks 9 --block 7 --out val_7.txt

The number in an image's name tells its order. Neighbours show overlapping ground and were captioned in one go, so
validation images drawn at random have near copies, and their very captions, among the train images
(docs/notes/recipe.md). `dataset.val_list` takes the file.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path

import numpy as np

from util.lists import read_names
from utils import InputError, Parser, atomic, check_writable_file, run_command

logger = logging.getLogger("galr")


def main() -> None:
    parser = Parser(prog="python -m util.block_list", description="Write the images of one block of each class.")
    parser.add_argument("--data_path", type=Path, required=True, help="folder that holds train_filename.txt")
    parser.add_argument("--blocks", type=int, default=10, help="how many blocks each class is cut into (default 10)")
    parser.add_argument("--block", type=int, required=True, help="which of them, from 0")
    parser.add_argument("--per_class", type=int, default=0, help="where names are numbers alone: so many make a class")
    parser.add_argument("--out", type=Path, required=True, help="the list to write")
    arguments = parser.parse_args()
    if not 0 <= arguments.block < arguments.blocks or arguments.blocks < 2:
        raise InputError(f"--block {arguments.block} of {arguments.blocks}: 0 to {arguments.blocks - 1} are there")
    check_writable_file(arguments.out)
    names = list(dict.fromkeys(read_names(arguments.data_path, "train")))
    chosen = block_of_each_class(names, arguments.blocks, arguments.block, arguments.per_class)
    with atomic(arguments.out) as temporary:
        temporary.write_text("".join(f"{name}\n" for name in chosen), encoding="utf-8")
    logger.info(
        f"{arguments.out}: {len(chosen)} of {len(names)} images; use it with --set dataset.val_list={arguments.out}"
    )


def block_of_each_class(names: list[str], blocks: int, block: int, per_class: int = 0) -> list[str]:
    """Each class's images in the order of their numbers, cut into blocks of (nearly) one size: one block of each.

    A class is what stands before the number (`airport_12.jpg`), or every `per_class` numbers from 1 where that is
    given. Raises InputError for names without a number, and where the block is empty.
    """
    classes: dict[tuple[str, int], list[tuple[int, str]]] = {}
    for name in names:
        if not (match := re.fullmatch(r"(.*?)(\d+)\D*", Path(name).stem)):
            raise InputError(f"image {name}: no number in its name tells its place")
        number = int(match[2])
        classes.setdefault((match[1], (number - 1) // per_class if per_class else 0), []).append((number, name))
    parts = [np.array_split(np.arange(len(members)), blocks)[block] for members in classes.values()]
    ordered = [sorted(members) for members in classes.values()]
    chosen = [members[place][1] for members, places in zip(ordered, parts, strict=True) for place in places]
    if not chosen:
        raise InputError(f"block {block} of {blocks} is empty: no class has so many images")
    return chosen


if __name__ == "__main__":
    run_command(main)
