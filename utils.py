"""What every command needs: exit status, the parser, devices, logging.

PyTorch is imported inside the few functions that use it, so that commands which only touch arrays start at once.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import functools
import json
import logging
import os
import shlex
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import filelock
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError
from tqdm import tqdm


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


if TYPE_CHECKING:
    import torch

FAILURE = "galr/failure"  # in the store that torchrun keeps: how the first process failed


def count() -> int:
    """How many processes torchrun started for this run, on all machines; 1 without it."""
    return int(os.environ["WORLD_SIZE"]) if "TORCHELASTIC_RUN_ID" in os.environ else 1


def rank() -> int:
    """The number of this process among them."""
    return int(os.environ["RANK"]) if count() > 1 else 0


def is_main() -> bool:
    """Whether this is the process that writes, logs, draws bars and holds the lock."""
    return rank() == 0


def local_rank() -> int:
    """The number of this process among those of its machine: that of its GPU."""
    return int(os.environ["LOCAL_RANK"]) if count() > 1 else 0


@functools.cache
def _store() -> Any:
    """The keys and values that all processes share."""
    import torch.distributed as dist

    store, _, _ = next(dist.rendezvous("env://"))
    return store


# ---------------------------------------------------------------- what all agree on


# ---------------------------------------------------------------- how all fail


class Failure(NamedTuple):
    """The process that failed, and its exit status."""

    rank: int
    status: int


def first_failure(status: int) -> Failure:
    """Note that this process fails -> the first that did: it says why, and its exit status is that of all."""
    own = Failure(rank(), status)
    if count() == 1:
        return own
    try:
        noted = _store().compare_set(FAILURE, "", "{} {}".format(*own))
    except RuntimeError:  # torchrun itself is gone
        return own
    return Failure(*map(int, noted.split()))


def failure_elsewhere() -> Failure | None:
    """The first process that failed; None where none did, or it had no time to note it."""
    with contextlib.suppress(RuntimeError):
        if count() > 1 and _store().check([FAILURE]):
            return Failure(*map(int, _store().get(FAILURE).split()))
    return None


def lost(error: RuntimeError) -> bool:
    """Whether the error says that another process did not answer."""
    if count() == 1:
        return False
    import torch.distributed as dist

    return isinstance(error, dist.DistError) or any(library in str(error) for library in ("gloo", "NCCL"))


logger = logging.getLogger("galr")


@contextlib.contextmanager
def atomic(path: str | os.PathLike, keep: Path | None = None) -> Iterator[Path]:
    """Give a temporary path beside `path`; what is written there takes the name `path` at the end, or not at all.

    The file is flushed to disk before it is renamed, and the folder after it, so that a crash leaves the old file
    or the new one, never half of one. With `keep`, the old file takes that name once the new one is complete.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise InputError(f"cannot make the folder {path.parent}: a file stands in its way") from error
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        yield temporary
        flush(temporary, os.O_RDWR)
        if keep and path.exists():
            path.replace(keep)
        temporary.replace(path)
        flush(path.parent, os.O_RDONLY)
    except OSError as error:
        if disk_full(error):
            error.filename = error.filename or str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def flush(path: Path, mode: int) -> None:
    """Have the system write a file, or a folder's list of names, to its disk; warns, once, where it refuses to."""
    try:
        opened = os.open(path, mode)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)
    except OSError as error:
        if error.errno not in REFUSED:
            raise
        warn_of_refusal(path.parent if path.is_file() else path, os.strerror(error.errno))


# What network and other foreign file systems answer to an fsync that they do not know, above all to that of a folder.
REFUSED = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EACCES, errno.EPERM, errno.EBADF, errno.EISDIR)


@functools.cache
def warn_of_refusal(folder: Path, reason: str) -> None:
    logger.warning(
        f"the file system of {folder} does not flush files on demand ({reason}): if the machine fails, what was "
        "written last may be lost"
    )


@contextlib.contextmanager
def one_at_a_time(path: Path) -> Iterator[None]:
    """Hold the lock on writing `path`; waits for a process that has it, and says so."""
    beside = path.with_name(f".{path.name}.lock")
    lock = filelock.FileLock(beside)
    try:
        lock.acquire(timeout=1)
    except filelock.Timeout:
        logger.info(f"another run is writing {path}; waiting for it")
        lock.acquire()
    try:
        yield
    finally:
        beside.unlink(missing_ok=True)  # whoever waits notices, and makes it anew (filelock does)
        lock.release()


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write a UTF-8 text file atomically."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Write a JSON file atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def check_writable(folder: Path, what: str) -> None:
    """Raise InputError now, not after the work is done, where files could not be written into `folder`."""
    there = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise InputError(f"{what} {folder}: {there} is not a folder that you may write to")


def check_writable_file(path: Path) -> None:
    """Raise InputError now, not after the work is done, where `path` cannot become a file."""
    if path.is_dir():
        raise InputError(f"cannot write {path}: it is a folder; give the name of a file")
    check_writable(path.parent, f"cannot write {path} into")


def existing_file(path: str | os.PathLike, what: str, advice: str = "") -> Path:
    """The path, if a file is there. Raises InputError that says what is missing, where, and the advice."""
    path = Path(path)
    if path.is_file():
        return path
    kind = "is a folder, not a file" if path.is_dir() else "is not there"
    raise InputError(f"{what} {path} {kind}" + (f"; {advice}" if advice else ""))


def read_text(path: str | os.PathLike, what: str, advice: str = "") -> str:
    """Read a UTF-8 text file: a byte-order mark is dropped, Windows line ends become plain ones.

    A carriage return that ends no line is white space; in a file without any other line end, it is the line end.
    Raises InputError, naming file and line, for a missing file, another encoding or a NUL byte.
    """
    raw = existing_file(path, what, advice).read_bytes()
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise InputError(f"{what} {path} is UTF-16 text; save it as UTF-8")
    if b"\0" in raw:
        line = raw[: raw.index(b"\0")].count(b"\n") + 1
        raise InputError(f"{what} {path}, line {line}: a NUL byte; this is not a text file, or it is damaged")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise InputError(
            f"{what} {path}, line {line}: not UTF-8 (byte 0x{raw[error.start]:02x}); save it as UTF-8"
        ) from None
    text = text.replace("\r\n", "\n")
    return text.replace("\r", " " if "\n" in text else "\n")


def read_json(path: str | os.PathLike, what: str, advice: str = "") -> Any:
    """Read a JSON file. Raises InputError that names file, line and fault."""
    try:
        return json.loads(read_text(path, what, advice))
    except json.JSONDecodeError as error:
        raise InputError(f"{what} {path}, line {error.lineno}: not JSON ({error.msg})") from None
    except (RecursionError, ValueError) as error:  # nested too deeply, or a number of thousands of digits
        raise InputError(f"{what} {path}: not readable ({error})") from None


def some(names: list[str], most: int = 5) -> str:
    """The first few of many names, for a message."""
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


class Entry(BaseModel):
    """A JSON object with at least these keys, of exactly these types; others are passed over."""

    model_config = ConfigDict(strict=True, extra="ignore")


def read_as(form: Any, path: Path, what: str) -> Any:
    """Read a JSON file of a form: an Entry, or containers of them. Raises InputError that names the first fault."""
    return checked(form, read_json(path, what), f"{what} {path}")


def checked(form: Any, value: Any, where: str) -> Any:
    """The value as the form describes it. Raises InputError that names the first fault and its place."""
    try:
        return TypeAdapter(form).validate_python(value)
    except ValidationError as error:
        fault = error.errors(include_url=False, include_input=False)[0]
        place = [str(part + 1) if isinstance(part, int) else part for part in fault["loc"]]
        entry = f", entry {' '.join(place)}" if place else ""
        raise InputError(f"{where}{entry}: {fault['msg']}") from None


logger = logging.getLogger("galr")
INTERVAL = 60  # seconds between two lines


class Bar(tqdm):
    """tqdm, whose bar becomes a line a minute where standard error is no terminal; of several processes one draws."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.in_terminal, self.said = sys.stderr.isatty(), time.monotonic()
        pace = {} if self.in_terminal else {"mininterval": INTERVAL, "maxinterval": INTERVAL, "leave": False}
        super().__init__(*args, disable=not is_main(), **pace, **kwargs)

    def display(self, *args: Any, **kwargs: Any) -> None:
        if self.in_terminal:
            super().display(*args, **kwargs)
        elif time.monotonic() - self.said >= INTERVAL:
            self.said = time.monotonic()
            state = self.format_dict | {"bar_format": "{desc}: {n_fmt} of {total_fmt} {unit}s, {remaining} left"}
            logger.info(self.format_meter(**state))

    def clear(self, *args: Any, **kwargs: Any) -> None:
        if self.in_terminal:
            super().clear(*args, **kwargs)


class Meter:
    """Counts things, and tells how many a second there were since it was last asked."""

    def __init__(self) -> None:
        self._started, self._count = time.perf_counter(), 0

    def update(self, count: int) -> None:
        self._count += count

    def read(self) -> float:
        speed = self._count / (time.perf_counter() - self._started)
        self._started, self._count = time.perf_counter(), 0
        return speed


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
