"""Jobs on a Ray cluster, whose nodes need share no files with this machine.

A run is trained in slices: a node is sent what there is of it, trains for a while, and sends everything back. So
checkpoints and curves come to this machine while the run goes on, a node that dies takes one slice with it, which is
done again from where it began, and this machine's process may die as well: the same sweep continues from the files that
came back. A node says again and again that it is at work: a slice of which nothing was heard for long is given up with
its worker, and done again.
"""

import os
import sys
import time
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from vaecli.config.data_sets import is_array
from vaecli.config.jobs import Resources
from vaecli.config.schema import Config
from vaecli.data.sources import labels_beside
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

from vaecli.sweeps.ray_cluster import Cluster, Placement, WakingClock, connected
from vaecli.sweeps.ray_worker import Arrays, Slice, SliceResult, pack, store, train_slice, with_signs_of_life

MAX_LOSSES = 3
"""How often in a row a run is lost with its node or its process before it is given up."""
POLL = 0.2
"""Seconds between looks at what has arrived, and whether to stop."""
SILENT_INTERVALS, LEAST_PATIENCE = 10, 60.0
"""For how many intervals between two deliveries, and for how many seconds at least, nothing need be heard."""
SIGNS = 20
"""Signs of life that are due within that time."""


def run_on_cluster(
    planned: Mapping[int, Job],
    run_jobs: RunJobs,
    begin: Callable[[int], object],
    stop: Stop,
    resources: Resources,
    *,
    address: str | None = None,
    jobs: int | None = None,
    patience: float | None = None,
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
        patience: Seconds after which a silent slice is done again; None for `SILENT_INTERVALS` sync intervals.

    Raises:
        UsageError: There is no such cluster, or none of its nodes has what a run may use.
        VaecliError: The cluster has ended.
        InterruptedRunError: `stop` asked for it.
    """
    _check_devices([job.config for job in planned.values()], resources)
    if patience is None:
        patience = max(LEAST_PATIENCE, SILENT_INTERVALS * resources.sync_interval)
    with (
        redirect_stdout(sys.stderr),
        connected(address),
        Cluster(resources, jobs, patience) as cluster,
        _Driver(planned, run_jobs, resources, patience) as driver,
    ):
        waiting, slices, never_begun = deque(planned), _SentSlices(patience), Counter[int]()
        while waiting or slices.n_under_way:
            if stop():
                raise InterruptedRunError(
                    "stopped; the same command resumes every run from the last files it sent back"
                )
            cluster.check()
            for _ in range(min(len(waiting), cluster.n_slices() - slices.n_under_way)):
                i = waiting.popleft()
                sent = driver.send(i, cluster.place(never_begun[i]))
                if isinstance(sent, JobResult):
                    yield i, sent
                else:
                    slices.add(i, sent)
                    begin(i)
            for i, found in slices.listen():
                if isinstance(found, SliceResult):
                    result = driver.keep(i, found)
                else:
                    result = None if found is None else driver.note_failure(i, found)
                if result is not None:
                    yield i, result
                elif isinstance(found, SliceResult):
                    waiting.appendleft(i)
                else:
                    cluster.note_loss()
                    never_begun[i] += found is None
                    waiting.append(i)


class _Driver:
    """Send out slices of runs, and keep what comes back; hold the lock of every run that is under way."""

    def __init__(self, planned: Mapping[int, Job], run_jobs: RunJobs, resources: Resources, patience: float) -> None:
        self._jobs, self._run_jobs, self._resources = dict(planned), run_jobs, resources
        self._threads = resources.threads or 1
        self._locks: dict[int, BinaryIO] = {}
        self._losses: Counter[int] = Counter()
        self._arrays: dict[str, Arrays] = {}
        calls = 1 if resources.gpus else 0  # a process keeps the GPU that it began with, and would keep its memory
        self._seconds_per_sign = patience / SIGNS
        self._on_node = ray.remote(
            num_cpus=self._threads, num_gpus=resources.gpus, max_retries=0, max_calls=calls, num_returns="streaming"
        )(with_signs_of_life)

    def __enter__(self) -> "_Driver":
        return self

    def __exit__(self, *_: object) -> None:
        for held in self._locks.values():
            held.close()

    def send(self, i: int, place: Placement) -> "JobResult | ray.ObjectRefGenerator":
        """Have a node train a slice of a run; return what it sends, or the job's result where that is not possible."""
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
            arrays=self._files_of(job.config.data.name),
        )
        on_node = self._on_node.options(scheduling_strategy=place)
        return on_node.remote(train_slice, work, self._run_jobs, self._seconds_per_sign)

    def note_failure(self, i: int, error: Exception) -> JobResult | None:
        """Return the result of a job that failed on a node; None if its slice was lost and is to be done again."""
        job = self._jobs[i]
        cause = error.cause if isinstance(error, RayTaskError) else None
        if cause is not None and not isinstance(cause, OSError):  # of the system, as a full disk, it is the node's own
            return self._end(i, JobResult(job.config, job.run, error=f"{type(cause).__name__}: {cause}"))
        self._losses[i] += 1
        if self._losses[i] < MAX_LOSSES:
            return None
        why = f"lost {MAX_LOSSES} times in a row: {str(cause or error).strip().splitlines()[0]}"
        return self._end(i, JobResult(job.config, job.run, error=why))

    def keep(self, i: int, found: SliceResult) -> JobResult | None:
        """Keep what a node sent back; return None if there is more to be done."""
        self._losses[i] = 0
        for message in found.warnings:
            warnings.warn(message, ReproducibilityWarning, stacklevel=2)
        result = self._store(i, found)
        return None if result is None else self._end(i, result)

    def _store(self, i: int, found: SliceResult) -> JobResult | None:
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

    def _files_of(self, name: str) -> Arrays:
        """Put the user's own images, and their labels, where every node can have them, once."""
        if name not in self._arrays:
            files = [Path(name)] if is_array(name) else []
            files += [labels for labels in map(labels_beside, files) if labels]
            sent = [(str(f), str(fingerprint(str(f))), ray.put(np.fromfile(f, np.uint8))) for f in files]
            self._arrays[name] = tuple(sent)
        return self._arrays[name]


@dataclass
class _SentSlice:
    """Describe a slice that was sent out, and what has been heard of it."""

    i: int
    stream: Any
    """What the node sends: signs of life, then a result or an error."""
    awaited: Any
    """The stream, or a reference to what is on its way; once it is settled, a reference to its end."""
    heard_at: float
    has_begun: bool = False
    is_settled: bool = False
    """Whether its result has come, or it was given up. Its worker's core is free only once it has ended."""
    has_ended: bool = False


class _SentSlices:
    """Listen to all slices that were sent out, and give up those that fall silent."""

    def __init__(self, patience: float) -> None:
        self._slices: list[_SentSlice] = []
        self._patience, self._clock = patience, WakingClock()

    @property
    def n_under_way(self) -> int:
        """Return how many slices have neither come back nor been given up."""
        return sum(not sent.is_settled for sent in self._slices)

    def add(self, i: int, stream: Any) -> None:
        """Listen to one more."""
        self._slices.append(_SentSlice(i, stream, stream, self._clock.look()))

    def listen(self) -> Iterator[tuple[int, SliceResult | Exception | None]]:
        """Yield what has come back: a result or an error; None for a slice that never began, to be sent again."""
        awaited = [sent.awaited for sent in self._slices]
        if not awaited:
            time.sleep(POLL)
        ready = set(ray.wait(awaited, num_returns=len(awaited), timeout=POLL)[0]) if awaited else set()
        now = self._clock.look()
        for sent in self._slices:
            found: SliceResult | Exception | None = None
            if sent.awaited in ready:
                sent.heard_at = now
                sent.has_ended = sent.is_settled
                found = None if sent.is_settled else self._read(sent)
                if found is None:
                    continue
            elif now - sent.heard_at > self._patience:
                sent.heard_at = now
                ray.cancel(sent.stream, force=True)
                found = TimeoutError(f"its worker was silent for {self._patience:g} s") if sent.has_begun else None
            else:
                continue
            if not sent.is_settled:
                sent.is_settled = True
                sent.awaited = sent.stream.completed()  # asking the stream for its end could block
                yield sent.i, found
        self._slices = [sent for sent in self._slices if not sent.has_ended]

    @staticmethod
    def _read(sent: _SentSlice) -> SliceResult | Exception | None:
        """Read what has arrived; return None where it is signs of life only."""
        found: SliceResult | Exception | None = None
        while found is None and ray.wait([sent.awaited], timeout=0)[0]:
            if sent.awaited is sent.stream:
                sent.awaited = next(sent.stream)
                continue
            try:
                found = ray.get(sent.awaited)
                sent.has_begun = True
            except RayError as error:
                found = error
            sent.awaited = sent.stream
        return found


def _check_devices(configs: Sequence[Config], resources: Resources) -> None:
    if not resources.gpus and any(config.device.startswith("cuda") for config in configs):
        raise UsageError("device: a run on CUDA needs resources.gpus: on a cluster it sees no others")
