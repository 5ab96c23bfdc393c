"""Jobs on a Ray cluster, whose nodes need share no files with this machine.

A run is trained in slices: a node is sent what there is of it, trains for a while, and sends everything back. So
checkpoints and curves come to this machine while the run goes on, a node that dies takes one slice with it, which is
done again from where it began, and this machine's process may die as well: the same sweep continues from the files that
came back.
"""

import logging
import os
import signal
import socket
import sys
import threading
import time
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import replace
from typing import Any, BinaryIO

import numpy as np

from vaecli.config.jobs import Resources
from vaecli.config.schema import Config, is_array
from vaecli.data.summaries import fingerprint
from vaecli.errors import InterruptedRunError, ReproducibilityWarning, UsageError
from vaecli.files import lock, remove_temporary_files
from vaecli.runs.run import LOCK
from vaecli.sweeps.sweep import Job, JobResult, RunJobs
from vaecli.training.stopping import Stop

os.environ.setdefault("RAY_NUM_REDIS_GET_RETRIES", "1")  # read on import; 20 would be a quarter of an hour
try:
    import ray
    from ray.exceptions import RayError, RayTaskError
except ImportError as error:
    raise UsageError("--engine ray needs Ray; install it with: pip install 'vaecli[ray]'") from error

from vaecli.sweeps.ray_worker import Slice, SliceResult, pack, store, train_slice

MAX_LOSSES = 3
"""How often in a row a run is lost with its node or its process before it is given up."""
POLL = 0.2
"""Seconds between looks at what has arrived, and whether to stop."""
SECONDS_TO_ANSWER = 5.0
"""How long a cluster whose address is named has to answer."""
SECONDS_PER_COUNT = 5.0
"""The time between counts of the cluster's nodes, which come and go."""


def run_on_cluster(
    planned: Mapping[int, Job],
    run_jobs: RunJobs,
    begin: Callable[[int], object],
    stop: Stop,
    resources: Resources,
    *,
    address: str | None = None,
    jobs: int | None = None,
) -> Iterator[tuple[int, JobResult]]:
    """Yield every result as it comes. While connected, what Ray prints goes to stderr: stdout is for results.

    Args:
        planned: The jobs; `runs_dir` is on this machine, `data_dir` on every node.
        run_jobs: Does a job, on a node.
        begin: Is called with the number of a job that a node starts to work on.
        stop: Is asked again and again whether to stop.
        resources: What each run may use.
        address: As for `run_configs`.
        jobs: Runs at a time; None for as many as there is room for.

    Raises:
        UsageError: There is no such cluster, or none of its nodes has what a run may use.
        InterruptedRunError: `stop` asked for it.
    """
    _check_devices([job.config for job in planned.values()], resources)
    with redirect_stdout(sys.stderr), _connected(address), _Driver(planned, run_jobs, resources) as driver:
        room = _Room(resources, jobs)
        waiting, under_way = deque(planned), dict[Any, int]()
        while waiting or under_way:
            if stop():
                raise InterruptedRunError(
                    "stopped; the same command resumes every run from the last files it sent back"
                )
            most = room.n_slices()
            while waiting and len(under_way) < most:
                i = waiting.popleft()
                sent = driver.send(i)
                if isinstance(sent, JobResult):
                    yield i, sent
                else:
                    under_way[sent] = i
                    begin(i)
            arrived, _ = ray.wait([*under_way], num_returns=len(under_way), timeout=POLL) if under_way else ([], [])
            for reference in arrived:
                i = under_way.pop(reference)
                result = driver.receive(i, reference)
                if result is None:
                    waiting.appendleft(i)
                else:
                    yield i, result


class _Driver:
    """Send out slices of runs, and keep what comes back; hold the lock of every run that is under way."""

    def __init__(self, planned: Mapping[int, Job], run_jobs: RunJobs, resources: Resources) -> None:
        self._jobs, self._run_jobs, self._resources = dict(planned), run_jobs, resources
        self._threads = resources.threads or 1
        self._locks: dict[int, BinaryIO] = {}
        self._losses: Counter[int] = Counter()
        self._arrays: dict[str, tuple[str, Any]] = {}
        calls = 1 if resources.gpus else 0  # a process keeps the GPU that it began with, and would keep its memory
        on_node = ray.remote(num_cpus=self._threads, num_gpus=resources.gpus, max_retries=0, max_calls=calls)
        self._train_slice = on_node(train_slice)

    def __enter__(self) -> "_Driver":
        return self

    def __exit__(self, *_: object) -> None:
        for held in self._locks.values():
            held.close()

    def send(self, i: int) -> "JobResult | ray.ObjectRef[SliceResult]":
        """Have a node train a slice of a run; return the job's result at once where that is not possible."""
        job = self._jobs[i]
        run, options = job.run, job.options
        try:
            if run is not None and i not in self._locks:
                self._locks[i] = lock(run.path / LOCK)
                remove_temporary_files(run.path)
            files = None if run is None else pack(run)
        except BlockingIOError:
            where = "" if run is None else run.path
            return self._end(i, JobResult(job.config, run, error=f"{where}: is being trained by another process"))
        except OSError as error:
            return self._end(i, JobResult(job.config, run, error=f"{error.filename}: {error.strerror}"))
        data_dir = None if options.data_dir is None else options.data_dir.absolute()
        work = Slice(
            config=job.config,
            options=replace(options, data_dir=data_dir),
            name="" if run is None else run.name,
            files=files,
            threads=self._threads,
            gpus=self._resources.gpus,
            seconds=self._resources.sync_interval,
            command=tuple(sys.argv),
            array=self._array(job.config.data.name),
        )
        return self._train_slice.remote(work, self._run_jobs)

    def receive(self, i: int, reference: "ray.ObjectRef[SliceResult]") -> JobResult | None:
        """Keep what a node sent back; return None if there is more to be done."""
        job = self._jobs[i]
        try:
            found: SliceResult = ray.get(reference)
        except RayTaskError as error:
            return self._end(i, JobResult(job.config, job.run, error=f"{type(error.cause).__name__}: {error.cause}"))
        except RayError as error:
            self._losses[i] += 1
            if self._losses[i] < MAX_LOSSES:
                return None
            why = f"lost {MAX_LOSSES} times in a row: {str(error).strip().splitlines()[0]}"
            return self._end(i, JobResult(job.config, job.run, error=why))
        self._losses[i] = 0
        for message in found.warnings:
            warnings.warn(message, ReproducibilityWarning, stacklevel=2)
        result = self._keep(i, found)
        return None if result is None else self._end(i, result)

    def _keep(self, i: int, found: SliceResult) -> JobResult | None:
        """Store the files of a run; return the job's result if it is complete."""
        job = self._jobs[i]
        run = job.run
        if found.files is not None:
            run = store(found.files, run, job.options.runs_dir / (job.config.name or "default"), found.name)
            self._jobs[i] = replace(job, run=run)
        if found.error is not None:
            return JobResult(job.config, run, error=found.error)
        if found.evaluation is None or run is None:
            return None
        return JobResult.read(job.config, run, run.path / found.evaluation)

    def _end(self, i: int, result: JobResult) -> JobResult:
        held = self._locks.pop(i, None)
        if held is not None:
            held.close()
        return result

    def _array(self, name: str) -> tuple[str, Any] | None:
        """Put the user's own images where every node can have them, once."""
        if not is_array(name):
            return None
        if name not in self._arrays:
            self._arrays[name] = str(fingerprint(name)), ray.put(np.fromfile(name, np.uint8))
        return self._arrays[name]


class _Room:
    """Count how many runs the cluster has room for, again now and then, since nodes come and go."""

    def __init__(self, resources: Resources, jobs: int | None) -> None:
        self._resources, self._jobs = resources, jobs
        self._count()
        if self._found == 0:
            gpus = f" and {resources.gpus:g} of a GPU" if resources.gpus else ""
            raise UsageError(f"resources: no node of the cluster has {resources.threads or 1} of a CPU{gpus} for a run")

    def n_slices(self) -> int:
        """Return how many slices to have sent: some more than there is room for, so that no node waits."""
        if time.monotonic() - self._counted_at > SECONDS_PER_COUNT:
            self._count()
        room = self._found + max(1, self._found // 4)
        return room if self._jobs is None else min(self._jobs, room)

    def _count(self) -> None:
        nodes: list[dict[str, Any]] = ray.nodes()
        self._counted_at = time.monotonic()
        self._found = sum([self._on(node["Resources"]) for node in nodes if node["Alive"]])

    def _on(self, node: Mapping[str, float]) -> int:
        room = node.get("CPU", 0.0) // (self._resources.threads or 1)
        if self._resources.gpus:
            room = min(room, node.get("GPU", 0.0) // self._resources.gpus)
        return int(room)


def _check_devices(configs: Sequence[Config], resources: Resources) -> None:
    if not resources.gpus and any(config.device.startswith("cuda") for config in configs):
        raise UsageError("device: a run on CUDA needs resources.gpus: on a cluster it sees no others")


@contextmanager
def _connected(address: str | None) -> Iterator[None]:
    """Connect to Ray for as long as needed; if it was connected before, it stays so. Raises UsageError."""
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    on_main_thread = threading.current_thread() is threading.main_thread()
    on_term = signal.getsignal(signal.SIGTERM)
    try:
        _check_answers(address)
        ray.init(address, logging_level=logging.ERROR, log_to_driver=False)
    except (OSError, ValueError, RuntimeError) as error:
        raise UsageError(f"--address {address}: no Ray cluster answers there ({error})") from error
    if on_main_thread:
        signal.signal(signal.SIGTERM, on_term)  # Ray has put its own in place
    try:
        yield
    finally:
        ray.shutdown()


def _check_answers(address: str) -> None:
    """Check that somebody listens at host:port, since Ray would wait for minutes. Raises OSError or ValueError."""
    host, colon, port = address.rpartition("://")[2].rpartition(":")
    if colon:
        socket.create_connection((host.strip("[]"), int(port)), timeout=SECONDS_TO_ANSWER).close()
