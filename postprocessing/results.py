"""The files of a run as types: results.json, the scores of its folds; history.json, the course of a fold's training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from postprocessing.recall import DIRECTIONS, NOTICEABLE, Metrics, QueryRanks
from utils import InputError, checked, read_json

VARIANTS = ("released", "paper")
LEAST_K = 10  # of the released code


@dataclass(frozen=True)
class Setting:
    """A setting of the rerank; the defaults are the published one. Raises InputError where it means nothing."""

    k: int = 30
    w_similarity: float = 0.3
    w_reverse: float = 1.1
    xi: float = 0.05
    variant: str = "released"
    l: int | None = None  # noqa: E741 (the paper's name; of `paper` only)

    def __post_init__(self) -> None:
        if self.variant not in VARIANTS:
            raise InputError(f"the rerank variant must be {' or '.join(VARIANTS)}, got {self.variant!r}")
        for name in ("w_similarity", "w_reverse", "xi", "l"):
            if not 0 <= (getattr(self, name) or 0) < 1e9:
                raise InputError(f"{name} must be a number from 0 to 1e9, got {getattr(self, name)}")
        if self.k < 1 or self.k != int(self.k):
            raise InputError(f"k must be an integer >= 1, got {self.k}")

    def candidates(self, gallery: int) -> int:
        """Return the number of candidates of a query: at least 10 in `released`, at most the gallery's size."""
        return min(max(int(self.k), LEAST_K) if self.variant == "released" else int(self.k), gallery)


PUBLISHED = Setting()


class Part(BaseModel):
    """A part of a file: it does not change, and keys of other versions are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Nested(Part):
    """The flat dictionary of `recall.metrics`, nested by direction."""

    i2t: dict[str, float | None]
    t2i: dict[str, float | None]
    mr: float | None

    @classmethod
    def of(cls, flat: Metrics, **more: Any) -> Nested:
        ways = {way: {key[4:]: value for key, value in flat.items() if key.startswith(f"{way}_")} for way in DIRECTIONS}
        return cls(**ways, mr=flat["mr"], **more)


class Score(Nested):
    """The metrics of a matrix with ties against the query, and with ties at random."""

    random: Nested

    def flat(self, ties: str = "against") -> Metrics:
        score = self if ties == "against" else self.random
        ways = {f"{way}_{key}": value for way in DIRECTIONS for key, value in getattr(score, way).items()}
        return ways | {"mr": score.mr}

    @property
    def ties(self) -> list[str]:
        """Return the kinds of ties to show: `random` too where it moves mR noticeably."""
        return ["against", "random"] if self.random.mr - self.mr > NOTICEABLE else ["against"]


class Sizes(Part):
    fold: int
    split: str
    images: int
    captions: int


class FoldScore(Score, Sizes):
    """The score of a fold, and what it is out of."""


class Summary(Part):
    """Fold scores with mean and sample standard deviation (None for a single fold)."""

    folds: Annotated[list[FoldScore], Field(min_length=1)]
    mean: Score
    std: Score

    @classmethod
    def of(cls, folds: Sequence[FoldScore], **more: Any) -> Summary:
        mean, std = summarise(folds)
        return cls(folds=list(folds), mean=mean, std=std, **more)


class Reranked(Summary):
    setting: Setting | None = None


class Banked(Summary):
    kind: Literal["static", "dynamic"] = "static"


class Run(Part):
    """The names of a run. `lists` is the folder of the caption lists, because two sets of UCM's circulate."""

    experiment: str
    dataset: str
    lists: str | None = None


class Results(Summary, Run):
    """results.json."""

    rerank: Reranked | None = None
    bank: Banked | None = None

    def parts(self) -> dict[str, Summary]:
        """Return the summaries by their names in tables: plain first, then what was done to the similarities."""
        bank = "+ dynamic bank" if self.bank and self.bank.kind == "dynamic" else "+ query bank"
        return {name: part for name, part in (("", self), ("+ rerank", self.rerank), (bank, self.bank)) if part}


class HistoryRow(Part):
    epoch: int
    step: int
    loss: float | None = None
    mr: float | None = None
    chance: float | None = None


class History(Part):
    """history.json: a row for every print of the loss, and one for every validation."""

    train: list[HistoryRow]
    val: list[HistoryRow]


File = TypeVar("File", Results, History)


def load(path: Path, kind: type[File], advice: str = "") -> File:
    """Read a file of a run. Raise InputError that names the file, and what in it is not of its form."""
    return checked(kind, read_json(path, kind.__name__.lower(), advice), str(path))


def score_of(ranks: QueryRanks, more: Callable[[str], Metrics] = lambda ties: {}) -> Score:
    """Return the score of a matrix from the ranks of its queries; `more(ties)` gives further metrics."""
    against, random = (ranks.metrics(ties) | more(ties) for ties in ("against", "random"))
    return Score.of(against, random=Nested.of(random))


def summarise(scores: Sequence[Score]) -> tuple[Score, Score]:
    """Return the mean and the sample standard deviation (n - 1) of scores. One score has none: its numbers are None."""

    def over_scores(statistic: Callable[[list[float]], float | None]) -> Score:
        found = {}
        for ties in ("against", "random"):
            flats = [score.flat(ties) for score in scores]
            numbers = {key: [flat[key] for flat in flats] for key in flats[0]}
            found[ties] = {key: None if None in of_key else statistic(of_key) for key, of_key in numbers.items()}
        return Score.of(found["against"], random=Nested.of(found["random"]))

    def deviation(numbers: list[float]) -> float | None:
        return float(np.std(numbers, ddof=1)) if len(numbers) > 1 else None

    return over_scores(lambda numbers: float(np.mean(numbers))), over_scores(deviation)
