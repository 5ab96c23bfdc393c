"""How far many runs have come, for whoever watches."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from vaecli.config import Config
from vaecli.work import Outcome

AT_ONCE = 1.0
"""Seconds within which a run ends that had been done before; it says nothing about the time that others take."""


@dataclass(frozen=True)
class News:
    """How far all runs have come."""

    configs: Sequence[Config]
    """Of all runs."""
    outcomes: Sequence[Outcome]
    """In the order in which they came; it grows from one piece of news to the next."""
    running: Sequence[int]
    """The numbers of the configs that are being worked on."""
    seconds_left: float | None
    """At the pace so far; None before any run has been worked on."""


Watch = Callable[[News], None]


def ignore(news: News) -> None:
    """Watch nothing."""


class Board:
    """What is running, what has ended, and how long the rest may take.

    Args:
        configs: Of all runs.
        jobs: How many run at a time.
        watch: Is told of every run that begins or ends.
    """

    def __init__(self, configs: Sequence[Config], jobs: int, watch: Watch) -> None:
        self._configs, self.jobs, self._watch = configs, jobs, watch
        self.outcomes: dict[int, Outcome] = {}
        self.running: dict[int, float] = {}
        """When each began."""
        self._in_order: list[Outcome] = []
        self._seconds = 0.0
        self._timed = 0
        self._tell()

    def began(self, i: int) -> None:
        """A run is being worked on."""
        self.running.setdefault(i, time.monotonic())
        self._tell()

    def ended(self, i: int, outcome: Outcome) -> None:
        """A run is over."""
        seconds = time.monotonic() - self.running.pop(i, time.monotonic())
        if seconds > AT_ONCE:
            self._seconds += seconds
            self._timed += 1
        self.outcomes[i] = outcome
        self._in_order.append(outcome)
        self._tell()

    def _tell(self) -> None:
        left = len(self._configs) - len(self.outcomes)
        seconds_left = self._seconds / self._timed * left / max(1, self.jobs) if self._timed else None
        self._watch(News(self._configs, self._in_order, sorted(self.running), seconds_left))
