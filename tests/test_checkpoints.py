"""Checkpoints survive faults: damage, crashes, a second writer, a full disk."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import time
from pathlib import Path

import filelock
import pytest
from conftest import listing
from interrupted import FOLD, LAST, TRAIN, Killed, file_limit, flipped
from soak import differences

import util.checkpoint
import util.run_log
import utils

pytestmark = pytest.mark.usefixtures("short_trunk", "without_pictures")


# ---------------------------------------------------------------- damaged checkpoints


@pytest.mark.parametrize(
    "damage",
    [lambda raw: raw[: len(raw) // 2], flipped, lambda raw: b""],
    ids=["truncated", "one bit turned over", "empty"],
)
def test_a_damaged_checkpoint_is_found_and_the_one_before_it_taken_saying_so(damage, work, checkpoint, capsys) -> None:
    path = work / "last.pth.tar"
    shutil.copy(checkpoint, util.checkpoint.previous(path))
    path.write_bytes(damage(checkpoint.read_bytes()))
    state = util.checkpoint.newest_checkpoint(path)
    assert state["arch"] == "GaLR"
    said = capsys.readouterr().err
    assert "damaged" in said and f"going on from the checkpoint before, {path}.previous" in said
    util.checkpoint.previous(path).write_bytes(damage(checkpoint.read_bytes()))
    with pytest.raises(utils.InputError, match="no usable checkpoint"):
        util.checkpoint.newest_checkpoint(path)


def test_a_run_goes_on_from_the_checkpoint_before_to_the_very_same_end(part_way, run, whole) -> None:
    LAST.write_bytes(flipped(LAST.read_bytes()))
    again = run(f"{TRAIN} --resume")
    assert again.status == 0 and "going on from the checkpoint before" in again.message
    assert differences(whole, FOLD.absolute()) == []


def test_a_crash_between_the_two_renames_loses_nothing(work, checkpoint, monkeypatch) -> None:
    """The old checkpoint has been renamed, the new one has not: the old one is found under its second name."""
    path = work / "last.pth.tar"
    shutil.copy(checkpoint, path)
    real = Path.replace

    def replace(self: Path, target: Path) -> Path:
        if self.name.endswith(".tmp"):
            raise Killed
        return real(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", replace)
        with pytest.raises(Killed):
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


# ---------------------------------------------------------------- one writer


def test_a_second_run_on_the_same_folder_is_refused(work, run, monkeypatch) -> None:
    monkeypatch.setattr(util.run_log, "LOCK_WAIT", 0.1)
    FOLD.mkdir(parents=True)
    before = listing(work)
    with filelock.FileLock(FOLD / ".lock"):
        refused = run(TRAIN)
    assert refused.status == 2 and "another run is writing to checkpoint/tiny/0" in refused.message
    assert listing(work) in (before, before | {"checkpoint/tiny/0/.lock": b""})  # the first run's lock


def hold(path: Path, held: multiprocessing.synchronize.Event) -> None:
    with filelock.FileLock(path):
        held.set()
        time.sleep(600)


def test_the_lock_of_a_dead_process_is_taken_over(tmp_path) -> None:
    context = multiprocessing.get_context("fork")
    held = context.Event()
    process = context.Process(target=hold, args=(tmp_path / ".lock", held))
    process.start()
    assert held.wait(60)
    process.kill()
    process.join()
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
    assert [process.exitcode for process in processes] == [0] * 4
    assert (tmp_path / "count").read_text() == "80"


# ---------------------------------------------------------------- the disk is full


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


def test_small_files_that_cannot_be_written_are_one_line_too(work, run) -> None:
    before = listing(work)
    for command in (
        "vocab.py --data_path data --data_name x --out a.json",
        "-m util.cache_images --path_opt tiny.yaml",
    ):
        with file_limit(100):
            full = run(command)
        assert full.status == 3 and "File too large; make room and run again" in full.message
    assert listing(work) == before
