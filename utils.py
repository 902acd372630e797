"""Small things that everyone needs: errors and exit status, safe and atomic files, seeds, devices, logging.

PyTorch is imported inside the few functions that use it, so that commands which only touch arrays start at once.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import errno
import importlib.metadata
import json
import os
import platform
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import filelock

if TYPE_CHECKING:
    import torch
    from torch import Tensor

ROOT = Path(__file__).resolve().parent


class InputError(Exception):
    """The input is wrong and the user can mend it. Exit status 2; the message says what, where and what to do."""


class RunError(Exception):
    """The run could not go on (disk full, a worker died, a loss that is not finite). Exit status 3; resumable."""


class Interrupted(Exception):
    """A signal asked the run to stop, and it has saved. Exit status 128 + signal number (130, 143)."""

    def __init__(self, signum: int, message: str) -> None:
        super().__init__(message)
        self.signum = signum


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, like every other error here."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message} (see {self.prog} --help)")

    def add_options(self) -> None:
        """What names a run's options: --path_opt and --set."""
        self.add_argument("--path_opt", required=True, help="option file, such as option/RSITMD/RSITMD_GaLR.yaml")
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
    """0 done, 2 wrong input, 3 the run could not go on, 130 and 143 after Ctrl-C and SIGTERM; one line on stderr."""
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
        if worker_died(error):
            return _complain(f"a loader worker died ({error}); run again (train.py: with --resume)", 3)
        if compiler_failed(error):
            reason = " ".join(str(error).split())[:200]
            return _complain(f"optim.compile: PyTorch cannot compile here ({reason}); set it to false", 2)
        if out_of_memory(error):
            return _complain(f"out of memory: {str(error).partition('. ')[0]}; lower the batch size", 3)
        if gpu_failed(error):
            reason = str(error).partition("\n")[0]
            return _complain(f"the GPU failed ({reason}); run again (train.py: with --resume)", 3)
        raise
    return 0


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


def gpu_failed(error: Exception) -> bool:
    """Whether the error is one of CUDA or its libraries."""
    return type(error).__name__ == "AcceleratorError" or str(error).startswith(("CUDA error", "CUDA driver", "cuDNN"))


def compiler_failed(error: Exception) -> bool:
    """Whether the error is one of `torch.compile`."""
    return type(error).__module__.startswith(("torch._dynamo", "torch._inductor"))


def _complain(error: Exception | str, status: int) -> int:
    print("error: " + " ".join(str(error).split()), file=sys.stderr)
    return status


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
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        if keep and path.exists():
            path.replace(keep)
        temporary.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        if disk_full(error):
            error.filename = error.filename or str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def one_at_a_time(path: Path) -> Iterator[None]:
    """Hold the lock on writing `path`; waits for a process that has it, and says so."""
    beside = path.with_name(f".{path.name}.lock")
    lock = filelock.FileLock(beside)
    try:
        lock.acquire(timeout=1)
    except filelock.Timeout:
        print(f"another run is writing {path}; waiting for it")
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
    return text.replace("\r\n", "\n").replace("\r", "\n")


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


def load_torch(path: str | os.PathLike, what: str) -> Any:
    """Read a file of torch.save without running anything in it (`weights_only`), onto the CPU.

    Raises InputError for a missing or damaged file and for one that holds more than tensors and plain containers.
    """
    import pickle

    import torch

    path = existing_file(path, what)
    try:
        archive = zipfile.is_zipfile(path)
    except zipfile.BadZipFile:  # a damaged one
        archive = True
    if archive:
        check_archive(path, what)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:  # PyTorch's message goes on to advise an unsafe way
        found = re.search(r"GLOBAL (\S+)", str(error))
        reason = f"it names {found[1]}" if found else "it is no archive of tensors"
        raise InputError(f"{what} {path} is damaged, or holds more than weights, and was not read ({reason})") from None
    except MemoryError:
        raise
    except Exception as error:  # a damaged archive raises errors of many kinds
        raise InputError(f"{what} {path} is damaged ({' '.join(str(error).split())[:200]})") from None


# ---------------------------------------------------------------- checkpoints

BEST, LAST = "GaLR_best.pth.tar", "last.pth.tar"  # in a fold's folder


def save_checkpoint(state: dict[str, Any], path: Path, keep_previous: bool = False) -> None:
    """Write a checkpoint atomically; with `keep_previous` the one before it stays beside it as `NAME.previous`.

    Raises RunError where it cannot be written; what was there before is then still there.
    """
    import torch

    try:
        with atomic(path, keep=previous(path) if keep_previous else None) as temporary:
            torch.save(state, temporary)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
        if worker_died(error):
            raise
        free = shutil.disk_usage(path.parent).free / 2**20 if path.parent.is_dir() else 0
        reason = error.strerror if isinstance(error, OSError) else "PyTorch's write failed"
        raise RunError(
            f"the checkpoint {path} cannot be written ({reason}; {free:.0f} MiB free); the one before it is intact: "
            "make room and go on with --resume"
        ) from None


def previous(path: Path) -> Path:
    """Where the checkpoint before this one is kept."""
    return path.with_name(path.name + ".previous")


def read_checkpoint(path: str | os.PathLike) -> dict[str, Any]:
    """Read a checkpoint, ours or a published one, without running anything in it. Raises InputError."""
    import torch

    state = load_torch(path, "checkpoint")
    weights = state.get("model") if isinstance(state, dict) else None
    if not isinstance(weights, dict) or not all(
        isinstance(name, str) and isinstance(value, torch.Tensor) and value.layout == torch.strided
        for name, value in weights.items()
    ):
        raise InputError(f"checkpoint {path} holds no table 'model' of weights")
    if not isinstance(state.get("words", []), list):
        raise InputError(f"checkpoint {path}: its words are no list")
    spoilt = [name for name, value in weights.items() if not torch.isfinite(value).all()]
    if spoilt:
        raise InputError(f"checkpoint {path}: weights that are not finite in {len(spoilt)} tensors: {some(spoilt)}")
    return state


def newest_checkpoint(path: Path) -> dict[str, Any] | None:
    """The checkpoint at `path`; where it is missing or damaged, the one before it, saying so; None if there is none.

    Raises InputError where checkpoints are there and all are damaged.
    """
    faults = []
    for candidate in (path, previous(path)):
        if not candidate.is_file():
            continue
        try:
            state = read_checkpoint(candidate)
        except InputError as error:
            faults.append(str(error))
            continue
        if candidate != path:
            why = faults[0] if faults else f"{path} is not there"
            print(f"warning: {why}; going on from the checkpoint before, {candidate}", file=sys.stderr)
        return state
    if faults:
        raise InputError(f"no usable checkpoint in {path.parent}: {faults[0]}; remove the folder to start anew")
    return None


def check_archive(path: Path, what: str = "checkpoint") -> None:
    """Compare every part of a file of torch.save with its checksum (CRC-32), which PyTorch itself does not.

    Raises InputError for a damaged one, and for one that would unfold to more than its size (PyTorch packs nothing).
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(part.file_size for part in archive.infolist()) > path.stat().st_size:
                raise InputError(f"{what} {path} is a packed archive, not a file of torch.save, and was not read")
            damaged = archive.testzip()
    except InputError:
        raise
    except Exception as error:  # a damaged archive raises errors of many kinds
        raise InputError(f"{what} {path} is damaged ({error})") from None
    if damaged:
        raise InputError(f"{what} {path} is damaged (the checksum of {damaged} is wrong)")


# ---------------------------------------------------------------- runs


def pick_device(name: str) -> torch.device:
    """`auto` takes a CUDA GPU where one is; says which device it is. Raises InputError for a GPU that is not there."""
    import torch

    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: PyTorch finds no CUDA GPU here; use --device cpu, or install a driver")
    device = torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")
    wanted = os.environ.get("CUDA_VISIBLE_DEVICES") if (name, device.type) == ("auto", "cpu") else None
    print(f"device: {device_name(device)}" + (f"; no GPU is found (CUDA_VISIBLE_DEVICES={wanted})" if wanted else ""))
    return device


def device_name(device: torch.device) -> str:
    """What it is, in words."""
    import torch

    if device.type == "cpu":
        return f"CPU, {torch.get_num_threads()} threads"
    return f"{torch.cuda.get_device_name(device)}, CUDA {torch.version.cuda}"


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on the device. To a GPU it goes from pinned memory: nothing waits, neither for it nor for the GPU."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


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


class StopSignals:
    """Within it, Ctrl-C and SIGTERM are noted, and `check` raises Interrupted where the run can stop.

    The first is answered by a line; a second Ctrl-C stops at once.
    """

    def __enter__(self) -> StopSignals:
        self.signum = 0
        self._old = {s: signal.signal(s, self._note) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for signum, handler in self._old.items():
            signal.signal(signum, handler)

    def _note(self, signum: int, _: object) -> None:
        if self.signum and signum == signal.SIGINT:
            raise KeyboardInterrupt
        self.signum = signum
        print("\nstopping after this step, and saving; Ctrl-C again stops at once", flush=True)

    def check(self) -> None:
        """Raise Interrupted if a signal has come."""
        if self.signum:
            raise Interrupted(self.signum, f"stopped by {signal.Signals(self.signum).name}")


LOCK_WAIT = 8  # seconds; loader workers of a killed run let go of its lock within them


@contextlib.contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Hold the folder's lock. Raises InputError if another run holds it; a dead one's lock is free at once.

    What this made and nothing was written into, is removed again while the lock is still held. A run that was waiting
    for it notices that the file is gone (filelock does) and begins anew.
    """
    path = folder / ".lock"
    lock = filelock.FileLock(path, timeout=LOCK_WAIT)
    made = _acquire(lock, folder)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # it holds a run
            for parent in made:
                parent.rmdir()
        lock.release()


def _acquire(lock: filelock.BaseFileLock, folder: Path, tries: int = 10) -> list[Path]:
    """Take the lock -> the folders that were made for it. Raises InputError if another run holds it."""
    for attempt in range(tries):
        made = [parent for parent in (folder, *folder.parents) if not parent.exists()]
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock.acquire()
            return made
        except filelock.Timeout:
            break
        except (FileNotFoundError, FileExistsError):  # the run before is just removing the folder
            if attempt == tries - 1:
                raise
    raise InputError(f"another run is writing to {folder}; wait for it, or choose another k_fold.experiment_name")


def provenance(device: torch.device) -> dict[str, Any]:
    """What made a run: command line, packages, commit, machine and device."""
    packages = ("torch", "torchvision", "numpy", "numba", "pillow", "h5py", "nltk", "scikit-image", "pydantic")
    describe = ["git", "describe", "--always", "--dirty", "--abbrev=40"]
    commit = ""
    with contextlib.suppress(OSError):  # no git on this machine
        commit = subprocess.run(describe, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()
    return {
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "commit": commit or None,
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in packages},
        "machine": {
            "host": platform.node(),
            "system": platform.platform(),
            "cpu": platform.machine(),
            "cores": os.cpu_count(),
            "device": device_name(device),
        },
    }


def now() -> str:
    """Date and time in UTC, ISO 8601."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


class RunLog:
    """The log of one fold, in three forms: log.txt for people, history.json for figures, TensorBoard.

    rows: those of the run so far, when it goes on; the files are written anew from them, so that a resumed run's log
    is that of an uninterrupted one.
    """

    def __init__(self, folder: Path, board: Path, rows: list[dict[str, Any]]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.rows = list(rows)
        self._folder = folder
        self._board = SummaryWriter(str(board), purge_step=rows[-1]["step"] + 1 if rows else 0)
        write_text(folder / "log.txt", "".join(_log_line(row) + "\n" for row in rows))
        self._file = (folder / "log.txt").open("a", encoding="utf-8")

    def train_row(self, row: dict[str, Any]) -> None:
        """Note loss, learning rate and speed of the batches since the last row."""
        self._add(row, {f"train/{key}": row[key] for key in ("loss", "lr", "samples_per_second")})

    def val_row(self, row: dict[str, Any], sheet: Any = None) -> None:
        """Note the validation recalls, with a figure of retrievals for TensorBoard."""
        scalars = {f"val/{way}_{key}": value for way in ("i2t", "t2i") for key, value in row[way].items()}
        self._add(row, scalars | {"val/mr": row["mr"]})
        if sheet is not None:
            self._board.add_figure("val/retrievals", sheet, row["step"])
        self._board.flush()
        history = {"train": [r for r in self.rows if "loss" in r], "val": [r for r in self.rows if "mr" in r]}
        write_json(self._folder / "history.json", history)

    def _add(self, row: dict[str, Any], scalars: dict[str, float]) -> None:
        from tqdm import tqdm

        self.rows.append(row)
        line = _log_line(row)
        print(line, file=self._file, flush=True)
        tqdm.write(line)
        for name, value in scalars.items():
            self._board.add_scalar(name, value, row["step"])

    def close(self) -> None:
        self._file.close()
        self._board.close()


def _log_line(row: dict[str, Any]) -> str:
    if "loss" in row:
        return (
            f"epoch {row['epoch']} batch {row['batch']}/{row['of']} loss {row['loss']:.4f} lr {row['lr']:.3g} "
            f"{row['samples_per_second']} samples/s"
        )
    recalls = "  ".join(
        f"{way} R@1 {row[way]['r1']:.2f} R@5 {row[way]['r5']:.2f} R@10 {row[way]['r10']:.2f}" for way in ("i2t", "t2i")
    )
    return (
        f"epoch {row['epoch']} validation split, {row['images']} images, {row['captions']} captions: {recalls}  "
        f"mR {row['mr']:.2f} (chance {row['chance']:.2f})"
    )
