"""What a run says of itself in JSON: what it is made with, and the rest, checked as it is read.

One bad file breaks nothing but what is about that run. Needs no torch.
"""

import json
import os
import platform
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from vaecli.config.likelihoods import Support
from vaecli.errors import VaecliError, command_line
from vaecli.files import may_be_file

UNREADABLE = "unreadable"
"""The state of a run whose status cannot be read."""
_BOUNDS = {"best", "last"}
_STATUS_TYPES: dict[str, Any] = dict.fromkeys(("state", "identity", "support", "decoder"), str)
_STATUS_TYPES |= dict.fromkeys(("reason", "caveat"), str | None) | dict.fromkeys(_BOUNDS, dict)
_STATUS_TYPES |= dict.fromkeys(("epoch", "epochs", "images", "step", "seconds"), int | float)
"""What a status has by these keys; anything else there is left out."""


class _Row(BaseModel):
    """Describe what every row of metrics has."""

    model_config = ConfigDict(strict=True, extra="allow")

    split: Literal["train", "validation"]
    epoch: int
    step: int
    images: int
    seconds: float
    elbo: float | None
    log_likelihood: float | None
    kl: float | None


def read_object(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file; empty where there is no file. Raises VaecliError."""
    try:
        content = json.loads(path.read_text()) if may_be_file(path) else {}
    except OSError as error:
        raise VaecliError(f"{path.name}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise VaecliError(f"{path.name}: is damaged") from error
    if not isinstance(content, dict):
        raise VaecliError(f"{path.name}: is damaged")
    return content


def read_status(directory: Path) -> dict[str, Any]:
    """Return the sound parts of a run's status.json, or which state it is in that it cannot be read, and why."""
    try:
        content = read_object(directory / "status.json")
        if not content:
            os.listdir(directory)  # noqa: PTH208 (there may be one, in a directory that cannot be read)
    except VaecliError as error:
        return {"state": UNREADABLE, "reason": str(error)}
    except OSError as error:
        return {"state": UNREADABLE, "reason": f"its directory: {error.strerror}"}
    return {key: value for key, value in content.items() if _is_sound(key, value)}


def _is_sound(key: str, value: Any) -> bool:
    """Return whether a part of a status is of the type that readers of it expect."""
    if not isinstance(value, _STATUS_TYPES.get(key, object)):
        return False
    numbers = key not in _BOUNDS or all(isinstance(number, int | float | None) for number in value.values())
    return numbers and (key not in _BOUNDS or value.keys() >= {"epoch", "elbo", "log_likelihood", "kl"})


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the rows of metrics.jsonl, without a line that is still being written. Raises VaecliError."""
    rows: list[dict[str, Any]] = []
    try:
        whole, _, _ = path.read_text().rpartition("\n")
        for line in whole.splitlines():
            rows.append(json.loads(line))
            _Row.model_validate(rows[-1])
    except FileNotFoundError:
        return []
    except ValidationError as error:
        found = error.errors()[0]
        what = f"{'.'.join(map(str, found['loc'])) or 'it'}: {found['msg']}"
        raise VaecliError(f"{path}:{len(rows)}: is not a row of metrics: {what}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise VaecliError(f"{path}: cannot be read: {error}") from error
    return rows


def describe_environment() -> dict[str, object]:
    """Return what environment.json says of this process."""
    return {
        "command": command_line(Path(sys.argv[0]).name, *sys.argv[1:]),
        "vaecli": _version("vaecli"),
        "torch": _version("torch"),
        "numpy": _version("numpy"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        **_git(),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git() -> dict[str, object]:
    """Return the commit of the checkout that the code runs from, and whether it was changed."""
    git = shutil.which("git")
    root = Path(__file__).parents[3]
    if git is None or not (root / ".git").exists():
        return {"git_commit": None, "git_dirty": None}
    try:
        commit = subprocess.run([git, "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, check=True)  # noqa: S603
        changes = subprocess.run([git, "-C", str(root), "status", "--porcelain"], capture_output=True, check=True)  # noqa: S603
    except (OSError, subprocess.CalledProcessError):
        return {"git_commit": None, "git_dirty": None}
    return {"git_commit": commit.stdout.strip(), "git_dirty": bool(changes.stdout)}


def describe_status(status: dict[str, Any]) -> list[tuple[str, str]]:
    """Describe in a few lines what a run's status says, each a name and a value."""
    reason = f" ({status['reason']})" if status.get("reason") else ""
    lines = [("state", f"{status.get('state', 'not begun')}{reason}")]
    if "epoch" in status:
        lines.append(
            ("epochs", f"{status['epoch']} of {status.get('epochs', '?')}, {status.get('images', 0):,} images seen")
        )
    for which in ("best", "last"):
        bound = status.get(which) or {}
        terms = [bound.get(name) for name in ("elbo", "log_likelihood", "kl")]
        if all(isinstance(term, int | float) for term in terms):
            elbo, log_likelihood, kl = terms
            text = f"{elbo:.2f} = {log_likelihood:.2f} - {kl:.2f} nats, epoch {bound.get('epoch', '?')}"
            lines.append((f"{which} validation ELBO", text))
    if "decoder" in status:
        lines.append(("model", f"{status['decoder']}, {status.get('latent_dim', '?')} latent dimensions"))
        lines.append(("vectors" if status.get("support") == Support.REAL else "images", str(status.get("data", "?"))))
        lines.append(("seed", str(status.get("seed", "?"))))
    if status.get("caveat"):
        lines.append(("the bound is", status["caveat"]))
    return lines
