"""The run directory: where everything about one run is, and how a run is found again. Listing runs needs no torch."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal
from uuid import uuid4

from vaecli.config.data_sets import is_array
from vaecli.config.jobs import AnySpec
from vaecli.config.loading import dump_config, fixed_differences, load_config
from vaecli.config.schema import Config
from vaecli.errors import ConfigError, UsageError, VaecliError, some
from vaecli.files import ABSENT, lock, may_be_directory, may_be_file, write_directory, write_json, write_text
from vaecli.runs.records import describe_environment, describe_status, read_metrics, read_object, read_status
from vaecli.shown import Shown, Summary

if TYPE_CHECKING:
    from vaecli.model.vae import VAE
    from vaecli.runs.checkpoint import Checkpoint

CHECKPOINTS = "checkpoints"
LOCK = ".lock"
FOLDERS = (CHECKPOINTS, "samples", "tensorboard/train", "tensorboard/validation")
EVENTS = "events.out.tfevents.0.vaecli"
LOGS = ("metrics.jsonl", f"tensorboard/train/{EVENTS}", f"tensorboard/validation/{EVENTS}")
"""The files that are only ever appended to."""
MAX_REFERENCE = 1000


@dataclass(frozen=True)
class Run(Shown):
    """Give access to a run on disk, seen through one of its checkpoints.

    Args:
        path: The run directory; of a checkpoint file that is in none, the file's directory.
        file: The checkpoint that stands for the run, if one was named; None for the best, or the last.
    """

    path: Path
    file: Path | None = None

    @property
    def name(self) -> str:
        """Return the directory's name, which `--ckpt` and `--resume` take."""
        return self.path.name

    @property
    def last(self) -> Path:
        """Return the path of the checkpoint that training resumes from."""
        return self.path / CHECKPOINTS / "last.pt"

    @property
    def best(self) -> Path:
        """Return the path of the checkpoint with the best validation ELBO."""
        return self.path / CHECKPOINTS / "best.pt"

    @cached_property
    def checkpoint_path(self) -> Path:
        """Return the path of the named checkpoint, else of the best, else of the last. Raises VaecliError."""
        for path in (self.file, self.best, self.last):
            if path is not None and may_be_file(path):
                return path
        raise VaecliError(f"{self.path}: has no checkpoint yet")

    def at(self, checkpoint: Literal["best", "last"]) -> "Run":
        """Return the run as its last checkpoint stands for it, or as it is: at its best, unless a file was named."""
        return Run(self.path, self.last) if checkpoint == "last" and self.file is None else self

    @cached_property
    def checkpoint(self) -> "Checkpoint":
        """Return the checkpoint's content, checked; it is read once. Raises VaecliError."""
        return self.load(self.checkpoint_path)

    def load(self, path: Path) -> "Checkpoint":
        """Read a checkpoint of this run. Raises VaecliError where it cannot be used, or is another run's."""
        from vaecli.runs.checkpoint import load_checkpoint  # noqa: PLC0415 (torch)

        checkpoint = load_checkpoint(path)
        reason = "it was written by another run"
        if None in {self.id, checkpoint.run_id} or self.id == checkpoint.run_id:
            differing = self._differences(checkpoint.config)
            if not differing:
                return checkpoint
            reason = f"its config is not that of config.yaml in {', '.join(differing)}"
        raise VaecliError(
            f"{path}: is not a checkpoint of {self.name}: {reason}; put back what was replaced, "
            f"or move this file out of {self.path} to use it by itself"
        )

    def _differences(self, config: Config) -> list[str]:
        """Return the settings by which a config cannot be this run's; the path of an array may have changed."""
        try:
            own = load_config(self.path / "config.yaml")
        except ConfigError:  # there is none, or none to compare with
            return []
        moved = is_array(own.data.name) and is_array(config.data.name)
        return [key for key in fixed_differences(own, config) if key != "data.name" or not moved]

    @cached_property
    def vae(self) -> "VAE":
        """Return the trained model, on the CPU. Raises VaecliError."""
        return self.checkpoint.build_vae()

    @cached_property
    def config(self) -> Config:
        """Return the run's config."""
        written = self.path / "config.yaml"
        return self.checkpoint.config if self.file or not may_be_file(written) else load_config(written)

    @property
    def status(self) -> dict[str, Any]:
        """Return the content of status.json, empty before it is written; a killed run counts as interrupted."""
        content = read_status(self.path)
        if content.get("state") == "running" and not self.is_training:
            content |= {"state": "interrupted", "reason": "its process was killed"}
        return content

    def summary(self) -> Summary:
        """Return what a notebook shows of the run: how it ended, its bounds, and samples."""
        picture = self.path / "samples" / "prior.png"
        return Summary(str(self.path), describe_status(self.status), picture=picture)

    @property
    def environment(self) -> dict[str, Any]:
        """Return the content of environment.json; empty where there is none to read."""
        try:
            return read_object(self.path / "environment.json")
        except VaecliError:
            return {}

    @property
    def id(self) -> str | None:
        """Return what tells it from every other run, whatever it is renamed to; None where that was not recorded."""
        found = self.environment.get("run_id")
        return found if isinstance(found, str) else None

    def lock(self) -> BinaryIO:
        """Hold the run for this process alone, until the returned file is closed or the process ends.

        Raises:
            VaecliError: Another process holds it, or the run directory cannot be written.
        """
        try:
            return lock(self.path / LOCK)
        except BlockingIOError as error:
            raise VaecliError(f"{self.path}: is being trained by another process") from error
        except OSError as error:
            raise VaecliError(f"{error.filename or self.path}: cannot be written: {error.strerror or error}") from error

    @property
    def is_training(self) -> bool:
        """Return whether a process is training it at this moment."""
        try:
            lock(self.path / LOCK).close()
        except BlockingIOError:
            return True
        except OSError:
            pass
        return False

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """Return the rows of metrics.jsonl, without a line that is still being written. Raises VaecliError."""
        return read_metrics(self.path / "metrics.jsonl")

    def evaluation_path(self, step: int, spec: AnySpec) -> Path:
        """Return where the evaluation stands of its checkpoint, taken at a step. Raises VaecliError if it has none."""
        return self.path / "evaluations" / f"{self.checkpoint_path.stem}-step{step}-{spec.name}.json"

    def write_config(self, config: Config) -> None:
        """Replace config.yaml. Raises VaecliError where it cannot be written."""
        try:
            write_text(self.path / "config.yaml", dump_config(config))
        except OSError as error:
            raise VaecliError(f"{self.path}: cannot be written: {error.strerror}") from error

    def write_status(self, **values: object) -> None:
        """Replace status.json."""
        write_json(self.path / "status.json", values | {"updated": _now().isoformat(timespec="seconds")})


def create_run(config: Config, runs_dir: Path, **environment: object) -> Run:
    """Make the directory of a new run, whole or not at all, with its config.yaml and environment.json.

    Args:
        config: The run's config.
        runs_dir: Where.
        environment: What else to record, beside versions, machine, git commit and command line.

    Raises:
        VaecliError: The directory cannot be written.
    """

    def fill(path: Path) -> None:
        for name in FOLDERS:
            (path / name).mkdir(parents=True)
        write_text(path / "config.yaml", dump_config(config))
        write_json(path / "environment.json", describe_environment() | environment | {"run_id": uuid4().hex})

    parent = runs_dir / (config.name or "default")
    try:
        return Run(write_directory(parent, f"{_now():%Y%m%d-%H%M%S}-{config.model.decoder}-s{config.seed}", fill))
    except OSError as error:
        raise VaecliError(f"{parent}: cannot be written: {error.strerror}") from error


def find_run(reference: str | Path, runs_dir: Path) -> Run:
    """Find the run of a directory, a checkpoint file, a name or a unique prefix of it. Raises UsageError."""
    path = Path(reference)
    if len(str(reference)) > MAX_REFERENCE:
        raise UsageError(f"{str(reference)[:60]}...: no such run or checkpoint")
    _check_visible(path)
    if may_be_file(path):
        return Run(path.parent.parent if path.parent.name == CHECKPOINTS else path.parent, path)
    if _is_run(path):
        return Run(path)
    text = str(reference).rstrip("/")
    matches = [
        run for run in list_runs(runs_dir) if text and text in {run.name, f"{run.path.parent.name}/{run.name}"}
    ] or [
        run
        for run in list_runs(runs_dir)
        if text and (run.name.startswith(text) or f"{run.path.parent.name}/{run.name}".startswith(text))
    ]
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise UsageError(f"{reference}: {len(matches)} runs begin with it: {some([run.name for run in matches])}")
    raise UsageError(f"{reference}: no such run or checkpoint; `vae runs ls` lists the runs in {runs_dir}/")


def load_run(reference: str | Path, runs_dir: str | Path = "runs") -> Run:
    """Load a run with its `.config`, `.vae` (the best weights, on the CPU) and `.metrics`.

    Args:
        reference: A run directory, a checkpoint file, a run's name, or a unique prefix of it.
        runs_dir: Where names are looked up.

    Raises:
        UsageError: There is no such run, or the prefix is not unique.
    """
    return find_run(reference, Path(runs_dir))


def list_runs(runs_dir: str | Path) -> list[Run]:
    """Return all runs below a directory, oldest first, and what cannot be read there. Raises UsageError."""
    return sorted((Run(path) for path in _directories(Path(runs_dir))), key=lambda run: (run.name, run.path))


def _directories(runs_dir: Path) -> Iterator[Path]:
    """Yield the run directories, and what may be one or hold some, and cannot be read."""
    try:
        groups = _subdirectories(runs_dir)
    except OSError as error:
        if error.errno in ABSENT:
            return
        raise UsageError(f"{runs_dir}: cannot be read: {error.strerror}") from error
    for group in groups:
        try:
            paths = _subdirectories(group)
        except OSError:
            yield group
        else:
            yield from filter(_is_run, paths)


def _subdirectories(path: Path) -> list[Path]:
    return [path / name for name in os.listdir(path) if name[0] != "." and may_be_directory(path / name)]  # noqa: PTH208


def _is_run(path: Path) -> bool:
    return may_be_file(path / "config.yaml") and may_be_directory(path / CHECKPOINTS)


def _check_visible(path: Path) -> None:
    """Refuse a path that we are not let look at, and of which nobody can say what it is. Raises UsageError."""
    try:
        path.stat()
    except ValueError:  # a NUL in it
        return
    except OSError as error:
        if error.errno not in ABSENT:
            raise UsageError(f"{path}: cannot be read: {error.strerror}") from error


def _now() -> datetime:
    return datetime.now(UTC).astimezone()
