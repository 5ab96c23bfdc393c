"""A published experiment as data: which runs it has, what was published, and which figure of ours stands beside it.

It needs no torch until a budget is to be told in epochs.
"""

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from vaecli.config.fields import Section
from vaecli.config.jobs import EvaluationSpec, Resources
from vaecli.config.loading import all_keys, load_config, load_yaml, override
from vaecli.config.schema import Config, get_setting
from vaecli.errors import ConfigError, UsageError, suggest
from vaecli.evaluation.result import Evaluation
from vaecli.files import may_be_file, safe_name
from vaecli.sweeps.spec import Spec, as_yaml, beside, plan_configs, varied_keys
from vaecli.sweeps.sweep import Sweep

EXPERIMENTS = Path(__file__).parent / "experiments"
CURVES = ("elbo", "log_likelihood", "kl", "active_units")
"""The metrics that a run has of every epoch."""
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
    value: float
    uncertainty: float | None = Field(None, ge=0)


class Published(Section):
    """Hold published numbers of one kind, and how ours are judged by them."""

    title: str
    source: str
    """Where it was published, and how the number was read."""
    ours: Ours
    images: float | None = Field(None, gt=0)
    """Seen in training when the number was taken; null: at the end."""
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
    budget: Annotated[float, BeforeValidator(_as_float), Field(gt=0)]
    """Images that every run sees in full."""
    data: str | None = None
    """What images must be given by path, where they cannot be shipped."""
    runs: RunsSpec
    evaluations: dict[str, EvaluationSpec] = Field(min_length=1)
    """By name; of every run, once it has seen its images."""
    published: dict[str, Published] = Field(default_factory=dict)
    charts: list[Chart] = Field(default_factory=list)
    notes: list[str] = Field(default_factory=list)
    """What a reader of the page should know."""


@dataclass(frozen=True)
class Experiment:
    """Hold an experiment whose runs are planned, for a budget that may be a part of the full one."""

    name: str
    spec: ExperimentSpec
    budget: float
    """Images that every run sees at least."""
    settings: tuple[str, ...]
    """What was changed on the command line."""
    sweep: Sweep
    """All runs."""

    @property
    def share(self) -> float:
        """Return which part of the full budget this is."""
        return self.budget / self.spec.budget

    def of(self, where: Sequence[str]) -> Sweep:
        """Return the sweep of those runs alone whose settings have these values, as `KEY=VALUE`. Raises UsageError."""
        wanted = [text.partition("=")[::2] for text in where]
        for key, _ in wanted:
            if key not in self.sweep.keys:
                raise UsageError(f"--where {key}: {self.name} does not vary it; {suggest(key, self.sweep.keys)}")
        configs = [c for c in self.sweep.configs if all(as_yaml(get_setting(c, k)) == v for k, v in wanted)]
        if not configs:
            raise UsageError(f"--where {' '.join(where)}: no run of {self.name} is so; --dry-run lists them")
        return replace(self.sweep, configs=tuple(configs))


def shipped_experiments() -> dict[str, Path]:
    """Return the experiments that ship with the package, by name."""
    return {path.stem: path for path in sorted(EXPERIMENTS.glob("*.yaml"))}


def find_experiment(source: str | Path) -> Path:
    """Return the file that a path or a shipped experiment's name stands for. Raises ConfigError."""
    path, shipped = Path(source), shipped_experiments()
    if str(source) in shipped:
        return shipped[str(source)]
    if may_be_file(path):
        return path
    raise ConfigError([f"{source}: no such experiment; {suggest(path.stem, shipped)}"])


def read_experiment(path: Path) -> ExperimentSpec:
    """Read the YAML of an experiment. Raises ConfigError with all that is wrong with it."""
    return load_yaml(path, ExperimentSpec, _problems)


def load_experiment(
    source: str | Path,
    *,
    budget: float | None = None,
    settings: Sequence[str] = (),
    data_dir: Path | None = None,
) -> Experiment:
    """Read an experiment and plan its runs.

    Args:
        source: A shipped experiment's name, or the path of a YAML file.
        budget: Images that every run sees, in whole epochs; None for as many as in the paper.
        settings: `KEY=VALUE` over those of every run: what results is labelled as another experiment.
        data_dir: As for `train`.

    Raises:
        ConfigError: With all that is wrong with the file.
        UsageError: It needs images by path, and none are given.
        DataError: The images cannot be read.
    """
    path = find_experiment(source)
    spec = read_experiment(path)
    name = safe_name(path.stem) or "experiment"
    if spec.data is not None and not any(text.startswith("data.name=") for text in settings):
        raise UsageError(f"{name}: needs {spec.data}; give their file with --data PATH")
    own = {text.partition("=")[0] for text in settings}
    written = [f"{key}={as_yaml(value)}" for key, value in spec.runs.settings.items() if key not in own]
    base_source = beside(spec.runs.base, path)
    base = override(override(load_config(base_source), written, str(path)), settings)
    varied = Spec(
        grid={key: values for key, values in spec.runs.grid.items() if key not in own},
        points=[{key: value for key, value in point.items() if key not in own} for point in spec.runs.points],
    )
    budget = spec.budget if budget is None else budget
    planned = plan_configs(varied if varied.grid or varied.points else Spec(points=[{}]), base, str(path), name)
    sweep = Sweep(
        kind="experiment",
        name=name,
        base=base,
        base_source=base_source,
        keys=varied_keys(varied),
        configs=tuple(_with_epochs(config, budget, data_dir) for config in planned),
        resources=spec.runs.resources,
        evaluation=next(iter(spec.evaluations.values())),
        extend=True,
    )
    return Experiment(name, spec, budget, tuple(settings), sweep)


def _with_epochs(config: Config, budget: float, data_dir: Path | None) -> Config:
    """Return the config with as many epochs as it takes to see so many images."""
    epochs = max(1, math.ceil(budget / n_training_images(config, data_dir)))
    return config.model_copy(update={"training": config.training.model_copy(update={"epochs": epochs})})


def n_training_images(config: Config, data_dir: Path | None) -> int:
    """Return how many images an epoch has. Raises DataError."""
    return _count(config.data.model_dump_json(), config.model.decoder, data_dir)


@functools.cache
def _count(data: str, decoder: str, data_dir: Path | None) -> int:
    from vaecli.config.likelihoods import LIKELIHOODS  # noqa: PLC0415
    from vaecli.config.schema import DataConfig  # noqa: PLC0415
    from vaecli.data.dataset import Dataset  # noqa: PLC0415 (torch)

    return len(Dataset(DataConfig.model_validate_json(data), LIKELIHOODS[decoder].support, data_dir).train)


def _problems(spec: ExperimentSpec) -> Iterator[tuple[str, str]]:
    """Yield what is wrong with an experiment whose parts are each right: the key, and why."""
    known, varied = all_keys(), {*spec.runs.grid, *(key for point in spec.runs.points for key in point)}
    for key in spec.runs.settings:
        if key not in known:
            yield f"runs.settings.{key}", f"no such setting; {suggest(key, known)}"
    for name, published in spec.published.items():
        yield from ((f"published.{name}.{key}", why) for key, why in _problems_of(published, spec))
    for i, chart in enumerate(spec.charts):
        for key in filter(None, (chart.panels, chart.lines)):
            if key not in varied:
                yield f"charts.{i}", f"{key} does not vary; {suggest(key, varied)}"
        for name in chart.published:
            if name not in spec.published:
                yield f"charts.{i}.published", f"no such published numbers, {name}; {suggest(name, spec.published)}"


def _problems_of(published: Published, spec: ExperimentSpec) -> Iterator[tuple[str, str]]:
    """Yield what is wrong with published numbers: a figure of ours that there is not, runs that cannot be told."""
    ours, metrics = published.ours, Evaluation.__annotations__
    if ours.evaluation is not None and ours.evaluation not in spec.evaluations:
        yield "ours.evaluation", f"no such evaluation, {ours.evaluation}; {suggest(ours.evaluation, spec.evaluations)}"
    elif ours.evaluation is not None and ours.metric not in metrics:
        yield "ours.metric", f"no such metric, {ours.metric}; {suggest(ours.metric, metrics)}"
    varied = {*spec.runs.grid, *(key for point in spec.runs.points for key in point)}
    for i, value in enumerate(published.values):
        for key in value.where:
            if key not in varied:
                yield f"values.{i}.where.{key}", f"does not vary; {suggest(key, varied)}"
        mixed = [key for key in spec.runs.grid if key not in {*value.where, "seed"}]
        if mixed:
            yield f"values.{i}.where", f"must say of which runs it is: {', '.join(mixed)} varies"
