"""Whether the difference of two models is more than luck: of the test queries, and of the seeds.

Queries. A model's mR is a mean over the queries of one test split; others of the same kind would give another. The
captions of an image are no independent queries, nor is the image itself: they fail together. So images are drawn again
(SciPy's bootstrap): each comes with its own query and with those of all its captions, and both models are scored on the
same draw. The gallery stays whole. Of several seeds and folds, each query's mean is what is drawn.

Seeds. The interval above takes the trained models as given. How much another seed would change is in the deviation over
seeds, from which Welch's interval of the difference follows. A difference is shown where both intervals leave out zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from postprocessing.recall import CUTS, Standings

RESAMPLES = 9999
BATCH = 200  # resamples that are laid out at once


class Interval(NamedTuple):
    """Of a difference, in points of mR."""

    low: float
    high: float

    @property
    def leaves_out_zero(self) -> bool:
        return self.low > 0 or self.high < 0


class Hits(NamedTuple):
    """What each image with captions contributes to mR, in per cent, the mean of R@1, R@5 and R@10."""

    i2t: np.ndarray  # of the image as the query
    t2i: np.ndarray  # the sum over its captions as queries
    captions: np.ndarray  # how many these are


def hits_of(runs: Sequence[Standings], image_of_caption: np.ndarray, ties: str = "random") -> Hits:
    """The hits of a model on a test split, the mean over its runs (seeds and folds)."""
    i2t, t2i = (
        np.mean([100 * way.hits(k, ties) for way in ways for k in CUTS], axis=0) for ways in zip(*runs, strict=True)
    )
    _, place, captions = np.unique(image_of_caption, return_inverse=True, return_counts=True)
    return Hits(i2t, np.bincount(place, weights=t2i), captions)


def mean_recall(i2t: np.ndarray, t2i: np.ndarray, captions: np.ndarray, axis: int = -1) -> np.ndarray:
    """mR of these images as the queries, or the difference of two, for it is linear in the hits."""
    return (i2t.mean(axis) + t2i.sum(axis) / captions.sum(axis)) / 2


def over_queries(one: Hits, other: Hits, level: float = 0.95, seed: int = 0) -> Interval:
    """The paired bootstrap (percentiles) of the difference of mR, one minus the other, over the images of the split."""
    from scipy.stats import bootstrap

    paired = (one.i2t - other.i2t, one.t2i - other.t2i, one.captions)
    drawn = bootstrap(
        paired,
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
    """Welch's interval of the difference, from the mR of each seed of both models; None for fewer than two seeds.

    None too where no seed changes anything, of which a deviation says nothing.
    """
    from scipy.stats import ttest_ind

    if min(len(one), len(other)) < 2 or np.ptp(one) == np.ptp(other) == 0:
        return None
    return Interval(*map(float, ttest_ind(one, other, equal_var=False).confidence_interval(level)))
