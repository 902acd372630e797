"""A journal of long work on images: what is done, a line an image, so that a stopped command goes on where it was."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from utils import InputError, read_text, write_text


class Done(NamedTuple):
    """One image that is done: its file, with size in bytes and time stamp in ns as they were, and the result (JSON)."""

    file: str
    stamp: list[int]
    result: Any


class Journal:
    """The results so far of a command with these settings, by image; kept in a file, of which the first line is the
    settings, and which is begun with the first result.

    Raises InputError for the journal of other settings. A line that a crash cut short is taken off.
    """

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        self.path = path
        self._done: dict[str, Done] = {}
        head = json.dumps(settings)
        self._whole: str | None = head + "\n"  # the lines that are whole, to begin with
        if not path.exists():
            return
        whole, _, _ = read_text(path, "journal").rpartition("\n")
        first, *lines = whole.split("\n")
        if first != head:
            raise InputError(f"{path} is from a run with other weights or options; delete it, or choose another --out")
        try:
            self._done = {
                str(key): Done(str(file), list(stamp), result) for key, file, stamp, result in map(json.loads, lines)
            }
        except (ValueError, TypeError):
            raise InputError(f"{path} is damaged; delete it and run again") from None
        self._whole = whole + "\n"

    @property
    def results(self) -> dict[str, Any]:
        """Image -> its result."""
        return {key: done.result for key, done in self._done.items()}

    def has(self, key: str, file: Path) -> bool:
        """Whether the image is done, and its file unchanged since.

        Raises InputError where the journal has it from another file, which is still there.
        """
        done = self._done.get(key)
        if done is None:
            return False
        if Path(done.file) != file.absolute() and Path(done.file).is_file():
            raise InputError(f"images {done.file} and {file} share a name ({key}); rename one, or choose another --out")
        return done.file == str(file.absolute()) and done.stamp == _stamp(file)

    def add(self, entries: Iterable[tuple[str, Path, Any]]) -> None:
        """Note the results of some images: key, file, result."""
        if self._whole is not None:
            write_text(self.path, self._whole)
            self._whole = None
        with self.path.open("a", encoding="utf-8") as journal:
            for key, file, result in entries:
                self._done[key] = Done(str(file.absolute()), _stamp(file), result)
                journal.write(json.dumps([key, *self._done[key]]) + "\n")


def _stamp(file: Path) -> list[int]:
    status = file.stat()
    return [status.st_size, status.st_mtime_ns]
