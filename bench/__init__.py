"""Ours beside a plain baseline, whole processes in turns: `python -m bench`, docs/PERFORMANCE.md."""

from __future__ import annotations

import multiprocessing
import signal
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from utils import RunError

Case = dict[str, float]  # "ours", "baseline", "ratio", "spread", "peak_mib"


class Outcome(NamedTuple):
    """What the work took in seconds (median), what it returned, and the peak memory of its process in MiB."""

    seconds: float
    answer: Any
    peak_mib: float


def measured(make: Callable[..., Callable[[], Any]], *arguments: Any, times: int = 1) -> Outcome:
    """Have work done and timed in a whole process of its own, which nothing of the measured project outlives.

    `make(*arguments)` prepares and warms up the work there and returns it. A process that stays alive keeps its memory
    and its waiting threads, and slows the next one: so sides are compared by whole processes in turns.
    Raises RunError where the work fails or its process dies.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(theirs, make, arguments, times))  # no daemon: loaders have children
    process.start()
    theirs.close()
    try:
        outcome = ours.recv()
        process.join()
    except EOFError:
        raise RunError("a measured process died (out of memory?)") from None
    finally:
        process.terminate()
    if isinstance(outcome, Exception):
        raise RunError(f"a measured process failed ({outcome})")
    return outcome


def _work(pipe: Connection, make: Callable[..., Callable[[], Any]], arguments: Sequence[Any], times: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the one who asks
    try:
        work, seconds = make(*arguments), []
        for _ in range(times):
            start = time.perf_counter()
            answer = work()
            seconds.append(time.perf_counter() - start)
        pipe.send(Outcome(median(seconds), answer, peak_mib()))
    except Exception as error:
        pipe.send(RuntimeError(f"{type(error).__name__}: {error}"))


def peak_mib() -> float:
    """The largest resident memory that this process has had, or on a GPU what its tensors took there; in MiB."""
    import torch

    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 2**20
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def figures(ours: Sequence[float], baseline: Sequence[float], peak: float) -> Case:
    """The figures of a case from the seconds of its rounds, in which ours and the baseline took turns.

    Medians; ratio = baseline / ours; spread: the range of the rounds' ratios over their median; peak memory of ours.
    """
    ratios = [slow / fast for fast, slow in zip(ours, baseline, strict=True)]
    return {
        "ours": median(ours),
        "baseline": median(baseline),
        "ratio": median(baseline) / median(ours),
        "spread": (max(ratios) - min(ratios)) / median(ratios),
        "peak_mib": peak,
    }
