"""Do long work on images, and keep the result of each in a file, so that a stopped command skips what is there."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NoReturn

from util.images import BadImages, Truncated, find_damaged
from utils import Bar, InputError, Interrupted, read_as, read_json, write_json, write_text

SETTINGS = ".settings.json"
Kept = tuple[str, list[int], Any]  # image file, its size and time stamp, result


def work_through(
    folder: Path,
    settings: dict[str, Any],
    images: dict[str, Path],
    work: Callable[[list[Path]], Iterable[Any]],
    workers: int,
    truncated: Truncated,
) -> tuple[dict[str, Any], InputError | None]:
    """Return the results that `folder` holds, by key, after adding those of `images` (key -> path) that it lacks.

    `work` gives the results of some paths, one by one. Returns besides the error that names damaged images, for the
    caller to raise when the others are done. Raises InputError for a folder of other settings, for a key that belongs
    to another image, and for files that are no images; Interrupted after a signal.
    """
    mark, settings = folder / SETTINGS, json.loads(json.dumps(settings))
    if mark.exists() and read_json(mark, "settings") != settings:
        raise InputError(f"{folder} is from a run with other weights or options; delete it, or give another --out")
    left = {path: key for key, path in images.items() if not _is_done(folder / f"{key}.json", path)}
    faults = find_damaged(list(map(str, left)), workers, truncated)
    good = [path for path in left if str(path) not in faults]
    if good:
        write_json(mark, settings)
    signal.signal(signal.SIGTERM, _stop)
    for path, result in zip(good, Bar(work(good), "working", len(good), unit="image"), strict=True):
        write_text(folder / f"{left[path]}.json", json.dumps([*_file_and_stamp(path), result]))
    kept = sorted(path for path in folder.rglob("*.json") if path != mark)
    results = {str(path.relative_to(folder))[:-5]: read_as(Kept, path, "result")[2] for path in kept}
    if not faults:
        return results, None
    advice = "the results of the others are kept: mend these, and run the same command again"
    return results, InputError(f"{BadImages(faults, len(images))}; {advice}")


def _stop(signum: int, _: Any) -> NoReturn:
    raise Interrupted(signum, "stopped; run the same command again")


def _is_done(result: Path, image: Path) -> bool:
    """Return True if the image has a result and has not changed since. Raise InputError for another image's result."""
    if not result.exists():
        return False
    file, stamp, _ = read_as(Kept, result, "result")
    if Path(file) != image.absolute() and Path(file).is_file():
        raise InputError(f"images {file} and {image} share a name; rename one, or give another --out")
    return (file, stamp) == _file_and_stamp(image)


def _file_and_stamp(image: Path) -> tuple[str, list[int]]:
    status = image.stat()
    return str(image.absolute()), [status.st_size, status.st_mtime_ns]
