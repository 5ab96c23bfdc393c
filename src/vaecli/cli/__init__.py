"""The command line: the only part of vaecli that prints or exits. Nothing here imports torch before it is needed."""

import importlib
import os
import signal
import sys
import warnings
from typing import Any

from vaecli.cli.app import app, note
from vaecli.errors import ConfigError, ReproducibilityWarning, VaecliError


def main() -> None:
    """Run a command; an error that its user can cause becomes one message and the documented exit code."""
    for module in (
        "train",
        "evaluate",
        "compare",
        "sweep",
        "generate",
        "runs",
        "configs",
    ):  # each registers its commands, in the order of the help
        importlib.import_module(f"vaecli.cli.{module}")
    show = warnings.showwarning

    def show_as_note(message: Warning | str, category: type[Warning], *where: Any) -> None:
        if issubclass(category, ReproducibilityWarning):
            note(str(message))
        else:
            show(message, category, *where)

    warnings.showwarning = show_as_note  # type: ignore[assignment]
    signal.signal(signal.SIGINT, lambda number, frame: sys.exit(130))  # noqa: ARG005
    try:
        app(prog_name="vae")
    except VaecliError as error:
        if os.environ.get("VAECLI_DEBUG") == "1":
            raise
        many = isinstance(error, ConfigError) and len(error.problems) > 1
        print(f"vae: {len(error.problems)} errors\n{error}" if many else f"vae: {error}", file=sys.stderr)  # type: ignore[attr-defined]
        sys.exit(error.exit_code)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
