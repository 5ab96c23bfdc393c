"""The report of a comparison: one HTML file, Markdown, CSV, JSON and the figures."""

import base64
import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from vaecli.config.likelihoods import LIKELIHOODS
from vaecli.config.loading import dump_config
from vaecli.errors import VaecliError
from vaecli.evaluation.evaluate import LOOSE
from vaecli.files import write_atomically, write_json, write_text
from vaecli.reports import plots as figures
from vaecli.reports.statistics import LEVEL, holm, interval, paired, welch
from vaecli.sweeps.comparison import Comparison
from vaecli.sweeps.jobs import JobResult, values

FLOORED, COLLAPSED = 0.01, 0.5
"""Shares beyond which a report warns: of scales on their floor, and of latent units that are not active."""


@dataclass(frozen=True)
class Column:
    """A figure as the report shows it."""

    key: str
    title: str
    meaning: str
    better: str | None
    """"higher" or "lower", if either is good."""
    digits: int


WITHIN = (
    Column("elbo", "ELBO", "lower bound on log p(x), nats per test image", "higher", 2),
    Column("log_evidence", "log evidence", "importance-weighted log p(x), nats per test image", "higher", 2),
    Column("effective_sample_size", "ESS", "median effective sample size of that estimate", None, 1),
)
ACROSS = (
    Column("bits_per_dim", "bits/dim", "bits per pixel for the 256 grey levels, densities integrated", "lower", 3),
    Column("binarised_nll", "binarised NLL", "-log p(b) of the same binary test images, nats", "lower", 2),
    Column("mean_squared_error", "MSE", "of reconstructions, in units of the 0..1 pixel", "lower", 4),
    Column("kl", "rate", "KL(q(z|x) ‖ p(z)), nats: what the latent carries", None, 2),
    Column("active_units", "active units", "latent dimensions whose posterior mean varies", None, 1),
    Column(
        "seconds_per_epoch",
        "s/epoch",
        "training time of the median epoch; other work on the machine counts in",
        "lower",
        2,
    ),
)
TESTED = ("log_evidence", "bits_per_dim", "binarised_nll", "mean_squared_error")


@dataclass(frozen=True)
class Difference:
    """Two decoders on a figure that ranks them, with Holm-corrected p-values."""

    figure: str
    better: str
    worse: str
    by: float
    digits: int
    over_seeds: float | None
    """Welch's t test between the seeds of either."""
    over_images: float | None
    """The weakest seed's t test paired over the test images."""

    @property
    def holds(self) -> bool:
        """Whether both tests find it."""
        return all(p is not None and p < LEVEL for p in (self.over_seeds, self.over_images))


def write_report(comparison: Comparison, out: Path) -> dict[str, Any]:
    """Write report.html, report.md, results.csv, results.json and figures/ into a directory.

    Returns:
        What results.json holds.

    Raises:
        VaecliError: A file cannot be written.
    """
    content = _content(comparison)
    pictures = {
        "panel": figures.png(figures.panel(comparison)),
        "curves": figures.png(figures.curves(comparison)),
        "bridges": figures.png(figures.bridges(comparison)),
    }
    results = _results(comparison, content)
    write_files(out, "report", content, pictures, results)
    return results


def write_files(
    out: Path, template: str, content: dict[str, Any], pictures: dict[str, bytes], results: dict[str, Any]
) -> None:
    """Write a report's files, from a template of that name, with its pictures both inside and beside it.

    Raises:
        VaecliError: A file cannot be written.
    """
    embedded = {name: base64.b64encode(picture).decode() for name, picture in pictures.items()}
    templates = jinja2.Environment(
        loader=jinja2.PackageLoader("vaecli.reports"),
        autoescape=jinja2.select_autoescape(["html.j2"]),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters["p_value"] = _p_value
    try:
        (out / "figures").mkdir(parents=True, exist_ok=True)
        for name, picture in pictures.items():
            write_atomically(out / "figures" / f"{name}.png", _writer(picture))
        for kind in ("html", "md"):
            text = templates.get_template(f"{template}.{kind}.j2").render(content, embedded=embedded)
            write_text(out / f"report.{kind}", text)
        write_text(out / "results.csv", _csv(results["runs"]))
        write_json(out / "results.json", results)
    except OSError as error:
        raise VaecliError(f"{error.filename or out}: cannot be written: {error.strerror}") from error


def _writer(content: bytes) -> Callable[[Any], object]:
    return lambda file: file.write(content)


def _content(comparison: Comparison) -> dict[str, Any]:
    """Everything that the templates show."""
    within, differences = [], _differences(comparison)
    for support, decoders in _groups(comparison).items():
        within.append({"title": support, "table": _table(comparison, decoders, WITHIN)})
    return {
        "comparison": comparison,
        "n_seeds": len(comparison.seeds),
        "within": within,
        "across": _table(comparison, comparison.decoders, ACROSS),
        "differences": differences,
        "rankings": _rankings(comparison, differences),
        "warnings": _warnings(comparison),
        "failed": [f"{o.decoder}, seed {o.seed}: {o.error}" for o in comparison.failed],
        "config": dump_config(comparison.base).rstrip(),
        "level": LEVEL,
    }


def _groups(comparison: Comparison) -> dict[str, tuple[str, ...]]:
    """Decoders whose bounds are about the same random variable."""
    groups: dict[str, tuple[str, ...]] = {}
    for decoder in comparison.decoders:
        outcomes = comparison.of(decoder)
        observed = outcomes[0].figures["observed"] if outcomes else "no run"
        caveat = outcomes[0].figures["caveat"] if outcomes else None
        title = f"{LIKELIHOODS[decoder].support.value}, pixels {observed}" + (f": {caveat}" if caveat else "")
        groups[title] = (*groups.get(title, ()), decoder)
    return groups


def _table(comparison: Comparison, decoders: tuple[str, ...], columns: tuple[Column, ...]) -> dict[str, Any]:
    return table({(decoder,): comparison.of(decoder) for decoder in decoders}, ("decoder",), columns)


def table(
    groups: Mapping[tuple[str, ...], Sequence[JobResult]], names: tuple[str, ...], columns: tuple[Column, ...]
) -> dict[str, Any]:
    """Rows of figures over the runs of each group, as the templates show them.

    Args:
        groups: Runs without errors, by the labels of their row.
        names: Of the labels.
        columns: Which figures.
    """
    rows = [
        {"labels": labels, "n": len(outcomes), "cells": [_cell(values(outcomes, c.key), c.digits) for c in columns]}
        for labels, outcomes in groups.items()
    ]
    return {"names": names, "columns": columns, "rows": rows}


def _cell(values: list[float], digits: int) -> str:
    if not values:
        return "–"
    mean, half = interval(values)
    return f"{mean:.{digits}f}" + (f" ± {half:.{digits}f}" if half is not None else "")


def _differences(comparison: Comparison) -> list[Difference]:
    """Every pair of decoders on every figure that ranks them, corrected together."""
    group_of = {decoder: title for title, decoders in _groups(comparison).items() for decoder in decoders}
    found = []
    for column in (c for c in (*WITHIN, *ACROSS) if c.key in TESTED):
        for a, b in combinations(comparison.decoders, 2):
            one, two = comparison.values(a, column.key), comparison.values(b, column.key)
            if not one or not two or (column in WITHIN and group_of[a] != group_of[b]):
                continue
            difference = float(np.mean(one) - np.mean(two))
            better, worse = (a, b) if (difference > 0) == (column.better == "higher") else (b, a)
            over_images = _paired_over_images(comparison, a, b, column.key)
            found.append(
                Difference(column.title, better, worse, abs(difference), column.digits, welch(one, two), over_images)
            )
    seeds, images = holm([d.over_seeds for d in found]), holm([d.over_images for d in found])
    return [replace(d, over_seeds=s, over_images=i) for d, s, i in zip(found, seeds, images, strict=True)]


def _rankings(comparison: Comparison, differences: list[Difference]) -> list[tuple[str, str]]:
    """For each figure the decoders from best to worst, "≈" between neighbours whose difference does not hold.

    Of figures that are compared within a support only, one ranking for each support that has several decoders.
    """
    found = []
    for column in (c for c in (*WITHIN, *ACROSS) if c.key in TESTED):
        about = {frozenset((d.better, d.worse)): d for d in differences if d.figure == column.title}
        groups = _groups(comparison) if column in WITHIN else {"": comparison.decoders}
        for group, decoders in groups.items():
            means = {
                d: float(np.mean(comparison.values(d, column.key)))
                for d in decoders
                if comparison.values(d, column.key)
            }
            ranked = sorted(means, key=means.__getitem__, reverse=column.better == "higher")
            text = "".join(ranked[:1])
            for better, worse in pairwise(ranked):
                text += (" > " if about[frozenset((better, worse))].holds else " ≈ ") + worse
            if len(ranked) > 1:
                found.append((f"{column.title} ({group})" if group else column.title, text))
    return found


def _paired_over_images(comparison: Comparison, a: str, b: str, key: str) -> float | None:
    """The largest p-value over seeds, each paired over the same test images."""
    found = []
    for one in comparison.of(a):
        for two in (o for o in comparison.of(b) if o.seed == one.seed):
            x, y = one.per_image(key), two.per_image(key)
            if x is not None and y is not None and len(x) == len(y):
                found.append(paired(x, y))
    return max(found, default=None)


def _p_value(p: float | None) -> str:
    return "–" if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"


def _warnings(comparison: Comparison) -> list[str]:
    return warnings({decoder: comparison.of(decoder) for decoder in comparison.decoders})


def warnings(groups: Mapping[str, Sequence[JobResult]]) -> list[str]:
    """What to know before reading figures: each warning once, with the groups of runs that it is about."""
    about: dict[str, list[str]] = {}
    for name, outcomes in groups.items():
        found = [_warnings_of(outcome) for outcome in outcomes]
        for text in dict.fromkeys(warning for one in found for warning in one):
            n = sum(text in one for one in found)
            about.setdefault(text, []).append(f"{name} ({n} of {len(found)} runs)")
    return [f"{text}: {', '.join(names)}" for text, names in about.items()]


def _warnings_of(outcome: JobResult) -> list[str]:
    seen, found = outcome.figures, []
    if seen["caveat"]:
        found.append(f"The bound is {seen['caveat']}")
    if (seen["pixels_at_floor"] or 0) > FLOORED:
        found.append("Scales sit on their floor, so the likelihood is limited by a setting")
    if seen["effective_sample_size"] < LOOSE:
        found.append(f"The log evidence is a loose bound, its median effective sample size below {LOOSE:g}")
    if seen["binarised_is_loose"]:
        found.append(f"The binarised NLL is a loose bound, its median effective sample size below {LOOSE:g}")
    if seen["active_units"] < COLLAPSED * len(seen["kl_per_dimension"]):
        found.append("More than half of the latent units are collapsed")
    return found


def _results(comparison: Comparison, content: dict[str, Any]) -> dict[str, Any]:
    runs = [{"decoder": o.decoder, "seed": o.seed} | figures_of(o) for o in comparison.outcomes]
    return {
        "base": comparison.base.model_dump(mode="json"),
        "decoders": comparison.decoders,
        "seeds": comparison.seeds,
        "k": comparison.k,
        "runs": runs,
        "differences": [asdict(d) | {"holds": d.holds} for d in content["differences"]],
        "warnings": content["warnings"],
    }


def figures_of(outcome: JobResult) -> dict[str, Any]:
    """A run's line in the results: where it is, what went wrong, and every figure of its evaluation."""
    figures = {k: v for k, v in outcome.figures.items() if k not in {"run", "decoder", "seed", "path"}}
    return {"run": None if outcome.run is None else str(outcome.run.path), "error": outcome.error} | figures


def _csv(runs: list[dict[str, Any]]) -> str:
    """One line per run; lists and tables within a figure are left to the JSON."""
    plain = [{key: v for key, v in run.items() if not isinstance(v, dict | list)} for run in runs]
    names = list(dict.fromkeys(key for run in plain for key in run))
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, names)
    writer.writeheader()
    writer.writerows(plain)
    return buffer.getvalue()
