"""Check the thread that writes checkpoints and pictures beside the training loop."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from interrupted import FOLD, LAST, TRAIN, Killed, at_step, die, steps
from soak import compare

import engine
import train
from util.background import Background
from util.checkpoint import previous
from util.train_state import snapshot
from utils import RunError

pytestmark = pytest.mark.usefixtures("short_trunk", "without_pictures")


@pytest.fixture
def gate() -> threading.Event:
    return threading.Event()


def test_the_newest_job_of_a_name_is_done_and_those_of_the_first_name_before_others(gate) -> None:
    """A last checkpoint that says how good the best is must not be on disk before that best one."""
    done = []
    with Background(("best", "last")) as background:
        background.put("last", lambda: (gate.wait(60), done.append("last 0")))
        while background._waiting:  # until the thread has it
            pass
        for name in ("last 1", "best 1", "last 2", "best 2"):
            background.put(name.split()[0], lambda name=name: done.append(name))
        assert done == []
        gate.set()
    assert done == ["last 0", "best 2", "last 2"]


def test_an_error_is_raised_by_the_next_call_and_nothing_more_is_done(gate) -> None:
    def fail() -> None:
        gate.wait(60)
        raise RunError("the disk is full")

    done = []
    with pytest.raises(RunError, match="the disk is full"), Background(("a", "b")) as background:
        background.put("a", fail)
        background.put("b", lambda: done.append("b"))
        background.check()
        gate.set()
        with pytest.raises(RunError):
            background.wait()
        with pytest.raises(RunError):
            background.put("b", lambda: done.append("b"))
    assert done == []


def test_the_error_of_the_loop_counts_more_than_that_of_a_job() -> None:
    def fail() -> None:
        raise RunError("the disk is full")

    with pytest.raises(ValueError, match="the loop"), Background(("a",)) as background:
        background.put("a", fail)
        raise ValueError("the loop")


def test_a_snapshot_holds_copies_on_the_cpu_of_every_tensor_and_list() -> None:
    tree = {"model": {"a": torch.ones(2, 3).T}, "rows": [{"loss": 1.0}], "of": (torch.zeros(1), 5)}
    copied = snapshot(tree, torch.device("cpu"))()
    tree["model"]["a"].zero_()
    tree["of"][0].fill_(7)
    tree["rows"].append(2)
    assert copied["model"]["a"].tolist() == [[1, 1]] * 3 and copied["model"]["a"].stride() == (1, 3)
    assert copied["rows"] == [{"loss": 1.0}] and copied["of"] == (0, 5)


def test_the_loop_goes_on_while_a_checkpoint_is_written_which_holds_the_state_of_its_step(
    work, run, whole, gate, monkeypatch
) -> None:
    """The one of step 3 is written after step 6: the loop did not wait, and the later steps changed nothing in it."""
    assert run(f"{TRAIN} --set k_fold.experiment_name=plain optim.epochs=1").status == 0
    expected = torch.load(previous(Path("checkpoint/plain/0/last.pth.tar")), weights_only=True)
    real = train.save_checkpoint

    def slow(state: dict, path: Path, **arguments: bool) -> None:
        assert gate.wait(60)
        real(state, path, **arguments)
        if state["Eiters"] == 3:
            shutil.copy(path, "third.pth.tar")

    monkeypatch.setattr(train, "save_checkpoint", slow)
    with at_step(6, gate.set):
        assert run(TRAIN).status == 0
    third = torch.load("third.pth.tar", weights_only=True)
    assert expected["Eiters"] == 3 and compare(third["model"], expected["model"], "") == []
    assert compare(third["optimizer"], expected["optimizer"], "") == []


def test_an_error_of_the_loop_waits_for_the_checkpoint(work, run, monkeypatch) -> None:
    writing, real = threading.Event(), train.save_checkpoint

    def slow(state: dict, path: Path, **arguments: bool) -> None:
        writing.set()
        threading.Event().wait(0.3)
        real(state, path, **arguments)

    monkeypatch.setattr(train, "save_checkpoint", slow)
    with at_step(4, lambda: (writing.wait(60), die())), pytest.raises(Killed):
        run(TRAIN)
    assert steps(LAST) == 3


@pytest.mark.parametrize(("minutes", "saved_at"), [(3, [3, 4, 7, 8]), (0, [4, 8])])
def test_checkpoints_come_by_the_clock_which_starts_anew_at_each(
    minutes, saved_at, work, run, monkeypatch, written_at_once
) -> None:
    """Steps of a minute each, four an epoch, at whose end there is a checkpoint in any case."""
    now, saved, real_step, real_save = [0], [], engine.train_step, train.save_checkpoint

    def step(*arguments) -> torch.Tensor:
        now[0] += 60
        return real_step(*arguments)

    def save(state: dict, path: Path, **arguments: bool) -> None:
        real_save(state, path, **arguments)
        saved.extend([state["Eiters"]] if path.name == LAST.name else [])

    monkeypatch.setattr(engine, "train_step", step)
    monkeypatch.setattr(train, "save_checkpoint", save)
    monkeypatch.setattr(train, "time", SimpleNamespace(monotonic=lambda: now[0]))
    assert run(f"{TRAIN} --set logs.save_steps=0 logs.save_minutes={minutes}").status == 0
    assert saved == saved_at


def test_the_picture_of_a_validation_is_drawn_beside_the_loop(work, run, monkeypatch) -> None:
    drawn_by, real = [], train.retrieval_grid

    def draw(*arguments):
        drawn_by.append(threading.current_thread() is threading.main_thread())
        return real(*arguments)

    monkeypatch.setattr(train, "retrieval_grid", draw)
    assert run(TRAIN).status == 0
    assert drawn_by and not any(drawn_by)
    assert list(Path("logs/tiny/0").iterdir()) and FOLD.exists()
