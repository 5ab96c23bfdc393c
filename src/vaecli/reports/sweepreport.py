"""The report of a sweep: its tables, and a plot for every setting that varies."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vaecli.config.loading import dump_config
from vaecli.config.settings import label, setting
from vaecli.reports import plots as figures
from vaecli.reports.report import ACROSS, WITHIN, figures_of, table, warnings, write_files
from vaecli.reports.statistics import interval
from vaecli.sweeps.jobs import JobResult, values
from vaecli.sweeps.sweep import Swept

SEED = "seed"
MOST_LINES = 10
"""In a chart; beyond, their names would hide it."""


def write_sweep_report(swept: Swept, out: Path) -> dict[str, Any]:
    """Write report.html, report.md, results.csv, results.json and figures/ into a directory.

    Returns:
        What results.json holds.

    Raises:
        VaecliError: A file cannot be written.
    """
    keys = swept.sweep.keys
    axes = [key for key in keys if key != SEED]
    done = [outcome for outcome in swept.outcomes if not outcome.error]
    groups = _grouped(done, axes)
    supports: dict[str, list[JobResult]] = {}
    for outcome in done:
        supports.setdefault(_support(outcome), []).append(outcome)
    within = [
        {"title": title, "table": table(_grouped(found, axes), _short(axes), WITHIN)}
        for title, found in supports.items()
    ]
    plots = {f"by-{key}": _plot(supports, key, axes) for key in axes if _is_numeric(done, key)}
    failed = [f"{label(o.config, keys)}: {o.error}" for o in swept.outcomes if o.error]
    results = {
        "base": swept.sweep.base.model_dump(mode="json"),
        "spec": swept.sweep.spec.model_dump(mode="json"),
        "runs": [{key: setting(o.config, key) for key in keys} | figures_of(o) for o in swept.outcomes],
        "warnings": warnings({decoder: found for (decoder,), found in _grouped(done, ["model.decoder"]).items()}),
    }
    content = {
        "name": swept.sweep.name,
        "n_runs": len(swept.outcomes),
        "k": swept.sweep.spec.evaluation.k,
        "data": swept.sweep.base.data.name,
        "varied": {key: _seen(swept.outcomes, key) for key in keys},
        "within": within,
        "across": table(groups, _short(axes), ACROSS),
        "plots": {name: name.removeprefix("by-") for name in plots},
        "warnings": results["warnings"],
        "failed": failed,
        "config": dump_config(swept.sweep.base).rstrip(),
    }
    write_files(out, "sweep", content, {name: figures.png(plot) for name, plot in plots.items()}, results)
    return results


def _support(outcome: JobResult) -> str:
    """What the run's bound is a statement about: only bounds of one such may be compared."""
    caveat = outcome.figures["caveat"]
    observed = outcome.figures["observed"]
    return f"{outcome.config.model.likelihood.support.value}, pixels {observed}" + (f": {caveat}" if caveat else "")


def _grouped(outcomes: Sequence[JobResult], axes: Sequence[str]) -> dict[tuple[str, ...], list[JobResult]]:
    """Runs that differ in nothing but the seed, by their settings."""
    groups: dict[tuple[str, ...], list[JobResult]] = {}
    for outcome in outcomes:
        groups.setdefault(tuple(str(setting(outcome.config, key)) for key in axes), []).append(outcome)
    return groups


def _short(keys: Sequence[str]) -> tuple[str, ...]:
    return tuple(key.rpartition(".")[2] for key in keys)


def _seen(outcomes: Sequence[JobResult], key: str) -> str:
    return ", ".join(dict.fromkeys(str(setting(outcome.config, key)) for outcome in outcomes))


def _is_numeric(outcomes: Sequence[JobResult], key: str) -> bool:
    """Whether a setting takes several values that can stand on an axis."""
    seen = [setting(outcome.config, key) for outcome in outcomes]
    return len(set(map(str, seen))) > 1 and all(isinstance(v, int | float) and not isinstance(v, bool) for v in seen)


def _plot(supports: dict[str, list[JobResult]], key: str, axes: Sequence[str]) -> Figure:
    """The ELBO over a setting, one chart for each support: a line for each choice of the others, a band over seeds."""
    figure = Figure(figsize=(5.2 * len(supports), 4.2), layout="constrained")
    others = [axis for axis in axes if axis != key]
    for axis, (support, outcomes) in zip(
        figure.subplots(1, len(supports), squeeze=False)[0], supports.items(), strict=True
    ):
        lines = _grouped(outcomes, others)
        for i, (labels, found) in enumerate(lines.items()):
            named = ", ".join(f"{name} {value}" for name, value in zip(_short(others), labels, strict=True))
            _line(axis, found, key, figures.COLOURS[i % len(figures.COLOURS)], named)
        axis.set(title=support, xlabel=key, ylabel="ELBO (nats, test)")
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
        if others and len(lines) <= MOST_LINES:
            axis.legend(frameon=False, fontsize=9)
    return figure


def _line(axis: Axes, outcomes: Sequence[JobResult], key: str, colour: Any, name: str) -> None:
    at: dict[float, list[JobResult]] = {}
    for outcome in outcomes:
        at.setdefault(setting(outcome.config, key), []).append(outcome)
    x = sorted(at)
    found = [interval(values(at[one], "elbo")) for one in x]
    mean = np.array([middle for middle, _ in found])
    half = np.array([0.0 if width is None else width for _, width in found])
    axis.plot(x, mean, "o-", color=colour, ms=4, lw=1.4, label=name)
    axis.fill_between(x, mean - half, mean + half, color=colour, alpha=0.15, lw=0)
    if min(x) > 0 and max(x) / min(x) >= 8:
        axis.set_xscale("log")
        axis.set_xticks(x, [f"{value:g}" for value in x])
        axis.minorticks_off()
