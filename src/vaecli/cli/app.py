"""The Typer application, the options that its commands share, and what they say of configs."""

import json
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from vaecli.cli import completion
from vaecli.errors import UsageError

if TYPE_CHECKING:
    from vaecli.config.schema import Config

app = typer.Typer(
    name="vae",
    help="Train Variational Auto-Encoders from a YAML config, and look at what they learned.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)

RunsDir = Annotated[Path, typer.Option("--runs-dir", envvar="VAECLI_RUNS_DIR", help="Where runs are kept.")]
DataDir = Annotated[
    Path | None,
    typer.Option(
        "--data-dir", envvar="VAECLI_DATA_DIR", help="Where torchvision's data sets are, or are downloaded to."
    ),
]
Ckpt = Annotated[
    str,
    typer.Option(
        "--ckpt",
        metavar="RUN",
        help="A run directory, a checkpoint file, a run's name or a unique prefix of it.",
        autocompletion=completion.runs,
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print results only.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout and nothing else.")]
SplitName = Annotated[
    Literal["train", "validation", "test"],
    typer.Option("--split", metavar="SPLIT", help="Which images: train, validation or test."),
]
Engine = Literal["local", "ray"]  # vaecli.sweeps.execution's, which would import pydantic for a page of help
EngineName = Annotated[Engine, typer.Option("--engine", help="This machine, or a Ray cluster.")]
Address = Annotated[
    str | None,
    typer.Option(
        "--address",
        help="Of a Ray cluster: host:port, or auto for the one that this machine is part of; "
        "default: $RAY_ADDRESS, or a new one on this machine.",
    ),
]
Jobs = Annotated[
    int | None, typer.Option("--jobs", min=1, help="Runs at a time; default: 1, on a cluster all it has room for.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="List the runs and do nothing.")]
RUNS = Path("runs")
SOME_FAILED = 5
"""The exit code where some runs of a sweep failed."""


def examples(*commands: str) -> str:
    """Format the examples at the end of a command's help."""
    return "[bold]Examples[/bold]\n\n" + "\n\n".join(f"  {command}" for command in commands)


def say(text: str) -> None:
    """Print a line on stderr; one that cannot be printed is lost, which must never cost a run."""
    with suppress(OSError):
        print(text, file=sys.stderr, flush=True)


def note(message: str) -> None:
    """Print something that is not a result."""
    say(f"vae: {message}")


def result(value: object) -> None:
    """Print a result on stdout: text as it is, anything else as one JSON object."""
    if not isinstance(value, str):
        from vaecli.files import finite

        value = json.dumps(finite(value), indent=2)
    print(value, flush=True)


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.", is_eager=True)] = False,
) -> None:
    if version:
        from importlib.metadata import version as installed

        result(f"vaecli {installed('vaecli')}")
        raise typer.Exit


def caveats(configs: "Sequence[Config]", overrides: Sequence[str]) -> list[str]:
    """Say which settings of some configs have no effect, and what their bounds are not; each once."""
    notes = [f"{', '.join(keys)}: no effect, {reason}" for reason, keys in _unused(configs, overrides).items()]
    if any(config.is_relaxed for config in configs):
        notes.append("data.binarize: none puts grey pixels into a Bernoulli: its bound is relaxed, not a likelihood")
    for config in [config for config in configs if config.is_ill_posed][:1]:
        floor = config.model.min_log_sigma
        limit = "has no upper limit" if floor is None else f"is limited only by model.min_log_sigma: {floor}"
        notes.append(
            f"a learned scale on discrete pixels is ill-posed: the bound {limit}; data.dequantize: true fixes it"
        )
    return notes


def _unused(configs: "Sequence[Config]", overrides: Sequence[str]) -> dict[str, list[str]]:
    """Return the settings that were written and do nothing, by the reason."""
    from vaecli.config.schema import Config
    from vaecli.config.unused import unused_settings

    default = Config().model_dump()
    named = {text.partition("=")[0] for text in overrides}
    reasons: dict[str, list[str]] = {}
    for config in configs:
        written = config.model_dump()
        for key, reason in unused_settings(config).items():
            section, _, name = key.partition(".")
            if (key in named or written[section][name] != default[section][name]) and key not in reasons.get(
                reason, []
            ):
                reasons.setdefault(reason, []).append(key)
    return reasons


class StopOnSignal:
    """Answer whether SIGINT or SIGTERM has come; the second one ends the process at once."""

    def __init__(self) -> None:
        self.signalled = False

    def __enter__(self) -> "StopOnSignal":
        self._before = {number: signal.signal(number, self._on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def __call__(self) -> bool:
        """Return whether to stop."""
        return self.signalled

    def _on_signal(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        if self.signalled:
            os._exit(130)
        self.signalled = True
        note("stopping; once more to leave at once")


def check_address(address: str | None, engine: Engine) -> None:
    """Raise UsageError where a cluster is named that is not asked for."""
    if address is not None and engine != "ray":
        raise UsageError("--address names a Ray cluster; it goes with --engine ray")
