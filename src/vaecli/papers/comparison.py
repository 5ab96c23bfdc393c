"""Our figures beside the published ones: what became of every run, and by how much each number is met or missed."""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from vaecli.config.data_sets import is_array
from vaecli.config.schema import Config, get_setting
from vaecli.data.summaries import fingerprint
from vaecli.errors import VaecliError
from vaecli.papers.experiment import Experiment, matches
from vaecli.papers.results import Curve, RecordedRun, Results, key_of, read_results, thin
from vaecli.papers.spec import CURVES, Published, Split, Value
from vaecli.reports.statistics import interval
from vaecli.runs.records import read_object
from vaecli.runs.run import Run
from vaecli.sweeps.sweep import Job, JobOptions, find_evaluation, plan_jobs

CLOSE = 0.99
"""The share of the images of a published number from which ours counts as of as many."""
SEED = "seed"
SPLITS: tuple[Split, ...] = ("train", "validation")
"""Those of which there are curves."""


@dataclass(frozen=True)
class Outcome:
    """Hold what became of one run of an experiment."""

    config: Config
    run: Run | None
    """None where it has not begun, or is on another machine."""
    images: int = 0
    """Seen in training."""
    is_trained: bool = False
    evaluations: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """By name: those of its present end, or that an earlier page tells; with the `images` that the checkpoint saw."""
    rows: Sequence[Mapping[str, Any]] = ()
    """Of metrics.jsonl."""
    origin: str | None = None
    """The names of its folder and of the run; None where it has not begun."""

    def curve(self, split: Split, metric: str) -> tuple[list[int], list[float]]:
        """Return images seen and a metric of a split, epoch by epoch."""
        rows = [row for row in self.rows if row["split"] == split and row.get(metric) is not None]
        return [row["images"] for row in rows], [row[metric] for row in rows]

    def matches(self, where: Mapping[str, Any]) -> bool:
        """Return whether the run's settings have these values."""
        return matches(self.config, where)


def gather_outcomes(
    experiment: Experiment, *, runs_dir: Path, data_dir: Path | None = None, others: Sequence[Path] = ()
) -> list[Outcome]:
    """Return what there is of every run of an experiment, finished or not.

    Args:
        experiment: From `load_experiment`.
        runs_dir: Where the runs are.
        data_dir: As for `train`.
        others: Files results.json of pages that were made of other runs of it, on another machine perhaps, or of an
            earlier one. Where one tells of a run that is not here, or not as far, it is taken from there, and so is an
            evaluation that is not here.

    Raises:
        DataError: The images cannot be read.
        VaecliError: One of the files cannot be read.
    """
    recorded = [read_results(path) for path in others]
    options = JobOptions(runs_dir, data_dir, experiment.sweep.evaluation, extend=True)
    outcomes = []
    for job in plan_jobs(experiment.sweep.configs, options):
        found = [Outcome(job.config, None) if job.run is None else _outcome_of(experiment, job, job.run)]
        key = key_of(_portable_identity(job.config)) if recorded else ""
        for results, runs in recorded:
            if key in runs:
                found.append(_outcome_elsewhere(experiment, job.config, results, runs[key]))
        furthest = max(found, key=lambda outcome: outcome.images)  # of equals the one that is here
        known = {name: of_run for other in reversed(found) for name, of_run in other.evaluations.items()}
        outcomes.append(replace(furthest, evaluations={**known, **furthest.evaluations}))
    return outcomes


def _outcome_of(experiment: Experiment, job: Job, run: Run) -> Outcome:
    """Return what there is of a run."""
    rows, origin = run.metrics, f"{run.path.parent.name}/{run.name}"
    images = max((row["images"] for row in rows), default=0)
    return Outcome(job.config, run, images, job.is_trained, _evaluations(experiment, run, rows), rows, origin)


def _outcome_elsewhere(experiment: Experiment, config: Config, results: Results, run: RecordedRun) -> Outcome:
    """Return what a file of results tells of a run; those evaluations alone that were made in the same way."""
    specs = {name: spec.model_dump(mode="json") for name, spec in experiment.spec.all_evaluations.items()}
    found = {
        name: {"images": run.images, **of_run}
        for name, spec in specs.items()
        for theirs, of_run in run.evaluations.items()
        if results.evaluations.get(theirs) == spec
    }
    is_trained = run.finished and run.epochs >= config.training.epochs
    rows = [
        {"split": split, "images": images, **{name: values[i] for name, values in curve.metrics.items()}}
        for split, curve in run.curves.items()
        for i, images in enumerate(curve.images)
    ]
    return Outcome(config, None, run.images, is_trained, found, rows, run.run)


def record(experiment: Experiment, outcome: Outcome) -> RecordedRun:
    """Return a run as results.json has it."""
    config, spec = outcome.config, experiment.spec
    shown = {chart.metric for chart in spec.charts} | {of.ours.metric for of in spec.published.values()}
    names = [metric for metric in CURVES if metric in shown]
    return RecordedRun(
        identity=_portable_identity(config),
        settings={key: get_setting(config, key) for key in experiment.sweep.keys},
        run=outcome.origin,
        epochs=config.training.epochs,
        finished=outcome.is_trained,
        images=outcome.images,
        evaluations={name: dict(found) for name, found in outcome.evaluations.items()},
        curves={split: _curve_of([row for row in outcome.rows if row["split"] == split], names) for split in SPLITS},
    )


def _portable_identity(config: Config) -> dict[str, Any]:
    """Return what makes a run the same on another machine, where an array may have another path."""
    values: dict[str, Any] = json.loads(config.identity)
    if is_array(config.data.name):
        values["data"]["name"] = fingerprint(config.data.name)
    return values


def _curve_of(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> Curve:
    """Return what is kept of the rows of a split."""
    rows = [rows[i] for i in thin([row["images"] for row in rows])]
    return Curve(images=[row["images"] for row in rows], metrics={name: [r.get(name) for r in rows] for name in names})


def _evaluations(experiment: Experiment, run: Run, rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Read those evaluations of a run's present end that are there and whole, and what their checkpoints had seen."""
    paths = {name: find_evaluation(run, spec) for name, spec in experiment.spec.all_evaluations.items()}
    images = {row["step"]: row["images"] for row in rows}
    found: dict[str, dict[str, Any]] = {}
    for name, path in paths.items():
        with suppress(VaecliError):  # it is damaged, and is made again
            if path is not None:
                evaluation = read_object(path)
                step = int(evaluation["checkpoint"].rpartition(" ")[2])  # "best at step 100"
                found[name] = evaluation | {"images": images.get(step, max(images.values(), default=0))}
    return found


@dataclass(frozen=True)
class Figure:
    """Hold one published number and ours."""

    published: Published
    value: Value
    ours: float | None
    """The mean over seeds; None where there is none yet."""
    half_width: float | None
    """Half of a 95 % t interval over seeds; None for fewer than two."""
    n: int
    """How many runs."""
    images: int
    """Seen by them when ours was taken."""
    why_none: str = ""

    @property
    def uncertainty(self) -> float | None:
        """Return that of the published number, where it is stated."""
        return self.published.uncertainty if self.value.uncertainty is None else self.value.uncertainty

    @property
    def difference(self) -> float | None:
        """Return ours less the published number."""
        return None if self.ours is None or self.value.value is None else self.ours - self.value.value

    @property
    def excess(self) -> float | None:
        """Return by how much ours is beyond the tolerance; 0 or less where the goal is met."""
        difference = self.difference
        if difference is None:
            return None
        wrong = {"near": abs(difference), "at_least": -difference, "at_most": difference}[self.published.goal]
        return wrong - self.published.tolerance

    @property
    def is_met(self) -> bool:
        """Return whether ours reaches the goal, in as many digits as the number is published with and three more."""
        return self.excess is not None and round(self.excess, self.published.digits + 3) <= 0

    @property
    def is_early(self) -> bool:
        """Return whether ours was taken after clearly fewer images than the published number."""
        wanted = self.published.images
        return self.ours is not None and wanted is not None and self.images < CLOSE * wanted

    @property
    def is_late(self) -> bool:
        """Return whether ours was taken after clearly more images than the published number."""
        wanted = self.published.images
        return self.ours is not None and wanted is not None and self.images * CLOSE > wanted

    @property
    def verdict(self) -> str:
        """Say in words whether the published number is met."""
        excess, published = self.excess, self.published
        if excess is None:
            return self.why_none or "no published number known"
        judged = "met" if self.is_met else f"missed by {excess:.{published.digits}f}"
        if published.images is None or not (self.is_early or self.is_late):
            return judged
        return f"{judged}, after {percent(self.images / published.images)} % of the images"


def percent(share: float) -> str:
    """Return a share in percent: two digits, or whole numbers from 99.5 on."""
    return f"{100 * share:.2g}" if share < 0.995 else f"{100 * share:,.0f}"


def compare(experiment: Experiment, outcomes: Sequence[Outcome]) -> dict[str, list[Figure]]:
    """Put ours beside every published number, by the name of its kind."""
    return {
        name: [_figure(published, value, [o for o in outcomes if o.matches(value.where)]) for value in published.values]
        for name, published in experiment.spec.published.items()
    }


def _figure(published: Published, value: Value, outcomes: Sequence[Outcome]) -> Figure:
    found = [pair for pair in (_ours(published, outcome) for outcome in outcomes) if pair is not None]
    if found:
        mean, half = interval([ours for ours, _ in found])
        return Figure(published, value, mean, half, len(found), min(images for _, images in found))
    begun = max((outcome.images for outcome in outcomes), default=0)
    if not outcomes:
        why = "not among the runs"
    elif not any(outcome.origin for outcome in outcomes):
        why = "not run yet"
    elif published.ours.curve is not None and published.images is not None and begun < CLOSE * published.images:
        why = f"not reached yet: {begun:,} of {published.images:,.0f} images"
    elif published.ours.curve is not None:
        why = "the runs have no such curve"
    elif any(published.ours.evaluation in outcome.evaluations for outcome in outcomes):
        why = "the evaluation has no such number"
    else:
        why = "not evaluated yet"
    return Figure(published, value, None, None, 0, begun, why)


def _ours(published: Published, outcome: Outcome) -> tuple[float, int] | None:
    """Return our figure of a run, and after how many images it was taken."""
    ours = published.ours
    if ours.evaluation is not None:
        found = outcome.evaluations.get(ours.evaluation, {})
        value = found.get(ours.metric)
        return (float(value), found["images"]) if isinstance(value, int | float) else None
    assert ours.curve is not None
    images, values = outcome.curve(ours.curve, ours.metric)
    if not images:
        return None
    wanted = published.images or images[-1]
    i = min(range(len(images)), key=lambda i: abs(images[i] - wanted))
    return (values[i], images[i]) if images[-1] >= CLOSE * wanted else None


def goal_in_words(published: Published) -> str:
    """Say what ours should be."""
    by = f"{published.tolerance:g} {published.unit}"
    by = by.removesuffix("s") if published.tolerance == 1 else by
    return {
        "near": f"within {by} of the published number",
        "at_least": f"within {by} of the published number, or above",
        "at_most": f"within {by} of the published number, or below",
    }[published.goal]
