"""Score the k folds of a run on the test split: a recall table.

    python test.py --path_opt option/RSITMD/RSITMD_GaLR.yaml [--rerank] [--bank [static|dynamic]]
    torchrun --nproc_per_node N test.py alike

Leaves results.json, .md and .csv, ranks.csv and figures in checkpoint/{experiment_name}/, and the similarity
matrices of test and validation in the folder `logs.matrices`, postprocessing/file/.
"""

from __future__ import annotations

import argparse
import logging
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from data import Data, Split, load_data, read_split, validation_split
from engine import Captions, embed_split, load_model, similarities
from layers.distributed import check_alike, joined
from layers.model import Model
from option import Options, load_options
from postprocessing.classes import BY_NAME, class_metrics, class_of_images
from postprocessing.figures import draw_run
from postprocessing.matrices import Gallery, Matrix, save_array
from postprocessing.normalise import (
    GRID,
    STATIC_TEMPERATURE,
    Bank,
    dynamic_bank,
    dynamic_ranks,
    static_bank,
    temperature_grid,
    warn_of_scale,
)
from postprocessing.recall import Metrics, QueryRanks, chance, query_ranks
from postprocessing.rerank import PUBLISHED, Reranker
from postprocessing.results import Banked, FoldScore, Reranked, Results, score_of
from postprocessing.tables import comma_separated, markdown, table, write_ranks
from util.checkpoint import BEST, read_checkpoint
from util.device import pick_device
from utils import InputError, Parser, check_writable, is_main, run_command, same_options, write_json, write_text
from vocab import load_words

logger = logging.getLogger("galr")

Vectors = tuple[Tensor, Captions]  # of a split: its images (N, D), and its captions


def main() -> None:
    arguments = parse()
    options = load_options(arguments.path_opt, arguments.set)
    device = pick_device(arguments.device)
    check_trained(options, arguments)
    check_writable(Path(options.logs.matrices), "logs.matrices")
    run = TrainedRun(options, load_words(options), device)
    if arguments.bank_grid:
        print_bank_grid(run)
    else:
        score_run(run, arguments)


def parse() -> argparse.Namespace:
    parser = Parser(prog="test.py", description="Score the k folds of a run on the test split.")
    parser.add_options()
    add = parser.add_argument
    add("--rerank", action="store_true", help="also score after the multivariate rerank, as published")
    bank_help = "also score after query bank normalisation by the train list (static: docs/evaluation.md)"
    add("--bank", nargs="?", const="static", choices=["static", "dynamic"], help=bank_help)
    add("--caption-vectors", action="store_true", help="also write the captions' vectors beside each matrix")
    add("--bank-grid", action="store_true", help="only print validation mR, the fold's train images as the bank")
    add_classes(parser)
    parser.add_device()
    return parser.parse_args()


def check_trained(options: Options, arguments: argparse.Namespace) -> None:
    """Raise InputError if a fold has no checkpoint."""
    run = options.run_folder
    absent = [fold for fold in fold_numbers(options) if not (run / str(fold) / BEST).is_file()]
    if absent:
        raise InputError(
            f"{run}: folds {absent} have no {BEST}; train them with: python train.py "
            f"{same_options(arguments)} --resume, or score fewer with --set k_fold.nums=K"
        )


def fold_numbers(options: Options) -> range:
    """Return the numbers of the folds to score."""
    return range(options.k_fold.current_num, options.k_fold.nums)


class TrainedRun(NamedTuple):
    """A run to score: its options, vocabulary and device."""

    options: Options
    words: Sequence[str]
    device: torch.device

    def read(self, split: Split) -> Data:
        """Read the images and captions of a split."""
        return load_data(split, self.options, self.words, self.device, training=False)

    def fold_part(self, fold: int, part: str) -> Data:
        """Read the images of a fold that train or validate."""
        return self.read(validation_split(self.options.run_folder / str(fold), self.options, part))

    def model(self, fold: int) -> Model:
        """Load the best model of a fold."""
        checkpoint = read_checkpoint(file := self.options.run_folder / str(fold) / BEST)
        check_alike(f"the checkpoint {file}", checkpoint.get("Eiters"))
        return load_model(checkpoint, self.options, self.words, self.device)


def print_bank_grid(run: TrainedRun) -> None:
    """Print validation mR by kind and temperature of the query bank, the mean over the folds."""
    grids = []
    with joined(run.device):
        for fold in fold_numbers(run.options):
            parts = run.fold_part(fold, "val"), run.fold_part(fold, "train")
            grids.append(grid_of(run.model(fold), *parts, run.options))
    if is_main():
        print(f"validation mR, ties at random, mean over {len(grids)} folds, by temperature")
        rows = zip(("no bank", "static", "dynamic"), np.mean(grids, axis=0).tolist(), strict=True)
        print(table([["", *map(str, GRID)], *([name, *mr] for name, mr in rows)]))


def score_run(run: TrainedRun, arguments: argparse.Namespace) -> None:
    """Score every fold on the test split; write and print the results."""
    options = run.options
    split = read_split(options.dataset.data_path, "test")
    classes = class_of_images(split.images, arguments.classes) if arguments.classes else None
    test = run.read(split)
    bank = run.read(read_split(options.dataset.data_path, "train")) if arguments.bank else None
    logger.info(describe("test", test))
    matrices, scores = {}, defaultdict(list)
    with joined(run.device):
        for fold in fold_numbers(options):
            found, ranks = score_fold(run.model(fold), test, run.fold_part(fold, "val"), bank, arguments, options)
            matrices |= {f"{options.k_fold.experiment_name}_{fold}{end}": matrix for end, matrix in found.items()}
            for name, of_fold in ranks.items():
                scores[name].append(fold_score(fold, of_fold, split, classes=classes))
    if is_main():  # nothing is written before every fold has been scored
        write(run_results(scores, options, arguments.bank), matrices, split, options)


def run_results(scores: dict[str, list[FoldScore]], options: Options, bank: str | None) -> Results:
    """Return the results of a run from the scores of its folds: plain, reranked, with a query bank of this kind."""
    return Results.of(
        scores["plain"],
        experiment=options.k_fold.experiment_name,
        dataset=options.dataset.datatype,
        lists=Path(options.dataset.data_path).name,
        rerank=Reranked.of(scores["rerank"], setting=PUBLISHED) if scores["rerank"] else None,
        bank=Banked.of(scores["bank"], kind=bank) if scores["bank"] else None,
    )


def write(results: Results, matrices: dict[str, Matrix | np.ndarray], split: Split, options: Options) -> None:
    """Write the matrices, tables and figures of a run, and print the table."""
    folder, run, name = Path(options.logs.matrices), options.run_folder, options.k_fold.experiment_name
    for file, matrix in matrices.items():
        if isinstance(matrix, Matrix):
            matrix.save(folder / f"{file}.npy")
        else:
            save_array(folder / f"{file}.npy", matrix)
    write_json(run / "results.json", results.model_dump())
    write_text(run / "results.md", markdown(results))
    write_text(run / "results.csv", comma_separated(results))
    sims = {fold: matrices[f"{name}_{fold}"].sims for fold in fold_numbers(options)}
    write_ranks(run / "ranks.csv", sims, *split)
    logger.info(markdown(results))
    pictures, _ = draw_run(run, matrices=folder)
    logger.info(f"{run}/results.json, .md, .csv, ranks.csv; {len(pictures)} figures in figures; matrices in {folder}")


def describe(name: str, data: Data) -> str:
    """Return the split, its gallery, the score of chance, and how many captions nothing tells apart."""
    images, captions, owner = data.split
    text = (
        f"{name} split: {len(images)} images, {len(captions)} captions, chance mR {chance(owner, len(images)).mr:.2f}"
    )
    if repeats := len(captions) - len(data.token_ids.unique(dim=0)):
        text += f"\nnote: {repeats} captions have the words of another one; in recall, ties count against the query"
    return text


def score_fold(
    model: Model, test: Data, val: Data, bank: Data | None, arguments: argparse.Namespace, options: Options
) -> tuple[dict[str, Matrix | np.ndarray], dict[str, QueryRanks]]:
    """Return a fold's matrices by the ends of their file names, and the ranks: plain, reranked, with the bank.

    Of several processes only the main one has them.
    """
    of_test, of_val, of_bank = (data and embed_split(model, data, options) for data in (test, val, bank))
    if not is_main():
        return {}, {}
    found, of_val = (matrix_of(model, data, vectors) for data, vectors in ((test, of_test), (val, of_val)))
    saved, owner = {"": found, "_val": of_val}, found.image_of_caption
    if arguments.caption_vectors:
        saved["_caption_vectors"] = of_test[1].all_vectors()
    ranks = {"plain": query_ranks(found.sims, owner)}
    if arguments.rerank:
        ranks["rerank"] = Reranker(found.sims, owner, PUBLISHED.k).ranks(PUBLISHED)
    if arguments.bank == "static":
        warn_of_scale(found.sims, STATIC_TEMPERATURE, "query bank")
        saved["_bank"] = found._replace(sims=static_bank(found.sims, bank_of(model, of_test, of_bank)))
        ranks["bank"] = query_ranks(saved["_bank"].sims, owner)
    elif arguments.bank == "dynamic":
        i2t, t2i = dynamic_bank(found.sims, bank_of(model, of_test, of_bank))
        saved |= {"_bank_dynamic": found._replace(sims=t2i), "_bank_dynamic_i2t": found._replace(sims=i2t)}
        ranks["bank"] = dynamic_ranks((i2t, t2i), owner)
    return saved, ranks


def matrix_of(model: Model, data: Data, vectors: Vectors) -> Matrix:
    """Return the similarities of a split and its names."""
    sims = similarities(model, *vectors)
    return Matrix(sims, data.split.image_of_caption, Gallery(data.paths, data.split.captions))


def bank_of(model: Model, split: Vectors, bank: Vectors) -> Bank:
    """Return the similarities of a split with a bank, in which equal captions and equal images are counted."""
    (images, captions), (bank_images, bank_captions) = split, bank
    distinct, image_counts = bank_images.unique(dim=0, return_counts=True)
    each_once = bank_captions._replace(place=np.arange(len(bank_captions.vectors)))
    return Bank(
        similarities(model, images, each_once),
        np.bincount(bank_captions.place),
        similarities(model, distinct, captions),
        image_counts.cpu().numpy(),
    )


def grid_of(model: Model, val: Data, bank: Data, options: Options) -> np.ndarray:
    """Return validation mR (3, temperatures): without a bank, static and dynamic; of several processes the main's."""
    of_val, of_bank = (embed_split(model, data, options) for data in (val, bank))
    if not is_main():
        return np.empty(0)
    sims, owner, _ = matrix_of(model, val, of_val)
    plain = np.full(len(GRID), query_ranks(sims, owner).metrics("random")["mr"])
    return np.vstack([plain, temperature_grid(sims, owner, bank_of(model, of_val, of_bank))])


def fold_score(
    fold: int, ranks: QueryRanks, split: Split, name: str = "test", classes: Sequence[str] | None = None
) -> FoldScore:
    """Return the score of one fold, with the sizes that it is out of; of each class too if `classes` names them."""
    sizes = {"images": len(split.images), "captions": len(split.captions)}

    def of_classes(ties: str) -> Metrics:
        return class_metrics(ranks, classes, split.image_of_caption, ties) if classes else {}

    return FoldScore(fold=fold, split=name, **sizes, **dict(score_of(ranks, of_classes)))


def add_classes(parser: Parser) -> None:
    """Add --classes."""
    help_text = "also score each class, which the image's name says (port_12.tif), or a FILE of lines NAME CLASS"
    parser.add_argument("--classes", nargs="?", const=BY_NAME, metavar="FILE", help=help_text)


if __name__ == "__main__":
    run_command(main)
