"""The answers to a query: near-duplicates folded, and as text, JSON, CSV and GeoJSON."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from search.store import NOWHERE, Hit, Record


class Answer(NamedTuple):
    """Rank from 1, cosine, what it is, and the near-duplicates under it, best first."""

    rank: int
    score: float
    record: Record
    folded: tuple[Record, ...] = ()

    def __str__(self) -> str:
        more = f" (and {len(self.folded)} alike)" if self.folded else ""
        return f"{self.rank:4d}  {self.score:.4f}  {describe(self.record)}{more}"


def describe(record: Record) -> str:
    """A path, and the window in it if it is one of several."""
    if record.windows == 1:
        return record.path
    return f"{record.path} [rows {record.top}-{record.bottom}, columns {record.left}-{record.right}]"


def fold_duplicates(hits: Sequence[Hit], least: float | None) -> list[Answer]:
    """Answers in order; what has at least the cosine `least` with a better one goes under the best such."""
    kept: list[tuple[Hit, list[Record]]] = []
    for hit in hits:
        alike = None
        if least is not None and kept:
            cosines = np.stack([other.vector for other, _ in kept]) @ hit.vector
            alike = next((i for i, cosine in enumerate(cosines) if cosine >= least), None)
        if alike is None:
            kept.append((hit, []))
        else:
            kept[alike][1].append(hit.record)
    return [Answer(rank, hit.score, hit.record, tuple(under)) for rank, (hit, under) in enumerate(kept, start=1)]


def to_table(answers: Sequence[Answer]) -> list[dict[str, Any]]:
    """For JSON. window: top, bottom, left, right in pixels. place: west, south, east, north in degrees, or null."""
    return [
        {
            "rank": answer.rank,
            "score": round(answer.score, 6),
            "path": answer.record.path,
            "window": list(answer.record[3:7]),
            "place": _place(answer.record),
            "folded": [describe(record) for record in answer.folded],
        }
        for answer in answers
    ]


def to_csv(answers: Sequence[Answer]) -> str:
    """Rank, score, path, window and place, with a head line. Spreadsheets take a path for a formula by its first
    character; a blank before it keeps them from that."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["rank", "score", "path", "top", "bottom", "left", "right", "west", "south", "east", "north"])
    for answer in answers:
        path = answer.record.path
        path = f" {path}" if path[0] in "=+-@\t\r" else path
        writer.writerow(
            [answer.rank, f"{answer.score:.6f}", path, *answer.record[3:7], *(_place(answer.record) or [""] * 4)]
        )
    return text.getvalue()


def to_geojson(answers: Sequence[Answer]) -> dict[str, Any]:
    """A feature for each answer: its bounds (WGS 84), or no geometry where its file does not say where it lies."""
    features = []
    for row, answer in zip(to_table(answers), answers, strict=True):
        place = _place(answer.record)
        geometry = None
        if place:
            west, south, east, north = place
            ring = [[west, south], [east, south], [east, north], [west, north], [west, south]]
            geometry = {"type": "Polygon", "coordinates": [ring]}
        features.append({"type": "Feature", "geometry": geometry, "properties": row})
    return {"type": "FeatureCollection", "features": features}


def _place(record: Record) -> list[float] | None:
    return None if record.west == NOWHERE else [record.west, record.south, record.east, record.north]
