"""A disk that fails at a chosen operation: by killing the process that uses it, or by taking no more."""

import errno
import io
import os
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Literal

import pytest

Fault = Literal["before", "after", "full", "read-only"]
FAULTS: tuple[Fault, ...] = ("before", "after", "full", "read-only")
"""Killed before the operation, killed after it (in the middle of a write), no space left from it on, or read-only."""
COUNTED = ("fsync", "replace", "rename", "mkdir", "truncate", "unlink", "chmod")
NEEDING_SPACE = {"open", "write", "mkdir", "fsync", "rename", "replace"}


class Killed(BaseException):
    """The process was killed here. Nothing that it still does reaches the disk."""


class FaultyDisk:
    """Every operation that changes files, counted from 1; the one numbered `at` fails.

    A process that is killed writes nothing more, so what it still tries is either dropped or raises again.

    Args:
        at: The number of the operation; 0 for none.
        fault: What happens there.
    """

    def __init__(self, at: int = 0, fault: Fault = "before") -> None:
        self.at, self.fault = at, fault
        self.operations: list[str] = []
        self.dead = False

    def __enter__(self) -> "FaultyDisk":
        self._patch = pytest.MonkeyPatch()
        opened, opened_low = io.open, os.open
        for name in COUNTED:
            self._patch.setattr(os, name, self._faulty(name, getattr(os, name)))

        def open_low(path: Any, flags: int, *rest: Any, **more: Any) -> int:
            if flags & os.O_CREAT:
                return self._do("open", lambda: opened_low(path, flags, *rest, **more))
            return opened_low(path, flags, *rest, **more)

        def open_high(file: Any, mode: str = "r", *rest: Any, **more: Any) -> Any:
            if mode in {"wb", "ab"}:
                raw = FaultyFile(file, mode, self)
                return io.BufferedWriter(raw)
            assert not set(mode) & set("wax+"), mode
            return opened(file, mode, *rest, **more)

        self._patch.setattr(os, "open", open_low)
        self._patch.setattr(io, "open", open_high)
        return self

    def __exit__(self, *error: object) -> None:
        self._patch.undo()

    def _faulty(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *arguments, **more: self._do(name, lambda: function(*arguments, **more))

    def _do(self, name: str, operation: Callable[[], Any], half: Callable[[], Any] | None = None) -> Any:
        if self.dead:
            raise Killed
        self.operations.append(name)
        here, n = self.at, len(self.operations)
        if self.fault in {"full", "read-only"}:
            if here and n >= here and (name in NEEDING_SPACE or self.fault == "read-only"):
                number = errno.ENOSPC if self.fault == "full" else errno.EROFS
                raise OSError(number, os.strerror(number))
            return operation()
        if n == here:
            if self.fault == "after":
                with suppress(OSError):
                    (half or operation)()
            self.dead = True
            raise Killed
        return operation()


class FaultyFile(io.FileIO):
    """A file on such a disk."""

    def __init__(self, file: Any, mode: str, disk: FaultyDisk) -> None:
        self._disk = disk
        if isinstance(file, int):
            super().__init__(file, mode)
        else:
            try:
                disk._do("open", lambda: super(FaultyFile, self).__init__(file, mode))
            except Killed:
                self.close()
                raise

    def write(self, content: Any) -> int:
        if self._disk.dead:
            return len(content)
        half = bytes(content[: len(content) // 2])
        return self._disk._do(
            "write", lambda: super(FaultyFile, self).write(content), lambda: super(FaultyFile, self).write(half)
        )
