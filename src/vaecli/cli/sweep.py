"""`vae sweep`: a grid of settings, trained, evaluated and put side by side."""

import os
from pathlib import Path
from typing import Annotated

import typer

from vaecli.cli.app import (
    RUNS,
    SOME_FAILED,
    Address,
    DataDir,
    DryRun,
    Engine,
    EngineName,
    Jobs,
    Json,
    Quiet,
    RunsDir,
    StopOnSignal,
    app,
    caveats,
    check_address,
    examples,
    note,
    result,
)
from vaecli.errors import UsageError


@app.command(
    epilog=examples(
        "vae sweep sizes.yaml --dry-run",
        "vae sweep sizes.yaml --jobs 2",
        "vae sweep sizes.yaml --jobs 8 --out sizes --json",
        "vae sweep sizes.yaml --engine ray --address auto",
    )
)
def sweep(
    spec: Annotated[
        Path, typer.Argument(metavar="SPEC.yaml", help="A file of base, grid, points, resources and evaluation.")
    ],
    engine: EngineName = "local",
    address: Address = None,
    jobs: Jobs = None,
    dry_run: DryRun = False,
    out: Annotated[Path | None, typer.Option("--out", help="The directory of the results.")] = None,
    runs_dir: RunsDir = RUNS,
    data_dir: DataDir = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Train and evaluate every point of a sweep; what is complete is not done again, what was cut is resumed."""
    from vaecli.files import may_be_file
    from vaecli.sweeps.execution import run_sweep
    from vaecli.sweeps.sweep import load_sweep

    check_address(address, engine)
    if not may_be_file(spec):
        raise UsageError(f"{spec}: no such sweep; it is a YAML file with a grid of settings")
    planned = load_sweep(spec)
    if dry_run:
        from vaecli.config.schema import describe_settings, get_setting

        if as_json:
            result({"runs": [{key: get_setting(config, key) for key in planned.keys} for config in planned.configs]})
        else:
            result("\n".join(describe_settings(config, planned.keys) for config in planned.configs))
        return
    silent = quiet or as_json
    if not silent:
        for caveat in caveats(planned.configs, planned.keys):
            note(caveat)
        _announce(len(planned.configs), planned.resources.threads, engine, jobs)
    from vaecli.cli.progress import show_sweep

    directory = out or runs_dir / "sweeps" / planned.name
    with StopOnSignal() as stop, show_sweep(planned.keys, quiet=silent) as callback:
        found = run_sweep(
            planned, directory, runs_dir=runs_dir, data_dir=data_dir, engine=engine, address=address, jobs=jobs,
            callback=callback, stop=stop,
        )  # fmt: skip
    from vaecli.reports.report import write_report

    results = write_report(found, directory)
    result(results if as_json else str(directory / "report.html"))
    if found.failed:
        note(f"{len(found.failed)} of {len(found.results)} runs failed:")
        for failed in found.failed:
            note(f"  {failed.error}; again with: {planned.command(failed)}")
        raise typer.Exit(SOME_FAILED)


def _announce(n_runs: int, threads: int | None, engine: Engine, jobs: int | None) -> None:
    """Say how many runs start, and whether this machine has the cores for it."""
    if engine == "ray":
        note(f"{n_runs} runs on a Ray cluster, each on {_threads(threads or 1)}")
        return
    jobs, cores = min(jobs or 1, n_runs), os.cpu_count() or 1
    each = "a share of the cores" if threads is None else _threads(threads)
    note(f"{n_runs} runs, {jobs} at a time, each on {each}")
    if jobs * (threads or 1) > cores:
        note(f"that is more than the {cores} cores of this machine")


def _threads(n: int) -> str:
    return "one thread" if n == 1 else f"{n} threads"
