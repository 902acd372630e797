"""Rerank: the golden scores and orders, a direct reading of the equations, and the command."""

from __future__ import annotations

import itertools
import json
import math
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import postprocessing.rerank as rerank
from postprocessing.matrices import load
from postprocessing.recall import TIES, recall
from postprocessing.rerank import Reranker, Setting, multivariate, multivariate_order, rerank_recall
from tests.test_recall import problems
from utils import InputError

ROOT = Path(__file__).parent.parent
GOLDEN = np.load(Path(__file__).parent / "golden" / "similarity_a.npz", allow_pickle=False)
SETTINGS = ("k30", "k10", "k20")


def slow_positions(sims):
    """Return the position of each column in each row's ranking, equal similarities in index order."""
    position = []
    for row in sims:
        order = sorted(range(len(row)), key=lambda j: (-row[j], j))
        position.append([order.index(j) for j in range(len(row))])
    return position


def slow_multivariate(sims, k, w_similarity, w_reverse, xi, variant, l):  # noqa: E741
    """Return {candidate: score} of each query, best first, by the equations, one number at a time."""
    forward, back = slow_positions(sims), slow_positions(sims.T)
    k = min(max(k, 10) if variant == "released" else k, sims.shape[1])
    answer = []
    for i in range(len(sims)):
        chosen = sorted(range(sims.shape[1]), key=lambda j: forward[i][j])[:k]
        by_reverse = sorted(chosen, key=lambda j: (back[j][i], forward[i][j]))
        score = {}
        for j in chosen:
            c_forward = math.exp(-xi * (forward[i][j] + 1))
            c_similarity = float(sims[i, j]) / math.fsum(float(s) for s in sims[:, j])
            if variant == "released":
                c_reverse = math.exp(-xi * (by_reverse.index(j) + 1))
            else:
                c_reverse = math.exp(-xi * (back[j][i] + 1)) if l is None or back[j][i] < l else 0
            score[j] = c_forward + w_similarity * c_similarity + w_reverse * c_reverse
        answer.append(score)
    return answer


def agrees_with_the_equations(sims, k, w_similarity, w_reverse, xi, variant, l):  # noqa: E741
    expected = slow_multivariate(sims, k, w_similarity, w_reverse, xi, variant, l)
    scores = multivariate(sims, k, w_similarity, w_reverse, xi, variant, l)
    assert scores.shape == sims.shape and scores.dtype == sims.dtype
    for row, old, candidates in zip(scores, sims, expected, strict=True):
        chosen = list(candidates)
        np.testing.assert_allclose(row[chosen], list(candidates.values()), rtol=1e-6, atol=1e-6)
        others = np.delete(row, chosen)
        assert (others < row[chosen].min()).all()
        _, old_order = np.unique(np.delete(old, chosen), return_inverse=True)
        _, new_order = np.unique(others, return_inverse=True)
        assert (old_order == new_order).all()


setting = st.fixed_dictionaries(
    {
        "k": st.integers(1, 20),
        "w_similarity": st.sampled_from([0.0, 0.3, 5.0]),
        "w_reverse": st.sampled_from([0.0, 1.1]),
        "xi": st.sampled_from([0.05, 0.3]),
        "variant": st.sampled_from(["released", "paper"]),
        "l": st.sampled_from([None, 0, 2, 5]),
    }
)


def summable(sims):
    """Return whether all rows and columns have a sum; without one c_similarity is undefined or rounding."""
    return min(abs(sims.sum(0)).min(), abs(sims.sum(1)).min()) > 1e-2


@settings(deadline=None, max_examples=1000)
@given(problems().filter(lambda problem: summable(problem[0])), setting)
def test_both_directions_agree_with_the_equations(problem, setting):
    agrees_with_the_equations(problem[0], **setting)
    agrees_with_the_equations(problem[0].T, **setting)


@settings(deadline=None, max_examples=150)
@given(problems(), setting)
def test_recall_after_the_rerank_is_that_of_the_reranked_matrices(problem, setting):
    sims, owner = problem
    if not summable(sims):
        return
    by_image, by_caption = multivariate(sims, **setting), multivariate(sims.T, **setting).T
    for ties in TIES:
        i2t, _, _ = recall(by_image, owner, ties)
        _, t2i, _ = recall(by_caption, owner, ties)
        streamed = rerank_recall(sims, owner, Setting(**setting), ties)
        assert streamed[:2] == (i2t, t2i)
        assert streamed[2] == pytest.approx(sum(d[r] for d in (i2t, t2i) for r in ("r1", "r5", "r10")) / 6)


@pytest.mark.parametrize("name", SETTINGS)
def test_golden_scores_reverse_orders_and_recalls(name):
    k, w_similarity, w_reverse = GOLDEN[f"{name}_params"].tolist()
    setting = Setting(k=int(k), w_similarity=w_similarity, w_reverse=w_reverse)
    recalls = rerank_recall(GOLDEN["sims"], np.arange(200) // 5, setting)
    for way, found in zip(("i2t", "t2i"), recalls, strict=False):
        sims, golden, order = (
            GOLDEN[key] for key in ("sims", f"{name}_multivariate_{way}", f"{name}_reverse_{way}_order")
        )
        if way == "t2i":
            sims, golden, order = sims.T, golden.T, order.T
        inside = golden != 0
        assert (inside.sum(axis=1) == k).all()
        for precision in (np.float64, np.float32):
            scores = multivariate(sims.astype(precision), int(k), w_similarity, w_reverse)
            assert np.abs(scores - golden)[inside].max() < 1e-6
            assert (np.where(inside, np.inf, scores).max(axis=1) > 0).all()
            assert (np.where(inside, -np.inf, scores).max(1) < np.where(inside, scores, np.inf).min(1)).all()
        best = rerank.find_candidates(sims, int(k))
        assert (np.take_along_axis(best.index, np.argsort(best.back, axis=1, kind="stable"), axis=1) == order).all()
        assert list(found[:3]) == GOLDEN[f"{name}_multivariate_{way}_recall"].tolist()


def test_the_order_is_that_of_the_scores_and_the_input_stays_as_it_was():
    sims = GOLDEN["sims"].copy()
    order, scores = multivariate_order(sims, Setting(k=20)), multivariate(sims, 20, 0.3, 1.1)
    assert (order == np.argsort(-scores, axis=1, kind="stable")[:, :20]).all() and (sims == GOLDEN["sims"]).all()


def of_the_size(scale):
    sims = scale * np.random.default_rng(0).uniform(0.5, 1, (6, 40))
    sims[:, :10] = scale * np.array([[3.0], [2.0], [1.0], [0.9], [0.8], [0.7]])
    return sims


ALMOST_EQUAL = np.full((3, 14), 2.0)
ALMOST_EQUAL[:, 10:] = [5e-324, 0.0, 1e-310, 1.5]  # differ by less than any sum shows; 1.5 is above the lowest score


@pytest.mark.parametrize(
    ("sims", "k", "variant", "cut"),
    [
        *((of_the_size(sign * scale), 10, "released", None) for sign in (1, -1) for scale in (1e-300, 1.0, 1e20)),
        (ALMOST_EQUAL, 10, "released", None),
        (np.full((12, 30), 0.5, np.float32), 11, "released", None),  # ties alone: in index order
        (np.full((30, 12), 0.5), 3, "paper", 4),
    ],
)
def test_others_stay_below_in_their_old_order_whatever_the_size_of_the_similarities(sims, k, variant, cut):
    agrees_with_the_equations(sims, k, 0.3, 1.1, 0.05, variant, cut)


def test_a_column_that_sums_to_zero_has_no_share():
    sims = np.array([[0.5, 0.2], [-0.5, 0.1]])
    assert multivariate(sims, 2, 10.0, 0.0)[:, 0] == pytest.approx([math.exp(-0.05), math.exp(-0.1)])


def test_blocks_join_to_the_same_scores(monkeypatch):
    sims = np.random.default_rng(0).random((300, 170), np.float32)
    whole = multivariate(sims, 12, 0.3, 1.1)
    monkeypatch.setattr("postprocessing.recall.BLOCK", 1)
    assert (multivariate(sims, 12, 0.3, 1.1) == whole).all()


def test_k_is_at_most_the_gallery_and_in_the_released_variant_at_least_10():
    sims = np.random.default_rng(0).random((7, 40))
    assert (multivariate(sims, 3, 0.3, 1.1) == multivariate(sims, 10, 0.3, 1.1)).all()
    assert (multivariate(sims, 99, 0.3, 1.1) == multivariate(sims, 40, 0.3, 1.1)).all()
    assert multivariate_order(sims, Setting(k=3, variant="paper")).shape == (7, 3)


@pytest.mark.parametrize(
    ("name", "value"),
    [("k", 0), ("k", 2.5), ("w_similarity", np.nan), ("w_reverse", -1.0), ("xi", np.inf), ("l", -1), ("variant", "x")],
)
def test_a_setting_that_means_nothing_is_an_input_error(name, value):
    with pytest.raises(InputError, match=name):
        multivariate(np.ones((3, 6)), **{"k": 5, "w_similarity": 0.3, "w_reverse": 1.1, name: value})


def test_the_search_finds_the_best_setting_of_its_grid_and_of_equal_ones_the_first(monkeypatch):
    grid = {"k": (10, 20), "w_similarity": (0.0, 0.3), "w_reverse": (0.0, 1.1, 3.0)}
    monkeypatch.setattr(rerank, "GRID", grid)
    sims, owner = GOLDEN["sims"], np.arange(200) // 5
    best, mr = rerank.search([Reranker(sims, owner, 20)], Setting())
    by_hand = {at: rerank_recall(sims, owner, Setting(*at))[2] for at in itertools.product(*grid.values())}
    assert mr.ravel().tolist() == list(by_hand.values())
    assert by_hand[best.k, best.w_similarity, best.w_reverse] == max(by_hand.values())
    assert mr[0, 0, 0] == pytest.approx(recall(sims, owner)[2])  # both weights 0: the order stays
    sims, owner = np.kron(np.eye(12), np.ones(2)) + 0.1, np.arange(24) // 2  # perfect whatever the setting
    best, mr = rerank.search([Reranker(sims, owner, 100)], Setting(variant="paper"))
    assert mr.min() == mr.max() == 100
    assert (best.k, best.w_similarity, best.w_reverse) == (10, 0.0, 0.0)


# The command


@pytest.fixture
def saved(tmp_path):
    rng = np.random.default_rng(0)
    for fold in range(2):
        for part, images in (("", 30), ("_val", 41)):
            sims = 0.3 + 0.1 * rng.standard_normal((images, 3 * images)).astype(np.float32)
            owner = rng.permutation(np.arange(3 * images) // 3)
            sims[owner, np.arange(3 * images)] += 0.15
            np.save(tmp_path / f"run_{fold}{part}.npy", sims)
            np.save(tmp_path / f"run_{fold}{part}_images.npy", owner)
    return tmp_path


def test_the_command_gives_the_mean_of_a_glob_before_and_after(saved, run):
    done = run(f"-m postprocessing.rerank --sims {saved}/run_*.npy --k 20 --out {saved}/scores.json")
    assert (done.status, done.err) == (0, "")
    written = json.loads((saved / "scores.json").read_text())
    assert [Path(matrix["file"]).name for matrix in written["matrices"]] == ["run_0.npy", "run_1.npy"]
    after = []
    for fold in range(2):
        sims, owner = load(saved / f"run_{fold}.npy")
        assert written["matrices"][fold]["before"]["mr"] == pytest.approx(recall(sims, owner)[2])
        after.append(rerank_recall(sims, owner, Setting(k=20))[2])
    assert written["mean"]["after"]["mr"] == pytest.approx(np.mean(after))
    assert f"{np.mean(after):.2f}" in done.out and "30 images, 90 captions, chance mR" in done.out
    expanded = " ".join(map(str, sorted(saved.glob("run_*.npy"))))  # as a shell does it
    assert run(f"-m postprocessing.rerank --sims {expanded} --k 20").out == done.out


def test_the_module_and_the_file_are_the_same_command_from_any_folder_without_torch(saved):
    def process(*words: object, folder: Path = saved, **more: str) -> tuple[int, str, str]:
        command, environment = [sys.executable, *map(str, words)], os.environ | more
        done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment)
        return done.returncode, done.stdout, done.stderr

    sims = "--sims", saved / "run_0.npy"
    status, out, err = process("-m", "postprocessing.rerank", *sims, PYTHONPATH=str(ROOT))
    assert (status, err) == (0, "") and "| mR" in out
    assert process(ROOT / "postprocessing/rerank.py", *sims) == (status, out, err)
    code = "import sys, postprocessing.rerank; print({'torch', 'matplotlib'} & set(sys.modules))"
    assert process("-c", code, folder=ROOT)[1] == "set()\n"


def test_the_search_reports_the_test_matrix_with_the_setting_chosen_on_validation(saved, run):
    validation, owner = load(saved / "run_0_val.npy")
    np.save(saved / "run_0_val.npy", validation.round(1))  # ties, which the rerank breaks by index and the plain mR not
    plain = recall(validation.round(1), owner).mr
    done = run(f"-m postprocessing.rerank --sims {saved}/run_0.npy --search --out {saved}/scores.json")
    assert done.status == 0 and f"mR {plain:.2f} without rerank" in done.out
    written = json.loads((saved / "scores.json").read_text())
    chosen, _ = rerank.search([Reranker(*load(saved / "run_0_val.npy"), 100)], Setting())
    assert written["setting"] == asdict(chosen)
    assert written["mean"]["after"]["mr"] == pytest.approx(rerank_recall(*load(saved / "run_0.npy"), chosen)[2])


@pytest.mark.parametrize(("shared", "refused"), [("b.png", True), ("c.png", False)])
def test_a_setting_is_not_chosen_on_images_of_the_test_split(saved, run, shared, refused):
    """Refuse another fold's matrix of the test split, by the galleries that test.py leaves."""
    for name, images in (("run_0", ["a.png", "b.png"]), ("run_1", [shared])):
        (saved / f"{name}_gallery.json").write_text(json.dumps({"images": images, "captions": []}))
    done = run(f"-m postprocessing.rerank --sims {saved}/run_0.npy --search --val {saved}/run_1.npy")
    assert (done.status, "of the same images as the test matrix" in done.err) == ((2, True) if refused else (0, False))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("none_*.npy", "none_*.npy is not there"),
        ("run_0.npy --k 0", "k must be an integer >= 1, got 0"),
        ("run_0.npy --w_reverse nan", "w_reverse"),
        ("run_0.npy --l 5", "--l belongs to"),
        ("run_0.npy --val run_0_val.npy", "--val is for --search"),
        ("run_0.npy --search --val ./run_0.npy", "of the same images as the test matrix"),
        ("run_0.npy run_1.npy --search --val run_0_val.npy", "1 validation matrices for 2"),
        ("run_0.npy --search --val missing.npy", "missing.npy is not there"),
        ("run_0.npy --search --out .", "is a folder"),
    ],
)
def test_wrong_input_is_one_line_and_status_2(saved, run, monkeypatch, arguments, message):
    before = sorted(saved.iterdir())
    monkeypatch.chdir(saved)
    done = run(f"-m postprocessing.rerank --sims {arguments}")
    assert done.status == 2 and message in done.message
    assert sorted(saved.iterdir()) == before


def test_the_command_shows_ties_at_random_before_and_after_where_they_matter(tmp_path, run):
    sims, owner = np.random.default_rng(0).random((12, 24)), np.arange(24) // 2
    sims[:, 1::2] = np.roll(sims[:, ::2], 1, axis=1)  # every caption has a twin at the next image
    np.save(tmp_path / "twins.npy", sims)
    out = run(f"-m postprocessing.rerank --sims {tmp_path}/twins.npy --k 10").out
    before, after = recall(sims, owner, "random").mr, rerank_recall(sims, owner, Setting(k=10), "random").mr
    assert f"with ties at random {before:.2f} and {after:.2f}" in out
    row = next(line for line in out.splitlines() if line.startswith("| mR, ties at random"))
    assert [cell.strip() for cell in row.split("|")[2:4]] == [f"{before:.2f}", f"{after:.2f}"]
    assert before - recall(sims, owner).mr > 0.05
