"""Showing progress: bars and tables on a terminal, plain lines into a pipe; always on stderr."""

from __future__ import annotations

import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from vaecli.cli.app import say
from vaecli.cli.stages import SECONDS_PER_LINE, StageLines, clock, pace
from vaecli.config.schema import describe_settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from rich.progress import Progress, TaskID
    from rich.table import Table

    from vaecli.runs.run import Run
    from vaecli.sweeps.sweep import JobResult, SweepCallback, SweepUpdate
    from vaecli.training.recorder import TrainingUpdate

MAX_RUNNING = 12
"""Running jobs that the table of a sweep lists: it must fit a terminal."""


class Silent:
    """Follow a run without showing anything."""

    run: Run | None = None
    """The run, once it has begun."""

    def __call__(self, update: TrainingUpdate) -> None:
        """Remember which run it is."""
        self.run = update.run

    def on_stage(self, stage: str, done: int, total: int) -> None:
        """Show how far the work before a step is."""


class Lines(Silent):
    """Print one plain line for each epoch, and some of a stage that takes long."""

    def __init__(self) -> None:
        self._stages = StageLines()

    def on_stage(self, stage: str, done: int, total: int) -> None:
        """Print how far a stage is."""
        self._stages(stage, done, total)

    def __call__(self, update: TrainingUpdate) -> None:
        """Print the end of an epoch."""
        super().__call__(update)
        if update.ended:
            say(epoch_line(update))


class Bar(Silent):
    """Move a bar within the epoch, and print a line above it for each epoch that has ended."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task: TaskID | None = None
        self._stage: tuple[str, TaskID, float] | None = None

    def on_stage(self, stage: str, done: int, total: int) -> None:
        """Move a bar of its own, as long as the stage lasts."""
        if self._stage is None or self._stage[0] != stage:
            self._stage = (stage, self._progress.add_task(stage, total=total, metrics=""), time.monotonic())
        _, task, began_at = self._stage
        if done < total:
            metrics = pace(began_at, done, total).removeprefix(": ")
            self._progress.update(task, completed=done, total=total if done else None, metrics=metrics)
        else:
            self._progress.remove_task(task)
            self._stage = None

    def __call__(self, update: TrainingUpdate) -> None:
        """Move the bar."""
        super().__call__(update)
        total = update.config.training.epochs * update.steps
        done = (update.epoch - 1) * update.steps + update.step
        if self._task is None:
            self._task = self._progress.add_task("", total=total, metrics="")
        caveat = f"({update.config.caveat})  " if update.config.caveat else ""
        metrics = (
            f"ELBO {update.elbo:.2f} = {update.log_likelihood:.2f} - {update.kl:.2f} nats  {caveat}"
            f"{update.images_per_second:,.0f} images/s  {clock(update.seconds_left)} left"
        )
        epoch = f"epoch {update.epoch}/{update.config.training.epochs}"
        self._progress.update(self._task, completed=done, total=total, description=epoch, metrics=metrics)
        if update.ended:
            self._progress.console.print(epoch_line(update), highlight=False)


@contextmanager
def show_training(*, quiet: bool) -> Iterator[Silent]:
    """Show how a run goes on, in the way that suits stderr."""
    if quiet:
        yield Silent()
    elif not sys.stderr.isatty():
        yield Lines()
    else:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        description = TextColumn("{task.description}", markup=False)  # it may have a file's name
        columns = (description, BarColumn(bar_width=20), TextColumn("{task.fields[metrics]}"))
        with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
            yield Bar(progress)


@contextmanager
def show_stages(*, quiet: bool) -> Iterator[Callable[[str, int, int], None]]:
    """Show stages, how much of each is done and of how much: a bar on a terminal, now and then a line in a pipe."""
    if quiet:
        yield lambda *_: None
    elif not sys.stderr.isatty():
        yield _stage_lines()
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


def _stage_lines() -> Callable[[str, int, int], None]:
    printed_at: dict[str, float] = {}
    began_at: dict[str, float] = {}

    def print_line(stage: str, done: int, total: int) -> None:
        now = time.monotonic()
        start = began_at.setdefault(stage, now)
        if done and (done == total or now - printed_at.get(stage, start) > SECONDS_PER_LINE):
            printed_at[stage] = now
            left = (now - start) * (total - done) / done
            say(f"{stage}: {100 * done // total} %" + (f", {clock(left)} left" if done < total else ""))

    return print_line


@contextmanager
def show_sweep(keys: Sequence[str], *, quiet: bool) -> Iterator[SweepCallback]:
    """Show how far a sweep has come: a line for each run that ends, and below them, on a terminal, a table.

    Args:
        keys: The settings by which the runs are named.
        quiet: Show nothing.
    """
    summary = _SweepSummary(keys)
    if quiet:
        yield lambda _: None
    elif not sys.stderr.isatty():
        stages = StageLines()

        def write(update: SweepUpdate) -> None:
            if update.stage is not None:
                stages(*update.stage)
            for line in summary.add(update):
                say(line + _left(update))

        yield write
    else:
        from rich.console import Console
        from rich.live import Live
        from rich.text import Text

        with Live(console=Console(stderr=True), transient=True, refresh_per_second=4) as live:

            def draw(update: SweepUpdate) -> None:
                for line in summary.add(update):
                    live.console.print(Text(line))
                live.update(summary.table(update))

            yield draw


class _SweepSummary:
    """Summarise the results so far, counted as they come: there may be very many."""

    def __init__(self, keys: Sequence[str]) -> None:
        self._keys = keys
        self._n_shown = 0
        self._n_failed = 0
        self._best: dict[str, JobResult] = {}
        """The highest ELBO of each support: those of two supports cannot be compared."""

    def add(self, update: SweepUpdate) -> Iterator[str]:
        """Yield a line for each result that is new."""
        while self._n_shown < len(update.results):
            result = update.results[self._n_shown]
            self._n_shown += 1
            self._n_failed += result.error is not None
            elbo = result.metric("elbo")
            if elbo is not None:
                support = result.config.support.value
                best = self._best[support].metric("elbo") if support in self._best else None
                if best is None or elbo > best:
                    self._best[support] = result
            yield f"{self._n_shown}/{len(update.configs)}  {self._line(result)}"

    def table(self, update: SweepUpdate) -> Table:
        """Return counts, some of the runs that are being worked on, and the best."""
        from rich.table import Table
        from rich.text import Text

        table = Table.grid(padding=(0, 2))
        done, running = len(update.results), len(update.running)
        waiting = len(update.configs) - done - running
        counts = f"{done} done, {running} running, {waiting} waiting, {self._n_failed} failed{_left(update)}"
        table.add_row("runs", counts)
        if update.stage is not None:
            stage, completed, total = update.stage
            table.add_row("before", Text(f"{stage}{f': {100 * completed // total} %' if completed else ' ...'}"))
        for i in update.running[:MAX_RUNNING]:
            table.add_row("running", Text(describe_settings(update.configs[i], self._keys)))
        if running > MAX_RUNNING:
            table.add_row("", f"and {running - MAX_RUNNING} more")
        for support, best in self._best.items():
            table.add_row("best", Text(f"{support}: {self._line(best)}"))
        return table

    def _line(self, result: JobResult) -> str:
        if result.evaluation is None:
            what = result.error or ""
        else:
            caveat = f" ({result.config.caveat})" if result.config.caveat else ""
            what = f"ELBO {result.evaluation.elbo:.2f} nats ({result.evaluation.split}){caveat}"
        return f"{describe_settings(result.config, self._keys)}: {what}"


def _left(update: SweepUpdate) -> str:
    return "" if update.seconds_left is None else f"  {clock(update.seconds_left)} left"


def epoch_line(update: TrainingUpdate) -> str:
    """Format the metrics of an epoch in a line."""
    width = len(str(update.config.training.epochs))
    line = (
        f"epoch {update.epoch:{width}}/{update.config.training.epochs}  "
        f"train ELBO {update.elbo:8.2f} = {update.log_likelihood:8.2f} - {update.kl:5.2f}"
    )
    if update.validation is not None:
        bound = update.validation
        line += f"  validation {bound.elbo:8.2f} = {bound.log_likelihood:8.2f} - {bound.kl:5.2f} nats"
    line += f"  {update.images_per_second:7,.0f} images/s  {clock(update.seconds_left)} left"
    return line + (f"  ({update.config.caveat})" if update.config.caveat else "")
