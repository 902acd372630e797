"""Do what must not stop the training loop in a thread beside it: write checkpoints, draw pictures."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor


class Background:
    """Do jobs in one thread, one at a time; leaving the context waits for all of them.

    A job replaces the one of its name that still waits. Of the waiting ones the name that comes first in `order` is
    next, whichever was put first. After an error nothing more is done, and the error is raised by the next call.
    """

    def __init__(self, order: Sequence[str]) -> None:
        self._order = order
        self._waiting: dict[str, Callable[[], None]] = {}
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(1)
        self._turns: list[Future] = []

    def put(self, name: str, job: Callable[[], None]) -> None:
        """Have a job done. Raise the error of an earlier one."""
        self.check()
        with self._lock:
            self._waiting[name] = job
        self._turns.append(self._pool.submit(self._turn))

    def check(self) -> None:
        """Raise the error of a job, if there was one."""
        done = [turn for turn in self._turns if turn.done()]
        for turn in done:
            turn.result()
            self._turns.remove(turn)

    def wait(self) -> None:
        """Wait until every job is done. Raise the error of one."""
        for turn in self._turns:
            turn.result()

    def _turn(self) -> None:
        with self._lock:
            job = next((self._waiting.pop(name) for name in self._order if name in self._waiting), None)
        try:
            if job:
                job()
        except BaseException:
            self._waiting.clear()
            raise

    def __enter__(self) -> Background:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._pool.shutdown()
        if kind is None:
            self.check()
