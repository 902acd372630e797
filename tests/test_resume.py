"""Exact resume: a run that is stopped or killed ends as one that was left alone, and refuses to go on as another."""

from __future__ import annotations

import copy
import json
import multiprocessing
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import h5py
import pytest
import torch
from conftest import listing
from interrupted import FOLD, LAST, TRAIN, Killed, after_save, at_step, die, in_validation, same_weights, steps, stop
from soak import differences

import engine
import util.run_log
from option import load_options
from util.checkpoint import changed_options

pytestmark = pytest.mark.usefixtures("short_trunk", "without_pictures")


@pytest.mark.parametrize(
    ("fault", "status"),
    [
        (lambda: at_step(2, stop(signal.SIGTERM)), 143),
        (lambda: in_validation(2, stop(signal.SIGINT)), 130),
        (lambda: at_step(3, stop(signal.SIGHUP)), 129),  # a terminal that closes
        (lambda: at_step(5, stop(signal.SIGUSR1)), 138),  # SLURM's
        (lambda: at_step(6, stop(signal.SIGUSR2)), 140),
    ],
)
def test_a_stopped_run_saves_says_how_to_go_on_and_ends_as_the_whole_one(fault, status, work, run, whole) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests themselves may run under nohup
    with fault():
        stopped = run(TRAIN)
    signal.signal(signal.SIGHUP, before)
    assert stopped.status == status and "--resume" in stopped.message and str(FOLD) in stopped.message
    assert run(f"{TRAIN} --resume").status == 0
    assert differences(whole, FOLD.absolute()) == []


def test_under_nohup_a_terminal_that_closes_is_no_reason_to_stop() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with util.run_log.StopSignals() as signals:
            os.kill(os.getpid(), signal.SIGHUP)
            signals.check()
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_signal_to_a_loader_worker_is_not_its_business(work, run) -> None:
    """SLURM sends SIGUSR1 to every process of a job step: workers go on, until the main process stops."""

    def signal_all() -> None:
        for child in multiprocessing.active_children():
            os.kill(child.pid, signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGUSR1)

    with at_step(2, signal_all):
        stopped = run(f"{TRAIN} --set dataset.cache=none dataset.batch_size=4")
    assert stopped.status == 138 and "saved in" in stopped.message and steps(LAST) == 2
    assert stopped.out.count("stopping after this step") == 1


@pytest.mark.parametrize(
    "fault",
    [
        lambda: at_step(3, die),  # before the save of step 3
        lambda: after_save("last.pth.tar", 3),  # of step 6
        lambda: in_validation(1, die),
        lambda: after_save("GaLR_best.pth.tar", 1),  # between best and last
    ],
)
def test_a_killed_run_resumes_to_the_very_same_end(fault, work, run, whole) -> None:
    with fault(), pytest.raises(Killed):
        run(TRAIN)
    assert run(f"{TRAIN} --resume").status == 0
    assert differences(whole, FOLD.absolute()) == []


def test_checkpoints_come_every_save_steps_steps_of_the_run_not_of_the_epoch(work, run, written_at_once) -> None:
    """Every third of steps, of which an epoch has four: the last before the seventh is of the sixth."""
    with at_step(7, die), pytest.raises(Killed):
        run(TRAIN)
    assert steps(LAST) == 6


def test_finished_folds_are_skipped_and_left_alone(work, run, whole) -> None:
    shutil.copytree(whole, FOLD)
    before = listing(FOLD)
    again = run(f"{TRAIN} --resume")
    assert again.status == 0 and "fold 0 is finished: skipped" in again.out
    assert listing(FOLD) == before


def test_changed_options_are_refused_with_the_list_unless_forced(work, run, whole) -> None:
    shutil.copytree(whole, FOLD)
    before = listing(work)
    changed = f"{TRAIN} --resume --set optim.lr=0.001 dataset.local_path=zeros"
    refused = run(changed)
    assert refused.status == 2 and "--force" in refused.message
    assert "dataset.local_path: data/local.h5 -> zeros; optim.lr: 0.0005 -> 0.001" in refused.message
    assert listing(work) == before
    assert run(f"{changed} optim.epochs=3 --force").status == 0
    assert torch.load(LAST, weights_only=True)["epoch"] == 3


def test_a_run_may_be_made_longer_and_is_then_as_if_it_had_been_meant_to_be(work, run, whole) -> None:
    assert run(f"{TRAIN} --set optim.epochs=1").status == 0
    assert run(f"{TRAIN} --resume").status == 0
    assert same_weights(FOLD, whole)
    refused = run(f"{TRAIN} --resume --set optim.epochs=1")
    assert refused.status == 2 and "optim.epochs: 2 -> 1" in refused.message


def test_a_fold_that_is_there_is_refused_before_any_other_is_trained(work, run, whole) -> None:
    shutil.copytree(whole, FOLD.with_name("1"))
    before = listing(work)
    refused = run(f"{TRAIN} --set k_fold.nums=2")
    assert refused.status == 2 and "checkpoint/tiny/1 holds a run already" in refused.message
    assert listing(work) == before


def test_a_machine_without_git_trains(monkeypatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert util.run_log.provenance(torch.device("cpu"))["commit"] is None


def test_folds_of_one_run_may_train_side_by_side(work, run) -> None:
    with util.run_log.only_writer(Path("checkpoint/tiny/0")):
        assert run(f"{TRAIN} --fold 1 --set k_fold.nums=2").status == 0
    assert run(f"{TRAIN} --fold 0 --set k_fold.nums=2").status == 0


@pytest.mark.parametrize("changed", ["data/train_caps.txt", "data/local.h5"])
def test_captions_and_local_features_that_changed_are_refused_unless_forced(changed, part_way, run) -> None:
    if changed.endswith(".txt"):
        Path(changed).write_text("a ship beside a plane\n" + Path(changed).read_text().partition("\n")[2])
    else:
        with h5py.File(changed, "a") as file:
            file["local_adj"][:] = 1
    before = listing(FOLD)
    refused = run(f"{TRAIN} --resume")
    assert refused.status == 2 and "the captions or the local features of fold 0 have changed" in refused.message
    assert listing(FOLD) == before
    assert run(f"{TRAIN} --resume --force").status == 0


def test_options_that_move_no_number_may_change_on_resume(work, run, whole) -> None:
    with at_step(2, stop(signal.SIGTERM)):
        run(TRAIN)
    moved = "logs.save_steps=0 dataset.cache=none dataset.workers=0 dataset.batch_size_val=3"
    assert run(f"{TRAIN} --resume --set {moved}").status == 0
    assert same_weights(whole, FOLD)


def test_a_run_records_what_made_it(whole) -> None:
    record = json.loads((whole / "run.json").read_text())
    session = record["sessions"][0]
    assert record["started"] <= record["ended"] and record["seed"] == 0
    assert session["command"][1:] == ["--path_opt", "tiny.yaml", "--device", "cpu"]
    assert session["packages"]["torch"] == torch.__version__.split("+")[0]
    assert session["machine"]["cores"] == os.cpu_count() and "commit" in session
    split = json.loads((whole / "split.json").read_text())
    assert len(split["train"]) == 12 and len(split["val"]) == 4
    assert "experiment_name: tiny" in (whole / "options.yaml").read_text()


TRAIN_DRAWN, DRAWN = "train.py --path_opt drawn.yaml --device cpu", Path("checkpoint/drawn/0")
RECIPE = "optim.loss=infonce optim.ema=0.9 optim.schedule=cosine optim.lr=0.01 dataset.batch_size=25"
MOVE_NO_NUMBER = set(
    "dataset.workers dataset.cache dataset.image_path dataset.data_path dataset.vocab_path dataset.val_list "
    "dataset.truncated dataset.batch_size_val optim.checkpointing optim.early_stopping logs.save_steps "
    "logs.save_minutes logs.ckpt_save_path logs.logger_name logs.matrices k_fold.current_num k_fold.nums "
    "model.seq2vec.dir_st".split()
)


@pytest.fixture
def stopped(drawn_folder, run) -> dict:
    """The last checkpoint of a run of six steps that was stopped after the fourth."""
    with at_step(4, stop(signal.SIGTERM)):
        assert run(f"{TRAIN_DRAWN} --set {RECIPE}").status == 143
    return last()


def last() -> dict:
    return torch.load(DRAWN / "last.pth.tar", weights_only=True)


def test_an_option_that_would_move_a_number_is_refused_and_named(stopped, run) -> None:
    before = (DRAWN / "last.pth.tar").read_bytes()
    for change, said in {
        "optim.ema=0.5": "optim.ema: 0.9 -> 0.5",
        "optim.temperature=0.1": "optim.temperature: 0.07 -> 0.1",
        "optim.learn_temperature=false": "optim.learn_temperature: True -> False",
        "optim.epochs=3": "optim.epochs: 2 -> 3",
        "optim.betas=[0.9,0.98]": "optim.betas: [0.9, 0.999] -> [0.9, 0.98]",
    }.items():
        refused = run(f"{TRAIN_DRAWN} --resume --set {RECIPE} {change}")
        assert refused.status == 2 and said in refused.message, change
    assert (DRAWN / "last.pth.tar").read_bytes() == before


def test_only_options_that_move_no_number_may_change(drawn_folder) -> None:
    """Every option, of every block, one after the other."""
    old = load_options("drawn.yaml", ["optim.schedule=cosine"]).to_dict()

    def free(block: dict, prefix: str = "") -> Iterator[str]:
        for key, value in block.items():
            if isinstance(value, dict):
                yield from free(value, f"{prefix}{key}.")
            else:
                block[key] = "another value"
                if prefix + key != "optim.epochs" and not changed_options(old, tree):  # these are compared as numbers
                    yield prefix + key
                block[key] = value

    tree = copy.deepcopy(old)
    assert set(free(tree)) == MOVE_NO_NUMBER


def test_average_and_temperature_go_on_from_where_they_were(stopped, run, monkeypatch) -> None:
    """An average that begins anew would count its steps anew; a temperature that is lost would be 0.07 again."""
    steps, real = [], engine.train_step
    monkeypatch.setattr(engine, "train_step", lambda *given: steps.append(given[2].temperature) or real(*given))
    assert run(f"{TRAIN_DRAWN} --resume --set {RECIPE}").status == 0
    assert steps[0] == pytest.approx(1 / stopped["loss"]["log_scale"].exp().item()) and abs(steps[0] - 0.07) > 1e-4
    assert len(steps) == 2 and last()["average"]["n_averaged"] == stopped["average"]["n_averaged"] + 2 == 6


@pytest.mark.parametrize(
    ("stopped_at", "change", "first"),
    [
        (2, "dataset.batch_size=50", 1),  # 50 of the 75 pairs are done
        (2, "dataset.batch_size=10", 5),
        (2, "dataset.batch_size=30", 0),
        (3, "dataset.batch_size=30", 3),  # the epoch is over
        (2, "seed=1", 0),
        (2, "dataset.captions_per_image=1", 0),
        (2, "optim.lr=0.001", 2),
    ],
)
def test_other_batches_neither_repeat_nor_leave_out_a_pair_of_the_epoch(
    stopped_at, change, first, drawn_folder, run, monkeypatch
) -> None:
    """The place is kept in pairs; where no new batch begins there, the epoch begins anew and the run says so."""
    with at_step(stopped_at, stop(signal.SIGTERM)):
        assert run(f"{TRAIN_DRAWN} --set {RECIPE}").status == 143
    began, real = [], engine.train_batches
    monkeypatch.setattr(engine, "train_batches", lambda *given: began.append(given[3:]) or real(*given))
    resumed = run(f"{TRAIN_DRAWN} --resume --force --set {RECIPE} {change}")
    assert resumed.status == 0 and began == [(0, first), (1, 0)] and last()["epoch"] == 2
    assert ("epoch 0 begins anew" in resumed.err) == (first == 0)
