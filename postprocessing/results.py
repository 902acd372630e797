"""The files of a run as types: results.json, the scores of its folds; history.json, the course of a fold's training.

Only this file knows their form. A file of another form is an InputError that names the place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from postprocessing.recall import DIRECTIONS, NOTICEABLE, SIX, Metrics, QueryRanks
from utils import InputError, read_json

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
        for name in ("k", "w_similarity", "w_reverse", "xi") + (() if self.l is None else ("l",)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float, np.number)) or not 0 <= value < 1e9:
                raise InputError(f"{name} must be a number from 0 to 1e9, got {value!r}")
        if self.k < 1 or self.k != int(self.k):
            raise InputError(f"k must be an integer >= 1, got {self.k}")

    def candidates(self, gallery: int) -> int:
        """Return the number of candidates of a query: at least 10 in `released`, at most the gallery's size."""
        return min(max(int(self.k), LEAST_K) if self.variant == "released" else int(self.k), gallery)


PUBLISHED = Setting()
Count = Annotated[int, Field(ge=1, le=10**7)]


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
        """Return it from a flat dictionary."""
        ways = {way: {key[4:]: value for key, value in flat.items() if key.startswith(f"{way}_")} for way in DIRECTIONS}
        return cls(**ways, mr=flat["mr"], **more)


class Score(Nested):
    """The metrics of a matrix with ties against the query, and with ties at random."""

    random: Nested | None = None  # files of earlier versions have none

    def flat(self, ties: str = "against") -> Metrics:
        """Return the flat dictionary."""
        score = self if ties == "against" else self.random
        ways = {f"{way}_{key}": value for way in DIRECTIONS for key, value in getattr(score, way).items()}
        return ways | {"mr": score.mr}

    @property
    def ties(self) -> list[str]:
        """Return the kinds of ties to show: `random` too where it moves mR noticeably."""
        both = self.random is not None and self.mr is not None and self.random.mr - self.mr > NOTICEABLE
        return ["against", "random"] if both else ["against"]


class Sizes(Part):
    """The sizes that a fold's score is out of."""

    fold: int
    split: str
    images: Count
    captions: Count


class FoldScore(Score, Sizes):
    """The score of a fold."""


class Summary(Part):
    """Fold scores with mean and sample standard deviation (None for a single fold)."""

    folds: Annotated[list[FoldScore], Field(min_length=1)]
    mean: Score
    std: Score

    @classmethod
    def of(cls, folds: Sequence[FoldScore], **more: Any) -> Summary:
        """Return the summary of folds."""
        mean, std = summarise(folds)
        return cls(folds=list(folds), mean=mean, std=std, **more)

    @model_validator(mode="after")
    def _complete(self) -> Summary:
        scores = (*self.folds, self.mean, self.std)
        if len({score.random is None for score in scores}) > 1:
            raise ValueError("some scores have ties at random, others have not")
        for score in scores[:-1]:
            for flat in [score.flat(ties) for ties in ("against", "random") if ties == "against" or score.random]:
                numbers = [flat.get(key) for key in (*SIX, *flat)]
                if None in numbers or not np.isfinite(numbers).all():
                    raise ValueError("a number of a fold or of the mean is missing or not finite")
        return self


class Reranked(Summary):
    """The scores after the rerank with this setting."""

    setting: Setting | None = None


class Banked(Summary):
    """The scores after query bank normalisation of this kind; files of earlier versions hold the static one."""

    kind: Literal["static", "dynamic"] = "static"


class Run(Part):
    """The names of a run. `lists` is the folder of the caption lists, because two sets of UCM's circulate."""

    experiment: str
    dataset: str
    lists: str | None = None


class Results(Summary, Run):
    """results.json."""

    rerank: Annotated[Reranked | None, BeforeValidator(lambda tree: tree or None)] = None
    bank: Banked | None = None

    def parts(self) -> dict[str, Summary]:
        """Return the summaries by their names in tables: plain first, then what was done to the similarities."""
        bank = "+ dynamic bank" if self.bank and self.bank.kind == "dynamic" else "+ query bank"
        return {name: part for name, part in (("", self), ("+ rerank", self.rerank), (bank, self.bank)) if part}


class TrainRow(Part):
    epoch: int
    step: int
    loss: float | None


class ValRow(Part):
    epoch: int
    step: int
    mr: float | None
    chance: float | None = None


class History(Part):
    """history.json: a row for every print of the loss, and one for every validation."""

    train: list[TrainRow]
    val: list[ValRow]


File = TypeVar("File", Results, History)


def load(path: Path, kind: type[File], advice: str = "") -> File:
    """Read a file of a run. Raise InputError that names the file, and what in it is not of its form."""
    what = kind.__name__.lower()
    tree = read_json(path, what, advice)
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        first = error.errors()[0]
        fault = ": ".join(filter(None, [".".join(map(str, first["loc"])), first["msg"]]))
        raise InputError(f"{path}: not of the form of {what}.json ({fault})") from None
    except InputError as error:
        raise InputError(f"{path}: the rerank's setting: {error}") from None


def score_of(ranks: QueryRanks) -> Score:
    """Return the score of a matrix from the ranks of its queries."""
    return Score.of(ranks.metrics(), random=Nested.of(ranks.metrics("random")))


def summarise(scores: Sequence[Score]) -> tuple[Score, Score]:
    """Return the mean and the sample standard deviation (n - 1) of scores. One score has none: its numbers are None.

    Raise InputError for no scores.
    """
    if not scores:
        raise InputError("there are no folds to summarise")
    found = []
    for ties in ("against", "random") if scores[0].random else ("against",):
        flats = [score.flat(ties) for score in scores]
        numbers = np.array([list(flat.values()) for flat in flats], float)
        std = numbers.std(axis=0, ddof=1).tolist() if len(scores) > 1 else [None] * numbers.shape[1]
        found.append([dict(zip(flats[0], values, strict=True)) for values in (numbers.mean(axis=0).tolist(), std)])
    mean, std = (
        Score.of(flat, random=Nested.of(rest[0]) if rest else None) for flat, *rest in zip(*found, strict=True)
    )
    return mean, std
