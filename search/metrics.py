"""Measure semantic localisation: how well a map points at the regions that a sentence means.

Yuan et al., "Learning to Evaluate Performance of Multimodal Semantic Localization", TGRS 2022 (arXiv 2209.06515), as
their evaluation code computes them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
from scipy.ndimage import maximum_filter

BOX, BOXES = 50, 5  # side and number of the box filters that smooth a map before its peaks are sought
NEIGHBOURHOOD = 1000  # pixels; a peak is the largest value of its neighbourhood
ATTENTIVE = 0.5  # the least value of the map, unsmoothed, at an attention centre


class SeloScores(NamedTuple):
    """Hold the four scores.

    rsu: share of attention in the regions, by area. ras: distance of attention from their centres (lower is better).
    rda: near 1 for one peak a region. rmi: their mean, weighted 0.4, 0.35 (as 1 - ras) and 0.25.
    """

    rsu: float
    ras: float
    rda: float
    rmi: float


def selo_scores(p: np.ndarray, regions: Sequence[np.ndarray]) -> SeloScores:
    """Return the scores of a map p (H, W) in [0, 1] for regions, polygons (n, 2) of x, y in pixels.

    >>> p = np.zeros((300, 300))
    >>> p[100:200, 100:200] = 1
    >>> round(selo_scores(p, [np.array([[100, 100], [200, 100], [200, 200], [100, 200]])]).rmi, 2)
    1.0

    Raises ValueError for no regions, for ones that have no pixel in the map or no extent, and for a map beyond [0, 1].
    """
    if not (p.min() >= 0 and p.max() <= 1):  # NaN is neither
        raise ValueError("the values of a map lie in [0, 1]")
    rsu = significant_area(p, region_mask(p.shape, regions))
    centres = attention_centres(p)
    ras, rda = attention_shift(centres, regions), discrete_attention(centres, regions)
    return SeloScores(rsu, ras, rda, 0.4 * rsu + 0.35 * (1 - ras) + 0.25 * rda)


def region_mask(shape: tuple[int, int], regions: Sequence[np.ndarray]) -> np.ndarray:
    """Return the union of the regions as OpenCV fills them, (H, W) bool. Raises ValueError where it is empty."""
    mask = np.zeros(shape, np.uint8)
    for region in regions:
        cv2.fillPoly(mask, [np.asarray(region).astype(np.int32)], 1)
    if not mask.any():
        raise ValueError(f"{len(regions)} regions leave no pixel in a map of {shape[1]} x {shape[0]}")
    return mask.astype(bool)


def significant_area(p: np.ndarray, mask: np.ndarray) -> float:
    """Return Rsu = 1 - exp(-0.707 S_in / (S_all - S_in) (H W - A) / A): S sums of p, A the area of the regions."""
    area = np.count_nonzero(mask)
    inside, everywhere = p[mask].sum(dtype=np.float64), p.sum(dtype=np.float64)
    ratio = inside / (everywhere - inside + 1e-7)
    return float(1 - np.exp(-0.707 * ratio * (p.size - area) / area))


def attention_centres(p: np.ndarray) -> np.ndarray:
    """Return the peaks of the smoothed map, (n, 2) int64 of x, y: centroids of plateaus that are the largest around."""
    smooth = (255 * p).astype(np.uint8)
    for _ in range(BOXES):
        smooth = cv2.blur(smooth, (BOX, BOX))
    peaks = (smooth == maximum_filter(smooth, NEIGHBOURHOOD)) & (smooth > 0)
    *_, centroids = cv2.connectedComponentsWithStats(peaks.astype(np.uint8), connectivity=8)
    centres = centroids[1:].astype(np.int64)  # the first component is the rest of the map
    return centres[p[centres[:, 1], centres[:, 0]] >= ATTENTIVE]


def attention_shift(centres: np.ndarray, regions: Sequence[np.ndarray]) -> float:
    """Return Ras = (e^3g - 1) / (e^3 - 1), g the mean distance of region and attention in radii; without it 1."""
    if len(centres) == 0:
        return 1.0
    off = [near.mean() / radius if len(near) else 1.0 for near, _, radius in _around(centres, regions)]
    return float(np.expm1(3 * np.mean(off)) / np.expm1(3))


def discrete_attention(centres: np.ndarray, regions: Sequence[np.ndarray]) -> float:
    """Return Rda, the mean over regions: 0 without a centre within the radius, 1 for one, less for several.

    For n centres that scatter by d: 0.5 (1 - d) + e^(-0.5 (n + 2)).
    """
    scores = []
    for _, points, radius in _around(centres, regions):
        if len(points) < 2:
            scores.append(float(len(points)))
        else:
            scatter = np.linalg.norm(points - points.mean(axis=0), axis=1).mean() / radius
            scores.append(0.5 * (1 - scatter) + np.exp(-0.5 * (len(points) + 2)))
    return float(np.mean(scores))


def _around(centres: np.ndarray, regions: Sequence[np.ndarray]) -> list[tuple[np.ndarray, np.ndarray, int]]:
    """Return for each region the distances (n,) and places (n, 2) of centres within its radius, and that radius."""
    found = []
    for region in regions:
        middle = np.mean(region, axis=0).astype(np.int64)
        radius = int(1.5 * np.linalg.norm(region - middle, axis=1).mean())
        if radius < 1:
            raise ValueError(f"a region at {tuple(middle.tolist())} has no extent")
        distance = np.linalg.norm(centres - middle, axis=1)
        found.append((distance[distance <= radius], centres[distance <= radius], radius))
    return found
