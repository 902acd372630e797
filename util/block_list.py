"""Write a validation list of neighbours: one block of consecutive images of each class.

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
from utils import InputError, Parser, check_writable_file, run_command, write_text

logger = logging.getLogger("galr")


def main() -> None:
    parser = Parser(prog="python -m util.block_list", description="Write the images of one block of each class.")
    parser.add_argument("--data_path", type=Path, required=True, help="folder that holds train_filename.txt")
    parser.add_argument("--blocks", type=int, default=10, help="blocks of each class (default 10)")
    parser.add_argument("--block", type=int, required=True, help="block to write, from 0")
    parser.add_argument("--per_class", type=int, default=0, help="images a class, if names are numbers alone")
    parser.add_argument("--out", type=Path, required=True, help="the list to write")
    arguments = parser.parse_args()
    if not 0 <= arguments.block < arguments.blocks or arguments.blocks < 2:
        raise InputError(f"--block must be 0 to {arguments.blocks - 1} of at least 2 blocks, got {arguments.block}")
    check_writable_file(arguments.out)
    names = list(dict.fromkeys(read_names(arguments.data_path, "train")))
    chosen = block_of_each_class(names, arguments.blocks, arguments.block, arguments.per_class)
    write_text(arguments.out, "".join(f"{name}\n" for name in chosen))
    logger.info(
        f"{arguments.out}: {len(chosen)} of {len(names)} images; use it with --set dataset.val_list={arguments.out}"
    )


def block_of_each_class(names: list[str], blocks: int, block: int, per_class: int = 0) -> list[str]:
    """Cut each class's images, ordered by number, into blocks of nearly one size, and return one block of each.

    A class is the text before the number (`airport_12.jpg`), or every `per_class` numbers from 1 if that is given.
    Raises InputError for names without a number, and for an empty block.

    >>> block_of_each_class(["a_1.jpg", "a_2.jpg", "b_1.jpg", "b_2.jpg"], blocks=2, block=1)
    ['a_2.jpg', 'b_2.jpg']
    """
    classes: dict[tuple[str, int], list[tuple[int, str]]] = {}
    for name in names:
        if not (match := re.fullmatch(r"(.*?)(\d+)\D*", Path(name).stem)):
            raise InputError(f"image {name}: no number in its name tells its place")
        number = int(match[2])
        classes.setdefault((match[1], (number - 1) // per_class if per_class else 0), []).append((number, name))
    chosen = []
    for members in map(sorted, classes.values()):
        chosen += [members[i][1] for i in np.array_split(np.arange(len(members)), blocks)[block]]
    if not chosen:
        raise InputError(f"block {block} of {blocks} is empty: no class has so many images")
    return chosen


if __name__ == "__main__":
    run_command(main)
