"""Time the multivariate rerank at RSICD's size: 1093 images, 5465 captions, k = 30, both directions."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from bench import Case, figures, rounds
from postprocessing.rerank import multivariate
from tests.reference import plain_multivariate
from utils import RunError

SETTING = {"k": 30, "w_similarity": 0.3, "w_reverse": 1.1}
IMAGES, PER_IMAGE = 1093, 5


def similarities(images: int) -> np.ndarray:
    """Return a matrix like that of a trained model: each caption leans to its image, cosines around 0.3."""
    rng = np.random.default_rng(0)
    image = rng.standard_normal((images, 64), np.float32)
    caption = np.repeat(image, PER_IMAGE, axis=0) + 2.5 * rng.standard_normal((images * PER_IMAGE, 64), np.float32)
    image /= np.linalg.norm(image, axis=1, keepdims=True)
    caption /= np.linalg.norm(caption, axis=1, keepdims=True)
    return 0.3 + 0.4 * (image @ caption.T)


def both_directions(rerank: Callable[..., np.ndarray], images: int) -> Callable[[], tuple[np.ndarray, ...]]:
    """Return the rerank of a made-up matrix by one of the two implementations."""
    sims = similarities(images)
    sides = sims, np.ascontiguousarray(sims.T)
    return lambda: tuple(rerank(side, **SETTING) for side in sides)


def cases(device: torch.device | None = None, repeats: int = 3, images: int = IMAGES) -> dict[str, Case]:
    """Return seconds on the processor, whatever the device. Raises RunError if the two sides do not agree."""
    sides = [(both_directions, rerank, images) for rerank in (multivariate, plain_multivariate)]
    ours, plain = rounds("rerank", repeats, *sides)
    for one, other in zip(ours[-1].answer, plain[-1].answer, strict=True):
        # equal float32 similarities, whose order the plain sort leaves open, may swap a candidate here and there
        differ = (np.abs(one - other) > 1e-5) & (other != 0)
        if differ.sum() > 1e-3 * np.count_nonzero(other):
            raise RunError(f"{differ.sum()} reranked candidates differ from the baseline's")
    return {"rsicd": figures(*([run.seconds for run in runs] for runs in (ours, plain)), peak=ours[-1].peak_mib)}
