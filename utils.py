"""Small things that everyone needs: errors and exit status, safe and atomic files, seeds, devices, logging.

PyTorch is imported inside the few functions that use it, so that commands which only touch arrays start at once.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

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


def run_command(main: Callable[[], None]) -> NoReturn:
    """Run `main` and leave the process with the exit status that the kind of its end calls for."""
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
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            return _complain(f"cannot write {error.filename or 'a file'}: {error.strerror}; free some space", 3)
        return _complain(error, 2)
    return 0


def _complain(error: Exception | str, status: int) -> int:
    print("error: " + " ".join(str(error).split()), file=sys.stderr)
    return status


@contextlib.contextmanager
def atomic(path: str | os.PathLike) -> Iterator[Path]:
    """Give a temporary path beside `path`; what is written there takes the name `path` at the end, or not at all.

    The file is flushed to disk before it is renamed, and the folder after it, so that a crash leaves the old file
    or the new one, never half of one.
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
        temporary.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write a UTF-8 text file atomically."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Write a JSON file atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


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
    except RecursionError:
        raise InputError(f"{what} {path}: nested too deeply") from None


def some(names: list[str], most: int = 5) -> str:
    """The first few of many names, for a message."""
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


def load_torch(path: str | os.PathLike, what: str) -> Any:
    """Read a file of torch.save without running anything in it (`weights_only`), onto the CPU.

    Raises InputError for a missing or damaged file and for one that holds more than tensors and plain containers.
    """
    import pickle

    import torch

    existing_file(path, what)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = str(error).split("\n")[0]
        raise InputError(f"{what} {path} is damaged, or holds more than weights, and was not read ({reason})") from None
    except MemoryError:
        raise
    except Exception as error:  # a damaged archive raises errors of many kinds
        raise InputError(f"{what} {path} is damaged ({' '.join(str(error).split())[:200]})") from None
