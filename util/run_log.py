"""Keep the record of a run: its lock, what made it, its log in four forms, and the signals that stop it."""

from __future__ import annotations

import contextlib
import csv
import datetime
import importlib.metadata
import io
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
from postprocessing.recall import NOTICEABLE
from util.device import device_name
from utils import ROOT, InputError, Interrupted, RunError, disk_full, is_main, read_json, write_json, write_text

logger = logging.getLogger("galr")

PLACE = ("epoch", "batch", "of", "step")  # of a row of the log; its other keys are scalars
SPEED = ("loss", "lr", "samples_per_second")
LOCK_WAIT = 8  # seconds; loader workers of a killed run let go of its lock within them


@contextlib.contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Hold the folder's lock. Raise InputError if another run holds it; the lock of a dead run is free at once.

    Folders that were made for it, and stay empty, are removed while the lock is still held: a run that waits for it
    notices that the file is gone (filelock does) and begins anew. Of several processes the main one holds the lock, and
    the others wait until it does.
    """
    if not is_main():
        wait_for_all()
        yield
        return
    lock = filelock.FileLock(folder / ".lock", timeout=LOCK_WAIT)
    made: list[Path] = []
    while not lock.is_locked:
        made = [parent for parent in (folder, *folder.parents) if not parent.exists()]
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except filelock.Timeout:
            way = "wait for it, or choose another k_fold.experiment_name"
            raise InputError(f"another run is writing to {folder}; {way}") from None
        except (FileNotFoundError, FileExistsError):  # the run before is just removing the folder
            if folder.is_file():
                raise
    try:
        wait_for_all()
        yield
    finally:
        Path(lock.lock_file).unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # it holds a run
            for parent in made:
                parent.rmdir()
        lock.release()


def provenance(device: torch.device) -> dict[str, Any]:
    """Return what made a run: command line, packages, commit, machine and device."""
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
    """Return date and time in UTC, ISO 8601."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


@contextlib.contextmanager
def recorded(
    folder: Path, names: dict[str, list[str]], options: Options, rows: list[dict[str, Any]], device: torch.device
) -> Iterator[RunLog | NoLog]:
    """Open the log of a fold, and close it and its run.json, which keeps the sessions before, in any case.

    Write options.yaml and split.json. names: the images that train and validate; rows: of the log so far, when the run
    goes on. Of several processes the main one keeps the log. Raise RunError where the disk is full.
    """
    if not is_main():
        yield NoLog()
        return
    path = folder / "run.json"
    before = read_json(path, "record") if path.exists() else {}
    if not isinstance(before, dict) or not isinstance(before.get("sessions", []), list):
        raise InputError(f"record {path}: not as train.py writes it; remove it to go on")
    save_options(options, folder / "options.yaml")
    write_json(folder / "split.json", names)
    sessions = [*before.get("sessions", []), provenance(device)]
    record = {"seed": options.seed, "started": before.get("started", now()), "ended": None, "sessions": sessions}
    write_json(path, record)
    log = RunLog(folder, Path(options.logs.logger_name) / folder.relative_to(options.run_folder.parent), rows)

    def end() -> None:
        write_json(path, record | {"ended": now()})
        log.close()

    try:
        yield log
    except BaseException as error:
        with contextlib.suppress(OSError):  # on a full disk this fails too, and the first error counts
            end()
        if disk_full(error):
            reason = os.strerror(error.errno)
            raise RunError(f"the log of {folder}: {reason}; make room and go on with --resume") from None
        raise
    end()


class NoLog:
    """The log of a process that keeps none."""

    rows: tuple = ()

    def train_row(self, row: dict[str, Any]) -> None:
        """Log nothing."""


class RunLog:
    """The log of a fold in four forms: log.txt for people, log.csv for tables, history.json for figures, TensorBoard.

    The files are written anew from the `rows` of the run so far: a resumed run's log is that of an uninterrupted one.
    """

    def __init__(self, folder: Path, board: Path, rows: list[dict[str, Any]]) -> None:
        self.rows = list(rows)
        self._folder = folder
        self._board = SummaryWriter(str(board), purge_step=rows[-1]["step"] + 1 if rows else 0)
        write_text(folder / "log.txt", "".join(log_line(row) + "\n" for row in rows))
        self._file = (folder / "log.txt").open("a", encoding="utf-8")

    def train_row(self, row: dict[str, Any]) -> None:
        """Log loss, learning rate and speed since the last row, and what the criterion says."""
        self._add(row, {f"train/{key}": value for key, value in row.items() if key not in PLACE})

    def val_row(self, row: dict[str, Any]) -> None:
        """Log the validation recalls."""
        scalars = {f"val/{way}_{key}": value for way in ("i2t", "t2i") for key, value in row[way].items()}
        self._add(row, scalars | {"val/mr": row["mr"], "val/mr_random": row["mr_random"]})
        self._board.flush()
        self._write_table()
        history = {"train": [r for r in self.rows if "loss" in r], "val": [r for r in self.rows if "mr" in r]}
        write_json(self._folder / "history.json", history)

    def _write_table(self) -> None:
        rows = [table_row(row) for row in self.rows]
        text = io.StringIO()
        table = csv.DictWriter(text, dict.fromkeys(key for row in rows for key in row), lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
        write_text(self._folder / "log.csv", text.getvalue())

    def picture(self, name: str, figure: Any, step: int) -> None:
        """Log a figure of Matplotlib for TensorBoard."""
        self._board.add_figure(name, figure, step)

    def _add(self, row: dict[str, Any], scalars: dict[str, float]) -> None:
        self.rows.append(row)
        line = log_line(row)
        print(line, file=self._file, flush=True)
        logger.info(line)
        for name, value in scalars.items():
            self._board.add_scalar(name, value, row["step"])

    def close(self) -> None:
        """Close the files."""
        self._write_table()
        self._file.close()
        self._board.close()


def table_row(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row of the log as cells of one table.

    >>> table_row({"epoch": 0, "i2t": {"r1": 5.0}, "mr": 7.5})
    {'epoch': 0, 'i2t_r1': 5.0, 'mr': 7.5}
    """
    cells = {}
    for key, value in row.items():
        cells |= {f"{key}_{name}": one for name, one in value.items()} if isinstance(value, dict) else {key: value}
    return cells


def log_line(row: dict[str, Any]) -> str:
    """Return a row as a line of log.txt.

    >>> log_line({"epoch": 0, "batch": 9, "of": 9, "step": 9, "loss": 1, "lr": 0.1, "samples_per_second": 5})
    'epoch 0 batch 9/9 loss 1.0000 lr 0.1 5 samples/s'
    """
    if "loss" in row:
        said = "".join(f" {key} {value:.4f}" for key, value in row.items() if key not in (*PLACE, *SPEED))
        return (
            f"epoch {row['epoch']} batch {row['batch']}/{row['of']} loss {row['loss']:.4f} lr {row['lr']:.3g} "
            f"{row['samples_per_second']} samples/s{said}"
        )
    recalls = "  ".join(
        f"{way} R@1 {row[way]['r1']:.2f} R@5 {row[way]['r5']:.2f} R@10 {row[way]['r10']:.2f}" for way in ("i2t", "t2i")
    )
    at_random = row.get("mr_random", row["mr"])  # earlier versions' rows have none
    ties = f"with ties at random {at_random:.2f}, " if at_random - row["mr"] > NOTICEABLE else ""
    return (
        f"epoch {row['epoch']} validation split, {row['images']} images, {row['captions']} captions: {recalls}  "
        f"mR {row['mr']:.2f} ({ties}chance {row['chance']:.2f})"
    )


# ---------------------------------------------------------------- signals


# Ctrl-C, batch systems and terminals that close warn of the end by these. Windows has not all of them.
STOPS = [getattr(signal, name) for name in "SIGINT SIGTERM SIGHUP SIGUSR1 SIGUSR2".split() if hasattr(signal, name)]


class StopSignals:
    """Catch the signals of STOPS, and let `check` raise Interrupted where the run can stop.

    The first is answered by a line; a second Ctrl-C ends the run. Of several processes all stop at the same `check`,
    whichever of them had a signal. SIGHUP stays ignored under `nohup`.
    """

    def __enter__(self) -> StopSignals:
        self.signum, self._process = 0, os.getpid()
        caught = [signum for signum in STOPS if signum.name != "SIGHUP" or signal.getsignal(signum) != signal.SIG_IGN]
        self._old = {signum: signal.signal(signum, self._note) for signum in caught}
        return self

    def __exit__(self, *_: object) -> None:
        for signum, handler in self._old.items():
            signal.signal(signum, handler)

    def _note(self, signum: int, _: object) -> None:
        if os.getpid() != self._process:  # a loader worker, forked with this handler: the main process stops the run
            return
        if self.signum and signum == signal.SIGINT:
            raise KeyboardInterrupt
        self.signum = signum
        logger.info("stopping after this step, and saving; Ctrl-C again stops without saving")

    def check(self) -> None:
        """Raise Interrupted if a signal has come, to this process or another."""
        if signum := largest(self.signum):
            raise Interrupted(signum, f"stopped by {signal.Signals(signum).name}")
