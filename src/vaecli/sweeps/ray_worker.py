"""A leg of a run: what a node of a cluster is asked to do, does, and gives back."""

import functools
import os
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray

from vaecli.config.schema import Config
from vaecli.data.sources import fingerprint, stand_in
from vaecli.errors import DataError, InterruptedRunError, ReproducibilityWarning
from vaecli.files import lock, write_atomically
from vaecli.runs.archive import Files, pack, unpack
from vaecli.runs.run import LOCK, list_runs
from vaecli.sweeps.jobs import Job, JobOptions, JobResult, complete

SCRATCH = "vaecli-leg-"
"""How the names of scratch directories begin."""


@dataclass(frozen=True)
class Leg:
    """What a node is asked to do."""

    config: Config
    work: JobOptions
    name: str
    files: Files | None
    """Of the run so far; None for a new one."""
    threads: int
    gpus: float
    seconds: float
    """Of training, after which it stops, to be gone on with in another leg."""
    command: tuple[str, ...]
    array: tuple[str, Any] | None
    """Of the user's own images, if they are: their SHA-256, and a reference to their file's content."""


@dataclass(frozen=True)
class Delivery:
    """What a node gives back."""

    name: str
    """Of the run directory."""
    files: Files | None
    """None where it came to nothing before there was a run."""
    evaluation: str | None = None
    """Where in the run directory the evaluation stands, once all is done."""
    error: str | None = None
    notes: tuple[str, ...] = ()


def do_leg(leg: Leg) -> Delivery:
    """On a node: go on with a run, or begin it, until it is done or its time is up."""
    if not leg.gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # Ray hides none from a task that asked for none
    import torch  # noqa: PLC0415

    torch.set_num_threads(leg.threads)
    sys.argv = [*leg.command]
    if leg.array is not None:
        have_array(leg.config.data.name, *leg.array)
    with scratch() as directory, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ReproducibilityWarning)
        run = None if leg.files is None else unpack(leg.files, directory / "runs" / leg.name)
        task = Job(leg.config, run, replace(leg.work, runs_dir=directory))
        outcome: JobResult | None = None
        with suppress(InterruptedRunError):
            outcome = complete(task, After(leg.seconds))
        runs = list_runs(directory)
        return Delivery(
            name=runs[0].name if runs else "",
            files=pack(runs[0]) if runs else None,
            evaluation=str(Path(path).relative_to(runs[0].path)) if (path := _evaluation(outcome)) else None,
            error=None if outcome is None else outcome.error,
            notes=tuple(str(w.message) for w in caught if issubclass(w.category, ReproducibilityWarning)),
        )


class After:
    """Says to stop once some seconds have passed since it was first asked: what comes before a step does not count."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._began: float | None = None

    def __call__(self) -> bool:
        """Whether to stop."""
        now = time.monotonic()
        self._began = now if self._began is None else self._began
        return now - self._began >= self._seconds


@contextmanager
def scratch() -> Iterator[Path]:
    """A directory for one leg; those that killed processes left on this node are removed on the way."""
    parent = Path(tempfile.gettempdir())
    for path in parent.glob(f"{SCRATCH}*"):
        with suppress(OSError), lock(path / LOCK):
            shutil.rmtree(path, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=SCRATCH) as made, lock(Path(made) / LOCK):
        yield Path(made)


def _evaluation(outcome: JobResult | None) -> str | None:
    return None if outcome is None else outcome.figures.get("path")


@functools.cache
def have_array(name: str, sha256: str, content: Any) -> None:
    """See that this node has the user's own images, under their name or in a copy."""
    with suppress(DataError):
        if fingerprint(name) == sha256:
            return
    copy = Path(tempfile.gettempdir()) / f"vaecli-{sha256}{Path(name).suffix}"
    if not copy.is_file():
        write_atomically(copy, lambda file: file.write(ray.get(content).data))
    stand_in(name, copy)
