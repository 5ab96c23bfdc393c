"""Many runs, several at a time: each trained and evaluated once, and none that fails takes another with it.

What is complete already is not done again, and what was cut is resumed: two runs are the same when their configs are.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

from vaecli.config.schema import Config
from vaecli.sweeps.jobs import Job, JobOptions, JobResult, Resources, done_before, tasks
from vaecli.sweeps.news import Board, Watch, ignore
from vaecli.training.stopping import Stop, never

Engine = Literal["local", "ray"]
SHARED = Resources(threads=None)
"""Every run has its share of the cores."""


def run_all(
    configs: Sequence[Config],
    work: JobOptions,
    *,
    engine: Engine = "local",
    address: str | None = None,
    jobs: int | None = None,
    resources: Resources = SHARED,
    watch: Watch = ignore,
    stop: Stop = never,
) -> tuple[JobResult, ...]:
    """Train and evaluate every config: in this process, in several, or on a Ray cluster.

    Args:
        configs: Of the runs, each different from all others.
        work: What is done with each.
        engine: `local` for this machine, `ray` for a cluster.
        address: Of the cluster, `auto` for one that runs here; None for `RAY_ADDRESS`, or one started for this.
        jobs: Runs at a time; None for one on this machine, and on a cluster for as many as it has room for.
        resources: What each run may use.
        watch: Is told of every run that begins or ends.
        stop: Is asked again and again whether to checkpoint and stop.

    Returns:
        The outcomes, in the order of the configs.

    Raises:
        DataError: Images cannot be read.
        UsageError: There is no such cluster, or none of its nodes has the resources.
        InterruptedRunError: `stop` said so; the same call goes on.
    """
    planned = dict(enumerate(tasks(configs, work)))
    board = Board(configs, watch)
    for i, task in list(planned.items()):
        outcome = done_before(task)
        if outcome is not None:
            board.ended(i, outcome)
            del planned[i]
    if planned:
        for i, outcome in _outcomes(planned, board, stop, engine, address, jobs and min(jobs, len(configs)), resources):
            board.ended(i, outcome)
    return tuple(outcome for _, outcome in sorted(board.outcomes.items()))


def _outcomes(
    planned: Mapping[int, Job],
    board: Board,
    stop: Stop,
    engine: Engine,
    address: str | None,
    jobs: int | None,
    resources: Resources,
) -> Iterator[tuple[int, JobResult]]:
    """Of all tasks, as they come."""
    if engine == "ray":
        from vaecli.sweeps.ray_driver import on_a_cluster  # noqa: PLC0415 (Ray is an extra)

        return on_a_cluster(planned, board, stop, resources, address=address, jobs=jobs)
    from vaecli.sweeps.local import in_processes, in_this_process  # noqa: PLC0415

    if jobs in {None, 1}:
        return in_this_process(planned, board, stop, resources.threads, resources.together)
    threads = resources.threads or max(1, (os.cpu_count() or 1) // jobs)
    return in_processes(planned, board, stop, jobs, threads, resources.together)
