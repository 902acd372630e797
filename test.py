"""Score the k folds of a run on the test split: a recall table.

    python test.py --path_opt option/RSITMD/RSITMD_GaLR.yaml [--rerank] [--bank [static|dynamic]]
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
from torch import Tensor

from data import Data, Split, load_data, read_split, validation_split
from engine import Captions, embed_split, load_model, similarities
from layers.distributed import check_alike, joined
from layers.model import Model
from option import Options, load_options
from postprocessing import matrices
from postprocessing.figures import draw_run
from postprocessing.normalise import GRID, Bank, dynamic_bank, dynamic_standings, static_bank, temperature_grid
from postprocessing.recall import Standings, chance, standings
from postprocessing.rerank import PUBLISHED, Reranker
from postprocessing.results import Banked, FoldScore, Reranked, Results, score_of, summarise
from postprocessing.tables import aligned, narrow, write_tables
from util.checkpoints import BEST, read_checkpoint
from util.device import pick_device
from utils import InputError, Parser, check_writable, is_main, run_command, same_options, write_json
from vocab import load_words

logger = logging.getLogger("galr")

Vectors = tuple[Tensor, Captions]  # of a split: its images (N, D), and its captions


def main() -> None:
    parser = Parser(prog="test.py", description="Score the k folds of a run on the test split.")
    parser.add_options()
    add = parser.add_argument
    add("--rerank", action="store_true", help="also score after the multivariate rerank, as published")
    bank_help = "also score after query bank normalisation by the train list (static: docs/RERANK.md)"
    add("--bank", nargs="?", const="static", choices=["static", "dynamic"], help=bank_help)
    grid_help = "only print validation mR with the fold's train images as the bank, for a grid of temperatures"
    add("--bank-grid", action="store_true", help=grid_help)
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

    def whole(split: Split) -> Data:
        return load_data(split, options, words, device, training=False)

    def fold_model(fold: int) -> Model:
        checkpoint = read_checkpoint(run / str(fold) / BEST)
        check_alike(f"the checkpoint {run / str(fold) / BEST}", checkpoint.get("Eiters"))
        return load_model(checkpoint, options, words, device)

    def fold_split(fold: int, part: str) -> Data:
        return whole(validation_split(run / str(fold), options, part))

    if arguments.bank_grid:
        with joined(device):
            found = [grid_of(fold_model(k), fold_split(k, "val"), fold_split(k, "train"), options) for k in folds]
        if is_main():
            print_grid(np.mean(found, axis=0), len(found))
        return
    test = whole(read_split(options.dataset.data_path, "test"))
    bank = whole(read_split(options.dataset.data_path, "train")) if arguments.bank else None
    logger.info(describe("test", test))
    with joined(device):
        scored = {
            fold: score_fold(fold_model(fold), test, fold_split(fold, "val"), bank, arguments.bank, options)
            for fold in folds
        }
    if not is_main():  # it has helped to encode
        return
    results = results_of(scored, options, arguments)
    for fold, matrices_of_fold in scored.items():  # nothing is written before every fold has been scored
        for suffix, matrix in matrices_of_fold.items():
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


def score_fold(
    model: Model, test: Data, val: Data, bank: Data | None, kind: str | None, options: Options
) -> dict[str, Matrix]:
    """Return the matrices of a fold's model by the ends of their file names; of several processes the main one's."""
    of_test, of_val, of_bank = (data and embed_split(model, data, options) for data in (test, val, bank))
    if not is_main():
        return {}
    found = Matrix(similarities(model, *of_test), test.split, test.paths)
    scored = {"": found, "_val": Matrix(similarities(model, *of_val), val.split, val.paths)}
    if kind == "static":
        scored["_bank"] = found._replace(sims=static_bank(found.sims, bank_of(model, of_test, of_bank)))
    elif kind == "dynamic":
        i2t, t2i = dynamic_bank(found.sims, bank_of(model, of_test, of_bank))
        scored |= {"_bank_dynamic": found._replace(sims=t2i), "_bank_dynamic_i2t": found._replace(sims=i2t)}
    return scored


def bank_of(model: Model, split: Vectors, bank: Vectors) -> Bank:
    """Return the similarities of a split with a bank, of whose equal captions and equal images there is one each."""
    (images, captions), (bank_images, bank_captions) = split, bank
    distinct, image_counts = bank_images.unique(dim=0, return_counts=True)
    every = bank_captions._replace(place=np.arange(len(bank_captions.vectors)))
    counts = np.bincount(bank_captions.place), image_counts.cpu().numpy()
    return Bank(similarities(model, images, every), counts[0], similarities(model, distinct, captions), counts[1])


def grid_of(model: Model, val: Data, bank: Data, options: Options) -> np.ndarray:
    """Return validation mR (3, temperatures): without a bank, static and dynamic."""
    of_val, of_bank = (embed_split(model, data, options) for data in (val, bank))
    if not is_main():
        return np.empty(0)
    sims, owner = similarities(model, *of_val), val.split.image_of_caption
    plain = np.full(len(GRID), standings(sims, owner).scores("random").mr)
    return np.vstack([plain, temperature_grid(sims, owner, bank_of(model, of_val, of_bank))])


def print_grid(mr: np.ndarray, folds: int) -> None:
    names = ("no bank", "static", "dynamic")
    rows = [[name, *(f"{value:.2f}" for value in row)] for name, row in zip(names, mr, strict=True)]
    print(f"validation mR, ties at random, mean over {folds} folds, by temperature")
    print(aligned([["", *map(str, GRID)], *rows]), end="")


def results_of(scored: dict[int, dict[str, Matrix]], options: Options, arguments: argparse.Namespace) -> Results:
    """The results of a run from the matrices of its folds."""
    plain, reranked, banked = [], [], []
    for fold, of_fold in scored.items():
        test = of_fold[""]
        owner = test.split.image_of_caption
        plain.append(fold_score(fold, standings(test.sims, owner), test))
        if arguments.rerank:
            reranked.append(fold_score(fold, Reranker(test.sims, owner, PUBLISHED.k).standings(PUBLISHED), test))
        if arguments.bank == "static":
            banked.append(fold_score(fold, standings(of_fold["_bank"].sims, owner), test))
        elif arguments.bank == "dynamic":
            both = (of_fold[suffix].sims for suffix in ("_bank_dynamic_i2t", "_bank_dynamic"))
            banked.append(fold_score(fold, dynamic_standings(tuple(both), owner), test))
    return Results(
        experiment=options.k_fold.experiment_name,
        dataset=options.dataset.datatype,
        lists=Path(options.dataset.data_path).name,
        **summary(plain),
        rerank=Reranked(setting=PUBLISHED, **summary(reranked)) if reranked else None,
        bank=Banked(kind=arguments.bank, **summary(banked)) if banked else None,
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
