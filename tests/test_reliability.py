"""A run that meets vanished images, dead workers, bad losses or a machine that cannot says so in one line."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from interrupted import FOLD, LAST, TRAIN, at_step, same_weights, steps

import utils
from option import load_options
from util.pixels import DiskCache, open_cache, open_pixels

pytestmark = pytest.mark.usefixtures("short_trunk", "without_pictures")


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
    options, building = load_options("tiny.yaml").dataset, threading.Event()
    build, built = DiskCache.build, []

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


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("signum", "status", "says"), [(signal.SIGTERM, 143, "SIGTERM"), (None, 3, "worker")])
def test_workers_that_are_killed_end_the_run_which_resumes(signum, status, says, work, run) -> None:
    """A batch system sends SIGTERM to every process of a job: it is still that signal."""

    def stop_all() -> None:
        for child in multiprocessing.active_children():
            child.kill()
            child.join()
        if signum:
            os.kill(os.getpid(), signum)

    command = f"{TRAIN} --set dataset.cache=none dataset.batch_size=4"
    with at_step(4, stop_all):
        stopped = run(command)
    assert stopped.status == status and says in stopped.message and "--resume" in stopped.message
    assert steps(LAST) in (3, 4)
    assert run(f"{command} --resume").status == 0


def test_an_error_that_nobody_foresaw_is_one_line_and_its_traceback_is_to_be_had(capsys, monkeypatch) -> None:
    def fail() -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered\nmore")

    assert utils.exit_status(fail) == 3
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: RuntimeError: CUDA error: an illegal") and "GALR_DEBUG=1" in line
    monkeypatch.setenv("GALR_DEBUG", "1")
    assert utils.exit_status(fail) == 3
    assert "Traceback" in capsys.readouterr().err


def test_images_that_do_not_fit_the_gpu_are_told_to_stay_in_a_file(work, monkeypatch) -> None:
    def no_room(*_) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(torch.Tensor, "to", no_room)
    monkeypatch.setattr("util.pixels.free_memory", lambda _: float("inf"))
    with pytest.raises(utils.RunError, match=r"20 images .*set dataset\.cache=disk"):
        paths = sorted(map(str, Path("data/images").iterdir()))
        open_pixels(paths, 64, load_options("tiny.yaml").dataset, torch.device("cuda"))


@pytest.mark.parametrize("cache", ["disk", "none"])
def test_a_run_on_the_cpu_leaves_the_gpu_alone(cache, work, monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)  # and to pin memory would fail
    options = load_options("tiny.yaml", [f"dataset.cache={cache}", "dataset.workers=0"])
    pixels = open_pixels(["data/images/demo_0001.png"], 64, options.dataset, torch.device("cpu"))
    ((batch, places),) = pixels.batches([np.array([0, 0])], torch.device("cpu"))
    assert batch[places].shape == (2, 64, 64, 3)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ("optim.lr=1e30 logs.save_steps=0", "the loss of batch 3 of epoch 1 is nan"),
        ("optim.lr=1e39 logs.save_steps=6", "the weights are not finite after step 6"),
        ("optim.lr=1e39 logs.save_steps=7 logs.print_freq=9", "the loss of batch 3 of epoch 1 is nan"),
    ],
)
def test_a_loss_or_weights_that_are_not_finite_end_the_run_and_spare_the_checkpoint(settings, said, part_way, run):
    before = LAST.read_bytes()
    spoilt = run(f"{TRAIN} --resume --force --set {settings}")
    assert spoilt.status == 3 and said in spoilt.message
    assert LAST.read_bytes() == before


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ("optim.lr=1e25", "similarities after epoch 0 are not finite"),
        ("optim.lr=1e39 logs.eval_step=2 logs.save_steps=0", "the weights are not finite after step 1"),
    ],
)
def test_weights_that_the_last_step_of_an_epoch_spoils_end_the_run_and_are_not_saved(settings, said, work, run) -> None:
    spoilt = run(f"{TRAIN} --set dataset.batch_size=60 {settings}")
    assert spoilt.status == 3 and said in spoilt.message
    assert not list(FOLD.glob("*.tar*"))
