"""Ours beside a plain baseline, measured in the same run, in turns: `python -m bench`, docs/PERFORMANCE.md."""

from __future__ import annotations

import multiprocessing
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from types import TracebackType
from typing import Any, NamedTuple

from util.errors import RunError

Case = dict[str, float]  # "ours", "baseline", "ratio", "spread", "peak_mib"

_context = multiprocessing.get_context("forkserver")  # a fork of a fresh process: no threads, nothing in its memory
_context.set_forkserver_preload(["bench.train", "bench.eval", "bench.data"])


class Outcome(NamedTuple):
    """What one run of a side took in seconds, what it returned, and its process's peak memory so far in MiB."""

    seconds: float
    answer: Any
    peak_mib: float


class Side:
    """One side of a comparison, in a process of its own: with its own threads, allocator settings and peak memory.

    `make(*arguments)` prepares and warms up the work there and returns it; `run` has it done and timed.
    """

    def __init__(self, make: Callable[..., Callable[[], Any]], *arguments: Any) -> None:
        self._pipe, theirs = _context.Pipe()
        self._process = _context.Process(target=_serve, args=(theirs, make, arguments))
        self._process.start()
        theirs.close()
        self._answer()

    def __enter__(self) -> Side:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        if kind is None:  # let it put its things away
            self._pipe.send(None)
            self._process.join(timeout=20)
        self._process.terminate()
        self._process.join()

    def run(self) -> Outcome:
        """Raises RunError where the work fails or its process dies."""
        self._pipe.send("run")
        return self._answer()

    def _answer(self) -> Outcome:
        try:
            outcome = self._pipe.recv()
        except EOFError:
            raise RunError("a measured process died (out of memory?)") from None
        if isinstance(outcome, Exception):
            raise RunError(f"a measured process failed ({type(outcome).__name__}: {outcome})")
        return outcome


def _serve(pipe: Any, make: Callable[..., Callable[[], Any]], arguments: Sequence[Any]) -> None:
    """What the process of a side does: prepare, then work whenever it is asked to, until the other end is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the one who asks
    try:
        work = make(*arguments)
        pipe.send(Outcome(0, None, peak_mib()))
        while pipe.recv():
            start = time.perf_counter()
            answer = work()
            pipe.send(Outcome(time.perf_counter() - start, answer, peak_mib()))
    except EOFError:
        pass
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
