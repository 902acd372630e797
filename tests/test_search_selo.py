"""search.windows and search.metrics: the authors' golden figures, and what must hold beyond them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("cv2", reason="OpenCV is missing: pip install -r requirements-search.txt")

from search.metrics import attention_centres, region_mask, selo_scores
from search.windows import MEDIAN, selo_map, selo_windows, unsmoothed_map

GOLDEN = Path(__file__).parent / "golden"
CASES = json.loads((GOLDEN / "selo_metrics_a.json").read_text())


def golden_map(case: dict) -> np.ndarray:
    y, x = np.mgrid[: case["height"], : case["width"]]
    p = np.full(x.shape, case["floor"])
    for bump_x, bump_y, s, a in case["bumps"]:
        p = np.maximum(p, a * np.exp(-((x - bump_x) ** 2 + (y - bump_y) ** 2) / (2 * s**2)))
    return (p.clip(0, 1) * 255).astype(np.uint8) / 255


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_scores_are_those_of_the_authors_code(case: dict) -> None:
    p, regions = golden_map(case), [np.array(region) for region in case["regions"]]
    assert region_mask(p.shape, regions).sum() == case["mask_sum"]
    assert attention_centres(p).tolist() == case["centres"]
    expected = [case[name] for name in ("Rsu", "Ras", "Rda", "Rmi")]
    assert list(selo_scores(p, regions)) == pytest.approx(expected, abs=1e-6)


def test_map_is_that_of_the_authors_code() -> None:
    golden = np.load(GOLDEN / "selo_map_a.npz")
    height, width = int(golden["height"]), int(golden["width"])
    windows = selo_windows(height, width, golden["steps"].tolist())
    np.testing.assert_array_equal(windows, golden["windows"])
    similarities = (windows.sum(axis=1) * 37 % 101) / 1000
    raw = unsmoothed_map(height, width, windows, similarities)
    np.testing.assert_array_equal(raw[::10, ::10], golden["raw"])
    np.testing.assert_array_equal(selo_map(height, width, windows, similarities)[::10, ::10], golden["map"])


@pytest.mark.parametrize(("height", "width"), [(1, 1), (5, 300), (64, 64), (65, 63), (130, 257)])
def test_windows_cover_every_size_of_image_and_the_map_is_their_mean(height: int, width: int) -> None:
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


def test_equal_similarities_give_a_map_of_zeros_and_gaps_are_refused() -> None:
    windows = selo_windows(100, 80, [32])
    assert not selo_map(100, 80, windows, np.full(len(windows), 0.3)).any()
    with pytest.raises(ValueError, match="do not cover"):
        selo_map(100, 80, windows[:-1], np.zeros(len(windows) - 1))


def test_a_spot_smaller_than_the_median_filter_is_smoothed_away() -> None:
    windows = selo_windows(600, 600, [64])
    similarities = np.zeros(len(windows))
    similarities[len(windows) // 2] = 1
    top, bottom, *_ = windows[len(windows) // 2]
    assert bottom - top < MEDIAN / 2
    assert unsmoothed_map(600, 600, windows, similarities).max() == 255
    assert selo_map(600, 600, windows, similarities).max() == 0


def test_scores_do_not_depend_on_the_order_of_regions() -> None:
    case = CASES[2]
    p, regions = golden_map(case), [np.array(region) for region in case["regions"]]
    assert len(regions) > 1
    assert selo_scores(p, regions[::-1]) == pytest.approx(selo_scores(p, regions))


@pytest.mark.parametrize(
    ("p", "region", "says"),
    [
        (np.zeros((50, 50)), [[200, 200], [220, 200], [220, 220]], "no pixel"),
        (np.zeros((50, 50)), [[5, 5], [5, 5], [5, 5]], "no extent"),
        (np.full((50, 50), 2.0), [[5, 5], [25, 5], [25, 25]], "lie in"),
        (np.full((50, 50), np.nan), [[5, 5], [25, 5], [25, 25]], "lie in"),
    ],
)
def test_what_has_no_score_is_refused(p: np.ndarray, region: list, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        selo_scores(p, [np.array(region)])
