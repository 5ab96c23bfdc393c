"""`vae sweep`: a grid of settings, run and put side by side."""

import os
from pathlib import Path
from typing import Annotated

import typer

from vaecli.cli.app import RUNS, DataDir, Json, Quiet, RunsDir, app, examples, note, result
from vaecli.cli.caveats import caveats
from vaecli.cli.compare import SOME_FAILED
from vaecli.cli.train import StopOnSignal
from vaecli.errors import UsageError


@app.command(
    epilog=examples(
        "vae sweep sizes.yaml --dry-run",
        "vae sweep sizes.yaml --jobs 2",
        "vae sweep sizes.yaml --jobs 8 --out sizes --json",
    )
)
def sweep(
    spec: Annotated[Path, typer.Argument(metavar="SPEC.yaml", help="base, grid, points, resources, evaluation.")],
    jobs: Annotated[int, typer.Option("--jobs", min=1, help="Runs at a time.")] = 1,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List the runs and do nothing.")] = False,
    out: Annotated[Path | None, typer.Option("--out", help="The directory of the results.")] = None,
    runs_dir: RunsDir = RUNS,
    data_dir: DataDir = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Train and evaluate every point of a sweep; what is complete is not done again, what was cut is resumed."""
    from vaecli.sweep import load_sweep, run_sweep

    if not spec.is_file():
        raise UsageError(f"{spec}: no such sweep; it is a YAML file with a grid of settings")
    planned = load_sweep(spec)
    if dry_run:
        from vaecli.settings import label, setting

        listed = [{key: setting(config, key) for key in planned.keys} for config in planned.configs]
        result({"runs": listed} if as_json else "\n".join(label(config, planned.keys) for config in planned.configs))
        return
    silent = quiet or as_json
    if not silent:
        for caveat in caveats(planned.configs, planned.keys):
            note(caveat)
        note(f"{len(planned.configs)} runs, {jobs} at a time, each on {planned.spec.resources.threads} threads")
    if jobs * planned.spec.resources.threads > (os.cpu_count() or 1) and not silent:
        note(f"that is more than the {os.cpu_count()} cores of this machine")
    from vaecli.cli.progress import board

    directory = out or runs_dir / "sweeps" / planned.name
    with StopOnSignal() as stop, board(planned.keys, quiet=silent) as watch:
        swept = run_sweep(
            planned, directory, runs_dir=runs_dir, data_dir=data_dir, jobs=jobs, watch=watch, stop=stop
        )  # fmt: skip
    from vaecli.sweepreport import write_sweep_report

    results = write_sweep_report(swept, directory)
    result(results if as_json else str(directory / "report.html"))
    if swept.failed:
        note(f"{len(swept.failed)} of {len(swept.outcomes)} runs failed:")
        for outcome in swept.failed:
            note(f"  {outcome.error}; again with: {planned.command(outcome)}")
        raise typer.Exit(SOME_FAILED)
