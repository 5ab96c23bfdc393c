"""The plan of the house: which module imports which, how deep the layers are, how large a module is.

Every import counts, also those inside functions and those for type checkers only.
"""

import ast
import functools
from pathlib import Path

import pytest

import vaecli

ROOT = Path(vaecli.__file__).parent
PACKAGES = ("config", "data", "model", "runs", "training", "evaluation", "sweeps", "reports", "cli")
"""From the lowest to the highest: a package imports from itself and from those before it."""
MAX_LAYERS, MAX_MODULES, MAX_LINES = 12, 45, 300
"""What a reader can hold in mind; before there were packages it was 19 layers of 49 modules of up to 428 lines."""


@functools.cache
def modules() -> dict[str, Path]:
    """Return the modules by their dotted names, without the packages' own files."""
    found = {}
    for path in ROOT.rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if parts[-1] not in {"__init__", "__main__"}:
            found[".".join(parts)] = path
    return found


@functools.cache
def imports(module: str) -> frozenset[str]:
    """Return the modules of the package that a module imports from."""
    found = set()
    for node in ast.walk(ast.parse(modules()[module].read_text())):
        names: list[str] = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        found |= {name.removeprefix("vaecli.") for name in names} & modules().keys()
    return frozenset(found - {module})


@functools.cache
def layer(module: str) -> int:
    """Return 1 for a module that imports no other, else one more than the highest that it imports."""
    return 1 + max(map(layer, imports(module)), default=0)


def package(module: str) -> int:
    """Return the place of a module's package; 0 for the modules that lie beside the packages."""
    return PACKAGES.index(module.partition(".")[0]) + 1 if "." in module else 0


def test_the_packages_are_those_of_the_plan():
    assert {path.parent.name for path in ROOT.glob("*/__init__.py")} == set(PACKAGES)


def test_imports_make_no_circle():
    with_themselves = []
    for start in modules():
        reached, left = set(), set(imports(start))
        while left:
            module = left.pop()
            reached.add(module)
            left |= imports(module) - reached
        if start in reached:
            with_themselves.append(start)
    assert not with_themselves


@pytest.mark.parametrize("module", sorted(modules()))
def test_a_module_imports_from_its_own_package_and_lower_ones(module):
    higher = [other for other in imports(module) if package(other) > package(module)]
    # `devices` reads one pattern of the config's schema, `files` and `errors` nothing
    allowed = {"devices": {"config.schema"}, "training.stopping": set()}
    assert set(higher) <= allowed.get(module, set())


def test_the_layers_are_few():
    assert max(map(layer, modules())) <= MAX_LAYERS, sorted((layer(m), m) for m in modules())[-12:]


def test_the_modules_are_few_and_none_is_long():
    assert len([module for module in modules() if not module.startswith("cli.")]) <= MAX_MODULES
    long = {module: n for module, path in modules().items() if (n := len(path.read_text().splitlines())) > MAX_LINES}
    assert not long


@pytest.mark.parametrize("name", PACKAGES)
def test_a_package_says_its_subject_in_one_sentence(name):
    docstring = ast.get_docstring(ast.parse((ROOT / name / "__init__.py").read_text()))
    first, *rest = docstring.split("\n")
    assert first.endswith(".")
    assert len(first) < 120
    assert not any(rest) or name == "cli"
