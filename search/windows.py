"""Make the windows of a scene, and the map that their similarities to a sentence give: semantic localisation.

Yuan et al., "Learning to Evaluate Performance of Multimodal Semantic Localization", TGRS 2022 (arXiv 2209.06515). The
published procedure adds each window to the pixels under it, one by one; here the scene is cut along the windows' edges,
between which the map is constant, and a summed-area table over those few cells gives the same means.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

SCALES = (256, 512, 768)  # sides of the windows in pixels: the published default; 128, 256, 512 is their best
MEDIAN = 251  # side of the median filter that smooths the map, in pixels


def selo_windows(height: int, width: int, scales: Sequence[int] = SCALES) -> np.ndarray:
    """Return the windows of an image: first row, end row, first column, end column in pixels; (n, 4) int64, sorted.

    For each scale s two grids of stride s, from 0 and from s / 2 in both axes. A window that would end at or beyond
    the border is moved inward to end at it, and is cut where the image is smaller than it. Equal ones count once.

    >>> selo_windows(4, 6, [4]).tolist()
    [[0, 4, 0, 4], [0, 4, 2, 6]]
    """
    windows = set()
    for scale in scales:
        for first in (0, scale // 2):
            rows, columns = (_intervals(side, scale, first) for side in (height, width))
            windows |= {(*row, *column) for row in rows for column in columns}
    return np.array(sorted(windows), np.int64)


def _intervals(side: int, scale: int, first: int) -> list[tuple[int, int]]:
    """Return start and end of the windows along one axis, from `first` on."""
    starts = [min(start, max(0, side - scale)) for start in range(first, side, scale)]
    return [(start, min(start + scale, side)) for start in starts or [0]]


def selo_map(height: int, width: int, windows: np.ndarray, similarities: np.ndarray) -> np.ndarray:
    """Return the map (height, width) uint8 of windows (n, 4) with the similarities (n,) of each to a sentence.

    A pixel's value is the mean similarity of the windows that cover it; minus the minimum, by the maximum, times 255,
    truncated; then the median filter. Where all are equal the map is 0.
    Raises ValueError where a pixel has no window.
    """
    return cv2.medianBlur(unsmoothed_map(height, width, windows, similarities), MEDIAN)


def unsmoothed_map(height: int, width: int, windows: np.ndarray, similarities: np.ndarray) -> np.ndarray:
    """Return the map before the median filter (height, width) uint8."""
    rows, columns = np.unique([0, height, *windows[:, :2].flat]), np.unique([0, width, *windows[:, 2:].flat])
    covered = _cell_sums(rows, columns, windows, np.ones(len(windows)))
    if covered.min() < 0.5:
        raise ValueError(f"{len(windows)} windows do not cover an image of {width} x {height} pixels")
    value = _cell_sums(rows, columns, windows, similarities) / covered
    value -= value.min()
    if np.ptp(similarities) == 0:
        value[:] = 0  # what is left is rounding, and would fill the whole range
    grey = (255 * (value / (value.max() or 1))).astype(np.uint8)
    return grey.repeat(np.diff(rows), axis=0).repeat(np.diff(columns), axis=1)


def _cell_sums(rows: np.ndarray, columns: np.ndarray, windows: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Sum the weights (n,) of the windows over each cell between neighbouring edges: (rows - 1, columns - 1)."""
    corners = np.zeros((len(rows), len(columns)))
    top, bottom = (np.searchsorted(rows, windows[:, i]) for i in (0, 1))
    left, right = (np.searchsorted(columns, windows[:, i]) for i in (2, 3))
    for row, column, sign in ((top, left, 1), (top, right, -1), (bottom, left, -1), (bottom, right, 1)):
        np.add.at(corners, (row, column), sign * weights)
    return corners.cumsum(axis=0).cumsum(axis=1)[:-1, :-1]
