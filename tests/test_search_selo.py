"""search.windows and search.metrics: the authors' golden figures, and what must hold beyond them."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from scipy.ndimage import label, maximum_filter

from search.metrics import attention_centres, attention_shift, discrete_attention, region_mask, selo_scores
from search.windows import selo_map, selo_windows, unsmoothed_map

GOLDEN = Path(__file__).parent / "golden"
CASES = json.loads((GOLDEN / "selo_metrics_a.json").read_text())


def golden_map(case: dict) -> np.ndarray:
    y, x = np.mgrid[: case["height"], : case["width"]]
    p = np.full(x.shape, case["floor"])
    for bump_x, bump_y, s, a in case["bumps"]:
        p = np.maximum(p, a * np.exp(-((x - bump_x) ** 2 + (y - bump_y) ** 2) / (2 * s**2)))
    return (p.clip(0, 1) * 255).astype(np.uint8) / 255


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_scores_are_those_of_the_authors_code(case):
    p, regions = golden_map(case), [np.array(region) for region in case["regions"]]
    assert region_mask(p.shape, regions).sum() == case["mask_sum"]
    assert attention_centres(p).tolist() == case["centres"]
    expected = [case[name] for name in ("Rsu", "Ras", "Rda", "Rmi")]
    assert list(selo_scores(p, regions)) == pytest.approx(expected, abs=1e-6)


def test_map_is_that_of_the_authors_code():
    golden = np.load(GOLDEN / "selo_map_a.npz")
    height, width = int(golden["height"]), int(golden["width"])
    windows = selo_windows(height, width, golden["steps"].tolist())
    np.testing.assert_array_equal(windows, golden["windows"])
    similarities = (windows.sum(axis=1) * 37 % 101) / 1000
    raw = unsmoothed_map(height, width, windows, similarities)
    np.testing.assert_array_equal(raw[::10, ::10], golden["raw"])
    np.testing.assert_array_equal(selo_map(height, width, windows, similarities)[::10, ::10], golden["map"])


@pytest.mark.parametrize(("height", "width"), [(1, 1), (5, 300), (64, 64), (65, 63), (130, 257)])
def test_windows_cover_every_size_of_image_and_the_map_is_their_mean(height, width):
    scales = 16, 32, 96
    windows = selo_windows(height, width, scales)
    assert len(np.unique(windows, axis=0)) == len(windows)
    assert (windows[:, [0, 2]] >= 0).all() and (windows[:, [1, 3]] <= [height, width]).all()
    similarities = np.random.default_rng(0).normal(size=len(windows))
    total, count = np.zeros((2, height, width))
    for (top, bottom, left, right), similarity in zip(windows, similarities, strict=True):
        total[top:bottom, left:right] += similarity
        count[top:bottom, left:right] += 1
    mean = total / count - (total / count).min()
    expected = (255 * mean / (mean.max() or 1)).astype(np.uint8)
    difference = np.abs(unsmoothed_map(height, width, windows, similarities).astype(int) - expected)
    assert difference.max() <= 1 and np.mean(difference > 0) < 0.01  # a sum in another order may cross a grey level


def test_equal_similarities_give_a_map_of_zeros_and_gaps_are_refused():
    windows = selo_windows(100, 80, [32])
    assert not selo_map(100, 80, windows, np.full(len(windows), 0.3)).any()
    with pytest.raises(ValueError, match="do not cover"):
        selo_map(100, 80, windows[:-1], np.zeros(len(windows) - 1))


@pytest.mark.parametrize(
    ("height", "width", "scale", "expected"),
    [
        (64, 64, 96, [[0, 64, 0, 64]]),  # smaller than the window, larger than half of it
        (40, 64, 96, [[0, 40, 0, 64]]),
        (64, 64, 64, [[0, 64, 0, 64]]),
        (65, 64, 64, [[0, 64, 0, 64], [1, 65, 0, 64]]),
        (30, 100, 64, [[0, 30, 0, 64], [0, 30, 32, 96], [0, 30, 36, 100]]),
    ],
)
def test_windows_at_the_border_are_moved_inward_and_cut_only_by_a_smaller_image(height, width, scale, expected):
    assert selo_windows(height, width, [scale]).tolist() == expected


def square(x: int, y: int) -> np.ndarray:
    """Return a region whose corners are 50 pixels from (x, y): a radius of 75."""
    return np.array([[x - 30, y - 40], [x + 30, y - 40], [x + 30, y + 40], [x - 30, y + 40]])


def test_a_centre_at_the_radius_of_a_region_belongs_to_it():
    region = [square(300, 300)]
    for point, inside in (([375, 300], True), ([376, 300], False), ([300, 225], True), ([345, 360], True)):
        assert discrete_attention(np.array([point]), region) == float(inside)
    both = np.array([[300, 300], [375, 300]])
    assert attention_shift(both, region) == pytest.approx(np.expm1(1.5) / np.expm1(3))
    assert discrete_attention(both, region) == pytest.approx(0.5 * (1 - 0.5) + np.exp(-2))
    assert attention_shift(both[:0], region) == 1 and discrete_attention(both[:0], region) == 0


def test_attention_begins_at_half_of_the_map_and_a_speck_that_smoothing_wipes_out_is_none():
    p = np.zeros((700, 900))
    for value, count in ((0.5, 1), (0.49, 0), (1.0, 1)):
        p[100:500, 300:700] = value
        assert len(attention_centres(p)) == count
    speck = np.zeros((101, 101))
    speck[50, 50] = 1
    assert len(attention_centres(speck)) == 0


def centres_by_definition(p: np.ndarray) -> list[list[int]]:
    smooth = (255 * p).astype(np.uint8)
    for _ in range(5):
        smooth = cv2.blur(smooth, (50, 50))
    peaks = (smooth == maximum_filter(smooth, 1000)) & (smooth > 0)
    labels, count = label(peaks, np.ones((3, 3)))
    centres = []
    for i in range(1, count + 1):
        y, x = np.nonzero(labels == i)
        centres.append([int(x.mean()), int(y.mean())])
    return sorted(centre for centre in centres if p[centre[1], centre[0]] >= 0.5)


def test_a_peak_counts_only_where_none_higher_is_within_500_pixels():
    numbers = []
    for gap in range(515, 535):  # a peak is not a point: the other one begins before its middle
        bumps = [[100, 60, 30, 0.8], [100 + gap, 60, 30, 1]]
        p = golden_map({"height": 120, "width": 800, "floor": 0.0, "bumps": bumps})
        for one in (p, p[:, ::-1]):
            assert sorted(attention_centres(one).tolist()) == centres_by_definition(one), gap
        numbers.append(len(attention_centres(p)))
    assert numbers == sorted(numbers) and set(numbers) == {1, 2}


@pytest.mark.parametrize(
    ("p", "region", "says"),
    [
        (np.zeros((50, 50)), [[200, 200], [220, 200], [220, 220]], "no pixel"),
        (np.zeros((50, 50)), [[5, 5], [5, 5], [5, 5]], "no extent"),
        (np.full((50, 50), 2.0), [[5, 5], [25, 5], [25, 25]], "lie in"),
        (np.full((50, 50), np.nan), [[5, 5], [25, 5], [25, 25]], "lie in"),
    ],
)
def test_what_has_no_score_is_refused(p, region, says):
    with pytest.raises(ValueError, match=says):
        selo_scores(p, [np.array(region)])
