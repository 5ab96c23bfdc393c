"""The command line: the only part of vaecli that prints or exits. Nothing here imports torch before it is needed."""

import codecs
import importlib
import io
import os
import re
import signal
import sys
import warnings
from contextlib import suppress
from typing import Any

import typer

from vaecli.cli.app import app, note, say
from vaecli.errors import ConfigError, ReproducibilityWarning, VaecliError, is_out_of_memory, nearest

COMMANDS = (
    "train", "evaluate", "compare", "sweep", "reproduce", "generate", "explore", "runs",
    "configs", "validate", "explain",
)  # fmt: skip
"""The modules of commands, in the order of the help; each registers its own."""
TAKE_SETTINGS = ("train", "compare-decoders", "reproduce")
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
    except BrokenPipeError:
        _give_stdout_up()
        sys.exit(1)
    except typer.Abort:
        sys.exit(1)
    except Exception as error:
        is_usage = hasattr(error, "format_message")
        code = _say_what_failed(error) if is_usage or os.environ.get("VAECLI_DEBUG") != "1" else None
        if code is None:
            raise
        sys.exit(code)


def _say_what_failed(error: Any) -> int | None:
    """Say in one message what an error's user can mend, and return the exit code; None if the fault is ours."""
    if isinstance(error, VaecliError):
        many = isinstance(error, ConfigError) and len(error.problems) > 1
        say(f"vae: {len(error.problems)} errors\n{error}" if many else f"vae: {error}")  # type: ignore[attr-defined]
        return error.exit_code
    if is_out_of_memory(error):
        say("vae: out of memory; ask for less, or for a smaller model, or run it where there is more")
        return VaecliError.exit_code
    if isinstance(error, OSError):
        say(f"vae: {_what_failed(error)}")
        return VaecliError.exit_code
    if not hasattr(error, "format_message"):
        return None
    from typer import rich_utils

    error.message = f"{error.message.removeprefix('Value error, ')}{_hint(error)}"
    with suppress(OSError):
        rich_utils.rich_format_error(error)
    return 2


def _what_failed(error: OSError) -> str:
    """Say what the system refused: the file that it names, else stdout, if that takes nothing more."""
    if error.filename:
        return f"{error.filename}: {error.strerror}"
    try:
        print(flush=True)
    except OSError:
        _give_stdout_up()
        return f"stdout cannot be written: {error.strerror}"
    return str(error)


def _give_stdout_up() -> None:
    """Lose what is still to be printed, which would fail again at the end of the process."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _encode(error: UnicodeError) -> tuple[str | bytes, int]:
    """Print a path that is no text as the bytes that it is, and escape what else stdout has no letters for."""
    try:
        return codecs.lookup_error("surrogateescape")(error)
    except UnicodeError:
        return codecs.lookup_error("backslashreplace")(error)


def _prepare_streams() -> None:
    """Open what was closed, since what is printed there would go to the other; print any text that there can be.

    Warnings of runs are shown as notes.
    """
    for stream in ("stdout", "stderr"):
        if getattr(sys, stream) is None:
            setattr(sys, stream, open(os.devnull, "w"))  # noqa: PTH123, SIM115 (it stays open)
    codecs.register_error("vaecli", _encode)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="vaecli")
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
