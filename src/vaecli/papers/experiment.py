"""An experiment whose runs are planned, for all of the published budget or for a part of it.

It needs no torch until a budget is to be told in epochs.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

from vaecli.config.data_sets import is_array
from vaecli.config.likelihoods import Support
from vaecli.config.loading import load_config, override
from vaecli.config.schema import Config, get_setting
from vaecli.errors import ConfigError, UsageError, suggest
from vaecli.files import may_be_file, safe_name
from vaecli.papers.spec import EPOCHS, ExperimentSpec, read_experiment
from vaecli.sweeps.spec import Spec, as_yaml, beside, plan_configs, varied_keys
from vaecli.sweeps.sweep import Sweep

EXPERIMENTS = Path(__file__).parent / "experiments"


@dataclass(frozen=True)
class Experiment:
    """Hold an experiment whose runs are planned, for a budget that may be a part of the full one."""

    source: str
    """As it was named: a shipped experiment's name, or a path."""
    name: str
    spec: ExperimentSpec
    budget: float
    """Images that every run sees at least."""
    settings: tuple[str, ...]
    """What was changed on the command line."""
    sweep: Sweep
    """All runs."""
    data_dir: Path | None = None
    """Where torchvision's data sets are."""

    @property
    def share(self) -> float:
        """Return which part of the full budget this is."""
        return self.budget / self.spec.budget

    @property
    def changes(self) -> tuple[str, ...]:
        """Return the settings that make it another experiment; images that it needs by path are none."""
        is_given = self.spec.data is not None and is_array(self.sweep.base.data.name)
        return tuple(text for text in self.settings if not (is_given and text.startswith("data.name=")))

    def of(self, where: Sequence[str]) -> Sweep:
        """Return the sweep of those runs alone whose settings have these values, as `KEY=VALUE`.

        Several values of one key are alternatives. Raises UsageError.
        """
        wanted: dict[str, list[str]] = {}
        for text in where:
            key, equals, _ = text.partition("=")
            if not equals:
                raise UsageError(f"--where {text}: must be KEY=VALUE")
            if key not in self.sweep.keys:
                raise UsageError(f"--where {key}: {self.name} does not vary it; {suggest(key, self.sweep.keys)}")
            wanted.setdefault(key, []).append(text)
        configs = [
            config
            for config in self.sweep.configs
            if all(any(_is_already(config, [text]) for text in texts) for texts in wanted.values())
        ]
        if not configs:
            raise UsageError(f"--where {' '.join(where)}: no run of {self.name} is so; --dry-run lists them")
        return replace(self.sweep, configs=tuple(configs))


def shipped_experiments() -> dict[str, Path]:
    """Return the experiments that ship with the package, by name."""
    return {path.stem: path for path in sorted(EXPERIMENTS.glob("*.yaml"), key=lambda path: path.stem)}


def find_experiment(source: str | Path) -> Path:
    """Return the file that a path or a shipped experiment's name stands for. Raises ConfigError."""
    path, shipped = Path(source), shipped_experiments()
    if str(source) in shipped:
        return shipped[str(source)]
    if may_be_file(path):
        return path
    raise ConfigError([f"{source}: no such experiment; {suggest(path.stem, shipped)}"])


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
        ConfigError: With all that is wrong with the file, or the budget needs too many epochs.
        UsageError: It needs images by path, and none are given; the budget is no number, or is told in epochs.
        DataError: The images cannot be read.
    """
    path = find_experiment(source)
    spec = read_experiment(path)
    name = safe_name(path.stem) or "experiment"
    if spec.data is not None and not any(text.startswith("data.name=") for text in settings):
        raise UsageError(f"{name}: needs {spec.data}; give their file with --data PATH")
    own = {text.partition("=")[0] for text in settings}
    if EPOCHS in own:
        raise UsageError(f"{EPOCHS}: how long runs are is told in images; use --budget")
    budget = spec.budget if budget is None else float(budget)
    if not (math.isfinite(budget) and budget > 0):
        raise UsageError(f"--budget {budget}: must be a finite number of images, above 0")
    written = [f"{key}={as_yaml(value)}" for key, value in spec.runs.settings.items() if key not in own]
    base_source = beside(spec.runs.base, path)
    try:
        base = load_config(base_source)
    except ConfigError as error:
        raise ConfigError([f"{path}: runs.base: {problem}" for problem in error.problems]) from error
    base = override(override(base, written, str(path)), settings)
    varied = Spec(
        grid={key: values for key, values in spec.runs.grid.items() if key not in own},
        points=[{key: value for key, value in point.items() if key not in own} for point in spec.runs.points],
    )
    planned = plan_configs(varied if varied.grid or varied.points else Spec(points=[{}]), base, str(path), name)
    try:
        check_where(spec, planned, varied_keys(varied), path)
    except ConfigError as error:
        lost = [text for text in settings if text.partition("=")[0] in {*spec.runs.grid, *chain(*spec.runs.points)}]
        if not lost:
            raise
        raise UsageError(
            f"{' '.join(lost)}: {name} varies it, and its published numbers could not be told apart; "
            f"to train a part of the runs use --where {lost[0]}"
        ) from error
    if not settings:
        _check_numbers_have_runs(spec, planned, path)
    configs = tuple(_with_epochs(config, budget, data_dir) for config in planned)
    sweep = Sweep(
        kind="experiment",
        name=name,
        base=base,
        base_source=base_source,
        keys=varied_keys(varied),
        configs=configs,
        resources=spec.runs.resources,
        evaluation=next(iter(spec.evaluations.values())),
        further=tuple(spec.all_evaluations.values())[1:],
        extend=True,
        whole=configs,
    )
    return Experiment(str(source), name, spec, budget, tuple(settings), sweep, data_dir)


def _with_epochs(config: Config, budget: float, data_dir: Path | None) -> Config:
    """Return the config with as many epochs as it takes to see so many images. Raises ConfigError if too many."""
    epochs = max(1, math.ceil(budget / n_training_images(config, data_dir)))
    return override(config, [f"{EPOCHS}={epochs}"], f"a budget of {budget:,.0f} images")


def as_key(value: object) -> Any:
    """Return a setting's value to be compared and looked up: a list as a tuple, a list of one as its number."""
    if not isinstance(value, list | tuple):
        return value
    return value[0] if len(value) == 1 else tuple(value)


def matches(config: Config, where: Mapping[str, Any]) -> bool:
    """Return whether a config's settings have these values."""
    return all(as_key(get_setting(config, key)) == as_key(value) for key, value in where.items())


def _is_already(config: Config, settings: Sequence[str]) -> bool:
    """Return whether `KEY=VALUE` settings change nothing of a config."""
    try:
        return override(config, settings) == config
    except ConfigError:  # it cannot be so
        return False


def check_where(spec: ExperimentSpec, configs: Sequence[Config], keys: Sequence[str], path: Path) -> None:
    """Refuse published numbers whose runs differ in more than the seed, of which none could be averaged.

    Raises:
        ConfigError: Naming all such numbers, and what varies among their runs.
    """
    problems = []
    for name, published in spec.published.items():
        for i, value in enumerate(published.values):
            found = [config for config in configs if matches(config, value.where)]
            several = {key: {as_key(get_setting(config, key)) for config in found} for key in keys if key != "seed"}
            mixed = ", ".join(key for key, values in several.items() if len(values) > 1)
            if mixed:
                problems.append(
                    f"{path}: published.{name}.values.{i}.where: must say of which runs it is: {mixed} varies"
                )
    if problems:
        raise ConfigError(problems)


def _check_numbers_have_runs(spec: ExperimentSpec, configs: Sequence[Config], path: Path) -> None:
    """Refuse published numbers that no run stands beside. Raises ConfigError, naming all."""
    problems = [
        f"{path}: published.{name}.values.{i}.where: no run is so"
        for name, published in spec.published.items()
        for i, value in enumerate(published.values)
        if not any(matches(config, value.where) for config in configs)
    ]
    if problems:
        raise ConfigError(problems)


def n_training_images(config: Config, data_dir: Path | None) -> int:
    """Return how many images an epoch has. Raises DataError."""
    return _count(config.data.model_dump_json(), config.support, data_dir)


@functools.cache
def _count(data: str, support: Support, data_dir: Path | None) -> int:
    from vaecli.config.sections import DataConfig  # noqa: PLC0415
    from vaecli.data.dataset import Dataset  # noqa: PLC0415 (torch)

    return len(Dataset(DataConfig.model_validate_json(data), support, data_dir).train)
