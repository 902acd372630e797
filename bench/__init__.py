"""Measure GaLR beside the plain implementation of tests/reference.py: `python -m bench`."""

from __future__ import annotations

import multiprocessing
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from tqdm import trange

from utils import RunError

Case = dict[str, float]  # "ours", "baseline", "ratio", "spread", "peak_mib"


class Outcome(NamedTuple):
    """Median seconds of the work, its return value, and the peak memory of its process in MiB."""

    seconds: float
    answer: Any
    peak_mib: float


def measured(make: Callable[..., Callable[[], Any]], *arguments: Any, times: int = 1) -> Outcome:
    """Time the work that `make(*arguments)` prepares and warms up, in a process of its own.

    A process that stays alive keeps its memory and its waiting threads and slows the next one, so the sides take turns
    in whole processes. Raises RunError if the work fails or its process dies.
    """
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(_work, make, arguments, times).result()
        except BrokenProcessPool:
            raise RunError("a measured process died (out of memory?)") from None
        except Exception as error:
            raise RunError(f"a measured process failed ({type(error).__name__}: {error})") from None


def _work(make: Callable[..., Callable[[], Any]], arguments: Sequence[Any], times: int) -> Outcome:
    work, seconds = make(*arguments), []
    for _ in range(times):
        start = time.perf_counter()
        answer = work()
        seconds.append(time.perf_counter() - start)
    return Outcome(median(seconds), answer, peak_mib())


def rounds(name: str, repeats: int, *sides: Sequence[Any], times: int = 1) -> list[list[Outcome]]:
    """Measure the sides (arguments of `measured`) in turns, `repeats` times; return the outcomes of each side."""
    turns = trange(repeats, desc=name, unit="round", disable=None)
    return [list(runs) for runs in zip(*[[measured(*side, times=times) for side in sides] for _ in turns], strict=True)]


def peak_mib() -> float:
    """Return the peak resident memory of this process in MiB, or that of its tensors on a GPU."""
    torch = sys.modules.get("torch")  # where it is not imported, no tensor is on a GPU
    if torch and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 2**20
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def figures(ours: Sequence[float], baseline: Sequence[float], peak: float) -> Case:
    """Return the figures of a case from the seconds of its rounds.

    Times are medians; the spread is the range of the rounds' ratios over their median.

    >>> figures([1.0, 2.0, 2.0], [20.0, 20.0, 20.0], 7.0)["ratio"]
    10.0
    """
    ratios = [slow / fast for fast, slow in zip(ours, baseline, strict=True)]
    return {
        "ours": median(ours),
        "baseline": median(baseline),
        "ratio": median(baseline) / median(ours),
        "spread": (max(ratios) - min(ratios)) / median(ratios),
        "peak_mib": peak,
    }
