"""Writing files so that at every instant each is absent or whole.

A process that is killed leaves at most temporary files, whose names begin with a dot and end in `.tmp`.
"""

import errno
import importlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

TEMPORARY = ".tmp"


def cache_directory() -> Path:
    """Return vaecli's folder in the user's cache: in `XDG_CACHE_HOME`, or in `~/.cache`. Raises RuntimeError."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vaecli"


def write_atomically(path: Path, write: Callable[[BinaryIO], object], *, overwrite: bool = True) -> None:
    """Write a file beside `path`, flush it to the disk, rename it into place, and flush the directory.

    Args:
        path: The file's name.
        write: Called with the open file.
        overwrite: Whether it replaces a file of that name.

    Raises:
        FileExistsError: There is a file of that name, and it is not to be overwritten.
    """
    handle, temporary = tempfile.mkstemp(TEMPORARY, f".{path.name}.", path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)
        if overwrite:
            Path(temporary).replace(path)
        else:
            _rename_to_new(Path(temporary), path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def _rename_to_new(temporary: Path, path: Path) -> None:
    """Rename a file unless another has that name. Raises FileExistsError."""
    try:
        path.hardlink_to(temporary)
    except FileExistsError:
        raise
    except OSError as error:  # a file system without hard links
        if path.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from error
        temporary.replace(path)
    else:
        temporary.unlink()


def write_directory(parent: Path, stem: str, fill: Callable[[Path], object]) -> Path:
    """Make a directory with its content, under a name that no other has: `stem`, else `stem-2` and so on.

    It is filled under a temporary name and then renamed, which succeeds for one process only.
    """
    parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(TEMPORARY, f".{stem}.", parent))
    try:
        temporary.chmod(0o755)
        fill(temporary)
        attempt = 1
        while not _renamed(temporary, path := parent / (stem if attempt == 1 else f"{stem}-{attempt}")):
            attempt += 1
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    sync_directory(parent)
    return path


def _renamed(temporary: Path, path: Path) -> bool:
    """Rename a directory; return whether it could take that name, which no file or filled directory had."""
    try:
        temporary.rename(path)
    except OSError as error:
        if error.errno not in {errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR}:
            raise
        return False
    return True


def remove_temporary_files(directory: Path) -> None:
    """Remove the temporary files that killed processes left below a directory that nobody else writes to."""
    for path in directory.rglob(f".*{TEMPORARY}"):
        path.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically."""
    write_atomically(path, lambda file: file.write(content))


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: object) -> None:
    """Write a JSON file atomically; numbers that are not finite become null."""
    write_text(path, json.dumps(finite(value), indent=2) + "\n")


def lock(path: Path) -> BinaryIO:
    """Hold a file for this process alone until it is closed or the process ends, however it ends.

    Raises:
        BlockingIOError: Another process holds it. Where the system has no such locks nothing is ever held.
    """
    file = path.open("ab")
    try:
        fcntl = importlib.import_module("fcntl")
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except ImportError:
        pass
    except BaseException:
        file.close()
        raise
    return file


def finite(value: Any) -> Any:
    """Return the value with every NaN and infinity as None, since JSON cannot hold them."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    return value


def sync_directory(path: Path) -> None:
    """Flush a directory, so that a rename in it survives a power cut; do nothing where directories cannot be opened."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
