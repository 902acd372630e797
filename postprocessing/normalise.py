"""Query bank normalisation: remove hubs from a similarity matrix by the train list. Arrays in, arrays out.

Some images are similar to every caption and appear among the first answers of too many queries. The train list (the
bank) shows which. For image i and caption j of a split, at temperature t:

    h_i = log sum over the bank's captions b of exp(s_ib / t)        g_j = log sum over its images a of exp(s_aj / t)

`static` is an inverted softmax (Smith et al. 2017), ours to offer: s_ij / t - h_i - g_j for all pairs. Equal captions
and equal images of the bank count once, and the sums are means.

`dynamic` is QB-Norm as published (Bogolin et al., CVPR 2022): a caption's images are ordered by s_ij / t - h_i only if
its first answer is the first answer of a caption of the bank too (the activation set), else by s_ij; the captions of an
image alike by g_j. The sums go over all captions and images of the bank. Each direction has a matrix of its own.

Both look at no other query of the split, but at its whole gallery: the images and captions that may be answers.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from postprocessing.recall import Standings, blocks, standings

STATIC_TEMPERATURE = 0.14  # chosen on validation (docs/RERANK.md)
DYNAMIC_TEMPERATURE = 0.07  # chosen on validation of the demo (docs/RERANK.md); as published 0.05: beta 20
GRID = (0.5, 0.2, 0.14, 0.1, 0.07, 0.05, 0.033, 0.02)


class Bank(NamedTuple):
    """Similarities of a split (N images, M captions) with a bank of U distinct captions and V distinct images."""

    to_captions: np.ndarray  # (N, U): the split's images with the bank's captions
    caption_counts: np.ndarray  # (U,): how often the bank has each caption
    from_images: np.ndarray  # (V, M): the bank's images with the split's captions
    image_counts: np.ndarray  # (V,)


def static_bank(sims: np.ndarray, bank: Bank, temperature: float = STATIC_TEMPERATURE) -> np.ndarray:
    """Return the normalised similarities (N, M), in the precision of `sims`. Equal captions keep equal columns."""
    of_images = _log_sum_exp(bank.to_captions, temperature) - np.log(bank.to_captions.shape[1])
    of_captions = _log_sum_exp(bank.from_images.T, temperature) - np.log(len(bank.from_images))
    return (np.asarray(sims, np.float64) / temperature - of_images[:, None] - of_captions).astype(sims.dtype)


def dynamic_bank(
    sims: np.ndarray, bank: Bank, temperature: float = DYNAMIC_TEMPERATURE
) -> tuple[np.ndarray, np.ndarray]:
    """Return two matrices (N, M): the scores of captions as answers to images (i2t), and of images to captions (t2i).

    Only the order within a query has a meaning: a row of the first, a column of the second.
    """
    scaled = np.asarray(sims, np.float64) / temperature
    of_images = _log_sum_exp(bank.to_captions, temperature, bank.caption_counts)
    of_captions = _log_sum_exp(bank.from_images.T, temperature, bank.image_counts)
    active_images = np.isin(sims.argmax(axis=1), bank.from_images.argmax(axis=1))
    active_captions = np.isin(sims.argmax(axis=0), bank.to_captions.argmax(axis=0))
    i2t = scaled - np.where(active_images[:, None], of_captions, 0)
    t2i = scaled - np.where(active_captions, of_images[:, None], 0)
    return i2t.astype(sims.dtype), t2i.astype(sims.dtype)


def dynamic_standings(matrices: tuple[np.ndarray, np.ndarray], image_of_caption: np.ndarray) -> Standings:
    """Return where the queries stand: those of i2t by the first matrix, those of t2i by the second."""
    i2t, t2i = (standings(matrix, image_of_caption) for matrix in matrices)
    return Standings(i2t.i2t, t2i.t2i)


def temperature_grid(sims: np.ndarray, image_of_caption: np.ndarray, bank: Bank) -> np.ndarray:
    """Return mR, ties at random, of `static` and of `dynamic` at each temperature of GRID: (2, temperatures)."""
    found = [
        [standings(static_bank(sims, bank, t), image_of_caption) for t in GRID],
        [dynamic_standings(dynamic_bank(sims, bank, t), image_of_caption) for t in GRID],
    ]
    return np.array([[one.scores("random").mr for one in kind] for kind in found])


def _log_sum_exp(sims: np.ndarray, temperature: float, counts: np.ndarray | None = None) -> np.ndarray:
    """Return log sum of exp(s / temperature) over each row, each column counted so often, float64."""
    counts = np.ones(sims.shape[1]) if counts is None else counts.astype(np.float64)
    found = np.empty(len(sims))
    for rows, block in blocks(sims):
        scaled = block.astype(np.float64) / temperature
        largest = scaled.max(axis=1)
        found[rows] = largest + np.log(np.exp(scaled - largest[:, None]) @ counts)
    return found
