"""Errors a user can cause, each with the exit code of the command line.

A message says what is wrong, where, and what would be right.
"""

import difflib
import errno
import shlex
from collections.abc import Iterable, Sequence
from typing import ClassVar

MAX_SHOWN = 60
"""Characters of a name in a list of some."""


class VaecliError(Exception):
    """Signal a failure at run time: a checkpoint that cannot be used, a directory that cannot be written."""

    exit_code: ClassVar[int] = 1


class UsageError(VaecliError):
    """Signal wrong usage: an unknown run, a device that is not there."""

    exit_code: ClassVar[int] = 2


class ConfigError(UsageError):
    """Signal a config that cannot be used; `problems` lists everything that is wrong with it."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


class DataError(VaecliError):
    """Signal images that cannot be found or read."""

    exit_code: ClassVar[int] = 3


class DivergedError(VaecliError):
    """Signal a term or a parameter that is not finite in training, at `step`, counted from 1."""

    exit_code: ClassVar[int] = 4

    def __init__(self, message: str, step: int) -> None:
        super().__init__(message)
        self.step = step


class InterruptedRunError(VaecliError):
    """Signal that training was asked to stop before its end; a checkpoint was written."""

    exit_code: ClassVar[int] = 130


class LimitReachedError(InterruptedRunError):
    """Signal that training came to the limit that it was given; a checkpoint was written."""

    exit_code: ClassVar[int] = 6


class ReproducibilityWarning(UserWarning):
    """Warn that a run is resumed under other conditions than before, and may not end in the same bits."""


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that memory could not be had; Python, NumPy, torch and the system each have one."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    known = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return known or any(words in str(error) for words in ("can't allocate memory", "std::bad_alloc"))


def in_plain_words(error: Exception, replicates: int) -> Exception:
    """Return what to raise in place of an error: out of memory is named with its remedy, any other is unchanged."""
    if not is_out_of_memory(error):
        return error
    fewer = f", or resources.replicates, which is {replicates} here," if replicates > 1 else ""
    return VaecliError(f"out of memory; make training.batch_size, objective.L or model.hidden_dim{fewer} smaller")


def some(names: Sequence[str], most: int = 5) -> str:
    """Return the first of many names, each cut short, and say how many there are beside them."""
    shown = ", ".join(name if len(name) <= MAX_SHOWN else f"{name[:MAX_SHOWN]}..." for name in names[:most])
    return f"{shown} and {len(names) - most:,} more" if len(names) > most else shown or "nothing"


def command_line(*words: object) -> str:
    """Return a command so that it can be copied into a shell, whatever is in its paths."""
    return shlex.join(map(str, words))


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Return the known name nearest to a mistyped one, None where none is near.

    A dotted name is also near if its last part is that of the mistyped one: `model.decoder` to `decoder`.
    """
    known = list(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5) or [
        other for other in known if other.rpartition(".")[2] == name.rpartition(".")[2]
    ]
    return near[0] if near else None


def suggest(name: str, known: Iterable[str]) -> str:
    """Return the remedy for a mistyped name: the known one nearest to it as a question, all where none is near."""
    known = list(known)
    near = nearest(name, known)
    return f"did you mean {near}?" if near else f"known: {', '.join(known)}"
