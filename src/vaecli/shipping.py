"""A run on its way between machines that share no files: its directory as bytes."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from vaecli.errors import VaecliError
from vaecli.files import write_bytes, write_directory
from vaecli.runs import CHECKPOINTS, FOLDERS, LOGS, Run

Files = Mapping[str, bytes]
"""Contents by path below the run directory."""


def pack(run: Run) -> dict[str, bytes]:
    """All files of a run but locks and what was being written."""
    return {str(path.relative_to(run.path)): path.read_bytes() for path in _files(run.path)}


def unpack(files: Files, path: Path) -> Run:
    """A run's files in a directory that is there for nothing else."""
    for name in FOLDERS:
        (path / name).mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return Run(path)


def store(files: Files, run: Run | None, parent: Path, name: str) -> Run:
    """Bring a run up to date with what has come of it elsewhere, so that at every instant it can be resumed.

    Args:
        files: From `pack`.
        run: As it is here; None if it is new.
        parent: Where a new one goes.
        name: Of a new one, if no other has it.

    Raises:
        VaecliError: It cannot be written.
    """
    where = parent if run is None else run.path
    try:
        if run is None:
            return Run(write_directory(parent, name, lambda path: unpack(files, path)))
        for part in _in_order(files):
            (run.path / part).parent.mkdir(parents=True, exist_ok=True)
            write_bytes(run.path / part, files[part])
    except OSError as error:
        raise VaecliError(f"{where}: cannot be written: {error.strerror}") from error
    return Run(run.path)


def _in_order(files: Files) -> Iterator[str]:
    """Logs before the checkpoint that says how long they are, the best checkpoint before the last, then the rest."""
    first = [*LOGS, f"{CHECKPOINTS}/best.pt", f"{CHECKPOINTS}/last.pt"]
    yield from (name for name in first if name in files)
    yield from (name for name in files if name not in first)


def _files(path: Path) -> Iterator[Path]:
    for found in sorted(path.rglob("*")):
        if found.is_file() and not any(part.startswith(".") for part in found.relative_to(path).parts):
            yield found
