"""Choose the device of a run, and say why there is no GPU."""

from __future__ import annotations

import logging
import os
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from utils import OTHER_WHEEL, InputError, card_too_old, count

if TYPE_CHECKING:
    import torch

    from option import Options

logger = logging.getLogger("galr")

NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")


def pick_device(name: str) -> torch.device:
    """Return the device that `auto`, `cpu` or `cuda` means here, and log it, and why there is no GPU.

    Raise InputError for a GPU that is not there, or is too old for this PyTorch.
    """
    import torch

    found, why = (False, "") if name == "cpu" else find_gpu()
    if name == "cuda" and not found:
        raise InputError(
            f"--device cuda: PyTorch finds no CUDA GPU here{f' ({why})' if why else ''}; use --device cpu, or install "
            "a driver"
        )
    device = torch.device("cuda" if found else "cpu")
    if found:
        device = own_gpu() if count() > 1 else device
        check_kernels(device)
    together = f"; {count()} processes" if count() > 1 else ""
    logger.info(f"device: {device_name(device)}{together}" + (f"; no GPU is found ({why})" if why else ""))
    return device


def own_gpu() -> torch.device:
    """Return the GPU of this process's number. Raise InputError where there are fewer GPUs than processes."""
    import torch

    if int(os.environ["LOCAL_RANK"]) >= torch.cuda.device_count():
        gpus = torch.cuda.device_count()
        raise InputError(f"torchrun starts more processes here than there are GPUs: --nproc_per_node {gpus}")
    torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    return torch.device("cuda", int(os.environ["LOCAL_RANK"]))


def find_gpu() -> tuple[bool, str]:
    """Tell whether PyTorch can use a CUDA GPU, and if not the reason, as far as it is known."""
    import torch

    with warnings.catch_warnings(record=True) as said:  # it says what is wrong with a driver by a warning, once
        warnings.simplefilter("always")
        if torch.cuda.is_available():
            return True, ""
    if said:
        return False, " ".join(str(said[-1].message).partition("(Triggered")[0].split())[:400]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return False, f"CUDA_VISIBLE_DEVICES={visible}"
    if torch.version.cuda is None and NVIDIA_DRIVER.exists():
        return False, "there is an NVIDIA driver, but this PyTorch is built without CUDA"
    return False, ""


def check_kernels(device: torch.device) -> None:
    """Raise InputError where the GPU is too old for this PyTorch, which its first use shows."""
    import torch

    try:
        torch.ones(1, device=device)
    except RuntimeError as error:
        if not card_too_old(error):
            raise
        major, minor = torch.cuda.get_device_capability(device)
        raise InputError(
            f"the GPU {torch.cuda.get_device_name(device)} (compute capability {major}.{minor}) is too old for this "
            f"PyTorch {torch.__version__}, which has code for {', '.join(torch.cuda.get_arch_list())}; {OTHER_WHEEL}"
        ) from None


def device_name(device: torch.device) -> str:
    """Return the name of a device, and its threads or its CUDA."""
    import torch

    if device.type == "cpu":
        return f"CPU, {torch.get_num_threads()} threads"
    return f"{torch.cuda.get_device_name(device)}, CUDA {torch.version.cuda}"


def bf16_gain(device: torch.device) -> float:
    """Measure how many times as fast as float32 the device multiplies bf16 matrices; below 1 float32 is faster.

    Flags do not tell: on a CPU AMX gives several times, AVX-512 bf16 twice or half; old GPUs emulate it.
    """
    import torch

    size, wait = (4096, torch.cuda.synchronize) if device.type == "cuda" else (512, lambda: None)

    def seconds(dtype: torch.dtype) -> float:
        a = torch.zeros(size, size, dtype=dtype, device=device)
        runs = []
        for _ in range(6):
            wait()
            start = time.perf_counter()
            torch.mm(a, a)
            wait()
            runs.append(time.perf_counter() - start)
        return min(runs)

    return seconds(torch.float32) / seconds(torch.bfloat16)


def autocast(options: Options, device: torch.device) -> torch.autocast:
    """Return autocast to bf16 where the options ask for it; otherwise products stay float32."""
    import torch

    return torch.autocast(device.type, torch.bfloat16, enabled=options.optim.precision == "bf16")
