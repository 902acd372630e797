"""Propose regions without a detector: compact, contrasting segments of an image.

Segments come from graph-based segmentation (Felzenszwalb and Huttenlocher, IJCV 2004) of the image at several sizes.
The "class" of a segment is the nearest of 15 appearance prototypes (k-means centres) fitted on the train images; its
score comes from its contrast to its surroundings. Nothing is random.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import Image
from scipy import ndimage
from skimage.color import rgb2lab
from skimage.segmentation import felzenszwalb

from layers.drea import CLASSES, Regions

DESCRIPTION = ("L", "a", "b", "deviation_L", "deviation_ab", "edges", "elongation", "compactness", "log_area")


@dataclass(frozen=True)
class ProposalOptions:
    """Set the rules of the proposals. The defaults are ours, chosen by eye on UCM train images.

    side: length in pixels to which the longer side of an image is scaled: what the model sees.
    shrink, scale, sigma, min_size: segmentation at 1/shrink of that size, with Felzenszwalb's scale, smoothing and
        smallest segment. The small sizes find large things at little cost.
    min_area, max_area: share of the image that a region covers: more than noise, less than background.
    max_area_at_corner: the same for segments that meet two sides of the image; these are background more often.
    min_compactness: area over that of the ellipse with the same second moments; low for branching segments.
    max_elongation: longest over shortest axis; longer ones are lines and shadows.
    min_contrast: CIELAB distance of the segment's mean colour and that of its surroundings.
    full_contrast: of the score 1 - exp(-(contrast / full_contrast)^2), whose square keeps large pieces of background,
        a little different from the rest, from outranking small targets.
    """

    side: int = 256
    shrink: tuple[int, ...] = (1, 2, 4)
    scale: float = 100.0
    sigma: float = 0.7
    min_size: int = 24
    min_area: float = 0.0005
    max_area: float = 0.25
    max_area_at_corner: float = 0.04
    min_compactness: float = 0.8
    max_elongation: float = 8.0
    min_contrast: float = 8.0
    full_contrast: float = 30.0


DEFAULTS = ProposalOptions()


class Proposals(NamedTuple):
    """Hold the segments of one image: score (n,) in [0, 1]; box (n, 4) as in Regions; description (n, 9) float64."""

    score: np.ndarray
    box: np.ndarray
    description: np.ndarray


@dataclass(frozen=True)
class Prototypes:
    """Hold appearance prototypes: centres (at most 15, 9) in units of `deviation` from `mean`, both (9,)."""

    centres: np.ndarray
    mean: np.ndarray
    deviation: np.ndarray


def propose(image: Image.Image, options: ProposalOptions = DEFAULTS) -> Proposals:
    """Return the proposals of an RGB image."""
    found = []
    for shrink in options.shrink:
        size = [max(8, round(side * (options.side / max(image.size)) / shrink)) for side in image.size]
        rgb = np.asarray(image.resize(size, Image.Resampling.BOX))
        found.append(_segments(rgb, options))
    return Proposals(*(np.concatenate(part) for part in zip(*found, strict=True)))


def fit_prototypes(description: np.ndarray, most: int = 50_000, seed: int = 0) -> Prototypes:
    """Fit one k-means prototype for each class of a node to `most` evenly spaced of the descriptions (n, 9)."""
    from sklearn.cluster import KMeans  # takes seconds to import
    from threadpoolctl import threadpool_limits

    if len(description) == 0:
        return Prototypes(np.zeros((0, len(DESCRIPTION))), np.zeros(len(DESCRIPTION)), np.ones(len(DESCRIPTION)))
    description = description[np.linspace(0, len(description) - 1, min(len(description), most)).astype(int)]
    mean, deviation = description.mean(axis=0), description.std(axis=0)
    deviation[deviation < 1e-9] = 1
    standard = (description - mean) / deviation
    distinct = len(np.unique(standard, axis=0))
    with threadpool_limits(1):  # the sums of several threads come in any order, and rounding with them
        fitted = KMeans(min(len(CLASSES), distinct), n_init=4, random_state=seed).fit(standard)
    centres = fitted.cluster_centers_
    return Prototypes(centres[np.lexsort(centres.T[::-1])], mean, deviation)


def classify(proposals: Proposals, prototypes: Prototypes) -> Regions:
    """Return the proposals as regions of the class of their nearest prototype."""
    if len(proposals.score) == 0 or len(prototypes.centres) == 0:
        return Regions.empty()
    standard = (proposals.description - prototypes.mean) / prototypes.deviation
    distance = ((standard[:, None] - prototypes.centres[None]) ** 2).sum(axis=-1)
    return Regions(distance.argmin(axis=1), proposals.score, proposals.box)


def _segments(rgb: np.ndarray, options: ProposalOptions) -> Proposals:
    height, width = rgb.shape[:2]
    lab = rgb2lab(rgb)
    label = felzenszwalb(rgb, scale=options.scale, sigma=options.sigma, min_size=options.min_size)
    flat = label.ravel()
    count = np.bincount(flat).astype(np.float64)

    def mean(values: np.ndarray) -> np.ndarray:  # regionprops_table gives the same and takes as long as all the rest
        return np.bincount(flat, values.ravel()) / count

    colour, square = (np.stack([mean(image[..., i]) for i in range(3)], axis=1) for image in (lab, lab**2))
    variance = np.maximum(square - colour**2, 0)
    edges = mean(np.hypot(*np.gradient(lab[..., 0])))

    y, x = (axis + 0.5 for axis in np.mgrid[:height, :width])
    pixel = 1 / 12  # the variance of a square of side 1
    variance_x, variance_y = (mean(axis * axis) - mean(axis) ** 2 + pixel for axis in (x, y))
    covariance = mean(x * y) - mean(x) * mean(y)
    half_trace = (variance_x + variance_y) / 2
    spread = np.sqrt(((variance_x - variance_y) / 2) ** 2 + covariance**2)
    major, minor = half_trace + spread, np.maximum(half_trace - spread, pixel)
    compactness = count / (4 * np.pi * np.sqrt(major * minor))
    elongation = np.sqrt(major / minor)

    bounds = np.array([(c.start, c.stop, r.start, r.stop) for r, c in ndimage.find_objects(label + 1)])
    left, right, top, bottom = bounds.T
    contrast = _contrast(lab, colour, count, bounds)
    area = count / (height * width)
    keep = (area >= options.min_area) & (area <= options.max_area) & (compactness >= options.min_compactness)
    keep &= (elongation <= options.max_elongation) & (contrast >= options.min_contrast)
    sides_met = (left == 0).astype(int) + (right == width) + (top == 0) + (bottom == height)
    keep &= (sides_met < 2) | (area < options.max_area_at_corner)

    texture = np.sqrt(variance[:, 0]), np.sqrt(variance[:, 1] + variance[:, 2]), edges
    description = np.column_stack([colour, *texture, np.log(elongation), compactness, np.log(area)])
    box = np.column_stack([(left + right) / 2, (top + bottom) / 2, right - left, bottom - top])
    box = box / [width, height, width, height]
    score = 1 - np.exp(-((contrast / options.full_contrast) ** 2))
    return Proposals(score[keep], box[keep], description[keep])


def _contrast(lab: np.ndarray, colour: np.ndarray, count: np.ndarray, bounds: np.ndarray) -> np.ndarray:
    """Return the CIELAB distance of each segment's mean colour and that of the rest of its box, widened by half."""
    height, width = lab.shape[:2]
    left, right, top, bottom = bounds.T
    table = np.pad(np.dstack([lab, np.ones((height, width))]), ((1, 0), (1, 0), (0, 0))).cumsum(axis=0).cumsum(axis=1)
    margin_x, margin_y = (right - left) // 4 + 2, (bottom - top) // 4 + 2
    left, right = np.maximum(left - margin_x, 0), np.minimum(right + margin_x, width)
    top, bottom = np.maximum(top - margin_y, 0), np.minimum(bottom + margin_y, height)
    around = table[bottom, right] - table[top, right] - table[bottom, left] + table[top, left]
    around -= np.column_stack([colour * count[:, None], count])
    pixels = np.maximum(around[:, 3:], 1)
    return np.where(around[:, 3] > 0.5, np.linalg.norm(around[:, :3] / pixels - colour, axis=1), 0)
