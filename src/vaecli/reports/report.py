"""The report of a sweep or a comparison: one HTML file, Markdown, CSV, JSON and the plots."""

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup
from matplotlib.figure import Figure

from vaecli.config.loading import dump_config
from vaecli.config.schema import describe_settings, get_setting
from vaecli.errors import VaecliError
from vaecli.files import write_json, write_text
from vaecli.reports import plots
from vaecli.reports.statistics import LEVEL
from vaecli.reports.tables import ACROSS, WITHIN, differences, group_by, group_by_support, rankings, table, warnings
from vaecli.sweeps.sweep import SEED, JobResult, SweepResult

SHARED_METADATA = ("run", "decoder", "seed")
"""What of an evaluation a row of results says in other columns."""


@dataclass(frozen=True)
class Plot:
    """Hold a plot with its texts."""

    name: str
    """Of its file."""
    alt: str
    """What it shows, for those who cannot see it."""
    caption: str
    figure: Figure

    @cached_property
    def svg(self) -> Markup:
        """Return the picture as its file and the HTML page hold it."""
        return Markup(plots.svg(self.figure, self.alt))  # noqa: S704 - matplotlib and ElementTree escape all text

    @property
    def width(self) -> float:
        """Return its natural width, in inches."""
        return self.figure.get_figwidth()


def write_report(found: SweepResult, out: Path) -> dict[str, Any]:
    """Write report.html, report.md, results.csv, results.json and figures/ into a directory.

    Args:
        found: From `compare` or `run_sweep`.
        out: The directory.

    Returns:
        What results.json holds.

    Raises:
        VaecliError: A file cannot be written.
    """
    content = _content(found)
    results = _results(found, content)
    html = jinja2.Environment(
        loader=jinja2.PackageLoader("vaecli.reports"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    html.filters["p_value"] = _p_value
    templates = {"html": html, "md": html.overlay(finalize=as_markdown)}
    try:
        (out / "figures").mkdir(parents=True, exist_ok=True)
        for plot in (*content["plots"], *content["plots_across"]):
            write_text(out / "figures" / f"{plot.name}.svg", plot.svg)
        for kind, environment in templates.items():
            write_text(out / f"report.{kind}", environment.get_template(f"report.{kind}.j2").render(content))
        write_text(out / "results.csv", _csv(results["runs"]))
        write_json(out / "results.json", results)
    except OSError as error:
        raise VaecliError(f"{error.filename or out}: cannot be written: {error.strerror}") from error
    return results


def as_markdown(value: Any) -> Any:
    """Return a text that comes from elsewhere as Markdown of itself: no HTML, no link, no end of its line or cell."""
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    for letter, escaped in (("\\", "\\\\"), ("&", "&amp;"), ("<", "&lt;"), ("|", "\\|"), ("`", "\\`"), ("](", "]\\(")):
        value = value.replace(letter, escaped)
    return Markup(" ".join(value.split()))  # noqa: S704


def _content(found: SweepResult) -> dict[str, Any]:
    """Return everything that the templates show."""
    sweep = found.sweep
    axes = [key for key in sweep.keys if key != SEED and len(_values_of(found.results, key)) > 1]
    content = _content_of_comparison(found) if sweep.kind == "comparison" else _content_of_sweep(found, axes)
    return content | {
        "within": [
            {"title": title, "table": table(results, axes, WITHIN)}
            for title, results in group_by_support(found.results).items()
        ],
        "across": table(found.results, axes, ACROSS),
        "warnings": warnings(found.results),
        "failed": [f"{describe_settings(r.config, sweep.keys)}: {r.error}" for r in found.failed],
        "config": dump_config(sweep.base).rstrip(),
        "level": LEVEL,
    }


def _content_of_comparison(found: SweepResult) -> dict[str, Any]:
    base, tested, n_seeds = found.sweep.base, differences(found), len(found.seeds)
    kind = base.data.kind
    panel = [_panel(found)] if kind == "images" else []
    held_out = "validation" if plots.split_of_curves(found) == "validation" else "training"
    curves = Plot(
        "curves",
        f"ELBO over {kind} seen, of each run",
        f"The bound while training, on {held_out} {kind}; a line for each run." + _several_charts(found),
        plots.curves(found),
    )
    across = Plot(
        "bridges",
        "Bits per dimension, binarised NLL and squared error of each run",
        "A point for each run.",
        plots.across_supports(found),
    )
    return {
        "title": "Decoders compared",
        "introduction": f"{', '.join(found.decoders)}; {_count(n_seeds, 'seed')} each. {_introduction(found)} "
        f"{base.training.epochs} epochs at most.",
        "varied": {},
        "plots": [*panel, curves],
        "plots_across": [across],
        "differences": tested,
        "rankings": rankings(found, tested),
        "provenance": "Every decoder was trained with this config, its name and the seed replaced; keys that a decoder "
        "does not have are without effect.",
    }


def _panel(found: SweepResult) -> Plot:
    return Plot(
        "panel",
        "Test images, reconstructions and prior samples of each decoder",
        "Of each decoder's first run, from top to bottom: the same test images, the mean of p(x|z) at their posterior "
        "means, and the mean of p(x|z) at draws of z from the prior.",
        plots.panel(found),
    )


def _content_of_sweep(found: SweepResult, axes: list[str]) -> dict[str, Any]:
    sweep = found.sweep
    numeric = [key for key in axes if plots.is_numeric(found.done, key)]
    return {
        "title": f"Sweep: {sweep.name}",
        "introduction": _introduction(found),
        "varied": {key: ", ".join(_values_of(found.results, key)) for key in sweep.keys},
        "plots": [
            Plot(f"by-{key}", f"ELBO over {key}", _caption(found, key, axes), plots.by_axis(found, key, axes))
            for key in numeric
        ],
        "plots_across": [],
        "differences": None,
        "rankings": [],
        "provenance": "Every run has this config but for the settings above.",
    }


def _caption(found: SweepResult, key: str, axes: list[str]) -> str:
    """Say what a plot over a setting shows, as far as it shows it."""
    several_seeds = any(len(results) > 1 for results in group_by(found.done, axes).values())
    return (
        f"The ELBO on {found.sweep.evaluation.split} {found.sweep.base.data.kind} over {key}"
        + ("; means over seeds, with bands of 95 % t intervals." if several_seeds else "; a point for each run.")
        + ("" if plots.has_legend(found, key, axes) else " The lines are the choices of the other settings; see below.")
        + _several_charts(found)
    )


def _several_charts(found: SweepResult) -> str:
    several = len({result.config.support for result in found.results}) > 1
    return " Each chart has its own scale: bounds of two supports cannot be compared." if several else ""


def _introduction(found: SweepResult) -> str:
    """Say how many runs there are, of which data, and how they were evaluated."""
    evaluation, names = found.sweep.evaluation, _values_of(found.results, "data.name")
    failed = f", and {len(found.failed)} that failed," if found.failed else ""
    return (
        f"{_count(len(found.done), 'run')}{failed} on {', '.join(names)}; evaluated on {_evaluated(found)} with "
        f"{_count(evaluation.k, 'importance sample')} each."
    )


def _evaluated(found: SweepResult) -> str:
    """Say which images or vectors runs are evaluated on."""
    limit, which = found.sweep.evaluation.limit, f"{found.sweep.evaluation.split} {found.sweep.base.data.kind}"
    return f"all {which}" if limit is None else f"{limit:,} {which}, or all there are,"


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}{'' if n == 1 else 's'}"


def _values_of(results: Sequence[JobResult], key: str) -> list[str]:
    """Return the values of a setting, each once."""
    return list(dict.fromkeys(str(get_setting(result.config, key)) for result in results))


def _p_value(p: float | None) -> str:
    return "–" if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"


def _results(found: SweepResult, content: dict[str, Any]) -> dict[str, Any]:
    """Return what results.json holds."""
    sweep = found.sweep
    results: dict[str, Any] = {"base": sweep.base.model_dump(mode="json")}
    if sweep.spec is not None:
        results["spec"] = sweep.spec.model_dump(mode="json")
    else:
        results |= {"decoders": found.decoders, "seeds": found.seeds, "k": sweep.evaluation.k}
    names = {key: key if sweep.spec is not None else key.rpartition(".")[2] for key in sweep.keys}
    results["runs"] = [
        {name: get_setting(result.config, key) for key, name in names.items()} | _row(result)
        for result in found.results
    ]
    if content["differences"] is not None:
        results["differences"] = [asdict(d) | {"holds": d.holds} for d in content["differences"]]
    return results | {"warnings": content["warnings"]}


def _row(result: JobResult) -> dict[str, Any]:
    """Return a run's line in the results: where it is, what went wrong, and every metric of its evaluation."""
    row: dict[str, Any] = {"run": None if result.run is None else str(result.run.path), "error": result.error}
    if result.evaluation is not None:
        row |= {key: v for key, v in asdict(result.evaluation).items() if key not in SHARED_METADATA}
        row["seconds_per_epoch"] = result.seconds_per_epoch
    return row


def _csv(runs: list[dict[str, Any]]) -> str:
    """Write one line per run; lists and tables within a metric are left to the JSON."""
    plain = [{key: v for key, v in run.items() if not isinstance(v, dict | list)} for run in runs]
    names = list(dict.fromkeys(key for run in plain for key in run))
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, names)
    writer.writeheader()
    writer.writerows(plain)
    return buffer.getvalue()
