"""Which images and captions make the batches of an epoch, and which of them belong together."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from option.options import Dataset


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
