"""Train the folds of a run on several GPUs: GPUS=4 python -m exec.fold_jobs --path_opt FILE [arguments of train.py]

Folds go side by side, each on GPUS / folds of the GPUs (torchrun, if that is more than one), or on one GPU if there are
more folds than GPUs; then they take turns. On a signal all of them are told to stop, and save.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys

from option import load_options
from util.device import nvidia_smi
from utils import InputError, Parser, run_command


def main() -> None:
    parser = Parser(prog="python -m exec.fold_jobs", description="Train the folds of a run on several GPUs.")
    parser.add_options()
    arguments, _ = parser.parse_known_args()  # the others are train.py's
    k_fold = load_options(arguments.path_opt, arguments.set).k_fold
    os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")  # the numbers of nvidia-smi
    gpus = chosen_gpus(os.environ.get("GPUS", ""), os.environ.get("CUDA_VISIBLE_DEVICES"))
    sys.exit(run_folds(range(k_fold.current_num, k_fold.nums), gpus, sys.argv[1:]))


def chosen_gpus(number: str, visible: str | None) -> list[str]:
    """Return the names of the GPUs with the most free memory, or the first that CUDA_VISIBLE_DEVICES leaves.

    >>> chosen_gpus("2", "4,5,6")
    ['4', '5']
    """
    if not number.isdecimal() or int(number) < 1:
        raise InputError(f"GPUS must be an integer >= 1, got {number!r}")
    if visible is None:
        free = {index: int(mib) for index, mib in nvidia_smi("index", "memory.free") if mib.isdecimal()}
        names = sorted(free, key=free.get, reverse=True) or [str(i) for i in range(int(number))]
    else:
        names = [name for name in visible.split(",") if name]
    if len(names) < int(number):
        there = f"nvidia-smi finds {len(names)}" if visible is None else f"CUDA_VISIBLE_DEVICES names {len(names)}"
        raise InputError(f"GPUS={number}, but {there}")
    return names[: int(number)]


def command(fold: int, processes: int, arguments: list[str]) -> list[str]:
    """Return the command that trains a fold or goes on with it."""
    many = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    launcher = many if processes > 1 else []
    return [sys.executable, *launcher, "train.py", *arguments, "--fold", str(fold), "--resume"]


def run_folds(folds: range, gpus: list[str], arguments: list[str]) -> int:
    """Train the folds side by side. Return the exit status of the first that failed, else 0."""
    each = max(1, len(gpus) // len(folds))
    running: list[subprocess.Popen] = []
    stopped = False

    def stop(*_: object) -> None:
        nonlocal stopped
        for job in running if not stopped else []:  # once: a second signal would cut the saving short
            job.terminate()
        stopped = True

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    waiting, status = list(folds), 0
    while waiting and not status and not stopped:
        wave, waiting = waiting[: len(gpus) // each], waiting[len(gpus) // each :]
        for place, fold in enumerate(wave):
            mine = ",".join(gpus[place * each : (place + 1) * each])
            print(f"fold {fold} on GPU {mine}", flush=True)
            environment = os.environ | {"CUDA_VISIBLE_DEVICES": mine}
            # in a session of its own a fold does not hear Ctrl-C twice
            job = subprocess.Popen(command(fold, each, arguments), env=environment, start_new_session=True)
            running.append(job)
        if stopped:  # between two starts
            stopped = False
            stop()
        ends = [job.wait() for job in running]
        running.clear()
        status = next((end if end > 0 else 128 - end for end in ends if end), 0)
    return status or (128 + signal.SIGTERM if stopped else 0)


if __name__ == "__main__":
    run_command(main)
