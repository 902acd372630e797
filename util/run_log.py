"""The record of a run: its lock, what made it, and its log in three forms."""

from __future__ import annotations

import contextlib
import datetime
import importlib.metadata
import logging
import os
import platform
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import filelock
import torch
from torch.utils.tensorboard import SummaryWriter

from layers.distributed import largest, wait_for_all
from option import Options, save_options
from util.device import device_name
from utils import ROOT, InputError, Interrupted, RunError, disk_full, is_main, read_json, write_json, write_text

logger = logging.getLogger("galr")

LOCK_WAIT = 8  # seconds; loader workers of a killed run let go of its lock within them


@contextlib.contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Hold the folder's lock. Raises InputError if another run holds it; a dead one's lock is free at once.

    What this made and nothing was written into, is removed again while the lock is still held. A run that was waiting
    for it notices that the file is gone (filelock does) and begins anew. Of several processes the main one holds it,
    and the others wait until it does.
    """
    if not is_main():
        wait_for_all()
        yield
        return
    path = folder / ".lock"
    lock = filelock.FileLock(path, timeout=LOCK_WAIT)
    made = _acquire(lock, folder)
    try:
        wait_for_all()
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


@contextlib.contextmanager
def recorded(
    folder: Path, names: dict[str, list[str]], options: Options, rows: list[dict[str, Any]], device: torch.device
) -> Iterator[RunLog | NoLog]:
    """The log of a fold, and its run.json, ended in any case. On a full disk that fails too: the first error counts.

    names: the images that train and validate; rows: of the log so far, when the run goes on. Of several processes the
    main one keeps it.
    """
    if not is_main():
        yield NoLog()
        return
    record = start_record(folder, names, options, device)
    board = Path(options.logs.logger_name) / folder.relative_to(options.run_folder.parent)

    def end() -> None:
        write_json(folder / "run.json", record | {"ended": now()})
        log.close()

    log = RunLog(folder, board, rows)
    try:
        yield log
    except BaseException as error:
        with contextlib.suppress(OSError):
            end()
        if disk_full(error):
            reason = os.strerror(error.errno)
            raise RunError(f"the log of {folder}: {reason}; make room and go on with --resume") from None
        raise
    end()


def start_record(folder: Path, names: dict[str, list[str]], options: Options, device: torch.device) -> dict[str, Any]:
    """Write what makes this fold: options.yaml, split.json, and run.json, which keeps the sessions before."""
    path = folder / "run.json"
    before = read_json(path, "record") if path.exists() else {}
    if not isinstance(before, dict) or not isinstance(before.get("sessions", []), list):
        raise InputError(f"record {path}: not as train.py writes it; remove it to go on")
    sessions = [*before.get("sessions", []), provenance(device)]
    save_options(options, folder / "options.yaml")
    write_json(folder / "split.json", names)
    record = {"seed": options.seed, "started": before.get("started", now()), "ended": None, "sessions": sessions}
    write_json(path, record)
    return record


class NoLog:
    """The log of a process that keeps none."""

    rows: tuple = ()

    def train_row(self, row: dict[str, Any]) -> None:
        """Note nothing."""

    val_row = train_row


class RunLog:
    """The log of one fold, in three forms: log.txt for people, history.json for figures, TensorBoard.

    rows: those of the run so far, when it goes on; the files are written anew from them, so that a resumed run's log
    is that of an uninterrupted one.
    """

    def __init__(self, folder: Path, board: Path, rows: list[dict[str, Any]]) -> None:

        self.rows = list(rows)
        self._folder = folder
        self._board = SummaryWriter(str(board), purge_step=rows[-1]["step"] + 1 if rows else 0)
        write_text(folder / "log.txt", "".join(log_line(row) + "\n" for row in rows))
        self._file = (folder / "log.txt").open("a", encoding="utf-8")

    def train_row(self, row: dict[str, Any]) -> None:
        """Note the loss, its temperature if it has one, learning rate and speed of the batches since the last row."""
        scalars = ("loss", "lr", "samples_per_second", "temperature")
        self._add(row, {f"train/{key}": row[key] for key in scalars if key in row})

    def val_row(self, row: dict[str, Any], sheet: Any = None) -> None:
        """Note the validation recalls, with a figure of retrievals for TensorBoard."""
        scalars = {f"val/{way}_{key}": value for way in ("i2t", "t2i") for key, value in row[way].items()}
        self._add(row, scalars | {"val/mr": row["mr"], "val/mr_random": row["mr_random"]})
        if sheet is not None:
            self._board.add_figure("val/retrievals", sheet, row["step"])
        self._board.flush()
        history = {"train": [r for r in self.rows if "loss" in r], "val": [r for r in self.rows if "mr" in r]}
        write_json(self._folder / "history.json", history)

    def _add(self, row: dict[str, Any], scalars: dict[str, float]) -> None:

        self.rows.append(row)
        line = log_line(row)
        print(line, file=self._file, flush=True)
        logger.info(line)
        for name, value in scalars.items():
            self._board.add_scalar(name, value, row["step"])

    def close(self) -> None:
        self._file.close()
        self._board.close()


def log_line(row: dict[str, Any]) -> str:
    if "loss" in row:
        return (
            f"epoch {row['epoch']} batch {row['batch']}/{row['of']} loss {row['loss']:.4f} lr {row['lr']:.3g} "
            f"{row['samples_per_second']} samples/s"
            + (f" temperature {row['temperature']:.4f}" if "temperature" in row else "")
        )
    recalls = "  ".join(
        f"{way} R@1 {row[way]['r1']:.2f} R@5 {row[way]['r5']:.2f} R@10 {row[way]['r10']:.2f}" for way in ("i2t", "t2i")
    )
    at_random = row.get("mr_random", row["mr"])  # earlier versions' rows have none
    ties = f"with ties at random {at_random:.2f}, " if at_random - row["mr"] > 0.05 else ""
    return (
        f"epoch {row['epoch']} validation split, {row['images']} images, {row['captions']} captions: {recalls}  "
        f"mR {row['mr']:.2f} ({ties}chance {row['chance']:.2f})"
    )


# ---------------------------------------------------------------- signals


class StopSignals:
    """Within it, Ctrl-C and SIGTERM are noted, and `check` raises Interrupted where the run can stop.

    The first is answered by a line; a second Ctrl-C stops at once. Of several processes all stop at the same `check`,
    whichever of them had a signal.
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
        logger.info("stopping after this step, and saving; Ctrl-C again stops at once")

    def check(self) -> None:
        """Raise Interrupted if a signal has come, to this process or another."""
        if signum := largest(self.signum):
            raise Interrupted(signum, f"stopped by {signal.Signals(signum).name}")
