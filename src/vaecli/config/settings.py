"""Settings by their dotted keys, as `model.latent_dim`."""

import difflib
from collections.abc import Callable, Sequence
from typing import Any

import yaml

from vaecli.config.loading import all_keys
from vaecli.config.schema import Config
from vaecli.errors import UsageError, VaecliError
from vaecli.runs.run import Run


def setting(config: Config, key: str) -> Any:
    """The value of a setting; a list of one layer as its number, as it is written."""
    value: Any = config.model_dump(mode="json")
    for part in key.split("."):
        value = value[part]
    return value[0] if key == "model.hidden_dim" and len(value) == 1 else value


def label(config: Config, keys: Sequence[str]) -> str:
    """The settings of these keys in a few words, by the last part of each key: `decoder bernoulli, seed 0`."""
    return ", ".join(f"{key.rpartition('.')[2]} {setting(config, key)}" for key in keys)


def matches(conditions: Sequence[str]) -> Callable[[Run], bool]:
    """Whether a run's config has all of these `KEY=VALUE` settings. Raises UsageError where one is none."""
    wanted = {}
    for text in conditions:
        key, equals, written = text.partition("=")
        if not equals or key not in all_keys():
            near = difflib.get_close_matches(key, all_keys(), n=1)
            hint = f"did you mean {near[0]}=...?" if near else f"keys: {', '.join(all_keys())}"
            raise UsageError(f"{text!r}: is no KEY=VALUE of a config; {hint}")
        try:
            wanted[key] = yaml.safe_load(written)
        except yaml.YAMLError as error:
            raise UsageError(f"{text!r}: its value is not valid YAML") from error

    def match(run: Run) -> bool:
        try:
            return all(setting(run.config, key) == value for key, value in wanted.items())
        except VaecliError:
            return False

    return match
