"""Running a sweep: each job once, several at a time, and none that fails takes another with it.

What is complete is not done again, and what was cut is resumed: two runs are the same when their configs are.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from vaecli.config.jobs import OF_MANY_RUNS, EvaluationSpec, Resources
from vaecli.config.schema import Config
from vaecli.data.summaries import fingerprint
from vaecli.stages import StageCallback, stoppable
from vaecli.sweeps.jobs import finished_result, run_jobs
from vaecli.sweeps.manifest import manifest_of, output_directory
from vaecli.sweeps.sweep import (
    SHARED_CORES,
    JobOptions,
    JobResult,
    Sweep,
    SweepCallback,
    SweepResult,
    SweepUpdate,
    comparison,
    plan_jobs,
)
from vaecli.training.stopping import Stop, never

Engine = Literal["local", "ray"]


def compare(
    base: Config,
    decoders: Sequence[str],
    n_seeds: int,
    out: Path,
    *,
    runs_dir: Path,
    data_dir: Path | None = None,
    jobs: int = 1,
    evaluation: EvaluationSpec = OF_MANY_RUNS,
    callback: SweepCallback | None = None,
    stop: Stop = never,
) -> SweepResult:
    """Train and evaluate every decoder with every seed; what is complete is not done again.

    Args:
        base: The config that all share; its seed is the first.
        decoders: Names of `LIKELIHOODS`.
        n_seeds: How many seeds, counted up from the base's.
        out: The output directory; its manifest says which comparison it holds.
        runs_dir: Where the runs are looked for and made.
        data_dir: As for `train`.
        jobs: Runs at a time, each in a process with its share of the cores.
        evaluation: How each run is evaluated.
        callback: As for `run_sweep`.
        stop: As for `run_sweep`.

    Raises:
        UsageError: The directory holds another comparison; otherwise as for `run_sweep`.
    """
    sweep = comparison(base, decoders, n_seeds, evaluation)
    found = run_sweep(sweep, out, runs_dir=runs_dir, data_dir=data_dir, jobs=jobs, callback=callback, stop=stop)
    in_order = sorted(found.results, key=lambda result: (list(decoders).index(result.decoder), result.seed))
    return replace(found, results=tuple(in_order))


def run_sweep(
    sweep: Sweep,
    out: Path,
    *,
    runs_dir: Path,
    data_dir: Path | None = None,
    engine: Engine = "local",
    address: str | None = None,
    jobs: int | None = None,
    callback: SweepCallback | None = None,
    stop: Stop = never,
) -> SweepResult:
    """Train and evaluate what of a sweep is missing.

    Args:
        sweep: From `load_sweep`.
        out: The output directory; its manifest says which sweep it holds.
        runs_dir: Where the runs are looked for and made.
        data_dir: As for `train`.
        engine: As for `run_configs`.
        address: As for `run_configs`.
        jobs: As for `run_configs`.
        callback: Is called with a `SweepUpdate` whenever a run begins or ends, and as the sweep is prepared.
        stop: Is asked again and again whether to checkpoint and stop.

    Raises:
        UsageError: The directory holds another sweep or is in use, or the cluster is not there or too small.
        DataError: The images cannot be read.
        VaecliError: The directory cannot be written.
        InterruptedRunError: `stop` asked for it; the same call continues.
    """
    on_stage = _preparation(sweep.configs, callback, stop)
    names = dict.fromkeys(config.data.name for config in (sweep.base, *sweep.configs))
    checksums = {name: fingerprint(name, on_stage) for name in names}  # who misspelled one may name it anew
    with output_directory(out, sweep.kind, manifest_of(sweep, checksums[sweep.base.data.name])):
        results = run_configs(
            sweep.configs,
            JobOptions(runs_dir, data_dir, sweep.evaluation, sweep.further, extend=sweep.extend),
            engine=engine,
            address=address,
            jobs=jobs,
            resources=sweep.resources,
            callback=callback,
            stop=stop,
        )
    return SweepResult(sweep, results, data_dir)


def _preparation(configs: Sequence[Config], callback: SweepCallback | None, stop: Stop) -> StageCallback:
    """Return what tells the callback what is done before the first run, and ends that when it is asked to stop."""

    def show(stage: str, done: int, total: int) -> None:
        if callback is not None:
            callback(SweepUpdate(configs, (), (), None, (stage, done, total)))

    return stoppable(show, stop)


class SweepTracker:
    """Track which jobs are running and which have ended, and how long the rest may take.

    Args:
        configs: Of all runs.
        callback: Is called whenever a run begins or ends.
    """

    def __init__(self, configs: Sequence[Config], callback: SweepCallback | None) -> None:
        self._configs, self._callback = configs, callback
        self.results: dict[int, JobResult] = {}
        self.running = set[int]()
        self._in_order: list[JobResult] = []
        self._n_worked_on = 0
        """Results that were not there before."""
        self._began_at: float | None = None
        self._update()

    def begin(self, i: int) -> None:
        """Note that a job is being worked on."""
        self._began_at = time.monotonic() if self._began_at is None else self._began_at
        self.running.add(i)
        self._update()

    def end(self, i: int, result: JobResult) -> None:
        """Note that a job has ended."""
        self._n_worked_on += i in self.running
        self.running.discard(i)
        self.results[i] = result
        self._in_order.append(result)
        self._update()

    def _update(self) -> None:
        if self._callback is not None:
            self._callback(SweepUpdate(self._configs, self._in_order, sorted(self.running), self._seconds_left()))

    def _seconds_left(self) -> float | None:
        """Extrapolate the pace since the first job began; what is running counts as half done."""
        if not self._n_worked_on or self._began_at is None:
            return None
        half = len(self.running) / 2
        left = len(self._configs) - len(self.results) - half
        return (time.monotonic() - self._began_at) / (self._n_worked_on + half) * left


def run_configs(
    configs: Sequence[Config],
    options: JobOptions,
    *,
    engine: Engine = "local",
    address: str | None = None,
    jobs: int | None = None,
    resources: Resources = SHARED_CORES,
    callback: SweepCallback | None = None,
    stop: Stop = never,
) -> tuple[JobResult, ...]:
    """Train and evaluate every config, here or on a Ray cluster; return the results in the order of the configs.

    Args:
        configs: Of the runs, each different from all others.
        options: What is done with each.
        engine: `local` for this machine, `ray` for a cluster.
        address: Of the cluster, `auto` for one that runs here; None for `RAY_ADDRESS`, or one started for this.
        jobs: Runs at a time; None for one on this machine, and on a cluster for as many as it has room for.
        resources: What each run may use.
        callback: As for `run_sweep`.
        stop: As for `run_sweep`.
    """
    planned = dict(enumerate(plan_jobs(configs, options, _preparation(configs, callback, stop))))
    tracker = SweepTracker(configs, callback)
    for i, job in list(planned.items()):
        result = finished_result(job)
        if result is not None:
            tracker.end(i, result)
            del planned[i]
    jobs = jobs and min(jobs, len(configs))
    results: Iterator[tuple[int, JobResult]] = iter(())
    if planned and engine == "ray":
        from vaecli.sweeps.ray_driver import run_on_cluster  # noqa: PLC0415 (Ray is an extra)

        results = run_on_cluster(planned, run_jobs, tracker.begin, stop, resources, address=address, jobs=jobs)
    elif planned:
        from vaecli.sweeps.local import run_here, run_in_processes  # noqa: PLC0415

        if jobs in {None, 1}:
            results = run_here(planned, run_jobs, tracker.begin, stop, resources)
        else:
            results = run_in_processes(planned, run_jobs, tracker.begin, stop, resources, jobs)
    for i, result in results:
        tracker.end(i, result)
    return tuple(result for _, result in sorted(tracker.results.items()))
