"""What an output directory holds: which runs, evaluated how, so that nothing is written over something else."""

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from vaecli.config.jobs import EvaluationSpec
from vaecli.config.schema import recorded_identity
from vaecli.errors import UsageError, VaecliError
from vaecli.files import lock, write_json
from vaecli.runs.run import LOCK
from vaecli.sweeps.sweep import Sweep


class Manifest(BaseModel):
    """Describe what an output directory holds, so that nothing is written over something else."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    evaluation: EvaluationSpec
    data_sha256: str | None
    members: list[dict[str, Any]]
    """The identity of each run."""

    def extends(self, other: "Manifest") -> bool:
        """Return whether this is the same as another manifest, or has more members."""
        same = (self.evaluation, self.data_sha256) == (other.evaluation, other.data_sha256)
        return same and _as_text(other.members) <= _as_text(self.members)


def manifest_of(sweep: Sweep, data_sha256: str | None) -> Manifest:
    """Return what the output directory of a sweep holds.

    That of a sweep whose runs can be extended holds its base and all of its runs, for however long and whichever are
    done.
    """
    if not sweep.extend:
        members = [json.loads(config.identity) for config in sweep.configs]
        return Manifest(evaluation=sweep.evaluation, data_sha256=data_sha256, members=members)
    members = [json.loads(config.identity) for config in (sweep.base, *(sweep.whole or sweep.configs))]
    for member in members:
        member["training"]["epochs"] = 1
    return Manifest(evaluation=EvaluationSpec(), data_sha256=data_sha256, members=members)


def claim_directory(out: Path, kind: str, manifest: Manifest) -> None:
    """Write a directory's manifest if it has none, for results that another process may be adding to.

    Arguments and errors as for `output_directory`.
    """
    path = out / f"{kind}.json"
    try:
        _check_output(out, path, manifest)
        out.mkdir(parents=True, exist_ok=True)
        if not path.is_file():
            write_json(path, manifest.model_dump(mode="json"))
    except OSError as error:
        raise VaecliError(f"{out}: cannot be written: {error.strerror}") from error


@contextmanager
def output_directory(out: Path, kind: str, manifest: Manifest) -> Iterator[None]:
    """Hold a directory for the results of a sweep, or for more of the same, and write its manifest.

    Args:
        out: The directory; it may be there if it is empty or holds the same results, or fewer.
        kind: Names the manifest's file.
        manifest: What the directory will hold.

    Raises:
        UsageError: The directory holds something else, or another process uses it.
        VaecliError: It cannot be written.
    """
    path = out / f"{kind}.json"
    try:
        _check_output(out, path, manifest)  # nothing is written into a directory of something else
        out.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            stack.enter_context(lock(out / LOCK))
            _check_output(out, path, manifest)  # another process may have filled it meanwhile
            write_json(path, manifest.model_dump(mode="json"))
            held = stack.pop_all()
    except BlockingIOError as error:
        raise UsageError(f"{out}: another process is writing its results there; wait for it, or name --out") from error
    except OSError as error:
        raise VaecliError(f"{out}: cannot be written: {error.strerror}") from error
    with held:
        yield


def _check_output(out: Path, path: Path, manifest: Manifest) -> None:
    """Refuse a directory that holds something else than the same results, or fewer. Raises UsageError."""
    kind = path.stem
    if path.is_file():
        if not manifest.extends(_read_manifest(path)):
            raise UsageError(f"{out}: holds the results of another {kind}; name another directory with --out")
    elif out.exists() and (not out.is_dir() or any(not p.name.startswith(".") for p in out.iterdir())):
        raise UsageError(f"{out}: is not empty, and not a {kind}'s; name another directory with --out")


def _read_manifest(path: Path) -> Manifest:
    try:
        return Manifest.model_validate_json(path.read_text())
    except (ValidationError, ValueError, OSError) as error:
        raise UsageError(
            f"{path}: cannot be read, or was written by an earlier version; name another directory with --out "
            "(runs that are complete are not trained again)"
        ) from error


def _as_text(members: Sequence[Any]) -> set[str]:
    """Return the members as texts, which can be looked up: there may be very many."""
    return {recorded_identity(json.dumps(member)) for member in members}
