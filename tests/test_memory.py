"""Memory that is short: images go to a file, and messages keep PyTorch's numbers and advise what changes nothing."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from conftest import command_line, environment
from interrupted import FOLD, TRAIN, same_weights

import layers.galr
import util.device
import util.pixels
import utils

pytestmark = pytest.mark.usefixtures("short_trunk", "without_pictures")
CPU = torch.device("cpu")
CUDA_SAYS = (
    "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 7.79 GiB of which 1.20 GiB is free. "
    "Including non-PyTorch memory, this process has 6.51 GiB memory in use. Of the allocated memory 5.90 GiB is "
    "allocated by PyTorch, and 301.10 MiB is reserved by PyTorch but unallocated. If reserved but unallocated memory "
    "is large try setting PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True to avoid fragmentation."
)


@pytest.mark.parametrize(("spare", "kept"), [(-1, "file"), (1, "memory")])
def test_images_that_take_more_than_half_of_the_free_memory_stay_in_a_file(
    spare, kept, work, run, whole, monkeypatch
) -> None:
    """12 training images of 70 x 70 pixels."""
    monkeypatch.setattr(util.pixels, "free_memory", lambda _: 2 * 12 * 3 * 70**2 + spare)
    outcome = run(TRAIN)
    assert outcome.status == 0
    said = "note: 12 images take 0 MiB of 0 MiB that are free, and a step needs room: they stay in a file"
    assert (said in outcome.out) == (kept == "file") == Path("data/images_64_70.npy").exists()
    assert same_weights(whole, FOLD)


def test_free_memory_is_the_least_that_machine_or_control_groups_leave(tmp_path, monkeypatch) -> None:
    (tmp_path / "meminfo").write_text("MemTotal:  900 kB\nMemAvailable:   800 kB\n")
    monkeypatch.setattr(util.device, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(util.device, "CGROUPS", tmp_path)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert util.device.free_memory(CPU) == 800 * 1024
    for name, text in (("max", "max"), ("current", "5000"), ("stat", "anon 100\nfile 1000")):
        (tmp_path / f"memory.{name}").write_text(text + "\n")
    assert util.device.free_memory(CPU) == 800 * 1024  # no limit
    (tmp_path / "memory.max").write_text("10000\n")
    assert util.device.free_memory(CPU) == 10000 - 5000 + 1000
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert util.device.free_memory(CPU) == 3000
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (2000, 9000))
    assert util.device.free_memory(torch.device("cuda")) == 2000


def test_free_memory_of_another_system_is_not_known(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(util.device, "MEMINFO", tmp_path / "none")
    monkeypatch.setattr(util.device, "CGROUPS", tmp_path)
    assert util.device.free_memory(CPU) == float("inf")


def test_the_message_keeps_pytorchs_numbers_and_advises_what_does_not_change_the_training_first() -> None:
    message, status = utils.describe(torch.OutOfMemoryError(CUDA_SAYS))
    assert status == 3 and message.startswith(
        "out of memory: Tried to allocate 2.50 GiB. GPU 0 has a total capacity of"
    )
    assert "301.10 MiB is reserved" in message and "expandable" not in message
    advice = ("dataset.cache=disk", "optim.checkpointing=true", "optim.precision=bf16", "dataset.batch_size")
    places = [message.index(word) for word in advice]
    assert places == sorted(places)


def test_memory_that_is_short_in_evaluation_asks_for_smaller_batches_there(work, checkpoint, run, monkeypatch) -> None:
    shutil.copy(checkpoint, "best.pth.tar")

    def no_room(*_) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(layers.galr.GaLR, "encode_image", no_room)
    short = run("test_single.py --path_opt tiny.yaml --resume best.pth.tar")
    assert short.status == 3 and "Tried to allocate 2.00 GiB; lower dataset.batch_size_val" in short.message


def test_shared_memory_too_small_for_loader_workers_ends_the_run_and_says_how_to_go_on(work) -> None:
    """Docker gives /dev/shm 64 MiB; here it is a batch of 16 images of 70 x 70 pixels that does not fit."""
    shm = "mount -t tmpfs -o size=200k tmpfs /dev/shm && exec"
    words = ["unshare", "-m", "bash", "-c", f'{shm} "$@"', "bash", *command_line(TRAIN)]
    if subprocess.run([*words[:4], f"{shm} true"], capture_output=True, check=False).returncode:
        pytest.skip("a small /dev/shm: this user may not mount one")
    settings = ["--set", "dataset.cache=none", "dataset.workers=2"]
    done = subprocess.run(
        [*words, *settings], env=environment(), capture_output=True, text=True, timeout=120, check=False
    )
    (line,) = done.stderr.splitlines()
    assert done.returncode == 3 and "the shared memory of loader workers, /dev/shm, is too small" in line
    for way in ("--shm-size", "--ipc=host", "dataset.workers=0", "dataset.cache=ram", "--resume"):
        assert way in line
