"""A progress bar in a terminal; elsewhere, in a log file say, a line a minute."""

from __future__ import annotations

import logging
import sys
import time
from typing import Any

from tqdm import tqdm

from util.processes import is_main

logger = logging.getLogger("galr")
INTERVAL = 60  # seconds between two lines


class Bar(tqdm):
    """tqdm, whose bar becomes a line a minute where standard error is no terminal; of several processes one draws."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.in_terminal, self.said = sys.stderr.isatty(), time.monotonic()
        pace = {} if self.in_terminal else {"mininterval": INTERVAL, "maxinterval": INTERVAL, "leave": False}
        super().__init__(*args, disable=not is_main(), **pace, **kwargs)

    def display(self, *args: Any, **kwargs: Any) -> None:
        if self.in_terminal:
            super().display(*args, **kwargs)
        elif time.monotonic() - self.said >= INTERVAL:
            self.said = time.monotonic()
            state = self.format_dict | {"bar_format": "{desc}: {n_fmt} of {total_fmt} {unit}s, {remaining} left"}
            logger.info(self.format_meter(**state))

    def clear(self, *args: Any, **kwargs: Any) -> None:
        if self.in_terminal:
            super().clear(*args, **kwargs)


class Meter:
    """Counts things, and tells how many a second there were since it was last asked."""

    def __init__(self) -> None:
        self._started, self._count = time.perf_counter(), 0

    def update(self, count: int) -> None:
        self._count += count

    def read(self) -> float:
        speed = self._count / (time.perf_counter() - self._started)
        self._started, self._count = time.perf_counter(), 0
        return speed
