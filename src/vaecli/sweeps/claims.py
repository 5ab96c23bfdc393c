"""Directories of results, each of which remembers what it holds, so that nothing is written over something else."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vaecli.errors import UsageError, VaecliError
from vaecli.files import write_json


def claim(out: Path, name: str, terms: Mapping[str, Any], members: Sequence[Any]) -> None:
    """Take a directory for some results, or for more of the same.

    Args:
        out: The directory; it may be there already if it is empty or holds the same results, or fewer.
        name: Of the file in it that remembers.
        terms: What must be the same as before.
        members: What is compared; all that were there before must be among them.

    Raises:
        UsageError: The directory holds something else.
        VaecliError: It cannot be written.
    """
    path, plan = out / name, {**terms, "members": members}
    try:
        if path.is_file():
            old = json.loads(path.read_text())
            same = all(old[key] == value for key, value in terms.items())
            if not same or not _as_text(old["members"]) <= _as_text(members):
                raise UsageError(f"{out}: holds the results of another {path.stem}; name another directory with --out")
        elif out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise UsageError(f"{out}: is not empty, and not a {path.stem}'s; name another directory with --out")
        out.mkdir(parents=True, exist_ok=True)
        write_json(path, plan)
    except OSError as error:
        raise VaecliError(f"{out}: cannot be written: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path}: cannot be read; name another directory with --out") from error


def _as_text(members: Sequence[Any]) -> set[str]:
    """Members that can be looked up: there may be very many."""
    return {json.dumps(member, sort_keys=True) for member in members}
