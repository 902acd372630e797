"""Tables of recall: Markdown for people, CSV with every number, and the published rows.

Readers have mistaken a validation score for a test score, so every table names its split, its lists, the sizes of its
gallery, and the score of a random ranking. Where ties move mR noticeably, both ways to count them are shown.
"""

from __future__ import annotations

import csv
import functools
import io
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from postprocessing.matrices import load as load_matrix
from postprocessing.recall import DIRECTIONS, SIX, Metrics, QueryRanks, Scores, chance, query_ranks
from postprocessing.results import FoldScore, Results, Score, load, score_of, summarise
from utils import Parser, run_command, write_json, write_text

LABELS = {"r1": "R@1", "r5": "R@5", "r10": "R@10", "medr": "med r", "meanr": "mean r", "map": "mAP"}
WIDTH = 100  # of a line, in columns
AT_RANDOM = ", ties at random"
NARROW = ["i2t R@1", "R@5", "R@10", "t2i R@1", "R@5", "R@10", "mR"]
TIES = "Ties count against the query (pessimistic) or are broken at random (expected)."
Cell = str | float | None


class Published(NamedTuple):
    """A published row: its metrics (None: not known), the deviation of mR, the test split, its lists and source."""

    name: str
    flat: Metrics
    std: float | None
    images: int | None
    captions: int | None
    lists: str
    source: str


@functools.cache
def published(dataset: str) -> list[Published]:
    """Return the rows of published.csv, as printed, for a data set by any form of its name (RSITMD, rsitmd_precomp)."""
    key, found = dataset.lower().removesuffix("_precomp"), []
    for row in csv.DictReader(Path(__file__).with_name("published.csv").read_text().splitlines()):
        if row["dataset"] == key:
            flat = {name: float(row[name]) if row[name] else None for name in (*SIX, "mr", "std")}
            sizes = (int(row[size]) if row[size] else None for size in ("images", "captions"))
            found.append(Published(row["name"], flat, flat.pop("std"), *sizes, row["lists"], row["source"]))
    return found


class GallerySize(NamedTuple):
    """The gallery of a score; None: not known, or not the same in all folds."""

    split: str | None
    lists: str | None
    images: int | None
    captions: int | None

    @property
    def chance(self) -> Scores | None:
        """Return the score of a random ranking; the captions share the images as evenly as they can."""
        if not self.images or not self.captions:
            return None
        return chance(np.arange(self.captions) * self.images // self.captions, self.images)

    def __str__(self) -> str:
        at_random = f", chance mR {self.chance.mr:.2f}" if self.chance else ""
        lists = f" of {self.lists}" if self.lists else ""
        return f"{self.split} split{lists}: {self.images} images, {self.captions} captions{at_random}"


def gallery_of(folds: Sequence[FoldScore], lists: str | None) -> GallerySize:
    """Return the gallery that the folds have in common; None where they differ."""
    found = ({getattr(fold, key) for fold in folds} for key in ("split", "images", "captions"))
    split, images, captions = (values.pop() if len(values) == 1 else None for values in found)
    return GallerySize(split, lists, images, captions)


# ---------------------------------------------------------------- the writer


def table(rows: Sequence[Sequence[Cell]]) -> str:
    """Return rows of cells, the first one the head, as an aligned Markdown table of at most `WIDTH` columns.

    For that, long names in the first column are cut in the middle.
    """
    lines = [["-" if x is None else f"{x:.2f}" if isinstance(x, float) else str(x) for x in row] for row in rows]
    first, *widths = (max(3, *map(len, column)) for column in zip(*lines, strict=True))
    first = min(first, max(8, WIDTH - 4 - sum(width + 3 for width in widths)))
    rule = [":" + "-" * (first - 1), *("-" * (width - 1) + ":" for width in widths)]
    text = []
    for name, *cells in (lines[0], rule, *lines[1:]):
        if len(name) > first:
            end = (first - 1) // 2
            name = name[: first - 1 - end] + "\u2026" + name[len(name) - end :]
        right = (cell.rjust(width) for cell, width in zip(cells, widths, strict=True))
        text.append("| " + " | ".join([name.ljust(first), *right]) + " |")
    return "\n".join(text)


def six_cells(flat: Metrics, std: float | None = None) -> list[Cell]:
    """Return the six recalls, and mR with its deviation, if it has one."""
    mr = flat["mr"] if std is None else f"{flat['mr']:.2f} \u00b1 {std:.2f}"
    return [*(flat[key] for key in SIX), mr]


def filled(line: str) -> str:
    """Return a text in lines of `WIDTH` columns, all but the first indented."""
    return textwrap.fill(line, WIDTH, subsequent_indent="  ", break_on_hyphens=False)


def _csv(rows: Iterable[Sequence]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


# ---------------------------------------------------------------- a run


class Row(NamedTuple):
    """A fold, the mean or the deviation of a run: plain (part ""), after the rerank or with the query bank."""

    part: str
    what: str
    ties: str
    gallery: GallerySize
    flat: Metrics
    std: float | None = None

    @property
    def note(self) -> str:
        return AT_RANDOM if self.ties == "random" else ""


def run_rows(results: Results) -> Iterator[Row]:
    """Yield the rows of a run; ties at random have one of their own where they matter."""
    for name, part in results.parts().items():
        for fold in part.folds:
            gallery = gallery_of([fold], results.lists)
            yield from (Row(name, f"fold {fold.fold}", ties, gallery, fold.flat(ties)) for ties in fold.ties)
        gallery, mean, std = gallery_of(part.folds, results.lists), part.mean, part.std
        yield from (Row(name, "mean", ties, gallery, mean.flat(ties), std.flat(ties)["mr"]) for ties in mean.ties)
        if len(part.folds) > 1:
            yield from (Row(name, "std", ties, gallery, std.flat(ties)) for ties in mean.ties)


def markdown(results: Results) -> str:
    """Return three tables: means with the deviation of mR, folds, published rows; above them what is constant."""
    rows = list(run_rows(results))
    folds = [row for row in rows if row.what.startswith("fold")]
    texts = [f"{results.experiment} on {results.dataset}", *map(str, dict.fromkeys(row.gallery for row in folds)), TIES]
    if len(results.folds) > 1:
        means = ([row.part or "plain", row.ties, *six_cells(row.flat, row.std)] for row in rows if row.what == "mean")
        texts.append(table([["mean", "ties", *NARROW], *means]))
    cells = ([f"{row.what} {row.part}".strip(), row.ties, *six_cells(row.flat)] for row in folds)
    texts.append(table([["fold", "ties", *NARROW], *cells]))
    flat = results.mean.flat()
    ranks = (f"{way} median {flat[f'{way}_medr']:.2f} mean {flat[f'{way}_meanr']:.2f}" for way in DIRECTIONS)
    texts += [f"ranks: {', '.join(ranks)}", *further_tables(flat, [row for row in rows if row.what == "mean"])]
    return "\n\n".join([*texts, *published_tables(results.dataset)]) + "\n"


def further_tables(flat: Metrics, means: list[Row]) -> list[str]:
    """Return a table of the means of the metrics that have no column, a row each, and one of the recalls by class."""
    keys = [key for key in flat if key not in (*SIX, "mr") and key[4:] not in ("medr", "meanr")]
    texts = []
    if further := [key for key in keys if " " not in key]:
        rows = ([label(key), *(row.flat.get(key) for row in means)] for key in further)
        texts.append(table([["metric", *((row.part or "plain") + row.note for row in means)], *rows]))
    if classes := dict.fromkeys(key.partition(" ")[2] for key in keys if " " in key):
        recalls = ([flat[f"{key} {name}"] for key in SIX] for name in classes)
        rows = ([name, *six, sum(six) / 6] for name, six in zip(classes, recalls, strict=True))
        texts.append(table([["class", *NARROW], *rows]))
    return texts


def published_tables(dataset: str) -> list[str]:
    """Return a table of published rows for each of the lists that they are on, and the sources."""
    rows, texts, sources = published(dataset), [], {}
    for lists in dict.fromkeys(row.lists for row in rows):
        cells = ([row.name, *six_cells(row.flat, row.std)] for row in rows if row.lists == lists)
        texts.append(f"Published, lists: {lists or 'not stated'}\n\n{table([['', *NARROW], *cells])}")
    for row in rows:
        sources.setdefault(row.source, []).append(row.name)
    lines = [filled(f"- {source}: {'; '.join(names)}") for source, names in sources.items()]
    return [*texts, "\n".join(["Sources:\n", *lines])] if rows else []


def comma_separated(results: Results) -> str:
    """Return every number as CSV: folds, mean, std, published rows; an unknown number is an empty field."""
    keys = list(results.mean.flat())
    rows = [["name", "split", "lists", "images", "captions", "chance mR", *map(label, keys)]]

    def add(name: str, gallery: GallerySize, flat: Metrics) -> None:
        values = [name, *gallery, gallery.chance and gallery.chance.mr, *(flat.get(key) for key in keys)]
        rows.append([round(x, 4) if isinstance(x, float) else x for x in values])

    for row in run_rows(results):
        add(f"{row.what} {row.part}".strip() + row.note, row.gallery, row.flat)
    for row in published(results.dataset):
        name = row.name + ("" if row.std is None else f" \u00b1 {row.std:.2f}") + " (published)"
        add(name, GallerySize("test", row.lists or None, row.images, row.captions), row.flat)
    return _csv(rows)


def label(key: str) -> str:
    """Return the name of a metric in tables: "i2t R@1" for "i2t_r1"."""
    way, _, measure = key.partition("_")
    return f"{way} {LABELS.get(measure, measure)}" if measure else "mR"


def write_ranks(
    file: Path, folds: dict[int, np.ndarray], images: list[str], captions: list[str], image_of_caption: np.ndarray
) -> None:
    """Write the rank (ties against) and the first ten answers of every query as CSV, from the matrix of each fold."""
    lines = [["fold", "direction", "number", "query", "rank", *(f"answer {n}" for n in range(1, 11))]]
    asked = np.unique(image_of_caption)  # an image without captions is no query
    for fold, sims in folds.items():
        ranks = query_ranks(sims, image_of_caption)
        i2t, t2i = (asked, sims[asked], images, captions), (range(len(captions)), sims.T, captions, images)
        for direction, (numbers, rows, queries, answers) in zip(DIRECTIONS, (i2t, t2i), strict=True):
            best = np.argsort(-rows, axis=1, kind="stable")[:, :10]
            for number, rank, order in zip(numbers, getattr(ranks, direction).from_zero(), best, strict=True):
                lines.append([fold, direction, number, queries[number], rank + 1, *(answers[at] for at in order)])
    write_text(file, _csv(lines))


# ---------------------------------------------------------------- several scores


def change_table(before: Score, after: Score) -> str:
    """Return two scores side by side, with the change, as Markdown."""
    lines: list[list[Cell]] = []
    for ties in max(before.ties, after.ties, key=len):
        new = after.flat(ties)
        for key, old in before.flat(ties).items():
            change = f"{round(new[key] - old, 2) + 0.0:+.2f}"  # never -0.00
            lines.append([label(key) + AT_RANDOM * (ties == "random"), old, new[key], change])
    return table([["", "before", "after", "change"], *lines])


def report(
    files: Sequence[Path],
    change: Callable[[np.ndarray, np.ndarray], tuple[QueryRanks, QueryRanks]],
    setting: dict[str, Any],
    out: Path | None,
) -> None:
    """Print the scores of saved matrices before and after `change(sims, image_of_caption)`; write them to `out`."""
    rows, scores = [], []
    for file in files:
        sims, owner = load_matrix(file)
        before, after = map(score_of, change(sims, owner))
        row = {"file": str(file), "images": len(sims), "captions": len(owner), "chance": chance(owner, len(sims)).mr}
        rows.append(row | {"before": before.model_dump(), "after": after.model_dump()})
        scores.append((before, after))
        words = [
            f"{file}: {len(sims)} images, {len(owner)} captions, chance mR {row['chance']:.2f}, mR before and after"
        ]
        for ties in max(before.ties, after.ties, key=len):
            old, new = before.flat(ties)["mr"], after.flat(ties)["mr"]
            words.append("; with ties at random" * (ties == "random") + f" {old:.2f} and {new:.2f} ({new - old:+.2f})")
        print("".join(words))
    (before, _), (after, _) = map(summarise, zip(*scores, strict=True))
    print(f"\nmean of {len(rows)} matrices" if len(rows) > 1 else "")
    print(change_table(before, after))
    if out:
        mean = {"before": before.model_dump(), "after": after.model_dump()}
        write_json(out, {"setting": setting, "matrices": rows, "mean": mean})


def main() -> None:
    """Compare runs: a row for each, the mean over its folds and the deviation of mR."""
    parser = Parser(prog="python -m postprocessing.tables", description=main.__doc__)
    parser.add_argument("runs", nargs="+", metavar="checkpoint/EXPERIMENT", help="folders of runs that test.py scored")
    by_gallery: dict[GallerySize, list[list[Cell]]] = {}
    for folder in map(Path, parser.parse_args().runs):
        run = load(folder / "results.json", Results, "run test.py first")
        rows = by_gallery.setdefault(gallery_of(run.folds, run.lists), [])
        for ties in run.mean.ties:
            cells = six_cells(run.mean.flat(ties), run.std.flat(ties)["mr"])
            rows.append([run.experiment, str(len(run.folds)), ties, *cells])
    for gallery, rows in by_gallery.items():
        print(f"{gallery}\n\n{table([['experiment', 'folds', 'ties', *NARROW], *rows])}\n")


if __name__ == "__main__":
    run_command(main)
