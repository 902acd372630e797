"""The decoded images of a split: in memory, in an HDF5 file, or decoded anew by loader workers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from layers.distributed import to_device
from option.options import Dataset
from util import image_cache
from util.images import BadImages, Truncated, check_images, decode, decode_all, load_pixels, safe_paths
from util.lists import read_names
from util.transforms import resize_size
from utils import InputError, RunError, check_writable, one_at_a_time


class Pixels:
    """Decoded images by row.

    `batches` gives, for each array of rows, a tensor (N, R, R, 3) uint8 and the places (B,) of the rows' images in it:
    both on `device`.
    """

    def batches(self, rows: Sequence[np.ndarray], device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
        raise NotImplementedError


class MemoryPixels(Pixels):
    """All images in one tensor (N, R, R, 3): on the training device, or mapped from the HDF5 cache.

    places: (n,) rows of the split's images in it; by default all.
    """

    def __init__(self, pixels: Tensor, places: np.ndarray | None = None) -> None:
        self.pixels = pixels
        self.places = torch.arange(len(pixels)) if places is None else torch.from_numpy(places)

    def batches(self, rows: Sequence[np.ndarray], device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in rows:
            places = self.places[torch.from_numpy(batch)]
            if self.pixels.device.type == device.type:
                yield self.pixels, to_device(places, device)
            else:
                chosen = self.pixels.new_empty(len(batch), *self.pixels.shape[1:], pin_memory=True)
                yield _sent(torch.index_select(self.pixels, 0, places, out=chosen), device)


class FilePixels(Pixels, torch.utils.data.Dataset):
    """Images decoded anew by loader workers."""

    def __init__(self, paths: list[str], size: int, workers: int, truncated: Truncated = "error") -> None:
        self.paths, self.size, self.workers, self.truncated = paths, size, workers, truncated

    def __getitem__(self, row: int) -> np.ndarray | InputError:
        """An image, or what keeps it from being one: raised in a worker, it would arrive as a traceback's text."""
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
            if isinstance(batch, InputError):
                raise RunError(f"{batch}, though it was in order at the start; mend it and go on with --resume")
            yield _sent(batch, device)


def _sent(pixels: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """A batch of pixels on the device, and its places in it: all."""
    return to_device(pixels, device), torch.arange(len(pixels), device=device)


def _stack(images: list[np.ndarray | InputError]) -> Tensor | InputError:
    return next((one for one in images if isinstance(one, InputError)), None) or torch.from_numpy(np.stack(images))


def open_pixels(paths: list[str], size: int, options: Dataset, device: torch.device) -> Pixels:
    """The images of a split in the way that `dataset.cache` asks for, every one checked.

    Raises BadImages for those that cannot be decoded, of both lists, so that they can be mended at once.
    """
    try:
        return _open(paths, size, options, device)
    except BadImages as error:
        if options.cache == "disk":  # which is of all
            raise
        others = [path for path in all_paths(options) if path not in set(paths) and Path(path).is_file()]
        faults = error.faults | check_images(others, options.workers, options.truncated)
        raise BadImages(faults, len(paths) + len(others)) from None


def _open(paths: list[str], size: int, options: Dataset, device: torch.device) -> Pixels:
    if options.cache == "ram":
        pixels = load_pixels(paths, size, options.workers, truncated=options.truncated)
        try:
            return MemoryPixels(torch.from_numpy(pixels).to(device))
        except torch.OutOfMemoryError:
            mib = pixels.nbytes / 2**20
            raise RunError(
                f"{len(paths)} images ({mib:.0f} MiB) do not fit the GPU's memory; set dataset.cache=disk"
            ) from None
    if options.cache == "none":
        for _ in decode_all(paths, size, options.workers, "checking images", options.truncated):
            pass
        return FilePixels(paths, size, options.workers, options.truncated)
    cache, cached = open_cache(options)
    row = {path: i for i, path in enumerate(cached)}
    pixels = torch.from_numpy(image_cache.map_cache(cache, size))
    return MemoryPixels(pixels, np.array([row[path] for path in paths]))


def training_size(options: Dataset) -> int:
    """The side that training images are resized to before they are cropped."""
    return resize_size(options.image_size, options.augment, options.smallest_crop)


def all_paths(options: Dataset) -> list[str]:
    """The paths of all images of both lists. Raises InputError."""
    names = dict.fromkeys(read_names(options.data_path, "train") + read_names(options.data_path, "test"))
    return safe_paths(options.image_path, list(names))


def open_cache(options: Dataset) -> tuple[Path, list[str]]:
    """The HDF5 cache of a data set's images, built where it is missing or stale -> its path, the paths in its order."""
    paths = all_paths(options)
    sizes = training_size(options), options.image_size
    of_crops = f"_{sizes[0]}" if options.augment == "crops" else ""
    cache = Path(options.data_path) / f"images_{options.image_size}{of_crops}.h5"
    if not image_cache.cache_is_fresh(cache, paths, sizes):
        check_writable(cache.parent, "no room for the image cache (dataset.cache=ram or none needs none): folder")
        with one_at_a_time(cache):  # runs that start together
            if not image_cache.cache_is_fresh(cache, paths, sizes):
                image_cache.build_cache(cache, paths, sizes, options.workers, options.truncated)
    image_cache.check_cut(cache, paths, options.truncated)
    return cache, paths
