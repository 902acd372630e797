"""Write the lists that models/rs_lite is trained on: RSICD's train list and the 1,680 of ucm_amfmn_precomp.

    python -m docs.notes.box_lists --data data --out data/rs_precomp

Image names are relative to the folder `data`. The validation list is a block of neighbours of each class: the last of
ten of RSICD, the last of eight of UCM. The train list of ucm_precomp is never used: it holds test images of
ucm_amfmn_precomp.
"""

from __future__ import annotations

from pathlib import Path

from util.block_list import block_of_each_class
from util.lists import read_pairs
from utils import Parser, run_command, write_text

PARTS = {  # lists: folder of the images, blocks and images a class (0: the name tells the class)
    "rsicd_precomp": ("rsicd_precomp/images", 10, 0),
    "ucm_amfmn_precomp": ("ucm_precomp/images", 8, 100),
}


def main() -> None:
    parser = Parser(prog="python -m docs.notes.box_lists", description="Write the lists of models/rs_lite.")
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of the data sets (default data)")
    parser.add_argument("--out", type=Path, default=Path("data/rs_precomp"), help="folder of the lists")
    arguments = parser.parse_args()
    captions, images, validation = [], [], []
    for name, (folder, blocks, per_class) in PARTS.items():
        said, names = read_pairs(arguments.data / name, "train")
        each = len(said) // len(names)
        captions += said
        images += [f"{folder}/{image}" for image in names for _ in range(each)]
        block = block_of_each_class(list(dict.fromkeys(names)), blocks, blocks - 1, per_class)
        validation += [f"{folder}/{image}" for image in block]
    for file, lines in {"train_caps": captions, "train_filename": images, "val_0": validation}.items():
        write_text(arguments.out / f"{file}.txt", "".join(f"{line}\n" for line in lines))


if __name__ == "__main__":
    run_command(main)
