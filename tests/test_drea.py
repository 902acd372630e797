"""DREA: properties of any detections, a direct reading of its rules, and the purpose of each rule."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from layers.drea import CLASSES, DreaOptions, Regions, denoise, enhanced_adjacency, saliency
from layers.local_branch import LocalBranch

UNIT = st.sampled_from([0.0, 0.1, 0.25, 0.5, 1.0]) | st.floats(0, 1)  # few values, so that ties are frequent
OPTIONS = st.builds(
    DreaOptions,
    denoise=st.booleans(),
    enhance=st.booleans(),
    similarity=st.sampled_from(["iou", "box"]),
    similarity_threshold=st.none() | st.floats(0.01, 1),
    distance_scale=st.floats(0.001, 1000),
    saliency_weighting=st.floats(0, 10),
    multiplicity_weighting=st.floats(0, 10),
)


@st.composite
def detections(draw, most: int = 40) -> Regions:
    rows = draw(st.lists(st.tuples(st.integers(0, 14) | st.just(3), UNIT, UNIT, UNIT, UNIT, UNIT), max_size=most))
    if rows and draw(st.booleans()):
        rows += draw(st.lists(st.sampled_from(rows), max_size=10))
    return regions(rows)


def regions(rows) -> Regions:
    """Build regions from rows of class, score, centre x, centre y, width, height."""
    table = np.array(rows, np.float64).reshape(-1, 6)
    return Regions(table[:, 0].astype(int), table[:, 1], table[:, 2:])


def take(one: Regions, index) -> Regions:
    return Regions(*(part[index] for part in one))


def both(one: Regions, options: DreaOptions):
    denoised = denoise(one, options)
    return denoised, enhanced_adjacency(denoised.nodes, denoised.multiplicity, options)


@settings(deadline=None, max_examples=100)
@given(detections(), OPTIONS)
def test_the_adjacency_is_symmetric_finite_and_bounded_with_zero_padding(one, options):
    denoised, adjacency = both(one, options)
    assert denoised.nodes.shape == adjacency.shape == (20, 20)
    assert denoised.nodes.dtype == adjacency.dtype == np.float32
    real = len(denoised.region_of_node)
    assert real <= min(20, len(one.score))
    assert np.isfinite(denoised.nodes).all() and np.isfinite(adjacency).all()
    assert np.array_equal(adjacency, adjacency.T)
    assert (denoised.nodes[:real, : len(CLASSES)].sum(axis=1) == 1).all()
    assert not denoised.nodes[real:].any() and not denoised.multiplicity[real:].any()
    assert not adjacency[real:].any() and not adjacency[:, real:].any()
    assert (np.diag(adjacency)[:real] > 0).all()
    assert np.abs(np.linalg.eigvalsh(adjacency.astype(np.float64))).max() <= 1 + 1e-6


@settings(deadline=None, max_examples=100)
@given(detections(), OPTIONS, st.randoms(use_true_random=False))
def test_the_order_of_the_detections_changes_nothing(one, options, random):
    order = random.sample(range(len(one.score)), len(one.score))
    denoised, adjacency = both(one, options)
    shuffled, shuffled_adjacency = both(take(one, order), options)
    assert np.array_equal(denoised.nodes, shuffled.nodes)
    assert np.array_equal(denoised.multiplicity, shuffled.multiplicity)
    assert np.array_equal(adjacency, shuffled_adjacency)


@settings(deadline=None, max_examples=100)
@given(detections(), OPTIONS)
def test_denoising_is_the_greedy_rule_of_its_docstring(one, options):
    options = replace(options, denoise=True)
    ranked = sorted(
        range(len(one.score)),
        key=lambda i: (-saliency(one.score[i], *one.box[i, 2:]), -one.score[i], one.class_id[i], *one.box[i]),
    )
    nodes, count = [], []
    for i in ranked:
        near = [slow_similarity(one.box[k], one.box[i], options.similarity) for k in nodes]
        fit = [
            (-value, place)
            for place, (k, value) in enumerate(zip(nodes, near, strict=True))
            if one.class_id[k] == one.class_id[i] and value >= options.similarity_threshold
        ]
        if fit:
            count[min(fit)[1]] += 1
        elif len(nodes) < 20:
            nodes.append(i)
            count.append(1)
    denoised = denoise(one, options)
    expected = np.zeros((20, 20), np.float32)
    for row, i in enumerate(nodes):
        expected[row, one.class_id[i]] = 1
        expected[row, 15:] = [one.score[i], *one.box[i]]
    assert np.array_equal(denoised.nodes, expected)
    assert denoised.multiplicity[: len(nodes)].tolist() == count


def slow_similarity(one, other, similarity):
    if similarity == "box":
        return 1 - np.sqrt(((one - other) ** 2).sum()) / 2
    if (one == other).all():
        return 1.0
    sides = []
    for axis in (0, 1):
        low = max(box[axis] - box[axis + 2] / 2 for box in (one, other))
        sides.append(max(min(box[axis] + box[axis + 2] / 2 for box in (one, other)) - low, 0))
    area = [
        np.prod([(box[axis] + box[axis + 2] / 2) - (box[axis] - box[axis + 2] / 2) for axis in (0, 1)])
        for box in (other, one)
    ]
    union = area[0] + area[1] - sides[0] * sides[1]
    return sides[0] * sides[1] / union if union > 0 else 0.0


def test_without_denoising_the_20_most_salient_raw_regions_stay_duplicates_and_all():
    one = regions([(0, 0.9, 0.5, 0.5, 0.4, 0.4)] * 3 + [(1, s / 100, 0.5, 0.5, 0.1, 0.1) for s in range(30)])
    denoised = denoise(one, DreaOptions(denoise=False))
    assert denoised.nodes[:3, 0].all() and denoised.nodes[3:, 1].all()
    assert np.allclose(denoised.nodes[3:, 15], np.arange(29, 12, -1) / 100)
    assert denoised.multiplicity.tolist() == [1] * 20


def test_without_enhancement_all_real_nodes_are_joined_alike():
    denoised = denoise(regions([(0, 0.9, 0.1, 0.1, 0.1, 0.1), (1, 0.2, 0.9, 0.9, 0.2, 0.2)]))
    adjacency = enhanced_adjacency(denoised.nodes, denoised.multiplicity, DreaOptions(enhance=False))
    assert np.allclose(adjacency[:2, :2], 0.5)


def test_an_image_without_detections_gives_zeros_and_trains():
    denoised, adjacency = both(Regions.empty(), DreaOptions())
    assert not denoised.nodes.any() and not adjacency.any() and len(denoised.node_of_region) == 0
    branch = LocalBranch(32)
    out = branch(torch.from_numpy(denoised.nodes)[None], torch.from_numpy(adjacency)[None])
    out.square().sum().backward()
    assert out.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in branch.parameters())


def test_neighbours_stay_apart_under_iou_and_merge_under_box():
    cars = regions([(10, 0.9, 0.1 + 0.05 * i, 0.5, 0.04, 0.02) for i in range(3)])
    assert denoise(cars).multiplicity[:3].tolist() == [1, 1, 1]
    merged = denoise(cars, DreaOptions(similarity="box"))
    assert merged.multiplicity[:2].tolist() == [3, 0]


def test_a_region_merges_into_the_most_similar_node():
    rows = [(0, 0.9, 0.4, 0.5, 0.2, 0.2), (0, 0.8, 0.6, 0.5, 0.2, 0.2), (0, 0.1, 0.54, 0.5, 0.2, 0.2)]
    assert denoise(regions(rows), DreaOptions(similarity_threshold=0.1)).node_of_region.tolist() == [0, 1, 1]


def test_of_equally_similar_nodes_the_more_salient_one_takes_the_region():
    """The third box overlaps both others by exactly half its width."""
    rows = [(0, 0.9, 0.25, 0.5, 0.25, 0.25), (0, 0.8, 0.5, 0.5, 0.25, 0.25), (0, 0.1, 0.375, 0.5, 0.25, 0.25)]
    assert denoise(regions(rows), DreaOptions(similarity_threshold=0.1)).node_of_region.tolist() == [0, 1, 0]


def test_saliency_is_the_score_times_the_root_of_the_area():
    assert saliency(0.5, 0.4, 0.9) == pytest.approx(0.3)
    small_and_sure, large_and_unsure = (0, 0.9, 0.2, 0.2, 0.1, 0.1), (1, 0.4, 0.7, 0.7, 0.2, 0.2)
    assert denoise(regions([large_and_unsure, small_and_sure])).region_of_node.tolist() == [1, 0]


def test_the_defaults_are_those_of_the_documentation():
    """Prepared files name only what differs from these values."""
    assert DreaOptions() == DreaOptions(
        nodes=20,
        denoise=True,
        similarity="iou",
        similarity_threshold=0.5,
        enhance=True,
        distance_scale=0.25,
        saliency_weighting=0.5,
        multiplicity_weighting=0.5,
    )
    assert DreaOptions(similarity="box").similarity_threshold == 0.95


def test_the_adjacency_is_that_of_the_formula():
    """E_ij = w_i w_j exp(-d^2 / (2 sigma^2)), ones on the diagonal, D^-1/2 E D^-1/2, node by node."""
    rows = [(0, 0.9, 0.1, 0.5, 0.4, 0.1), (3, 0.5, 0.4, 0.2, 0.1, 0.3), (3, 0.2, 0.9, 0.9, 0.2, 0.2)]
    options = DreaOptions(distance_scale=0.3, saliency_weighting=0.7, multiplicity_weighting=0.4)
    nodes, multiplicity = denoise(regions(rows)).nodes, np.array([2, 1, 5] + [0] * 17)
    found = enhanced_adjacency(nodes, multiplicity, options)

    weights = [
        math.sqrt((score * math.sqrt(width * height)) ** 0.7 * many**0.4)
        for (_, score, _, _, width, height), many in zip(rows, (2, 1, 5), strict=True)
    ]
    weights = [weight / max(weights) for weight in weights]
    edges = np.eye(3)
    for i, j in itertools.permutations(range(3), 2):
        distance = math.dist(rows[i][2:4], rows[j][2:4])
        edges[i, j] = weights[i] * weights[j] * math.exp(-(distance**2) / (2 * 0.3**2))
    degree = edges.sum(axis=1)
    assert found[:3, :3] == pytest.approx(edges / np.sqrt(np.outer(degree, degree)), abs=1e-6)


def test_100_000_regions_are_counted_in_full():
    rng = np.random.default_rng(0)
    n = 100_000
    one = Regions(np.zeros(n, int), rng.random(n), np.tile([0.5, 0.5, 0.2, 0.2], (n, 1)))
    denoised = denoise(one)
    assert denoised.multiplicity[0] == n and len(denoised.region_of_node) == 1
    assert denoised.nodes[0, 15] == np.float32(one.score.max())


@pytest.mark.parametrize(
    "bad",
    [
        {"score": [np.nan]},
        {"box": [[0.5, 0.5, np.inf, 0.1]]},
        {"score": [1.5]},
        {"box": [[0.5, 0.5, -0.1, 0.1]]},
        {"class_id": [15]},
        {"class_id": [-1]},
        {"class_id": [0.0]},
        {"class_id": [0, 1]},
        {"box": [[0.5] * 5]},
    ],
)
def test_what_is_no_region_is_refused(bad):
    good = {"class_id": [0], "score": [0.5], "box": [[0.5] * 4]}
    denoise(Regions(**{name: np.array(part) for name, part in good.items()}))
    with pytest.raises(ValueError):
        denoise(Regions(**{name: np.array(part) for name, part in (good | bad).items()}))


@pytest.mark.parametrize(
    "bad",
    [
        {"nodes": 0},
        {"similarity": "cosine"},
        {"similarity_threshold": 0},
        {"similarity_threshold": float("nan")},
        {"distance_scale": 0},
        {"distance_scale": float("inf")},
        {"saliency_weighting": -1},
        {"multiplicity_weighting": float("nan")},
    ],
)
def test_options_that_make_no_sense_are_refused(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        DreaOptions(**bad)


@pytest.mark.parametrize("nodes", [np.zeros((20, 19)), np.zeros(20), np.full((20, 20), np.nan)])
def test_what_is_no_node_matrix_is_refused(nodes):
    with pytest.raises(ValueError):
        enhanced_adjacency(nodes)
