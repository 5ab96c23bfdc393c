"""Saying how far the work before the first step is, where it takes long."""

import threading
import time

from vaecli.cli.app import say

SECONDS_PER_LINE = 5.0
SECONDS_UNSAID = 2.0
"""So long may a stage before the first step take without a word."""


class StageLines:
    """Print how far a stage is: nothing of one that is short, and of others a line now and then."""

    def __init__(self) -> None:
        self._stage: str | None = None
        self._printed_at: float | None = None
        self._lock = threading.Lock()

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Take note of how far the stage is."""
        with self._lock:
            if stage != self._stage:
                self._stage, self._began_at, self._printed_at = stage, time.monotonic(), None
                self._timer = threading.Timer(SECONDS_UNSAID, self._print)  # whatever it does may not call for long
                self._timer.daemon = True
                self._timer.start()
            self._done, self._total = done, total
            ended, printed_at = done >= total, self._printed_at
            if ended:
                self._timer.cancel()
                self._stage = None
        if printed_at is not None and ended:
            say(f"{stage}: done in {clock(time.monotonic() - self._began_at)}")
        elif printed_at is not None and time.monotonic() - printed_at > SECONDS_PER_LINE:
            self._print()

    def _print(self) -> None:
        with self._lock:
            if self._stage is not None:
                self._printed_at = time.monotonic()
                say(f"{self._stage}{pace(self._began_at, self._done, self._total)}")


def pace(began_at: float, done: int, total: int) -> str:
    """Say how far a stage is, as far as that is known."""
    if not done:
        return " ..."
    left = (time.monotonic() - began_at) * (total - done) / done
    return f": {100 * done // total} %, {clock(left)} left"


def clock(seconds: float) -> str:
    """Format seconds as minutes and seconds, with hours where there are any."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
