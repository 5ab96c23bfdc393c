"""Settings by their dotted keys, as `model.latent_dim`."""

from collections.abc import Sequence
from typing import Any

from vaecli.config import Config


def setting(config: Config, key: str) -> Any:
    """The value of a setting; a list of one layer as its number, as it is written."""
    value: Any = config.model_dump(mode="json")
    for part in key.split("."):
        value = value[part]
    return value[0] if key == "model.hidden_dim" and len(value) == 1 else value


def label(config: Config, keys: Sequence[str]) -> str:
    """The settings of these keys in a few words, by the last part of each key: `decoder bernoulli, seed 0`."""
    return ", ".join(f"{key.rpartition('.')[2]} {setting(config, key)}" for key in keys)
