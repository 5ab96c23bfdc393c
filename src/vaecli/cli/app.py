"""The Typer application, and the options that its commands share."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

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
        "--ckpt", metavar="RUN", help="A run directory, a checkpoint file, a run's name or a unique prefix of it."
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print results only.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout and nothing else.")]
RUNS = Path("runs")


def examples(*commands: str) -> str:
    """The end of a command's help."""
    return "[bold]Examples[/bold]\n\n" + "\n\n".join(f"  {command}" for command in commands)


def note(message: str) -> None:
    """Say something that is not a result."""
    print(f"vae: {message}", file=sys.stderr)


def result(value: object) -> None:
    """Print a result: text as it is, anything else as one JSON object."""
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
