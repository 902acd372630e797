"""The arithmetic of a run: precision and loss scaling, TF32, deterministic kernels."""

from __future__ import annotations

import logging
import os
import time

import torch

from option.options import Optim, Options

logger = logging.getLogger("galr")

LOW = {"bf16": torch.bfloat16, "fp16": torch.float16}  # values of optim.precision beside fp32


def autocast(options: Options, device: torch.device) -> torch.autocast:
    """Return autocast to bf16 or fp16 where the options ask for it; otherwise products stay float32."""
    low = LOW.get(options.optim.precision)
    return torch.autocast(device.type, low or torch.float16, enabled=low is not None)


def make_scaler(options: Optim, device: torch.device) -> torch.amp.GradScaler:
    """Build the loss scaling that fp16 needs: its small gradients would be zero. It is off for other precisions."""
    return torch.amp.GradScaler(device.type, enabled=options.precision == "fp16")


def set_arithmetic(options: Optim) -> None:
    """Let float32 be float32, or TF32 with `tf32`; let cuDNN choose its kernels by trial: shapes are few."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = options.tf32
    torch.backends.cudnn.benchmark = not options.deterministic


def make_deterministic() -> None:
    """Let equal runs on a GPU give equal bits. Call it before CUDA starts: cuBLAS reads its setting then.

    An operation without a deterministic kernel then raises RuntimeError, which names it.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.deterministic = True


def advise(options: Optim, device: torch.device) -> None:
    """Say it where another precision is faster on this device."""
    if options.precision == "fp32":
        return
    if options.precision == "bf16" and device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 0):
        capability = ".".join(map(str, torch.cuda.get_device_capability(device)))
        logger.warning(
            f"optim.precision=bf16: this GPU (compute capability {capability}) has no bf16 units, which came with 8.0; "
            "start runs with optim.precision=fp16"
        )
    elif (faster := gain(options.precision, device)) < 1:
        said = f"{options.precision} has {faster:.2f} times the speed of float32 here"
        logger.info(f"note: {said}: start runs with optim.precision=fp32")


def gain(precision: str, device: torch.device) -> float:
    """Measure how many times as fast as float32 the device multiplies matrices; below 1 float32 is faster.

    Flags do not tell: on a CPU AMX gives several times, AVX-512 bf16 twice or half; old GPUs emulate it.
    """
    wait = {"cuda": torch.cuda.synchronize, "mps": torch.mps.synchronize}.get(device.type, lambda: None)
    size = 512 if device.type == "cpu" else 4096

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

    return seconds(torch.float32) / seconds(LOW[precision])
