"""Every command and every block of code in README and docs is executed, shortened as the tables below say."""

import re
import shlex
import sys
from pathlib import Path
from typing import NamedTuple

import jsonschema
import numpy as np
import pytest
import torch
import yaml

import vaecli
from vaecli import cli
from vaecli.cli.validate import SWEEPS_OWN
from vaecli.config.jobs import Resources
from vaecli.config.json_schema import config_schema
from vaecli.model import conditionals, objectives
from vaecli.papers.experiment import load_experiment
from vaecli.sweeps.sweep import load_sweep

ROOT = Path(__file__).parents[1]
GENERATED = {"reference", "comparison"}
PAGES = [
    ROOT / "README.md",
    *sorted(path for path in (ROOT / "docs").rglob("*.md") if path.parent.name not in GENERATED),
]

TINY = [
    "data.name=faces.npz", "model.latent_dim=2", "model.hidden_dim=8", "training.epochs=1", "training.batch_size=30",
    "training.compile=off",
]  # fmt: skip
"""60 images of 6x5 pixels, and the smallest of models."""
FEW = ["--limit", "2", "--k", "5"]
SHORTER: dict[str, tuple[dict[str, str], list[str]]] = {
    "train --resume": ({}, []),
    "train vectors.yaml": ({}, ["training.epochs=1"]),
    "sample --label": ({"RUN": "runs/told/told"}, []),
    "train": ({"cuda": "cpu", "2h": "1h"}, TINY),
    "compare-decoders": (
        {"all": "bernoulli", "bernoulli,gaussian": "bernoulli", "3": "1"},
        [*FEW, *TINY, "--seeds", "1"],
    ),
    "evaluate --method": ({}, ["--limit", "2", "--temperatures", "3", "--chains", "2"]),
    "evaluate --gaps": ({}, ["--limit", "2"]),
    "evaluate --calibration": ({}, ["--limit", "100"]),
    "evaluate": ({}, FEW),
    "sweep": ({"two.yaml": "sizes.yaml", "2": "1"}, []),
    "explore": ({"--open": "--out=explorer.html"}, []),
    "configs cp": ({"mine.yaml": "copied.yaml"}, []),
}
"""By the first words of a command: what is written for some of its words, and what is appended. Everything is tiny."""
PARSED = {
    "make": "sets up an environment; the whole check runs it",
    "pip": "installs",
    "ray": "begins a cluster; tests/sweeps/test_ray_recipe.py runs it under `make stress`",
    "export": "a setting of the shell, for Ray",
    "mkdir": "for Ray's token",
    "scp": "for Ray's token",
    "vae sweep --engine ray": "needs a cluster; tests/sweeps/test_ray.py",
    "vae reproduce": "trains for long; tests/papers",
}
"""Commands that are not run, only looked at, and why: of `vae` the command and its options must exist."""


class Block(NamedTuple):
    page: Path
    language: str
    text: str


def blocks() -> list[Block]:
    found = []
    for page in PAGES:
        for indent, language, text in re.findall(
            r"^( *)```([^\n`]*)\n(.*?)^\1```\s*$", page.read_text(), re.DOTALL | re.MULTILINE
        ):
            lines = [line.removeprefix(indent) for line in text.splitlines()]
            found.append(Block(page, language.strip(), "\n".join(lines) + "\n"))
    return found


BLOCKS = blocks()


def commands(block: Block) -> list[str]:
    lines = [re.sub(r"\s+#.*", "", line) for line in block.text.splitlines()]
    return [line.removeprefix("$ ") for line in lines if line and not line.startswith("#")]


SHELL = [block for block in BLOCKS if block.language in {"bash", ""}]
COMMANDS = sorted({command for block in SHELL for command in commands(block)})
PYTHON = [block for block in BLOCKS if block.language == "python"]
YAML = [block for block in BLOCKS if block.language == "yaml"]


def reason_to_parse(command: str) -> str | None:
    """Why a command is only looked at, by the first entry whose words it has."""
    words = set(shlex.split(command))
    return next((why for key, why in PARSED.items() if set(key.split()) <= words), None)


PAPER = """
title: A bound
source: "Somebody 2020, table 1"
about: Two latent dimensions, and images of noise.
budget: 1.0e+6
runs: {base: mine.yaml, grid: {model.latent_dim: [2]}}
evaluations: {test: {split: test, k: 3, binarised: false, checkpoint: last}}
published:
  bound:
    title: test bound
    source: table 1
    ours: {metric: elbo, evaluation: test}
    images: 45
    goal: near
    tolerance: 1
    values: [{where: {model.latent_dim: 2}, value: -20.0}]
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A directory with what the pages speak of: images, a config, a sweep, and a run."""
    path = tmp_path_factory.mktemp("docs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(path)
        pixels = np.random.default_rng(0).integers(0, 256, (60, 6, 5), dtype=np.uint8)
        np.savez("faces.npz", images=pixels, labels=np.arange(60) % 5)
        np.savez("measurements.npz", vectors=np.random.default_rng(0).normal(size=(300, 6)))
        Path("mine.yaml").write_text(yaml.safe_dump(nested(TINY)))
        Path("sizes.yaml").write_text(
            yaml.safe_dump({"base": "mine.yaml", "grid": {"seed": [0, 1]}, "evaluation": {"limit": 2, "k": 5}})
        )
        Path("my-paper.yaml").write_text(PAPER)
        for block in YAML:
            if named := re.match(r"# (\w+\.yaml)\n", block.text):
                Path(named[1]).write_text(block.text)
        vaecli.train(vaecli.load_config("mine.yaml", ["optimizer.schedule=constant"]), runs_dir="runs")
        told = vaecli.train(vaecli.load_config("mine.yaml", ["name=told", "model.condition=labels"]), runs_dir="runs")
        told.path.rename("runs/told/told")
        yield path


def nested(settings: list[str]) -> dict:
    values: dict = {}
    for key, _, value in (setting.partition("=") for setting in settings):
        section, name = key.split(".")
        values.setdefault(section, {})[name] = yaml.safe_load(value)
    return values


def shortened(command: str, run: str) -> list[str]:
    """Return the words after `vae` of what is run in place of a command."""
    words = shlex.split(command.partition(" > ")[0])[1:]
    key = next((key for key in SHORTER if set(key.split()) <= set(words)), None)
    replaced, appended = SHORTER[key] if key else ({}, [])
    words = [replaced.get(word, word) for word in words]
    return [run if word == "RUN" else word for word in [*words, *appended]]


def run_vae(words: list[str], monkeypatch) -> int:
    monkeypatch.setattr(sys, "argv", ["vae", *words])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return ended.value.code or 0


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_runs(command, place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    if reason_to_parse(command):
        if command.startswith("vae "):
            words = shlex.split(command)
            assert run_vae([words[1], "--help"], monkeypatch) == 0
            shown = capsys.readouterr().out
            assert [word for word in words if word.startswith("--") and word not in shown] == []
        return
    assert command.startswith("vae "), f"{command}: say in PARSED why it is not run"
    (run, *_) = sorted(Path("runs/mine").iterdir())
    assert run_vae(shortened(command, str(run)), monkeypatch) == 0, capsys.readouterr().err


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language == "console"], ids=lambda b: b.page.name)
def test_a_command_prints_what_the_page_says(block, monkeypatch, capsys):
    command, _, printed = block.text.partition("\n")
    assert run_vae(shlex.split(command.removeprefix("$ "))[1:], monkeypatch) == 0
    assert capsys.readouterr().out == printed


@pytest.mark.parametrize("block", YAML, ids=lambda b: b.page.name)
def test_yaml_is_valid(block, tmp_path):
    values, path = yaml.safe_load(block.text), tmp_path / "block.yaml"
    path.write_text(block.text)
    if values.keys() == {"resources"}:
        Resources.model_validate(values["resources"])
    elif "published" in values:
        load_experiment(path)
    elif SWEEPS_OWN & values.keys():
        load_sweep(path)
    else:
        jsonschema.validate(values, config_schema())


@pytest.mark.parametrize(
    "block", [b for b in BLOCKS if b.language.startswith("{code-cell}")], ids=lambda b: b.page.name
)
def test_what_a_cell_imports_is_there(block):
    """The site runs the cells whole; what is moved or renamed shows here."""
    for statement in re.findall(r"^(?:from [\w.]+ )?import .*$", block.text, re.MULTILINE):
        exec(statement, {})


@pytest.mark.parametrize("block", PYTHON, ids=lambda b: f"{b.page.name}:{b.text.splitlines()[0]}")
def test_python_runs(block, place, monkeypatch):
    monkeypatch.chdir(place)
    if block.page.name == "extend.md":  # tests/test_readme.py puts the decoder into the package and trains it
        if "Likelihood(" not in block.text:
            names = vars(conditionals) if "Conditional" in block.text else vars(objectives)
            exec(block.text, dict(names))
        return
    if block.page.name == "architecture.md":  # an excerpt of vaecli.training.loop
        source = (ROOT / "src/vaecli/training/loop.py").read_text()
        assert all(line.strip() in source for line in block.text.splitlines())
        return
    (run, *_) = sorted(Path("runs/mine").iterdir())
    text = block.text.replace("bernoulli.yaml", "mine.yaml").replace("epochs=5", "epochs=1")
    text = text.replace("runs/bernoulli/...", str(run)).replace("3, out", "1, out")
    text = text.replace("budget=1e6", "budget=45.0")
    text = text.replace("faces.npz", "others.npz").replace('["bernoulli", "gaussian"]', '["bernoulli"]')
    out = place / f"out of {block.page.stem}"
    exec(text, {"x": torch.zeros(2, 30), "z": torch.zeros(2, 2), "out": out, "runs": place / "of python"})
