"""Safe and atomic files: what is read is checked, what is written is whole or not there."""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import filelock

from util.errors import InputError, disk_full

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
