"""Recall: exact against the golden numbers and a direct reading of the definition; ties, odd shapes and bad files."""

from __future__ import annotations

import itertools
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from postprocessing import results, tables
from postprocessing.matrices import load
from postprocessing.recall import (
    DIRECTIONS,
    MEASURES,
    SIX,
    TIES,
    chance,
    image_of_caption,
    metrics,
    query_ranks,
    recall,
)
from util.run_log import log_line
from utils import InputError

AT_16 = np.arange(18).reshape(3, 6) == 16
GOLDEN = np.load(Path(__file__).parent / "golden" / "similarity_a.npz", allow_pickle=False)


def ranks(sims: np.ndarray, owner: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the ranks from 0, ties against the query: i2t, t2i."""
    i2t, t2i = query_ranks(sims, owner)
    return i2t.from_zero(), t2i.from_zero()


def slow_ranks(sims: np.ndarray, owner: np.ndarray, for_query: bool = False) -> tuple[list[int], list[int]]:
    """Sort the answers of each query with every wrong one before the right ones that tie with it, or after them."""

    def first_right(similarity, right) -> int:
        order = sorted(range(len(similarity)), key=lambda j: (-float(similarity[j]), right[j] != for_query))
        return next(place for place, j in enumerate(order) if right[j])

    images, captions = sims.shape
    i2t = [first_right(sims[i], [o == i for o in owner]) for i in range(images) if i in owner]
    t2i = [first_right(sims[:, c], [i == owner[c] for i in range(images)]) for c in range(captions)]
    return i2t, t2i


@st.composite
def problems(draw, dtypes=(np.float32, np.float64)):
    """Draw a non-square matrix with many ties or none, and images with any number of captions, even none."""
    images, captions = draw(st.integers(1, 9)), draw(st.integers(1, 16))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    sims = rng.uniform(-0.3, 1, (images, captions)) if draw(st.booleans()) else rng.integers(1, 5, (images, captions))
    if draw(st.booleans()) and captions >= images:  # one caption per image
        return sims[:, :images].astype(draw(st.sampled_from(dtypes))), rng.permutation(images)
    return sims.astype(draw(st.sampled_from(dtypes))), rng.integers(0, images, captions)


def test_golden_metrics_are_exact_and_the_flat_dictionary_holds_them():
    owner = np.arange(200) // 5
    i2t, t2i, mr = recall(GOLDEN["sims"], owner)
    assert list(i2t) == GOLDEN["i2t"].tolist() and list(t2i) == GOLDEN["t2i"].tolist()
    assert list(i2t._asdict()) == list(t2i._asdict()) == ["r1", "r5", "r10", "medr", "meanr"]
    assert all(i2t[name] == getattr(i2t, name) for name in i2t._fields)
    assert mr == pytest.approx((GOLDEN["i2t"][:3].sum() + GOLDEN["t2i"][:3].sum()) / 6, abs=1e-12)
    assert all((ranks(GOLDEN["sims"], owner)[i] == GOLDEN[f"{way}_ranks"]).all() for i, way in enumerate(DIRECTIONS))
    for ties in TIES:
        i2t, t2i, mr = recall(GOLDEN["sims"], owner, ties)
        flat = metrics(GOLDEN["sims"], owner, ties)
        assert list(flat) == [f"{way}_{key}" for way in ("i2t", "t2i") for key in (*i2t._fields, "map")] + ["mr"]
        assert [flat[key] for key in flat if not key.endswith("_map")] == [*i2t, *t2i, mr]
        assert flat["mr"] == pytest.approx(np.mean([flat[key] for key in SIX]))


def test_a_further_metric_is_one_entry_that_files_and_tables_show(monkeypatch):
    monkeypatch.setitem(MEASURES, "r20", lambda ranks, ties: 100.0 * float(ranks.hits(20, ties).mean()))
    found = query_ranks(np.eye(30), np.arange(30))
    assert found.metrics()["t2i_r20"] == 100
    fold = results.FoldScore(fold=0, split="test", images=30, captions=30, **dict(results.score_of(found)))
    run = results.Results.model_validate(results.Results.of([fold], experiment="x", dataset="y").model_dump())
    assert run.mean.i2t["r20"] == 100 and "t2i r20" in tables.comma_separated(run)
    assert "| i2t r20" in tables.change_table(run.mean, run.mean) and "| i2t r20" in tables.markdown(run)


def flat(scores) -> list[float]:
    """Return all numbers but the median ranks, which are no means."""
    return [*(x for way in scores[:2] for x in (*way[:3], way.meanr)), scores.mr]


@settings(deadline=None, max_examples=150)
@given(problems(dtypes=(np.float32, np.float64, np.int32, np.float16)))
def test_ranks_agree_with_the_definition_and_ties_at_random_lie_between_against_and_for(problem):
    sims, owner = problem
    for ties in ("against", "for"):
        found = tuple(way.from_zero(ties).tolist() for way in query_ranks(sims, owner))
        assert found == slow_ranks(sims, owner, for_query=ties == "for")
    against, at_random, best = (flat(recall(sims, owner, ties)) for ties in TIES)
    gain = np.array([1, 1, 1, -1, 1, 1, 1, -1, 1])  # a higher rank is worse
    assert (gain * np.subtract(best, at_random) >= -1e-9).all()
    assert (gain * np.subtract(at_random, against) >= -1e-9).all()


def test_blocks_join_to_the_same_ranks(monkeypatch):
    rng = np.random.default_rng(0)
    sims, owner = rng.integers(0, 50, (301, 90)).astype(np.float32), rng.integers(0, 301, 90)
    whole = ranks(sims, owner)
    monkeypatch.setattr("postprocessing.recall.BLOCK", 1)
    for one, other in zip(whole, ranks(sims, owner), strict=True):
        assert (one == other).all()


def test_a_constant_matrix_scores_like_the_worst_ranking_like_chance_or_perfectly_by_the_ties():
    sims, owner = np.full((40, 200), 0.7, np.float32), image_of_caption(40, 200)
    i2t, t2i, mr = recall(sims, owner)
    assert mr == 0 and (i2t["medr"], i2t["meanr"], t2i["medr"], t2i["meanr"]) == (196, 196, 40, 40)
    assert recall(sims, owner, "random") == chance(owner, 40)
    assert recall(sims, owner, "for").mr == 100
    with pytest.raises(InputError, match="ties must be against, random or for, got 'both'"):
        recall(sims, owner, ties="both")


def in_all_orders(sims: np.ndarray, owner: np.ndarray) -> dict[str, list[Fraction]]:
    """Return R@1, R@5, R@10 and mean rank of both directions, averaged over every order that ties may take."""
    by_image = [(row, owner == image) for image, row in enumerate(sims) if image in owner]
    by_caption = [(column, np.arange(len(sims)) == owner[caption]) for caption, column in enumerate(sims.T)]
    means = {}
    for direction, queries in (("i2t", by_image), ("t2i", by_caption)):
        ranks = []
        for similarity, right in queries:
            for order in itertools.permutations(range(len(similarity))):
                ranking = sorted(order, key=lambda j: -similarity[j])  # stable: equal ones stay in the order drawn
                ranks.append(next(place for place, j in enumerate(ranking) if right[j]))
        hits = [Fraction(100 * sum(rank < k for rank in ranks), len(ranks)) for k in (1, 5, 10)]
        means[direction] = [*hits, Fraction(sum(ranks), len(ranks)) + 1]
    return means


@pytest.mark.parametrize("seed", range(6))
def test_ties_at_random_are_the_mean_over_all_orders(seed):
    rng = np.random.default_rng(seed)
    sims, owner = rng.integers(0, 2, (6, 7)).astype(np.float32), rng.integers(0, 6, 7)
    i2t, t2i, mr = recall(sims, owner, ties="random")
    exact = in_all_orders(sims, owner)
    for direction, scores in (("i2t", i2t), ("t2i", t2i)):
        np.testing.assert_allclose([*scores[:3], scores.meanr], np.array(exact[direction], float), rtol=1e-14)
    assert mr == pytest.approx(float(sum(exact["i2t"][:3] + exact["t2i"][:3]) / 6), rel=1e-14)


def test_the_line_of_a_validation_shows_ties_at_random_where_they_matter():
    way = recall(np.eye(2), np.arange(2)).i2t._asdict()
    row = {"epoch": 3, "images": 2, "captions": 2, "i2t": way, "t2i": way, "mr": 37.08, "chance": 2.52}
    assert "mR 37.08 (with ties at random 43.05, chance 2.52)" in log_line(row | {"mr_random": 43.05})
    assert "mR 37.08 (chance 2.52)" in log_line(row | {"mr_random": 37.10})
    assert "mR 37.08 (chance 2.52)" in log_line(row)  # of a run of an earlier version


def test_the_median_rank_is_the_floor_of_the_median_from_0_plus_1():
    sims = np.array([[1.0, 0.0], [1.0, 0.0]])  # ranks from 0: image 0: 0, image 1: 1 -> median 0.5 -> 1
    assert recall(sims, np.arange(2))[0]["medr"] == 1


@pytest.mark.parametrize(
    ("sims", "owner", "message"),
    [
        *((np.where(AT_16, x, 0), np.arange(6) // 2, "row 2, column 4") for x in (np.nan, np.inf, -np.inf)),
        (np.zeros((3, 6)), np.zeros(5, int), "3 images x 6 captions.*shape \\(5,\\)"),
        (np.zeros((3, 6)), np.zeros((6, 1), int), "6 integers"),
        (np.zeros((3, 6)), np.zeros(6), "float64"),
        (np.zeros((3, 6)), np.array([0, 0, 1, 1, 2, 3]), "caption 5 belongs to image 3"),
        (np.zeros((3, 6)), np.array([0, -1, 1, 1, 2, 2]), "caption 1 belongs to image -1"),
        (np.zeros(6), np.zeros(6, int), "two dimensions"),
        (np.zeros((0, 6)), np.zeros(6, int), "empty"),
        (np.zeros((3, 0)), np.zeros(0, int), "empty"),
        (np.zeros((1, 1), complex), np.zeros(1, int), "complex"),
        (np.array([["a"]]), np.zeros(1, int), "real numbers"),
    ],
)
def test_what_does_not_fit_is_an_input_error(sims, owner, message):
    with pytest.raises(InputError, match=message):
        recall(sims, owner)


def test_captions_that_do_not_share_the_images_evenly_are_an_error_with_both_counts():
    assert image_of_caption(2, 6).tolist() == [0, 0, 0, 1, 1, 1]
    for images, captions in [(4, 10), (10, 4), (0, 3), (3, 0)]:
        with pytest.raises(InputError, match=f"{captions} captions.* {images} images"):
            image_of_caption(images, captions)


def test_chance_is_the_mean_over_random_matrices():
    assert chance(image_of_caption(40, 200), 40)[2] == pytest.approx(12.9, abs=0.05)
    assert chance(image_of_caption(210, 1050), 210)[2] == pytest.approx(2.5, abs=0.05)
    rng = np.random.default_rng(0)
    owner = np.array([0, 0, 0, 1, 2, 2, 4, 5, 5, 5, 5, 6])  # image 3 has no caption
    drawn = np.mean([flat(recall(rng.random((7, 12)), owner)) for _ in range(4000)], axis=0)
    assert flat(chance(owner, 7)) == pytest.approx(drawn, abs=1)
    assert chance(owner, 7).mr == pytest.approx(drawn[-1], abs=0.5)


def test_a_saved_matrix_comes_with_the_images_file_beside_it_or_even_shares(tmp_path):
    sims, file = np.random.default_rng(0).random((2, 6), np.float32), tmp_path / "run_0.npy"
    np.save(file, sims)
    assert load(file)[1].tolist() == [0, 0, 0, 1, 1, 1]
    np.save(tmp_path / "run_0_images.npy", np.array([1, 0, 0, 1, 0, 1]))
    loaded, owner = load(file)
    assert (loaded == sims).all() and owner.tolist() == [1, 0, 0, 1, 0, 1]
    assert isinstance(loaded, np.memmap)
    np.save(tmp_path / "run_0_images.npy", np.zeros(5, int))
    with pytest.raises(InputError, match=r"run_0_images\.npy.*6 captions"):
        load(file)


def test_files_that_are_no_matrix_are_input_errors_that_name_them(tmp_path):
    """Read further kinds than those of tests/test_bad_input.py and test_hostile.py."""
    np.savez(tmp_path / "archive", a=np.zeros(3))
    np.save(tmp_path / "good.npy", np.zeros((20, 100), np.float32))
    huge = (tmp_path / "good.npy").read_bytes().replace(b"(20, 100)", b"(2" + b"0" * 4 + b",9)")
    for content in (b"", b"PK\x03\x04 broken", huge, (tmp_path / "archive.npz").read_bytes()):
        (tmp_path / "bad.npy").write_bytes(content)
        with pytest.raises(InputError, match=r"bad\.npy"):
            load(tmp_path / "bad.npy")


def average_precisions(sims: np.ndarray, owner: np.ndarray, order_of) -> list[float]:
    """Return the average precision of each image and of each caption by sorting, with an order for the ties."""
    found = []
    for rows, right in (
        (sims, owner[None] == np.arange(len(sims))[:, None]),
        (sims.T, owner[:, None] == np.arange(len(sims))),
    ):
        precisions = []
        for row, is_right in zip(rows, right, strict=True):
            if is_right.any():
                hits = is_right[np.lexsort((order_of(is_right), -row))]
                precisions.append((hits.cumsum() / np.arange(1, len(hits) + 1))[hits].mean())
        found.append(100 * np.mean(precisions))
    return found


@pytest.mark.parametrize("seed", range(3))
def test_mean_average_precision_is_that_of_the_sorted_answers(seed):
    rng = np.random.default_rng(seed)
    sims, owner = rng.integers(0, 4, (6, 14)).astype(float), rng.integers(0, 5, 14)
    for ties, order in (("against", lambda right: right), ("for", lambda right: ~right)):
        found = metrics(sims, owner, ties)
        assert np.allclose([found["i2t_map"], found["t2i_map"]], average_precisions(sims, owner, order))
    draws = [average_precisions(sims, owner, lambda right: rng.random(len(right))) for _ in range(4000)]
    found = metrics(sims, owner, "random")
    assert np.allclose([found["i2t_map"], found["t2i_map"]], np.mean(draws, axis=0), atol=0.5)
