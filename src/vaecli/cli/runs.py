"""`vae runs`: list runs, show one, compare the settings of two."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from vaecli.cli import completion
from vaecli.cli.app import RUNS, Json, RunsDir, app, examples, note, result
from vaecli.errors import UsageError, VaecliError, suggest

if TYPE_CHECKING:
    from vaecli.runs.run import Run

runs = typer.Typer(
    help="List runs, show one, and compare the settings of two.",
    no_args_is_help=True,
    epilog=examples("vae runs ls", "vae runs show 20261122-1431", "vae runs diff 20261122-1431 20261122-1502"),
)
app.add_typer(runs, name="runs")


@runs.command(
    "ls",
    epilog=examples(
        "vae runs ls",
        "vae runs ls --sort elbo --where model.decoder=bernoulli --where model.latent_dim=20",
        "vae runs ls --json | jq '.runs[].best.elbo'",
    ),
)
def ls(
    sort: Annotated[
        Literal["time", "elbo"], typer.Option("--sort", help="Oldest first, or best first within each support.")
    ] = "time",
    where: Annotated[
        list[str] | None,
        typer.Option(
            "--where", metavar="KEY=VALUE", help="Only runs with this setting.", autocompletion=completion.settings
        ),
    ] = None,
    runs_dir: RunsDir = RUNS,
    as_json: Json = False,
) -> None:
    """List runs with their best validation ELBO in nats."""
    from vaecli.runs.records import UNREADABLE
    from vaecli.runs.run import list_runs

    found = [(run, run.status) for run in list_runs(runs_dir)]
    if where:
        wanted = _filter(where)
        found = [(run, status) for run, status in found if wanted(run)]
    if sort == "elbo":  # bounds of two supports cannot be compared, nor what is no likelihood with what is one
        found.sort(key=lambda pair: (*(pair[1].get(key) or "" for key in ("support", "caveat")), -_best_elbo(pair[1])))
    if as_json:
        result({"runs": [{"run": str(run.path), **status} for run, status in found]})
        return
    if not found:
        none = "no such runs" if where else "no runs"
        note(f"{none} in {runs_dir}/ yet; `vae train --config bernoulli.yaml` makes one")
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
                (status.get("reason") if status.get("state") == UNREADABLE else status.get("caveat")) or "",
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
    reference: Annotated[
        str,
        typer.Argument(
            metavar="RUN", help="A run directory, a name or a unique prefix of it.", autocompletion=completion.runs
        ),
    ],
    runs_dir: RunsDir = RUNS,
    as_json: Json = False,
) -> None:
    """Show one run: how it ended, its metrics, and its config."""
    from vaecli.config.loading import dump_config
    from vaecli.runs.run import find_run

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
        f"{which:11} {format_bound(status[which])}, validation, epoch {status[which]['epoch']}"
        for which in ("best", "last")
        if status.get(which)
    ]
    if status.get("caveat"):
        lines.append(f"caveat      {status['caveat']}")
    result("\n".join(lines) + "\n\n" + dump_config(run.config).rstrip())


@runs.command("diff", epilog=examples("vae runs diff 20261122-1431 20261122-1502"))
def diff(
    first: Annotated[
        str,
        typer.Argument(
            metavar="A", help="A run directory, a name or a unique prefix of it.", autocompletion=completion.runs
        ),
    ],
    second: Annotated[str, typer.Argument(metavar="B", help="The other.", autocompletion=completion.runs)],
    runs_dir: RunsDir = RUNS,
    as_json: Json = False,
) -> None:
    """Show the settings in which two runs differ, and what came of each."""
    from vaecli.config.loading import differing_settings
    from vaecli.config.schema import get_setting
    from vaecli.runs.run import find_run

    pair = [find_run(reference, runs_dir) for reference in (first, second)]
    configs = [run.config for run in pair]
    differing = {key: [get_setting(config, key) for config in configs] for key in differing_settings(*configs)}
    best = [(run.status.get("best") or {}) for run in pair]
    if as_json:
        result({"runs": [str(run.path) for run in pair], "settings": differing, "best": best})
        return
    shown = {"": [run.name for run in pair]} | differing
    shown["best ELBO"] = [nats(bound.get("elbo")) for bound in best]
    rows = [[key, *map(str, both)] for key, both in shown.items()]
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    result("\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows))


def _best_elbo(status: dict[str, Any]) -> float:
    elbo = (status.get("best") or {}).get("elbo")
    return float("-inf") if elbo is None else float(elbo)


def nats(value: float | None) -> str:
    """Format a bound."""
    return "" if value is None else f"{value:.2f}"


def format_bound(bound: dict[str, Any]) -> str:
    """Format a bound and its two terms."""
    return f"ELBO {nats(bound['elbo'])} = {nats(bound['log_likelihood'])} - {nats(bound['kl'])} nats"


def _filter(conditions: "Sequence[str]") -> "Callable[[Run], bool]":
    """Return a test whether a run's config has all of these `KEY=VALUE` settings. Raises UsageError."""
    import yaml

    from vaecli.config.loading import all_keys
    from vaecli.config.schema import get_setting

    wanted = {}
    for text in conditions:
        key, equals, written = text.partition("=")
        if not equals or key not in all_keys():
            raise UsageError(f"{text!r}: is not a KEY=VALUE of a config; {suggest(key, all_keys())}")
        try:
            wanted[key] = yaml.safe_load(written)
        except yaml.YAMLError as error:
            raise UsageError(f"{text!r}: its value is not valid YAML") from error

    def match(run: "Run") -> bool:
        try:
            return all(get_setting(run.config, key) == value for key, value in wanted.items())
        except VaecliError:
            return False

    return match
