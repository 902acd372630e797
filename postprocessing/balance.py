"""Balanced similarities: no image is the answer to everything, and none to nothing.

    K_ij = exp(s_ij / temperature)      P = diag(u) K diag(v), all of whose rows have one sum, and all columns another

log P takes the place of s. In a space of many dimensions some images (hubs) are close to every caption and stand among
the first answers of too many; the scaling of Sinkhorn and Knopp (1967) takes that from them. Half a step of it is the
inverted softmax of Smith et al. (2017).

It is ours, no part of GaLR. Like the multivariate rerank it changes nothing in the model, and it needs all queries of
the split at once: a score with it is no score of single queries.

    python -m postprocessing.balance --sims postprocessing/file/EXPERIMENT_0.npy
"""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np

from postprocessing.matrices import load, matrix_files
from postprocessing.recall import check_matrix, standings
from postprocessing.results import gain, score_of, summarise
from postprocessing.tables import change_table
from utils import InputError, Parser, check_writable_file, run_command, write_json

logger = logging.getLogger("galr")

TEMPERATURE, STEPS = 0.07, 10  # chosen on validation (docs/RERANK.md)


def balanced(sims: np.ndarray, temperature: float = TEMPERATURE, steps: int = STEPS) -> np.ndarray:
    """log P of similarities (images, captions), after so many steps over rows and columns, in the precision of `sims`.

    Columns that are equal stay equal. Raises InputError for NaN and infinity, and for a temperature that is not
    positive or so low that exp(s / temperature) has no meaning in double precision.
    """
    sims = check_matrix(sims)
    if not 1e-4 <= temperature <= 1e4:
        raise InputError(f"the temperature is a number from 0.0001 to 10000, not {temperature!r}")
    logits = np.asarray(sims, np.float64) / temperature
    if not np.isfinite(logits).all():
        raise InputError("the matrix holds NaN or infinity")
    for _ in range(steps):
        logits -= _log_sum_exp(logits, axis=1)
        logits -= _log_sum_exp(logits, axis=0)
    return logits.astype(sims.dtype)


def _log_sum_exp(logits: np.ndarray, axis: int) -> np.ndarray:
    largest = logits.max(axis=axis, keepdims=True)
    return largest + np.log(np.exp(logits - largest).sum(axis=axis, keepdims=True))


def main() -> None:
    """Recall before and after the balance of saved similarity matrices, in both directions."""
    parser = Parser(prog="python -m postprocessing.balance", description=main.__doc__)
    add = parser.add_argument
    add("--sims", nargs="+", required=True, metavar="FILE.npy", help="matrices, images x captions; of several the mean")
    add("--temperature", type=float, default=TEMPERATURE, help="of exp(s / temperature) (%(default)s)")
    add("--steps", type=int, default=STEPS, help="over rows and columns (%(default)s)")
    add("--out", type=Path, metavar="FILE.json", help="also write the scores here")
    args = parser.parse_args()
    if args.steps < 0:
        raise InputError(f"--steps {args.steps}: a number from 0 on is expected")
    if args.out:
        check_writable_file(args.out)
    files, befores, afters = matrix_files(args.sims, "--sims"), [], []
    for file in files:
        sims, owner = load(file)
        befores.append(score_of(standings(sims, owner)))
        afters.append(score_of(standings(balanced(sims, args.temperature, args.steps), owner)))
        logger.info(f"{file}: {len(sims)} images, {len(owner)} captions, {gain(befores[-1], afters[-1])}")
    (before, _), (after, _) = summarise(befores), summarise(afters)
    print(f"\nmean of {len(files)} matrices" if len(files) > 1 else "")
    print(change_table(before, after), end="")
    if args.out:
        setting = {"temperature": args.temperature, "steps": args.steps}
        mean = {"before": before.model_dump(), "after": after.model_dump()}
        write_json(args.out, {"setting": setting, "files": [str(file) for file in files], "mean": mean})


if __name__ == "__main__":
    run_command(main)
