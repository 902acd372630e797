"""The errors that end a command, and how the errors of PyTorch and the system are told apart."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator


class InputError(Exception):
    """The input is wrong and the user can mend it. Exit status 2; the message says what, where and what to do."""


class RunError(Exception):
    """The run could not go on (disk full, a worker died, a loss that is not finite). Exit status 3; resumable."""


class Interrupted(Exception):
    """A signal asked the run to stop, and it has saved. Exit status 128 + signal number (130, 143)."""

    def __init__(self, signum: int, message: str) -> None:
        super().__init__(message)
        self.signum = signum


@contextlib.contextmanager
def not_installed(what: str) -> Iterator[None]:
    """A package that only some users need and that is missing is an InputError, which says for `what` it is needed."""
    try:
        yield
    except ImportError as error:
        raise InputError(
            f"{what} needs the package {error.name or error}: pip install -r requirements-models.txt"
        ) from None


def disk_full(error: BaseException) -> bool:
    """Whether a file could not grow: a full disk, a quota, a limit on the size of files."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def worker_died(error: Exception) -> bool:
    """Whether PyTorch says that a loader worker is gone; it says so wherever the program happens to be."""
    return isinstance(error, RuntimeError) and "DataLoader worker" in str(error)


def out_of_memory(error: Exception) -> bool:
    """Whether PyTorch says that a tensor found no room, on a GPU or in main memory."""
    signs = "DefaultCPUAllocator", "CUDA error: out of memory", "ALLOC_FAILED"
    return type(error).__name__ == "OutOfMemoryError" or any(sign in str(error) for sign in signs)


@contextlib.contextmanager
def memory_advice(advice: str) -> Iterator[None]:
    """Memory that is short within it is a RunError that gives this advice."""
    try:
        yield
    except Exception as error:
        if not out_of_memory(error):
            raise
        raise RunError(f"out of memory: {str(error).partition('. ')[0]}; {advice}") from None


def card_too_old(error: Exception) -> bool:
    """Whether the error is that PyTorch has no code for this GPU: no second run will mend that."""
    return "no kernel image is available" in str(error)


def gpu_failed(error: Exception) -> bool:
    """Whether the error is one of CUDA or its libraries."""
    return type(error).__name__ == "AcceleratorError" or str(error).startswith(("CUDA error", "CUDA driver", "cuDNN"))


def compiler_failed(error: Exception) -> bool:
    """Whether the error is one of `torch.compile`."""
    return type(error).__module__.startswith(("torch._dynamo", "torch._inductor"))
