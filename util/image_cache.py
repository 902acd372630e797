"""The HDF5 cache of decoded images, for `dataset.cache: disk`: built once, resumable, mapped as it is used."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np

from util.images import BadImages, CutShort, Truncated, attempts, check_heads, square, warn_of_cut
from utils import Bar, InputError, atomic, disk_full, flush

STEP = 256  # images between two marks of how far it is
WHOLE, CUT_SHORT = 1, 2  # what `done` says of an image; 0: not decoded yet
DAMAGED = (OSError, KeyError, ValueError, TypeError, AttributeError, RuntimeError)  # what h5py raises on such files


def stamps(paths: Sequence[str]) -> np.ndarray:
    """Size in bytes and time stamp in ns of each file (N, 2); -1 where there is none."""
    found = np.full((len(paths), 2), -1, np.int64)
    for i, path in enumerate(paths):
        if os.path.isfile(path):  # noqa: PTH113 - tens of thousands of files: Path costs more than the look
            status = os.stat(path)  # noqa: PTH116
            found[i] = status.st_size, status.st_mtime_ns
    return found


def cache_is_fresh(cache: Path, paths: Sequence[str], sizes: Sequence[int]) -> bool:
    """Whether the HDF5 cache holds exactly these images at these sizes, unchanged since (bytes and time stamp)."""
    if not _is_of(cache, paths, sizes):
        return False
    with h5py.File(cache) as file:
        return np.array_equal(file["stamp"][:], stamps(paths))


def _is_of(cache: Path, paths: Sequence[str], sizes: Sequence[int]) -> bool:
    """Whether it is a cache of these images at these sizes, as they are or as they were."""
    if not cache.is_file():
        return False
    try:
        with h5py.File(cache) as file:
            return (
                file["path"].asstr()[:].tolist() == list(paths)
                and file["stamp"].shape == (len(paths), 2)
                and (cache.suffix != ".partial" or _can_be_mapped(file["done"], (len(paths),)))
                and all(_can_be_mapped(file[str(size)], (len(paths), size, size, 3)) for size in sizes)
            )
    except DAMAGED:
        return False  # damaged or of another kind: it is built anew


def _can_be_mapped(dataset: h5py.Dataset, shape: tuple[int, ...]) -> bool:
    """Whether it has this shape and lies in its file as one piece of bytes, as `build_cache` leaves it."""
    return dataset.shape == shape and dataset.dtype == np.uint8 and dataset.id.get_offset() is not None


def map_cache(cache: Path, size: int) -> np.ndarray:
    """The images of one size in a fresh cache, (N, size, size, 3), mapped: read from the file as they are used."""
    with h5py.File(cache) as file:
        dataset = file[str(size)]
        return np.memmap(cache, np.uint8, "c", dataset.id.get_offset(), dataset.shape)


def check_cut(cache: Path, paths: Sequence[str], truncated: Truncated) -> None:
    """Warn of files that were cut short when they came into the cache. Raises BadImages for them without `allow`."""
    with h5py.File(cache) as file:
        done = file["done"][:] if "done" in file else np.full(len(paths), WHOLE)
    cut = [paths[i] for i in np.flatnonzero(done == CUT_SHORT)]
    if cut and truncated == "error":
        raise BadImages({path: CutShort(path) for path in cut}, len(paths))
    warn_of_cut(cut, len(paths))


def build_cache(
    cache: Path, paths: Sequence[str], sizes: Sequence[int], workers: int, truncated: Truncated = "error"
) -> None:
    """Write the decoded images at each size to an HDF5 file, which takes its name when it is complete.

    Until then `.NAME.partial` beside it keeps what is done: after a stop, or when images have been mended, it goes on
    from there. Raises BadImages: at once for files that are no images, and for damaged ones when all others are done.
    """
    partial = cache.with_name(f".{cache.name}.partial")
    check_heads(paths, workers)
    if not _is_of(partial, paths, sizes):
        _lay_out(partial, paths, sizes)
    file = os.open(partial, os.O_RDWR)
    try:
        faults = _fill(file, partial, paths, sizes, workers, truncated)
    except OSError as error:
        if disk_full(error):
            error.filename = str(partial)
        raise
    finally:
        os.close(file)
    if faults:
        raise BadImages(faults, len(paths))
    partial.replace(cache)


def _lay_out(partial: Path, paths: Sequence[str], sizes: Sequence[int]) -> None:
    """An HDF5 file with room for all images, each size one piece of bytes."""
    early = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    early.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    early.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    with atomic(partial) as temporary, h5py.File(temporary, "w") as file:
        file["path"] = [str(path) for path in paths]
        file["stamp"] = np.full((len(paths), 2), -1, np.int64)
        file["done"] = np.zeros(len(paths), np.uint8)
        for size in sizes:
            space = h5py.h5s.create_simple((len(paths), size, size, 3))
            h5py.h5d.create(file.id, str(size).encode(), h5py.h5t.NATIVE_UINT8, space, early)


def _fill(
    file: int, partial: Path, paths: Sequence[str], sizes: Sequence[int], workers: int, truncated: Truncated
) -> dict[str, InputError]:
    """Decode what is not done into its places -> path and fault of the images that cannot be."""
    now = stamps(paths)
    with h5py.File(partial) as layout:
        before, done = layout["stamp"][:], layout["done"][:]
        place = {name: layout[name].id.get_offset() for name in ("stamp", "done", *map(str, sizes))}
    done[(before != now).any(axis=1) | ((done == CUT_SHORT) & (truncated == "error"))] = 0
    todo, faults = np.flatnonzero(done == 0), {}
    with Bar(total=len(paths), initial=len(paths) - len(todo), desc="caching", unit="image") as bar:
        for rows in np.array_split(todo, range(STEP, len(todo), STEP)):
            chosen = [paths[row] for row in rows]
            squares = attempts(chosen, lambda image: [square(image, size) for size in sizes], workers, truncated)
            for row, one in zip(rows.tolist(), squares, strict=True):
                bar.update()
                if one.fault:
                    faults[one.path] = one.fault
                    continue
                for size, pixels in zip(sizes, one.result, strict=True):
                    _write(file, pixels, place[str(size)] + row * pixels.nbytes)
                done[row] = CUT_SHORT if one.cut_short else WHOLE
            flush(partial, os.O_RDWR)  # the pixels, before it is said that they are there
            _write(file, now, place["stamp"])
            _write(file, done, place["done"])
    return faults


def _write(file: int, array: np.ndarray, place: int) -> None:
    left = memoryview(np.ascontiguousarray(array)).cast("B")
    while left:
        written = os.pwrite(file, left, place)
        left, place = left[written:], place + written
