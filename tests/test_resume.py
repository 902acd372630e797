"""Exact resume: a run that is stopped or killed ends as one that was left alone, and refuses to go on as another."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import h5py
import pytest
import torch
from conftest import command_line, environment, listing
from interrupted import FOLD, LAST, TRAIN, Killed, after_save, at_step, die, in_validation, same_weights, steps, stop
from soak import compare, differences

import util.run_log
import utils

pytestmark = pytest.mark.usefixtures("short_trunk", "without_pictures")


@pytest.mark.parametrize(
    ("fault", "status"),
    [
        (lambda: at_step(2, stop(signal.SIGTERM)), 143),
        (lambda: in_validation(2, stop(signal.SIGINT)), 130),
        (lambda: at_step(3, stop(signal.SIGHUP)), 129),
        (lambda: at_step(5, stop(signal.SIGUSR1)), 138),
        (lambda: at_step(6, stop(signal.SIGUSR2)), 140),
    ],
    ids=["SIGTERM in mid-epoch", "Ctrl-C in validation", "a terminal that closes", "SLURM's SIGUSR1", "SIGUSR2"],
)
def test_a_stopped_run_saves_says_how_to_go_on_and_ends_as_the_whole_one(fault, status, work, run, whole) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests themselves may run under nohup
    with fault():
        stopped = run(TRAIN)
    signal.signal(signal.SIGHUP, before)
    assert stopped.status == status and "--resume" in stopped.message and str(FOLD) in stopped.message
    assert run(f"{TRAIN} --resume").status == 0
    assert differences(whole, FOLD.absolute()) == []


def test_under_nohup_a_terminal_that_closes_is_no_reason_to_stop(monkeypatch) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with util.run_log.StopSignals() as signals:
            os.kill(os.getpid(), signal.SIGHUP)
            signals.check()
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_signal_to_a_loader_worker_is_not_its_business(work, run, capfd) -> None:
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
        lambda: at_step(3, die),
        lambda: after_save("last.pth.tar", 3),
        lambda: in_validation(1, die),
        lambda: after_save("GaLR_best.pth.tar", 1),
    ],
    ids=["before the save of step 3", "after the save of step 6", "in validation", "between best and last"],
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


def test_the_comparison_sees_a_bit(whole) -> None:
    """The tests above rest on `differences`: it must see one weight's last bit, and overlook speeds alone."""
    state = torch.load(whole / "last.pth.tar", weights_only=True)
    other = torch.load(whole / "last.pth.tar", weights_only=True)
    name, weight = next(iter(other["model"].items()))
    weight.untyped_storage()[0] ^= 1
    other["rows"][0]["samples_per_second"] = -1
    assert len(compare(state, other, "")) == 1 and name in compare(state, other, "")[0]


def test_the_same_seed_gives_the_same_run_and_another_seed_another(work, run, whole) -> None:
    for seed, folder in ((0, "same"), (1, "other")):
        assert run(f"{TRAIN} --set seed={seed} k_fold.experiment_name={folder}").status == 0
    assert same_weights(whole, Path("checkpoint/same/0"))
    assert not same_weights(whole, Path("checkpoint/other/0"))


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


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory."),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
        torch.AcceleratorError("CUDA error: out of memory", 2),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
)
def test_memory_that_is_short_is_one_line_and_status_3(error, capsys) -> None:
    def main() -> None:
        raise error

    assert utils.exit_status(main) == 3
    assert "out of memory" in capsys.readouterr().err.splitlines()[0]


def change_captions() -> None:
    path = Path("data/train_caps.txt")
    path.write_text("a ship beside a plane\n" + path.read_text().partition("\n")[2])


def change_features() -> None:
    with h5py.File("data/local.h5", "a") as file:
        file["local_adj"][:] = 1


@pytest.mark.parametrize("change", [change_captions, change_features])
def test_captions_and_local_features_that_changed_are_refused_unless_forced(change, part_way, run) -> None:
    change()
    before = listing(FOLD)
    refused = run(f"{TRAIN} --resume")
    assert refused.status == 2 and "the captions or the local features of fold 0 have changed" in refused.message
    assert listing(FOLD) == before
    assert run(f"{TRAIN} --resume --force").status == 0


def test_folds_of_one_run_may_train_side_by_side(work, run) -> None:
    with util.run_log.only_writer(Path("checkpoint/tiny/0")):
        assert run(f"{TRAIN} --fold 1 --set k_fold.nums=2").status == 0
    assert run(f"{TRAIN} --fold 0 --set k_fold.nums=2").status == 0


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


def test_a_process_stopped_by_a_signal_saves_and_says_so(work) -> None:
    """End to end: the signal comes from outside, while the process trains."""
    log, words = FOLD / "log.txt", [*command_line(TRAIN), "--set", "optim.epochs=500", "logs.print_freq=1"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(words, env=environment(), **pipes) as process:
        deadline = time.monotonic() + 120
        while not (log.exists() and log.read_text()):
            assert time.monotonic() < deadline and process.poll() is None, process.kill()
            time.sleep(0.01)
        process.terminate()
        out, err = process.communicate(timeout=60)
    assert process.returncode == 143, (out, err)
    assert err.count("\n") == 1 and "--resume" in err and steps(LAST) > 0
