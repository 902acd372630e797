"""The device of a run: which GPU is taken, and the one line where a card is there that PyTorch cannot use."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from test_exec import program

import util.device
from util.device import pick_device
from utils import InputError

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


CU126, CU130 = "whl/cu126", "whl/cu130"


@pytest.mark.parametrize(
    ("driver", "cuda", "advice", "others"),
    [
        ("535.104.05", "13.2", ["update the driver to 580", "torch>=2.11,<2.15", CU126], [CU130]),
        ("470.57.02", "13.2", ["update the driver to 580"], [CU126, CU130]),
        ("580.65.06", None, [CU130, "without CUDA"], [CU126]),
        ("535.104.05", None, [CU126, "without CUDA"], [CU130]),
        ("580.65.06", "13.2", ["the driver is new enough"], [CU126, CU130]),
    ],
)
def test_a_card_that_pytorch_cannot_use_stops_auto_and_the_line_says_what_to_install(
    driver, cuda, advice, others, bare, work, run, monkeypatch
) -> None:
    """No silent run on the CPU; `--device cpu` goes on."""
    (bare / "version").write_text(VERSION.format(driver))
    monkeypatch.setattr(torch.version, "cuda", cuda)
    for device in ("auto", "cuda", "cuda:1"):
        refused = run(f"train.py --path_opt tiny.yaml --device {device}")
        assert refused.status == 2
        said = f"NVIDIA driver {driver}", f"PyTorch {torch.__version__}", "docs/scaling.md", "--device cpu"
        assert all(word in refused.message for word in (*said, *advice))
        assert not any(word in refused.message for word in others)
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


@pytest.fixture
def three_gpus(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "set_device", lambda _: None)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"card {device.index}")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda i: SimpleNamespace(uuid="abc"[i]))
    monkeypatch.setattr(util.device, "check_kernels", lambda _: None)


def test_the_gpu_with_the_most_free_memory_is_taken_or_the_one_that_is_named(three_gpus, monkeypatch, tmp_path) -> None:
    """nvidia-smi may number the cards in another order, and know more of them than are visible."""
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
