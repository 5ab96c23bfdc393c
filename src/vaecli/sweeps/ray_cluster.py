"""The Ray cluster that runs are trained on: connecting to it, its room for runs, and whether it is still there."""

import atexit
import logging
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, Literal

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from vaecli.config.jobs import Resources
from vaecli.errors import UsageError, VaecliError

SECONDS_TO_ANSWER = 5.0
"""How long a cluster whose address is named has to answer."""
SECONDS_TO_LEAVE = 15.0
"""How long the end of a connection may take; of one to a cluster that does not answer it could be for ever."""
SECONDS_PER_COUNT = 5.0
"""The time between counts of the cluster's nodes, which come and go."""
SECONDS_TO_END = 2.0
"""How long after an error of a connection the process at its other end may take to be gone."""
MOST_BETWEEN_LOOKS = 2.0
"""Seconds that count between two looks at a clock."""
SECONDS_GONE = 20.0
"""How long nobody may listen at the head's address: a head that is slow does, and Ray ends this process after 60."""
Placement = Literal["DEFAULT"] | NodeAffinitySchedulingStrategy
"""Where a slice goes: wherever Ray thinks best, or to one node."""
REMEDY = "start Ray again, and the same command resumes every run from the last files it sent back"
WITNESS = """
import os, select, sys
raylet, message = int(sys.argv[1]), sys.argv[2]
select.select([0, raylet], [], [])
if select.select([0], [], [], 60)[0] and not os.read(0, 1) and select.select([raylet], [], [], 0.1)[0]:
    os.write(2, message.encode())
"""
"""The program of a process that says in place of this one that Ray has ended: Ray's library ends a process that is just
using what is gone, at once and without a word. It is silent if told to be, or where this process ended before Ray."""
AT_END = ExitStack()
"""What is done before this process ends, if Ray lets it."""
atexit.register(AT_END.close)


@contextmanager
def connected(address: str | None) -> Iterator[None]:
    """Connect to Ray for as long as needed; if it was connected before, it stays so. Raises UsageError."""
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    if address.startswith("ray://"):
        raise UsageError(f"--address {address}: name the head as host:port, on a machine that is a node of the cluster")
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
        _disconnect()


def _disconnect() -> None:
    """Leave the cluster; one that does not answer is not waited for, neither here nor at the end of this process."""
    leaving = threading.Thread(target=ray.shutdown, daemon=True)
    leaving.start()
    leaving.join(SECONDS_TO_LEAVE)
    if leaving.is_alive():
        atexit.unregister(ray.shutdown)
        atexit.register(_end_at_once)


def _end_at_once() -> None:
    """End this process without Ray's own end, which would wait for the cluster, or crash."""
    AT_END.close()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(1)


def _check_answers(address: str) -> None:
    """Check that somebody listens at host:port, since Ray would wait for minutes. Raises OSError or ValueError."""
    host, colon, port = address.rpartition("://")[2].rpartition(":")
    if colon:
        socket.create_connection((host.strip("[]"), int(port)), timeout=SECONDS_TO_ANSWER).close()


def _watch_owner(path: str) -> int | None:
    """Return a descriptor by which the end of the process that listens at a socket is seen; None but on Linux."""
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(path)
            (pid,) = struct.unpack("i8x", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        return os.pidfd_open(pid)
    except (OSError, AttributeError):
        return None


class WakingClock:
    """Count seconds of which this process was awake: a long time between two looks counts as a short one.

    So whoever was stopped, or waited for a slow disk, does not take others for silent whom it has not listened to.
    """

    def __init__(self) -> None:
        self.now = 0.0
        self._looked_at = time.monotonic()

    def look(self) -> float:
        """Return the seconds, counted up to now."""
        looked_at = time.monotonic()
        self.now += min(looked_at - self._looked_at, MOST_BETWEEN_LOOKS)
        self._looked_at = looked_at
        return self.now


class Cluster:
    """Ask the cluster again and again which nodes it has: how many runs there is room for, and whether it is there.

    A thread asks, since a head that is frozen never answers.

    Args:
        resources: What each run may use.
        jobs: Runs at a time; None for as many as there is room for.
        patience: Seconds for which the head may be silent.

    Raises:
        UsageError: No node has what a run may use.
    """

    def __init__(self, resources: Resources, jobs: int | None, patience: float) -> None:
        self._resources, self._jobs, self._patience = resources, jobs, patience
        context = ray.get_runtime_context()
        self._address, self._own_node = context.gcs_address, context.get_node_id()
        self._clock, self._heard_at, self._heard = WakingClock(), 0.0, 0
        self._n_answers, self._n_needed, self._turn = 0, 0, 0
        self._is_refused = False
        self._count()
        if self._found == 0:
            gpus = f" and {resources.gpus:g} of a GPU" if resources.gpus else ""
            raise UsageError(f"resources: no node of the cluster has {resources.threads or 1} of a CPU{gpus} for a run")
        sockets = [node["RayletSocketName"] for node in ray.nodes() if node["NodeID"] == self._own_node]
        self._raylet = _watch_owner(*sockets)
        self._ended = f"Ray has ended on this machine (its head is {self._address}); {REMEDY}"
        self._witness = ExitStack()
        self._left, self._asked = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._ask, daemon=True)

    def __enter__(self) -> "Cluster":
        self._thread.start()
        if self._raylet is not None:
            witness = subprocess.Popen(  # noqa: S603 (the program is above)
                [sys.executable, "-ISc", WITNESS, str(self._raylet), f"vae: {self._ended}\n"],
                stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, pass_fds=[self._raylet], start_new_session=True,
            )  # fmt: skip
            self._witness.callback(witness.communicate, b"\n")
            AT_END.callback(self._witness.close)
        return self

    def __exit__(self, kind: object, error: BaseException | None, where: object) -> None:
        self._left.set()
        self._asked.set()
        self._thread.join(SECONDS_TO_ANSWER)
        try:
            if isinstance(error, Exception) and not isinstance(error, VaecliError):
                self._has_raylet_ended(SECONDS_TO_END)
                self.check()  # Ray's own errors do not say that it has ended
        finally:
            if not self._has_raylet_ended():
                self._witness.close()
            if self._raylet is not None:
                os.close(self._raylet)

    def n_slices(self) -> int:
        """Return how many slices to have sent: some more than there is room for, so that no node waits."""
        if self._n_answers < self._n_needed:
            return 0  # where all of Ray has ended, every slice would be lost at once
        room = self._found + max(1, self._found // 4)
        return room if self._jobs is None else min(self._jobs, room)

    def place(self, n_failures: int) -> Placement:
        """Choose where a slice goes that has failed to begin so many times: each time to the next node, by name.

        Ray may have asked a frozen node for a place, and asks no other on behalf of the same kind of task until it has
        an answer, which takes minutes; a task for a named node is of a kind of its own.
        """
        nodes = self._nodes  # another thread replaces it
        if n_failures == 0 or not nodes:
            return "DEFAULT"
        self._turn += 1  # so that slices of one run, and of many, are spread over all
        return NodeAffinitySchedulingStrategy(nodes[self._turn % len(nodes)], soft=True)

    def note_loss(self) -> None:
        """Send no more slices until the cluster has answered again."""
        self._n_needed = self._n_answers + 1
        self._asked.set()

    def check(self) -> None:
        """Raise VaecliError where the cluster has ended, or this machine's part of it, without which nothing comes."""
        if not self._has_own_node or self._has_raylet_ended():
            raise VaecliError(self._ended)
        now = self._clock.look()
        if self._heard != self._n_answers:
            self._heard, self._heard_at = self._n_answers, now
        silent = now - self._heard_at
        if self._is_refused and silent > SECONDS_GONE:
            raise VaecliError(f"the Ray cluster has ended: nobody listens at {self._address}; {REMEDY}")
        if silent > self._patience:
            raise VaecliError(f"the head of the Ray cluster, {self._address}, is silent for {silent:.0f} s; {REMEDY}")

    def _has_raylet_ended(self, within: float = 0.0) -> bool:
        return self._raylet is not None and bool(select.select([self._raylet], [], [], within)[0])

    def _ask(self) -> None:
        while not self._left.is_set():
            self._asked.clear()
            try:
                _check_answers(self._address)
                self._count()
                self._is_refused = False
            except ConnectionRefusedError:
                self._is_refused = True
            except Exception:  # noqa: BLE001 (no answer, whatever the reason)
                self._is_refused = False
            self._asked.wait(min(SECONDS_PER_COUNT, self._patience / 4))

    def _count(self) -> None:
        nodes: list[dict[str, Any]] = ray.nodes()
        alive = [node for node in nodes if node["Alive"]]
        self._found = sum(self._on(node["Resources"]) for node in alive)
        self._nodes = [node["NodeID"] for node in alive if self._on(node["Resources"])]
        self._has_own_node = any(node["NodeID"] == self._own_node for node in alive)
        self._n_answers += 1

    def _on(self, node: Mapping[str, float]) -> int:
        room = node.get("CPU", 0.0) // (self._resources.threads or 1)
        if self._resources.gpus:
            room = min(room, node.get("GPU", 0.0) // self._resources.gpus)
        return int(room)
