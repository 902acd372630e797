"""DREA: detected regions -> denoised representation matrix X and enhanced adjacency matrix A.

The authors ship only the output of this step, never the step itself. What stands here is our reading of the paper's
abstract (redundant features of high similarity are filtered, features of salient targets are enhanced); each rule is a
named option of `DreaOptions`. Pure NumPy: nothing here needs PyTorch or the rest of the model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

CLASSES = (
    "plane",
    "ship",
    "storage-tank",
    "baseball-diamond",
    "tennis-court",
    "basketball-court",
    "ground-track-field",
    "harbor",
    "bridge",
    "large-vehicle",
    "small-vehicle",
    "helicopter",
    "roundabout",
    "soccer-ball-field",
    "swimming-pool",
)  # DOTA-v1.0, in the order of the one-hot part of a node
FEATURES = len(CLASSES) + 5  # one-hot class, score, centre x, centre y, width, height
THRESHOLDS = {"iou": 0.5, "box": 0.95}  # default for each meaning of "similar"


class Regions(NamedTuple):
    """The detected regions of one image, one entry a region.

    class_id (n,): index into CLASSES (or of an appearance prototype).  score (n,): confidence in [0, 1].
    box (n, 4): centre x, centre y, width, height in units of the image sides, each in [0, 1].
    """

    class_id: np.ndarray
    score: np.ndarray
    box: np.ndarray

    @classmethod
    def empty(cls) -> Regions:
        """An image in which nothing was detected."""
        return cls(np.zeros(0, np.int64), np.zeros(0), np.zeros((0, 4)))


@dataclass(frozen=True)
class DreaOptions:
    """Every rule of DREA that the paper leaves open (our reading), with its default.

    nodes: rows of X. 20, the size of the released matrices; the published weights fit no other.
    denoise: merge similar regions; False keeps the most salient raw regions, duplicates and all (ablation).
    similarity: what "similar" means for two regions of one class. `iou`: intersection over union, as in non-maximum
        suppression; repeated detections of one target merge, neighbours never do, so that two pools stay two. `box`:
        1 - half the Euclidean distance of their (centre x, centre y, width, height), which is 1 for equal boxes and 0
        for the furthest apart; neighbours of one size, such as the cars of a row, become one node with a
        multiplicity, so that 20 nodes span a crowded image.
    similarity_threshold: regions at least this similar merge. None is 0.5 under `iou`, the custom of the field, and
        0.95 under `box`, a distance of a tenth of the image.
    enhance: weigh the edges; False joins all real nodes alike (ablation).
    distance_scale: sigma of the affinity exp(-d^2 / (2 sigma^2)), d the distance of two centres in image sides. 0.25:
        targets in the same quarter of the image are linked strongly, opposite corners hardly.
    saliency_weighting, multiplicity_weighting: exponents of each in a node's weight; 0 leaves one out. 0.5 for both:
        saliency spans two orders of magnitude in one image (a car and a stadium), and the square root keeps the
        weak nodes connected.
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
            raise ValueError(f"nodes is {self.nodes}; at least 1 is needed")
        if self.similarity not in THRESHOLDS:
            raise ValueError(f"similarity is {self.similarity!r}; iou or box is needed")
        if self.similarity_threshold is None:
            object.__setattr__(self, "similarity_threshold", THRESHOLDS[self.similarity])
        if not 0 < self.similarity_threshold <= 1:
            raise ValueError(f"similarity_threshold is {self.similarity_threshold}; it lies above 0 and up to 1")
        if not 0.001 <= self.distance_scale <= 1000:
            raise ValueError(f"distance_scale is {self.distance_scale}; it lies from 0.001 to 1000")
        for name in ("saliency_weighting", "multiplicity_weighting"):
            if not 0 <= getattr(self, name) <= 10:
                raise ValueError(f"{name} is {getattr(self, name)}; it lies from 0 to 10")


DEFAULTS = DreaOptions()


class Denoised(NamedTuple):
    """The denoised representation of one image.

    nodes (nodes, 20) float32: one-hot class, score, centre x, centre y, width, height; most salient first, zero rows
    last.  multiplicity (nodes,) int64: how many regions each node stands for, 0 for padding.  node_of_region (n,)
    int64: the node that each region became or merged into, -1 where it was dropped.  region_of_node (k,) int64: the
    region that each of the k real nodes is.
    """

    nodes: np.ndarray
    multiplicity: np.ndarray
    node_of_region: np.ndarray
    region_of_node: np.ndarray


def denoise(regions: Regions, options: DreaOptions = DEFAULTS) -> Denoised:
    """Filter redundant regions and lay the most salient ones out as the nodes X of the graph (our reading).

    In order of saliency, a region that is similar enough to a node of its class merges into the most similar of these
    (of equally similar ones, the most salient) and adds to its multiplicity; else it becomes a node, as long as there
    are fewer than `options.nodes`; else it is dropped. A node keeps the features of its most salient region, so an
    exact duplicate of a region changes no node, only a multiplicity. The order of the input never matters.

    Raises ValueError where `regions` is not what `Regions` describes.
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
    """The enhanced adjacency matrix A of the nodes X (our reading): D^-1/2 E D^-1/2 with D the row sums of E.

    E_ij = w_i w_j exp(-d_ij^2 / (2 sigma^2)) for i != j, d the distance of the centres, and E_ii = 1. The weight is
    w = sqrt(saliency^a multiplicity^b), divided by the largest of the image. With `enhance: false`, E is 1 between
    real nodes. Rows and columns of padding are zero. E is symmetric and non-negative, so that A's eigenvalues lie in
    [-1, 1] (to rounding).

    nodes (n, 20); multiplicity (n,), None for all ones. Returns (n, n) float32. Raises ValueError for other shapes or
    values that are not finite.
    """
    nodes = np.asarray(nodes, np.float64)
    if nodes.ndim != 2 or nodes.shape[1] != FEATURES or not np.isfinite(nodes).all():
        raise ValueError(f"nodes of shape {nodes.shape}; finite numbers of shape (n, {FEATURES}) are needed")
    multiplicity = np.ones(len(nodes)) if multiplicity is None else np.asarray(multiplicity, np.float64)
    if multiplicity.shape != (len(nodes),) or not np.isfinite(multiplicity).all() or (multiplicity < 0).any():
        raise ValueError(f"multiplicity of shape {multiplicity.shape}; one finite count for each node is needed")

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
    """Score times the square root of the area: how much a target stands out (our reading)."""
    return score * np.sqrt(width * height)


def _weight(nodes: np.ndarray, multiplicity: np.ndarray, options: DreaOptions) -> np.ndarray:
    """A node's share in the weight of its edges, in [0, 1]; 1 for the most salient one."""
    score, _, _, width, height = nodes[:, len(CLASSES) :].T
    weight = np.sqrt(
        saliency(score, width, height) ** options.saliency_weighting * multiplicity**options.multiplicity_weighting
    )
    largest = weight.max(initial=0)
    return weight / largest if largest > 0 else weight


def _checked(regions: Regions) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Class, score and box as arrays of one length, -0 made 0, or ValueError."""
    class_id = np.asarray(regions.class_id)
    score = np.asarray(regions.score, np.float64) + 0.0
    box = np.asarray(regions.box, np.float64) + 0.0
    n = len(class_id)
    if class_id.shape != (n,) or score.shape != (n,) or box.shape != (n, 4):
        raise ValueError(
            f"regions of shapes {class_id.shape}, {score.shape}, {box.shape}; (n,), (n,), (n, 4) are needed"
        )
    if n and (class_id.dtype.kind not in "iu" or class_id.min() < 0 or class_id.max() >= len(CLASSES)):
        raise ValueError(f"class_id must be integers from 0 to {len(CLASSES) - 1}")
    if not (((score >= 0) & (score <= 1)).all() and ((box >= 0) & (box <= 1)).all()):
        raise ValueError("scores and boxes (in units of the image sides) must lie in [0, 1]")
    return class_id.astype(np.int64), score, box


def _by_saliency(class_id: np.ndarray, score: np.ndarray, box: np.ndarray) -> np.ndarray:
    """Indices, most salient first; equal ones by their values, so that only exact duplicates are left to chance."""
    return np.lexsort((*box.T[::-1], class_id, -score, -saliency(score, box[:, 2], box[:, 3])))


def _merge(class_id: np.ndarray, box: np.ndarray, options: DreaOptions) -> tuple[np.ndarray, np.ndarray]:
    """Greedy merging of regions in order of saliency: the nodes' positions (k,), and the node of each region (n,).

    One pass over all regions for each node, never over pairs of regions, so 100,000 regions cost what 20 rows do.
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
    """1 - |difference| / 2 of one box (4,) and many (n, 4); the diagonal of the unit cube of four dimensions is 2."""
    return 1 - np.sqrt(((many - one) ** 2).sum(axis=1)) / 2


def _iou(one: np.ndarray, many: np.ndarray) -> np.ndarray:
    """Intersection over union of one box (4,) and many (n, 4); equal boxes give 1, even those without an area."""
    low, high = many[:, :2] - many[:, 2:] / 2, many[:, :2] + many[:, 2:] / 2
    one_low, one_high = one[:2] - one[2:] / 2, one[:2] + one[2:] / 2
    common = np.clip(np.minimum(high, one_high) - np.maximum(low, one_low), 0, None).prod(axis=1)
    union = (high - low).prod(axis=1) + (one_high - one_low).prod() - common
    iou = np.divide(common, union, out=np.zeros(len(many)), where=union > 0)
    return np.where((many == one).all(axis=1), 1, iou)
