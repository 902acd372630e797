"""Lists -> split -> folds -> data -> batches.

Training sees pairs of a caption and its image; evaluation sees each image once and each caption once. Every random
choice is drawn from its seed, fold, epoch and step: a resumed run draws what an uninterrupted one does.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from layers.distributed import Shard, own_share, shards_of, to_device
from layers.loss import Pairs
from option.options import Dataset, KFold, Options
from util.lists import note_validation_list, read_names, read_pairs, safe_paths, validation_names, warn_of_shared_images
from util.model_folder import split_file
from util.pixels import Pixels, open_pixels, training_size
from util.regions.local_features import load_local
from util.transforms import augment, draw_augmentation, normalise
from utils import InputError, read_json, some
from vocab import encode_captions

logger = logging.getLogger("galr")

# ---------------------------------------------------------------- splits and folds


class Split(NamedTuple):
    """Image names, each once; captions; and the row of each caption's image."""

    images: list[str]
    captions: list[str]
    image_of_caption: np.ndarray


def read_split(data_path: str | os.PathLike, split: str) -> Split:
    """Read the lists of `train` or `test`; the image of each caption follows from the two counts.

    Drop blank captions with one warning, and of `train` images that have no other; those of `test` stay in the
    gallery. Warn of test images that are in the train list. Raise InputError where the counts do not fit.
    """
    captions, names = read_pairs(data_path, split)
    if split == "test":
        warn_of_shared_images(data_path)
    each = len(captions) // len(names)
    kept = [i for i, caption in enumerate(captions) if caption]
    row: dict[str, int] = {}
    if split == "test":  # in the gallery, with captions or without
        row = {name: i for i, name in enumerate(dict.fromkeys(names))}
    image_of_caption = np.array([row.setdefault(names[i // each], len(row)) for i in kept], np.int64)
    if blank := len(captions) - len(kept):
        lost = len(set(names)) - len(row)
        with_them = f", and {lost} images with them" if split == "train" else "; their images stay in the gallery"
        logger.warning(f"{data_path}: {blank} blank captions of the {split} list dropped{with_them}")
    return Split(list(row), [captions[i] for i in kept], image_of_caption)


def subset(split: Split, images: np.ndarray) -> Split:
    """Return the split of some of its images (rows, in this order), with their captions in the old order.

    >>> subset(Split(["a", "b"], ["a boat", "two boats", "a road"], np.array([0, 0, 1])), np.array([1])).captions
    ['a road']
    """
    new_row = np.full(len(split.images), -1)
    new_row[images] = np.arange(len(images))
    rows = new_row[split.image_of_caption]
    kept = np.flatnonzero(rows >= 0)
    return Split([split.images[i] for i in images], [split.captions[i] for i in kept], rows[kept])


class Fold(NamedTuple):
    """A fold of a run: its number, its folder, its two splits."""

    number: int
    folder: Path
    train: Split
    val: Split

    @property
    def names(self) -> dict[str, list[str]]:
        """Return the names of the images that train and validate, as split.json holds them."""
        return {"train": self.train.images, "val": self.val.images}


def make_folds(options: Options, only: int | None) -> list[Fold]:
    """Build the folds to train. Raise InputError where a list is wrong or a fold would be empty.

    Warn of images of the test list that are in the train list.
    """
    k_fold, dataset = options.k_fold, options.dataset
    if only is not None and not 0 <= only < k_fold.nums:
        raise InputError(f"--fold {only}: k_fold.nums is {k_fold.nums}, so folds go from 0 to {k_fold.nums - 1}")
    split = read_split(dataset.data_path, "train")
    warn_of_shared_images(dataset.data_path)
    if not dataset.val_list:
        note_validation_list(dataset.data_path)
    folds = []
    for number in range(k_fold.current_num, k_fold.nums) if only is None else [only]:
        listed = listed_rows(split, dataset, number) if dataset.val_list else None
        train, val = (subset(split, rows) for rows in listed or fold_rows(len(split.images), k_fold, number))
        folds.append(Fold(number, options.run_folder / str(number), train, val))
    return folds


def fold_rows(images: int, k_fold: KFold, fold: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw the rows of the train and of the validation images of a fold, each in rising order.

    `shuffle`: an independent shuffle for each fold, as released; `disjoint`: real folds, which share no image.
    Raise InputError where either part is empty.

    >>> train, val = fold_rows(5, KFold(experiment_name="x"), 0)
    >>> train.tolist(), val.tolist()
    ([0, 1, 3, 4], [2])
    """
    shuffle = k_fold.mode == "shuffle"
    order = np.random.default_rng([k_fold.seed, fold] if shuffle else k_fold.seed).permutation(images)
    held_out = order[: round(images * k_fold.val_fraction)] if shuffle else np.array_split(order, k_fold.nums)[fold]
    empty = f"fold {fold} of {images} train images leaves no {{}} image; change k_fold.val_fraction or k_fold.nums"
    return both_parts(np.isin(np.arange(images), held_out), empty)


def listed_rows(split: Split, options: Dataset, fold: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows of the train images and of the validation images that `dataset.val_list` names.

    Raise InputError for names that are not in the train list, and where either part is empty.
    """
    path = options.val_list.replace("{fold}", str(fold))
    named = validation_names(Path(path), read_names(options.data_path, "train"))
    chosen = np.isin(split.images, named)  # without those whose captions are all blank
    return both_parts(chosen, f"dataset.val_list {path} leaves no {{}} image")


def both_parts(validation: np.ndarray, empty: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows that are not chosen, and those that are. Raise InputError where either are none."""
    if validation.all() or not validation.any():
        raise InputError(empty.replace("{}", "train" if validation.all() else "validation"))
    return np.flatnonzero(~validation), np.flatnonzero(validation)


def validation_split(folder: Path, options: Options, part: str = "val") -> Split:
    """Return the images of a fold that validate, or `train`, by its split.json. Raise InputError if there are none."""
    path = split_file(folder)
    tree = read_json(path, "split", "a published checkpoint has none: use --split test")
    names = tree.get(part) if isinstance(tree, dict) else None
    if not isinstance(names, list) or not names:
        raise InputError(f"split {path}: no list '{part}' of image names")
    split = read_split(options.dataset.data_path, "train")
    row = {name: i for i, name in enumerate(split.images)}
    if absent := [str(name) for name in names if not isinstance(name, str) or name not in row]:
        raise InputError(f"{len(absent)} images of the fold's split.json are not in the train list: {some(absent)}")
    return subset(split, np.array([row[name] for name in names]))


# ---------------------------------------------------------------- data


class Data(NamedTuple):
    """A split of N images and M captions, ready for batches.

    pixels: gives the images by rows; local_rep, local_adj: (N, 20, 20); token_ids: (M, T), 0 = padding, on the device
    of the batches; lengths: (M,) in words, on the CPU; same: equal captions.
    """

    split: Split
    paths: list[str]
    pixels: Pixels
    local_rep: np.ndarray
    local_adj: np.ndarray
    token_ids: Tensor
    lengths: Tensor
    same: SameCaptions

    def local_features(self, rows: np.ndarray) -> Iterator[Tensor]:
        """Return local_rep and local_adj (B, 20, 20) of some images, on the device."""
        return (
            to_device(torch.from_numpy(part[rows]), self.token_ids.device) for part in (self.local_rep, self.local_adj)
        )


class SameCaptions:
    """Captions of the same tokens, which nothing tells apart and the data sets repeat: they share a `code` (M,)."""

    def __init__(self, token_ids: np.ndarray, image_of_caption: np.ndarray) -> None:
        numbers: dict[bytes, int] = {}
        self.code = np.array([numbers.setdefault(ids.tobytes(), len(numbers)) for ids in token_ids])
        codes_of = by_image(self.code, image_of_caption)
        self.codes_of_image = np.full((len(codes_of), max(map(len, codes_of))), -1)
        for codes, own in zip(self.codes_of_image, codes_of, strict=True):
            codes[: len(own)] = own

    def positive(self, images: np.ndarray, captions: np.ndarray) -> np.ndarray:
        """Return (B, M) bool for rows of images (B,) and captions (M,): True where the image has such a caption."""
        return (self.codes_of_image[images][:, :, None] == self.code[captions]).any(axis=1)


def by_image(captions: np.ndarray, image_of_caption: np.ndarray) -> list[np.ndarray]:
    """Group captions (M,) by their images, in their order."""
    return np.split(captions[np.argsort(image_of_caption, kind="stable")], np.bincount(image_of_caption).cumsum()[:-1])


def load_data(split: Split, options: Options, words: Sequence[str], device: torch.device, training: bool) -> Data:
    """Read what a split needs and check all of it: local features, tokens and every image.

    Images are resized to `image_size`, for training to the larger side that rotation and crop start from.
    Raise InputError that counts and names what is missing or damaged.
    """
    paths = safe_paths(options.dataset.image_path, split.images)
    local_features = load_local(options.local_path, split.images)
    token_ids, lengths = encode_captions(split.captions, options, words)
    size = training_size(options.dataset) if training else options.dataset.image_size
    pixels = open_pixels(paths, size, options.dataset, device)
    same = SameCaptions(token_ids.numpy(), split.image_of_caption)
    return Data(split, paths, pixels, *local_features, token_ids.to(device), lengths, same)


# ---------------------------------------------------------------- batches


class Batch(NamedTuple):
    """B images with M captions: images (B, 3, S, S), local features (B, 20, 20), token_ids (M, T); lengths (M,) on the
    CPU; and which of them belong together. Without `dataset.captions_per_image`, M = B pairs.

    Of several processes each has its part of the images and of the captions, and all pairs (layers/distributed.py).
    """

    images: Tensor
    local_rep: Tensor
    local_adj: Tensor
    token_ids: Tensor
    lengths: Tensor
    pairs: Pairs
    of_images: Shard
    of_captions: Shard

    @property
    def inputs(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Return the arguments of the model."""
        return self[:5]


class Rows(NamedTuple):
    """The rows of a batch's images (B,) and captions (M,); the places of each pair's image and caption (P,) in it."""

    images: np.ndarray
    captions: np.ndarray
    image: np.ndarray
    caption: np.ndarray


ORDER, AUGMENT, DROPOUT, WEIGHTS = 1, 2, 3, 4  # purposes of random streams


def random_stream(purpose: int, *place: int) -> np.random.Generator:
    """Return the random stream of a place (seed, fold, epoch, step) in a run: the same place gives the same draws."""
    return np.random.default_rng((purpose, *place))


def epoch_size(data: Data, options: Dataset) -> tuple[int, int]:
    """Return the numbers of batches, of which the last may be smaller, and of pairs in an epoch."""
    samples = len(data.paths) if options.captions_per_image else len(data.lengths)
    captions = np.bincount(data.split.image_of_caption).clip(max=options.captions_per_image or None)
    return -(-samples // options.batch_size), int(captions.sum())


def epoch_rows(data: Data, options: Dataset, rng: np.random.Generator) -> list[Rows]:
    """Draw the batches of an epoch, the last partial one kept: all pairs of caption and image, shuffled, as published.

    With `captions_per_image` K each image comes once, with K of its captions, drawn anew (all, where it has no more):
    it is encoded once, and so are equal captions of the batch.
    """
    size, most, image_of_caption = options.batch_size, options.captions_per_image, data.split.image_of_caption
    shuffled = rng.permutation(len(image_of_caption))
    if not most:
        batches = [shuffled[i : i + size] for i in range(0, len(shuffled), size)]
        return [Rows(image_of_caption[rows], rows, *[np.arange(len(rows))] * 2) for rows in batches]
    captions_of = [captions[:most] for captions in by_image(shuffled, image_of_caption[shuffled])]
    order = rng.permutation(len(captions_of))
    batches = []
    for images in (order[i : i + size] for i in range(0, len(order), size)):
        captions = np.concatenate([captions_of[image] for image in images])
        image = np.repeat(np.arange(len(images)), [len(captions_of[image]) for image in images])
        _, first, caption = np.unique(data.same.code[captions], return_index=True, return_inverse=True)
        batches.append(Rows(images, captions[first], image, caption))
    return batches


def train_batches(data: Data, options: Options, fold: int, epoch: int, first: int = 0) -> Iterator[Batch]:
    """Yield the batches of an epoch from batch `first` on; of several processes, this one's part of each."""
    dataset, device = options.dataset, data.token_ids.device
    rows = epoch_rows(data, dataset, random_stream(ORDER, options.seed, fold, epoch))[first:]
    parts = [shards_of(len(whole.images), len(whole.captions)) for whole in rows]
    own_images = [whole.images[part.rows] for whole, (part, _) in zip(rows, parts, strict=True)]
    batches = zip(rows, parts, own_images, data.pixels.batches(own_images, device), strict=True)
    for step, (whole, (of_images, of_captions), images, (pixels, places)) in enumerate(batches, first):
        rng, kind = random_stream(AUGMENT, options.seed, fold, epoch, step), (dataset.augment, dataset.smallest_crop)
        drawn = draw_augmentation(rng, len(whole.images), dataset.image_size, *kind).part(of_images.rows)
        positive = data.same.positive(whole.images, whole.captions)
        captions = torch.from_numpy(whole.captions)
        lengths = data.lengths[captions]
        yield Batch(
            augment(pixels, places, drawn, dataset.image_size),
            *data.local_features(images),
            data.token_ids[to_device(captions[of_captions.rows], device), : int(lengths.max())],
            lengths[of_captions.rows],
            Pairs(*(to_device(torch.from_numpy(array), device) for array in (whole.image, whole.caption, positive))),
            of_images,
            of_captions._replace(lengths=lengths),
        )


def image_batches(data: Data, size: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield this process's batches, in order: images (B, 3, S, S), local_rep (B, 20, 20), local_adj (B, 20, 20)."""
    rows = [np.arange(i, min(i + size, len(data.paths))) for i in range(0, len(data.paths), size)][own_share()]
    for batch, (pixels, places) in zip(rows, data.pixels.batches(rows, data.token_ids.device), strict=True):
        yield normalise(pixels.index_select(0, places)), *data.local_features(batch)


def caption_batches(token_ids: Tensor, size: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield this process's batches of captions, longest first: rows and lengths (B,), on the CPU, and token_ids."""
    all_lengths = (token_ids != 0).sum(1).cpu()
    for rows in all_lengths.argsort(descending=True, stable=True).split(size)[own_share()]:
        lengths = all_lengths[rows]
        yield rows, token_ids[to_device(rows, token_ids.device), : int(lengths[0])], lengths
