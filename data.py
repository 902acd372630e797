"""Captions, images and local features -> batches; and the k-fold splits.

Training sees (caption, image) pairs; evaluation sees each image once and each caption once. Every random choice is
drawn from the run's seed, the fold, the epoch and the step: a resumed run draws what an uninterrupted one would.
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

import util.images
from layers.distributed import Part, parts_of, send
from layers.loss import Pairs
from option.options import Dataset, KFold, Options
from util.lists import read_names, read_pairs, validation_names, warn_of_shared_images
from util.pixels import Pixels, open_pixels, training_size
from util.regions.local_features import load_local
from util.transforms import augment, draw_augmentation, normalise
from utils import InputError, read_json, some
from vocab import encode_captions

logger = logging.getLogger("galr")

# ---------------------------------------------------------------- splits and folds


class Split(NamedTuple):
    """One split: image names, each once; captions; and the row of each caption's image."""

    images: list[str]
    captions: list[str]
    image_of_caption: np.ndarray


def read_split(data_path: str | os.PathLike, split: str) -> Split:
    """Captions and images of a split; the image of each caption follows from the two counts.

    Blank captions of `train` are dropped, and images that have no other, with one warning; in `test` they stay.
    Warns of test images that are in the train list. Raises InputError where the counts do not fit.
    """
    captions, names = read_pairs(data_path, split)
    if split == "test":
        warn_of_shared_images(data_path)
    each = len(captions) // len(names)
    kept = [i for i, caption in enumerate(captions) if caption or split == "test"]
    row: dict[str, int] = {}
    image_of_caption = np.array([row.setdefault(names[i // each], len(row)) for i in kept], np.int64)
    if blank := len(captions) - len(kept):
        lost = len(set(names)) - len(row)
        logger.warning(
            f"{data_path}: {blank} blank captions of the train list are dropped, and {lost} images with them"
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


def listed_rows(split: Split, options: Dataset, fold: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the train and of the validation images where `dataset.val_list` names the latter, each in rising order.

    Raises InputError for names that are not in the train list, and where either part is empty.
    """
    path = Path(options.val_list.replace("{fold}", str(fold)))
    named = validation_names(path, read_names(options.data_path, "train"))
    chosen = np.isin(split.images, named)  # without those whose captions are all blank
    if chosen.all() or not chosen.any():
        empty = "train" if chosen.all() else "validation"
        raise InputError(f"dataset.val_list {path} leaves no {empty} image")
    return np.flatnonzero(~chosen), np.flatnonzero(chosen)


class Fold(NamedTuple):
    """One fold of a run: its number, its folder, its two splits."""

    number: int
    folder: Path
    train: Split
    val: Split

    @property
    def names(self) -> dict[str, list[str]]:
        """What split.json holds: the names of the images that train and validate."""
        return {"train": self.train.images, "val": self.val.images}


def make_folds(options: Options, only: int | None) -> list[Fold]:
    """The folds to train. Raises InputError where a list is wrong or a fold would be empty.

    Warns of images of the test list that are in the train list.
    """
    k_fold = options.k_fold
    if only is not None and not 0 <= only < k_fold.nums:
        raise InputError(f"--fold {only}: k_fold.nums is {k_fold.nums}, so folds go from 0 to {k_fold.nums - 1}")
    split = read_split(options.dataset.data_path, "train")
    warn_of_shared_images(options.dataset.data_path)
    folds = []
    for number in range(k_fold.current_num, k_fold.nums) if only is None else [only]:
        if options.dataset.val_list:
            train, val = listed_rows(split, options.dataset, number)
        else:
            train, val = fold_rows(len(split.images), k_fold, number)
        pairs = int(np.isin(split.image_of_caption, train).sum())
        samples, kind = (len(train), "images") if options.dataset.captions_per_image else (pairs, "pairs")
        if options.dataset.image_size == 32 and samples % options.dataset.batch_size == 1:  # f4 is one pixel a channel
            raise InputError(
                f"fold {number} of {samples} {kind} ends in a batch of one, of which batch normalisation cannot learn "
                "at dataset.image_size 32; change dataset.batch_size"
            )
        folds.append(Fold(number, options.run_folder / str(number), subset(split, train), subset(split, val)))
    return folds


def validation_split(folder: Path, options: Options, part: str = "val") -> Split:
    """Return the images of a fold that validate, or `train`, by its split.json. Raise InputError if there are none."""
    path = folder / "split.json"
    tree = read_json(path, "split", "a published checkpoint has none: use --split test")
    names = tree.get(part) if isinstance(tree, dict) else None
    if not isinstance(names, list) or not names:
        raise InputError(f"split {path}: no list '{part}' of image names")
    return named_subset(read_split(options.dataset.data_path, "train"), names)


# ---------------------------------------------------------------- one split, ready for the model


class Data(NamedTuple):
    """A split of N images and M captions, ready for batches.

    pixels: what gives the images by rows; local_rep, local_adj: (N, 20, 20); token_ids: (M, T), 0 = padding, on the
    device of the batches; lengths: (M,) in words, image_of_caption: (M,), both on the CPU; same: equal captions.
    """

    split: Split
    paths: list[str]
    pixels: Pixels
    local_rep: np.ndarray
    local_adj: np.ndarray
    token_ids: Tensor
    lengths: Tensor
    image_of_caption: Tensor
    same: SameCaptions


def load_data(split: Split, options: Options, words: Sequence[str], device: torch.device, training: bool) -> Data:
    """Read what a split needs and check all of it: local features, tokens and every image.

    Images are resized to `image_size`, for training to the larger side that rotation and crop start from.
    Raises InputError that counts and names what is missing or damaged.
    """
    paths = util.images.safe_paths(options.dataset.image_path, split.images)
    local_rep, local_adj = load_local(options.local_path, split.images)
    token_ids, lengths = encode_captions(split.captions, options, words)
    size = training_size(options.dataset) if training else options.dataset.image_size
    return Data(
        split,
        paths,
        open_pixels(paths, size, options.dataset, device),
        local_rep,
        local_adj,
        token_ids.to(device),
        lengths,
        torch.from_numpy(split.image_of_caption),
        SameCaptions(token_ids.numpy(), split.image_of_caption),
    )


# ---------------------------------------------------------------- batches


class Batch(NamedTuple):
    """Of training, B images with M captions: images (B, 3, S, S), local features (B, 20, 20), token_ids (M, T); lengths
    (M,) on the CPU; and which of them belong together. Without `dataset.captions_per_image`, M = B pairs.

    Of several processes each has its part of the images and of the captions, and all pairs (layers/distributed.py).
    """

    images: Tensor
    local_rep: Tensor
    local_adj: Tensor
    token_ids: Tensor
    lengths: Tensor
    pairs: Pairs
    of_images: Part
    of_captions: Part

    @property
    def inputs(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """What the model takes."""
        return self[:5]


class Rows(NamedTuple):
    """What a batch is made of: the rows of its images (B,), the rows of its captions (M,), and for each of its pairs
    the place of the image and of the caption in the batch (P,)."""

    images: np.ndarray
    captions: np.ndarray
    image: np.ndarray
    caption: np.ndarray


def epoch_rows(
    image_of_caption: np.ndarray, code: np.ndarray, options: Dataset, rng: np.random.Generator
) -> list[Rows]:
    """The batches of an epoch, the last partial one kept: all pairs of caption and image, shuffled, as published.

    With `captions_per_image` K each image comes once, with K of its captions, drawn anew (all, where it has no more):
    it is encoded once, and so are equal captions of the batch. code (M,): equal for equal captions.
    """
    size, most = options.batch_size, options.captions_per_image
    if not most:
        order = rng.permutation(len(image_of_caption))
        batches = [order[i : i + size] for i in range(0, len(order), size)]
        return [Rows(image_of_caption[rows], rows, np.arange(len(rows)), np.arange(len(rows))) for rows in batches]
    shuffled = rng.permutation(len(image_of_caption))
    captions_of = [captions[:most] for captions in by_image(shuffled, image_of_caption[shuffled])]
    order = rng.permutation(len(captions_of))
    return [_rows(order[i : i + size], captions_of, code) for i in range(0, len(order), size)]


def _rows(images: np.ndarray, captions_of: list[np.ndarray], code: np.ndarray) -> Rows:
    captions = np.concatenate([captions_of[image] for image in images])
    image = np.repeat(np.arange(len(images)), [len(captions_of[image]) for image in images])
    _, first, caption = np.unique(code[captions], return_index=True, return_inverse=True)
    return Rows(images, captions[first], image, caption)


def by_image(captions: np.ndarray, owner: np.ndarray) -> list[np.ndarray]:
    """The captions (M,) of each image, in their order; owner (M,): the image of each."""
    return np.split(captions[np.argsort(owner, kind="stable")], np.bincount(owner).cumsum()[:-1])


class SameCaptions:
    """Which captions have the very same tokens: the data sets repeat many, and nothing tells these apart.

    token_ids (M, T), 0 = padding; image_of_caption (M,).
    """

    def __init__(self, token_ids: np.ndarray, image_of_caption: np.ndarray) -> None:
        numbers: dict[bytes, int] = {}
        self.code = np.array([numbers.setdefault(ids.tobytes(), len(numbers)) for ids in token_ids])
        codes_of = by_image(self.code, image_of_caption)
        self.codes_of_image = np.full((len(codes_of), max(map(len, codes_of))), -1)
        for codes, own in zip(self.codes_of_image, codes_of, strict=True):
            codes[: len(own)] = own

    def positive(self, images: np.ndarray, captions: np.ndarray) -> np.ndarray:
        """Rows of images (B,) and of captions (M,) -> (B, M) bool: whether the image has a caption of these tokens."""
        return (self.codes_of_image[images][:, :, None] == self.code[captions]).any(axis=1)


ORDER, AUGMENT, DROPOUT, WEIGHTS = 1, 2, 3, 4  # what a random stream is for


def random_stream(purpose: int, *place: int) -> np.random.Generator:
    """The random stream of a place (seed, fold, epoch, step) in a run: the same place gives the same draws."""
    return np.random.default_rng((purpose, *place))


def batch_count(data: Data, options: Dataset) -> int:
    """Batches in an epoch; the last may be smaller."""
    samples = len(data.paths) if options.captions_per_image else len(data.lengths)
    return -(-samples // options.batch_size)


def pair_count(data: Data, options: Dataset) -> int:
    """Pairs of a caption and its image in an epoch."""
    counts = np.bincount(data.image_of_caption.numpy())
    return int(counts.clip(max=options.captions_per_image or None).sum())


def train_batches(data: Data, options: Options, fold: int, epoch: int, first: int = 0) -> Iterator[Batch]:
    """The batches of an epoch from batch `first` on; of several processes, this one's part of each."""
    image_size, kind, smallest = options.dataset.image_size, options.dataset.augment, options.dataset.smallest_crop
    owner, same, device = data.image_of_caption.numpy(), data.same, data.token_ids.device
    rows = epoch_rows(owner, same.code, options.dataset, random_stream(ORDER, options.seed, fold, epoch))[first:]
    parts = [parts_of(len(whole.images), len(whole.captions)) for whole in rows]
    image_rows = [whole.images[part.rows] for whole, (part, _) in zip(rows, parts, strict=True)]
    batches = zip(rows, parts, data.pixels.batches(image_rows, device), strict=True)
    for step, ((images, captions, *pairs), (of_images, of_captions), (pixels, places)) in enumerate(batches, first):
        rng = random_stream(AUGMENT, options.seed, fold, epoch, step)
        drawn = draw_augmentation(rng, len(images), image_size, kind, smallest).part(of_images.rows)
        positive = same.positive(images, captions)
        captions = torch.from_numpy(captions)
        lengths = data.lengths[captions]
        yield Batch(
            augment(pixels, places, drawn, image_size),
            *_local_features(data, images[of_images.rows], device),
            data.token_ids[send(captions[of_captions.rows], device), : int(lengths.max())],
            lengths[of_captions.rows],
            Pairs(*(send(torch.from_numpy(array), device) for array in (*pairs, positive))),
            of_images,
            of_captions._replace(lengths=lengths),
        )


ALL = slice(None)


def image_batches(data: Data, size: int, share: slice = ALL) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Each image once, in order: images (B, 3, S, S), local_rep and local_adj (B, 20, 20). share: of the batches."""
    rows = [np.arange(i, min(i + size, len(data.paths))) for i in range(0, len(data.paths), size)][share]
    device = data.token_ids.device
    for batch, (pixels, places) in zip(rows, data.pixels.batches(rows, device), strict=True):
        yield normalise(pixels.index_select(0, places)), *_local_features(data, batch, device)


def _local_features(data: Data, rows: np.ndarray, device: torch.device) -> tuple[Tensor, Tensor]:
    """local_rep and local_adj (B, 20, 20) of some images."""
    rep, adj = (send(torch.from_numpy(part[rows]), device) for part in (data.local_rep, data.local_adj))
    return rep, adj


def caption_batches(token_ids: Tensor, size: int, share: slice = ALL) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """token_ids (M, T), longest first: rows (B,) and lengths (B,), both on the CPU, and token_ids (B, T').

    share: of the batches.
    """
    all_lengths = (token_ids != 0).sum(1).cpu()
    for rows in all_lengths.argsort(descending=True, stable=True).split(size)[share]:
        lengths = all_lengths[rows]
        yield rows, token_ids[rows.to(token_ids.device), : int(lengths[0])], lengths
