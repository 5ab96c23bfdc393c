"""Sweeps: every combination of some settings, and any points beside them, each trained and evaluated once."""

import itertools
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import Field

from vaecli.config.loading import load_config, load_yaml, override
from vaecli.config.schema import Config, Section
from vaecli.config.settings import setting
from vaecli.data.sources import fingerprint
from vaecli.errors import ConfigError
from vaecli.sweeps.claims import claim
from vaecli.sweeps.execution import Engine, run_all
from vaecli.sweeps.jobs import JobOptions, JobResult, Resources
from vaecli.sweeps.news import Watch, ignore
from vaecli.training.stopping import Stop, never

PLAN = "sweep.json"


class EvaluationSpec(Section):
    """How each run is evaluated, on the test split."""

    k: int = Field(100, ge=1, le=10_000_000)
    """Importance samples per image."""
    binarised: bool = True
    """Whether the bridge to binarised images is crossed, for which most decoders need an encoder fitted anew."""


class Spec(Section):
    """The YAML of a sweep."""

    base: str = "bernoulli"
    """A config, by path or name."""
    grid: dict[str, Annotated[list[Any], Field(min_length=1)]] = Field(default_factory=dict)
    """Settings, each with a list of values: every combination is run."""
    points: list[dict[str, Any]] = Field(default_factory=list)
    """Settings of further runs, beside the grid."""
    resources: Resources = Resources()
    evaluation: EvaluationSpec = EvaluationSpec()


@dataclass(frozen=True)
class Sweep:
    """A spec whose every point is a valid config."""

    name: str
    spec: Spec
    base_source: str
    """The base, as `--config` takes it."""
    base: Config
    configs: tuple[Config, ...]

    @property
    def keys(self) -> tuple[str, ...]:
        """The settings that vary, in the order in which the spec names them."""
        named = itertools.chain(self.spec.grid, *self.spec.points)
        return tuple(dict.fromkeys(named))

    def command(self, outcome: JobResult) -> str:
        """The command line that does a run again, or goes on with it."""
        if outcome.run is not None and outcome.run.last.is_file():
            return shlex.join(["vae", "train", "--resume", str(outcome.run.path)])
        settings = [f"{key}={_as_yaml(setting(outcome.config, key))}" for key in self.keys]
        return shlex.join(["vae", "train", "--config", self.base_source, *settings])


@dataclass(frozen=True)
class Swept:
    """A sweep and what came of it, in the order of its configs."""

    sweep: Sweep
    outcomes: tuple[JobResult, ...]
    data_dir: Path | None = None

    @property
    def failed(self) -> list[JobResult]:
        """The runs that came to nothing."""
        return [outcome for outcome in self.outcomes if outcome.error]


def load_sweep(path: Path) -> Sweep:
    """Read a spec and validate all of its points. Raises ConfigError with everything that is wrong with any."""
    spec = load_yaml(path, Spec)
    if not spec.grid and not spec.points:
        raise ConfigError([f"{path}: names no runs; give it a grid or points"])
    base_source = _beside(spec.base, path)
    base = load_config(base_source)
    configs: dict[str, Config] = {}
    problems: dict[str, None] = {}
    for point in _points(spec):
        overrides = [f"{key}={_as_yaml(value)}" for key, value in point.items()]
        try:
            config = override(base, overrides, str(path))
        except ConfigError as error:
            problems |= dict.fromkeys(error.problems)
        else:
            config = config.model_copy(update={"name": path.stem})
            configs.setdefault(config.identity, config)
    if problems:
        raise ConfigError(list(problems))
    return Sweep(path.stem, spec, base_source, base, tuple(configs.values()))


def run_sweep(
    sweep: Sweep,
    out: Path,
    *,
    runs_dir: Path,
    data_dir: Path | None = None,
    engine: Engine = "local",
    address: str | None = None,
    jobs: int | None = None,
    watch: Watch = ignore,
    stop: Stop = never,
) -> Swept:
    """Train and evaluate what of a sweep is missing.

    Args:
        sweep: From `load_sweep`.
        out: The directory of its results; it remembers which sweep it holds.
        runs_dir: Where the runs are looked for and made.
        data_dir: As for `train`.
        engine: As for `run_all`.
        address: As for `run_all`.
        jobs: As for `run_all`.
        watch: Is told of every run that begins or ends.
        stop: Is asked again and again whether to checkpoint and stop.

    Raises:
        UsageError: The directory holds another sweep, or the cluster is not there or too small.
        DataError: The images cannot be read.
        VaecliError: The directory cannot be written.
        InterruptedRunError: `stop` said so; the same call goes on.
    """
    spec = sweep.spec
    terms = {"evaluation": spec.evaluation.model_dump(), "data_sha256": fingerprint(sweep.base.data.name)}
    claim(out, PLAN, terms, [json.loads(config.identity) for config in sweep.configs])
    work = JobOptions(runs_dir, data_dir, spec.evaluation.k, spec.evaluation.binarised)
    outcomes = run_all(
        sweep.configs,
        work,
        engine=engine,
        address=address,
        jobs=jobs,
        resources=spec.resources,
        watch=watch,
        stop=stop,
    )
    return Swept(sweep, outcomes, data_dir)


def _points(spec: Spec) -> Sequence[Mapping[str, Any]]:
    combinations = itertools.product(*spec.grid.values()) if spec.grid else ()
    return [*(dict(zip(spec.grid, values, strict=True)) for values in combinations), *spec.points]


def _as_yaml(value: Any) -> str:
    text: str = yaml.safe_dump(value, default_flow_style=True, width=10**9)
    return text.removesuffix("\n").removesuffix("\n...")


def _beside(base: str, path: Path) -> str:
    """A base beside the spec is found from any directory."""
    beside = path.parent / base
    return str(beside) if beside.is_file() else base
