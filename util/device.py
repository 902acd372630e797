"""Choose the device of a run, and say why there is no GPU."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import subprocess
import warnings
from pathlib import Path

import torch

from utils import OTHER_WHEEL, InputError, card_too_old, count

logger = logging.getLogger("galr")

NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")
# Drivers of NVIDIA from which on the wheels of PyTorch 2.11 and later run (docs/scaling.md), newest first.
WHEELS = {
    580: "pip install --force-reinstall torch torchvision --index-url https://download.pytorch.org/whl/cu130",
    525: "pip install --force-reinstall 'torch>=2.11,<2.15' torchvision --index-url "
    "https://download.pytorch.org/whl/cu126",
}


def pick_device(name: str) -> torch.device:
    """Return the device that `auto`, `cpu`, `cuda`, `cuda:N` or `mps` means here, and log it.

    `auto` and `cuda` take the GPU with the most free memory; of several processes each takes that of its number.
    Raise InputError for a GPU that is not there, that is too old for this PyTorch, or whose driver is; `auto` goes to
    the CPU only where there is no NVIDIA driver, or CUDA_VISIBLE_DEVICES hides the card.
    """
    if name == "mps":
        if not torch.backends.mps.is_available():
            raise InputError("--device mps: PyTorch finds no GPU of Apple here; use --device cpu")
        if count() > 1:
            raise InputError("--device mps: several processes need CUDA GPUs, or --device cpu")
        device = torch.device("mps", 0)
    elif name == "cpu" or not cuda_found(name):
        device = torch.device("cpu")
    else:
        device = torch.device("cuda", gpu_number(name))
        torch.cuda.set_device(device)
        check_kernels(device)
    together = f"; {count()} processes" if count() > 1 else ""
    logger.info(f"device: {device_name(device)}{together}")
    return device


def cuda_found(name: str) -> bool:
    """Return whether PyTorch can use a CUDA GPU; log why not, where that is known, if `name` is `auto`.

    Raise InputError if it cannot, unless `name` is `auto` and there is no NVIDIA driver or the card is hidden.
    """
    with warnings.catch_warnings(record=True) as said:  # it says what is wrong with a driver by a warning, once
        warnings.simplefilter("always")
        if torch.cuda.is_available():
            return True
    why = " ".join(str(said[-1].message).partition("(Triggered")[0].split())[:400] if said else ""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    driver = nvidia_driver() if visible is None or visible.strip() not in ("", "-1") else None
    if driver is None:
        why = why or (f"CUDA_VISIBLE_DEVICES={visible}" if visible is not None else "")
        if name != "auto":
            why = why or "no NVIDIA card or driver"
            raise InputError(f"--device {name}: PyTorch finds no CUDA GPU here ({why}); use --device cpu")
        if why:
            logger.info(f"no GPU is found ({why})")
        return False
    wheel = f"PyTorch {torch.__version__} ({f'CUDA {torch.version.cuda}' if torch.version.cuda else 'without CUDA'})"
    said = f"there is an NVIDIA driver {driver}, but {wheel} cannot use it{f' ({why})' if why else ''}"
    raise InputError(f"{said}; {remedy(driver, torch.version.cuda)} (docs/scaling.md), or use --device cpu")


def remedy(driver: str, cuda: str | None) -> str:
    """Return what makes a PyTorch built for CUDA version `cuda` (None: without) work under a driver's version.

    >>> remedy("470.57.02", "13.2")
    'update the driver to 580 or later'
    """
    branch = int(driver.partition(".")[0])
    if cuda and branch >= (580 if int(cuda.partition(".")[0]) >= 13 else 525):
        return "the driver is new enough: see whether nvidia-smi runs, and CUDA_VISIBLE_DEVICES"
    fitting = next((command for least, command in WHEELS.items() if branch >= least), None)
    if branch >= max(WHEELS):
        return fitting
    return f"update the driver to {max(WHEELS)} or later" + (f", or {fitting}" if fitting else "")


def nvidia_driver() -> str | None:
    """Return the version of the NVIDIA driver here; None without any."""
    text = NVIDIA_DRIVER.read_text(errors="replace") if NVIDIA_DRIVER.is_file() else ""
    if found := re.search(r"\s(\d{3,}\.\d+(?:\.\d+)*)\s", text):
        return found[1]
    return next((version for (version,) in nvidia_smi("driver_version")), None)


def nvidia_smi(*fields: str) -> list[list[str]]:
    """Return the fields of each card that nvidia-smi tells; nothing where it is missing or fails."""
    command = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return [[cell.strip() for cell in line.split(",")] for line in done.stdout.splitlines()]


def gpu_number(name: str) -> int:
    """Return the number of this process's GPU, of `cuda:N`, or of the GPU with the most free memory.

    nvidia-smi tells how much is free: to ask CUDA would take some. Raise InputError where there is no such GPU.
    """
    gpus = torch.cuda.device_count()
    if count() > 1:
        own = int(os.environ["LOCAL_RANK"])
        if own >= gpus:
            raise InputError(f"torchrun starts more processes here than there are GPUs: --nproc_per_node {gpus}")
        return own
    if name not in ("auto", "cuda"):
        if (number := int(name.removeprefix("cuda:"))) >= gpus:
            raise InputError(f"--device {name}: there are {gpus} GPUs, numbered from 0")
        return number
    if gpus == 1:
        return 0
    free = {uuid: int(mib) for uuid, mib in nvidia_smi("uuid", "memory.free") if mib.isdecimal()}
    return max(range(gpus), key=lambda i: free.get(f"GPU-{torch.cuda.get_device_properties(i).uuid}", 0))


def check_kernels(device: torch.device) -> None:
    """Raise InputError where the GPU is too old for this PyTorch, which its first use shows."""
    try:
        torch.ones(1, device=device)
    except RuntimeError as error:
        if not card_too_old(error):
            raise
        major, minor = torch.cuda.get_device_capability(device)
        other = f"{WHEELS[525]}, or use --device cpu" if (5, 0) <= (major, minor) < (7, 5) else OTHER_WHEEL
        raise InputError(
            f"the GPU {torch.cuda.get_device_name(device)} (compute capability {major}.{minor}) is too old for this "
            f"PyTorch {torch.__version__}, which has code for {', '.join(torch.cuda.get_arch_list())}; {other}"
        ) from None


def device_name(device: torch.device) -> str:
    """Return the name of a device, and its threads or its CUDA."""
    if device.type == "cpu":
        return f"CPU, {torch.get_num_threads()} threads"
    if device.type == "mps":
        return "GPU of Apple (mps)"
    return f"{torch.cuda.get_device_name(device)}, CUDA {torch.version.cuda}"


# ---------------------------------------------------------------- memory

CGROUPS, MEMINFO = Path("/sys/fs/cgroup"), Path("/proc/meminfo")


def free_memory(device: torch.device) -> float:
    """Return the bytes that one process of this run may still take: of main memory, and of its GPU. inf: not known.

    A container, or a job of SLURM, may have less than the machine (control groups, version 2).
    """
    shared = free_main_memory() / int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    return min(shared, torch.cuda.mem_get_info(device)[0]) if device.type == "cuda" else shared


def free_main_memory() -> float:
    """Return the bytes of main memory that are free, or cache of files that the kernel gives back. inf: not known."""
    free = [float("inf")]
    with contextlib.suppress(OSError, ValueError, KeyError):
        available = dict(line.split(":") for line in MEMINFO.read_text().splitlines())["MemAvailable"]
        free.append(int(available.split()[0]) * 1024)
    with contextlib.suppress(OSError):
        own = CGROUPS / Path("/proc/self/cgroup").read_text().rpartition("::/")[2].strip()
        for group in (own, *own.parents):
            with contextlib.suppress(OSError, ValueError, KeyError):  # no limit, or not of version 2
                limit, used = (int((group / f"memory.{name}").read_text()) for name in ("max", "current"))
                cached = dict(map(str.split, (group / "memory.stat").read_text().splitlines()))["file"]
                free.append(max(limit - used + int(cached), 0))
    return min(free)
