"""Ctrl-C and SIGTERM, heeded where a run can stop."""

from __future__ import annotations

import logging
import signal

from layers.distributed import largest
from utils import Interrupted

logger = logging.getLogger("galr")


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
