"""Which runs a YAML file names: every combination of some settings, and any points beside them. Needs no torch."""

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import Field

from vaecli.config.fields import Section
from vaecli.config.jobs import OF_MANY_RUNS, EvaluationSpec, Resources
from vaecli.config.loading import override
from vaecli.config.schema import Config
from vaecli.errors import ConfigError
from vaecli.files import may_be_file

MAX_RUNS = 100_000
"""Runs of a sweep."""


class Spec(Section):
    """Describe the YAML of a sweep."""

    base: str = "bernoulli"
    """A config, by path or name."""
    grid: dict[str, Annotated[list[Any], Field(min_length=1)]] = Field(default_factory=dict)
    """Settings, each with a list of values: every combination is run."""
    points: list[dict[str, Any]] = Field(default_factory=list)
    """Settings of further runs, beside the grid."""
    resources: Resources = Resources()
    evaluation: EvaluationSpec = OF_MANY_RUNS


def varied_keys(spec: Spec) -> tuple[str, ...]:
    """Return the settings that vary, in the order in which they were named."""
    return tuple(dict.fromkeys(itertools.chain(spec.grid, *spec.points)))


def plan_configs(spec: Spec, base: Config, place: str, name: str) -> tuple[Config, ...]:
    """Return the config of every run, each once.

    Args:
        spec: Whose grid and points vary the base.
        base: The config that all share.
        place: Where the spec was written.
        name: Of the folder of the runs.

    Raises:
        ConfigError: Points are too many, or not valid: all that is wrong with them.
    """
    check_count(place, math.prod(map(len, spec.grid.values())) * bool(spec.grid) + len(spec.points))
    configs: dict[str, Config] = {}
    problems: dict[str, None] = {}
    for point in _points(spec):
        overrides = [f"{key}={as_yaml(value)}" for key, value in point.items()]
        try:
            config = override(base, overrides, place)
        except ConfigError as error:
            problems |= dict.fromkeys(error.problems)
        else:
            config = config.model_copy(update={"name": name})
            configs.setdefault(config.identity, config)
    if problems:
        raise ConfigError(list(problems))
    return tuple(configs.values())


def check_count(where: str, n_runs: int) -> None:
    """Refuse more runs than can be planned, before any is made. Raises ConfigError."""
    if n_runs > MAX_RUNS:
        raise ConfigError([f"{where}: names {n_runs:,} runs, and {MAX_RUNS:,} is the most; split it, or vary less"])


def _points(spec: Spec) -> Sequence[Mapping[str, Any]]:
    combinations = itertools.product(*spec.grid.values()) if spec.grid else ()
    return [*(dict(zip(spec.grid, values, strict=True)) for values in combinations), *spec.points]


def as_yaml(value: Any) -> str:
    """Return a value as the YAML of a setting."""
    text: str = yaml.safe_dump(value, default_flow_style=True, width=10**9)
    return text.removesuffix("\n").removesuffix("\n...")


def beside(base: str, path: Path) -> str:
    """Return the path of a base beside the spec, so that it is found from any directory; else the base as it is."""
    beside = path.parent / base
    return str(beside) if may_be_file(beside) else base
