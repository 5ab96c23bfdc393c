"""Writing files so that at every instant each is absent or whole.

A process that is killed leaves at most temporary files, whose names begin with a dot and end in `.vae.tmp`. The
next that writes into the same directory removes them: a living process holds those that it writes.
"""

import errno
import importlib
import json
import math
import os
import secrets
import shutil
import stat
import unicodedata
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

TEMPORARY = ".vae.tmp"
ABSENT = {errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP}
"""What the system says where a path leads to nothing."""
MAX_NAME = 100
"""Characters of a name of ours."""
MAX_NAME_BYTES = 255
"""Bytes that file systems take as a name."""


def safe_name(text: str) -> str:
    """Return a text as the name of a folder, of letters and digits of any script and `_.+-`; empty if nothing is left.

    Hyphens replace whatever else there is between. A name that is safe already is returned as it is.
    """
    kept = (
        c if unicodedata.category(c)[0] in "LMN" or c in "_.+-" else " " for c in unicodedata.normalize("NFC", text)
    )
    name = "-".join("".join(kept).split())
    while name and unicodedata.category(name[0])[0] not in "LN":
        name = name[1:]
    return name[:MAX_NAME].encode()[:MAX_NAME_BYTES].decode(errors="ignore")


def may_be_file(path: Path) -> bool:
    """Return whether a path is that of a file, or may be where we are not let look: opening it says why."""
    return _kind(path) in {None, stat.S_IFREG}


def may_be_directory(path: Path) -> bool:
    """Return whether a path is that of a directory, or may be where we are not let look: using it says why."""
    return _kind(path) in {None, stat.S_IFDIR}


def _kind(path: Path) -> int | None:
    """Return what kind of file a path leads to, 0 if to none, None if the system does not say."""
    try:
        return stat.S_IFMT(path.stat().st_mode)
    except OSError as error:
        return 0 if error.errno in ABSENT else None
    except ValueError:  # a NUL in it
        return 0


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
    temporary, handle = _make_temporary(path.parent, path.name, _create_file)
    with os.fdopen(handle, "wb") as file:
        try:
            write(file)
            file.flush()
            os.fsync(file.fileno())
            if overwrite:
                temporary.replace(path)
            else:
                _rename_to_new(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    sync_directory(path.parent)


def _make_temporary(parent: Path, name: str, create: Callable[[Path], int]) -> tuple[Path, int]:
    """Make something under a temporary name and hold it, which tells it from what killed processes left there."""
    _remove_abandoned(parent.glob(f".*{TEMPORARY}"))
    while True:
        temporary = parent / f".{name[:20]}.{secrets.token_hex(8)}{TEMPORARY}"
        handle = create(temporary)
        if _try_lock(handle) is not False and os.fstat(handle).st_nlink:
            return temporary, handle
        os.close(handle)  # another process took it for abandoned, in the instant before it was locked


def _create_file(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)  # less the umask, as any file


def _create_directory(path: Path) -> int:
    path.mkdir()
    return os.open(path, os.O_RDONLY)


def _try_lock(handle: int) -> bool | None:
    """Hold an open file and return True, or False where another process holds it; None where there are no locks."""
    try:
        fcntl = importlib.import_module("fcntl")
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except (ImportError, OSError):
        return None
    return True


def _remove_abandoned(paths: Iterable[Path]) -> None:
    """Remove temporary files and directories that no process holds."""
    for path in paths:
        with suppress(OSError):  # it is gone, or another user's
            handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
            try:
                if _try_lock(handle):
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
            finally:
                os.close(handle)


def unshare(path: Path) -> None:
    """Replace a file that has another name too by a copy of its own, before it is changed in place."""
    if path.is_symlink() or path.stat().st_nlink > 1:
        with path.open("rb") as shared:
            write_atomically(path, lambda file: shutil.copyfileobj(shared, file))


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
    temporary, handle = _make_temporary(parent, stem, _create_directory)
    try:
        fill(temporary)
        attempt = 1
        while not _renamed(temporary, path := parent / (stem if attempt == 1 else f"{stem}-{attempt}")):
            attempt += 1
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    finally:
        os.close(handle)
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
    """Remove the temporary files that killed processes left below a directory."""
    _remove_abandoned(list(directory.rglob(f".*{TEMPORARY}")))


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically."""
    write_atomically(path, lambda file: file.write(content))


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically, as UTF-8; bytes of a path that are none are written as they are escaped."""
    write_bytes(path, text.encode(errors="backslashreplace"))


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
