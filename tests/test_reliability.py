"""Nothing lost: exact resume, checkpoints that survive faults, one writer, full disks, vanished images, dead workers.

docs/RELIABILITY.md lists the promises; each has its test here, in test_bad_input.py or in test_hostile.py.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import filelock
import h5py
import numpy as np
import pytest
import torch
from conftest import command_line, environment, listing
from soak import compare, differences
from torch._dynamo.exc import BackendCompilerFailed

import engine
import train
import util.checkpoints
import util.device
import util.images
import util.run_log
import utils
from option import load_options
from util.pixels import DiskCache, open_cache, open_pixels

pytestmark = pytest.mark.usefixtures("short_trunk")
TRAIN = "train.py --path_opt tiny.yaml"
FOLD = Path("checkpoint/tiny/0")
LAST = FOLD / "last.pth.tar"


class Killed(BaseException):
    """Stands for SIGKILL in this process: nothing of the project catches it, nothing is saved after it."""


@pytest.fixture(autouse=True, scope="module")
def without_pictures() -> Iterator[None]:
    """No pictures for TensorBoard, for speed. Tests with processes of their own draw them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "retrieval_grid", lambda *_: None)
        yield


@pytest.fixture(scope="module")
def whole(demo, tmp_path_factory, short_trunk, without_pictures) -> Path:
    """The fold of an uninterrupted run of two epochs: 8 steps, a checkpoint every 3 steps and every epoch."""
    folder = tmp_path_factory.mktemp("whole") / "work"
    shutil.copytree(demo, folder)
    with contextlib.chdir(folder), pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", TRAIN.split())
        assert utils.exit_status(train.main) == 0
    return folder / FOLD


@contextlib.contextmanager
def at_step(number: int, do: Callable[[], None]) -> Iterator[None]:
    """Do something after so many training steps, before their checkpoint is written."""
    steps = 0

    def counted(*arguments):
        nonlocal steps
        loss = real(*arguments)
        steps += 1
        if steps == number:
            do()
        return loss

    real = engine.train_step
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "train_step", counted)
        yield


@contextlib.contextmanager
def in_validation(number: int, do: Callable[[], None]) -> Iterator[None]:
    """Do something at the second batch of the validation with this number, from 1."""
    seen = 0

    def counted(*arguments):
        nonlocal seen
        seen += 1
        for i, batch in enumerate(real(*arguments)):
            if seen == number and i == 1:
                do()
            yield batch

    real = engine.image_batches
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "image_batches", counted)
        yield


@contextlib.contextmanager
def after_save(name: str, number: int) -> Iterator[None]:
    """Die right after the checkpoint `name` has been written for the n-th time."""
    count = 0

    def counted(state, path, **arguments):
        nonlocal count
        real(state, path, **arguments)
        count += path.name == name
        if count == number:
            raise Killed

    real = train.save_checkpoint
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "save_checkpoint", counted)
        yield


def same_weights(one: Path, other: Path) -> bool:
    """Whether two folds ended with the same weights, bit for bit."""
    models = (torch.load(folder / "last.pth.tar", weights_only=True)["model"] for folder in (one, other))
    return compare(*models, "") == []


def stop(signum: int) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), signum)


def die() -> None:
    raise Killed


# ---------------------------------------------------------------- exact resume


@pytest.mark.parametrize(
    ("fault", "status"),
    [
        (lambda: at_step(2, stop(signal.SIGTERM)), 143),
        (lambda: in_validation(2, stop(signal.SIGINT)), 130),
    ],
    ids=["SIGTERM in mid-epoch", "Ctrl-C in validation"],
)
def test_a_stopped_run_saves_says_how_to_go_on_and_ends_as_the_whole_one(fault, status, work, run, whole) -> None:
    with fault():
        stopped = run(TRAIN)
    assert stopped.status == status and "--resume" in stopped.message and str(FOLD) in stopped.message
    assert run(f"{TRAIN} --resume").status == 0
    assert differences(whole, FOLD.absolute()) == []


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
    changed = f"{TRAIN} --resume --set optim.lr=0.001 optim.margin=0.3"
    refused = run(changed)
    assert refused.status == 2
    assert "optim.lr: 0.0005 -> 0.001; optim.margin: 0.2 -> 0.3" in refused.message and "--force" in refused.message
    assert listing(work) == before
    assert run(f"{changed} optim.epochs=3 --force").status == 0
    assert torch.load(LAST, weights_only=True)["epoch"] == 3


def test_a_run_may_be_made_longer_and_is_then_as_if_it_had_been_meant_to_be(work, run, whole) -> None:
    assert run(f"{TRAIN} --set optim.epochs=1").status == 0
    assert run(f"{TRAIN} --resume").status == 0
    assert same_weights(FOLD, whole)
    refused = run(f"{TRAIN} --resume --set optim.epochs=1")
    assert refused.status == 2 and "optim.epochs: 2 -> 1" in refused.message


def test_other_local_features_are_an_option_that_changed(work, run, whole) -> None:
    shutil.copytree(whole, FOLD)
    refused = run(f"{TRAIN} --resume --set dataset.local_path=zeros")
    assert refused.status == 2 and "dataset.local_path: data/local.h5 -> zeros" in refused.message


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
    assert session["command"][1:] == ["--path_opt", "tiny.yaml"]
    assert session["packages"]["torch"] == torch.__version__.split("+")[0]
    assert session["machine"]["cores"] == os.cpu_count() and "commit" in session
    split = json.loads((whole / "split.json").read_text())
    assert len(split["train"]) == 12 and len(split["val"]) == 4
    assert "experiment_name: tiny" in (whole / "options.yaml").read_text()


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGTERM, 143)])
def test_a_process_stopped_by_a_signal_saves_and_says_so(signum, status, work) -> None:
    """End to end: the signal comes from outside, while the process trains."""
    with start_training("optim.epochs=500 logs.print_freq=1") as process:
        wait_until((FOLD / "log.txt").exists, process)
        wait_until(lambda: (FOLD / "log.txt").stat().st_size > 0, process)
        process.send_signal(signum)
        out, err = process.communicate(timeout=60)
    assert process.returncode == status, (out, err)
    assert err.count("\n") == 1 and "--resume" in err
    assert torch.load(LAST, weights_only=True)["Eiters"] > 0


@contextlib.contextmanager
def start_training(settings: str) -> Iterator[subprocess.Popen]:
    """train.py in a process of its own, which does not outlive the test."""
    words = [*command_line(TRAIN), "--set", *settings.split()]
    with subprocess.Popen(
        words, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def wait_until(ready: Callable[[], bool], process: subprocess.Popen | None = None, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < deadline, "nothing happened"
        assert process is None or process.poll() is None, process.communicate()
        time.sleep(0.01)


# ---------------------------------------------------------------- damaged checkpoints


@pytest.fixture
def part_way(work, run) -> Path:
    """A run that was stopped after 5 steps: a checkpoint of step 5, and the one before it, of step 4."""
    with at_step(5, stop(signal.SIGTERM)):
        assert run(TRAIN).status == 143
    assert steps(LAST) == 5 and steps(util.checkpoints.previous(LAST)) == 4
    return work


def steps(path: Path) -> int:
    return torch.load(path, weights_only=True)["Eiters"]


def flipped(raw: bytes) -> bytes:
    middle = len(raw) // 2
    return raw[:middle] + bytes([raw[middle] ^ 1]) + raw[middle + 1 :]


@pytest.mark.parametrize(
    "damage",
    [lambda raw: raw[: len(raw) // 2], flipped, lambda raw: b""],
    ids=["truncated", "one bit turned over", "empty"],
)
def test_a_damaged_checkpoint_is_found_and_the_one_before_it_taken_saying_so(damage, work, checkpoint, capsys) -> None:
    path = work / "last.pth.tar"
    shutil.copy(checkpoint, util.checkpoints.previous(path))
    path.write_bytes(damage(checkpoint.read_bytes()))
    state = util.checkpoints.newest_checkpoint(path)
    assert state["arch"] == "GaLR"
    said = capsys.readouterr().err
    assert "damaged" in said and f"going on from the checkpoint before, {path}.previous" in said
    util.checkpoints.previous(path).write_bytes(damage(checkpoint.read_bytes()))
    with pytest.raises(utils.InputError, match="no usable checkpoint"):
        util.checkpoints.newest_checkpoint(path)


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
            util.checkpoints.save_checkpoint({"model": {}}, path, keep_previous=True)
    assert not path.exists()
    assert util.checkpoints.newest_checkpoint(path)["arch"] == "GaLR"


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


@contextlib.contextmanager
def file_limit(size: int) -> Iterator[None]:
    """No file may grow beyond `size` bytes (in this process)."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)


def test_a_checkpoint_that_cannot_be_written_ends_the_run_and_leaves_the_one_before(part_way, run, whole) -> None:
    """A limit on the size of files stands for the full disk; the next test has a disk that is full."""
    before = LAST.read_bytes()
    with file_limit(2 * 2**20):
        full = run(f"{TRAIN} --resume")
    assert full.status == 3
    assert str(LAST) in full.message and "MiB free" in full.message and "--resume" in full.message
    assert LAST.read_bytes() == before
    assert not list(FOLD.glob(".*.tmp"))
    assert run(f"{TRAIN} --resume").status == 0
    assert differences(whole, FOLD.absolute()) == []


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A file system of 45 MiB: room for two checkpoints of the tiny model, not for three."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=45m", "tmpfs", disk], capture_output=True)
    if mounted.returncode:
        pytest.skip("a small tmpfs for a full disk: this user may not mount one")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def test_a_full_disk_ends_the_run_and_it_goes_on_once_there_is_room(small_disk, work, run, whole) -> None:
    command = f"{TRAIN} --set logs.ckpt_save_path={small_disk}/checkpoint logs.logger_name={small_disk}/logs"
    full = run(command)
    fold = small_disk / FOLD
    assert full.status == 3 and "0 MiB free" in full.message
    assert str(fold) in full.message and "--resume" in full.message
    util.checkpoints.read_checkpoint(fold / "last.pth.tar")
    subprocess.run(["mount", "-o", "remount,size=200m", small_disk], check=True)
    assert run(f"{command} --resume").status == 0
    assert differences(whole, fold) == []


def test_small_files_on_a_full_disk_are_one_line_too(small_disk, work, run) -> None:
    with contextlib.suppress(OSError), (small_disk / "fill").open("wb") as file:
        while True:
            file.write(bytes(2**16))
    out = run(f"vocab.py --data_path data --data_name demo_precomp --out {small_disk}/vocab.json")
    assert out.status == 3 and "No space left" in out.message
    cache = run(f"-m util.cache_images --path_opt tiny.yaml --set dataset.data_path={copy_data(work, small_disk)}")
    assert cache.status == 3 and "images_64.h5" in cache.message
    assert not list(small_disk.glob("**/.*.tmp"))


def copy_data(work: Path, disk: Path) -> Path:
    """The lists, on the full disk: it makes room for these and is filled again."""
    (disk / "fill").unlink()
    (disk / "data").mkdir()
    for path in (work / "data").glob("*.txt"):
        shutil.copy(path, disk / "data")
    with contextlib.suppress(OSError), (disk / "fill").open("wb") as file:
        while True:
            file.write(bytes(2**16))
    return disk / "data"


# ---------------------------------------------------------------- images, workers, losses


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_vanishes_is_named_and_the_run_resumes_when_it_is_back(workers, work, run, whole) -> None:
    names = json.loads((whole / "split.json").read_text())["train"]
    command = f"{TRAIN} --set dataset.cache=none dataset.workers={workers}"
    gone = work / "data/images" / names[5]
    with at_step(4, lambda: gone.rename(work / "away.png")):
        stopped = run(command)
    assert stopped.status == 3
    assert f"image data/images/{names[5]} is not there" in stopped.message and "--resume" in stopped.message
    (work / "away.png").rename(gone)
    assert run(f"{command} --resume").status == 0
    assert same_weights(whole, FOLD)


def test_an_image_cache_that_is_removed_in_mid_run_makes_no_difference(work, run, whole) -> None:
    with at_step(4, lambda: (work / "data/images_64_70.npy").unlink()):
        assert run(f"{TRAIN} --set dataset.cache=disk").status == 0
    assert same_weights(whole, FOLD)


def test_runs_that_need_the_same_image_cache_at_once_build_it_once(work, monkeypatch, capsys) -> None:
    """As the folds of an array job do; whoever waits says so."""
    options, build, built, building = (
        load_options("tiny.yaml").dataset,
        DiskCache.build,
        [],
        threading.Event(),
    )

    def build_slowly(*arguments) -> None:
        building.set()
        time.sleep(1.5)
        build(*arguments)
        built.append(arguments)

    monkeypatch.setattr(DiskCache, "build", build_slowly)
    with ThreadPoolExecutor() as pool:
        first = pool.submit(open_cache, options)
        building.wait()
        assert pool.submit(open_cache, options).result() == first.result()
    assert len(built) == 1 and "another run is writing data/images_64_70.npy" in capsys.readouterr().out
    assert not list(Path("data").glob(".images*"))


def kill_worker() -> None:
    multiprocessing.active_children()[0].kill()


def test_a_loader_worker_that_is_killed_ends_the_run_which_resumes(work, run, whole) -> None:
    command = f"{TRAIN} --set dataset.cache=none dataset.batch_size=4"
    with at_step(4, kill_worker):
        stopped = run(command)
    assert stopped.status == 3 and "worker" in stopped.message and "--resume" in stopped.message
    assert steps(LAST) == 3
    assert run(f"{command} --resume").status == 0


@pytest.mark.filterwarnings("ignore")
def test_a_signal_that_also_ends_the_workers_is_still_that_signal(work, run) -> None:
    """A batch system sends SIGTERM to every process of a job."""

    def stop_all() -> None:
        for child in multiprocessing.active_children():
            child.terminate()
            child.join()
        os.kill(os.getpid(), signal.SIGTERM)

    with at_step(4, stop_all):
        stopped = run(f"{TRAIN} --set dataset.cache=none dataset.batch_size=4")
    assert stopped.status == 143 and "--resume" in stopped.message
    assert steps(LAST) in (3, 4)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA error: an illegal memory access was encountered\nmore"),
        BackendCompilerFailed(print, RuntimeError("no working C++ compiler"), None),
        KeyError("a bug"),
    ],
)
def test_an_error_that_nobody_foresaw_is_one_line_with_its_type_and_a_way_to_the_traceback(
    error, capsys, monkeypatch
) -> None:
    def fail() -> None:
        raise error

    assert utils.exit_status(fail) == 3
    (line,) = capsys.readouterr().err.splitlines()
    words = str(error).split()[:3]
    assert line.startswith(f"error: {type(error).__name__}: {' '.join(words)}") and "GALR_DEBUG=1" in line
    monkeypatch.setenv("GALR_DEBUG", "1")
    assert utils.exit_status(fail) == 3
    assert "Traceback" in capsys.readouterr().err


def test_images_that_do_not_fit_the_gpu_are_told_to_stay_in_a_file(work, monkeypatch) -> None:
    def no_room(*_) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(torch.Tensor, "to", no_room)
    with pytest.raises(utils.RunError, match=r"20 images .*set dataset\.cache=disk"):
        paths = sorted(map(str, Path("data/images").iterdir()))
        open_pixels(paths, 64, load_options("tiny.yaml").dataset, torch.device("cuda"))


def test_a_run_on_the_cpu_leaves_the_gpu_alone(work, monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)  # and to pin memory would fail
    options = load_options("tiny.yaml")
    for cache in ("disk", "none"):
        dataset = options.dataset.model_copy(update={"cache": cache, "workers": 0})
        pixels = open_pixels(["data/images/demo_0001.png"], 64, dataset, torch.device("cpu"))
        ((batch, places),) = pixels.batches([np.array([0, 0])], torch.device("cpu"))
        assert batch[places].shape == (2, 64, 64, 3)


def test_weights_that_the_last_step_of_an_epoch_spoils_end_the_run_as_a_bad_loss_does(work, run) -> None:
    spoilt = run(f"{TRAIN} --set optim.lr=1e25 dataset.batch_size=60")
    assert spoilt.status == 3 and "similarities after epoch 0 are not finite" in spoilt.message


def test_weights_that_are_not_finite_are_not_saved(work, run) -> None:
    run(f"{TRAIN} --set optim.epochs=1")
    before = LAST.read_bytes()
    spoilt = run(f"{TRAIN} --resume --force --set optim.lr=1e39 logs.save_steps=5")
    assert spoilt.status == 3 and "the weights are not finite after step 5" in spoilt.message
    spoilt = run(f"{TRAIN} --resume --force --set optim.lr=1e39 logs.save_steps=6 logs.print_freq=9")
    assert spoilt.status == 3 and "the loss of batch 2 of epoch 1 is nan" in spoilt.message
    assert LAST.read_bytes() == before


def test_weights_that_are_not_finite_are_not_saved_where_an_epoch_ends_without_validation(work, run) -> None:
    spoilt = run(f"{TRAIN} --set optim.lr=1e39 dataset.batch_size=60 logs.eval_step=2 logs.save_steps=0")
    assert spoilt.status == 3 and "the weights are not finite after step 1" in spoilt.message
    assert not list(FOLD.glob("*.tar*"))


@pytest.mark.parametrize(("visible", "said"), [("5", "no GPU is found (CUDA_VISIBLE_DEVICES=5)"), ("", "device: CPU")])
@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_run_says_which_device_it_uses(visible, said, monkeypatch, capsys) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert util.device.pick_device("auto").type == "cpu"
    assert said in capsys.readouterr().out


def test_a_loss_that_is_not_finite_ends_the_run_names_its_batch_and_spares_the_checkpoint(part_way, run) -> None:
    before = LAST.read_bytes()
    spoilt = run(f"{TRAIN} --resume --force --set optim.lr=1e30 logs.save_steps=0")
    assert spoilt.status == 3 and "the loss of batch 3 of epoch 1 is nan" in spoilt.message
    assert LAST.read_bytes() == before
