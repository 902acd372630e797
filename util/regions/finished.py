"""Keep the results of long work on images, one file per image, so that a stopped command skips what is there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from utils import InputError, read_as, read_json, write_json, write_text

SETTINGS = ".settings.json"
Kept = tuple[str, list[int], Any]  # image file, its size and time stamp, result


class Finished:
    """Keep results in a folder, under a key per image. Raise InputError for a folder of other settings."""

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        self.folder, self.settings = folder, settings
        mark = folder / SETTINGS
        if mark.exists() and read_json(mark, "settings") != json.loads(json.dumps(settings)):
            raise InputError(f"{folder} is from a run with other weights or options; delete it, or give another --out")

    def has(self, key: str, image: Path) -> bool:
        """Return True if the image has a result and has not changed since. Raise InputError for another image's key."""
        path = self.folder / f"{key}.json"
        if not path.exists():
            return False
        file, stamp, _ = read_as(Kept, path, "result")
        if Path(file) != image.absolute() and Path(file).is_file():
            raise InputError(f"images {file} and {image} share a name ({key}); rename one, or give another --out")
        return (file, stamp) == _file_and_stamp(image)

    def add(self, key: str, image: Path, result: Any) -> None:
        if not (self.folder / SETTINGS).exists():
            write_json(self.folder / SETTINGS, self.settings)
        write_text(self.folder / f"{key}.json", json.dumps([*_file_and_stamp(image), result]))

    def results(self) -> dict[str, Any]:
        """Return key -> result of all images, sorted by key."""
        paths = sorted(path for path in self.folder.rglob("*.json") if path.name != SETTINGS)
        return {str(path.relative_to(self.folder))[:-5]: read_as(Kept, path, "result")[2] for path in paths}


def _file_and_stamp(image: Path) -> tuple[str, list[int]]:
    status = image.stat()
    return str(image.absolute()), [status.st_size, status.st_mtime_ns]
