"""Check which epoch the best checkpoint is of."""

from __future__ import annotations

import csv
import json
import signal
from pathlib import Path

import drawn
import numpy as np
import pytest
import torch
from interrupted import at_step, stop
from matplotlib.figure import Figure

import train
from postprocessing.recall import chance, recall

pytestmark = pytest.mark.usefixtures("short_trunk")
FOLD = Path("checkpoint/drawn/0")
# four validation images with five captions each, eight steps an epoch
COMMAND = "train.py --path_opt drawn.yaml --device cpu --set k_fold.val_fraction=0.2 dataset.batch_size=10"


@pytest.fixture
def scored(tmp_path, monkeypatch):
    """Let the validations of a run find similarity matrices that are given, one after the other."""
    drawn.draw(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(train, "retrieval_grid", lambda *_: Figure())

    def give(*matrices: np.ndarray) -> None:
        left = iter(matrices)
        monkeypatch.setattr(train, "similarities", lambda *_: next(left))

    return give


def matrix(right: int) -> np.ndarray:
    """Return similarities of which so many of the 20 captions find their image first, and the others last."""
    own = np.repeat(np.eye(4, dtype=np.float32), 5, axis=1)
    return np.where(np.arange(20) < right, own, -own) + np.linspace(0, 0.1, 20, dtype=np.float32)


def best() -> dict:
    return torch.load(FOLD / "GaLR_best.pth.tar", weights_only=True)


@pytest.mark.parametrize(
    ("right", "epoch"),
    [((3, 5, 4), 1), ((4, 5, 5), 1), ((5, 4, 3), 0), ((3, 4, 5), 2)],
    ids=["the middle is best", "of equal scores the first", "the first is best", "the last is best"],
)
def test_the_best_checkpoint_is_of_the_first_epoch_with_the_highest_validation_score(right, epoch, scored, run) -> None:
    scored(*map(matrix, right))
    assert run(f"{COMMAND} optim.epochs=3").status == 0
    scores = [row["mr"] for row in json.loads((FOLD / "history.json").read_text())["val"]]
    assert np.argsort(scores, kind="stable").tolist() == np.argsort(right, kind="stable").tolist()
    state = best()
    assert state["epoch"] == epoch and state["Eiters"] == 8 * (epoch + 1)
    assert state["best_rsum"] == pytest.approx(6 * max(scores))


def test_ties_count_against_the_query_where_the_best_epoch_is_chosen(scored, run) -> None:
    """A model that gives all answers one score is worth its chance at random, and nothing here."""
    equal, hardly = np.zeros((4, 20), np.float32), matrix(1)
    owner = np.repeat(np.arange(4), 5)
    assert recall(equal, owner, "random")[2] > recall(hardly, owner, "random")[2]
    assert recall(equal, owner)[2] < recall(hardly, owner)[2]
    scored(hardly, equal)
    assert run(f"{COMMAND} optim.epochs=2").status == 0
    assert best()["epoch"] == 0
    (_, row) = json.loads((FOLD / "history.json").read_text())["val"]
    assert row["mr"] == pytest.approx(recall(equal, owner)[2])
    assert row["mr_random"] == pytest.approx(recall(equal, owner, "random")[2])
    assert (row["images"], row["captions"]) == (4, 20)
    assert row["chance"] == pytest.approx(chance(owner, 4)[2])


def test_a_resumed_run_remembers_its_best_epoch(scored, run) -> None:
    scored(matrix(5), matrix(4))
    with at_step(10, stop(signal.SIGTERM)):
        assert run(f"{COMMAND} optim.epochs=2").status == 143
    assert run(f"{COMMAND} optim.epochs=2 --resume").status == 0
    assert best()["epoch"] == 0
    assert torch.load(FOLD / "last.pth.tar", weights_only=True)["best_rsum"] == best()["best_rsum"]


def test_validation_comes_every_eval_step_epochs_and_after_the_last(scored, run) -> None:
    scored(matrix(3), matrix(4))
    assert run(f"{COMMAND} optim.epochs=3 logs.eval_step=2").status == 0
    rows = json.loads((FOLD / "history.json").read_text())["val"]
    assert [row["epoch"] for row in rows] == [1, 2]


@pytest.mark.parametrize(
    ("right", "options", "epochs"),
    [
        ((3, 5, 4, 5, 6), "", 4),  # equal is not better
        ((3, 4, 5, 4, 4), "", 5),
        ((5, 4, 6, 5, 5), "", 5),  # counted anew from the better one
        ((5, 4, 3, 2, 1), "", 3),
        ((5, 4, 3, 2, 1), "optim.early_stopping=0", 5),
        ((5, 4, 3), "logs.eval_step=2", 4),  # validations after epochs 1 and 3 (from 0)
    ],
)
def test_training_stops_early_where_no_validation_gets_better(right, options, epochs, scored, run) -> None:
    scored(*map(matrix, right))
    command = f"{COMMAND} optim.epochs=5 optim.early_stopping=2 {options}"
    outcome = run(command)
    assert outcome.status == 0
    last = torch.load(FOLD / "last.pth.tar", weights_only=True)
    assert last["epoch"] == epochs
    early = f"fold 0 stops early, after epoch {epochs - 1}: no validation was better in 2 epochs"
    assert (early in outcome.out) == (epochs < 5)
    assert "fold 0 is finished: skipped" in run(f"{command} --resume").out


def test_early_stopping_counts_across_a_resume_and_more_patience_goes_on(scored, run) -> None:
    scored(*map(matrix, (5, 4, 3, 2, 1)))
    command = f"{COMMAND} optim.epochs=5 optim.early_stopping"
    with at_step(12, stop(signal.SIGTERM)):
        assert run(f"{command}=2").status == 143
    assert "stops early, after epoch 2" in run(f"{command}=2 --resume").out
    assert "stops early, after epoch 3" in run(f"{command}=3 --resume").out
    assert torch.load(FOLD / "last.pth.tar", weights_only=True)["epoch"] == 4
    assert best()["epoch"] == 0


def test_the_log_is_a_table_too(scored, run) -> None:
    scored(matrix(3), matrix(4))
    with at_step(13, stop(signal.SIGTERM)):
        run(f"{COMMAND} optim.epochs=2 logs.print_freq=4")
    rows = list(csv.DictReader((FOLD / "log.csv").open()))
    assert [(row["step"], bool(row["loss"]), bool(row["t2i_r10"])) for row in rows] == [
        ("4", True, False),
        ("8", True, False),
        ("8", False, True),
        ("12", True, False),
    ]
    run(f"{COMMAND} optim.epochs=2 logs.print_freq=4 --resume --force")
    history = json.loads((FOLD / "history.json").read_text())
    rows = list(csv.DictReader((FOLD / "log.csv").open()))
    assert len(rows) == 6 and float(rows[-1]["mr"]) == history["val"][-1]["mr"]
    assert float(rows[0]["loss"]) == history["train"][0]["loss"]
