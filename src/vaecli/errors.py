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
    """Training met a loss that is not finite."""

    exit_code: ClassVar[int] = 4


class InterruptedRunError(VaecliError):
    """Training was asked to stop before its end; a checkpoint was written."""

    exit_code: ClassVar[int] = 130
