"""The report of a sweep or a comparison: one HTML file, Markdown, CSV, JSON and the plots."""

import base64
import csv
import io
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup
from matplotlib.figure import Figure

from vaecli.config.loading import dump_config
from vaecli.config.schema import describe_settings, get_setting
from vaecli.errors import VaecliError
from vaecli.files import write_atomically, write_json, write_text
from vaecli.reports import plots
from vaecli.reports.statistics import LEVEL
from vaecli.reports.tables import ACROSS, WITHIN, differences, group_by_support, rankings, table, warnings
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
    png: bytes

    @property
    def base64(self) -> str:
        """Return the picture as an HTML file holds it."""
        return base64.b64encode(self.png).decode()


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
    templates = {"html": html, "md": html.overlay(finalize=_as_markdown)}
    try:
        (out / "figures").mkdir(parents=True, exist_ok=True)
        for plot in (*content["plots"], *content["plots_across"]):
            write_atomically(out / "figures" / f"{plot.name}.png", _writer(plot.png))
        for kind, environment in templates.items():
            write_text(out / f"report.{kind}", environment.get_template(f"report.{kind}.j2").render(content))
        write_text(out / "results.csv", _csv(results["runs"]))
        write_json(out / "results.json", results)
    except OSError as error:
        raise VaecliError(f"{error.filename or out}: cannot be written: {error.strerror}") from error
    return results


def _as_markdown(value: Any) -> Any:
    """Return a text that comes from elsewhere as Markdown of itself: no HTML, no link, no end of its line or cell."""
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    for letter, escaped in (("\\", "\\\\"), ("&", "&amp;"), ("<", "&lt;"), ("|", "\\|"), ("`", "\\`"), ("](", "]\\(")):
        value = value.replace(letter, escaped)
    return Markup(" ".join(value.split()))  # noqa: S704


def _writer(content: bytes) -> Callable[[Any], object]:
    return lambda file: file.write(content)


def _content(found: SweepResult) -> dict[str, Any]:
    """Return everything that the templates show."""
    sweep = found.sweep
    axes = [key for key in sweep.keys if key != SEED]
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
    panel = Plot(
        "panel",
        "Test images, reconstructions and prior samples of each decoder",
        "The same test images, the mean of p(x|z) at their posterior means, and the mean of p(x|z) at draws of z from "
        "the prior; the first seed of each decoder.",
        plots.png(plots.panel(found)),
    )
    supports = {result.config.model.likelihood.support for result in found.results}
    several = " Each chart has its own scale: bounds about different random variables cannot be ranked."
    curves = Plot(
        "curves",
        "Validation ELBO over images seen",
        "The bound while training, on held-out images." + (several if len(supports) > 1 else ""),
        plots.png(plots.curves(found)),
    )
    across = Plot(
        "bridges",
        "Bits per dimension, binarised NLL and squared error of each run",
        "A point for each seed.",
        plots.png(plots.across_supports(found)),
    )
    return {
        "title": "Decoders compared",
        "introduction": f"{', '.join(found.decoders)} on {base.data.name}; {n_seeds} seed{'s' if n_seeds > 1 else ''}; "
        f"{base.training.epochs} epochs at most; {found.sweep.evaluation.split} images; "
        f"{found.sweep.evaluation.k} importance samples.",
        "varied": {},
        "plots": [panel, curves],
        "plots_across": [across],
        "differences": tested,
        "rankings": rankings(found, tested),
        "provenance": "Every decoder was trained with this config, its name and the seed replaced; keys that a decoder "
        "does not have are without effect.",
    }


def _content_of_sweep(found: SweepResult, axes: list[str]) -> dict[str, Any]:
    sweep, n = found.sweep, len(found.results)
    supports = {result.config.support_title for result in found.done}
    several = " Bounds of two charts cannot be compared." if len(supports) > 1 else ""
    return {
        "title": f"Sweep: {sweep.name}",
        "introduction": f"{n} run{'s' if n > 1 else ''} on {sweep.base.data.name}; {sweep.evaluation.split} images; "
        f"{sweep.evaluation.k} importance samples.",
        "varied": {key: _values_of(found.results, key) for key in sweep.keys},
        "plots": [
            Plot(
                f"by-{key}",
                f"ELBO over {key}",
                f"The ELBO on {sweep.evaluation.split} images over {key}; bands are 95 % t intervals over seeds."
                + several,
                plots.png(figure),
            )
            for key, figure in _plots_by_axis(found, axes)
        ],
        "plots_across": [],
        "differences": None,
        "rankings": [],
        "provenance": "Every run has this config but for the settings above.",
    }


def _plots_by_axis(found: SweepResult, axes: list[str]) -> list[tuple[str, Figure]]:
    return [(key, plots.by_axis(found, key, axes)) for key in axes if plots.is_numeric(found.done, key)]


def _values_of(results: tuple[JobResult, ...], key: str) -> str:
    return ", ".join(dict.fromkeys(str(get_setting(result.config, key)) for result in results))


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
