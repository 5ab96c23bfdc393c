"""`vae runs`: what has been run."""

from typing import Annotated, Any

import typer

from vaecli.cli.app import RUNS, Json, RunsDir, app, examples, note, result

runs = typer.Typer(
    help="List runs and show what came of them.",
    no_args_is_help=True,
    epilog=examples("vae runs ls", "vae runs show 20261122-1431"),
)
app.add_typer(runs, name="runs")


@runs.command("ls", epilog=examples("vae runs ls", "vae runs ls --json | jq '.runs[].best.elbo'"))
def ls(runs_dir: RunsDir = RUNS, as_json: Json = False) -> None:
    """List all runs, oldest first, with their best validation ELBO in nats."""
    from vaecli.runs import list_runs

    found = [(run, run.status) for run in list_runs(runs_dir)]
    if as_json:
        result({"runs": [{"run": str(run.path), **status} for run, status in found]})
        return
    if not found:
        note(f"no runs in {runs_dir}/ yet; `vae train --config bernoulli.yaml` makes one")
        return
    rows = [("run", "state", "epochs", "best ELBO", "at", "")]
    for run, status in found:
        best = status.get("best") or {}
        epochs = f"{status.get('epoch', 0)}/{status.get('epochs', '?')}"
        rows.append(
            (
                f"{run.path.parent.name}/{run.name}",
                str(status.get("state", "?")),
                epochs,
                nats(best.get("elbo")),
                str(best.get("epoch", "")),
                status.get("caveat") or "",
            )
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        cells = [
            cell.rjust(width) if i in {2, 3, 4} else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        result("  ".join(cells).rstrip())


@runs.command(
    "show",
    epilog=examples("vae runs show 20261122-1431", "vae runs show runs/bernoulli/20261122-143125-bernoulli-s0 --json"),
)
def show(
    reference: Annotated[str, typer.Argument(metavar="RUN", help="A run directory, a name or a unique prefix of it.")],
    runs_dir: RunsDir = RUNS,
    as_json: Json = False,
) -> None:
    """Show one run: how it ended, its figures, and its config."""
    from vaecli.configfile import dump_config
    from vaecli.runs import find_run

    run = find_run(reference, runs_dir)
    status = run.status
    if as_json:
        result({"run": str(run.path), "status": status, "config": run.config.model_dump(mode="json")})
        return
    reason = f" ({status['reason']})" if status.get("reason") else ""
    lines = [
        f"run         {run.path}",
        f"state       {status.get('state', '?')}{reason}",
        f"epochs      {status.get('epoch', 0)} of {status.get('epochs', '?')}, {status.get('images', 0):,} images seen",
        f"training    {status.get('seconds', 0):.1f} s",
    ]
    lines += [
        f"{which:11} {figures(status[which])}, validation, epoch {status[which]['epoch']}"
        for which in ("best", "last")
        if status.get(which)
    ]
    if status.get("caveat"):
        lines.append(f"caveat      {status['caveat']}")
    result("\n".join(lines) + "\n\n" + dump_config(run.config).rstrip())


def nats(value: float | None) -> str:
    """A bound as it is shown."""
    return "" if value is None else f"{value:.2f}"


def figures(bound: dict[str, Any]) -> str:
    """A bound and its two terms."""
    return f"ELBO {nats(bound['elbo'])} = {nats(bound['log_likelihood'])} - {nats(bound['kl'])} nats"
