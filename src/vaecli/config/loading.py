"""Reading a config: YAML with line numbers, overrides from the command line, and all errors at once."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from vaecli.config.schema import RESUMABLE, Config, get_setting
from vaecli.errors import ConfigError, nearest, suggest
from vaecli.files import may_be_directory, may_be_file, safe_name

MAX_BYTES = 1_000_000
MAX_DEPTH = 20
RENAMED = {
    "resources.seconds_per_delivery": "resources.sync_interval",
    "resources.together": "resources.replicates",
}
"""Keys of earlier versions."""
Model = TypeVar("Model", bound=BaseModel)
_PACKAGE = Path(__file__).parents[1]
_SHIPPED = (_PACKAGE / "configs", _PACKAGE.parents[1] / "configs")  # an installed wheel, a checkout
_KEY = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


class _Loader(yaml.SafeLoader):  # type: ignore[misc,unused-ignore]
    """Load YAML safely, and read `1e-3` as a number as YAML 1.2 does."""


_Loader.yaml_implicit_resolvers = {k: list(v) for k, v in yaml.SafeLoader.yaml_implicit_resolvers.items()}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


@dataclass
class _Source:
    """Hold values as they were written, and where each key stands."""

    values: dict[str, Any] = field(default_factory=dict)
    places: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    unread: set[str] = field(default_factory=set)
    """Keys whose value is among the problems already."""

    def place(self, key: str) -> str:
        """Return where a key or, failing that, its nearest ancestor was written."""
        while key not in self.places and "." in key:
            key = key.rpartition(".")[0]
        return self.places.get(key, self.places[""])


def load_config(source: str | Path | None = None, overrides: Sequence[str] = ()) -> Config:
    """Read a config: defaults, then the file, then `KEY=VALUE` overrides.

    Args:
        source: A path, or the name of a shipped config with or without `.yaml`; None for the defaults.
        overrides: Settings such as `model.latent_dim=10`; values are YAML.

    Raises:
        ConfigError: Listing everything that is wrong, each with its place and what would be right.
    """
    path = None if source is None else find_config(source)
    read = _Source(places={"": "config"}) if path is None else _read(path)
    if path is not None and not read.problems and "name" not in read.values:
        read.values["name"] = safe_name(path.stem) or None
    return _validate(Config, read, overrides)


def load_yaml(path: Path, model: type[Model]) -> Model:
    """Read a YAML file that another model than a config's describes. Raises ConfigError as `load_config` does."""
    return _validate(model, _read(path), ())


def override(config: Config, overrides: Sequence[str], place: str = "command line") -> Config:
    """Replace settings of a config by `KEY=VALUE` ones from some place. Raises ConfigError as `load_config` does."""
    return _validate(Config, _Source(values=config.model_dump(), places={"": "config"}), overrides, place)


def parse_config(values: Mapping[str, Any]) -> Config:
    """Build a config from nested dictionaries, as the YAML would be. Raises ConfigError as `load_config` does."""
    return _validate(Config, _Source(values=dict(values), places={"": "config"}), ())


def dump_config(config: Config) -> str:
    """Return the full config as YAML, every default written out."""
    values = config.model_dump(mode="json")
    values["model"] |= {name: get_setting(config, f"model.{name}") for name in values["model"]}
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


def _read(path: Path) -> _Source:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError([f"{path}: cannot be read: {error.strerror}"]) from error
    if len(content) > MAX_BYTES:
        raise ConfigError([f"{path}: larger than {MAX_BYTES:,} bytes, which no config is"])
    source = _Source(places={"": str(path)})
    node = _compose(content, str(path))
    if node is None:
        raise ConfigError([f"{path}: is empty; `vae configs cat bernoulli` prints one to start from"])
    if not isinstance(node, yaml.MappingNode):
        found = "a list" if isinstance(node, yaml.SequenceNode) else "a single value"
        raise ConfigError([f"{path}:1: holds {found}; a config is made of `key: value` lines"])
    source.values = _mapping(node, "", str(path), source)
    return source


def _compose(content: bytes | str, place: str) -> yaml.Node | None:
    """Return YAML's tree of nodes, without aliases and not too deep."""
    depth = 0
    try:
        for event in yaml.parse(content, _Loader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            at = 1 + (event.start_mark.line if event.start_mark else 0)
            if isinstance(event, yaml.AliasEvent):
                raise ConfigError([f"{place}:{at}: aliases (*{event.anchor}) are not supported"])
            if depth > MAX_DEPTH:
                raise ConfigError([f"{place}:{at}: nested deeper than {MAX_DEPTH} levels"])
        return yaml.compose(content, _Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = "" if mark is None else f":{mark.line + 1}"
        raise ConfigError([f"{place}{line}: not valid YAML: {error.problem or error.context}"]) from error
    except yaml.YAMLError as error:
        raise ConfigError([f"{place}: not valid YAML: {' '.join(str(error).split())}"]) from error


def _mapping(node: yaml.MappingNode, prefix: str, path: str, source: _Source) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key_node, value_node in node.value:
        line = f"{path}:{key_node.start_mark.line + 1}"
        if not isinstance(key_node, yaml.ScalarNode):
            source.problems.append(f"{line}: a key must be a name")
            continue
        key = f"{prefix}{key_node.value}"
        if key_node.value in values:
            source.problems.append(f"{line}: {key}: given twice, first at {source.places[key]}")
            continue
        source.places[key] = line
        values[key_node.value] = _value(value_node, key, path, source)
    return values


def _value(node: yaml.Node, key: str, path: str, source: _Source) -> object:
    if not node.tag.startswith("tag:yaml.org,2002:") or "python/" in node.tag:
        source.problems.append(f"{source.place(key)}: {key}: the tag {node.tag} is not supported")
        source.unread.add(key)
        return None
    try:
        if isinstance(node, yaml.MappingNode):
            return _mapping(node, f"{key}.", path, source)
        if isinstance(node, yaml.SequenceNode):
            return [_value(item, key, path, source) for item in node.value]
        return _scalar(node)
    except (yaml.YAMLError, ValueError) as error:
        source.problems.append(f"{source.place(key)}: {key}: {' '.join(str(error).split())}")
        source.unread.add(key)
        return None


def _scalar(node: yaml.Node) -> object:
    loader = _Loader("")
    try:
        return loader.construct_object(node, deep=True)
    finally:
        loader.dispose()


def _validate(model: type[Model], source: _Source, overrides: Sequence[str], place: str = "command line") -> Model:
    problems, known = list(source.problems), all_keys(model)
    for text in overrides:
        problems += _apply(source, text, place)
    try:
        found = model.model_validate(source.values)
    except ValidationError as error:
        for detail in error.errors():
            key = _key(dict(detail), known)
            if key not in source.unread:
                problems.append(_describe(source, key, dict(detail), known))
    if problems:
        raise ConfigError(problems)
    return found


def _apply(source: _Source, text: str, origin: str) -> list[str]:
    """Put one `KEY=VALUE` over the values; return what is wrong with it."""
    key, equals, written = text.partition("=")
    if not equals or not _KEY.fullmatch(key):
        return [f"{text!r}: settings have the form KEY=VALUE, for example model.latent_dim=10"]
    place = f"{origin}: {text}"
    try:
        node = _compose(written, place)
    except ConfigError as error:
        return list(error.problems)
    inner = _Source(places={"": place, key: place})
    value = None if node is None else _value(node, key, place, inner)
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
    unknown, parts = detail["type"] == "extra_forbidden", {part for key in known for part in key.split(".")}
    return ".".join(str(part) for part in detail["loc"] if unknown or part in parts)


def _describe(source: _Source, key: str, detail: dict[str, Any], known: list[str]) -> str:
    """Describe one of pydantic's findings: place, key, what is wrong, what would be right."""
    where = f"{source.place(key)}: {key}" if key else source.place(key)
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
