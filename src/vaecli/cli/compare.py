"""`vae compare-decoders`: every decoder, several seeds, one report."""

import os
from pathlib import Path
from typing import Annotated

import typer

from vaecli.cli import completion
from vaecli.cli.app import (
    RUNS,
    SOME_FAILED,
    DataDir,
    Json,
    Quiet,
    RunsDir,
    StopOnSignal,
    app,
    caveats,
    examples,
    note,
    result,
)
from vaecli.errors import UsageError, suggest

TUTORIAL = ("gaussian", "i-gaussian", "bernoulli")
"""The decoders that the usual tutorial compares."""


@app.command(
    "compare-decoders",
    epilog=examples(
        "vae compare-decoders",
        "vae compare-decoders --decoders all --seeds 5 --jobs 2 --out all-decoders",
        "vae compare-decoders --config tutorial --seeds 1 training.epochs=5",
    ),
)
def compare_decoders(
    settings: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KEY=VALUE",
            help="Settings over the config's, for every decoder.",
            autocompletion=completion.settings,
        ),
    ] = None,
    config: Annotated[
        str | None, typer.Option("--config", "-c", help="The config that all share.", autocompletion=completion.configs)
    ] = None,
    decoders: Annotated[
        str | None,
        typer.Option(
            "--decoders",
            help="Names with commas between, or all; default: the tutorial's three; of vectors, what goes with them.",
            autocompletion=completion.decoders,
        ),
    ] = None,
    seeds: Annotated[int, typer.Option("--seeds", min=1, max=1000, help="How many.")] = 3,
    jobs: Annotated[int, typer.Option("--jobs", min=1, help="Runs at a time, each with its share of the cores.")] = 1,
    out: Annotated[Path | None, typer.Option("--out", help="The report's directory.")] = None,
    k: Annotated[int, typer.Option("--k", min=1, help="Importance samples per test image.")] = 500,
    limit: Annotated[
        int, typer.Option("--limit", min=2, help="Test images, evenly spaced; 10000 are all of MNIST's.")
    ] = 1000,
    runs_dir: RunsDir = RUNS,
    data_dir: DataDir = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Train every decoder with several seeds and compare them in a report; what is complete is not done again."""
    from vaecli.config.loading import load_config

    base = load_config(config, settings or [])
    names = _names(decoders, of_vectors=base.data.kind == "vectors")
    directory = out or runs_dir / "comparisons" / (base.name or "default")
    from vaecli.cli.progress import show_sweep
    from vaecli.config.jobs import EvaluationSpec
    from vaecli.sweeps.execution import compare
    from vaecli.sweeps.sweep import comparison

    silent = quiet or as_json
    evaluation = EvaluationSpec(k=k, limit=limit)
    planned = comparison(base, names, 1, evaluation)
    for caveat in [] if silent else caveats(planned.configs, settings or []):
        note(caveat)
    if jobs > (os.cpu_count() or 1):
        note(f"--jobs {jobs}: there are {os.cpu_count()} cores")
    with StopOnSignal() as stop, show_sweep(planned.keys, quiet=silent) as callback:
        found = compare(
            base, names, seeds, directory, runs_dir=runs_dir, data_dir=data_dir, jobs=jobs,
            evaluation=evaluation, callback=callback, stop=stop,
        )  # fmt: skip
    from vaecli.reports.report import write_report

    results = write_report(found, directory)
    result(results if as_json else str(directory / "report.html"))
    if found.failed:
        note(f"{len(found.failed)} of {len(found.results)} runs failed; the report says which")
        raise typer.Exit(SOME_FAILED)


def _names(decoders: str | None, *, of_vectors: bool) -> list[str]:
    from vaecli.config.likelihoods import LIKELIHOODS

    if decoders in {None, "all"}:
        names = list(TUTORIAL if decoders is None else LIKELIHOODS)
        return [name for name in names if LIKELIHOODS[name].takes_vectors or not of_vectors]
    assert decoders is not None
    names = list(dict.fromkeys(name.strip() for name in decoders.split(",")))
    unknown = [name for name in names if name not in LIKELIHOODS]
    if unknown:
        raise UsageError(f"--decoders: {unknown[0]!r} is not a decoder; {suggest(unknown[0], LIKELIHOODS)}")
    return names
