"""Recall tables as Markdown, CSV and LaTeX: one row per fold, mean and standard deviation, the published numbers.

Readers have mistaken a validation score for a test score, so every row names its split, the sizes of its gallery, and
what a random ranking of that gallery scores.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from postprocessing.recall import chance
from util.errors import InputError
from util.files import read_json, write_text
from utils import Parser, run_command

DIRECTIONS = ("i2t", "t2i")
MEASURES = {"r1": "R@1", "r5": "R@5", "r10": "R@10", "medr": "med r", "meanr": "mean r"}
SIX = [(direction, at) for direction in DIRECTIONS for at in ("r1", "r5", "r10")]

# Test split, from the papers: name, (i2t R@1, R@5, R@10, t2i R@1, R@5, R@10) where they are known, mR.
PUBLISHED = {
    "rsitmd": [
        ("GaLR", (13.05, 30.09, 42.70, 10.47, 36.34, 53.35), 31.00),
        ("GaLR + rerank", (14.82, 31.64, 42.48, 11.15, 36.68, 51.68), 31.41),
    ],
    "rsicd": [
        ("GaLR", (6.50, 18.91, 29.70, 5.11, 19.57, 31.92), 18.62),
        ("GaLR + rerank", (6.59, 19.85, 31.04, 4.69, 19.48, 32.13), 18.96),
    ],
    "ucm": [
        ("VSE++", None, 36.93),
        ("AMFMN-fusion", (16.67, 45.71, 68.57, 12.86, 53.24, 79.43), 46.08),
        ("CABIR", None, 48.30),
        ("CLIP ViT-B/32, not trained", None, 33.08),
        ("CLIP ViT-B/32, fine-tuned", None, 52.43),
        ("PE-RSITR", None, 55.71),
    ],
    "sydney": [
        ("VSE++", None, 39.27),
        ("AMFMN-sim", None, 51.72),
    ],
}
PUBLISHED_GALLERY = {"rsitmd": (452, 2260), "rsicd": (1093, 5465), "ucm": (210, 1050)}  # images, captions

HEADER = (
    ["", "split", "images", "captions", "chance mR"]
    + [f"{direction} {name}" for direction in DIRECTIONS for name in MEASURES.values()]
    + ["mR"]
)


def summarise(folds: Sequence[dict]) -> tuple[dict, dict]:
    """Mean and sample standard deviation (n - 1) over folds of {"i2t", "t2i", "mr"}, in the same form.

    One fold has no deviation: its values are None. Raises InputError for no folds.
    """
    if not folds:
        raise InputError("there are no folds to summarise")

    def over_folds(statistic) -> dict:
        summary = {d: {at: statistic([fold[d][at] for fold in folds]) for at in MEASURES} for d in DIRECTIONS}
        return {**summary, "mr": statistic([fold["mr"] for fold in folds])}

    return over_folds(lambda x: float(np.mean(x))), over_folds(
        lambda x: float(np.std(x, ddof=1)) if len(x) > 1 else None
    )


def published(dataset: str) -> list[dict]:
    """The published rows of a data set, by its name (rsitmd, rsicd, ucm, sydney; a `_precomp` is dropped)."""
    key = dataset.lower().removesuffix("_precomp")
    images, captions = PUBLISHED_GALLERY.get(key, (None, None))
    rows = []
    for name, recalls, mr in PUBLISHED.get(key, ()):
        row = {"name": f"{name} (published)", "split": "test", "images": images, "captions": captions, "mr": mr}
        row |= {direction: {} for direction in DIRECTIONS}
        for (direction, at), value in zip(SIX, recalls or (), strict=False):
            row[direction][at] = value
        rows.append(row)
    return rows


def chance_of(images: int, captions: int) -> tuple[dict, dict, float]:
    """The `chance` of a gallery whose captions share the images as evenly as they can."""
    return chance(np.arange(captions) * images // captions, images)


def write_tables(results: dict, folder: str | os.PathLike) -> None:
    """Write results.md, results.csv and results.tex of a `results.json` into the folder."""
    texts = {"md": markdown(results), "csv": comma_separated(results), "tex": latex(results)}
    for suffix, text in texts.items():
        write_text(Path(folder) / f"results.{suffix}", text)


def markdown(results: dict) -> str:
    """The table of a `results.json` as Markdown, with aligned columns, so that it also reads well on a terminal."""
    return _aligned([HEADER, *(_cells(row) for row in _rows(results))])


def comma_separated(results: dict) -> str:
    """The table of a `results.json` as CSV; an unknown number is an empty field."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["name", *HEADER[1:]])
    for row in _rows(results):
        writer.writerow(["" if x is None else round(x, 4) if isinstance(x, float) else x for x in _values(row)])
    return text.getvalue()


def latex(results: dict) -> str:
    """The table of a `results.json` as a LaTeX tabular, which needs no package."""
    lines = [r"\begin{tabular}{l" + "r" * (len(HEADER) - 1) + "}", r"\hline"]
    lines += [" & ".join(map(_escaped, HEADER)) + r" \\", r"\hline"]
    lines += [" & ".join(map(_escaped, _cells(row))) + r" \\" for row in _rows(results)]
    return "\n".join([*lines, r"\hline", r"\end{tabular}"]) + "\n"


def change_table(before: dict, after: dict) -> str:
    """Two scores {"i2t", "t2i", "mr"} side by side, with the change, as Markdown."""
    pairs = [(f"{d} {name}", before[d][at], after[d][at]) for d in DIRECTIONS for at, name in MEASURES.items()]
    pairs.append(("mR", before["mr"], after["mr"]))
    return _aligned(
        [
            ["", "before", "after", "change"],
            *([n, _number(b), _number(a), f"{round(a - b, 2) + 0.0:+.2f}"] for n, b, a in pairs),
        ]
    )


def compare(runs: Sequence[dict]) -> str:
    """The means of several `results.json` under each other, with the deviation of mR over folds, as Markdown."""
    header = ["experiment", "split", "images", "captions", "chance mR", "folds"]
    rows = [header + [f"{direction} {MEASURES[at]}" for direction, at in SIX] + ["mR", "std"]]
    for results in runs:
        *_, mean = (row for row in _rows(results) if row["name"] == "mean")
        gallery = [mean[key] for key in ("split", "images", "captions", "chance")]
        scores = [mean[direction][at] for direction, at in SIX] + [mean["mr"], results["std"]["mr"]]
        cells = [*gallery, len(results["folds"]), *scores]
        rows.append([results["experiment"], *(x if isinstance(x, str) else _number(x) for x in cells)])
    return _aligned(rows)


def main() -> None:
    """Compare runs: a row for each, the mean over its folds and the deviation of mR."""
    parser = Parser(prog="python -m postprocessing.tables", description=main.__doc__)
    parser.add_argument("runs", nargs="+", metavar="checkpoint/EXPERIMENT", help="folders of runs that test.py scored")
    folders = [Path(run) for run in parser.parse_args().runs]
    print(compare([read_json(folder / "results.json", "results", "run test.py first") for folder in folders]), end="")


def _rows(results: dict) -> list[dict]:
    try:
        rows = _fold_rows(results, "")
        if results.get("rerank"):
            rows += _fold_rows(results["rerank"], " + rerank")
        rows += published(results["dataset"])
        for row in rows:
            sizes = row["images"], row["captions"]
            row["chance"] = chance_of(*sizes)[2] if all(isinstance(n, int) and n > 0 for n in sizes) else None
            _values(row)
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"the results are not of the form of results.json ({type(error).__name__}: {error})") from None
    return rows


def _fold_rows(part: dict, suffix: str) -> list[dict]:
    folds = part["folds"]
    rows = [{**fold, "name": f"fold {fold['fold']}{suffix}"} for fold in folds]
    mean, std = (part["mean"], part["std"]) if "mean" in part else summarise(folds)
    gallery = gallery_of(folds)
    rows.append({**gallery, **mean, "name": f"mean{suffix}"})
    if std["mr"] is not None:
        rows.append({**gallery, **std, "name": f"std{suffix}"})
    return rows


def gallery_of(folds: Sequence[dict]) -> dict:
    """The split and the numbers of images and captions that the folds have in common; None where they differ."""
    values = {key: {fold[key] for fold in folds} for key in ("split", "images", "captions")}
    return {key: found.pop() if len(found) == 1 else None for key, found in values.items()}


def _values(row: dict) -> list:
    scores = [row[direction].get(at) for direction in DIRECTIONS for at in MEASURES]
    return [row["name"], row["split"], row["images"], row["captions"], row["chance"], *scores, row["mr"]]


def _cells(row: dict) -> list[str]:
    return [x if isinstance(x, str) else _number(x) for x in _values(row)]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}" if isinstance(value, float) else str(value)


def _aligned(rows: list[list[str]]) -> str:
    widths = [max(3, *map(len, column)) for column in zip(*rows, strict=True)]
    rule = [":" + "-" * (widths[0] - 1), *("-" * (width - 1) + ":" for width in widths[1:])]
    lines = []
    for row in (rows[0], rule, *rows[1:]):
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _escaped(text: str) -> str:
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    return "".join(special.get(c, "\\" + c if c in "&%$#_{}" else c) for c in text)


if __name__ == "__main__":
    run_command(main)
