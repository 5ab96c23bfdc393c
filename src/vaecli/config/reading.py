"""Reading YAML as values with the line of each: no aliases, no tags, no key twice, nothing too deep or too large."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from vaecli.errors import ConfigError

MAX_BYTES = 1_000_000
MAX_DEPTH = 20


class _Loader(yaml.SafeLoader):  # type: ignore[misc,unused-ignore]
    """Load YAML safely, and read `1e-3` as a number as YAML 1.2 does."""


_Loader.yaml_implicit_resolvers = {k: list(v) for k, v in yaml.SafeLoader.yaml_implicit_resolvers.items()}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


@dataclass
class Source:
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


def read_source(path: Path) -> Source:
    """Read a file whose content is a mapping. Raises ConfigError."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError([f"{path}: cannot be read: {error.strerror}"]) from error
    if len(content) > MAX_BYTES:
        raise ConfigError([f"{path}: larger than {MAX_BYTES:,} bytes, which no config is"])
    source = Source(places={"": str(path)})
    node = compose(content, str(path))
    if node is None:
        raise ConfigError([f"{path}: is empty; `vae configs cat bernoulli` prints one to start from"])
    if not isinstance(node, yaml.MappingNode):
        found = "a list" if isinstance(node, yaml.SequenceNode) else "a single value"
        raise ConfigError([f"{path}:1: holds {found}; a config is made of `key: value` lines"])
    source.values = _mapping(node, "", str(path), source)
    return source


def compose(content: bytes | str, place: str) -> yaml.Node | None:
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


def _mapping(node: yaml.MappingNode, prefix: str, path: str, source: Source) -> dict[str, Any]:
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
        values[key_node.value] = node_value(value_node, key, path, source)
    return values


def node_value(node: yaml.Node, key: str, path: str, source: Source) -> object:
    """Return the value of a node; note in the source where its parts stand, and what is wrong with them."""
    if not node.tag.startswith("tag:yaml.org,2002:") or "python/" in node.tag:
        source.problems.append(f"{source.place(key)}: {key}: the tag {node.tag} is not supported")
        source.unread.add(key)
        return None
    try:
        if isinstance(node, yaml.MappingNode):
            source.places.setdefault(key, f"{path}:{node.start_mark.line + 1}")
            return _mapping(node, f"{key}.", path, source)
        if isinstance(node, yaml.SequenceNode):
            keys = [f"{key}.{i}" if isinstance(item, yaml.MappingNode) else key for i, item in enumerate(node.value)]
            return [node_value(item, of_item, path, source) for item, of_item in zip(node.value, keys, strict=True)]
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
