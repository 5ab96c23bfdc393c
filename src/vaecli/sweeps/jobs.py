"""One run of many: what is to be done with a config, and what came of it."""

import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, Field

from vaecli.config.schema import Config, Section
from vaecli.data.sources import fingerprint
from vaecli.errors import InterruptedRunError, ReproducibilityWarning, VaecliError
from vaecli.runs.run import Run, list_runs
from vaecli.training.stopping import Stop, never

FINISHED = frozenset({"completed", "converged"})
"""The states of runs that are trained."""


def _shares_or_whole(gpus: float) -> float:
    if gpus > 1 and not gpus.is_integer():
        raise ValueError("must be a whole number, or a share of one, as 0.5")
    return gpus


class Resources(Section):
    """What each run may use."""

    threads: int | None = Field(1, ge=1, le=1024)
    """Of the CPU, which are part of what fixes a run's bits; None for a share of the cores, which depends on how many
    run at a time, and on a cluster for one."""
    gpus: Annotated[float, AfterValidator(_shares_or_whole)] = Field(0.0, ge=0, le=64)
    """On a cluster, where a run sees no others; on this machine, those that there are go round."""
    together: int = Field(16, ge=1, le=1024)
    """Seeds of one config that are trained as one batched program, at most: on this machine, on CUDA."""
    seconds_per_delivery: float = Field(60.0, gt=0)
    """On a cluster, how much training is lost at most when a node is."""


@dataclass(frozen=True)
class JobOptions:
    """What is done with every config."""

    runs_dir: Path
    data_dir: Path | None = None
    k: int = 100
    """Importance samples per image."""
    binarised: bool = True
    """Whether binarised images are evaluated as well."""


@dataclass(frozen=True)
class Job:
    """One run to be had: trained and evaluated."""

    config: Config
    known: Run | None
    """The run, if it was begun before."""
    work: JobOptions


@dataclass(frozen=True)
class JobResult:
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


def values(outcomes: Sequence[JobResult], name: str) -> list[float]:
    """A figure over runs; empty where one has none."""
    found = [outcome.figures.get(name) for outcome in outcomes]
    return [] if None in found else [float(value) for value in found if value is not None]


def tasks(configs: Sequence[Config], work: JobOptions) -> list[Job]:
    """What is to be done, and what of it was begun before. Raises DataError."""
    known = {name: known_runs(work.runs_dir, fingerprint(name)) for name in {config.data.name for config in configs}}
    return [Job(config, known[config.data.name].get(config.identity), work) for config in configs]


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


def done_before(task: Job) -> JobResult | None:
    """What came of a run that needs nothing more; its status tells, so that there may be very many of them."""
    run, work = task.known, task.work
    if run is None:
        return None
    status = run.status
    if status.get("state") not in FINISHED:
        return None
    try:
        step = (status if run.checkpoint_path == run.last else status["best"])["step"]
        path = run.evaluation_path(step, k=work.k, binarised=work.binarised)
        return evaluated(task.config, run, path) if path.is_file() else None
    except (VaecliError, OSError, KeyError, TypeError, ValueError):
        return None  # whatever is damaged there is told of, or mended, where the run is completed


def complete(task: Job, stop: Stop = never) -> JobResult:
    """Train what is not trained, evaluate what is not evaluated.

    Raises:
        InterruptedRunError: `stop` said so; anything else that is wrong stands in the outcome.
    """
    (outcome,) = complete_together([task], stop)
    return outcome


def complete_together(tasks: Sequence[Job], stop: Stop = never) -> list[JobResult]:
    """The same for tasks whose configs differ in nothing but the seed, trained as one batched program."""
    runs, failed = _trained(tasks, stop)
    stopped = [error for error in failed.values() if isinstance(error, InterruptedRunError)]
    if stopped:
        raise stopped[0]
    outcomes = []
    for i, task in enumerate(tasks):
        if i and stop():
            raise InterruptedRunError("stopped before all runs were evaluated")
        outcomes.append(_failure(task, task.known, failed[i]) if i in failed else _outcome(task, runs[i]))
    return outcomes


def _trained(tasks: Sequence[Job], stop: Stop) -> tuple[dict[int, Run], dict[int, Exception]]:
    """The run of every task, by its place among them, or what went wrong with it."""
    from vaecli.training.replicates import train_replicates  # noqa: PLC0415 (torch)
    from vaecli.training.session import (  # noqa: PLC0415
        Controls,
        Session,
        in_plain_words,
        resume_session,
        start_session,
    )

    runs = {i: t.known for i, t in enumerate(tasks) if t.known and t.known.status.get("state") in FINISHED}
    trainings: dict[int, Session] = {}
    failed: dict[int, Exception] = {}
    said = _Said(stop)
    n, oversight = len(tasks) - len(runs), Controls(stop=said)
    for i, task in enumerate(tasks):
        work, beside = task.work, next(iter(trainings.values()), None)
        try:
            if task.known is None:
                trainings[i] = start_session(task.config, work.runs_dir, work.data_dir, oversight, share=beside)
            elif i not in runs:
                trainings[i] = resume_session(task.known, None, work.data_dir, oversight, replicates=n, share=beside)
        except Exception as error:  # noqa: BLE001 (whatever it is, it is this run's alone)
            failed[i] = in_plain_words(error, n)
    if len({training.state.progress.step for training in trainings.values()}) > 1:
        message = (
            "runs that are trained together were cut at different steps, and may not end in the bits of uncut ones"
        )
        warnings.warn(message, ReproducibilityWarning, stacklevel=2)
    failed |= train_replicates(trainings, said.ask)
    return runs | {i: training.run for i, training in trainings.items()}, failed


class _Said:
    """Whether to stop, asked once in a round, so that all who are in it stop at the same step."""

    def __init__(self, stop: Stop) -> None:
        self._stop, self._said = stop, False

    def ask(self) -> None:
        """Ask."""
        self._said = self._said or self._stop()

    def __call__(self) -> bool:
        """What was said."""
        return self._said


def _outcome(task: Job, run: Run) -> JobResult:
    """Of a run that is trained; it is evaluated, if it is not yet."""
    from vaecli.evaluation.evaluate import evaluate, evaluation_path  # noqa: PLC0415 (torch)

    config, work = task.config, task.work
    try:
        path = evaluation_path(run, k=work.k, binarised=work.binarised)
        if not path.is_file():
            evaluate(run, k=work.k, binarised=work.binarised, device=config.device, data_dir=work.data_dir)
        return evaluated(config, Run(run.path), path)
    except Exception as error:  # noqa: BLE001 (whatever it is, it is this run's alone)
        return _failure(task, run, error)


def _failure(task: Job, run: Run | None, error: Exception) -> JobResult:
    what = str(error) if isinstance(error, VaecliError) else f"{type(error).__name__}: {error}"
    return JobResult(task.config, run, error=what)


def evaluated(config: Config, run: Run, path: Path) -> JobResult:
    """The outcome of a run whose evaluation stands in a file."""
    figures = json.loads(path.read_text())
    return JobResult(config, run, figures | {"seconds_per_epoch": _seconds_per_epoch(run), "path": str(path)})


def _seconds_per_epoch(run: Run) -> float:
    """The median over epochs, which a machine that was busy for a while leaves as it is."""
    seconds = [row["seconds"] for row in run.metrics if row["split"] == "train"]
    return float(np.median(np.diff(seconds, prepend=0.0)))
