"""The YAML of an experiment: which runs it has, what was published, and which figure of ours stands beside it."""

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from vaecli.config.fields import Section
from vaecli.config.jobs import AnnealingSpec, AnySpec, EvaluationSpec, GapsSpec, Resources
from vaecli.config.loading import all_keys, load_yaml
from vaecli.errors import suggest
from vaecli.evaluation.result import AnnealedEvaluation, Evaluation, Gaps

NUMBERS = (int, float, float | None)
"""Types of what can stand beside a published number."""
CURVES = ("elbo", "log_likelihood", "kl", "active_units")
"""The metrics that a run has of every epoch."""
METRICS: dict[type[AnySpec], tuple[str, ...]] = {
    spec: tuple(name for name, of in kind.__annotations__.items() if of in NUMBERS)
    for spec, kind in ((EvaluationSpec, Evaluation), (AnnealingSpec, AnnealedEvaluation), (GapsSpec, Gaps))
}
"""The numbers that each kind of evaluation has of a run."""
EPOCHS = "training.epochs"
"""Decided by the budget."""
Split = Literal["train", "validation"]


class RunsSpec(Section):
    """Describe the runs, as the YAML of a sweep does, and what they share."""

    base: str = "bernoulli"
    """A config, by path or name."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """Over the base's, for all runs."""
    grid: dict[str, Annotated[list[Any], Field(min_length=1)]] = Field(default_factory=dict)
    points: list[dict[str, Any]] = Field(default_factory=list)
    resources: Resources = Resources()


class Ours(Section):
    """Say which figure of ours stands beside a published one: of the curves, or of an evaluation at the end."""

    metric: str
    curve: Split | None = None
    """Which split's curve."""
    evaluation: str | None = None
    """The name of an evaluation."""

    @model_validator(mode="after")
    def _one_of_two(self) -> "Ours":
        if (self.curve is None) == (self.evaluation is None):
            raise ValueError("needs either curve, or evaluation")
        if self.curve is not None and self.metric not in CURVES:
            raise ValueError(f"has no such metric of a curve; {suggest(self.metric, CURVES)}")
        return self


class Value(Section):
    """Hold a published number, and of which runs it is."""

    where: dict[str, Any] = Field(default_factory=dict)
    """Settings by which the runs are known."""
    value: float | None
    """Null where none is known: ours is then shown alone."""
    uncertainty: float | None = Field(None, ge=0)


class Published(Section):
    """Hold published numbers of one kind, and how ours are judged by them."""

    title: str
    source: str
    """Where it was published, and how the number was read."""
    ours: Ours
    images: float | None = Field(None, gt=0)
    """Seen in training when ours is laid beside it: as in the paper, or in another schedule; null: at the end."""
    unit: str = "nats"
    digits: int = Field(2, ge=0, le=6)
    uncertainty: float | None = Field(None, ge=0)
    """Of every number that states none of its own."""
    goal: Literal["near", "at_least", "at_most"] = "near"
    """What ours should be: as large, or no worse, by the tolerance."""
    tolerance: float = Field(ge=0)
    values: Annotated[list[Value], Field(min_length=1)]


def _as_tuple(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


class Chart(Section):
    """Describe a chart of the page."""

    where: dict[str, Any] = Field(default_factory=dict)
    """Settings of the runs that it is about; empty for all."""

    kind: Literal["curves", "figures", "pictures"]
    """Curves over images seen, published numbers as markers; figures of ours beside theirs; or pictures of each run."""
    title: str
    caption: str = ""
    panels: str | None = None
    """The setting by which there is a panel for each value; null: one panel."""
    lines: str | None = None
    """The setting by which lines and markers have colours."""
    metric: str = "elbo"
    splits: Annotated[tuple[Split, ...], BeforeValidator(_as_tuple)] = ("train", "validation")
    published: list[str] = Field(default_factory=list)
    """Names of published numbers to show."""
    show: Literal["manifold", "samples", "reconstructions"] = "samples"
    """What pictures are of."""


def _as_float(value: object) -> object:
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


class ExperimentSpec(Section):
    """Describe the YAML of an experiment."""

    title: str
    source: str
    """The paper, and the place in it."""
    about: str
    """What is done, in a few sentences of plain text, with whatever differs from the paper."""
    budget: Annotated[float, BeforeValidator(_as_float), Field(gt=0, allow_inf_nan=False)]
    """Images that every run sees in full."""
    data: str | None = None
    """What images must be given by path, where they cannot be shipped."""
    runs: RunsSpec
    evaluations: dict[str, EvaluationSpec] = Field(min_length=1)
    """By name; of every run, once it has seen its images."""
    annealing: dict[str, AnnealingSpec] = Field(default_factory=dict)
    """The same by annealing, or from posterior samples."""
    gaps: dict[str, GapsSpec] = Field(default_factory=dict)
    """The same: where the bound is lost."""
    published: dict[str, Published] = Field(default_factory=dict)
    charts: list[Chart] = Field(default_factory=list)
    notes: list[str] = Field(default_factory=list)
    """What a reader of the page should know."""

    @property
    def all_evaluations(self) -> dict[str, AnySpec]:
        """Return every way in which runs are evaluated, by name."""
        return {**self.evaluations, **self.annealing, **self.gaps}


def read_experiment(path: Path) -> ExperimentSpec:
    """Read the YAML of an experiment. Raises ConfigError with all that is wrong with it."""
    return load_yaml(path, ExperimentSpec, _problems)


def _problems(spec: ExperimentSpec) -> Iterator[tuple[str, str]]:
    """Yield what is wrong with an experiment whose parts are each right: the key, and why."""
    known, varied = all_keys(), {*spec.runs.grid, *(key for point in spec.runs.points for key in point)}
    for key in spec.runs.settings:
        if key not in known:
            yield f"runs.settings.{key}", f"no such setting; {suggest(key, known)}"
    yield from _epochs_in(spec.runs)
    twice = {*spec.evaluations, *spec.annealing} & {*spec.gaps} | {*spec.evaluations} & {*spec.annealing}
    yield from ((f"evaluations.{name}", "annealing or gaps has this name too") for name in sorted(twice))
    for name, published in spec.published.items():
        yield from ((f"published.{name}.{key}", why) for key, why in _problems_of(published, spec))
    yield from _problems_of_charts(spec.charts, varied, spec.published)


def _problems_of_charts(
    charts: Sequence[Chart], varied: Collection[str], published: Collection[str]
) -> Iterator[tuple[str, str]]:
    """Yield what is wrong with charts: what they show is not there."""
    for i, chart in enumerate(charts):
        if chart.kind == "curves" and chart.metric not in CURVES:
            yield f"charts.{i}.metric", f"no such metric of a curve, {chart.metric}; {suggest(chart.metric, CURVES)}"
        for key in filter(None, (chart.panels, chart.lines, *chart.where)):
            if key not in varied:
                yield f"charts.{i}", f"{key} does not vary; {suggest(key, varied)}"
        for name in chart.published:
            if name not in published:
                yield f"charts.{i}.published", f"no such published numbers, {name}; {suggest(name, published)}"


def _epochs_in(runs: RunsSpec) -> Iterator[tuple[str, str]]:
    """Yield where epochs are set, which the budget decides."""
    points = {f"points.{i}": point for i, point in enumerate(runs.points)}
    for place, settings in {"settings": runs.settings, "grid": runs.grid, **points}.items():
        if EPOCHS in settings:
            yield f"runs.{place}.{EPOCHS}", "how long runs are is told in images; use budget"


def _problems_of(published: Published, spec: ExperimentSpec) -> Iterator[tuple[str, str]]:
    """Yield what is wrong with published numbers: a figure of ours that there is not, runs that cannot be told."""
    ours, evaluations = published.ours, spec.all_evaluations
    if ours.evaluation is not None and ours.evaluation not in evaluations:
        yield "ours.evaluation", f"no such evaluation, {ours.evaluation}; {suggest(ours.evaluation, evaluations)}"
    elif ours.evaluation is not None:
        metrics = METRICS[type(evaluations[ours.evaluation])]
        if ours.metric not in metrics:
            yield "ours.metric", f"no such metric, {ours.metric}; {suggest(ours.metric, metrics)}"
    varied = {*spec.runs.grid, *(key for point in spec.runs.points for key in point)}
    for i, value in enumerate(published.values):
        for key in value.where:
            if key not in varied:
                yield f"values.{i}.where.{key}", f"does not vary; {suggest(key, varied)}"
