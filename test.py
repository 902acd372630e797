"""Score the k folds of a run on the test split: a recall table.

    python test.py --path_opt option/RSITMD/RSITMD_GaLR.yaml [--rerank] [--bank]
    torchrun --nproc_per_node N test.py alike

Leaves results.json, .md, .csv and .tex and figures in checkpoint/{experiment_name}/, and the similarity matrices of
test and validation in the folder `logs.matrices`, postprocessing/file/.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from data import Data, Split, load_data, read_split, validation_split
from engine import embed_split, load_model, similarities
from layers.distributed import check_alike, joined
from option.options import Options, load_options
from postprocessing import matrices
from postprocessing.figures import draw_run
from postprocessing.querybank import hubness, normalised
from postprocessing.recall import Standings, chance, standings
from postprocessing.rerank import PUBLISHED, Reranker
from postprocessing.results import FoldScore, Reranked, Results, Summary, score_of, summarise
from postprocessing.tables import narrow, write_tables
from tokens import load_words
from util.checkpoints import BEST, read_checkpoint
from utils import InputError, Parser, check_writable, is_main, pick_device, run_command, same_options, write_json

logger = logging.getLogger("galr")


def main() -> None:
    parser = Parser(prog="test.py", description="Score the k folds of a run on the test split.")
    parser.add_options()
    parser.add_argument("--rerank", action="store_true", help="also score after the multivariate rerank, as published")
    bank_help = "also score after query bank normalisation by the train list (docs/RERANK.md)"
    parser.add_argument("--bank", action="store_true", help=bank_help)
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

    def whole(split: str) -> Data:
        return load_data(read_split(options.dataset.data_path, split), options, words, device, training=False)

    test, bank = whole("test"), whole("train") if arguments.bank else None
    logger.info(describe("test", test))
    with joined(device):
        scored = {fold: score_fold(run, fold, test, bank, options, words, device) for fold in folds}
    if not is_main():  # it has helped to encode
        return
    results = results_of(scored, options, arguments.rerank)
    for fold, matrices_of_fold in scored.items():  # nothing is written before every fold has been scored
        for suffix, matrix in zip(("", "_val", "_bank"), matrices_of_fold, strict=True):
            if matrix:
                matrix.save(folder / f"{options.k_fold.experiment_name}_{fold}{suffix}.npy")
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


class Matrices(NamedTuple):
    """Of one fold: the similarities of test and validation, and those of test after query bank normalisation."""

    test: Matrix
    val: Matrix
    bank: Matrix | None


def score_fold(
    run: Path,
    fold: int,
    test: Data,
    bank: Data | None,
    options: Options,
    words: tuple[str, ...],
    device: torch.device,
) -> Matrices | None:
    """The similarities of a fold's best checkpoint, and with a query bank; of several processes the main one's."""
    folder = run / str(fold)
    checkpoint = read_checkpoint(folder / BEST)
    check_alike(f"the checkpoint {folder / BEST}", checkpoint.get("Eiters"))
    model = load_model(checkpoint, options, words, device)
    val = load_data(validation_split(folder, options), options, words, device, training=False)
    of_test, of_val, of_bank = (data and embed_split(model, data, options) for data in (test, val, bank))
    if not is_main():
        return None
    found = Matrix(similarities(model, *of_test), test.split, test.paths)
    validated = Matrix(similarities(model, *of_val), val.split, val.paths)
    if not of_bank:
        return Matrices(found, validated, None)
    return Matrices(found, validated, found._replace(sims=normalised(found.sims, hubness(model, of_test, of_bank))))


def results_of(scored: dict[int, Matrices], options: Options, rerank: bool) -> Results:
    """The results of a run from the matrices of its folds."""
    plain, reranked, banked = [], [], []
    for fold, (test, _, bank) in scored.items():
        owner = test.split.image_of_caption
        plain.append(fold_score(fold, standings(test.sims, owner), test))
        if rerank:
            reranked.append(fold_score(fold, Reranker(test.sims, owner, PUBLISHED.k).standings(PUBLISHED), test))
        if bank:
            banked.append(fold_score(fold, standings(bank.sims, owner), test))
    return Results(
        experiment=options.k_fold.experiment_name,
        dataset=options.dataset.datatype,
        lists=Path(options.dataset.data_path).name,
        **summary(plain),
        rerank=Reranked(setting=PUBLISHED, **summary(reranked)) if reranked else None,
        bank=Summary(**summary(banked)) if banked else None,
    )


def summary(folds: list[FoldScore]) -> dict[str, Any]:
    """The parts of a Summary."""
    mean, std = summarise(folds)
    return {"folds": folds, "mean": mean, "std": std}


def fold_score(fold: int, found: Standings, matrix: Matrix, split: str = "test") -> FoldScore:
    """The score of one fold, with what it is out of."""
    images, captions = matrix.sims.shape
    return FoldScore(fold=fold, split=split, images=images, captions=captions, **dict(score_of(found)))


if __name__ == "__main__":
    run_command(main)
