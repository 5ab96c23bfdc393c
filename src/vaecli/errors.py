"""Errors a user can cause, each with the exit code of the command line.

A message says what is wrong, where, and what would be right.
"""

from collections.abc import Sequence
from typing import ClassVar


class VaecliError(Exception):
    """Something failed at run time: a checkpoint that cannot be used, a directory that cannot be written."""

    exit_code: ClassVar[int] = 1


class UsageError(VaecliError):
    """Wrong usage: an unknown run, a device that is not there."""

    exit_code: ClassVar[int] = 2


class ConfigError(UsageError):
    """A config that cannot be used; `problems` lists everything that is wrong with it."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


class DataError(VaecliError):
    """Images that are not to be had or not readable."""

    exit_code: ClassVar[int] = 3


class DivergedError(VaecliError):
    """Training met a term or a parameter that is not finite, at `step`, counted from 1."""

    exit_code: ClassVar[int] = 4

    def __init__(self, message: str, step: int) -> None:
        super().__init__(message)
        self.step = step


class InterruptedRunError(VaecliError):
    """Training was asked to stop before its end; a checkpoint was written."""

    exit_code: ClassVar[int] = 130


class LimitReachedError(InterruptedRunError):
    """Training came to the limit that it was given; a checkpoint was written."""

    exit_code: ClassVar[int] = 6


class ReproducibilityWarning(UserWarning):
    """A run goes on under other conditions than before, and may not end in the same bits as an uncut one."""
