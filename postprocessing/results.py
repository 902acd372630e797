"""What a run leaves, as types: results.json, the scores of its folds; history.json, the course of a fold's training.

This file alone knows the form of these files. A file of another form is an InputError that names the place.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, ValidationError, model_validator

from postprocessing.recall import NOTICEABLE, Recalls, Scores, Standings
from postprocessing.rerank.method import Setting
from utils import InputError, read_json


def _scores_to_json(scores: Scores) -> dict[str, Any]:
    return {"i2t": scores.i2t._asdict(), "t2i": scores.t2i._asdict(), "mr": scores.mr}


Count = Annotated[int, Field(ge=1, le=10**7)]
Direction = Annotated[Recalls, PlainSerializer(Recalls._asdict)]
Both = Annotated[Scores, PlainSerializer(_scores_to_json)]


class Part(BaseModel):
    """A part of a file: does not change; keys that are not known here are another version's."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Score(Part):
    """The score of a matrix with ties against the query, and what is expected with ties broken at random."""

    i2t: Direction
    t2i: Direction
    mr: float | None
    random: Both | None = None  # the files of earlier versions have none

    @property
    def against(self) -> Scores:
        """The score with ties against the query."""
        return Scores(self.i2t, self.t2i, self.mr)

    @property
    def ties_matter(self) -> bool:
        """Whether ties move mR by so much that both numbers must be shown."""
        return self.random is not None and self.mr is not None and self.random.mr - self.mr > NOTICEABLE

    def numbers(self) -> list[float | None]:
        """All of them in a row, as `of_numbers` takes them."""
        against = [*self.i2t, *self.t2i, self.mr]
        return against if self.random is None else [*against, *self.random.i2t, *self.random.t2i, self.random.mr]

    @classmethod
    def of_numbers(cls, numbers: Sequence[float | None]) -> Score:
        """The score of 11 numbers, or with ties at random of 22."""
        i2t, t2i, mr, *rest = (*(Recalls(*numbers[at : at + 5]) for at in (0, 5)), *numbers[10:])
        random = Scores(Recalls(*rest[:5]), Recalls(*rest[5:10]), rest[10]) if rest else None
        return cls(i2t=i2t, t2i=t2i, mr=mr, random=random)


class Sizes(Part):
    """What a fold's score is out of."""

    fold: int
    split: str
    images: Count
    captions: Count


class FoldScore(Score, Sizes):
    """The score of a fold."""


class Summary(Part):
    """The scores of the folds, their mean, and their sample deviation, which one fold has not: its numbers are None."""

    folds: Annotated[list[FoldScore], Field(min_length=1)]
    mean: Score
    std: Score

    @model_validator(mode="after")
    def _complete(self) -> Summary:
        numbers = [number for score in (*self.folds, self.mean) for number in score.numbers()]
        if None in numbers or not np.isfinite(numbers).all():
            raise ValueError("a number of a fold or of the mean is missing or not finite")
        if len({len(score.numbers()) for score in (*self.folds, self.mean, self.std)}) > 1:
            raise ValueError("some scores have ties at random, others have not")
        return self


class Reranked(Summary):
    """After the rerank with this setting."""

    setting: Setting | None = None


class Banked(Summary):
    """After query bank normalisation of this kind; files of earlier versions hold the static one."""

    kind: Literal["static", "dynamic"] = "static"


class Run(Part):
    """Whose results these are. `lists` is the folder of the caption lists, for two sets of UCM's circulate."""

    experiment: str
    dataset: str
    lists: str | None = None


class Results(Summary, Run):
    """results.json: the scores; after the rerank; after query bank normalisation."""

    rerank: Annotated[Reranked | None, BeforeValidator(lambda tree: tree or None)] = None
    bank: Banked | None = None


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
    """Read a file of a run. Raises InputError that names the file, and what in it is not of its form."""
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


def score_of(standings: Standings) -> Score:
    """The score of a matrix from where its queries stand."""
    i2t, t2i, mr = standings.scores()
    return Score(i2t=i2t, t2i=t2i, mr=mr, random=standings.scores("random"))


def summarise(scores: Sequence[Score]) -> tuple[Score, Score]:
    """Mean and sample standard deviation (n - 1) over folds. One fold has no deviation: its numbers are None.

    Raises InputError for no folds.
    """
    if not scores:
        raise InputError("there are no folds to summarise")
    numbers = np.array([score.numbers() for score in scores], float)
    deviation = numbers.std(axis=0, ddof=1).tolist() if len(scores) > 1 else [None] * numbers.shape[1]
    return Score.of_numbers(numbers.mean(axis=0).tolist()), Score.of_numbers(deviation)


def gain(before: Score, after: Score) -> str:
    """What became of mR, in words."""
    text = f"mR {before.mr:.2f} before and {after.mr:.2f} after ({after.mr - before.mr:+.2f})"
    if before.ties_matter or after.ties_matter:
        one, other = before.random.mr, after.random.mr
        text += f"; with ties at random {one:.2f} and {other:.2f} ({other - one:+.2f})"
    return text
