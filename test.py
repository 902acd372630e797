"""Score the k folds of a run on the test split: a recall table.

    python test.py --path_opt option/RSITMD/RSITMD_GaLR.yaml [--rerank]      torchrun --nproc_per_node N test.py alike

Leaves results.json, .md, .csv and .tex and figures in checkpoint/{experiment_name}/, and the similarity matrices of
test and validation in the folder `logs.matrices`, postprocessing/file/.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from data import Data, Split, load_data, read_split, validation_split
from engine import embed_split, load_model, similarities
from option.schema import Options, load_options
from postprocessing import matrices
from postprocessing.figures import draw_run
from postprocessing.recall import Standings, chance, standings
from postprocessing.rerank import PUBLISHED, Reranker
from postprocessing.results import FoldScore, Reranked, Results, score_of, summarise
from postprocessing.tables import narrow, write_tables
from tokens import load_words
from util.checkpoints import BEST, read_checkpoint
from util.errors import InputError
from util.files import check_writable, write_json
from util.processes import check_alike, is_main, joined
from utils import Parser, pick_device, run_command, same_options

logger = logging.getLogger("galr")


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
    folder = Path(options.logs.matrices)
    check_writable(folder, "logs.matrices")
    words = load_words(options)
    test = load_data(read_split(options.dataset.data_path, "test"), options, words, device, training=False)
    logger.info(describe("test", test))
    with joined(device):
        scored = {fold: score_fold(run, fold, test, options, words, device) for fold in folds}
    if not is_main():  # it has helped to encode
        return
    results = results_of({fold: of_test for fold, (of_test, _) in scored.items()}, options, arguments.rerank)
    for fold, (of_test, of_val) in scored.items():  # nothing is written before every fold has been scored
        of_test.save(folder / f"{options.k_fold.experiment_name}_{fold}.npy")
        of_val.save(folder / f"{options.k_fold.experiment_name}_{fold}_val.npy")
    write_json(run / "results.json", results.model_dump())
    write_tables(results, run)
    logger.info(narrow(results))
    pictures, _ = draw_run(run, matrices=folder)
    logger.info(f"{run}/results.json, .md, .csv, .tex; {len(pictures)} figures in {run}/figures; matrices in {folder}")


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
    at_random = chance(data.split.image_of_caption, images).mr
    text = f"{name} split: {images} images, {captions} captions, chance mR {at_random:.2f}"
    if repeats := captions - len(data.token_ids.unique(dim=0)):
        text += f"\nnote: {repeats} captions have the words of another one; in recall, ties count against the query"
    return text


class Matrix(NamedTuple):
    """The similarities of a split, images x captions, and what they are of."""

    sims: np.ndarray
    split: Split
    paths: list[str]

    def save(self, path: Path) -> None:
        """Save the matrix as `path`; beside it the row of each caption's image, and the names of both sides."""
        matrices.save(path, self.sims, self.split.image_of_caption)
        matrices.save_gallery(path, matrices.Gallery(self.paths, self.split.captions))


def score_fold(
    run: Path, fold: int, test: Data, options: Options, words: tuple[str, ...], device: torch.device
) -> tuple[Matrix, Matrix] | None:
    """The test and the validation similarities of a fold's best checkpoint; of several processes the main one's."""
    folder = run / str(fold)
    checkpoint = read_checkpoint(folder / BEST)
    check_alike(f"the checkpoint {folder / BEST}", checkpoint.get("Eiters"))
    model = load_model(checkpoint, options, words, device)
    val = load_data(validation_split(folder, options), options, words, device, training=False)
    vectors = [embed_split(model, data, options) for data in (test, val)]
    if not is_main():
        return None
    of_test, of_val = (
        Matrix(similarities(model, *of_split), data.split, data.paths)
        for of_split, data in zip(vectors, (test, val), strict=True)
    )
    return of_test, of_val


def results_of(tests: dict[int, Matrix], options: Options, rerank: bool) -> Results:
    """The results of a run from the test matrices of its folds."""
    folds = [fold_score(fold, standings(test.sims, test.split.image_of_caption), test) for fold, test in tests.items()]
    mean, std = summarise(folds)
    results = Results(
        experiment=options.k_fold.experiment_name,
        dataset=options.dataset.datatype,
        lists=Path(options.dataset.data_path).name,
        folds=folds,
        mean=mean,
        std=std,
    )
    if not rerank:
        return results
    folds = []
    for fold, test in tests.items():
        reranker = Reranker(test.sims, test.split.image_of_caption, PUBLISHED.k)
        folds.append(fold_score(fold, reranker.standings(PUBLISHED), test))
    mean, std = summarise(folds)
    return results.model_copy(update={"rerank": Reranked(setting=PUBLISHED, folds=folds, mean=mean, std=std)})


def fold_score(fold: int, found: Standings, matrix: Matrix, split: str = "test") -> FoldScore:
    """The score of one fold, with what it is out of."""
    images, captions = matrix.sims.shape
    return FoldScore(fold=fold, split=split, images=images, captions=captions, **dict(score_of(found)))


if __name__ == "__main__":
    run_command(main)
