"""How training is asked to stop before its end: by a signal, or by a limit set beforehand."""

import re
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from vaecli.errors import UsageError

Stop = Callable[[], bool]
"""Says whether to stop: after this step, with a checkpoint."""

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def never() -> bool:
    """Do not stop."""
    return False


@contextmanager
def block_sigint() -> Iterator[None]:
    """Block SIGINT: processes started here never receive it from the terminal; this one does, a moment later."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@dataclass(frozen=True)
class Limit:
    """Hold how long to train at most, counted from now; by default without limits."""

    seconds: float | None = None
    images: int | None = None
    _began: float = field(default_factory=time.monotonic)

    def reached(self, images: int) -> str | None:
        """Return which limit has been reached, if any, once so many images have been seen."""
        if self.images is not None and images >= self.images:
            return f"{self.images:,} images"
        if self.seconds is not None and time.monotonic() - self._began >= self.seconds:
            return f"{self.seconds:g} s"
        return None


def duration(text: str) -> float:
    """Return the seconds that `90`, `90s`, `1.5h`, `2d` or `1h30m` stand for. Raises UsageError."""
    parts = re.findall(r"(\d+(?:\.\d+)?)([smhd]?)", text)
    seconds = sum(float(number) * _UNITS[unit or "s"] for number, unit in parts)
    if "".join(number + unit for number, unit in parts) != text or not 0 < seconds < 1e9:
        raise UsageError(f"{text!r}: is not a duration; write 90s, 45m, 2h, 1h30m or 2d")
    return seconds
