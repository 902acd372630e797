"""Recall tables as Markdown, CSV and LaTeX, and a narrow one for the terminal: a row for each fold, mean, standard
deviation, the published numbers.

Readers have mistaken a validation score for a test score, so every row names its split, its lists, the sizes of its
gallery, and what a random ranking of that gallery scores. Where ties move mR noticeably, a row that breaks them at
random stands below the one that counts them against the query.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from postprocessing.published import published, published_gallery
from postprocessing.recall import Scores, chance
from postprocessing.results import FoldScore, Results, Score, Summary, load
from utils import Parser, run_command, write_text

DIRECTIONS = ("i2t", "t2i")
MEASURES = {"r1": "R@1", "r5": "R@5", "r10": "R@10", "medr": "med r", "meanr": "mean r"}
SIX = [(direction, at) for direction in DIRECTIONS for at in ("r1", "r5", "r10")]
WIDTH = 100  # of a terminal, in columns
AT_RANDOM = ", ties at random"

HEADER = (
    ["", "split", "lists", "images", "captions", "chance mR"]
    + [f"{direction} {name}" for direction in DIRECTIONS for name in MEASURES.values()]
    + ["mR"]
)
NARROW = ["", "i2t R@1", "R@5", "R@10", "t2i R@1", "R@5", "R@10", "mR"]


class Gallery(NamedTuple):
    """What a score is out of; None: not known, or not the same in all folds."""

    split: str | None
    lists: str | None
    images: int | None
    captions: int | None

    @property
    def chance(self) -> float | None:
        """The mR of a random ranking."""
        return chance_of(self.images, self.captions).mr if self.images and self.captions else None

    def __str__(self) -> str:
        at_random = "" if self.chance is None else f", chance mR {self.chance:.2f}"
        lists = f" of {self.lists}" if self.lists else ""
        return f"{self.split} split{lists}: {self.images} images, {self.captions} captions{at_random}"


class Row(NamedTuple):
    """A line of the table."""

    name: str
    gallery: Gallery
    scores: Scores

    def values(self) -> list:
        """Its fields, in the order of HEADER."""
        split, lists, images, captions = self.gallery
        at = [split, lists, images, captions, self.gallery.chance]
        return [self.name, *at, *self.scores.i2t, *self.scores.t2i, self.scores.mr]


def chance_of(images: int, captions: int) -> Scores:
    """The `chance` of a gallery whose captions share the images as evenly as they can."""
    return chance(np.arange(captions) * images // captions, images)


def write_tables(results: Results, folder: str | os.PathLike) -> None:
    """Write results.md, results.csv and results.tex into the folder."""
    texts = {"md": markdown(results), "csv": comma_separated(results), "tex": latex(results)}
    for suffix, text in texts.items():
        write_text(Path(folder) / f"results.{suffix}", text)


def markdown(results: Results) -> str:
    """The whole table as Markdown, and below it where the published rows stand."""
    sources = [f"- {row.name}: {row.source}\n" for row in published(results.dataset)]
    table = aligned([HEADER, *(list(map(_cell, row.values())) for row in _rows(results))])
    return table + ("\nPublished:\n\n" + "".join(sources) if sources else "")


def comma_separated(results: Results) -> str:
    """The whole table as CSV; an unknown number is an empty field."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["name", *HEADER[1:]])
    for row in _rows(results):
        writer.writerow(["" if x is None else round(x, 4) if isinstance(x, float) else x for x in row.values()])
    return text.getvalue()


def latex(results: Results) -> str:
    """The whole table as a LaTeX tabular, which needs no package."""
    lines = [r"\begin{tabular}{l" + "r" * (len(HEADER) - 1) + "}", r"\hline"]
    lines += [" & ".join(map(_escaped, HEADER)) + r" \\", r"\hline"]
    lines += [" & ".join(_escaped(_cell(x)) for x in row.values()) + r" \\" for row in _rows(results)]
    return "\n".join([*lines, r"\hline", r"\end{tabular}"]) + "\n"


def narrow(results: Results) -> str:
    """The table for a terminal: the recalls and mR of this run, and below them the published ones."""
    return _narrow(list(_own_rows(results)), results.dataset)


def narrow_fold(fold: FoldScore, lists: str | None, dataset: str) -> str:
    """The same of one fold alone, and its ranks."""
    ranks = (f"{way} median {at.medr:.2f} mean {at.meanr:.2f}" for way, at in (("i2t", fold.i2t), ("t2i", fold.t2i)))
    table = _narrow(list(_score_rows(f"fold {fold.fold}", fold, gallery_of([fold], lists))), dataset)
    return f"{table}ranks: {', '.join(ranks)}\n"


def _narrow(rows: list[Row], dataset: str) -> str:
    galleries = "".join(f"{gallery}\n" for gallery in dict.fromkeys(row.gallery for row in rows) if gallery.images)
    others = published(dataset)
    lines: list[list[str] | str] = [NARROW, *(six_cells(row.name, row.scores) for row in rows)]
    for lists in dict.fromkeys(row.lists for row in others):
        lines.append(f"published{f' on {lists}' if lists else ''}:")
        lines += [six_cells(f"  {row.name}", row.scores, row.std) for row in others if row.lists == lists]
    return galleries + columns(lines)


def six_cells(name: str, scores: Scores, std: float | None = None) -> list[str]:
    """A line of a narrow table: the six recalls and mR, with its deviation."""
    mr = _cell(scores.mr) + ("" if std is None else f" \u00b1 {std:.2f}")
    return [name, *(_cell(scores._asdict()[direction][at]) for direction, at in SIX), mr]


def columns(lines: Sequence[list[str] | str]) -> str:
    """Cells in columns for a terminal, the first line as the head; a text stands alone. Long names are cut."""
    rows = [line for line in lines if not isinstance(line, str)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    widths[0] = min(widths[0], WIDTH - sum(width + 2 for width in widths[1:]))
    text = []
    for line in lines:
        if isinstance(line, str):
            text.append(line)
            continue
        name, *cells = line
        first = [_shortened(name, widths[0]).ljust(widths[0])]
        text.append("  ".join(first + [cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True)]))
        if len(text) == 1:
            text.append("-" * (sum(widths) + 2 * len(cells)))
    return "\n".join(line.rstrip() for line in text) + "\n"


def change_table(before: Score, after: Score) -> str:
    """Two scores side by side, with the change, as Markdown."""
    lines = []
    for ties in ("", AT_RANDOM) if before.ties_matter or after.ties_matter else ("",):
        one, other = (score.random if ties else score for score in (before, after))
        for direction, old, new in (("i2t", one.i2t, other.i2t), ("t2i", one.t2i, other.t2i)):
            lines += [(f"{direction} {name}{ties}", old[at], new[at]) for at, name in MEASURES.items()]
        lines.append((f"mR{ties}", one.mr, other.mr))
    changes = ([name, _cell(old), _cell(new), f"{round(new - old, 2) + 0.0:+.2f}"] for name, old, new in lines)
    return aligned([["", "before", "after", "change"], *changes])


def compare(runs: Sequence[Results]) -> str:
    """The means of several runs under each other, with the deviation of mR over folds, for a terminal."""
    lines: list[list[str] | str] = [["experiment", "folds", *NARROW[1:]]]
    gallery = None
    for results in runs:
        if (here := gallery_of(results.folds, results.lists)) != gallery:
            gallery = here
            lines.append(f"{gallery}:")
        for ties, mean, std in _with_ties(results.mean, results.std):
            name, *cells = six_cells(f"{results.experiment}{ties}", mean, std.mr)
            lines.append([name, str(len(results.folds)), *cells])
    return columns(lines)


def main() -> None:
    """Compare runs: a row for each, the mean over its folds and the deviation of mR."""
    parser = Parser(prog="python -m postprocessing.tables", description=main.__doc__)
    parser.add_argument("runs", nargs="+", metavar="checkpoint/EXPERIMENT", help="folders of runs that test.py scored")
    folders = [Path(run) for run in parser.parse_args().runs]
    print(compare([load(folder / "results.json", Results, "run test.py first") for folder in folders]), end="")


def _rows(results: Results) -> list[Row]:
    rows = list(_own_rows(results))
    images, captions = published_gallery(results.dataset)
    for row in published(results.dataset):
        name = row.name + ("" if row.std is None else f" \u00b1 {row.std:.2f}") + " (published)"
        rows.append(Row(name, Gallery("test", row.lists or None, images, captions), row.scores))
    return rows


def _own_rows(results: Results) -> Iterator[Row]:
    bank = " + dynamic bank" if results.bank and results.bank.kind == "dynamic" else " + query bank"
    for name, part in (("", results), (" + rerank", results.rerank), (bank, results.bank)):
        if part:
            yield from _summary_rows(part, results.lists, name)


def _summary_rows(part: Summary, lists: str | None, suffix: str) -> Iterator[Row]:
    for fold in part.folds:
        yield from _score_rows(f"fold {fold.fold}{suffix}", fold, gallery_of([fold], lists))
    gallery = gallery_of(part.folds, lists)
    yield from _score_rows(f"mean{suffix}", part.mean, gallery)
    if part.std.mr is not None:
        for ties, _, std in _with_ties(part.mean, part.std):
            yield Row(f"std{suffix}{ties}", gallery, std)


def _score_rows(name: str, score: Score, gallery: Gallery) -> Iterator[Row]:
    for ties, scores, _ in _with_ties(score, score):
        yield Row(f"{name}{ties}", gallery, scores)


def _with_ties(score: Score, std: Score) -> Iterator[tuple[str, Scores, Scores]]:
    """The score and its deviation, and where ties matter also both with ties broken at random; a word for each."""
    yield "", score.against, std.against
    if score.ties_matter:
        yield AT_RANDOM, score.random, std.random


def gallery_of(folds: Sequence[FoldScore], lists: str | None) -> Gallery:
    """What the folds have in common; None where they differ."""
    found = ({getattr(fold, key) for fold in folds} for key in ("split", "images", "captions"))
    split, images, captions = (values.pop() if len(values) == 1 else None for values in found)
    return Gallery(split, lists, images, captions)


def _cell(value: str | float | None) -> str:
    return "-" if value is None else f"{value:.2f}" if isinstance(value, float) else str(value)


def _shortened(name: str, width: int) -> str:
    if len(name) <= width:
        return name
    end = (width - 1) // 2
    return name[: width - 1 - end] + "\u2026" + name[len(name) - end :]


def aligned(rows: list[list[str]]) -> str:
    """A Markdown table whose columns also line up in a text."""
    widths = [max(3, *map(len, column)) for column in zip(*rows, strict=True)]
    rule = [":" + "-" * (widths[0] - 1), *("-" * (width - 1) + ":" for width in widths[1:])]
    lines = []
    for row in (rows[0], rule, *rows[1:]):
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _escaped(text: str) -> str:
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "\u00b1": r"$\pm$"}
    return "".join(special.get(c, "\\" + c if c in "&%$#_{}" else c) for c in text)


if __name__ == "__main__":
    run_command(main)
