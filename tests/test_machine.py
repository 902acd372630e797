"""The machine below: GPUs, drivers, memory, file systems, locks. What is amiss is one line that is true."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT, environment, listing

import utils

pytestmark = pytest.mark.usefixtures("short_trunk")
TRAIN = "train.py --path_opt tiny.yaml"


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
