"""DREA: detected regions -> denoised representation matrix X and enhanced adjacency matrix A.

The authors ship only the output of this step, never the step itself. This is our reading of the paper's abstract
(redundant features of high similarity are filtered, features of salient targets are enhanced); each rule is a named
option of `DreaOptions`. It needs NumPy alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

CLASSES = tuple(  # DOTA-v1.0, in the order of the one-hot part of a node
    "plane ship storage-tank baseball-diamond tennis-court basketball-court ground-track-field harbor bridge "
    "large-vehicle small-vehicle helicopter roundabout soccer-ball-field swimming-pool".split()
)
FEATURES = len(CLASSES) + 5  # one-hot class, score, centre x, centre y, width, height
THRESHOLDS = {"iou": 0.5, "box": 0.95}  # default for each meaning of "similar"


class Regions(NamedTuple):
    """The detected regions of one image.

    class_id (n,): index into CLASSES (or of an appearance prototype). score (n,): confidence in [0, 1].
    box (n, 4): centre x, centre y, width, height in units of the image sides, each in [0, 1].
    """

    class_id: np.ndarray
    score: np.ndarray
    box: np.ndarray

    @classmethod
    def empty(cls) -> Regions:
        """Return the regions of an image in which nothing was detected."""
        return cls(np.zeros(0, np.int64), np.zeros(0), np.zeros((0, 4)))


@dataclass(frozen=True)
class DreaOptions:
    """The rules of DREA that the paper leaves open, with our defaults.

    nodes: rows of X; the published weights fit 20 only.
    denoise: merge similar regions; False keeps the most salient raw regions (ablation).
    similarity: of two regions of one class. `iou`: intersection over union; repeated detections of one target merge,
        neighbours do not. `box`: 1 - half the Euclidean distance of (centre x, centre y, width, height); neighbours of
        one size, such as the cars of a row, become one node, so that 20 nodes span a crowded image.
    similarity_threshold: regions at least this similar merge; None is 0.5 under `iou` and 0.95 under `box`.
    enhance: weigh the edges; False joins all real nodes alike (ablation).
    distance_scale: sigma of the affinity exp(-d^2 / (2 sigma^2)), d the distance of two centres in image sides.
    saliency_weighting, multiplicity_weighting: exponents of each in a node's weight; 0 leaves one out. Saliency spans
        two orders of magnitude in an image, and the square root keeps the weak nodes connected.
    """

    nodes: int = 20
    denoise: bool = True
    similarity: Literal["iou", "box"] = "iou"
    similarity_threshold: float | None = None
    enhance: bool = True
    distance_scale: float = 0.25
    saliency_weighting: float = 0.5
    multiplicity_weighting: float = 0.5

    def __post_init__(self) -> None:
        if self.nodes < 1:
            raise ValueError(f"nodes must be an integer >= 1, got {self.nodes}")
        if self.similarity not in THRESHOLDS:
            raise ValueError(f"similarity must be iou or box, got {self.similarity!r}")
        if self.similarity_threshold is None:
            object.__setattr__(self, "similarity_threshold", THRESHOLDS[self.similarity])
        if not 0 < self.similarity_threshold <= 1:
            raise ValueError(f"similarity_threshold must be above 0 and at most 1, got {self.similarity_threshold}")
        if not 0.001 <= self.distance_scale <= 1000:
            raise ValueError(f"distance_scale must be from 0.001 to 1000, got {self.distance_scale}")
        for name in ("saliency_weighting", "multiplicity_weighting"):
            if not 0 <= getattr(self, name) <= 10:
                raise ValueError(f"{name} must be from 0 to 10, got {getattr(self, name)}")


DEFAULTS = DreaOptions()


class Denoised(NamedTuple):
    """The denoised representation of one image.

    nodes (nodes, 20) float32: one-hot class, score, centre x, centre y, width, height; most salient first, zero rows
    last. multiplicity (nodes,): regions that each node stands for, 0 for padding. node_of_region (n,): the node that
    each region became or merged into, -1 if it was dropped. region_of_node (k,): the region that each real node is.
    """

    nodes: np.ndarray
    multiplicity: np.ndarray
    node_of_region: np.ndarray
    region_of_node: np.ndarray


def denoise(regions: Regions, options: DreaOptions = DEFAULTS) -> Denoised:
    """Merge redundant regions and return the most salient ones as the nodes X of the graph.

    In order of saliency, a region that is similar enough to nodes of its class merges into the most similar of them (of
    equally similar ones, the most salient) and adds to its multiplicity; else it becomes a node, as long as there are
    fewer than `options.nodes`; else it is dropped. A node keeps the features of its most salient region. The order of
    the input never matters. Raises ValueError if `regions` is not what `Regions` describes.

    >>> boxes = np.array([[0.5, 0.5, 0.2, 0.2], [0.52, 0.5, 0.2, 0.2], [0.1, 0.1, 0.1, 0.1]])
    >>> found = denoise(Regions(class_id=np.array([0, 0, 1]), score=np.array([0.9, 0.8, 0.7]), box=boxes))
    >>> found.nodes.shape, found.node_of_region.tolist(), found.multiplicity[:3].tolist()
    ((20, 20), [0, 0, 1], [2, 1, 0])
    """
    class_id, score, box = _checked(regions)
    order = _by_saliency(class_id, score, box)
    if options.denoise:
        kept, node_of_ranked = _merge(class_id[order], box[order], options)
    else:
        kept = np.arange(min(len(order), options.nodes))
        node_of_ranked = np.where(np.arange(len(order)) < len(kept), np.arange(len(order)), -1)

    region_of_node = order[kept]
    node_of_region = np.empty(len(order), np.int64)
    node_of_region[order] = node_of_ranked
    multiplicity = np.bincount(node_of_ranked[node_of_ranked >= 0], minlength=options.nodes)
    nodes = np.zeros((options.nodes, FEATURES), np.float32)
    rows = np.arange(len(kept))
    nodes[rows, class_id[region_of_node]] = 1
    nodes[rows, len(CLASSES)] = score[region_of_node]
    nodes[rows, len(CLASSES) + 1 :] = box[region_of_node]
    return Denoised(nodes, multiplicity, node_of_region, region_of_node)


def enhanced_adjacency(
    nodes: np.ndarray, multiplicity: np.ndarray | None = None, options: DreaOptions = DEFAULTS
) -> np.ndarray:
    """Return the enhanced adjacency A = D^-1/2 E D^-1/2 of the nodes X, with D the row sums of E; (n, n) float32.

    E_ij = w_i w_j exp(-d_ij^2 / (2 sigma^2)) for i != j, d the distance of the centres, and E_ii = 1. The weight is
    w = sqrt(saliency^a multiplicity^b), divided by the largest of the image. With `enhance: false`, E is 1 between
    real nodes. Rows and columns of padding are zero. A's eigenvalues lie in [-1, 1].

    nodes (n, 20); multiplicity (n,), None for all ones. Raises ValueError for other shapes or values not finite.

    >>> one = Regions(class_id=np.array([0]), score=np.array([0.9]), box=np.array([[0.5, 0.5, 0.2, 0.2]]))
    >>> float(enhanced_adjacency(denoise(one).nodes)[0, 0])
    1.0
    """
    nodes = np.asarray(nodes, np.float64)
    if nodes.ndim != 2 or nodes.shape[1] != FEATURES or not np.isfinite(nodes).all():
        raise ValueError(f"nodes must be finite numbers of shape (n, {FEATURES}), got shape {nodes.shape}")
    multiplicity = np.ones(len(nodes)) if multiplicity is None else np.asarray(multiplicity, np.float64)
    if multiplicity.shape != (len(nodes),) or not np.isfinite(multiplicity).all() or (multiplicity < 0).any():
        raise ValueError(f"multiplicity must be a finite count for each node, got shape {multiplicity.shape}")

    real = nodes[:, : len(CLASSES)].any(axis=1)
    edges = np.ones((len(nodes), len(nodes)))
    if options.enhance:
        centre = nodes[:, len(CLASSES) + 1 : len(CLASSES) + 3]
        square_distance = (((centre[:, None] - centre[None]) / options.distance_scale) ** 2).sum(axis=-1)
        weight = _weight(nodes, multiplicity, options)
        edges = weight[:, None] * weight[None] * np.exp(-square_distance / 2)
        np.fill_diagonal(edges, 1)
    edges = edges * (real[:, None] & real[None])
    scale = 1 / np.sqrt(np.where(real, edges.sum(axis=1), 1))
    return (edges * (scale[:, None] * scale[None])).astype(np.float32)


def saliency(score: np.ndarray, width: np.ndarray, height: np.ndarray) -> np.ndarray:
    """Return score times the square root of the area: how much a target stands out."""
    return score * np.sqrt(width * height)


def _weight(nodes: np.ndarray, multiplicity: np.ndarray, options: DreaOptions) -> np.ndarray:
    """Return each node's factor in the weight of its edges, in [0, 1]; 1 for the most salient one."""
    score, _, _, width, height = nodes[:, len(CLASSES) :].T
    weight = np.sqrt(
        saliency(score, width, height) ** options.saliency_weighting * multiplicity**options.multiplicity_weighting
    )
    largest = weight.max(initial=0)
    return weight / largest if largest > 0 else weight


def _checked(regions: Regions) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return class, score and box as arrays of one length, -0 made 0. Raises ValueError."""
    class_id = np.asarray(regions.class_id)
    score = np.asarray(regions.score, np.float64) + 0.0
    box = np.asarray(regions.box, np.float64) + 0.0
    n = len(class_id)
    shapes = class_id.shape, score.shape, box.shape
    if shapes != ((n,), (n,), (n, 4)):
        raise ValueError(f"regions must have shapes (n,), (n,), (n, 4), got {shapes}")
    if n and (class_id.dtype.kind not in "iu" or class_id.min() < 0 or class_id.max() >= len(CLASSES)):
        raise ValueError(f"class_id must be integers from 0 to {len(CLASSES) - 1}")
    if not (((score >= 0) & (score <= 1)).all() and ((box >= 0) & (box <= 1)).all()):
        raise ValueError("scores and boxes (in units of the image sides) must lie in [0, 1]")
    return class_id.astype(np.int64), score, box


def _by_saliency(class_id: np.ndarray, score: np.ndarray, box: np.ndarray) -> np.ndarray:
    """Sort by saliency, largest first; equal ones by their values, so that only exact duplicates are left to chance."""
    return np.lexsort((*box.T[::-1], class_id, -score, -saliency(score, box[:, 2], box[:, 3])))


def _merge(class_id: np.ndarray, box: np.ndarray, options: DreaOptions) -> tuple[np.ndarray, np.ndarray]:
    """Merge regions, given in order of saliency -> the nodes' positions (k,), and the node of each region (n,).

    One pass over all regions for each node, never over pairs of regions.
    """
    similarity = _box_similarity if options.similarity == "box" else _iou
    kept: list[int] = []
    node = np.full(len(box), -1)
    best = np.zeros(len(box))
    position = 0
    while len(kept) < options.nodes and position < len(box):
        node[position], best[position] = len(kept), 1
        rest = slice(position + 1, None)  # a region merges only into one that is more salient than itself
        similar = similarity(box[position], box[rest])
        nearer = (class_id[rest] == class_id[position]) & (similar >= options.similarity_threshold)
        nearer &= similar > best[rest]
        node[rest][nearer] = len(kept)
        best[rest][nearer] = similar[nearer]
        kept.append(position)
        free = np.flatnonzero(node[rest] < 0)
        position = position + 1 + free[0] if len(free) else len(box)
    return np.array(kept, np.int64), node


def _box_similarity(one: np.ndarray, many: np.ndarray) -> np.ndarray:
    """Return 1 - |difference| / 2 of one box (4,) and many (n, 4); no two boxes are further apart than 2."""
    return 1 - np.sqrt(((many - one) ** 2).sum(axis=1)) / 2


def _iou(one: np.ndarray, many: np.ndarray) -> np.ndarray:
    """Return the IoU of one box (4,) and many (n, 4); equal boxes give 1, even those without an area."""
    low, high = many[:, :2] - many[:, 2:] / 2, many[:, :2] + many[:, 2:] / 2
    one_low, one_high = one[:2] - one[2:] / 2, one[:2] + one[2:] / 2
    common = np.clip(np.minimum(high, one_high) - np.maximum(low, one_low), 0, None).prod(axis=1)
    union = (high - low).prod(axis=1) + (one_high - one_low).prod() - common
    iou = np.divide(common, union, out=np.zeros(len(many)), where=union > 0)
    return np.where((many == one).all(axis=1), 1, iou)
