"""Checkpoints survive damage, crashes, a second writer, a full disk; a thread writes them beside the loop."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import filelock
import pytest
import torch
from conftest import listing
from interrupted import FOLD, LAST, TRAIN, Killed, at_step, die, file_limit, flipped, steps
from matplotlib.figure import Figure
from soak import compare, differences

import engine
import train
import util.checkpoint
import util.run_log
import utils
from util.background import Background

pytestmark = pytest.mark.usefixtures("short_trunk", "without_pictures")


@pytest.mark.parametrize("damage", [lambda raw: raw[: len(raw) // 2], flipped, lambda raw: b""])
def test_a_damaged_checkpoint_is_found_and_the_one_before_it_taken_saying_so(damage, work, checkpoint, capsys) -> None:
    path, before = work / "last.pth.tar", work / "last.pth.tar.previous"
    shutil.copy(checkpoint, before)
    path.write_bytes(damage(checkpoint.read_bytes()))
    assert util.checkpoint.newest_checkpoint(path)["arch"] == "GaLR"
    said = capsys.readouterr().err
    assert "damaged" in said and f"going on from the checkpoint before, {before}" in said
    before.write_bytes(damage(checkpoint.read_bytes()))
    with pytest.raises(utils.InputError, match="no usable checkpoint"):
        util.checkpoint.newest_checkpoint(path)


def test_a_run_goes_on_from_the_checkpoint_before_to_the_very_same_end(part_way, run, whole) -> None:
    LAST.write_bytes(flipped(LAST.read_bytes()))
    again = run(f"{TRAIN} --resume")
    assert again.status == 0 and "going on from the checkpoint before" in again.message
    assert differences(whole, FOLD.absolute()) == []


def test_a_crash_between_the_two_renames_loses_nothing(work, checkpoint, monkeypatch) -> None:
    """The old checkpoint has been renamed, the new one has not: the old one is found under its second name."""
    path, real = work / "last.pth.tar", Path.replace
    shutil.copy(checkpoint, path)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Path, "replace", lambda a, b: die() if a.name.endswith(".tmp") else real(a, b))
        util.checkpoint.save_checkpoint({"model": {}}, path, keep_previous=True)
    assert not path.exists()
    assert util.checkpoint.newest_checkpoint(path)["arch"] == "GaLR"


def test_a_file_is_whole_or_not_there(tmp_path) -> None:
    """An error while a file is being written leaves the old content, and nothing else in the folder."""
    path = tmp_path / "results.json"
    utils.write_text(path, "old")
    with pytest.raises(Killed), utils.atomic(path) as temporary:
        temporary.write_text("half of the n")
        raise Killed
    assert listing(tmp_path) == {"results.json": b"old"}


def test_a_file_is_flushed_to_disk_before_it_takes_its_name(tmp_path, monkeypatch) -> None:
    happened = []
    real_sync, real_replace = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (happened.append("flush"), real_sync(fd))[1])
    monkeypatch.setattr(Path, "replace", lambda a, b: (happened.append("rename"), real_replace(a, b))[1])
    utils.write_text(tmp_path / "a.txt", "a")
    assert happened == ["flush", "rename", "flush"]  # the file, its name, the folder that holds the name


def test_a_second_run_on_the_same_folder_is_refused(work, run, monkeypatch) -> None:
    monkeypatch.setattr(util.run_log, "LOCK_WAIT", 0.1)
    FOLD.mkdir(parents=True)
    before = listing(work)
    with filelock.FileLock(FOLD / ".lock"):
        refused = run(TRAIN)
    assert refused.status == 2 and "another run is writing to checkpoint/tiny/0" in refused.message
    assert listing(work) in (before, before | {"checkpoint/tiny/0/.lock": b""})  # the first run's lock


def test_the_lock_of_a_dead_process_is_taken_over(tmp_path) -> None:
    code = "import filelock, sys; filelock.FileLock(sys.argv[1]).acquire(); print(1, flush=True); sys.stdin.read()"
    words, pipe = [sys.executable, "-c", code, str(tmp_path / ".lock")], subprocess.PIPE
    with subprocess.Popen(words, stdin=pipe, stdout=pipe) as holder:
        holder.stdout.readline()
        holder.kill()
    assert (tmp_path / ".lock").exists()
    with util.run_log.only_writer(tmp_path):
        pass
    assert listing(tmp_path) == {}


def count_up(folder: Path) -> None:
    for _ in range(20):
        with util.run_log.only_writer(folder / "run"):
            number = int((folder / "count").read_text())
            time.sleep(0.001)
            (folder / "count").write_text(str(number + 1))


def test_the_lock_that_comes_and_goes_with_its_folder_still_lets_one_in_at_a_time(tmp_path) -> None:
    """Each holder removes lock and folder when it leaves nothing in them, while others wait for that very lock."""
    (tmp_path / "count").write_text("0")
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=count_up, args=(tmp_path,)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert (tmp_path / "count").read_text() == "80"


def test_a_checkpoint_that_cannot_be_written_ends_the_run_and_leaves_the_one_before(part_way, run, whole) -> None:
    """A limit on the size of files stands for the full disk."""
    before = LAST.read_bytes()
    with file_limit(2 * 2**20):
        full = run(f"{TRAIN} --resume")
    assert full.status == 3
    assert str(LAST) in full.message and "MiB free" in full.message and "--resume" in full.message
    assert LAST.read_bytes() == before
    assert not list(FOLD.glob(".*.tmp"))
    assert run(f"{TRAIN} --resume").status == 0
    assert differences(whole, FOLD.absolute()) == []


@pytest.mark.parametrize(
    "command", ["vocab.py --data_path data --data_name x --out a.json", "-m util.cache_images --path_opt tiny.yaml"]
)
def test_small_files_that_cannot_be_written_are_one_line_too(command, work, run) -> None:
    before = listing(work)
    with file_limit(100):
        full = run(command)
    assert full.status == 3 and "File too large; make room and run again" in full.message
    assert listing(work) == before


def test_the_newest_job_of_a_name_is_done_and_those_of_the_first_name_before_others() -> None:
    """A last checkpoint that says how good the best is must not be on disk before that best one."""
    done, gate = [], threading.Event()
    with Background(("best", "last")) as background:
        background.put("last", lambda: (gate.wait(60), done.append("last 0")))
        while background._waiting:  # until the thread has it
            pass
        for name in ("last 1", "best 1", "last 2", "best 2"):
            background.put(name.split()[0], lambda name=name: done.append(name))
        assert done == []
        gate.set()
    assert done == ["last 0", "best 2", "last 2"]


def test_an_error_is_raised_by_the_next_call_and_nothing_more_is_done() -> None:
    def fail() -> None:
        gate.wait(60)
        raise utils.RunError("the disk is full")

    done, gate = [], threading.Event()
    with pytest.raises(utils.RunError, match="the disk is full"), Background(("a", "b")) as background:
        background.put("a", fail)
        background.put("b", lambda: done.append("b"))
        gate.set()
        for call in (background.wait, background.check, lambda: background.put("b", lambda: done.append("b"))):
            with pytest.raises(utils.RunError):
                call()
    assert done == []


def test_the_error_of_the_loop_counts_more_than_that_of_a_job() -> None:
    with pytest.raises(ValueError, match="the loop"), Background(("a",)) as background:
        background.put("a", lambda: 1 / 0)
        raise ValueError("the loop")


def test_the_loop_goes_on_while_a_checkpoint_is_written_which_holds_the_state_of_its_step(
    work, run, monkeypatch
) -> None:
    """The one of step 3 is written after step 6: the loop did not wait, and the later steps changed nothing in it."""
    assert run(f"{TRAIN} --set k_fold.experiment_name=plain optim.epochs=1").status == 0
    expected = torch.load("checkpoint/plain/0/last.pth.tar.previous", weights_only=True)
    real, gate = train.save_checkpoint, threading.Event()

    def slow(state: dict, path: Path, **arguments: bool) -> None:
        assert gate.wait(60)
        real(state, path, **arguments)
        if state["Eiters"] == 3:
            shutil.copy(path, "third.pth.tar")

    monkeypatch.setattr(train, "save_checkpoint", slow)
    with at_step(6, gate.set):
        assert run(TRAIN).status == 0
    third = torch.load("third.pth.tar", weights_only=True)
    assert expected["Eiters"] == 3
    assert [compare(third[part], expected[part], "") for part in ("model", "optimizer", "rows")] == [[], [], []]


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
    drawn_by = []
    monkeypatch.setattr(train, "retrieval_grid", lambda *_: drawn_by.append(threading.current_thread()) or Figure())
    assert run(TRAIN).status == 0
    assert drawn_by and threading.main_thread() not in drawn_by
    assert list(Path("logs/tiny/0").iterdir())
