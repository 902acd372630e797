"""Query bank normalisation: hubs taken out of similarities by the train list (Bogolin et al., CVPR 2022).

    s'_ij = s_ij / t  -  log mean over b of exp(s_ib / t)  -  log mean over a of exp(s_aj / t)

for image i and caption j of a split, captions b and images a of the bank, at a temperature t. Some images are close to
every caption, and stand among the first answers of too many; the middle term takes that off. It is one number for each
image, and so changes nothing in the order of captions, for which the last term does the same.

It is ours to offer, no part of GaLR. Unlike rerank and balance it looks at no other query of the split: a system that
answers single questions knows its train list and its gallery beforehand.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from engine import SIMILARITY_BLOCK, Captions
from layers.model import Model

TEMPERATURE = 0.14  # chosen on validation (docs/RERANK.md)

Vectors = tuple[Tensor, Captions]  # of a split: its images (N, D), and its captions


class Hubness(NamedTuple):
    """How close the images of a split are to all captions of a bank (N,), and its captions to all images (M,).

    The log of the mean of exp(s / temperature), float64.
    """

    of_images: np.ndarray
    of_captions: np.ndarray
    temperature: float


@torch.no_grad()
def hubness(model: Model, split: Vectors, bank: Vectors, temperature: float = TEMPERATURE) -> Hubness:
    """The hubness of a split. Of captions that are equal the bank counts one."""
    (images, captions), (bank_images, bank_captions) = split, bank
    of_images = [
        _log_mean_exp(model.similarity(rows, bank_captions.vectors), temperature, dim=1)
        for rows in _parts(images, len(bank_captions.vectors))
    ]
    of_captions = [
        _log_mean_exp(model.similarity(bank_images, rows), temperature, dim=0)
        for rows in _parts(captions.vectors, len(bank_images))
    ]
    of_images, of_captions = (torch.cat(parts).cpu().numpy() for parts in (of_images, of_captions))
    return Hubness(of_images, of_captions[captions.place], temperature)


def normalised(sims: np.ndarray, found: Hubness) -> np.ndarray:
    """s' of the similarities (N, M) of a split, in their precision. Equal captions keep equal columns."""
    scaled = sims.astype(np.float64) / found.temperature
    return (scaled - found.of_images[:, None] - found.of_captions).astype(sims.dtype)


def _parts(vectors: Tensor, others: int) -> tuple[Tensor, ...]:
    return vectors.split(max(1, SIMILARITY_BLOCK // others))


def _log_mean_exp(sims: Tensor, temperature: float, dim: int) -> Tensor:
    return (sims.double() / temperature).logsumexp(dim) - math.log(sims.shape[dim])
