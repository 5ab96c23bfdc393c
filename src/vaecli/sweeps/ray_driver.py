"""Many runs on a Ray cluster, whose nodes need share no files with this machine.

A run goes in legs: a node is given what there is of it, trains for a while, and gives everything back. So checkpoints
and curves come to this machine while the run goes on, a node that dies takes one leg with it, which is done again from
where it began, and this machine's process may die as well: the same sweep goes on from what has been delivered.
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
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, BinaryIO

import numpy as np

from vaecli.config.schema import Config, is_array
from vaecli.data.sources import fingerprint
from vaecli.errors import InterruptedRunError, ReproducibilityWarning, UsageError
from vaecli.files import lock, remove_temporary_files
from vaecli.runs.archive import pack, store
from vaecli.runs.run import LOCK
from vaecli.sweeps.jobs import Job, JobResult, Resources, evaluated
from vaecli.sweeps.news import Board
from vaecli.training.stopping import Stop

os.environ.setdefault("RAY_NUM_REDIS_GET_RETRIES", "1")  # read on import; 20 would be a quarter of an hour
try:
    import ray
    from ray.exceptions import RayError, RayTaskError
except ImportError as error:
    raise UsageError("--engine ray needs Ray; install it with: pip install 'vaecli[ray]'") from error

from vaecli.sweeps.ray_worker import Delivery, Leg, do_leg

LOSSES = 3
"""How often in a row a run is lost with its node or its process before it is given up."""
POLL = 0.2
"""Seconds between looks at what has arrived, and whether to stop."""
SECONDS_TO_ANSWER = 5.0
"""Given to a cluster whose address is named."""
SECONDS_PER_COUNT = 5.0
"""Between counts of the cluster's nodes, which come and go."""


def on_a_cluster(
    planned: Mapping[int, Job],
    board: Board,
    stop: Stop,
    resources: Resources,
    *,
    address: str | None = None,
    jobs: int | None = None,
) -> Iterator[tuple[int, JobResult]]:
    """Every outcome as it comes.

    Args:
        planned: What is to be done; `runs_dir` is on this machine, `data_dir` on every node.
        board: Is told what begins.
        stop: Is asked again and again whether to stop.
        resources: What each run may use.
        address: As for `run_all`.
        jobs: Runs at a time; None for as many as there is room for.

    Raises:
        UsageError: There is no such cluster, or none of its nodes has what a run may use.
        InterruptedRunError: `stop` said so.
    """
    _check_devices([task.config for task in planned.values()], resources)
    with _connected(address), _Driver(planned, resources) as driver:
        room = _Room(resources, jobs)
        waiting, under_way = deque(planned), dict[Any, int]()
        while waiting or under_way:
            if stop():
                raise InterruptedRunError("stopped; the same command goes on from what each run has delivered")
            most = room.in_hand()
            while waiting and len(under_way) < most:
                i = waiting.popleft()
                sent = driver.send(i)
                if isinstance(sent, JobResult):
                    yield i, sent
                else:
                    under_way[sent] = i
                    board.began(i)
            arrived, _ = ray.wait([*under_way], num_returns=len(under_way), timeout=POLL) if under_way else ([], [])
            for reference in arrived:
                i = under_way.pop(reference)
                outcome = driver.receive(i, reference)
                if outcome is None:
                    waiting.appendleft(i)
                else:
                    yield i, outcome


class _Driver:
    """This machine's part: sends out legs, and keeps what they bring. While a run is under way, it holds its lock."""

    def __init__(self, planned: Mapping[int, Job], resources: Resources) -> None:
        self._tasks, self._resources = dict(planned), resources
        self._threads = resources.threads or 1
        self._locks: dict[int, BinaryIO] = {}
        self._losses: Counter[int] = Counter()
        self._arrays: dict[str, tuple[str, Any]] = {}
        calls = 1 if resources.gpus else 0  # a process keeps the GPU that it began with, and would keep its memory
        self._leg = ray.remote(num_cpus=self._threads, num_gpus=resources.gpus, max_retries=0, max_calls=calls)(do_leg)

    def __enter__(self) -> "_Driver":
        return self

    def __exit__(self, *_: object) -> None:
        for held in self._locks.values():
            held.close()

    def send(self, i: int) -> "JobResult | ray.ObjectRef[Delivery]":
        """Have a node do a leg of a run; the outcome, if another process has it."""
        task = self._tasks[i]
        run = task.known
        try:
            if run is not None and i not in self._locks:
                self._locks[i] = lock(run.path / LOCK)
                remove_temporary_files(run.path)
            files = None if run is None else pack(run)
        except BlockingIOError:
            where = "" if run is None else run.path
            return self._end(i, JobResult(task.config, run, error=f"{where}: is being trained by another process"))
        except OSError as error:
            return self._end(i, JobResult(task.config, run, error=f"{error.filename}: {error.strerror}"))
        data_dir = task.work.data_dir
        return self._leg.remote(
            Leg(
                config=task.config,
                work=replace(task.work, data_dir=None if data_dir is None else data_dir.absolute()),
                name="" if run is None else run.name,
                files=files,
                threads=self._threads,
                gpus=self._resources.gpus,
                seconds=self._resources.seconds_per_delivery,
                command=tuple(sys.argv),
                array=self._array(task.config.data.name),
            )
        )

    def receive(self, i: int, reference: "ray.ObjectRef[Delivery]") -> JobResult | None:
        """Keep what a node has delivered; None if there is more to be done."""
        task = self._tasks[i]
        try:
            delivery: Delivery = ray.get(reference)
        except RayTaskError as error:
            return self._end(
                i, JobResult(task.config, task.known, error=f"{type(error.cause).__name__}: {error.cause}")
            )
        except RayError as error:
            self._losses[i] += 1
            if self._losses[i] < LOSSES:
                return None
            why = f"lost {LOSSES} times in a row: {str(error).strip().splitlines()[0]}"
            return self._end(i, JobResult(task.config, task.known, error=why))
        self._losses[i] = 0
        for note in delivery.notes:
            warnings.warn(note, ReproducibilityWarning, stacklevel=2)
        run = task.known
        if delivery.files is not None:
            run = store(delivery.files, run, task.work.runs_dir / (task.config.name or "default"), delivery.name)
            self._tasks[i] = replace(task, known=run)
        if delivery.error is not None:
            return self._end(i, JobResult(task.config, run, error=delivery.error))
        if delivery.evaluation is not None and run is not None:
            return self._end(i, evaluated(task.config, run, run.path / delivery.evaluation))
        return None

    def _end(self, i: int, outcome: JobResult) -> JobResult:
        held = self._locks.pop(i, None)
        if held is not None:
            held.close()
        return outcome

    def _array(self, name: str) -> tuple[str, Any] | None:
        """The user's own images, put where every node can have them, once."""
        if not is_array(name):
            return None
        if name not in self._arrays:
            self._arrays[name] = str(fingerprint(name)), ray.put(np.fromfile(name, np.uint8))
        return self._arrays[name]


class _Room:
    """How many runs the cluster has room for, counted anew now and then: nodes come and go."""

    def __init__(self, resources: Resources, jobs: int | None) -> None:
        self._resources, self._jobs = resources, jobs
        self._count()
        if self._found == 0:
            gpus = f" and {resources.gpus:g} of a GPU" if resources.gpus else ""
            raise UsageError(f"resources: no node of the cluster has {resources.threads or 1} of a CPU{gpus} for a run")

    def in_hand(self) -> int:
        """Runs to have sent: some more than can be worked on, so that no node waits for this machine."""
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
    """Ray, connected for as long as needed; if it was before, it stays so. Raises UsageError."""
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
        raise UsageError(f"--address {address}: no Ray cluster is to be had there ({error})") from error
    if on_main_thread:
        signal.signal(signal.SIGTERM, on_term)  # Ray has put its own in place
    try:
        yield
    finally:
        ray.shutdown()


def _check_answers(address: str) -> None:
    """See that somebody listens at host:port, for Ray itself would wait for minutes. Raises OSError or ValueError."""
    host, colon, port = address.rpartition("://")[2].rpartition(":")
    if colon:
        socket.create_connection((host.strip("[]"), int(port)), timeout=SECONDS_TO_ANSWER).close()
