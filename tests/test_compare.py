"""The comparison of models: intervals that hold what they say, one split for all, one table with the published rows."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import norm, t

from postprocessing import compare, matrices
from postprocessing.compare import Difference, Interval, hits_of, mean_recall, over_queries, over_seeds
from postprocessing.recall import query_ranks, recall
from postprocessing.results import FoldScore, Results, score_of
from postprocessing.tables import WIDTH
from tests import test_exec
from utils import write_json

recorded = test_exec.recorded  # a fixture


def matrix(strength: float, seed: int, images: int = 60, per_image: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """Return a model's similarities, right answers higher by its strength, and each caption's image."""
    rng = np.random.default_rng(seed)
    owner = np.arange(images * per_image) // per_image
    hard = np.random.default_rng(99).standard_normal(images)  # some images are hard for every model
    sims = rng.standard_normal((images, images * per_image))
    sims[owner, np.arange(len(owner))] += strength + hard[owner]
    return sims, owner


def hits(strength: float, seeds: range, **size):
    found = [matrix(strength, seed, **size) for seed in seeds]
    return hits_of([query_ranks(*one) for one in found], found[0][1])


def test_the_hits_of_the_images_give_mr_with_uneven_captions_and_images_without_any():
    rng = np.random.default_rng(0)
    sims, owner = rng.integers(0, 6, (9, 25)).astype(float), rng.choice([0, 1, 2, 4, 5, 7, 8], 25)
    others = rng.permutation(sims.ravel()).reshape(sims.shape)
    one = hits_of([query_ranks(sims, owner), query_ranks(others, owner)], owner)
    assert len(one.i2t) == len(one.t2i) == len(set(owner.tolist()))
    expected = np.mean([recall(found, owner, "random").mr for found in (sims, others)])
    assert mean_recall(*one) == pytest.approx(expected, rel=1e-12)


def test_an_interval_is_nothing_for_equal_models_and_leaves_out_zero_for_a_clearly_better_one():
    better, worse = hits(2.5, range(2)), hits(1.0, range(2, 4))
    assert over_queries(better, better) == (0, 0)
    interval, turned = over_queries(better, worse), over_queries(worse, better)
    assert 0 < interval.low < mean_recall(*better) - mean_recall(*worse) < interval.high
    assert turned == pytest.approx((-interval.high, -interval.low))
    assert interval.leaves_out_zero and turned.leaves_out_zero


def test_the_captions_of_an_image_are_drawn_together():
    """Check the width: five captions that fail together count as one."""
    one, other = hits(1.5, range(1), per_image=1), hits(2.0, range(1, 2), per_image=1)
    fivefold = [compare.Hits(hit.i2t, 5 * hit.t2i, 5 * hit.captions) for hit in (one, other)]
    assert over_queries(*fivefold) == pytest.approx(over_queries(one, other))


def test_an_image_is_drawn_with_its_captions_and_in_both_models_at_once():
    """Take from t2i what each image adds to i2t, so that every paired draw gives a difference of 0."""
    gain = np.random.default_rng(0).normal(0, 10, 80)
    one, other = (compare.Hits(50 + sign * gain, 50 - sign * gain, np.ones(80, int)) for sign in (1, -1))
    assert over_queries(one, other) == pytest.approx((0, 0), abs=1e-9)


@pytest.mark.parametrize("level", [0.5, 0.8, 0.95])
def test_the_bootstrap_has_the_width_of_its_level_around_the_difference_whatever_its_seed(level):
    gain = np.random.default_rng(0).normal(1, 10, 200)
    one, other = (compare.Hits(50 + sign * gain, 50 + 0 * gain, np.ones(200, int)) for sign in (1, 0))
    deviation = gain.std() / np.sqrt(200) / 2
    expected = gain.mean() / 2 + norm.ppf([(1 - level) / 2, (1 + level) / 2]) * deviation
    lows = []
    for seed in range(8):
        interval = over_queries(one, other, level, seed)
        assert interval == pytest.approx(expected, abs=0.08 * deviation)
        lows.append(interval.low)
    assert np.std(lows, ddof=1) < 0.08 * deviation  # 0.027 at 9,999 draws, 0.27 at 99


@pytest.mark.parametrize("level", [0.8, 0.95])
def test_seeds_give_welch_s_interval_where_there_are_two_of_each(level):
    assert over_seeds([31.0], [30.0, 31.0]) is None
    assert over_seeds([31.0, 31.0], [30.0, 30.0]) is None
    low, high = over_seeds([30.0, 32.0, 34.0], [20.0, 21.0, 22.0], level)
    freedom = (5 / 3) ** 2 / ((4 / 3) ** 2 / 2 + (1 / 3) ** 2 / 2)  # the variances of the means are 4 / 3 and 1 / 3
    half = t.ppf((1 + level) / 2, freedom) * np.sqrt(5 / 3)
    assert (low + high) / 2 == pytest.approx(11) and (high - low) / 2 == pytest.approx(half)


@pytest.mark.parametrize(
    ("queries", "seeds", "verdict"),
    [
        ((0.5, 2.0), (0.1, 3.0), "shown"),
        ((-2.0, -0.5), (-3.0, -0.1), "shown"),
        ((0.5, 2.0), (-0.1, 3.0), "shown for these seeds"),
        ((0.5, 2.0), None, "shown for this seed"),
        ((-0.5, 2.0), (0.1, 3.0), "not shown"),
        ((0.0, 2.0), (0.1, 3.0), "not shown"),
    ],
)
def test_a_difference_is_shown_where_both_intervals_leave_out_zero(queries, seeds, verdict):
    intervals = {"queries": Interval(*queries), "seeds": seeds and Interval(*seeds)}
    assert Difference(one="A", other="B", mr=1.0, **intervals).verdict == verdict


# ---------------------------------------------------------------- the command


def save_run(folder: Path, name: str, seeds: list[int], strength: float, images: int = 30, twins: bool = True) -> None:
    """Write the files that test.py leaves of a run whose folds are the matrices of these seeds."""
    folds = []
    for fold, seed in enumerate(seeds):
        sims, owner = matrix(strength, seed, images, 2)
        if twins:
            sims[:, 1] = sims[:, 3]  # captions of different images with the same words
        file = folder / "file" / f"{name}_{fold}.npy"
        names = [f"data/images/{i}.png" for i in range(images)], [f"caption {c}" for c in range(len(owner))]
        matrices.Matrix(sims, owner, matrices.Gallery(*names)).save(file)
        sizes = {"fold": fold, "split": "test", "images": images, "captions": len(owner)}
        folds.append(FoldScore(**sizes, **dict(score_of(query_ranks(sims, owner)))))
    results = Results.of(folds, experiment=name, dataset="rsitmd", lists="rsitmd_precomp")
    write_json(folder / "runs" / name / "results.json", results.model_dump())


@pytest.fixture
def runs(tmp_path):
    """Write two seeds of two folds of each of two models."""
    for seed in range(2):
        save_run(tmp_path, f"X_GaLR_s{seed}", [seed, 10 + seed], 2.5)
        save_run(tmp_path, f"X_VSE++_s{seed}", [20 + seed, 30 + seed], 0.5)
    return tmp_path


@pytest.fixture
def command(runs, run):
    """Compare the runs by the command, with further arguments."""

    def command(more: str = "", models: str = "GaLR VSE++"):
        places = f"--runs {runs}/runs --matrices {runs}/file"
        return run(f"-m postprocessing.compare X {models} --seeds 2 {places} {more}")

    return command


def test_the_command_gives_means_deviations_intervals_and_the_published_rows(runs, command):
    done = command()
    assert (done.status, done.err) == (0, "")
    assert max(map(len, done.out.splitlines()[:-1])) <= WIDTH  # the last line names the files
    assert "mean over 2 seeds of 2 folds\n\ntest split of rsitmd_precomp: 30 images, 60 captions, chance mR" in done.out
    assert {"GaLR + rerank", "GeoRSCLIP, fine-tuned"} <= {line[2:24].rstrip() for line in done.out.splitlines()}
    written = written_by(runs)
    mr = np.array([[recall(*loaded(runs, f"X_GaLR_s{s}_{f}")).mr for f in (0, 1)] for s in (0, 1)])
    score = written["scores"][0]
    assert score["name"] == "GaLR" and score["mean"]["mr"] == pytest.approx(mr.mean())
    assert score["against"]["seeds"] == pytest.approx(mr.mean(axis=1).std(ddof=1))
    assert score["against"]["folds"] == pytest.approx(np.sqrt(mr.var(axis=1, ddof=1).mean()))
    (pair,) = written["differences"]
    assert (pair["one"], pair["other"]) == ("GaLR", "VSE++") and pair["verdict"].startswith("shown")
    one, other = (means_of_seeds(runs, model) for model in ("GaLR", "VSE++"))
    assert pair["mr"] == pytest.approx(np.mean(one) - np.mean(other))
    assert pair["queries"]["low"] < pair["mr"] < pair["queries"]["high"]
    whole = (runs / "runs/X_compare/compare.md").read_text()
    assert "Table I" in whole and "| GaLR - VSE++ |" in whole


def written_by(folder: Path) -> dict:
    return json.loads((folder / "runs/X_compare/compare.json").read_text())


def loaded(folder: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    return matrices.load(folder / "file" / f"{name}.npy")


def means_of_seeds(folder: Path, model: str) -> list[float]:
    return [np.mean([recall(*loaded(folder, f"X_{model}_s{s}_{f}"), "random").mr for f in (0, 1)]) for s in (0, 1)]


def test_the_command_s_level_is_that_of_its_intervals(runs, command):
    widths = {}
    for level in (0.5, 0.95):
        assert command(f"--level {level}").status == 0
        written = written_by(runs)
        (pair,) = written["differences"]
        widths[level] = pair["queries"]["high"] - pair["queries"]["low"]
        seeds = over_seeds(means_of_seeds(runs, "GaLR"), means_of_seeds(runs, "VSE++"), level)
        assert written["level"] == level and list(pair["seeds"].values()) == pytest.approx(list(seeds))
    assert 0.2 < widths[0.5] / widths[0.95] < 0.5  # of a normal 0.34


def test_one_seed_says_nothing_of_seeds_and_one_model_has_no_pairs(command):
    out = command("--seeds 1").out
    assert "mean over 1 seed of 2 folds" in out
    row = next(line for line in out.splitlines() if line.startswith("| GaLR - VSE++"))
    assert [cell.strip() for cell in row.split("|")[-3:-1]] == ["-", "shown for this seed"]
    alone = command(models="GaLR")
    assert alone.status == 0 and "| ties random" in alone.out and "Differences" not in alone.out


def reverse(folder: Path, what: str) -> None:
    file = folder / "file/X_GaLR_s1_0_gallery.json"
    tree = json.loads(file.read_text())
    tree[what].reverse()
    file.write_text(json.dumps(tree))


@pytest.mark.parametrize(
    ("arguments", "damage", "message"),
    [
        ("--seeds 0", None, "--seeds must be an integer"),
        ("--level 1.5", None, "--level must lie between"),
        ("--seeds 3", None, "X_GaLR_s2/results.json is not there"),
        (f"--out {__file__}", None, "is not a folder that you may write to"),
        (
            "",
            lambda folder: save_run(folder, "X_GaLR_s1", [1, 11], 2.5, images=31),
            "X_GaLR_s0 and X_GaLR_s1 were scored on different images",
        ),
        ("", lambda folder: reverse(folder, "images"), "were scored on different images"),
        ("", lambda folder: reverse(folder, "captions"), "were scored on different captions"),
        ("", lambda folder: save_run(folder, "X_VSE++_s1", [5], 1.0), "X_VSE++_s1 were scored on different folds"),
        ("", lambda folder: shutil.rmtree(folder / "runs/X_VSE++_s1"), "X_VSE++_s1/results.json is not there; train"),
        ("", lambda folder: (folder / "file/X_GaLR_s0_1.npy").unlink(), "X_GaLR_s0_1.npy is not there"),
        ("", lambda folder: (folder / "file/X_GaLR_s0_1_gallery.json").unlink(), "_1_gallery.json is not there"),
        (
            "",
            lambda folder: shutil.copy(folder / "file/X_GaLR_s0_1.npy", folder / "file/X_GaLR_s0_0.npy"),
            "X_GaLR_s0_0.npy is not what",
        ),
    ],
)
def test_what_does_not_compare_is_refused_in_one_line_and_nothing_is_written(runs, command, arguments, damage, message):
    if damage:
        damage(runs)
    done = command(arguments)
    assert done.status == 2 and message in done.message
    assert not (runs / "runs/X_compare").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "name a data set"),
        ("DEMO", "name one or more models"),
        ("DEMO nope", "there is no option/DEMO/DEMO_nope.yaml"),
        ("DEMO GaLR GaLR:optim.lr=1e-4 GaLR:optim.lr=1e-4", "GaLR-lr-1e-4 is there twice"),
        ("DEMO GaLR --seeds 0", "--seeds must be an integer"),
        ("DEMO GaLR --seeds", "--seeds must be an integer"),
    ],
)
def test_the_script_refuses_what_it_cannot_run_before_it_makes_an_environment(arguments, message, tmp_path):
    done = test_exec.script(f"bash exec/compare.sh {arguments}", {"GALR_VENV": str(tmp_path / "venv")})
    assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1
    assert not (tmp_path / "venv").exists()


def test_the_script_trains_every_model_with_every_seed_and_compares_them(recorded):
    changed, other = "GaLR:optim.betas=[0.9,0.98],optim.lr=1e-4", "GaLR-betas--0.9-0.98--lr-1e-4"
    _, calls = recorded(f"bash exec/compare.sh DEMO GaLR {changed} --seeds 2 --set optim.epochs=1 --device cpu")
    train, test = ([call.split() for call in calls if call.startswith(name)] for name in ("train.py", "test.py"))
    assert [call[-1] for call in train] == [
        f"k_fold.experiment_name=DEMO_{name}_s{seed}" for seed in (0, 1) for name in ("GaLR", other)
    ]
    assert train[3][-5:-1] == ["--set", "optim.betas=[0.9,0.98]", "optim.lr=1e-4", "seed=1"]
    assert all({"--resume", "optim.epochs=1", "cpu"} <= set(call) for call in train)
    assert [call[1:] for call in test] == [[*call[1:3], "--rerank", *call[4:]] for call in train]
    assert calls[-1].startswith(f"-m postprocessing.compare DEMO GaLR {other} --seeds 2 --runs ")
