"""A run on its way between machines that share no files: its directory as bytes."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from vaecli.errors import VaecliError
from vaecli.files import write_bytes, write_directory
from vaecli.runs.run import CHECKPOINTS, FOLDERS, LOGS, Run

Files = Mapping[str, bytes]
"""Contents by path below the run directory."""


def pack(run: Run) -> dict[str, bytes]:
    """All files of a run but locks and what was being written."""
    return {str(path.relative_to(run.path)): path.read_bytes() for path in _files(run.path)}


def unpack(files: Files, path: Path, write: Callable[[Path, bytes], object] = Path.write_bytes) -> Run:
    """A run's files in a directory that is there for nothing else."""
    for name in FOLDERS:
        (path / name).mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        write(path / name, content)
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
            return Run(write_directory(parent, name, lambda path: unpack(files, path, write_bytes)))
        for part in _in_order(files):
            (run.path / part).parent.mkdir(parents=True, exist_ok=True)
            write_bytes(run.path / part, files[part])
    except OSError as error:
        raise VaecliError(f"{where}: cannot be written: {error.strerror}") from error
    return Run(run.path)


def _in_order(files: Files) -> list[str]:
    """What is read first comes last: logs, the checkpoint that says how long they are, figures, the state.

    Of checkpoints the best comes before the last, of an evaluation the figures of every image before their means.
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
