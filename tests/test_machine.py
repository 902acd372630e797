"""The machine below: GPUs, memory, file systems, locks. What is amiss is one line that is true, or changes nothing."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT, command_line, environment, listing
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


def no_kernels(*_, **__) -> None:
    raise torch.AcceleratorError("CUDA error: no kernel image is available for execution on the device\nmore")


@pytest.mark.parametrize(("capability", "way"), [((3, 7), "previous-versions"), ((7, 0), "whl/cu126")])
def test_a_card_too_old_for_pytorch_is_no_reason_to_run_again(capability, way, monkeypatch, work, run) -> None:
    """A job that resubmits itself at status 3 would loop for ever."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_device", lambda _: None)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Tesla K80")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_75", "sm_90"])
    monkeypatch.setattr(torch, "ones", no_kernels)
    refused = run(f"{TRAIN} --device cuda")
    assert refused.status == 2 and "again" not in refused.message
    for word in ("Tesla K80", "{}.{}".format(*capability), "sm_75, sm_90", way, "--device cpu"):
        assert word in refused.message


def test_kernels_that_are_missing_later_on_are_no_reason_either(capsys) -> None:
    assert utils.exit_status(no_kernels) == 2
    assert "this PyTorch has no code for this GPU" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("gpu", "visible", "seen"),
    [(None, None, ""), (None, "", ""), (None, "2", "2"), ("1", "", "1"), ("1", None, "1")],
)
def test_the_scripts_leave_gpus_that_are_hidden_hidden(gpu, visible, seen, tmp_path) -> None:
    """`CUDA_VISIBLE_DEVICES=` means no GPU; without it train.py chooses. The script ends at once for want of a name."""
    text = (ROOT / "exec/train_and_test.sh").read_text().replace("if [", "echo $CUDA_VISIBLE_DEVICES; if [", 1)
    (tmp_path / "script.sh").write_text(text)
    settings = {"GPU": gpu, "CUDA_VISIBLE_DEVICES": visible}
    env = {name: value for name, value in {**os.environ, **settings}.items() if value is not None}
    done = subprocess.run(["bash", tmp_path / "script.sh"], env=env, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (2, seen)


@pytest.mark.parametrize(("what", "refused"), [("folders", errno.EINVAL), ("all", errno.ENOTSUP)])
def test_a_file_system_that_refuses_fsync_is_said_once_and_written_to(what, refused, tmp_path, monkeypatch, capsys):
    real = os.fsync

    def fsync(opened: int) -> None:
        if what == "all" or Path(f"/proc/self/fd/{opened}").is_dir():
            raise OSError(refused, os.strerror(refused))
        real(opened)

    monkeypatch.setattr(os, "fsync", fsync)
    for name in ("a.txt", "b.txt"):
        utils.write_text(tmp_path / name, "text")
        assert (tmp_path / name).read_text() == "text"
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{tmp_path}: the file system does not support fsync" in line


def test_a_disk_that_fails_at_fsync_is_an_error(tmp_path, monkeypatch) -> None:
    def fsync(_: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError, match="Input/output"):
        utils.write_text(tmp_path / "a.txt", "text")
    assert not list(tmp_path.iterdir())


HOLD = """
import h5py, sys
file = h5py.File("data/local.h5", "r+")
print("held", flush=True)
sys.stdin.read()
"""


def test_local_features_that_another_program_holds_are_said_to_be_held(work, run) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        holder.stdout.readline()
        refused = run(TRAIN)
        holder.stdin.close()
    assert refused.status == 2 and "local.h5 cannot be read" in refused.message and "lock" in refused.message
    assert "damaged" not in refused.message


def test_a_read_only_checkout_is_worked_in_by_options_alone(work, checkpoint, run) -> None:
    """Checkpoints, logs, matrices and figures go where the options say; nothing is written beside the code."""
    options = "logs.ckpt_save_path=out/checkpoint logs.logger_name=out/logs logs.matrices=out/matrices"
    fold = work / "out/checkpoint/tiny/0"
    fold.mkdir(parents=True)
    for name in ("GaLR_best.pth.tar", "split.json"):
        shutil.copy(checkpoint.with_name(name), fold)
    before = listing(work)
    assert run(f"test.py --path_opt tiny.yaml --set {options}").status == 0
    new = listing(work).keys() - before.keys()
    assert new and all(name.startswith("out/") for name in new)
    assert {"out/matrices/tiny_0.npy", "out/matrices/tiny_0_val_gallery.json"} < new
    assert any(name.startswith("out/checkpoint/tiny/figures/") for name in new)


def test_training_needs_nothing_that_windows_lacks(work) -> None:
    command = [sys.executable, str(ROOT / "tests/windows.py"), *TRAIN.split()]
    overrides = "--device cpu --set optim.epochs=1 dataset.cache=disk dataset.workers=0".split()
    done = subprocess.run([*command, *overrides], env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "the file system does not support fsync" in done.stderr and Path("checkpoint/tiny/0/last.pth.tar").is_file()


# ---------------------------------------------------------------- memory


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
