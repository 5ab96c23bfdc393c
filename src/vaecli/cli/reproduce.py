"""`vae reproduce`: published experiments done again, our figures beside theirs."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vaecli.cli.app import (
    RUNS,
    SOME_FAILED,
    Address,
    DataDir,
    DryRun,
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

if TYPE_CHECKING:
    from vaecli.papers.experiment import Experiment
    from vaecli.sweeps.sweep import SweepResult

LIST = "ls"


@app.command(
    epilog=examples(
        "vae reproduce ls",
        "vae reproduce aevb-figure-2 --budget 1e7 --jobs 2",
        "vae reproduce aevb-figure-2 --where model.latent_dim=20",
        "vae reproduce aevb-figure-2 --report",
        "vae reproduce aevb-figure-2 --report --with elsewhere/results.json",
        "vae reproduce aevb-figure-2-frey --data freyfaces.npy",
        "vae reproduce my-paper.yaml --dry-run",
    )
)
def reproduce(
    experiment: Annotated[
        str, typer.Argument(metavar="NAME", help="A shipped experiment, the path of a YAML file, or ls to list them.")
    ],
    settings: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="Settings over those of every run: another experiment, and so named."),
    ] = None,
    budget: Annotated[
        float | None, typer.Option("--budget", min=1, help="Images that every run sees; default: as in the paper.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option("--data", help="The images, where an experiment's cannot be shipped.")
    ] = None,
    where: Annotated[
        list[str] | None, typer.Option("--where", metavar="KEY=VALUE", help="Train those runs only; may be repeated.")
    ] = None,
    report: Annotated[bool, typer.Option("--report", help="Train nothing; write the page from what there is.")] = False,
    others: Annotated[
        list[Path] | None,
        typer.Option(
            "--with",
            metavar="FILE",
            help="A results.json of runs that are elsewhere, for the page to show; may be repeated.",
        ),
    ] = None,
    dry_run: DryRun = False,
    jobs: Jobs = None,
    engine: EngineName = "local",
    address: Address = None,
    out: Annotated[Path | None, typer.Option("--out", help="The directory of the page.")] = None,
    runs_dir: RunsDir = RUNS,
    data_dir: DataDir = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Run a published experiment and lay our figures beside the published ones; what was cut is resumed."""
    if experiment == LIST:
        _list(runs_dir, as_json=as_json)
        return
    from vaecli.papers.experiment import load_experiment
    from vaecli.sweeps.spec import as_yaml

    check_address(address, engine)
    given = [*(settings or []), *([] if data is None else [f"data.name={as_yaml(str(data.absolute()))}"])]
    planned = load_experiment(experiment, budget=budget, settings=given, data_dir=data_dir)
    sweep = planned.of(where or [])
    silent = quiet or as_json
    if dry_run:
        _show_plan(planned, [*sweep.configs], as_json=as_json)
        return
    from vaecli.config.schema import describe_settings
    from vaecli.papers.comparison import gather_outcomes, percent
    from vaecli.papers.page import check_page, own_results, progress_in_words, write_page
    from vaecli.papers.results import read_results

    directory = out or runs_dir / "papers" / (f"{planned.name}-changed" if planned.changes else planned.name)
    check_page(planned, directory)
    known = [*(others or []), *own_results(directory)]
    for path in others or []:
        read_results(path)  # better known before hours of work than after
    found: SweepResult | None = None
    if report:
        from vaecli.data.summaries import fingerprint
        from vaecli.sweeps.manifest import claim_directory, manifest_of

        claim_directory(directory, sweep.kind, manifest_of(sweep, fingerprint(sweep.base.data.name)))
    else:
        for caveat in [] if silent else caveats(sweep.configs, sweep.keys):
            note(caveat)
        if not silent:
            share = "" if planned.share == 1 else f", {percent(planned.share)} % of the full experiment"
            n = len(sweep.configs)
            note(f"{n} run{'' if n == 1 else 's'} of at least {planned.budget:,.0f} images{share}")
        from vaecli.cli.progress import show_sweep
        from vaecli.sweeps.execution import run_sweep

        with StopOnSignal() as stop, show_sweep(sweep.keys, quiet=silent) as callback:
            found = run_sweep(
                sweep, directory, runs_dir=runs_dir, data_dir=data_dir, engine=engine, address=address, jobs=jobs,
                callback=callback, stop=stop,
            )  # fmt: skip
    failed = (
        [f"{describe_settings(r.config, sweep.keys) or 'the run'}: {r.error}" for r in found.failed] if found else []
    )
    outcomes = gather_outcomes(planned, runs_dir=runs_dir, data_dir=data_dir, others=known)
    results = write_page(planned, outcomes, directory, failed)
    if not silent:
        note(progress_in_words(results))
    result(results if as_json else str(directory / "report.html"))
    if found is not None and found.failed:
        note(f"{len(found.failed)} of {len(found.results)} runs failed; the same command does them again:")
        for text in failed:
            note(f"  {text}")
        raise typer.Exit(SOME_FAILED)


def _list(runs_dir: Path, *, as_json: bool) -> None:
    """List the experiments that ship, what each needs, and what has been done."""
    from vaecli.papers.experiment import shipped_experiments
    from vaecli.papers.results import RESULTS
    from vaecli.papers.spec import read_experiment

    rows: dict[str, dict[str, Any]] = {}
    for name, path in shipped_experiments().items():
        spec = read_experiment(path)
        rows[name] = {
            "title": spec.title,
            "source": spec.source,
            "images": spec.budget,
            "needs": spec.data,
            "done": _done(runs_dir / "papers" / name / RESULTS),
        }
    if as_json:
        result(rows)
        return
    for name, row in rows.items():
        needs = f"; needs {row['needs']}" if row["needs"] else ""
        result(f"{name}\n  {row['title']}: {row['source']}\n  {row['images']:.3g} images a run{needs}\n  {row['done']}")


def _done(path: Path) -> str:
    """Say what the last page of an experiment says of its progress."""
    from vaecli.papers.page import progress_in_words

    try:
        return progress_in_words(json.loads(path.read_text()))
    except (OSError, ValueError, KeyError, TypeError):
        return "not run yet"


def _show_plan(planned: "Experiment", configs: "list[Any]", *, as_json: bool) -> None:
    from vaecli.config.schema import describe_settings, get_setting

    keys = planned.sweep.keys
    if as_json:
        runs = [{key: get_setting(c, key) for key in (*keys, "training.epochs")} for c in configs]
        result({"budget": planned.budget, "full_budget": planned.spec.budget, "runs": runs})
    else:
        result("\n".join(describe_settings(config, (*keys, "training.epochs")) for config in configs))
