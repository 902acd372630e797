"""Narrow a search to a folder, an area, days: what a user gives becomes a filter of Milvus."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date, datetime, time, timedelta
from typing import NamedTuple

from search.store import NOWHERE, quoted
from utils import InputError


class Within(NamedTuple):
    """Narrow a search.

    folder: only paths in it. bbox: only what meets these bounds (west, south, east, north in degrees; west > east where
    they cross the meridian of 180 degrees). since, until: only files with a time stamp from the one, before the other
    (nanoseconds).
    """

    folder: str = ""
    bbox: Sequence[float] | None = None
    since: int | None = None
    until: int | None = None

    def filter(self) -> str:
        """Return the filter as Milvus reads it."""
        conditions = []
        if name := self.folder.strip("/"):
            conditions += [f"path >= {quoted(name + '/')}", f"path < {quoted(name + '0')}"]  # 0 comes after /
        if self.bbox:
            west, south, east, north = map(float, self.bbox)
            east += 360 * (west > east)
            turns = (f"(west <= {east + turn} and east >= {west + turn})" for turn in (-360, 0, 360))
            conditions += [f"({' or '.join(turns)})", f"south <= {north}", f"north >= {south}", f"west < {NOWHERE}"]
        conditions += [f"mtime_ns >= {self.since}"] if self.since is not None else []
        conditions += [f"mtime_ns < {self.until}"] if self.until is not None else []
        return " and ".join(conditions)


def narrowed(folder: str, bbox: Sequence[float | str] | None, since: str, until: str) -> Within:
    """Return what narrows a search, from what a user gives; since, until: days, such as 2024-12-31, the last included.

    Raises InputError for numbers that are no bounds, and for what is no day.
    """
    try:
        west, south, east, north = map(float, bbox or (0, 0, 0, 0))
        if not (-180 <= west <= 180 and -180 <= east <= 180 and -90 <= south <= north <= 90):
            raise ValueError
    except ValueError:
        given = " ".join(map(str, bbox))
        raise InputError(f"bounds must be west, south, east, north in degrees, got {given}") from None
    return Within(folder, bbox or None, _nanoseconds(since), _nanoseconds(until, days=1))


def _nanoseconds(day: str, days: int = 0) -> int | None:
    """Return the time stamp at which a day begins here, or so many days later."""
    try:
        start = datetime.combine(date.fromisoformat(day) + timedelta(days), time()) if day else None
        return start and sorted((-(2**63), int(start.timestamp()) * 10**9, 2**63 - 1))[1]  # as Milvus keeps it
    except (ValueError, OverflowError):
        raise InputError(f"a day must be written as 2024-12-31, got {day}") from None
