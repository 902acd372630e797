"""Time recall and multivariate rerank at RSICD's size: 1093 images, 5465 captions, k = 30, both directions."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable

import numpy as np
import torch

from bench import Case, figures, measured
from postprocessing.recall import image_of_caption, recall
from postprocessing.rerank import multivariate
from tests.reference import plain_multivariate, plain_recall
from utils import RunError

K, W_SIMILARITY, W_REVERSE = 30, 0.3, 1.1
IMAGES, PER_IMAGE = 1093, 5


def similarities(images: int) -> np.ndarray:
    """Return a matrix like that of a trained model: each caption leans to its image, cosines around 0.3."""
    rng = np.random.default_rng(0)
    image = rng.standard_normal((images, 64), np.float32)
    caption = np.repeat(image, PER_IMAGE, axis=0) + 2.5 * rng.standard_normal((images * PER_IMAGE, 64), np.float32)
    image /= np.linalg.norm(image, axis=1, keepdims=True)
    caption /= np.linalg.norm(caption, axis=1, keepdims=True)
    return 0.3 + 0.4 * (image @ caption.T)


def our_rerank(images: int) -> Callable[[], tuple[np.ndarray, ...]]:
    sims = similarities(images)
    return lambda: tuple(multivariate(matrix, K, W_SIMILARITY, W_REVERSE) for matrix in (sims, sims.T))


def baseline_rerank(images: int) -> Callable[[], tuple[np.ndarray, ...]]:
    sims = similarities(images)
    sides = sims, np.ascontiguousarray(sims.T)
    return lambda: tuple(plain_multivariate(matrix, K, W_SIMILARITY, W_REVERSE) for matrix in sides)


def our_recall(images: int) -> Callable[[], tuple]:
    sims = similarities(images)
    caption_to_image = image_of_caption(*sims.shape)
    return lambda: recall(sims, caption_to_image)


def baseline_recall(images: int) -> Callable[[], tuple]:
    sims = similarities(images)
    return lambda: plain_recall(sims, PER_IMAGE)


def _agree_on_rerank(ours: tuple, plain: tuple) -> None:
    for one, other in zip(ours, plain, strict=True):
        # equal float32 similarities, whose order the plain sort leaves open, may swap a candidate here and there
        differ = (np.abs(one - other) > 1e-5) & (other != 0)
        if differ.sum() > 1e-3 * np.count_nonzero(other):
            raise RunError(f"{differ.sum()} reranked candidates differ from the baseline's")


def _agree_on_recall(ours: tuple, plain: tuple) -> None:
    for one, other in zip(tuple(ours)[:2], plain, strict=True):
        if not np.allclose([one["r1"], one["r5"], one["r10"]], other, atol=0.1):
            raise RunError(f"recalls {one} are not the baseline's {other}")


def cases(device: torch.device | None = None, repeats: int = 3, images: int = IMAGES) -> dict[str, Case]:
    """Return seconds on the processor, whatever the device; peak_mib is what NumPy allocates beside the matrix.

    Raises RunError if ours and the baseline do not agree.
    """
    return {
        "rsicd": _compare(our_rerank, baseline_rerank, _agree_on_rerank, images, repeats),
        "rsicd_recall": _compare(our_recall, baseline_recall, _agree_on_recall, images, repeats),
    }


def _compare(ours: Callable, baseline: Callable, agree: Callable, images: int, repeats: int) -> Case:
    turns = [(measured(ours, images), measured(baseline, images)) for _ in range(repeats)]
    for one, other in turns:
        agree(one.answer, other.answer)
    peak = measured(_peak_of, ours, images).answer
    return figures(*([side.seconds for side in sides] for sides in zip(*turns, strict=True)), peak=peak)


def _peak_of(make: Callable, images: int) -> Callable[[], float]:
    work = make(images)

    def peak() -> float:
        tracemalloc.start()
        work()
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most / 2**20

    return peak
