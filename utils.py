"""What every command needs: exit status, the parser, devices, logging.

PyTorch is imported inside the few functions that use it, so that commands which only touch arrays start at once.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import shlex
import signal
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from tqdm import tqdm

from util.errors import (
    InputError,
    Interrupted,
    RunError,
    card_too_old,
    compiler_failed,
    disk_full,
    gpu_failed,
    out_of_memory,
    worker_died,
)
from util.processes import count, failure_elsewhere, first_failure, is_main, local_rank, lost, rank

if TYPE_CHECKING:
    import torch

logger = logging.getLogger("galr")

ROOT = Path(__file__).resolve().parent
NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")
OTHER_WHEEL = "install an older one (https://pytorch.org/get-started/previous-versions), or use --device cpu"


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, like every other error here."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message} (see {self.prog} --help)")

    def add_options(self, required: bool = True) -> None:
        """What names a run's options: --path_opt and --set."""
        self.add_argument("--path_opt", required=required, help="option file, such as option/RSITMD/RSITMD_GaLR.yaml")
        self.add_argument("--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="override options")

    def add_device(self) -> None:
        self.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto", help="default: auto")


def same_options(arguments: argparse.Namespace) -> str:
    """The part of a command line that gives another command the same options: --path_opt and --set."""
    return shlex.join(["--path_opt", arguments.path_opt, *(["--set", *arguments.set] if arguments.set else [])])


def run_command(main: Callable[[], None]) -> NoReturn:
    """Run `main` and leave the process with the exit status that the kind of its end calls for.

    On standard error stands what this project says, and nothing else: libraries' warnings are for developers (python -W
    shows them), and the error of a library's thread is raised again where its work is awaited.
    """
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
    threading.excepthook = lambda _: None
    sys.stdout.reconfigure(errors="backslashreplace")  # a file name need not be text
    sys.exit(exit_status(main))


def exit_status(main: Callable[[], None]) -> int:
    """0 done, 2 wrong input, 3 the run could not go on, 130 and 143 after Ctrl-C and SIGTERM; one line on stderr.

    Of several processes the first to fail says why, and the others end with its status.
    """
    start_logging()
    try:
        main()
    except InputError as error:
        return _complain(error, 2)
    except RunError as error:
        return _complain(error, 3)
    except Interrupted as error:
        return _complain(error, 128 + error.signum)
    except KeyboardInterrupt:
        return _complain("interrupted", 128 + signal.SIGINT)
    except BrokenPipeError:  # the reader of our output (head, less) has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except MemoryError as error:
        return _complain(f"out of memory: {error}", 3)
    except OSError as error:
        if disk_full(error):
            what = error.filename or "a file"
            return _complain(f"cannot write {what}: {os.strerror(error.errno)}; make room and run again", 3)
        return _complain(error, 2)
    except RuntimeError as error:
        if failure := failure_elsewhere():
            return failure.status
        if lost(error):
            reason = "did not answer in time" if "imed out" in str(error) else "is gone (killed, or out of memory?)"
            return _complain(f"one of {count()} processes {reason}; go on from the last checkpoint with --resume", 3)
        if worker_died(error):
            return _complain(f"a loader worker died ({error}); run again (train.py: with --resume)", 3)
        if compiler_failed(error):
            reason = " ".join(str(error).split())[:200]
            return _complain(f"optim.compile: PyTorch cannot compile here ({reason}); set it to false", 2)
        if out_of_memory(error):
            return _complain(f"out of memory: {str(error).partition('. ')[0]}; lower dataset.batch_size", 3)
        if card_too_old(error):
            return _complain(f"this PyTorch has no code for this GPU; {OTHER_WHEEL}", 2)
        if gpu_failed(error):
            reason = str(error).partition("\n")[0]
            return _complain(f"the GPU failed ({reason}); run again (train.py: with --resume)", 3)
        raise
    return 0


class Messages(logging.Handler):
    """Information goes to standard output, warnings and errors to standard error, beside a progress bar if one is
    drawn."""

    def emit(self, record: logging.LogRecord) -> None:
        stream = sys.stderr if record.levelno >= logging.WARNING else sys.stdout
        kind = f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""
        with tqdm.external_write_mode(stream):
            print(kind + record.getMessage(), file=stream, flush=True)


def start_logging() -> None:
    """Let people read what the logger `galr` says: plain lines, by `Messages`."""
    logger.setLevel(logging.INFO if is_main() else logging.ERROR)
    logger.handlers[:] = [Messages()]
    if not logging.root.handlers:  # a library that logs to the root itself (open_clip) would give it one that prints
        logging.root.addHandler(logging.NullHandler())
    for library in ("HF_HUB", "TRANSFORMERS"):  # what they warn of, our errors say
        os.environ.setdefault(f"{library}_VERBOSITY", "error")


def _complain(error: Exception | str, status: int) -> int:
    first = first_failure(status)
    if first.rank == rank():
        logger.error(" ".join(str(error).split()))
    return first.status


def pick_device(name: str) -> torch.device:
    """`auto` takes a CUDA GPU where one is; says which device it is, and why no GPU.

    Raises InputError for a GPU that is not there, or is too old for this PyTorch.
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
    """Of several processes each takes the GPU of its number. Raises InputError where there are fewer GPUs."""
    import torch

    if local_rank() >= torch.cuda.device_count():
        gpus = torch.cuda.device_count()
        raise InputError(f"torchrun starts more processes here than there are GPUs: --nproc_per_node {gpus}")
    torch.cuda.set_device(local_rank())
    return torch.device("cuda", local_rank())


def find_gpu() -> tuple[bool, str]:
    """Whether PyTorch can use a CUDA GPU; where it cannot, the reason, as far as it can be told."""
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
    """Raises InputError where the GPU is too old for this PyTorch, which is seen at the first thing that it does."""
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
    """What it is, in words."""
    import torch

    if device.type == "cpu":
        return f"CPU, {torch.get_num_threads()} threads"
    return f"{torch.cuda.get_device_name(device)}, CUDA {torch.version.cuda}"


def reuse_memory() -> None:
    """Have the C library keep freed memory for the next step: a fifth off a training step on a CPU, or more.

    Otherwise every large tensor is mapped, filled with zeros by the kernel page by page, and unmapped again.
    """
    import ctypes

    with contextlib.suppress(OSError, AttributeError):  # another C library: no harm
        mallopt = ctypes.CDLL(None).mallopt
        trim_threshold, top_pad, mmap_max = -1, -2, -4  # names of malloc.h
        mallopt(mmap_max, 0)
        mallopt(trim_threshold, -1)
        mallopt(top_pad, 512 * 2**20)
