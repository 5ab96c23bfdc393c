"""What a node of a cluster does: train a slice of a run, and send its files back.

Files travel as bytes, since the machines of a cluster need share no disk.
"""

import functools
import hashlib
import os
import shutil
import stat
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, no_type_check

import ray

from vaecli.config.schema import Config
from vaecli.data.sources import stand_in
from vaecli.data.summaries import fingerprint
from vaecli.errors import DataError, InterruptedRunError, ReproducibilityWarning, VaecliError
from vaecli.files import lock, write_atomically, write_bytes, write_directory
from vaecli.runs.run import CHECKPOINTS, FOLDERS, LOCK, LOGS, Run, list_runs
from vaecli.sweeps.sweep import Job, JobOptions, JobResult, RunJobs

SCRATCH = "slice-"
"""How the names of scratch directories begin."""
UNLOCKED, LONGEST_UNLOCKED = "new-", 3600.0
"""How they begin until they are locked, and after how many seconds one of these is left over."""
Files = Mapping[str, bytes]
"""Contents by path below the run directory."""


Arrays = tuple[tuple[str, str, Any], ...]
"""Files by name: their SHA-256, and a reference to their content."""


@dataclass(frozen=True)
class Slice:
    """Describe what a node is asked to do: some seconds of training of one run, and its evaluation at the end."""

    config: Config
    options: JobOptions
    name: str
    """Of the run directory; empty for a new run."""
    files: Files | None
    """Of the run so far; None for a new one."""
    threads: int
    gpus: float
    seconds: float
    """Of training, after which it stops, to be continued in another slice."""
    command: tuple[str, ...]
    arrays: Arrays
    """The user's own images, and then the file of their labels, if there is one."""


@dataclass(frozen=True)
class SliceResult:
    """Hold what a node sends back."""

    name: str
    """Of the run directory."""
    files: Files | None
    """None where there was an error before there was a run."""
    evaluation: str | None = None
    """The evaluation's path in the run directory, once all is done."""
    error: str | None = None
    warnings: tuple[str, ...] = ()


def train_slice(work: Slice, run_jobs: RunJobs) -> SliceResult:
    """Start or resume a run on a node, until it is done or its time is up."""
    if not work.gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # Ray hides none from a task that asked for none
    import torch  # noqa: PLC0415

    torch.set_num_threads(work.threads)
    sys.argv = [*work.command]
    fetch_arrays(work.arrays)
    with scratch() as directory, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ReproducibilityWarning)
        run = None if work.files is None else unpack(work.files, directory / "runs" / work.name)
        result: JobResult | None = None
        with suppress(InterruptedRunError):
            (result,) = run_jobs(
                [Job(work.config, run, replace(work.options, runs_dir=directory))], After(work.seconds)
            )
        runs = list_runs(directory)
        path = None if result is None else result.path
        return SliceResult(
            name=runs[0].name if runs else "",
            files=pack(runs[0]) if runs else None,
            evaluation=None if path is None else str(path.relative_to(runs[0].path)),
            error=None if result is None else result.error,
            warnings=tuple(str(w.message) for w in caught if issubclass(w.category, ReproducibilityWarning)),
        )


@no_type_check  # by wrappers, which would hide from Ray that this is a generator
def with_signs_of_life(
    train: Callable[[Slice, RunJobs], SliceResult], work: Slice, run_jobs: RunJobs, seconds: float
) -> Iterator[SliceResult | None]:
    """Yield None at once and every so many seconds while a slice is trained in another thread, then its result."""
    yield None
    with ThreadPoolExecutor(1) as pool:
        training = pool.submit(train, work, run_jobs)
        while wait([training], timeout=seconds).not_done:
            yield None
    yield training.result()


class After:
    """Ask to stop once some seconds have passed since the first call: what comes before a step does not count."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._began: float | None = None

    def __call__(self) -> bool:
        """Return whether to stop."""
        now = time.monotonic()
        self._began = now if self._began is None else self._began
        return now - self._began >= self._seconds


def node_directory() -> Path:
    """Return a directory on this node in which only this user can write. Raises VaecliError where it is not so."""
    owner = os.getuid() if hasattr(os, "getuid") else 0
    path = Path(tempfile.gettempdir()) / f"vaecli-{owner}"
    path.mkdir(mode=0o700, exist_ok=True)
    status = path.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != owner or status.st_mode & 0o077:
        raise VaecliError(f"{path}: can be written by others, or belongs to another user; remove it, or set TMPDIR")
    return path


@contextmanager
def scratch() -> Iterator[Path]:
    """Make a directory for one slice; remove those that killed processes left on this node.

    It is made and locked under a name that no other slice looks at, then renamed, so that none takes it for left over
    between its making and its locking; and no slice waits for another, which may be frozen.
    """
    parent = node_directory()
    for path in parent.glob(f"{SCRATCH}*"):
        with suppress(OSError), lock(path / LOCK):
            shutil.rmtree(path, ignore_errors=True)
    for path in parent.glob(f"{UNLOCKED}*"):
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > LONGEST_UNLOCKED:
                shutil.rmtree(path, ignore_errors=True)
    made = Path(tempfile.mkdtemp(prefix=UNLOCKED, dir=parent))
    with lock(made / LOCK):
        made = made.rename(parent / made.name.replace(UNLOCKED, SCRATCH, 1))
        try:
            yield made
        finally:
            shutil.rmtree(made, ignore_errors=True)


@functools.cache
def fetch_arrays(arrays: Arrays) -> None:
    """Make sure that this node has the user's own files, under their names or in copies of the same content."""
    if all(_is_here(name, sha256) for name, sha256, _ in arrays):
        return
    digest = hashlib.sha256("".join(sha256 for _, sha256, _ in arrays).encode()).hexdigest()
    directory = node_directory() / digest  # so that labels lie beside the images that they belong to
    directory.mkdir(mode=0o700, exist_ok=True)
    for name, sha256, content in arrays:
        copy = directory / Path(name).name
        if not _is_here(str(copy), sha256):
            write_atomically(copy, partial(_write, ray.get(content)))
    stand_in(arrays[0][0], directory / Path(arrays[0][0]).name)


def _is_here(name: str, sha256: str) -> bool:
    """Return whether there is a file of this name and content."""
    with suppress(DataError):
        return fingerprint(name) == sha256
    return False


def _write(content: Any, file: BinaryIO) -> None:
    file.write(content.data)


def pack(run: Run) -> dict[str, bytes]:
    """Read all files of a run but locks and temporary files."""
    return {str(path.relative_to(run.path)): path.read_bytes() for path in _files(run.path)}


def unpack(files: Files, path: Path, write: Callable[[Path, bytes], object] = Path.write_bytes) -> Run:
    """Write a run's files into a directory that is there for nothing else."""
    for name in FOLDERS:
        (path / name).mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        write(path / name, content)
    return Run(path)


def store(files: Files, run: Run | None, parent: Path, name: str) -> Run:
    """Replace a run's files by those that came back, in an order in which it can be resumed at every instant.

    Args:
        files: From `pack`.
        run: The run as it is here; None if it is new.
        parent: Where a new one goes.
        name: Of a new one, if no other has it.

    Raises:
        VaecliError: It cannot be written.
    """
    where = parent if run is None else run.path
    try:
        if run is None:
            return Run(write_directory(parent, name, lambda path: unpack(files, path, write_bytes)))
        for part in _in_order(files):
            (run.path / part).parent.mkdir(parents=True, exist_ok=True)
            write_bytes(run.path / part, files[part])
    except OSError as error:
        raise VaecliError(f"{where}: cannot be written: {error.strerror}") from error
    return Run(run.path)


def _in_order(files: Files) -> list[str]:
    """Order files so that what is read first comes last: logs, the checkpoint with their lengths, metrics, the status.

    The best checkpoint comes before the last, and an evaluation's metrics of every image before their means.
    """
    order = [*LOGS, f"{CHECKPOINTS}/best.pt", f"{CHECKPOINTS}/last.pt"]
    rest = [name for name in files if name not in order]
    last = [name for name in rest if Path(name).suffix == ".json"]
    return (
        [name for name in order if name in files]
        + [name for name in rest if name not in last]
        + sorted(last, key="status.json".__eq__)
    )


def _files(path: Path) -> Iterator[Path]:
    for found in sorted(path.rglob("*")):
        if found.is_file() and not any(part.startswith(".") for part in found.relative_to(path).parts):
            yield found
