"""The comparison of models: what it says about each and about every pair, as tables and as a figure."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, NamedTuple

import numpy as np
from pydantic import PlainSerializer, computed_field

from postprocessing.published import published
from postprocessing.recall import Scores, Standings
from postprocessing.results import Part, Score, score_of, summarise
from postprocessing.significance import Interval, hits_of, over_queries, over_seeds
from postprocessing.style import GREY, INK, PALE, PLAIN, RERANK, RUN, new_figure
from postprocessing.tables import AT_RANDOM, NARROW, Gallery, aligned, columns, six_cells

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LABEL = 40  # letters that fit beside the figure
Range = Annotated[Interval, PlainSerializer(Interval._asdict)]


class Model(NamedTuple):
    """Where the queries of the split stand, in each fold of each seed."""

    name: str
    seeds: list[list[Standings]]


class Deviations(Part):
    """Sample deviations of mR: over the means of the seeds; over the folds of a seed (the root of the mean variance).

    None where there is only one.
    """

    seeds: float | None
    folds: float | None


class ModelScore(Part):
    """A model's mean over all seeds and folds, and the deviations of mR with ties against it and at random."""

    name: str
    mean: Score
    against: Deviations
    random: Deviations

    def rows(self) -> list[tuple[str, Scores, Deviations]]:
        """Its lines in a table: the second where ties matter."""
        rows = [(self.name, self.mean.against, self.against), (self.name + AT_RANDOM, self.mean.random, self.random)]
        return rows[: 1 + self.mean.ties_matter]


class Difference(Part):
    """The difference of mR of two models, ties at random, with its intervals."""

    one: str
    other: str
    mr: float
    queries: Range
    seeds: Range | None

    @computed_field
    @property
    def verdict(self) -> str:
        if not self.queries.leaves_out_zero:
            return "not shown"
        if self.seeds is None:
            return "shown for this seed"
        return "shown" if self.seeds.leaves_out_zero else "shown for these seeds"


class Comparison(Part):
    """All of it; `gallery` is what the scores are out of, `level` that of the intervals."""

    dataset: str
    gallery: Annotated[Gallery, PlainSerializer(Gallery._asdict)]
    seeds: int
    folds: int
    level: float
    scores: list[ModelScore]
    differences: list[Difference]


def score_model(model: Model) -> ModelScore:
    mean, _ = summarise([score_of(run) for folds in model.seeds for run in folds])
    spread = {ties: deviations(seed_and_fold(model, ties)) for ties in ("against", "random")}
    return ModelScore(name=model.name, mean=mean, **spread)


def seed_and_fold(model: Model, ties: str) -> np.ndarray:
    """mR (seeds, folds)."""
    return np.array([[run.scores(ties).mr for run in folds] for folds in model.seeds])


def deviations(mr: np.ndarray) -> Deviations:
    """Of mR (seeds, folds)."""
    seeds, folds = mr.shape
    over_seeds = float(mr.mean(axis=1).std(ddof=1)) if seeds > 1 else None
    over_folds = float(np.sqrt(mr.var(axis=1, ddof=1).mean())) if folds > 1 else None
    return Deviations(seeds=over_seeds, folds=over_folds)


def differences(models: Sequence[Model], image_of_caption: np.ndarray, level: float) -> list[Difference]:
    """Every pair of models, the better one first; the largest difference first."""
    hits = {model.name: hits_of(list(itertools.chain(*model.seeds)), image_of_caption) for model in models}
    mr = {model.name: seed_and_fold(model, "random").mean(axis=1) for model in models}
    found = []
    for pair in itertools.combinations(mr, 2):
        one, other = sorted(pair, key=lambda name: -mr[name].mean())
        found.append(
            Difference(
                one=one,
                other=other,
                mr=float(mr[one].mean() - mr[other].mean()),
                queries=over_queries(hits[one], hits[other], level),
                seeds=over_seeds(mr[one], mr[other], level),
            )
        )
    return sorted(found, key=lambda difference: -difference.mr)


# ---------------------------------------------------------------- what people read


def terminal(comparison: Comparison) -> str:
    """Both tables, for a terminal."""
    scores: list[list[str] | str] = [[*NARROW, "\u00b1 seeds", "\u00b1 folds"]]
    scores += [score_line(*row) for score in comparison.scores for row in score.rows()]
    others = published(comparison.dataset)
    for lists in dict.fromkeys(row.lists for row in others):
        scores.append(f"published{f' on {lists}' if lists else ''}:")
        scores += [
            [*six_cells(f"  {row.name}", row.scores), "-" if row.std is None else f"{row.std:.2f}", "-"]
            for row in others
            if row.lists == lists
        ]
    text = f"{title(comparison)}\n{comparison.gallery}\n{columns(scores)}"
    if not comparison.differences:
        return text
    return f"{text}\n{explanation(comparison)}\n{columns(difference_lines(comparison))}"


def markdown(comparison: Comparison) -> str:
    """Both tables as Markdown, and where the published rows stand."""
    scores = [[*NARROW, "\u00b1 seeds", "\u00b1 folds", "source"]]
    scores += [[*score_line(*row), "this code"] for score in comparison.scores for row in score.rows()]
    for row in published(comparison.dataset):
        source = row.source + (f"; lists: {row.lists}" if row.lists else "")
        scores.append([*six_cells(row.name, row.scores), "-" if row.std is None else f"{row.std:.2f}", "-", source])
    text = f"{title(comparison)}, {comparison.gallery}\n\n{aligned(scores)}"
    if not comparison.differences:
        return text
    return f"{text}\n{explanation(comparison)}\n\n{aligned(difference_lines(comparison))}"


def title(comparison: Comparison) -> str:
    runs = f"{counted(comparison.seeds, 'seed')} of {counted(comparison.folds, 'fold')}"
    return f"{comparison.dataset}, mean over {runs}"


def counted(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


def explanation(comparison: Comparison) -> str:
    """What the second table says."""
    level = f"{100 * comparison.level:g}%"
    return "\n".join(
        [
            f"Differences of mR, ties broken at random, with {level} intervals: over the test queries (paired",
            "bootstrap of the images with their captions), and over seeds (Welch). A difference is shown where",
            f"both leave out 0; {100 - 100 * comparison.level:.3g} in 100 intervals of equal models do so by chance.",
        ]
    )


def score_line(name: str, scores: Scores, deviation: Deviations) -> list[str]:
    return [*six_cells(name, scores), *("-" if value is None else f"{value:.2f}" for _, value in deviation)]


def difference_lines(comparison: Comparison) -> list[list[str]]:
    """The second table: a head, and a line for each pair."""
    lines = [["", "mR", "queries", "seeds", ""]]
    for pair in comparison.differences:
        intervals = ("-" if at is None else f"{at.low:+.2f} to {at.high:+.2f}" for at in (pair.queries, pair.seeds))
        lines.append([f"{pair.one} - {pair.other}", f"{pair.mr:+.2f}", *intervals, pair.verdict])
    return lines


def pair_label(pair: Difference) -> str:
    """What stands beside a difference: on two lines where one would not fit."""
    between = " " if len(pair.one) + len(pair.other) <= LABEL else "\n"
    return f"{pair.one}{between}\u2212 {pair.other}"


def interval_figure(comparison: Comparison) -> Figure:
    """The differences with their intervals, over queries and over seeds."""
    pairs = comparison.differences
    height = 1.6 + 0.42 * len(pairs)
    figure = new_figure(9, height)
    axes = figure.add_axes((0.36, 0.6 / height, 0.61, 1 - 1.45 / height))
    for attribute, color, shift, label in (
        ("queries", RUN, -0.13, "over the test queries"),
        ("seeds", RERANK, 0.13, "over seeds"),
    ):
        places = [at for at, pair in enumerate(pairs) if getattr(pair, attribute)]
        ends = [getattr(pairs[at], attribute) for at in places]
        if ends:
            lows, highs = zip(*ends, strict=True)
            axes.hlines([at + shift for at in places], lows, highs, color=color, linewidth=3, label=label)
    axes.plot([pair.mr for pair in pairs], range(len(pairs)), "o", color=INK, markersize=4)
    axes.axvline(0, color=GREY, linestyle="--", linewidth=1)
    axes.set_yticks(range(len(pairs)), [pair_label(pair) for pair in pairs], fontsize=9, **PLAIN)
    axes.set(ylim=(len(pairs) - 0.4, -0.6), xlabel=f"difference of mR, {100 * comparison.level:g}% interval")
    axes.grid(axis="x", color=PALE, linewidth=0.5)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, frameon=False, fontsize=9)
    text = f"{title(comparison)}, {comparison.gallery}"
    figure.text(0.02, 1 - 0.25 / height, text, fontsize=9, color=INK, va="center", **PLAIN)
    return figure
