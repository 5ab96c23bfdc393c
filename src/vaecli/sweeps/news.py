"""How far many runs have come, for whoever watches."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from vaecli.config.schema import Config
from vaecli.sweeps.jobs import JobResult


@dataclass(frozen=True)
class News:
    """How far all runs have come."""

    configs: Sequence[Config]
    """Of all runs."""
    outcomes: Sequence[JobResult]
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
        watch: Is told of every run that begins or ends.
    """

    def __init__(self, configs: Sequence[Config], watch: Watch) -> None:
        self._configs, self._watch = configs, watch
        self.outcomes: dict[int, JobResult] = {}
        self.running = set[int]()
        self._in_order: list[JobResult] = []
        self._worked_on = 0
        """Of the outcomes, those that had not been there before."""
        self._began_at: float | None = None
        self._tell()

    def began(self, i: int) -> None:
        """A run is being worked on."""
        self._began_at = time.monotonic() if self._began_at is None else self._began_at
        self.running.add(i)
        self._tell()

    def ended(self, i: int, outcome: JobResult) -> None:
        """A run is over."""
        self._worked_on += i in self.running
        self.running.discard(i)
        self.outcomes[i] = outcome
        self._in_order.append(outcome)
        self._tell()

    def _tell(self) -> None:
        self._watch(News(self._configs, self._in_order, sorted(self.running), self._seconds_left()))

    def _seconds_left(self) -> float | None:
        """At the pace since the first began; what is running counts as half done."""
        if not self._worked_on or self._began_at is None:
            return None
        half = len(self.running) / 2
        left = len(self._configs) - len(self.outcomes) - half
        return (time.monotonic() - self._began_at) / (self._worked_on + half) * left
