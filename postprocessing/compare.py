"""Compare models over seeds: means, deviations, and for every pair whether its difference of mR is more than luck.

    python -m postprocessing.compare UCM GaLR AMFMN --seeds 5

reads the runs UCM_GaLR_s0 to UCM_AMFMN_s4 as `exec/compare.sh` leaves them: results.json for the folds, and the test
matrices with their galleries. Writes compare.md, compare.json and intervals.png (docs/evaluation.md explains them).

An image and its captions fail together, so the bootstrap over queries draws images, each with its own query and those
of all its captions, and scores both models on the same draw; of several seeds and folds it draws each query's mean. It
takes the trained models as given; what another seed would change is in Welch's interval over seeds.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from postprocessing.figures import GREY, INK, PLAIN, RERANK, RUN, new_figure, quiet, save_figure
from postprocessing.matrices import load, load_gallery
from postprocessing.recall import CUTS, QueryRanks, query_ranks
from postprocessing.results import Results, Score, score_of, summarise
from postprocessing.results import load as load_file
from postprocessing.tables import NARROW, gallery_of, published_tables, six_cells, table
from utils import Bar, InputError, Parser, check_writable, run_command, write_json, write_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

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


def score_model(seeds: Seeds) -> tuple[Score, dict[str, dict]]:
    """Return the mean over all seeds and folds, and for each way to count ties the deviations of mR."""
    mean, _ = summarise([score_of(ranks) for folds in seeds for ranks in folds])
    return mean, {ties: deviations(mr_of(seeds, ties)) for ties in ("against", "random")}


def deviations(mr: np.ndarray) -> dict[str, float | None]:
    """Return the deviations of mR (seeds, folds) over the means of the seeds, and over the folds of a seed.

    The latter is the root of the mean variance. A deviation is None if there is only one.
    """
    seeds, folds = mr.shape
    over_seeds = float(mr.mean(axis=1).std(ddof=1)) if seeds > 1 else None
    over_folds = float(np.sqrt(mr.var(axis=1, ddof=1).mean())) if folds > 1 else None
    return {"seeds": over_seeds, "folds": over_folds}


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
        rows = []
        for pair in pairs:
            intervals = (at and f"{at.low:+.2f} to {at.high:+.2f}" for at in (pair.queries, pair.seeds))
            rows.append([f"{pair.one} - {pair.other}", f"{pair.mr:+.2f}", *intervals, pair.verdict])
        texts.append(table([["", "mR", "queries", "seeds", ""], *rows]))
    return "\n\n".join(texts)


def interval_figure(pairs: list[Difference], level: float, title: str) -> Figure:
    """Draw the differences with their intervals, over queries and over seeds."""
    height = 1.8 + 0.42 * len(pairs)
    figure = new_figure(9, height, title)
    axes = figure.add_axes((0.36, 0.6 / height, 0.61, 1 - 1.65 / height))
    for key, color, shift in (("queries", RUN, -0.13), ("seeds", RERANK, 0.13)):
        ends = {at + shift: getattr(pair, key) for at, pair in enumerate(pairs) if getattr(pair, key)}
        if ends:
            lows, highs = zip(*ends.values(), strict=True)
            axes.hlines(list(ends), lows, highs, color=color, linewidth=3, label=f"over {key}")
    axes.plot([pair.mr for pair in pairs], range(len(pairs)), "o", color=INK, markersize=4)
    axes.axvline(0, color=GREY, linestyle="--", linewidth=1)
    axes.set_yticks(range(len(pairs)), list(map(pair_label, pairs)), fontsize=9, **PLAIN)
    axes.set(ylim=(len(pairs) - 0.4, -0.6), xlabel=f"difference of mR, {100 * level:g}% interval")
    quiet(axes, "x")
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, frameon=False, fontsize=9)
    return figure


def pair_label(pair: Difference) -> str:
    """Return the label of a difference: on two lines if one would not fit beside the figure."""
    between = " " if len(pair.one) + len(pair.other) <= 40 else "\n"
    return f"{pair.one}{between}\u2212 {pair.other}"


# ---------------------------------------------------------------- the command


class Run(NamedTuple):
    """One seed of a model: its results, the split that it was scored on, and the ranks in each fold."""

    name: str
    results: Results
    folds: list[int]
    images: list[str]  # their file names
    captions: list[str]
    image_of_caption: np.ndarray
    ranks: list[QueryRanks]

    def check_comparable(self, other: Run) -> None:
        """Raise InputError if the other run has another split or other folds."""
        for what in ("images", "captions", "image_of_caption", "folds"):
            if not np.array_equal(getattr(self, what), getattr(other, what)):
                raise InputError(f"{self.name} and {other.name} were scored on different {what}; take the same split")


def read_run(name: str, runs: Path, matrices: Path) -> Run:
    """Read a run. Raise InputError if something of it is missing, damaged, or not of one scoring."""
    results = load_file(runs / name / "results.json", Results, "train and score it: exec/compare.sh does")
    numbers, first, found = [fold.fold for fold in results.folds], None, []
    for fold in results.folds:
        file = matrices / f"{name}_{fold.fold}.npy"
        (sims, owner), (images, captions) = load(file), load_gallery(file)
        found.append(query_ranks(sims, owner))
        if abs(found[-1].metrics()["mr"] - fold.mr) > 1e-6:
            raise InputError(f"{file} is not what {runs / name}/results.json was made from; run test.py for it again")
        names = [Path(image).name for image in images]
        run = Run(name, results, numbers, names, captions, owner, found)
        (first := first or run).check_comparable(run)
    return run


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
    add("--out", metavar="DIR", help="where the tables and the figure go (RUNS/{dataset}_compare)")
    args = parser.parse_args()
    if args.seeds < 1 or not 0 < args.level < 1:
        raise InputError("--seeds must be an integer >= 1, --level must lie between 0 and 1")
    out = Path(args.out or Path(args.runs) / f"{args.dataset}_compare")
    check_writable(out, "the folder of the comparison")
    runs: dict[str, list[Run]] = {name: [] for name in args.models}
    for model, seed in Bar(list(itertools.product(runs, range(args.seeds))), desc="compare", unit="run"):
        runs[model].append(read_run(f"{args.dataset}_{model}_s{seed}", Path(args.runs), Path(args.matrices)))
        runs[args.models[0]][0].check_comparable(runs[model][-1])
    first = runs[args.models[0]][0]
    models = {name: [run.ranks for run in of_model] for name, of_model in runs.items()}
    dataset, gallery = first.results.dataset, gallery_of(first.results.folds, first.results.lists)
    scores = {name: score_model(seeds) for name, seeds in models.items()}
    pairs = differences(models, first.image_of_caption, args.level)
    content = {"dataset": dataset, "gallery": gallery._asdict(), "level": args.level}
    content |= {"seeds": args.seeds, "folds": len(first.ranks)}
    content["scores"] = [{"name": name, "mean": mean.model_dump(), **spread} for name, (mean, spread) in scores.items()]
    content["differences"] = [
        pair._asdict()
        | {"queries": pair.queries._asdict(), "seeds": pair.seeds and pair.seeds._asdict(), "verdict": pair.verdict}
        for pair in pairs
    ]
    sizes = (f"{n} {what}{'s' * (n != 1)}" for n, what in ((args.seeds, "seed"), (len(first.ranks), "fold")))
    title = f"{dataset}, mean over {' of '.join(sizes)}"
    texts = [title, str(gallery), markdown(scores, pairs, args.level), *published_tables(dataset)]
    write_json(out / "compare.json", content)
    write_text(out / "compare.md", "\n\n".join(texts) + "\n")
    print("\n\n".join(texts))
    if pairs:
        save_figure(interval_figure(pairs, args.level, f"{title}\n{gallery}"), out / "intervals.png")
    logger.info(f"{out}/compare.md, .json" + ", intervals.png" * bool(pairs))


if __name__ == "__main__":
    run_command(main)
