"""The machine below: GPUs, memory, file systems, locks. What is amiss is one line that is true, or changes nothing."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT, command_line, environment, listing
from interrupted import FOLD, TRAIN, same_weights
from test_exec import program

import layers.galr
import util.device
import util.pixels
import utils
from util.device import pick_device
from utils import InputError

pytestmark = pytest.mark.usefixtures("short_trunk", "without_pictures")
CPU = torch.device("cpu")
CUDA_SAYS = (
    "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 7.79 GiB of which 1.20 GiB is free. "
    "Including non-PyTorch memory, this process has 6.51 GiB memory in use. Of the allocated memory 5.90 GiB is "
    "allocated by PyTorch, and 301.10 MiB is reserved by PyTorch but unallocated. If reserved but unallocated memory "
    "is large try setting PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True to avoid fragmentation."
)


def set_cuda(monkeypatch: pytest.MonkeyPatch, **answers: object) -> None:
    """Let functions of torch.cuda give these answers."""
    for name, answer in answers.items():
        monkeypatch.setattr(torch.cuda, name, lambda *_, answer=answer: answer)


def no_kernels(*_, **__) -> None:
    raise torch.AcceleratorError("CUDA error: no kernel image is available for execution on the device\nmore")


@pytest.mark.parametrize(("capability", "way"), [((3, 7), "previous-versions"), ((7, 0), "whl/cu126")])
def test_a_card_too_old_for_pytorch_is_no_reason_to_run_again(capability, way, monkeypatch, work, run) -> None:
    """A job that resubmits itself at status 3 would loop for ever."""
    set_cuda(monkeypatch, is_available=True, device_count=1, set_device=None, get_device_name="Tesla K80")
    set_cuda(monkeypatch, get_device_capability=capability, get_arch_list=["sm_75", "sm_90"])
    monkeypatch.setattr(torch, "ones", no_kernels)
    refused = run(f"{TRAIN} --device cuda")
    assert refused.status == 2 and "again" not in refused.message
    for word in ("Tesla K80", "{}.{}".format(*capability), "sm_75, sm_90", way, "--device cpu"):
        assert word in refused.message
    with pytest.raises(torch.AcceleratorError) as later:
        no_kernels()
    message, status = utils.describe(later.value)
    assert status == 2 and "this PyTorch has no code for this GPU" in message


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


@pytest.mark.parametrize(("what", "error"), [("folders", errno.EINVAL), ("all", errno.ENOTSUP), ("all", errno.EIO)])
def test_a_file_system_that_refuses_fsync_is_said_once_and_a_disk_that_fails_is_an_error(
    what, error, tmp_path, monkeypatch, capsys
) -> None:
    real = os.fsync

    def fsync(opened: int) -> None:
        if what == "all" or Path(f"/proc/self/fd/{opened}").is_dir():
            raise OSError(error, os.strerror(error))
        real(opened)

    monkeypatch.setattr(os, "fsync", fsync)
    if error == errno.EIO:
        with pytest.raises(OSError, match="Input/output"):
            utils.write_text(tmp_path / "a.txt", "text")
        assert not list(tmp_path.iterdir())
        return
    for name in ("a.txt", "b.txt"):
        utils.write_text(tmp_path / name, "text")
        assert (tmp_path / name).read_text() == "text"
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{tmp_path}: the file system does not support fsync" in line


def test_local_features_that_another_program_holds_are_said_to_be_held(work, run) -> None:
    code = "import h5py, sys; file = h5py.File('data/local.h5', 'r+'); print(1, flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        holder.stdout.readline()
        refused = run(TRAIN)
        holder.stdin.close()
    assert refused.status == 2 and "local.h5 cannot be read" in refused.message and "lock" in refused.message
    assert "damaged" not in refused.message


def test_a_read_only_checkout_is_worked_in_by_options_alone(scored_run, run) -> None:
    """Checkpoints, logs, matrices and figures go where the options say; nothing is written beside the code."""
    options = "logs.ckpt_save_path=out/checkpoint logs.logger_name=out/logs logs.matrices=out/matrices"
    shutil.copytree("checkpoint", "out/checkpoint")
    before = listing(scored_run)
    assert run(f"test.py --path_opt tiny.yaml --set {options}").status == 0
    new = listing(scored_run).keys() - before.keys()
    assert new and all(name.startswith("out/") for name in new)
    assert {"out/matrices/tiny_0.npy", "out/matrices/tiny_0_val_gallery.json"} < new
    assert any(name.startswith("out/checkpoint/tiny/figures/") for name in new)


def test_training_needs_nothing_that_windows_lacks(work) -> None:
    settings = "--device cpu --set optim.epochs=1 dataset.cache=disk dataset.workers=0"
    words = [sys.executable, ROOT / "tests/windows.py", *f"{TRAIN} {settings}".split()]
    done = subprocess.run(words, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "the file system does not support fsync" in done.stderr and Path("checkpoint/tiny/0/last.pth.tar").is_file()


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
    monkeypatch.setattr(util.device, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(util.device, "CGROUPS", tmp_path)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert util.device.free_memory(CPU) == float("inf")  # another system: not known
    (tmp_path / "meminfo").write_text("MemTotal:  900 kB\nMemAvailable:   800 kB\n")
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


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError(CUDA_SAYS),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
        torch.AcceleratorError("CUDA error: out of memory", 2),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
)
def test_memory_that_is_short_is_status_3_with_advice_that_changes_no_training_first(error) -> None:
    message, status = utils.describe(error)
    assert status == 3 and message.startswith("out of memory")
    advice = ("dataset.cache=disk", "optim.checkpointing=true", "optim.precision=bf16", "dataset.batch_size")
    places = [message.index(word) for word in advice]
    assert places == sorted(places)
    if CUDA_SAYS in error.args:
        assert "Tried to allocate 2.50 GiB. GPU 0 has a total capacity of" in message
        assert "301.10 MiB is reserved" in message and "expandable" not in message


def test_memory_that_is_short_in_evaluation_asks_for_smaller_batches_there(scored_run, run, monkeypatch) -> None:
    def no_room(*_) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(layers.galr.GaLR, "encode_image", no_room)
    short = run("test_single.py --path_opt tiny.yaml --resume checkpoint/tiny/0/GaLR_best.pth.tar")
    assert short.status == 3 and "Tried to allocate 2.00 GiB; lower dataset.batch_size_val" in short.message


def test_shared_memory_too_small_for_loader_workers_ends_the_run_and_says_how_to_go_on(work) -> None:
    """Docker gives /dev/shm 64 MiB; here it is a batch of 16 images of 70 x 70 pixels that does not fit."""
    mount = ["unshare", "-m", "bash", "-c", 'mount -t tmpfs -o size=200k tmpfs /dev/shm && exec "$@"', "bash"]
    if subprocess.run([*mount, "true"], capture_output=True, check=False).returncode:
        pytest.skip("a small /dev/shm: this user may not mount one")
    words = command_line(f"{TRAIN} --set dataset.cache=none dataset.workers=2")
    done = subprocess.run([*mount, *words], env=environment(), capture_output=True, text=True, timeout=120, check=False)
    (line,) = done.stderr.splitlines()
    assert done.returncode == 3 and "the shared memory of loader workers, /dev/shm, is too small" in line
    for way in ("--shm-size", "--ipc=host", "dataset.workers=0", "dataset.cache=ram", "--resume"):
        assert way in line


TOO_OLD = "CUDA initialization: The NVIDIA driver on your system is too old (found version 12020). Please update"
VERSION = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  {}  Sat Aug 19 01:15:15 UTC 2023\nGCC version: 12.2.0\n"


@pytest.fixture
def bare(monkeypatch, tmp_path) -> Path:
    """A machine without card and driver; what PyTorch finds wrong with a driver it says by a warning alone."""

    def is_available() -> bool:
        if util.device.NVIDIA_DRIVER.is_file():
            warnings.warn(f"{TOO_OLD} it. (Triggered internally at CUDAFunctions.cpp:109.)", stacklevel=2)
        return False

    monkeypatch.setattr(torch.cuda, "is_available", is_available)
    monkeypatch.setattr(torch.version, "cuda", "13.2")
    monkeypatch.setattr(util.device, "NVIDIA_DRIVER", tmp_path / "version")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return tmp_path


@pytest.mark.parametrize(
    ("driver", "cuda", "advice", "others"),
    [
        ("535.104.05", "13.2", ["update the driver to 580", "torch>=2.11,<2.15", "whl/cu126"], "whl/cu130"),
        ("470.57.02", "13.2", ["update the driver to 580"], "whl/"),
        ("580.65.06", None, ["whl/cu130", "without CUDA"], "whl/cu126"),
        ("535.104.05", None, ["whl/cu126", "without CUDA"], "whl/cu130"),
        ("580.65.06", "13.2", ["the driver is new enough"], "whl/"),
    ],
)
def test_a_card_that_pytorch_cannot_use_stops_auto_and_the_line_says_what_to_install(
    driver, cuda, advice, others, bare, monkeypatch
) -> None:
    """No silent run on the CPU; `--device cpu` goes on."""
    (bare / "version").write_text(VERSION.format(driver))
    monkeypatch.setattr(torch.version, "cuda", cuda)
    for device in ("auto", "cuda", "cuda:1"):
        with pytest.raises(InputError) as error:
            pick_device(device)
        said = f"NVIDIA driver {driver}", f"PyTorch {torch.__version__}", "docs/scaling.md", "--device cpu"
        assert all(word in str(error.value) for word in (*said, *advice)) and others not in str(error.value)
    assert pick_device("cpu").type == "cpu"


def test_a_driver_is_found_by_nvidia_smi_too(bare, tmp_path) -> None:
    program(tmp_path / "bin/nvidia-smi", "echo 535.54.03")
    with pytest.raises(InputError, match=r"NVIDIA driver 535.54.03, .*cu126"):
        pick_device("auto")
    program(tmp_path / "bin/nvidia-smi", "exit 9")
    assert pick_device("auto").type == "cpu"


@pytest.mark.parametrize("visible", ["", "-1"])
def test_a_card_that_is_hidden_stops_nothing(visible, bare, monkeypatch) -> None:
    (bare / "version").write_text(VERSION.format("535.104.05"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert pick_device("auto").type == "cpu"
    with pytest.raises(InputError, match="--device cuda: PyTorch finds no CUDA GPU"):
        pick_device("cuda")


def test_without_a_card_auto_is_the_cpu_and_says_no_more_than_is_known(bare, monkeypatch, capsys) -> None:
    assert pick_device("auto").type == "cpu"
    said = capsys.readouterr().out
    assert "GPU" not in said and "device: CPU" in said
    with pytest.raises(InputError, match="no NVIDIA card or driver"):
        pick_device("cuda")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5")
    assert pick_device("auto").type == "cpu" and "(CUDA_VISIBLE_DEVICES=5)" in capsys.readouterr().out


def test_the_gpu_with_the_most_free_memory_is_taken_or_the_one_that_is_named(monkeypatch, tmp_path) -> None:
    """nvidia-smi may number the cards in another order, and know more of them than are visible."""
    set_cuda(monkeypatch, is_available=True, device_count=3, set_device=None, get_device_name="a card")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda i: SimpleNamespace(uuid="abc"[i]))
    monkeypatch.setattr(util.device, "check_kernels", lambda _: None)
    program(tmp_path / "nvidia-smi", r'printf "GPU-c, 100\nGPU-b, 800\nGPU-a, 300\nGPU-x, 900\n"')
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert [pick_device(name).index for name in ("auto", "cuda", "cuda:0", "cuda:2")] == [1, 1, 0, 2]
    with pytest.raises(InputError, match="--device cuda:3: there are 3 GPUs, numbered from 0"):
        pick_device("cuda:3")
    (tmp_path / "nvidia-smi").unlink()
    assert pick_device("auto").index == 0


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:x", "cpu:0"])
def test_a_device_of_another_name_is_one_line(name, work, run) -> None:
    refused = run(f"train.py --path_opt tiny.yaml --device {name}")
    assert refused.status == 2 and f"must be auto, cpu, cuda, cuda:N or mps, got {name}" in refused.message


def test_mps_is_refused_where_there_is_none(monkeypatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(InputError, match="no GPU of Apple"):
        pick_device("mps")
