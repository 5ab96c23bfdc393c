"""The page of an experiment: report.html, report.md for the documentation, results.json and the figures."""

from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import jinja2

from vaecli.config.loading import dump_config
from vaecli.config.schema import describe_settings
from vaecli.errors import UsageError, VaecliError, command_line
from vaecli.files import write_json, write_text
from vaecli.papers.charts import draw
from vaecli.papers.comparison import SEED, Figure, Outcome, compare, goal_in_words, percent, record
from vaecli.papers.experiment import Experiment
from vaecli.papers.results import RESULTS, read_results
from vaecli.papers.spec import EPOCHS
from vaecli.reports.report import Plot, as_markdown
from vaecli.runs.records import read_object


def write_page(experiment: Experiment, outcomes: Sequence[Outcome], out: Path, failed: Sequence[str] = ()) -> Any:
    """Write report.html, report.md, results.json and figures/ into a directory, from whatever runs there are.

    Args:
        experiment: From `load_experiment`.
        outcomes: From `gather_outcomes`.
        out: The directory.
        failed: What to say of runs that failed.

    Returns:
        What results.json holds.

    Raises:
        VaecliError: A file cannot be written.
    """
    figures = compare(experiment, outcomes)
    results = _results(experiment, outcomes, figures)
    plots = _plots(experiment, outcomes, figures)
    content = {
        "experiment": experiment,
        "spec": experiment.spec,
        "command": command_line("vae", "reproduce", experiment.source, *_given(experiment), *experiment.changes),
        "progress": progress_in_words(results),
        "warnings": _warnings(experiment, outcomes),
        "failed": failed,
        "plots": plots,
        "groups": [_group(experiment, found) for found in figures.values()],
        "runs": [_run_in_words(experiment, outcome) for outcome in outcomes],
        "config": dump_config(experiment.sweep.base, (EPOCHS, *experiment.sweep.keys)).rstrip(),
    }
    loaders = [jinja2.PackageLoader("vaecli.papers"), jinja2.PackageLoader("vaecli.reports")]
    html = jinja2.Environment(
        loader=jinja2.ChoiceLoader(loaders), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    try:
        (out / "figures").mkdir(parents=True, exist_ok=True)
        for plot in plots:
            write_text(out / "figures" / f"{plot.name}.svg", plot.svg)
        for kind, environment in {"html": html, "md": html.overlay(finalize=as_markdown)}.items():
            write_text(out / f"report.{kind}", environment.get_template(f"paper.{kind}.j2").render(content))
        write_json(out / RESULTS, results)
    except OSError as error:
        raise VaecliError(f"{error.filename or out}: cannot be written: {error.strerror}") from error
    return results


def own_results(out: Path) -> list[Path]:
    """Return the results.json that is in a directory already, as a list: it may tell of runs that are gone."""
    path = out / RESULTS
    with suppress(VaecliError):  # what cannot be read is written anew
        read_results(path)
        return [path]
    return []


def check_page(experiment: Experiment, out: Path) -> None:
    """Refuse a directory with the page of another experiment, though it may be of the same runs. Raises UsageError."""
    try:
        there = read_object(out / RESULTS)
    except VaecliError:
        return
    if there and (there.get("experiment"), there.get("source")) != (experiment.name, experiment.spec.source):
        raise UsageError(f"{out}: holds the page of another experiment; name another directory with --out")


def _given(experiment: Experiment) -> list[str]:
    """Return the options that it was made with; where the images lie is of this machine alone."""
    budget, short = experiment.budget, f"{experiment.budget:g}"
    part = [] if experiment.share == 1 else ["--budget", short if float(short) == budget else repr(budget)]
    is_given = len(experiment.changes) < len(experiment.settings)
    return part + (["--data", Path(experiment.sweep.base.data.name).name] if is_given else [])


def _plots(experiment: Experiment, outcomes: Sequence[Outcome], figures: dict[str, list[Figure]]) -> list[Plot]:
    plots = []
    for i, chart in enumerate(experiment.spec.charts, 1):
        picture = draw(chart, experiment, outcomes, figures)
        if picture is not None:
            name = f"{experiment.name}-{i}"
            plots.append(Plot(name, f"{experiment.name}: {chart.title}", f"{chart.title}. {chart.caption}", picture))
    return plots


def _warnings(experiment: Experiment, outcomes: Sequence[Outcome]) -> list[str]:
    """Say what stands between these results and the experiment as it was published."""
    found = []
    if experiment.share < 1:
        found.append(
            f"Every run sees {experiment.budget:,.0f} images at least, {percent(experiment.share)} % of the "
            f"{experiment.spec.budget:,.0f} of the full experiment."
        )
    if experiment.changes:
        found.append(f"Settings were changed, so this is another experiment: {', '.join(experiment.changes)}.")
    missing = sum(not outcome.is_trained for outcome in outcomes)
    if missing:
        found.append(f"{missing} of {len(outcomes)} runs not finished yet; what there is of them is shown.")
    n, caveats = len(outcomes), Counter(o.config.caveat for o in outcomes if o.config.caveat)
    return found + [
        f"The bound {'' if k == n else f'of {k} of {n} runs '}is {caveat}." for caveat, k in caveats.items()
    ]


def _group(experiment: Experiment, figures: Sequence[Figure]) -> dict[str, Any]:
    """Return what the templates show of published numbers of one kind."""
    published = figures[0].published
    ours = published.ours
    what = f"the curve of {ours.curve} images"
    if ours.evaluation is not None:
        checkpoint = experiment.spec.all_evaluations[ours.evaluation].checkpoint
        what = f"evaluation {ours.evaluation} of the {checkpoint} checkpoint"
    at = "" if published.images is None else f" after {published.images:,.0f} images"
    known = any(figure.value.value is not None for figure in figures)
    goal = f" Goal: {goal_in_words(published)}." if known else ""
    keys = [key for key in dict.fromkeys(key for f in figures for key in f.value.where) if key != SEED]
    return {
        "title": published.title,
        "unit": published.unit,
        "source": published.source,
        "about": f"Ours: {ours.metric} of {what}{at}.{goal}",
        "names": [key.rpartition(".")[2] for key in keys],
        "rows": [{"labels": [f.value.where.get(key, "") for key in keys], "cells": _cells(f)} for f in figures],
    }


def _cells(figure: Figure) -> list[str]:
    """Return ours, the published number, the difference and the verdict, as they are printed."""
    digits = figure.published.digits
    spread = "" if figure.uncertainty is None else f" ± {figure.uncertainty:g}"
    published = "–" if figure.value.value is None else f"{figure.value.value:.{digits}f}{spread}"
    half = "" if figure.half_width is None else f" ± {figure.half_width:.{digits}f} (n = {figure.n})"
    ours = "–" if figure.ours is None else f"{figure.ours:.{digits}f}{half}"
    difference = "–" if figure.difference is None else f"{figure.difference:+.{digits}f}"
    return [ours, published, difference, figure.verdict]


def _run_in_words(experiment: Experiment, outcome: Outcome) -> str:
    settings = describe_settings(outcome.config, experiment.sweep.keys) or experiment.name
    if outcome.origin is None:
        return f"{settings}: not run yet"
    state = "begun" if outcome.run is None else outcome.run.status.get("state", "begun")
    where = outcome.origin if outcome.run else f"{outcome.origin}, elsewhere"
    return f"{settings}: {'finished' if outcome.is_trained else state}, {outcome.images:,} images, {where}"


def _results(experiment: Experiment, outcomes: Sequence[Outcome], figures: dict[str, list[Figure]]) -> dict[str, Any]:
    """Return what results.json holds."""
    return {
        "experiment": experiment.name,
        "source": experiment.spec.source,
        "budget": experiment.budget,
        "full_budget": experiment.spec.budget,
        "settings": list(experiment.changes),
        "evaluations": {name: spec.model_dump(mode="json") for name, spec in experiment.spec.all_evaluations.items()},
        "runs": [record(experiment, outcome).model_dump(mode="json", exclude_none=True) for outcome in outcomes],
        "figures": [
            {
                "kind": name,
                "where": figure.value.where,
                "published": figure.value.value,
                "uncertainty": figure.uncertainty,
                "ours": figure.ours,
                "half_width": figure.half_width,
                "n": figure.n,
                "images": figure.images,
                "difference": figure.difference,
                "tolerance": figure.published.tolerance,
                "met": None if figure.excess is None or figure.is_early or figure.is_late else figure.is_met,
                "late": figure.is_late,
                "verdict": figure.verdict,
            }
            for name, of_kind in figures.items()
            for figure in of_kind
        ],
    }


def progress_in_words(results: dict[str, Any]) -> str:
    """Say how many runs are finished, and how many published numbers are met."""
    runs, figures = results["runs"], [f for f in results["figures"] if f["published"] is not None]
    finished, judged = sum(run["finished"] for run in runs), [f for f in figures if f["met"] is not None]
    share = min((run["images"] for run in runs if run["finished"]), default=0) / results["full_budget"]
    part = "" if share >= 1 or not finished else f" after {percent(share)} % of the images"
    text = f"{finished} of {len(runs)} runs finished{part}"
    if not figures:
        return text
    late = sum(f["met"] is None and f.get("late", False) for f in figures)
    early = len(figures) - len(judged) - late
    if early == len(figures):
        return f"{text}; none of {early} published numbers reached yet"
    text += f"; {sum(f['met'] for f in judged)} of {len(judged)} published numbers met" if judged else ""
    text += f"{',' if judged else ';'} {early} not reached yet" if early else ""
    return text + (f"{',' if judged or early else ';'} {late} after more images than theirs" if late else "")
