"""Normalisation of similarity matrices: query bank, Sinkhorn, the mean of several models. Arrays in, arrays out.

Some images are similar to every caption (hubs) and appear among the first answers of too many queries. All of this is
ours to offer, no part of GaLR; docs/evaluation.md has the equations and what each of them looks at.

Query bank: the train list (the bank) shows the hubs. For image i and caption j of a split, at temperature t, `static`
(an inverted softmax, Smith et al. 2017) and `dynamic` (QB-Norm as published, Bogolin et al., CVPR 2022) subtract

    h_i = log sum over the bank's captions b of exp(s_ib / t)        g_j = log sum over its images a of exp(s_aj / t)

Sinkhorn (1967): P = diag(u) K diag(v) with K_ij = exp(s_ij / t), all rows have one sum, all columns another; log P
takes the place of s. Like the rerank it needs all queries of the split at once.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.special import logsumexp

from postprocessing.matrices import Matrix, gallery_beside, load, matrix_files
from postprocessing.recall import QueryRanks, blocks, check_matrix, query_ranks
from postprocessing.results import Results, Score, score_of, summarise
from postprocessing.results import load as load_file
from postprocessing.tables import change_table, filled, gallery_of, published, report, six_cells, table
from utils import InputError, Parser

logger = logging.getLogger("galr")

# Chosen on validation (docs/notes/measurements.md): static within 0.03 mR of the best in the mean over five folds,
# dynamic on the demo's two; as published it is 0.05, beta 20.
STATIC_TEMPERATURE, DYNAMIC_TEMPERATURE = 0.14, 0.07
GRID = (0.5, 0.2, 0.14, 0.1, 0.07, 0.05, 0.033, 0.02)
SINKHORN_TEMPERATURE, SINKHORN_STEPS = 0.07, 10  # chosen on validation (docs/notes/measurements.md)


class Bank(NamedTuple):
    """Similarities of a split (N images, M captions) with a bank of U distinct captions and V distinct images."""

    to_captions: np.ndarray  # (N, U): the split's images with the bank's captions
    caption_counts: np.ndarray  # (U,): how often the bank has each caption
    from_images: np.ndarray  # (V, M): the bank's images with the split's captions
    image_counts: np.ndarray  # (V,)


def static_bank(sims: np.ndarray, bank: Bank, temperature: float = STATIC_TEMPERATURE) -> np.ndarray:
    """Return s_ij / t - h_i - g_j for all pairs (N, M); equal captions and images of the bank count once."""
    of_images = _log_sum_exp(bank.to_captions, temperature) - np.log(bank.to_captions.shape[1])
    of_captions = _log_sum_exp(bank.from_images.T, temperature) - np.log(len(bank.from_images))
    return (np.asarray(sims, np.float64) / temperature - of_images[:, None] - of_captions).astype(sims.dtype)


def dynamic_bank(
    sims: np.ndarray, bank: Bank, temperature: float = DYNAMIC_TEMPERATURE
) -> tuple[np.ndarray, np.ndarray]:
    """Return two matrices (N, M): the first is for i2t (order its rows), the second for t2i (order its columns).

    A query is normalised only if its first answer is that of a query of the bank too (the activation set).
    """
    scaled = np.asarray(sims, np.float64) / temperature
    of_images = _log_sum_exp(bank.to_captions, temperature, bank.caption_counts)
    of_captions = _log_sum_exp(bank.from_images.T, temperature, bank.image_counts)
    active_images = np.isin(sims.argmax(axis=1), bank.from_images.argmax(axis=1))
    active_captions = np.isin(sims.argmax(axis=0), bank.to_captions.argmax(axis=0))
    i2t = scaled - np.where(active_images[:, None], of_captions, 0)
    t2i = scaled - np.where(active_captions, of_images[:, None], 0)
    return i2t.astype(sims.dtype), t2i.astype(sims.dtype)


def dynamic_ranks(matrices: tuple[np.ndarray, np.ndarray], image_of_caption: np.ndarray) -> QueryRanks:
    """Return the ranks of the queries by the matrices of `dynamic_bank`."""
    i2t, t2i = matrices
    return QueryRanks(query_ranks(i2t, image_of_caption).i2t, query_ranks(t2i, image_of_caption).t2i)


def temperature_grid(sims: np.ndarray, image_of_caption: np.ndarray, bank: Bank) -> np.ndarray:
    """Return mR, ties at random, of `static` and of `dynamic` at each temperature of GRID: (2, temperatures)."""
    static = [query_ranks(static_bank(sims, bank, t), image_of_caption) for t in GRID]
    dynamic = [dynamic_ranks(dynamic_bank(sims, bank, t), image_of_caption) for t in GRID]
    return np.array([[ranks.metrics("random")["mr"] for ranks in kind] for kind in (static, dynamic)])


def _log_sum_exp(sims: np.ndarray, temperature: float, counts: np.ndarray | None = None) -> np.ndarray:
    """Return log sum of exp(s / temperature) over each row, each column counted so often, float64."""
    scaled = (block.astype(np.float64) / temperature for _, block in blocks(sims))
    return np.concatenate([logsumexp(block, axis=1, b=counts) for block in scaled])


def sinkhorn(sims: np.ndarray, temperature: float = SINKHORN_TEMPERATURE, steps: int = SINKHORN_STEPS) -> np.ndarray:
    """Return log P of similarities (images, captions) after so many steps over rows and columns, in their precision."""
    sims = check_matrix(sims)
    logits = np.asarray(sims, np.float64) / temperature
    for axis in (1, 0) * steps:
        logits -= logsumexp(logits, axis=axis, keepdims=True)
    return logits.astype(sims.dtype)


def warn_of_scale(sims: np.ndarray, temperature: float, where: str) -> None:
    """Warn of similarities that a temperature chosen for cosines does not suit."""
    low, high = float(sims.min()), float(sims.max())
    if max(-low, high) > 1.01 or high - low < temperature:
        logger.warning(
            f"{where}: similarities go from {low:.3g} to {high:.3g}; the temperature {temperature:g} suits cosines, "
            "which spread within -1 to 1; choose another on validation"
        )


def mean_similarities(files: Sequence[Path], standardise: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean of saved matrices (images, captions), and the row of each caption's image (captions,).

    `standardise` gives each matrix mean 0 and deviation 1 first; without it, warn of matrices of other scales. Raise
    InputError, naming the files, where they are not of the same images and captions.
    """
    (first, owner), deviations = load(files[0]), []
    galleries = {file: gallery for file in files if (gallery := gallery_beside(file))}
    known = {file: ([Path(image).name for image in one.images], one.captions) for file, one in galleries.items()}
    if known and len(known) < len(files):
        without = next(file for file in files if file not in known)
        logger.warning(f"{without} has no names (*_gallery.json): taken to be of the images of {next(iter(known))}")
    total = np.zeros(first.shape)
    for file in files:
        sims, its_owner = load(file)
        other = file in known and known[file] != next(iter(known.values()))
        if not np.array_equal(its_owner, owner) or len(sims) != len(total) or other:
            raise InputError(f"{file} is not of the images and captions of {files[0]}")
        deviations.append(float(sims.std(dtype=np.float64)))
        total += (sims - sims.mean(dtype=np.float64)) / (deviations[-1] or 1) if standardise else sims
    if not standardise and max(deviations) > 2 * min(deviations):
        large, small = files[int(np.argmax(deviations))], files[int(np.argmin(deviations))]
        logger.warning(
            f"similarities of other scales: the deviation of {large} is {max(deviations):.3g}, of {small} "
            f"{min(deviations):.3g}, so the former decides the mean; --standardise gives both the same weight"
        )
    return (total / len(files)).astype(sims.dtype), owner


# ---------------------------------------------------------------- commands


def balance() -> None:
    """Print recall before and after Sinkhorn normalisation of saved similarity matrices, in both directions."""
    parser = Parser(prog="python -m postprocessing.balance", description=balance.__doc__)
    add = parser.add_argument
    add("--sims", nargs="+", required=True, metavar="FILE.npy", help="matrices, images x captions; of several the mean")
    add("--temperature", type=float, default=SINKHORN_TEMPERATURE, help="of exp(s / temperature) (%(default)s)")
    add("--steps", type=int, default=SINKHORN_STEPS, help="over rows and columns (%(default)s)")
    add("--out", type=Path, metavar="FILE.json", help="also write the scores here")
    args = parser.parse_args()
    if not args.temperature > 0 or args.steps < 1:
        given = f"{args.temperature:g} and {args.steps}"
        raise InputError(f"--temperature must be above 0 and --steps an integer >= 1, got {given}")
    setting = {"temperature": args.temperature, "steps": args.steps}

    def change(sims: np.ndarray, owner: np.ndarray) -> tuple[QueryRanks, QueryRanks]:
        return query_ranks(sims, owner), query_ranks(sinkhorn(sims, **setting), owner)

    files = matrix_files(args.sims)
    for file in files:
        warn_of_scale(load(file)[0], args.temperature, str(file))
    report(files, change, setting, args.out)


def ensemble() -> None:
    """Score the mean of several models' similarities: matrices by name, or all folds of a run."""
    parser = Parser(prog="python -m postprocessing.ensemble", description=ensemble.__doc__)
    add = parser.add_argument
    add("--sims", nargs="+", metavar="FILE.npy", help="matrices of one test split, of one kind of similarity")
    add("--out", type=Path, metavar="FILE.npy", help="with --sims: the mean, for rerank and balance")
    add("--standardise", action="store_true", help="with --sims: give each matrix mean 0 and deviation 1 first")
    add("--run", type=Path, metavar="DIR", help="checkpoint/EXPERIMENT: writes EXPERIMENT_all.npy, .._all_bank.npy")
    add("--matrices", type=Path, default=Path("postprocessing/file"), metavar="DIR", help="of --run (%(default)s)")
    args = parser.parse_args()
    if args.run:
        print(run_table(load_file(args.run / "results.json", Results, "run test.py first"), args.matrices))
        return
    if not args.sims or not args.out:
        raise InputError("give --sims FILE.npy ... and --out FILE.npy, or --run checkpoint/EXPERIMENT")
    files = [file for file in matrix_files(args.sims) if file.resolve() != args.out.resolve()]
    if not files:
        raise InputError(f"--sims names no matrix but --out {args.out}, which would be written over")
    before, _ = summarise([score_of(query_ranks(*load(file))) for file in files])
    after = save_mean(files, args.out, args.standardise)
    print(f"{len(files)} matrices; before: mean of their recalls, after: recall of their mean")
    print(change_table(before, after))


def save_mean(files: Sequence[Path], out: Path, standardise: bool = False) -> Score:
    """Save the mean of matrices with the gallery of one that has it, and return its score."""
    mean = mean_similarities(files, standardise)
    Matrix(*mean, next(filter(None, map(gallery_beside, files)), None)).save(out)
    return score_of(query_ranks(*mean))


def run_table(results: Results, folder: Path) -> str:
    """Return mR of one model and of its folds as one, as in the README; save the means of the folds' matrices."""
    columns = [(name or "one model", part.mean, part.std) for name, part in results.parts().items()]
    kinds = [(f"{len(results.folds)} folds as one", "")] if len(results.folds) > 1 else []
    if kinds and results.bank and results.bank.kind == "static":
        kinds.append(("+ query bank", "_bank"))
    for name, suffix in kinds:
        files = [folder / f"{results.experiment}_{fold.fold}{suffix}.npy" for fold in results.folds]
        columns.append((name, save_mean(files, folder / f"{results.experiment}_all{suffix}.npy"), None))
    rows = [["mR", *(name for name, _, _ in columns)]]
    for ties in ("random", "against"):
        cells = [six_cells(score.flat(ties), std and std.flat(ties)["mr"])[-1] for _, score, std in columns]
        rows.append([f"ties {ties}", *cells])
    lists = results.lists or ""
    others = [row for row in published(results.dataset) if not row.lists or row.lists.startswith(lists)]
    line = "published: " + ", ".join(f"{row.name} {row.flat['mr']:.2f}" for row in others)
    return "\n\n".join([str(gallery_of(results.folds, lists)), table(rows), *([filled(line)] if others else [])])
