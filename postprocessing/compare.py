"""Compare models over seeds: means, deviations, and for every pair whether its difference of mR is more than luck.

    python -m postprocessing.compare UCM GaLR AMFMN --seeds 5

reads the runs UCM_GaLR_s0 to UCM_AMFMN_s4 as `exec/compare.sh` leaves them: results.json for the folds, and the test
matrices with their galleries. Writes compare.md and compare.json (docs/evaluation.md explains them).

An image and its captions fail together, so the bootstrap over queries draws images, each with its own query and those
of all its captions, and scores both models on the same draw; of several seeds and folds it draws each query's mean. It
takes the trained models as given; what another seed would change is in Welch's interval over seeds.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from postprocessing.matrices import load, load_gallery
from postprocessing.recall import CUTS, QueryRanks, query_ranks
from postprocessing.results import Results, Score, score_of, summarise
from postprocessing.results import load as load_file
from postprocessing.tables import NARROW, gallery_of, published_tables, six_cells, table
from utils import Bar, InputError, Parser, check_writable, run_command, write_json, write_text

logger = logging.getLogger("galr")

RESAMPLES = 9999
BATCH = 200  # resamples that are laid out at once


class Interval(NamedTuple):
    """An interval of a difference, in points of mR."""

    low: float
    high: float

    @property
    def leaves_out_zero(self) -> bool:
        return self.low > 0 or self.high < 0

    def __str__(self) -> str:
        return f"{self.low:+.2f} to {self.high:+.2f}"


class Hits(NamedTuple):
    """The part of each image with captions in mR, in per cent, the mean of R@1, R@5 and R@10."""

    i2t: np.ndarray  # of the image as the query
    t2i: np.ndarray  # the sum over its captions as queries
    captions: np.ndarray  # how many these are


def hits_of(runs: Sequence[QueryRanks], image_of_caption: np.ndarray, ties: str = "random") -> Hits:
    """Return the hits of a model on a test split, the mean over its runs (seeds and folds)."""
    i2t, t2i = (
        np.mean([100 * way.hits(k, ties) for way in ways for k in CUTS], axis=0) for ways in zip(*runs, strict=True)
    )
    _, place, captions = np.unique(image_of_caption, return_inverse=True, return_counts=True)
    return Hits(i2t, np.bincount(place, weights=t2i), captions)


def mean_recall(i2t: np.ndarray, t2i: np.ndarray, captions: np.ndarray, axis: int = -1) -> np.ndarray:
    """Return mR of these images as the queries, or the difference of two, because it is linear in the hits."""
    return (i2t.mean(axis) + t2i.sum(axis) / captions.sum(axis)) / 2


def over_queries(one: Hits, other: Hits, level: float = 0.95, seed: int = 0) -> Interval:
    """Return the paired bootstrap (percentiles) of mR, one minus the other, over the images of the split."""
    from scipy.stats import bootstrap

    drawn = bootstrap(
        (one.i2t - other.i2t, one.t2i - other.t2i, one.captions),
        mean_recall,
        paired=True,
        vectorized=True,
        method="percentile",
        n_resamples=RESAMPLES,
        batch=BATCH,
        confidence_level=level,
        rng=np.random.default_rng(seed),
    )
    return Interval(*map(float, drawn.confidence_interval))


def over_seeds(one: Sequence[float], other: Sequence[float], level: float = 0.95) -> Interval | None:
    """Return Welch's interval of the difference, from the mR of each seed; None for fewer than two seeds of a model.

    None too if no seed changes anything: such a deviation says nothing.
    """
    from scipy.stats import ttest_ind

    if min(len(one), len(other)) < 2 or np.ptp(one) == np.ptp(other) == 0:
        return None
    return Interval(*map(float, ttest_ind(one, other, equal_var=False).confidence_interval(level)))


# ---------------------------------------------------------------- the comparison

Seeds = list[list[QueryRanks]]  # of a model: the ranks of the split's queries, in each fold of each seed


class Difference(NamedTuple):
    """The difference of mR of two models, ties at random, with its intervals."""

    one: str
    other: str
    mr: float
    queries: Interval
    seeds: Interval | None

    @property
    def verdict(self) -> str:
        if not self.queries.leaves_out_zero:
            return "not shown"
        if self.seeds is None:
            return "shown for this seed"
        return "shown" if self.seeds.leaves_out_zero else "shown for these seeds"


def mr_of(seeds: Seeds, ties: str) -> np.ndarray:
    """Return mR (seeds, folds)."""
    return np.array([[ranks.metrics(ties)["mr"] for ranks in folds] for folds in seeds])


def score_model(seeds: Seeds) -> tuple[Score, dict[str, dict[str, float | None]]]:
    """Return the mean over all seeds and folds, and for each way to count ties two deviations of mR.

    They are over the means of the seeds, and over the folds of a seed (the root of the mean variance); None for one.
    """
    mean, _ = summarise([score_of(ranks) for folds in seeds for ranks in folds])
    spread = {}
    for ties in ("against", "random"):
        mr = mr_of(seeds, ties)
        spread[ties] = {
            "seeds": float(mr.mean(axis=1).std(ddof=1)) if mr.shape[0] > 1 else None,
            "folds": float(np.sqrt(mr.var(axis=1, ddof=1).mean())) if mr.shape[1] > 1 else None,
        }
    return mean, spread


def differences(models: dict[str, Seeds], image_of_caption: np.ndarray, level: float) -> list[Difference]:
    """Return every pair of models, the better one first; the largest difference first."""
    hits = {name: hits_of(list(itertools.chain(*seeds)), image_of_caption) for name, seeds in models.items()}
    mr = {name: mr_of(seeds, "random").mean(axis=1) for name, seeds in models.items()}
    found = []
    for pair in itertools.combinations(mr, 2):
        one, other = sorted(pair, key=lambda name: -mr[name].mean())
        queries, seeds = over_queries(hits[one], hits[other], level), over_seeds(mr[one], mr[other], level)
        found.append(Difference(one, other, float(mr[one].mean() - mr[other].mean()), queries, seeds))
    return sorted(found, key=lambda difference: -difference.mr)


def markdown(scores: dict[str, tuple[Score, dict]], pairs: list[Difference], level: float) -> str:
    """Return the tables of the models and of their differences."""
    texts = []
    for ties in max((mean.ties for mean, _ in scores.values()), key=len):
        rows = ([name, *six_cells(mean.flat(ties)), *spread[ties].values()] for name, (mean, spread) in scores.items())
        texts.append(table([[f"ties {ties}", *NARROW, "seeds", "folds"], *rows]))
    texts.append("seeds, folds: the deviations of mR over them")
    if pairs:
        texts.append(
            f"Differences of mR, ties broken at random, with {100 * level:g}% intervals: over test queries (paired\n"
            "bootstrap of the images with their captions), and over seeds (Welch). A difference is shown if\n"
            f"both leave out 0; {100 - 100 * level:.3g} in 100 intervals of equal models do so by chance."
        )
        rows = ([f"{p.one} - {p.other}", f"{p.mr:+.2f}", p.queries, p.seeds, p.verdict] for p in pairs)
        texts.append(table([["", "mR", "queries", "seeds", ""], *rows]))
    return "\n\n".join(texts)


# ---------------------------------------------------------------- the command


class Reference(NamedTuple):
    """A run that others are compared with: its name, results, and split."""

    name: str
    results: Results
    split: dict[str, Any]  # what must be the same in every fold of every run


def read_run(name: str, runs: Path, matrices: Path, first: Reference | None) -> tuple[Reference, list[QueryRanks]]:
    """Return the first run, which is this one if there is none yet, and the ranks in each fold of this one.

    Raise InputError if something of it is missing, damaged, or not of the split and the folds of the first.
    """
    results = load_file(runs / name / "results.json", Results, "train and score it: exec/compare.sh does")
    of_folds = []
    for fold in results.folds:
        file = matrices / f"{name}_{fold.fold}.npy"
        (sims, owner), (images, captions) = load(file), load_gallery(file)
        of_folds.append(query_ranks(sims, owner))
        if abs(of_folds[-1].metrics()["mr"] - fold.mr) > 1e-6:
            raise InputError(f"{file} is not what {runs / name}/results.json was made from; run test.py for it again")
        split = {"images": [Path(image).name for image in images], "captions": captions, "image_of_caption": owner}
        split["folds"] = [fold.fold for fold in results.folds]
        first = first or Reference(name, results, split)
        for what, mine in first.split.items():
            if not np.array_equal(mine, split[what]):
                raise InputError(f"{first.name} and {name} were scored on different {what}; take the same split")
    return first, of_folds


def main() -> None:
    """Compare models over seeds: means, deviations, and for every pair the intervals of the difference of mR."""
    parser = Parser(prog="python -m postprocessing.compare", description=main.__doc__)
    add = parser.add_argument
    add("dataset", help="as in the names of the runs, {dataset}_{model}_s{seed}")
    add("models", nargs="+", help="as in the names of the runs")
    add("--seeds", type=int, default=1, help="how many of each model, from 0 (%(default)s)")
    add("--level", type=float, default=0.95, help="of the intervals (%(default)s)")
    add("--runs", default="checkpoint", metavar="DIR", help="where the runs are (%(default)s)")
    add("--matrices", default="postprocessing/file", metavar="DIR", help="where test.py left them (%(default)s)")
    add("--out", metavar="DIR", help="where the tables go (RUNS/{dataset}_compare)")
    args = parser.parse_args()
    if args.seeds < 1 or not 0 < args.level < 1:
        raise InputError("--seeds must be an integer >= 1, --level must lie between 0 and 1")
    out = Path(args.out or Path(args.runs) / f"{args.dataset}_compare")
    check_writable(out, "the folder of the comparison")
    first, models = None, {name: [] for name in args.models}
    for model, seed in Bar(list(itertools.product(models, range(args.seeds))), desc="compare", unit="run"):
        first, ranks = read_run(f"{args.dataset}_{model}_s{seed}", Path(args.runs), Path(args.matrices), first)
        models[model].append(ranks)
    dataset, gallery = first.results.dataset, gallery_of(first.results.folds, first.results.lists)
    scores = {name: score_model(seeds) for name, seeds in models.items()}
    pairs = differences(models, first.split["image_of_caption"], args.level)
    content = {
        "dataset": dataset,
        "gallery": gallery._asdict(),
        "level": args.level,
        "seeds": args.seeds,
        "folds": len(first.results.folds),
        "scores": [{"name": name, "mean": mean.model_dump(), **spread} for name, (mean, spread) in scores.items()],
        "differences": [
            pair._asdict()
            | {"queries": pair.queries._asdict(), "seeds": pair.seeds and pair.seeds._asdict(), "verdict": pair.verdict}
            for pair in pairs
        ],
    }
    sizes = (f"{n} {what}{'s' * (n != 1)}" for n, what in ((args.seeds, "seed"), (len(first.results.folds), "fold")))
    title = f"{dataset}, mean over {' of '.join(sizes)}"
    texts = [title, str(gallery), markdown(scores, pairs, args.level), *published_tables(dataset)]
    write_json(out / "compare.json", content)
    write_text(out / "compare.md", "\n\n".join(texts) + "\n")
    print("\n\n".join(texts))
    logger.info(f"{out}/compare.md, .json")


if __name__ == "__main__":
    run_command(main)
