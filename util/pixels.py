"""The decoded images of a data set: in memory, in a file on disk, or decoded anew by loader workers."""

from __future__ import annotations

import logging
import os
import shutil
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from layers.distributed import to_device
from option import load_options
from option.options import Dataset
from util.device import free_memory
from util.images import BadImages, CutShort, check_images, decode, decode_all, load_pixels, square, warn_of_cut
from util.lists import read_names, safe_paths
from util.transforms import resize_size
from utils import (
    InputError,
    Parser,
    RunError,
    atomic,
    check_writable,
    memory_advice,
    one_at_a_time,
    read_json,
    write_json,
)

logger = logging.getLogger("galr")

SHARED = Path("/dev/shm")  # Docker gives it 64 MiB


def training_size(options: Dataset) -> int:
    """Return the side that training images are resized to before they are augmented."""
    return resize_size(options.image_size, options.augment, options.smallest_crop)


def all_paths(options: Dataset) -> list[str]:
    """Return the paths of all images of both lists, or of the only one that is there. Raises InputError."""
    lists = [split for split in ("train", "test") if Path(options.data_path, f"{split}_filename.txt").exists()]
    names = dict.fromkeys(name for split in lists for name in read_names(options.data_path, split))
    return safe_paths(options.image_path, list(names))


def open_pixels(paths: list[str], size: int, options: Dataset, device: torch.device) -> Pixels:
    """Check and decode the images of a split, and keep them as `dataset.cache` says.

    `ram` becomes `disk` where the images take more than half of the memory that is free, for a step needs room too.
    Raises BadImages that names the bad images of both lists, so that they can be mended at once.
    """
    needed, free = 3 * size**2 * len(paths), free_memory(device)
    if options.cache == "ram" and needed > free / 2:
        sizes = f"{len(paths)} images take {needed / 2**20:.0f} MiB of {free / 2**20:.0f} MiB that are free"
        logger.info(f"note: {sizes}, and a step needs room: they stay in a file, as with dataset.cache=disk")
        options = options.model_copy(update={"cache": "disk"})
    if options.cache == "disk":  # which holds both lists
        cache = open_cache(options)
        row = {path: i for i, path in enumerate(cache.paths)}
        return MemoryPixels(torch.from_numpy(cache.pixels(size)), np.array([row[path] for path in paths]))
    try:
        if options.cache == "none":
            for _ in decode_all(paths, lambda _: None, options.workers, options.truncated):
                pass
            return FilePixels(paths, size, options.workers, options.truncated)
        pixels = load_pixels(paths, size, options.workers, options.truncated)
    except BadImages as error:
        others = [path for path in all_paths(options) if path not in set(paths) and Path(path).is_file()]
        faults = error.faults | check_images(others, options.workers, options.truncated)
        raise BadImages(faults, len(paths) + len(others)) from None
    mib = pixels.nbytes / 2**20
    with memory_advice(f"{len(paths)} images ({mib:.0f} MiB) do not fit: set dataset.cache=disk"):
        return MemoryPixels(torch.from_numpy(pixels).to(device))


# ---------------------------------------------------------------- batches of pixels


class MemoryPixels:
    """Hold all images in one tensor (N, R, R, 3), on the training device or mapped from a file.

    places: (n,) rows of the split's images in it; by default all.
    """

    def __init__(self, pixels: Tensor, places: np.ndarray | None = None) -> None:
        self.pixels = pixels
        self.places = torch.arange(len(pixels)) if places is None else torch.from_numpy(places)

    def batches(self, rows: Sequence[np.ndarray], device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield for each array of rows a tensor (N, R, R, 3) uint8 and the rows (B,) of its images, on `device`."""
        places = (self.places[torch.from_numpy(batch)] for batch in rows)
        if self.pixels.device.type == device.type:
            for chosen in places:
                yield self.pixels, to_device(chosen, device)
        else:
            for images in self._gathered(places, pinned=device.type == "cuda"):
                yield _whole(images, device)

    def _gathered(self, places: Iterator[Tensor], pinned: bool) -> Iterator[Tensor]:
        """Yield the images of each batch; a thread reads those of the next one from the file meanwhile."""
        with ThreadPoolExecutor(1) as thread:
            waiting: deque[Future] = deque()
            for chosen in places:
                images = self.pixels.new_empty(len(chosen), *self.pixels.shape[1:], pin_memory=pinned)
                waiting.append(thread.submit(torch.index_select, self.pixels, 0, chosen, out=images))
                if len(waiting) == 2:
                    yield waiting.popleft().result()
            for last in waiting:
                yield last.result()


class FilePixels(torch.utils.data.Dataset):
    """Images decoded anew by loader workers; `batches` yields what those of MemoryPixels do."""

    def __init__(self, paths: list[str], size: int, workers: int, truncated: str = "error") -> None:
        self.paths, self.size, self.workers, self.truncated = paths, size, workers, truncated

    def __getitem__(self, row: int) -> np.ndarray | InputError:
        """Return an image, or the error: raised in a worker, it would arrive as a traceback's text."""
        try:
            return decode(self.paths[row], self.size, self.truncated)
        except InputError as error:
            return error

    def batches(self, rows: Sequence[np.ndarray], device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
        loader = torch.utils.data.DataLoader(
            self,
            batch_sampler=[batch.tolist() for batch in rows],
            num_workers=self.workers,
            collate_fn=_stack,
            pin_memory=device.type == "cuda",
        )
        for batch in loader:
            if isinstance(batch, RunError):
                raise batch
            if isinstance(batch, InputError):
                raise RunError(f"{batch}, though it was in order at the start; mend it and go on with --resume")
            yield _whole(batch, device)


def _whole(pixels: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    return to_device(pixels, device), torch.arange(len(pixels), device=device)


def _stack(images: list[np.ndarray | InputError]) -> Tensor | InputError | RunError:
    """Stack images, in a loader worker in shared memory.

    PyTorch would move them there in a thread, whose error nobody sees: the run would wait for the batch for ever.
    """
    if bad := next((one for one in images if isinstance(one, InputError)), None):
        return bad
    batch = torch.from_numpy(np.stack(images))
    if torch.utils.data.get_worker_info() is None:
        return batch
    try:
        return batch.share_memory_()
    except (RuntimeError, OSError):
        free = f"{shutil.disk_usage(SHARED).free / 2**20:.0f} MiB free" if SHARED.is_dir() else "full"
        return RunError(
            f"the shared memory of loader workers, {SHARED}, is too small ({free}): docker run --shm-size=4g or "
            "--ipc=host, or set dataset.workers=0 or dataset.cache=ram; go on with --resume"
        )


Pixels = MemoryPixels | FilePixels

# ---------------------------------------------------------------- the cache on disk


class DiskCache(NamedTuple):
    """Decoded images in a NumPy file: a row for each image, which holds its pixels at each of the sizes.

    A JSON file beside it records which images the rows hold.
    """

    path: Path
    paths: list[str]
    sizes: tuple[int, ...]

    def record(self) -> dict[str, Any]:
        """Return what must be recorded for the file to be up to date: size and time stamp of each image among it."""
        return {"paths": self.paths, "sizes": list(self.sizes), "stamps": [_stamp(path) for path in self.paths]}

    def cut(self) -> list[str] | None:
        """Return the truncated images in the file; None if it is missing, damaged, or not up to date."""
        try:
            recorded = read_json(self.path.with_suffix(".json"), "record of the image cache")
            cut = recorded.pop("cut")
            return cut if recorded == self.record() and len(self.pixels(self.sizes[0])) else None
        except (InputError, OSError, EOFError, ValueError, KeyError, AttributeError, TypeError):
            return None

    def pixels(self, size: int) -> np.ndarray:
        """Map the images of one size (N, size, size, 3): they are read from the file as they are used."""
        ends = np.cumsum([3 * side**2 for side in self.sizes])
        rows = np.load(self.path, mmap_mode="c", allow_pickle=False)
        if (rows.shape, rows.dtype) != ((len(self.paths), ends[-1]), np.uint8):
            raise ValueError(f"{self.path} holds an array of another kind")
        end = ends[self.sizes.index(size)]
        return rows[:, end - 3 * size**2 : end].reshape(-1, size, size, 3)

    def build(self, workers: int, truncated: str = "error") -> None:
        """Decode all images. Raises BadImages; the file is then as it was."""
        record, cut = self.record(), []
        header = {"descr": "|u1", "fortran_order": False, "shape": (len(self.paths), sum(3 * s**2 for s in self.sizes))}
        rows = decode_all(
            self.paths, lambda image: [square(image, s) for s in self.sizes], workers, truncated, "caching", cut
        )
        with atomic(self.path) as temporary, temporary.open("wb") as file:
            np.lib.format.write_array_header_1_0(file, header)
            for sizes in rows:
                file.writelines(pixels.tobytes() for pixels in sizes)
        write_json(self.path.with_suffix(".json"), record | {"cut": cut})


def _stamp(path: str) -> list[int] | None:
    try:
        status = os.stat(path)  # noqa: PTH116 - tens of thousands of files: Path costs more than the look
    except OSError:
        return None
    return [status.st_size, status.st_mtime_ns]


def open_cache(options: Dataset) -> DiskCache:
    """Return the cache of a data set's images, built if it is not up to date. Raises BadImages."""
    folder, training = Path(options.data_path), training_size(options)
    path = folder / f"images_{options.image_size}_{training}.npy"
    cache = DiskCache(path, all_paths(options), tuple(dict.fromkeys((training, options.image_size))))
    if (cut := cache.cut()) is None:
        check_writable(folder, "no room for the image cache (dataset.cache=none or ram needs none): folder")
        with one_at_a_time(path):  # runs that start together
            if cache.cut() is None:
                cache.build(options.workers, options.truncated)
    elif cut and options.truncated == "error":
        raise BadImages({path: CutShort(path) for path in cut}, len(cache.paths))
    else:
        warn_of_cut(cut, len(cache.paths))
    return cache


def main() -> None:
    parser = Parser(prog="python -m util.cache_images", description="Decode all images of a data set into one file.")
    parser.add_options()
    arguments = parser.parse_args()
    cache = open_cache(load_options(arguments.path_opt, arguments.set).dataset)
    mib = cache.path.stat().st_size / 2**20
    logger.info(f"{cache.path}: {len(cache.paths)} images, {mib:.0f} MiB; use it with dataset.cache: disk")
