"""Many runs, several at a time: each trained and evaluated once, and none that fails takes another with it.

What is complete already is not done again, and what was cut is resumed: two runs are the same when their configs are.
"""

import json
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, field
from multiprocessing.queues import SimpleQueue
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vaecli.config import Config
from vaecli.errors import InterruptedRunError, VaecliError
from vaecli.runs import Run, list_runs
from vaecli.sources import fingerprint
from vaecli.stopping import Stop, never

AT_ONCE = 1.0
"""Seconds within which a run ends that had been done before; it says nothing about the time that others take."""


@dataclass(frozen=True)
class Work:
    """What is done with every config."""

    runs_dir: Path
    data_dir: Path | None = None
    k: int = 100
    """Importance samples per image."""
    binarised: bool = True
    """Whether binarised images are evaluated as well."""


@dataclass(frozen=True)
class Task:
    """One run to be had: trained and evaluated."""

    config: Config
    known: Run | None
    """The run, if it was begun before."""
    work: Work


@dataclass(frozen=True)
class Outcome:
    """What came of one config."""

    config: Config
    run: Run | None
    figures: dict[str, Any] = field(default_factory=dict)
    """Of `vaecli.evaluate`, and `seconds_per_epoch`."""
    error: str | None = None

    @property
    def decoder(self) -> str:
        """The decoder's name."""
        return self.config.model.decoder

    @property
    def seed(self) -> int:
        """The seed."""
        return self.config.seed

    def per_image(self, name: str) -> NDArray[np.float64] | None:
        """A figure for every image of the test split, if it has been evaluated."""
        path = self.figures.get("path")
        if path is None:
            return None
        with np.load(Path(path).with_suffix(".npz")) as arrays:
            return arrays[name].astype(np.float64) if name in arrays.files else None


def values(outcomes: Sequence[Outcome], name: str) -> list[float]:
    """A figure over runs; empty where one has none."""
    found = [outcome.figures.get(name) for outcome in outcomes]
    return [] if None in found else [float(value) for value in found if value is not None]


@dataclass(frozen=True)
class News:
    """How far all runs have come."""

    configs: tuple[Config, ...]
    """Of all runs."""
    outcomes: tuple[Outcome, ...]
    """In the order in which they came."""
    running: tuple[int, ...]
    """The numbers of the configs that are being worked on."""
    seconds_left: float | None
    """At the pace so far; None before any run has been worked on."""

    @property
    def failed(self) -> int:
        """How many came to nothing."""
        return sum(outcome.error is not None for outcome in self.outcomes)


Watch = Callable[[News], None]


def ignore(news: News) -> None:
    """Watch nothing."""


def known_runs(runs_dir: Path, data_sha256: str | None) -> dict[str, Run]:
    """Runs of these images by identity; of several, the one that has come furthest."""
    known: dict[str, Run] = {}
    epochs: dict[str, int] = {}
    for run in list_runs(runs_dir):
        status = run.status
        try:
            key = status.get("identity") or run.config.identity
        except VaecliError:
            continue
        environment = run.environment
        if environment.get("initialised_from") or environment.get("data_sha256") != data_sha256:
            continue  # weights of another run are no seed, and images of the same name may be others
        if key not in known or status.get("epoch", 0) > epochs[key]:
            known[key], epochs[key] = run, status.get("epoch", 0)
    return known


def run_all(
    configs: Sequence[Config],
    work: Work,
    *,
    jobs: int = 1,
    threads: int | None = None,
    watch: Watch = ignore,
    stop: Stop = never,
) -> tuple[Outcome, ...]:
    """Train and evaluate every config, in this process or in several.

    Args:
        configs: Of the runs, each different from all others.
        work: What is done with each.
        jobs: Processes that work at a time; each serves many runs.
        threads: Of each run, which is part of what fixes its bits; None for a share of the cores.
        watch: Is told of every run that begins or ends.
        stop: Is asked again and again whether to checkpoint and stop.

    Returns:
        The outcomes, in the order of the configs.

    Raises:
        DataError: Images cannot be read.
        InterruptedRunError: `stop` said so; the same call goes on.
    """
    board = _Board(tuple(configs), min(jobs, len(configs)), watch)
    if board.jobs <= 1:
        for i, outcome in _in_this_process(_tasks(configs, work), threads, board, stop):
            board.ended(i, outcome)
    else:
        share = threads or max(1, (os.cpu_count() or 1) // board.jobs)
        for i, outcome in _in_processes(configs, work, share, board, stop):
            board.ended(i, outcome)
    return tuple(outcome for _, outcome in sorted(board.outcomes.items()))


def _tasks(configs: Sequence[Config], work: Work) -> list[Task]:
    """What is to be done, and what of it was begun before. Raises DataError."""
    known = {name: known_runs(work.runs_dir, fingerprint(name)) for name in {config.data.name for config in configs}}
    return [Task(config, known[config.data.name].get(config.identity), work) for config in configs]


class _Board:
    """What is running, what has ended, and how long the rest may take."""

    def __init__(self, configs: tuple[Config, ...], jobs: int, watch: Watch) -> None:
        self._configs, self.jobs, self._watch = configs, jobs, watch
        self.outcomes: dict[int, Outcome] = {}
        self.running: dict[int, float] = {}
        """When each began."""
        self._seconds: list[float] = []
        self._tell()

    def began(self, i: int) -> None:
        """A run is being worked on."""
        self.running[i] = time.monotonic()
        self._tell()

    def ended(self, i: int, outcome: Outcome) -> None:
        """A run is over."""
        seconds = time.monotonic() - self.running.pop(i, time.monotonic())
        if seconds > AT_ONCE:
            self._seconds.append(seconds)
        self.outcomes[i] = outcome
        self._tell()

    def _tell(self) -> None:
        left = len(self._configs) - len(self.outcomes)
        pace = sum(self._seconds) / len(self._seconds) if self._seconds else None
        seconds_left = None if pace is None else pace * left / max(1, self.jobs)
        running = tuple(sorted(self.running))
        self._watch(News(self._configs, tuple(self.outcomes.values()), running, seconds_left))


def _in_this_process(
    tasks: Sequence[Task], threads: int | None, board: _Board, stop: Stop
) -> Iterator[tuple[int, Outcome]]:
    if threads is not None:
        import torch  # noqa: PLC0415 (nothing else here needs it)

        torch.set_num_threads(threads)
    for i, task in enumerate(tasks):
        board.began(i)
        yield i, _complete(task, stop)


def _in_processes(
    configs: Sequence[Config], work: Work, threads: int, board: _Board, stop: Stop
) -> Iterator[tuple[int, Outcome]]:
    """Every outcome as it comes, from processes that each serve many runs.

    When one is killed, by the system or by a fault of a library, all that were at work end with it. Each of their runs
    then goes on alone, so that the one that kills its process takes no other with it.
    """
    left, suspects = set(range(len(configs))), set[int]()
    while left:
        chosen = {min(suspects)} if suspects else left
        jobs = 1 if suspects else board.jobs
        cut: list[int] = []
        before, tasks = len(left), _tasks(configs, work)
        for i, outcome in _in_a_pool({i: tasks[i] for i in sorted(chosen)}, jobs, threads, board, stop):
            if outcome is None:
                cut.append(i)
            else:
                left.remove(i)
                yield i, outcome
        if not cut and len(left) == before:
            raise VaecliError("the processes that should do the runs end as soon as they begin; try --jobs 1")
        if suspects and cut:
            left -= suspects & set(cut)
            yield cut[0], Outcome(configs[cut[0]], None, error="its process was killed twice")
        suspects = (suspects - chosen) if suspects else set(cut)


def _in_a_pool(
    tasks: Mapping[int, Task], jobs: int, threads: int, board: _Board, stop: Stop
) -> Iterator[tuple[int, Outcome | None]]:
    """Outcomes as they come, until all tasks have one or a process is killed; None for those that it was killed at."""
    context = multiprocessing.get_context("spawn")
    stopping, begun = context.Event(), context.SimpleQueue()
    with ProcessPoolExecutor(jobs, context, _start_worker, (threads, stopping, begun)) as pool:
        waiting: dict[Future[Outcome], int] = {
            pool.submit(_complete_in_worker, i, task): i for i, task in tasks.items()
        }
        while waiting:
            if stop():
                stopping.set()
                pool.shutdown(cancel_futures=True)
                raise InterruptedRunError("stopped; every run was checkpointed, and the same command goes on")
            ended, _ = wait(waiting, timeout=0.2, return_when=FIRST_COMPLETED)
            while not begun.empty():
                board.began(begun.get())
            for future in ended:
                i = waiting.pop(future)
                if not isinstance(future.exception(), BrokenExecutor):
                    yield i, future.result()
                elif board.running.pop(i, None) is not None:
                    yield i, None


_stopping: Event | None = None
"""In a worker, set when it should checkpoint and stop."""
_begun: "SimpleQueue[int] | None" = None
"""In a worker, where it says which run it begins."""


def _start_worker(threads: int, stopping: Event, begun: "SimpleQueue[int]") -> None:
    """Give a worker its cores; signals of the terminal are its parent's to handle."""
    import torch  # noqa: PLC0415 (only workers start with it)

    global _stopping, _begun
    _stopping, _begun = stopping, begun
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(threads)


def _complete_in_worker(i: int, task: Task) -> Outcome:
    assert _stopping is not None
    assert _begun is not None
    _begun.put(i)
    return _complete(task, _stopping.is_set)


def _complete(task: Task, stop: Stop) -> Outcome:
    """Train what is not trained, evaluate what is not evaluated."""
    from vaecli.evaluation import evaluate, evaluation_path  # noqa: PLC0415 (torch)
    from vaecli.training import resume, train  # noqa: PLC0415

    config, run, work = task.config, task.known, task.work
    try:
        if run is None:
            run = train(config, runs_dir=work.runs_dir, data_dir=work.data_dir, stop=stop)
        elif run.status.get("state") not in {"completed", "converged"}:
            run = resume(run, data_dir=work.data_dir, stop=stop)
        path = evaluation_path(run, k=work.k, binarised=work.binarised)
        if not path.is_file():
            evaluate(run, k=work.k, binarised=work.binarised, device=config.device, data_dir=work.data_dir)
        figures = json.loads(path.read_text())
        pace = _seconds_per_epoch(run)
    except InterruptedRunError:
        raise
    except VaecliError as error:
        return Outcome(config, run, error=str(error))
    except Exception as error:  # noqa: BLE001 (whatever it is, it is this run's alone)
        return Outcome(config, run, error=f"{type(error).__name__}: {error}")
    return Outcome(config, Run(run.path), figures | {"seconds_per_epoch": pace, "path": str(path)})


def _seconds_per_epoch(run: Run) -> float:
    """The median over epochs, which a machine that was busy for a while leaves as it is."""
    seconds = [row["seconds"] for row in run.metrics if row["split"] == "train"]
    return float(np.median(np.diff(seconds, prepend=0.0)))
