"""Provide what every command needs: errors and exit status, the parser, messages, progress, safe files.

This is the ground floor: it imports nothing of the project, and PyTorch only inside functions that use it, so that
commands which only touch arrays start at once.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import functools
import json
import logging
import os
import re
import shlex
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import filelock
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError
from tqdm import tqdm

logger = logging.getLogger("galr")

ROOT = Path(__file__).resolve().parent
OTHER_WHEEL = "install an older one (https://pytorch.org/get-started/previous-versions), or use --device cpu"
LESS_MEMORY = (
    "in this order: dataset.cache=disk and optim.checkpointing=true (free to change on --resume), optim.precision=bf16 "
    "or fp16, and last a lower dataset.batch_size, which changes the training"
)

# ---------------------------------------------------------------- errors


class InputError(Exception):
    """Report wrong input that the user can mend. Exit status 2; the message says what, where and what to do."""


class RunError(Exception):
    """Report that the run could not go on (disk full, a loss that is not finite). Exit status 3; resumable."""


class Interrupted(Exception):
    """Report that a signal stopped the run after it was saved. Exit status 128 + signal number (130, 143)."""

    def __init__(self, signum: int, message: str) -> None:
        super().__init__(message)
        self.signum = signum


@contextlib.contextmanager
def not_installed(what: str, install: str = "-r requirements-extra.txt") -> Iterator[None]:
    """Raise InputError instead of ImportError: `what` needs an optional package, and pip installs it so."""
    try:
        yield
    except ImportError as error:
        needed = error.name or error
        raise InputError(f"{what} needs the package {needed}: pip install {install}") from None


def disk_full(error: BaseException) -> bool:
    """Return whether a file could not grow: a full disk, a quota, a limit on the size of files."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def worker_died(error: Exception) -> bool:
    """Return whether a loader worker is gone: PyTorch says so wherever the program happens to be, or its pipe broke."""
    return isinstance(error, ConnectionError) or (isinstance(error, RuntimeError) and "DataLoader worker" in str(error))


def out_of_memory(error: Exception) -> bool:
    """Return whether a tensor found no room, on a GPU or in main memory."""
    signs = "DefaultCPUAllocator", "CUDA error: out of memory", "ALLOC_FAILED", "MPS backend out of memory"
    return type(error).__name__ == "OutOfMemoryError" or any(sign in str(error) for sign in signs)


def card_too_old(error: Exception) -> bool:
    """Return whether this PyTorch has no code for this GPU."""
    return "no kernel image is available" in str(error)


def memory_report(error: Exception) -> str:
    """Return PyTorch's numbers of an error of memory, without its own advice."""
    said = str(error).splitlines()[0] if str(error) else type(error).__name__
    return "out of memory: " + said.partition(" If reserved")[0].removeprefix("CUDA out of memory. ").rstrip(".")


@contextlib.contextmanager
def memory_advice(advice: str) -> Iterator[None]:
    """Raise RunError with this advice where memory is short."""
    try:
        yield
    except Exception as error:
        if not out_of_memory(error):
            raise
        raise RunError(f"{memory_report(error)}; {advice}") from None


# ---------------------------------------------------------------- command line and exit status


def _expanded(argument: str) -> str:
    option, path = re.fullmatch(r"(--[\w-]+=)?(.*)", argument, re.DOTALL).groups("")
    place = re.match(r"~[\w-]*(/|$)|\$(\w+|\{\w+\})/", path)
    return option + os.path.expandvars(os.path.expanduser(path)) if place else argument  # noqa: PTH111


class Parser(argparse.ArgumentParser):
    """Parse arguments with one-line errors, like every other error here."""

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:
        """Parse; `~/` and `$VAR/` at the start of an argument are filled in, where no shell did it (--out=~/x)."""
        return super().parse_known_args(list(map(_expanded, sys.argv[1:] if args is None else args)), namespace)

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message} (see {self.prog} --help)")

    def add_options(self, required: bool = True) -> None:
        """Add --path_opt and --set."""
        self.add_argument("--path_opt", required=required, help="option file, such as option/RSITMD/RSITMD_GaLR.yaml")
        self.add_argument("--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="override options")

    def add_device(self) -> None:
        """Add --device."""
        text = "auto (default), cpu, cuda, cuda:N or mps"
        self.add_argument("--device", type=device_choice, default="auto", metavar="NAME", help=text)


def device_choice(text: str) -> str:
    """Check the value of --device. Raise argparse.ArgumentTypeError."""
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", text):
        raise argparse.ArgumentTypeError(f"must be auto, cpu, cuda, cuda:N or mps, got {text}")
    return text


def same_options(arguments: argparse.Namespace) -> str:
    """Return the --path_opt and --set of a command line, quoted for another command."""
    return shlex.join(["--path_opt", arguments.path_opt, *(["--set", *arguments.set] if arguments.set else [])])


def run_command(main: Callable[[], None]) -> NoReturn:
    """Run `main` and leave the process with its exit status.

    Warnings of libraries are silenced (python -W shows them); an error in a library's thread is raised again where its
    work is awaited.
    """
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
    threading.excepthook = lambda _: None
    sys.stdout.reconfigure(errors="backslashreplace")  # a file name need not be text
    sys.exit(exit_status(main))


def exit_status(main: Callable[[], None]) -> int:
    """Run `main` and return 0 (done), 2 (wrong input), 3 (could not go on), 130 or 143 (Ctrl-C, SIGTERM).

    An error is one line on standard error. With several processes the first to fail says why, and the others end with
    its status. `GALR_DEBUG=1` adds the traceback.
    """
    start_logging()
    try:
        main()
        return 0
    except BrokenPipeError:  # the reader of our output (head, less) has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (Exception, KeyboardInterrupt) as error:
        if os.environ.get("GALR_DEBUG"):
            traceback.print_exc()
        return _complain(error)


def _complain(error: BaseException) -> int:
    first = None if isinstance(error, InputError | RunError | Interrupted) else failure_elsewhere()
    message, status = describe(error)
    first = first or first_failure(status)
    if first[0] == rank():
        logger.error(" ".join(message.split()))
    return first[1]


def describe(error: BaseException) -> tuple[str, int]:
    """Return the message for an error that ends a command, and the exit status.

    Only few errors of libraries are told apart; of any other the type and the first line are given.
    """
    text = str(error)
    match error:
        case InputError():
            return text, 2
        case RunError():
            return text, 3
        case Interrupted():
            return text, 128 + error.signum
        case KeyboardInterrupt():
            return "interrupted", 128 + signal.SIGINT
        case OSError() if disk_full(error):
            what = error.filename or "a file"
            return f"cannot write {what}: {os.strerror(error.errno)}; make room and run again", 3
        case OSError() if not worker_died(error):
            return text, 2
    again = "run again (train.py: with --resume)"
    if lost(error):
        reason = "did not answer in time" if "imed out" in text else "is gone (killed, or out of memory?)"
        return f"one of {count()} processes {reason}; go on from the last checkpoint with --resume", 3
    if worker_died(error):
        return f"a loader worker died ({text}); {again}", 3
    if isinstance(error, MemoryError) or out_of_memory(error):
        return f"{memory_report(error)}; {LESS_MEMORY}", 3
    if card_too_old(error):
        return f"this PyTorch has no code for this GPU; {OTHER_WHEEL}", 2
    return f"{type(error).__name__}: {one_line(error, 300)}; {again}; GALR_DEBUG=1 shows where it happened", 3


class Messages(logging.Handler):
    """Print information on standard output, warnings and errors on standard error, above a progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        stream = sys.stderr if record.levelno >= logging.WARNING else sys.stdout
        kind = f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""
        with tqdm.external_write_mode(stream):
            print(kind + "\n".join(map(printable, record.getMessage().split("\n"))), file=stream, flush=True)


def start_logging() -> None:
    """Print what the logger `galr` says as plain lines (`Messages`); of several processes the first one speaks."""
    logger.setLevel(logging.INFO if is_main() else logging.ERROR)
    logger.handlers[:] = [Messages()]
    if not logging.root.handlers:  # a library that logs to the root itself (open_clip) would give it one that prints
        logging.root.addHandler(logging.NullHandler())
    for library in ("HF_HUB", "TRANSFORMERS"):  # our errors say what they warn of
        os.environ.setdefault(f"{library}_VERBOSITY", "error")


class Bar(tqdm):
    """Draw a progress bar in a terminal; elsewhere (a log file) log a line a minute."""

    INTERVAL = 60  # seconds between two lines

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.in_terminal, self.said = sys.stderr.isatty(), time.monotonic()
        pace = {"mininterval": self.INTERVAL, "maxinterval": self.INTERVAL, "leave": False}
        super().__init__(*args, disable=not is_main(), **({} if self.in_terminal else pace), **kwargs)

    def display(self, *args: Any, **kwargs: Any) -> None:
        if self.in_terminal:
            super().display(*args, **kwargs)
        elif time.monotonic() - self.said >= self.INTERVAL:
            self.said = time.monotonic()
            state = self.format_dict | {"bar_format": "{desc}: {n_fmt} of {total_fmt} {unit}s, {remaining} left"}
            logger.info(self.format_meter(**state))

    def clear(self, *args: Any, **kwargs: Any) -> None:
        if self.in_terminal:
            super().clear(*args, **kwargs)


class Meter:
    """Count things and return how many a second there were since the last reading."""

    def __init__(self) -> None:
        self._started, self._count = time.perf_counter(), 0

    def update(self, count: int) -> None:
        self._count += count

    def read(self) -> float:
        speed = self._count / (time.perf_counter() - self._started)
        self._started, self._count = time.perf_counter(), 0
        return speed


# ---------------------------------------------------------------- several processes (torchrun)

FAILURE = "galr/failure"  # key in torchrun's store: rank and exit status of the first process that failed


def count() -> int:
    """Return how many processes torchrun started for this run, on all machines; 1 without it."""
    return int(os.environ["WORLD_SIZE"]) if "TORCHELASTIC_RUN_ID" in os.environ else 1


def rank() -> int:
    """Return the number of this process among them, from 0."""
    return int(os.environ["RANK"]) if count() > 1 else 0


def is_main() -> bool:
    """Return whether this is the process that writes, logs, draws bars and holds the lock."""
    return rank() == 0


@functools.cache
def store() -> Any:
    """Return the key-value store that all processes share."""
    import torch.distributed as dist

    return next(dist.rendezvous("env://"))[0]


def first_failure(status: int) -> tuple[int, int]:
    """Record this rank's failure and return the (rank, status) recorded first; all ranks exit with that status."""
    if count() > 1:
        with contextlib.suppress(RuntimeError):  # torchrun itself is gone
            first, its_status = store().compare_set(FAILURE, "", f"{rank()} {status}").split()
            return int(first), int(its_status)
    return rank(), status


def failure_elsewhere() -> tuple[int, int] | None:
    """Return (rank, status) of the first process that failed; None if none did, or it had no time to record it."""
    with contextlib.suppress(RuntimeError):
        if count() > 1 and store().check([FAILURE]):
            first, status = store().get(FAILURE).split()
            return int(first), int(status)
    return None


def lost(error: BaseException) -> bool:
    """Return whether the error says that another process did not answer."""
    if count() == 1 or not isinstance(error, RuntimeError):
        return False
    import torch.distributed as dist

    return isinstance(error, dist.DistError) or any(library in str(error) for library in ("gloo", "NCCL"))


# ---------------------------------------------------------------- files

# Network and other foreign file systems answer so to an fsync that they do not support, above all that of a folder.
REFUSED = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EACCES, errno.EPERM, errno.EBADF, errno.EISDIR)


@contextlib.contextmanager
def atomic(path: str | os.PathLike, keep: Path | None = None) -> Iterator[Path]:
    """Give a temporary path beside `path`; what is written there takes the name `path` at the end, or not at all.

    The file is flushed to disk before it is renamed, and the folder after it: a crash leaves the old file or the new
    one, never half of one. With `keep`, the old file takes that name once the new one is complete.
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
    """fsync a file or folder; warn once if the file system does not support it."""
    try:
        opened = os.open(path, mode)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)
    except OSError as error:
        if error.errno not in REFUSED:
            raise
        _warn_of_refusal(path.parent if path.is_file() else path, os.strerror(error.errno))


@functools.cache
def _warn_of_refusal(folder: Path, reason: str) -> None:
    logger.warning(f"{folder}: the file system does not support fsync ({reason}); a power cut may lose the last files")


@contextlib.contextmanager
def one_at_a_time(path: Path) -> Iterator[None]:
    """Hold the lock on writing `path`; wait for a process that has it, and say so."""
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
    """Raise InputError now, not after the work is done, if files cannot be written into `folder`."""
    there = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise InputError(f"{what} {folder}: {there} is not a folder that you may write to")


def check_writable_file(path: Path) -> None:
    """Raise InputError now, not after the work is done, if `path` cannot become a file."""
    if path.is_dir():
        raise InputError(f"cannot write {path}: it is a folder; give the name of a file")
    check_writable(path.parent, f"cannot write {path} into")


def existing_file(path: str | os.PathLike, what: str, advice: str = "") -> Path:
    """Return the path if a file is there. Raises InputError that says what is missing, where, and the advice."""
    path = Path(path)
    if path.is_file():
        return path
    kind = "is a folder, not a file" if path.is_dir() else "is not there"
    raise InputError(f"{what} {path} {kind}" + (f"; {advice}" if advice else ""))


def read_text(path: str | os.PathLike, what: str, advice: str = "") -> str:
    """Read a UTF-8 text file; drop a byte-order mark, turn Windows line ends into plain ones.

    A carriage return within a line is white space; in a file without any other line end, it ends lines.
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
        byte = f"0x{raw[error.start]:02x}"
        raise InputError(f"{what} {path}, line {line}: not UTF-8 (byte {byte}); save it as UTF-8") from None
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


class Entry(BaseModel):
    """Describe a JSON object with at least these keys, of exactly these types; others are ignored."""

    model_config = ConfigDict(strict=True, extra="ignore")


def read_as(form: Any, path: Path, what: str) -> Any:
    """Read a JSON file of a form: an Entry, or containers of them. Raises InputError that names the first fault."""
    return checked(form, read_json(path, what), f"{what} {path}")


def checked(form: Any, value: Any, where: str) -> Any:
    """Validate a value against a form. Raises InputError that names the first fault and its place."""
    try:
        return TypeAdapter(form).validate_python(value)
    except ValidationError as error:
        fault = error.errors(include_url=False, include_input=False)[0]
        place = [str(part + 1) if isinstance(part, int) else part for part in fault["loc"]]
        entry = f", entry {' '.join(place)}" if place else ""
        message = re.sub(r" or instance of \w+|an instance of \w+ or ", "", fault["msg"])  # a class of ours
        raise InputError(f"{where}{entry}: {message}") from None


def printable(text: str) -> str:
    r"""Return a text whose control characters, such as those of terminals, are written as escapes.

    >>> print(printable("new\nline \x1b[31mred"))
    new\nline \x1b[31mred
    """
    return "".join(one if one.isprintable() else ascii(one)[1:-1] for one in text)


def one_line(error: object, most: int = 200) -> str:
    """Return what an error says, cut to `most` characters, for a message."""
    return " ".join(str(error).split())[:most]


def some(names: list[str], most: int = 5) -> str:
    """Return the first few of many names, for a message."""
    return ", ".join(printable(name) for name in names[:most]) + (", ..." if len(names) > most else "")
