"""The plan of the house: which module imports which, how deep the layers are, how large a module is."""

import ast
from pathlib import Path

import pytest

import vaecli
from import_graph import ImportGraph
from vaecli.config.json_schema import SCHEMA_FILE, schema_text

ROOT = Path(vaecli.__file__).parent
GRAPH = ImportGraph(ROOT)
PACKAGES = ("config", "data", "model", "runs", "training", "evaluation", "sweeps", "reports", "papers", "cli")
"""From the lowest to the highest: a package imports from itself and from those before it."""
MAX_LAYERS, MAX_MODULES, MAX_LINES = 12, 95, 300
"""What a reader can hold in mind; before there were packages it was 18 layers of 59 modules of up to 428 lines."""
ALLOWED = {"devices": {"config.schema"}}
"""A config names its device by a pattern, which is written once."""


def rank(module: str) -> int:
    """Return the place of a module's package; 0 for the modules that lie beside the packages."""
    return PACKAGES.index(module.partition(".")[0]) + 1 if "." in module else 0


def test_the_packages_are_those_of_the_plan():
    assert {path.parent.name for path in ROOT.glob("*/__init__.py")} == set(PACKAGES)


def test_imports_make_no_circle():
    assert GRAPH.in_circles() == []


@pytest.mark.parametrize("module", GRAPH.modules)
def test_a_module_imports_from_its_own_package_and_lower_ones(module):
    assert {other for other in GRAPH.imports[module] if rank(other) > rank(module)} <= ALLOWED.get(module, set())


def test_the_layers_are_few():
    assert max(GRAPH.layers().values()) <= MAX_LAYERS


def test_the_modules_are_few_and_none_is_long():
    assert len([module for module in GRAPH.modules if not module.startswith("cli.")]) <= MAX_MODULES
    lines = {module: len(path.read_text().splitlines()) for module, path in GRAPH.modules.items()}
    assert {module: n for module, n in lines.items() if n > MAX_LINES} == {}


@pytest.mark.parametrize("name", PACKAGES)
def test_a_package_says_its_subject_in_one_sentence(name):
    first = ast.get_docstring(ast.parse((ROOT / name / "__init__.py").read_text())).split("\n")[0]
    assert first.endswith(".")
    assert len(first) < 120


def test_the_schema_that_ships_is_generated():
    """It lies beside the configs, for editors; after a change of the settings: vae configs schema > configs/..."""
    assert (ROOT.parents[1] / "configs" / SCHEMA_FILE).read_text(encoding="utf-8") == schema_text(), (
        f"run: vae configs schema > configs/{SCHEMA_FILE}"
    )
