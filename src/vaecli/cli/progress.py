"""How training is watched: a progress bar on a terminal, plain lines into a pipe."""

from __future__ import annotations

import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from vaecli.config.settings import label

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from rich.progress import Progress, TaskID
    from rich.table import Table

    from vaecli.runs.run import Run
    from vaecli.sweeps.jobs import JobResult
    from vaecli.sweeps.news import News, Watch
    from vaecli.training.recorder import TrainingUpdate

SECONDS_PER_LINE = 5.0
ROWS_OF_RUNS = 12
"""Of those that run; a table must fit a terminal."""


class Watcher:
    """Takes the news of a run; this one keeps quiet."""

    run: Run | None = None

    def __call__(self, report: TrainingUpdate) -> None:
        """Remember which run it is about."""
        self.run = report.run


class Lines(Watcher):
    """One plain line for each epoch."""

    def __call__(self, report: TrainingUpdate) -> None:
        """Print the end of an epoch."""
        super().__call__(report)
        if report.ended:
            print(epoch_line(report), file=sys.stderr, flush=True)


class Bar(Watcher):
    """A bar that moves within the epoch, with a line above it for each epoch that has ended."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task: TaskID | None = None

    def __call__(self, report: TrainingUpdate) -> None:
        """Move the bar."""
        super().__call__(report)
        total = report.config.training.epochs * report.steps
        done = (report.epoch - 1) * report.steps + report.step
        if self._task is None:
            self._task = self._progress.add_task("", total=total, figures="")
        caveat = f"({report.config.caveat})  " if report.config.caveat else ""
        figures = (
            f"ELBO {report.elbo:.2f} = {report.log_likelihood:.2f} - {report.kl:.2f} nats  {caveat}"
            f"{report.images_per_second:,.0f} images/s  {clock(report.seconds_left)} left"
        )
        epoch = f"epoch {report.epoch}/{report.config.training.epochs}"
        self._progress.update(self._task, completed=done, total=total, description=epoch, figures=figures)
        if report.ended:
            self._progress.console.print(epoch_line(report), highlight=False)


@contextmanager
def display(*, quiet: bool) -> Iterator[Watcher]:
    """The watcher that suits where stderr goes."""
    if quiet:
        yield Watcher()
    elif not sys.stderr.isatty():
        yield Lines()
    else:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        columns = (TextColumn("{task.description}"), BarColumn(bar_width=20), TextColumn("{task.fields[figures]}"))
        with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
            yield Bar(progress)


@contextmanager
def stages(*, quiet: bool) -> Iterator[Callable[[str, int, int], None]]:
    """Takes what is done, and how much of how much is done: a bar on a terminal, now and then a line in a pipe."""
    if quiet:
        yield lambda stage, done, total: None  # noqa: ARG005
    elif not sys.stderr.isatty():
        yield _lines()
    else:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
            tasks: dict[str, TaskID] = {}

            def move(stage: str, done: int, total: int) -> None:
                if stage not in tasks:
                    tasks[stage] = progress.add_task(stage)
                progress.update(tasks[stage], completed=done, total=total)

            yield move


@contextmanager
def board(keys: Sequence[str], *, quiet: bool) -> Iterator[Watch]:
    """Shows how many runs have come how far: a line for each that ends, and below them, on a terminal, a table.

    Args:
        keys: The settings by which the runs are told apart.
        quiet: Show nothing.
    """
    if quiet:
        yield lambda news: None  # noqa: ARG005
    elif not sys.stderr.isatty():
        tally = _Tally(keys)

        def write(news: News) -> None:
            for line in tally.add(news):
                print(line + _left(news), file=sys.stderr, flush=True)

        yield write
    else:
        from rich.console import Console
        from rich.live import Live

        with Live(console=Console(stderr=True), transient=True, refresh_per_second=4) as live:
            tally = _Tally(keys)

            def draw(news: News) -> None:
                for line in tally.add(news):
                    live.console.print(line, highlight=False)
                live.update(tally.table(news))

            yield draw


class _Tally:
    """What the outcomes so far come to, counted as they come: there may be very many."""

    def __init__(self, keys: Sequence[str]) -> None:
        self._keys = keys
        self._told = 0
        self._failed = 0
        self._best: dict[str, JobResult] = {}
        """The highest ELBO of each support: those of two supports cannot be compared."""

    def add(self, news: News) -> Iterator[str]:
        """A line for each outcome that is new."""
        while self._told < len(news.outcomes):
            outcome = news.outcomes[self._told]
            self._told += 1
            self._failed += outcome.error is not None
            if outcome.error is None:
                support = outcome.config.model.likelihood.support.value
                if support not in self._best or outcome.figures["elbo"] > self._best[support].figures["elbo"]:
                    self._best[support] = outcome
            yield f"{self._told}/{len(news.configs)}  {_outcome_line(outcome, self._keys)}"

    def table(self, news: News) -> Table:
        """Counts, some of the runs that are being worked on, and the best."""
        from rich.table import Table

        table = Table.grid(padding=(0, 2))
        done, running = len(news.outcomes), len(news.running)
        waiting = len(news.configs) - done - running
        table.add_row("runs", f"{done} done, {running} running, {waiting} waiting, {self._failed} failed{_left(news)}")
        for i in news.running[:ROWS_OF_RUNS]:
            table.add_row("running", label(news.configs[i], self._keys))
        if running > ROWS_OF_RUNS:
            table.add_row("", f"and {running - ROWS_OF_RUNS} more")
        for support, best in self._best.items():
            table.add_row("best", f"{support}: {_outcome_line(best, self._keys)}")
        return table


def _outcome_line(outcome: JobResult, keys: Sequence[str]) -> str:
    what = outcome.error or f"ELBO {outcome.figures['elbo']:.2f} nats (test)"
    what += f" ({outcome.figures['caveat']})" if outcome.figures.get("caveat") else ""
    return f"{label(outcome.config, keys)}: {what}"


def _left(news: News) -> str:
    return "" if news.seconds_left is None else f"  {clock(news.seconds_left)} left"


def _lines() -> Callable[[str, int, int], None]:
    told: dict[str, float] = {}
    began: dict[str, float] = {}

    def tell(stage: str, done: int, total: int) -> None:
        now = time.monotonic()
        start = began.setdefault(stage, now)
        if done and (done == total or now - told.get(stage, start) > SECONDS_PER_LINE):
            told[stage] = now
            left = (now - start) * (total - done) / done
            print(f"{stage}: {100 * done // total} %, {clock(left)} left", file=sys.stderr, flush=True)

    return tell


def epoch_line(report: TrainingUpdate) -> str:
    """The epoch's figures in a line."""
    width = len(str(report.config.training.epochs))
    line = (
        f"epoch {report.epoch:{width}}/{report.config.training.epochs}  "
        f"train ELBO {report.elbo:8.2f} = {report.log_likelihood:8.2f} - {report.kl:5.2f}"
    )
    if report.validation is not None:
        bound = report.validation
        line += f"  validation {bound.elbo:8.2f} = {bound.log_likelihood:8.2f} - {bound.kl:5.2f} nats"
    line += f"  {report.images_per_second:7,.0f} images/s  {clock(report.seconds_left)} left"
    return line + (f"  ({report.config.caveat})" if report.config.caveat else "")


def clock(seconds: float) -> str:
    """Minutes and seconds, with hours where there are any."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
