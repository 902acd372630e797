"""Several models as one: the mean of their similarities.

    python -m postprocessing.ensemble --sims 'postprocessing/file/NAME_[0-9].npy' --out postprocessing/file/ALL.npy

Each fold of a run is a model of its own, with other weights, order and validation images; what they have in common
counts, and what is luck in one of them fades. The matrices must be of one split, and of one kind of similarity.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from postprocessing.matrices import gallery_file, load, load_gallery, matrix_files, save, save_gallery
from postprocessing.recall import standings
from postprocessing.results import gain, score_of, summarise
from postprocessing.tables import change_table
from utils import InputError, Parser, check_writable_file, run_command

logger = logging.getLogger("galr")


def mean_similarities(files: Sequence[Path]) -> tuple[np.ndarray, np.ndarray]:
    """The mean of saved matrices (images, captions), and the row of each caption's image (captions,).

    Raises InputError, naming the files, where they are not of the same images and captions.
    """
    total, owner = None, None
    for file in files:
        sims, its_owner = load(file)
        if total is None:
            total, owner = np.zeros(sims.shape), its_owner
        if sims.shape != total.shape or not np.array_equal(its_owner, owner) or _gallery(file) != _gallery(files[0]):
            raise InputError(f"{file} is not of the images and captions of {files[0]}")
        total += sims
    return (total / len(files)).astype(sims.dtype), owner


def _gallery(file: Path) -> tuple | None:
    """The names of the images, without their folders, and the captions; None where it is not known."""
    if not gallery_file(file).is_file():
        return None
    gallery = load_gallery(gallery_file(file))
    return [Path(image).name for image in gallery.images], gallery.captions


def main() -> None:
    """Recall of the mean of saved similarity matrices, beside the mean of their recalls."""
    parser = Parser(prog="python -m postprocessing.ensemble", description=main.__doc__)
    parser.add_argument("--sims", nargs="+", required=True, metavar="FILE.npy", help="matrices of one test split")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.npy", help="the mean, for rerank and balance")
    args = parser.parse_args()
    check_writable_file(args.out)
    files = [file for file in matrix_files(args.sims, "--sims") if file.resolve() != args.out.resolve()]
    if len(files) < 2:
        raise InputError(f"--sims names {len(files)} matrix: an ensemble takes two or more")
    sims, owner = mean_similarities(files)
    before, _ = summarise([score_of(standings(*load(file))) for file in files])
    after = score_of(standings(sims, owner))
    logger.info(f"{len(files)} matrices of {len(sims)} images, {len(owner)} captions: {gain(before, after)}")
    print("\nbefore: mean of their recalls; after: recall of their mean")
    print(change_table(before, after), end="")
    save(args.out, sims, owner)
    if gallery_file(files[0]).is_file():
        save_gallery(args.out, load_gallery(gallery_file(files[0])))


if __name__ == "__main__":
    run_command(main)
