"""Captions, images and local features -> batches; and the k-fold splits.

Training sees (caption, image) pairs; evaluation sees each image once and each caption once. Every random choice is
drawn from the run's seed, the fold, the epoch and the step: a resumed run draws what an uninterrupted one would.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

import util.images
import vocab
from option.schema import Dataset, KFold, Options
from util.lists import read_captions, read_names
from util.local_features import load_local
from util.transforms import augment, draw_augmentation, normalise, resize_size
from utils import InputError, RunError, check_writable, one_at_a_time, send, some

# ---------------------------------------------------------------- splits and folds


class Split(NamedTuple):
    """One split: image names, each once; captions; and the row of each caption's image."""

    images: list[str]
    captions: list[str]
    image_of_caption: np.ndarray


def read_split(data_path: str | os.PathLike, split: str) -> Split:
    """Captions and images of a split; the image of each caption follows from the two counts (design section 4).

    Blank captions of `train` are dropped, and images that have no other, with one warning; in `test` they stay.
    Raises InputError where the counts do not fit.
    """
    captions, names = read_captions(data_path, split), read_names(data_path, split)
    if len(captions) % len(names):
        raise InputError(
            f"{data_path}: {len(captions)} captions in {split}_caps.txt do not fit {len(names)} lines in "
            f"{split}_filename.txt; each line needs the same whole number of captions"
        )
    each = len(captions) // len(names)
    kept = [i for i, caption in enumerate(captions) if caption or split == "test"]
    row: dict[str, int] = {}
    image_of_caption = np.array([row.setdefault(names[i // each], len(row)) for i in kept], np.int64)
    if blank := len(captions) - len(kept):
        lost = len(set(names)) - len(row)
        print(
            f"warning: {data_path}: {blank} blank captions of the train list are dropped, and {lost} images with them"
        )
    return Split(list(row), [captions[i] for i in kept], image_of_caption)


def subset(split: Split, images: np.ndarray) -> Split:
    """The split of some of its images (rows, in this order), with their captions in the old order."""
    new_row = np.full(len(split.images), -1)
    new_row[images] = np.arange(len(images))
    kept = np.flatnonzero(new_row[split.image_of_caption] >= 0)
    return Split(
        [split.images[i] for i in images],
        [split.captions[i] for i in kept],
        new_row[split.image_of_caption[kept]],
    )


def named_subset(split: Split, names: Sequence[str]) -> Split:
    """The split of the named images. Raises InputError for names that it lacks."""
    row = {name: i for i, name in enumerate(split.images)}
    absent = [str(name) for name in names if not isinstance(name, str) or name not in row]
    if absent:
        raise InputError(f"{len(absent)} images of the fold's split.json are not in the train list: {some(absent)}")
    return subset(split, np.array([row[name] for name in names]))


def fold_rows(images: int, k_fold: KFold, fold: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the train and of the validation images of a fold, each in rising order.

    `shuffle`: an independent shuffle for each fold, as released; `disjoint`: real folds, which share no image.
    Raises InputError where either is empty.
    """
    if k_fold.mode == "shuffle":
        order = np.random.default_rng([k_fold.seed, fold]).permutation(images)
        held_out = order[: round(images * k_fold.val_fraction)]
    else:
        held_out = np.array_split(np.random.default_rng(k_fold.seed).permutation(images), k_fold.nums)[fold]
    chosen = np.zeros(images, bool)
    chosen[held_out] = True
    if chosen.all() or not chosen.any():
        empty = "train" if chosen.all() else "validation"
        raise InputError(
            f"fold {fold} of {images} train images leaves no {empty} image; change k_fold.val_fraction or k_fold.nums"
        )
    return np.flatnonzero(~chosen), np.flatnonzero(chosen)


# ---------------------------------------------------------------- one split, ready for the model


class Data(NamedTuple):
    """A split of N images and M captions, ready for batches.

    pixels: what gives the images by rows; local_rep, local_adj: (N, 20, 20); token_ids: (M, T), 0 = padding, on the
    device of the batches; lengths: (M,) in words, image_of_caption: (M,), both on the CPU.
    """

    split: Split
    paths: list[str]
    pixels: Pixels
    local_rep: np.ndarray
    local_adj: np.ndarray
    token_ids: Tensor
    lengths: Tensor
    image_of_caption: Tensor


def load_data(split: Split, options: Options, words: Sequence[str], device: torch.device, training: bool) -> Data:
    """Read what a split needs and check all of it: local features, tokens and every image.

    Images are resized to `image_size`, for training to the 278 / 256 of it that rotation and crop start from.
    Raises InputError that counts and names what is missing or damaged.
    """
    paths = util.images.safe_paths(options.dataset.image_path, split.images)
    local_rep, local_adj = load_local(options.dataset.local_path, split.images)
    token_ids, lengths = encode_captions(split.captions, words)
    size = resize_size(options.dataset.image_size) if training else options.dataset.image_size
    return Data(
        split,
        paths,
        open_pixels(paths, size, options.dataset, device),
        local_rep,
        local_adj,
        token_ids.to(device),
        lengths,
        torch.from_numpy(split.image_of_caption),
    )


def encode_captions(captions: Sequence[str], words: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Captions -> token_ids (M, T) with 0 = padding, lengths (M,)."""
    index = vocab.Vocabulary(tuple(words)).index
    known: dict[str, list[int]] = {}  # the data sets repeat many captions
    for caption in captions:
        if caption not in known:
            known[caption] = vocab.encode(caption, index)
    lengths = torch.tensor([len(known[caption]) for caption in captions])
    token_ids = torch.zeros(len(captions), int(lengths.max()), dtype=torch.int64)
    for i, caption in enumerate(captions):
        token_ids[i, : lengths[i]] = torch.tensor(known[caption])
    return token_ids, lengths


# ---------------------------------------------------------------- pixels: in memory, in an HDF5 file, or decoded anew


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
                yield self.pixels, send(places, device)
            else:
                chosen = self.pixels.new_empty(len(batch), *self.pixels.shape[1:], pin_memory=True)
                yield _sent(torch.index_select(self.pixels, 0, places, out=chosen), device)


class FilePixels(Pixels, torch.utils.data.Dataset):
    """Images decoded anew by loader workers."""

    def __init__(self, paths: list[str], size: int, workers: int) -> None:
        self.paths, self.size, self.workers = paths, size, workers

    def __getitem__(self, row: int) -> np.ndarray | InputError:
        """An image, or what keeps it from being one: raised in a worker, it would arrive as a traceback's text."""
        try:
            return util.images.decode(self.paths[row], self.size)
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
    return send(pixels, device), torch.arange(len(pixels), device=device)


def _stack(images: list[np.ndarray | InputError]) -> Tensor | InputError:
    return next((one for one in images if isinstance(one, InputError)), None) or torch.from_numpy(np.stack(images))


def open_pixels(paths: list[str], size: int, options: Dataset, device: torch.device) -> Pixels:
    """The images of a split in the way that `dataset.cache` asks for, every one checked."""
    if options.cache == "ram":
        pixels = util.images.load_pixels(paths, size, options.workers)
        try:
            return MemoryPixels(torch.from_numpy(pixels).to(device))
        except torch.OutOfMemoryError:
            mib = pixels.nbytes / 2**20
            raise RunError(
                f"{len(paths)} images ({mib:.0f} MiB) do not fit the GPU's memory; set dataset.cache=h5"
            ) from None
    if options.cache == "none":
        for _ in util.images.decode_all(paths, size, options.workers, "checking images"):
            pass
        return FilePixels(paths, size, options.workers)
    cache, all_paths = open_cache(options)
    row = {path: i for i, path in enumerate(all_paths)}
    pixels = torch.from_numpy(util.images.map_cache(cache, size))
    return MemoryPixels(pixels, np.array([row[path] for path in paths]))


def open_cache(options: Dataset) -> tuple[Path, list[str]]:
    """The HDF5 cache of a data set's images, built where it is missing or stale -> its path, the paths in its order."""
    names = dict.fromkeys(read_names(options.data_path, "train") + read_names(options.data_path, "test"))
    paths = util.images.safe_paths(options.image_path, list(names))
    sizes = resize_size(options.image_size), options.image_size
    cache = Path(options.data_path) / f"images_{options.image_size}.h5"
    if not util.images.cache_is_fresh(cache, paths, sizes):
        check_writable(cache.parent, "no room for the image cache (dataset.cache=ram or none needs none): folder")
        with one_at_a_time(cache):  # runs that start together
            if not util.images.cache_is_fresh(cache, paths, sizes):
                util.images.build_cache(cache, paths, sizes, options.workers)
    return cache, paths


# ---------------------------------------------------------------- batches


class Batch(NamedTuple):
    """Of training: images (B, 3, S, S), local features (B, 20, 20), token_ids (B, T); lengths (B,) on the CPU."""

    images: Tensor
    local_rep: Tensor
    local_adj: Tensor
    token_ids: Tensor
    lengths: Tensor


ORDER, AUGMENT, DROPOUT, WEIGHTS = 1, 2, 3, 4  # what a random stream is for


def random_stream(purpose: int, *place: int) -> np.random.Generator:
    """The random stream of a place (seed, fold, epoch, step) in a run: the same place gives the same draws."""
    return np.random.default_rng((purpose, *place))


def batch_count(data: Data, batch_size: int) -> int:
    """Batches in an epoch; the last may be smaller."""
    return -(-len(data.lengths) // batch_size)


def train_batches(data: Data, options: Options, fold: int, epoch: int, first: int = 0) -> Iterator[Batch]:
    """The batches of an epoch from batch `first` on: pairs shuffled, the last partial batch kept."""
    size, image_size = options.dataset.batch_size, options.dataset.image_size
    order = random_stream(ORDER, options.seed, fold, epoch).permutation(len(data.lengths))
    caption_rows = [order[i : i + size] for i in range(first * size, len(order), size)]
    image_rows = [data.image_of_caption[captions].numpy() for captions in caption_rows]
    device = data.token_ids.device
    batches = zip(caption_rows, image_rows, data.pixels.batches(image_rows, device), strict=True)
    for step, (captions, rows, (pixels, places)) in enumerate(batches, first):
        drawn = draw_augmentation(random_stream(AUGMENT, options.seed, fold, epoch, step), len(rows), image_size)
        captions = torch.from_numpy(captions)
        lengths = data.lengths[captions]
        yield Batch(
            augment(pixels, places, drawn, image_size),
            *_local_features(data, rows, device),
            data.token_ids[send(captions, device), : int(lengths.max())],
            lengths,
        )


def image_batches(data: Data, size: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Each image once, in order: images (B, 3, S, S), local_rep and local_adj (B, 20, 20)."""
    rows = [np.arange(i, min(i + size, len(data.paths))) for i in range(0, len(data.paths), size)]
    device = data.token_ids.device
    for batch, (pixels, places) in zip(rows, data.pixels.batches(rows, device), strict=True):
        yield normalise(pixels.index_select(0, places)), *_local_features(data, batch, device)


def _local_features(data: Data, rows: np.ndarray, device: torch.device) -> tuple[Tensor, Tensor]:
    """local_rep and local_adj (B, 20, 20) of some images."""
    rep, adj = (send(torch.from_numpy(part[rows]), device) for part in (data.local_rep, data.local_adj))
    return rep, adj


def caption_batches(token_ids: Tensor, size: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """token_ids (M, T), longest first: rows (B,) and lengths (B,), both on the CPU, and token_ids (B, T')."""
    all_lengths = (token_ids != 0).sum(1).cpu()
    for rows in all_lengths.argsort(descending=True, stable=True).split(size):
        lengths = all_lengths[rows]
        yield rows, token_ids[rows.to(token_ids.device), : int(lengths[0])], lengths
