"""A progress bar in a terminal; elsewhere, in a log file say, a line a minute."""

from __future__ import annotations

import logging
import sys
import time
from typing import Any

from tqdm import tqdm

logger = logging.getLogger("galr")
INTERVAL = 60  # seconds between two lines


class Bar(tqdm):
    """tqdm, whose bar becomes a line a minute where standard error is no terminal."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.in_terminal = sys.stderr.isatty()
        pace = {} if self.in_terminal else {"mininterval": INTERVAL, "maxinterval": INTERVAL}
        super().__init__(*args, **pace, **kwargs)

    def display(self, *args: Any, **kwargs: Any) -> Any:
        if self.in_terminal:
            return super().display(*args, **kwargs)
        if self.n > self.initial and (self.total is None or self.n < self.total):
            state = self.format_dict | {"bar_format": "{desc}: {n_fmt} of {total_fmt} {unit}s, {remaining} left"}
            logger.info(self.format_meter(**state))
        return True

    def close(self) -> None:
        if not self.in_terminal:
            self.leave = False
            self.disable = True  # nothing to wipe away
        super().close()


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
