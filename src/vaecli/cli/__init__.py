"""The command line: the only part of vaecli that prints or exits. Nothing here imports torch before it is needed."""

import importlib
import os
import re
import signal
import sys
import warnings
from typing import Any

import typer

from vaecli.cli.app import app, note, say
from vaecli.errors import ConfigError, ReproducibilityWarning, VaecliError, is_out_of_memory, nearest

COMMANDS = ("train", "evaluate", "compare", "sweep", "generate", "runs", "configs")
"""The modules of commands, in the order of the help; each registers its own."""
TAKE_SETTINGS = ("train", "compare-decoders")
"""The commands that take KEY=VALUE settings."""
ALIASES = {"lr": "learning_rate"}


def main() -> None:
    """Run a command; an error that its user can cause becomes one message and the documented exit code."""
    for module in COMMANDS:
        importlib.import_module(f"vaecli.cli.{module}")
    _prepare_streams()
    signal.signal(signal.SIGINT, lambda number, frame: sys.exit(130))  # noqa: ARG005
    try:
        sys.exit(app(prog_name="vae", standalone_mode=False))
    except VaecliError as error:
        if os.environ.get("VAECLI_DEBUG") == "1":
            raise
        many = isinstance(error, ConfigError) and len(error.problems) > 1
        say(f"vae: {len(error.problems)} errors\n{error}" if many else f"vae: {error}")  # type: ignore[attr-defined]
        sys.exit(error.exit_code)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except typer.Abort:
        sys.exit(1)
    except Exception as error:
        if is_out_of_memory(error) and os.environ.get("VAECLI_DEBUG") != "1":
            say("vae: out of memory; ask for less, or for a smaller model, or run it where there is more")
            sys.exit(VaecliError.exit_code)
        if not hasattr(error, "format_message"):
            raise
        from typer import rich_utils

        error.message = f"{error.message.removeprefix('Value error, ')}{_hint(error)}"  # type: ignore[attr-defined]
        rich_utils.rich_format_error(error)  # type: ignore[arg-type]
        sys.exit(2)


def _prepare_streams() -> None:
    """Open what was closed, since what is printed there would go to the other; show warnings of runs as notes."""
    for stream in ("stdout", "stderr"):
        if getattr(sys, stream) is None:
            setattr(sys, stream, open(os.devnull, "w"))  # noqa: PTH123, SIM115 (it stays open)
    show = warnings.showwarning

    def show_as_note(message: Warning | str, category: type[Warning], *where: Any) -> None:
        if issubclass(category, ReproducibilityWarning):
            note(str(message))
        else:
            show(message, category, *where)

    warnings.showwarning = show_as_note  # type: ignore[assignment]


def _hint(error: Any) -> str:
    """Say what would be right in place of an option or a value that does not exist."""
    option, context = getattr(error, "option_name", None), getattr(error, "ctx", None)
    if option is None:
        value, *choices = [*re.findall(r"'([^']*)'", error.message), ""]
        near = None if "Did you mean" in error.message else nearest(value, choices)  # of commands, Typer says it
        return f" Did you mean {near}?" if near else ""
    if context is None or context.info_name not in TAKE_SETTINGS:
        return ""
    from vaecli.config.loading import all_keys
    from vaecli.config.schema import Config, get_setting

    name = option.lstrip("-").replace("-", "_")
    for key in all_keys():
        if key.rpartition(".")[2] == ALIASES.get(name, name):
            _, _, given = " ".join(sys.argv).partition(f" {option}")
            value = given.lstrip(" =").partition(" ")[0] or get_setting(Config(), key)
            return f". Settings go as KEY=VALUE: {key}={value}"
    return ""
