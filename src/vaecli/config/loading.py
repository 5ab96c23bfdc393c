"""Reading a config: YAML with line numbers, overrides from the command line, and all errors at once."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from vaecli.config.reading import Source, compose, node_value, read_source
from vaecli.config.schema import RESUMABLE, Config, get_setting
from vaecli.errors import ConfigError, nearest, suggest
from vaecli.files import may_be_directory, may_be_file, safe_name

RENAMED = {
    "resources.seconds_per_delivery": "resources.sync_interval",
    "resources.together": "resources.replicates",
}
"""Keys of earlier versions."""
Model = TypeVar("Model", bound=BaseModel)
Check = Callable[[Any], Iterable[tuple[str, str]]]
_PACKAGE = Path(__file__).parents[1]
_SHIPPED = (_PACKAGE / "configs", _PACKAGE.parents[1] / "configs")  # an installed wheel, a checkout
_KEY = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


def load_config(source: str | Path | None = None, overrides: Sequence[str] = ()) -> Config:
    """Read a config: defaults, then the file, then `KEY=VALUE` overrides.

    Args:
        source: A path, or the name of a shipped config with or without `.yaml`; None for the defaults.
        overrides: Settings such as `model.latent_dim=10`; values are YAML.

    Raises:
        ConfigError: Listing everything that is wrong, each with its place and what would be right.
    """
    path = None if source is None else find_config(source)
    read = Source(places={"": "config"}) if path is None else read_source(path)
    if path is not None and not read.problems and "name" not in read.values:
        read.values["name"] = safe_name(path.stem) or None
    return _validate(Config, read, overrides)


def load_yaml(path: Path, model: type[Model], check: Check | None = None) -> Model:
    """Read a YAML file that another model than a config's describes. Raises ConfigError as `load_config` does.

    `check` says what else is wrong with it: the keys of values, dotted and with the number of an item, and why.
    """
    source = read_source(path)
    found = _validate(model, source, ())
    problems = [f"{source.place(key)}: {key}: {why}" for key, why in (check(found) if check else ())]
    if problems:
        raise ConfigError(problems)
    return found


def override(config: Config, overrides: Sequence[str], place: str = "command line") -> Config:
    """Replace settings of a config by `KEY=VALUE` ones from some place. Raises ConfigError as `load_config` does."""
    return _validate(Config, Source(values=config.model_dump(), places={"": "config"}), overrides, place)


def parse_config(values: Mapping[str, Any]) -> Config:
    """Build a config from nested dictionaries, as the YAML would be. Raises ConfigError as `load_config` does."""
    return _validate(Config, Source(values=dict(values), places={"": "config"}), ())


def dump_config(config: Config, without: Sequence[str] = ()) -> str:
    """Return the full config as YAML, every default written out, without some keys."""
    values = config.model_dump(mode="json")
    values["model"] |= {name: get_setting(config, f"model.{name}") for name in values["model"]}
    for key in without:
        *sections, name = key.split(".")
        del reduce(getitem, sections, values)[name]
    text: str = yaml.safe_dump(values, sort_keys=False, allow_unicode=True, default_flow_style=False)
    return text


def shipped_configs() -> dict[str, Path]:
    """Return the configs that ship with the package, by name."""
    for directory in _SHIPPED:
        if directory.is_dir():
            return {path.stem: path for path in sorted(directory.glob("*.yaml"))}
    return {}


def find_config(source: str | Path) -> Path:
    """Return the file that a path or a shipped config's name stands for. Raises ConfigError."""
    path = Path(source)
    if may_be_file(path):
        return path
    shipped = shipped_configs()
    name = path.stem if path.suffix in {".yaml", ".yml"} else path.name
    if path.parent in {Path(), Path("configs")} and name in shipped:
        return shipped[name]
    if may_be_directory(path):
        raise ConfigError([f"{path}: is a directory; name a YAML file, or one of {', '.join(shipped)}"])
    raise ConfigError([f"{path}: no such config; {suggest(name, shipped)}"])


def _validate(model: type[Model], source: Source, overrides: Sequence[str], place: str = "command line") -> Model:
    problems, known = list(source.problems), all_keys(model)
    for text in overrides:
        problems += _apply(source, text, place)
    try:
        found = model.model_validate(source.values)
    except ValidationError as error:
        for detail in error.errors():
            key = max(_key(dict(detail), known), _written(source, detail["loc"]), key=len)
            if key not in source.unread:
                problems.append(_describe(source, key, dict(detail), known))
    if problems:
        raise ConfigError(problems)
    return found


def _apply(source: Source, text: str, origin: str) -> list[str]:
    """Put one `KEY=VALUE` over the values; return what is wrong with it."""
    key, equals, written = text.partition("=")
    if not equals or not _KEY.fullmatch(key):
        return [f"{text!r}: settings have the form KEY=VALUE, for example model.latent_dim=10"]
    place = f"{origin}: {text}"
    try:
        node = compose(written, place)
    except ConfigError as error:
        return list(error.problems)
    inner = Source(places={"": place, key: place})
    value = None if node is None else node_value(node, key, place, inner)
    *parents, last = key.split(".")
    target = source.values
    for parent in parents:
        below = target.get(parent)
        target[parent] = dict(below) if isinstance(below, dict) else {}
        target = target[parent]
    target[last] = value
    source.places[key] = place
    source.unread |= inner.unread
    return inner.problems


def _key(detail: dict[str, Any], known: list[str]) -> str:
    """Return the dotted key that one of pydantic's findings is about; empty for the config as a whole."""
    whole, parts = detail["type"] in {"extra_forbidden", "missing"}, {part for key in known for part in key.split(".")}
    return ".".join(str(part) for part in detail["loc"] if whole or part in parts)


def _written(source: Source, loc: Sequence[str | int]) -> str:
    """Return the key of what one of pydantic's findings is about, or of what holds it, as far as it was written."""
    key = whole = ""
    for part in loc:  # among which there may be names of types
        whole = f"{whole}.{part}".lstrip(".")
        beside = f"{key}.{part}".lstrip(".")
        key = next((known for known in (whole, beside) if known in source.places), key)
    return key


def _describe(source: Source, key: str, detail: dict[str, Any], known: list[str]) -> str:
    """Describe one of pydantic's findings: place, key, what is wrong, what would be right."""
    place = source.place(_written(source, detail["loc"]))
    where = f"{place}: {key}" if key else place
    if detail["type"] == "extra_forbidden":
        hint = f"it is now called {RENAMED[key]}" if key in RENAMED else suggest(key, known)
        return f"{where}: unknown key; {hint}"
    message = str(detail["msg"]).removeprefix("Value error, ").replace("Input should be", "must be")
    if detail["type"] == "model_type":
        message = "must be a section: keys on indented lines below it"
    elif detail["type"] == "tuple_type":
        message = "must be a number, or a list of numbers"
    given = detail.get("input")
    suffix = "" if detail["type"] == "missing" or not key else f", not {_brief(given)}"
    if detail["type"] in {"literal_error", "value_error"} and isinstance(given, str):
        near = nearest(given, re.findall(r"'([^']*)'", message))
        suffix += f"; did you mean {near}?" if near else ""
    return f"{where}: {message}{suffix}"


def _brief(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def all_keys(model: type[BaseModel] = Config, prefix: str = "") -> list[str]:
    """Return every key of the config, sections dotted: `model.latent_dim`."""
    keys: list[str] = []
    for name, info in model.model_fields.items():
        inner = info.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            keys += all_keys(inner, f"{prefix}{name}.")
        else:
            keys.append(f"{prefix}{name}")
    return keys


def differing_settings(one: Config, other: Config) -> list[str]:
    """Return the keys in which two configs differ."""
    return [key for key in all_keys() if get_setting(one, key) != get_setting(other, key)]


def fixed_differences(one: Config, other: Config) -> list[str]:
    """Return the keys in which two configs differ that cannot be of one run: no resumption changes them."""
    return [key for key in differing_settings(one, other) if key not in RESUMABLE]
