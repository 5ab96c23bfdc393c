"""Writing files so that at every instant each is absent or whole."""

import importlib
import json
import math
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a file beside `path`, flush it to the disk, rename it into place, and flush the directory."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    write_atomically(path, lambda file: file.write(text.encode()))


def write_json(path: Path, value: object) -> None:
    """Write a JSON file atomically; figures that are not finite become null."""
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
    """The value with every NaN and infinity as None: JSON has no word for them."""
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
