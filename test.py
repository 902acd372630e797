"""Score the k folds of a run on the test split: a recall table.

    python test.py --path_opt option/RSITMD/RSITMD_GaLR.yaml [--rerank]

Leaves results.json, .md, .csv and .tex and figures in checkpoint/{experiment_name}/, and the similarity matrices of
test and validation in postprocessing/file/.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

import vocab
from data import Data, Split, load_data, read_split, validation_split
from engine import encode_split, load_model
from option.schema import Options, load_options
from postprocessing.figures import draw_run
from postprocessing.recall import chance, recall
from postprocessing.rerank import PUBLISHED, rerank_recall
from postprocessing.tables import markdown, summarise, write_tables
from util.checkpoints import BEST, read_checkpoint
from util.errors import InputError
from util.files import atomic, check_writable, write_json
from utils import Parser, pick_device, run_command, same_options

logger = logging.getLogger("galr")

MATRICES = Path("postprocessing/file")


def main() -> None:
    parser = Parser(prog="test.py", description="Score the k folds of a run on the test split.")
    parser.add_options()
    parser.add_argument("--rerank", action="store_true", help="also score after the multivariate rerank, as published")
    parser.add_device()
    arguments = parser.parse_args()
    options = load_options(arguments.path_opt, arguments.set)
    device = pick_device(arguments.device)
    run = options.run_folder
    folds = range(options.k_fold.current_num, options.k_fold.nums)
    check_folds(run, folds, arguments)
    check_writable(MATRICES, "matrices go to")
    words = vocab.load(options.dataset.vocab_path).words
    test = load_data(read_split(options.dataset.data_path, "test"), options, words, device, training=False)
    logger.info(describe("test", test))
    matrices = {fold: score_fold(run, fold, test, options, words, device) for fold in folds}
    results = summary(options, [score_of(fold, of_test.sims, test.split) for fold, (of_test, _) in matrices.items()])
    if arguments.rerank:
        reranked = [score_of(fold, of_test.sims, test.split, rerank_recall) for fold, (of_test, _) in matrices.items()]
        mean, std = summarise(reranked)
        results["rerank"] = {"setting": PUBLISHED, "folds": reranked, "mean": mean, "std": std}
    for fold, (of_test, of_val) in matrices.items():  # nothing is written before every fold has been scored
        of_test.save(f"{options.k_fold.experiment_name}_{fold}")
        of_val.save(f"{options.k_fold.experiment_name}_{fold}_val")
    write_json(run / "results.json", results)
    write_tables(results, run)
    logger.info(markdown(results))
    pictures, _ = draw_run(run, matrices=MATRICES)
    logger.info(
        f"{run}/results.json, .md, .csv, .tex; {len(pictures)} figures in {run}/figures; matrices in {MATRICES}"
    )


def check_folds(run: Path, folds: range, arguments: argparse.Namespace) -> None:
    """Raises InputError where folds have no checkpoint."""
    absent = [fold for fold in folds if not (run / str(fold) / BEST).is_file()]
    if absent:
        raise InputError(
            f"{run}: folds {absent} have no {BEST}; train them with: python train.py "
            f"{same_options(arguments)} --resume, or score fewer with --set k_fold.nums=K"
        )


def describe(name: str, data: Data) -> str:
    """What a score is out of: split, gallery, what chance would score, and how many captions nothing tells apart."""
    images, captions = len(data.split.images), len(data.split.captions)
    at_random = chance(data.split.image_of_caption, images)[2]
    text = f"{name} split: {images} images, {captions} captions, chance mR {at_random:.2f}"
    if repeats := captions - len(data.token_ids.unique(dim=0)):
        text += f"\nnote: {repeats} captions have the words of another one; in recall, ties count against the query"
    return text


def save_matrix(path: Path, sims: np.ndarray, image_of_caption: np.ndarray) -> list[Path]:
    """Save the similarities as `path`, and each caption's image beside it as `*_images.npy` -> the two files."""
    files = [path, path.with_name(f"{path.stem}_images.npy")]
    for name, array in zip(files, (sims, image_of_caption), strict=True):
        with atomic(name) as temporary, temporary.open("wb") as file:
            np.save(file, array)
    return files


class Matrix(NamedTuple):
    """The similarities of a split, images x captions, and what they are of."""

    sims: np.ndarray
    split: Split
    paths: list[str]

    def save(self, name: str) -> None:
        """Save the matrix, the row of each caption's image, and the names of both sides."""
        save_matrix(MATRICES / f"{name}.npy", self.sims, self.split.image_of_caption)
        write_json(MATRICES / f"{name}_gallery.json", {"images": self.paths, "captions": self.split.captions})


def score_fold(
    run: Path, fold: int, test: Data, options: Options, words: tuple[str, ...], device: torch.device
) -> tuple[Matrix, Matrix]:
    """The test and the validation similarities of a fold's best checkpoint."""
    folder = run / str(fold)
    model = load_model(read_checkpoint(folder / BEST), options, words, device)
    val = load_data(validation_split(folder, options), options, words, device, training=False)
    of_test, of_val = (Matrix(encode_split(model, data, options), data.split, data.paths) for data in (test, val))
    return of_test, of_val


def score_of(fold: int, sims: np.ndarray, split: Split, measure: Any = recall) -> dict[str, Any]:
    """One fold's entry of results.json."""
    i2t, t2i, mr = measure(sims, split.image_of_caption)
    sizes = {"images": len(split.images), "captions": len(split.captions)}
    return {"fold": fold, "split": "test", **sizes, "i2t": i2t, "t2i": t2i, "mr": mr}


def summary(options: Options, folds: list[dict[str, Any]]) -> dict[str, Any]:
    """The results.json of a run: its folds, their mean and their standard deviation."""
    mean, std = summarise(folds)
    name, dataset = options.k_fold.experiment_name, options.dataset.datatype
    return {"experiment": name, "dataset": dataset, "folds": folds, "mean": mean, "std": std}


if __name__ == "__main__":
    run_command(main)
