"""What a shell completes: runs, configs and settings. Asked at every press of a key, it imports no torch.

Typer calls these with the click context and the word that is to be completed.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vaecli.errors import VaecliError

BOOLEANS = ["true", "false"]


def runs(ctx: Any, incomplete: str) -> list[str]:
    """Return the names of runs that begin so, newest first, and the paths that do."""
    from vaecli.runs.run import list_runs

    runs_dir = ctx.params.get("runs_dir") or Path("runs")
    try:
        found = [run.name for run in reversed(list_runs(runs_dir))]
    except VaecliError:
        found = []
    return [name for name in found if name.startswith(incomplete)] or list(_paths(incomplete, ".pt"))


def configs(incomplete: str) -> list[str]:
    """Return the shipped configs and the YAML files that begin so."""
    from vaecli.config.loading import shipped_configs

    return [name for name in shipped_configs() if name.startswith(incomplete)] + list(
        _paths(incomplete, ".yaml", ".yml")
    )


def settings(ctx: Any, incomplete: str) -> list[str]:
    """Return the keys of a config that begin so, each with its `=`; of a single one, the values that it may take.

    Behind a single match a shell puts a space, which no setting has behind its `=`: a key whose value is no word is
    given by itself and with its default.

    A shell that splits words at `=`, as bash does, asks for the value alone: a key without one stands before.
    """
    from vaecli.config.loading import all_keys

    given = [word for word in ctx.params.get("settings") or () if word != "="]
    if given and given[-1] in all_keys():
        return [value for value in _values(given[-1]) if value.startswith(incomplete)]
    key, equals, written = incomplete.partition("=")
    if equals:
        return [f"{key}={value}" for value in _values(key) if value.startswith(written)]
    from vaecli.config.schema import Config, get_setting

    keys = [name for name in all_keys() if name.startswith(key)]
    if len(keys) != 1:
        return [f"{name}=" for name in keys]
    default = json.dumps(get_setting(Config(), keys[0]))
    return [f"{keys[0]}={value}" for value in _values(keys[0]) or ["", default]]


def decoders(incomplete: str) -> list[str]:
    """Return the decoders that begin so."""
    from vaecli.config.likelihoods import LIKELIHOODS

    *before, last = incomplete.split(",")
    return [",".join((*before, name)) for name in ("all", *LIKELIHOODS) if name.startswith(last)]


def _values(key: str) -> list[str]:
    """Return the words that a setting may be; none of one that is a number or a text."""
    from vaecli.config.schema import Config

    schema = Config.model_json_schema()
    part: Any = schema
    for name in key.split("."):
        part = _resolved(part, schema).get("properties", {}).get(name, {})
    return list(_words(part, schema))


def _words(part: dict[str, Any], schema: dict[str, Any]) -> Iterator[str]:
    part = _resolved(part, schema)
    for choice in part.get("anyOf", ()):
        yield from _words(choice, schema)
    yield from part.get("enum", ())
    if part.get("type") == "boolean":
        yield from BOOLEANS
    if part.get("type") == "null":
        yield "null"


def _resolved(part: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    """Follow a reference to a definition."""
    name = part.get("$ref", "").rpartition("/")[2]
    found: dict[str, Any] = schema["$defs"][name] if name else part
    return found


def _paths(incomplete: str, *suffixes: str) -> Iterator[str]:
    """Yield directories and files of these suffixes whose path begins so."""
    folder, slash, start = incomplete.rpartition("/")
    try:
        entries = sorted(Path(folder + slash).iterdir())
    except OSError:
        return
    for entry in entries:
        is_shown = entry.name.startswith(start) and (start or not entry.name.startswith("."))
        if is_shown and (entry.is_dir() or entry.suffix in suffixes):
            yield f"{folder}{slash}{entry.name}" + "/" * entry.is_dir()
