"""What makes two runs the same run, now and as it was recorded by earlier versions."""

import json
from typing import Any

from vaecli.config.schema import Config

DEFAULTS: dict[str, Any] = json.loads(Config().identity)
"""Of all settings that make two runs the same."""


def identity(config: Config, *, extend: bool = False) -> str:
    """Return what makes two runs the same run; the number of epochs is no part of it where that can be extended."""
    return recorded_identity(config.identity, extend=extend) if extend else config.identity


def recorded_identity(recorded: str, *, extend: bool = False) -> str:
    """Return the identity of a run from what was recorded of it: settings that came later have their defaults."""
    values = json.loads(recorded)
    for key, default in DEFAULTS.items():
        values[key] = default | values.get(key, {}) if isinstance(default, dict) else values.get(key, default)
    if extend and values["optimizer"]["schedule"] == "constant":
        del values["training"]["epochs"]
    return json.dumps(values, sort_keys=True)
