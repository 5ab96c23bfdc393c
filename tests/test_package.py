"""What others install: the wheel, the sdist, and the workflows that test them elsewhere."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml

from check_package import check
from lowest_versions import PYPROJECT, lowest

ROOT = Path(__file__).parents[1]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


@pytest.mark.slow
def test_wheel_and_sdist_train_where_nothing_of_the_checkout_is(tmp_path):
    check(tmp_path / "dist")
    assert sorted(path.suffix for path in (tmp_path / "dist").iterdir()) == [".gz", ".whl"]


def test_the_lowest_versions_are_the_bounds_of_the_requirements():
    assert lowest(["torch>=2.11", "vaecli[ray]", "ray[default]>=2.50", "types-x"]) == ["torch==2.11", "ray==2.50"]
    requirements = tomllib.loads(PYPROJECT.read_text())["project"]["dependencies"]
    assert [pair.partition("==")[0] for pair in lowest(requirements)] == [
        requirement.partition(">=")[0] for requirement in requirements
    ]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_pins_its_actions_and_makes_targets_that_there_are(path):
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    jobs = yaml.safe_load(path.read_text())["jobs"].values()
    steps = [step for job in jobs for step in job["steps"]]
    actions = [step["uses"] for step in steps if "uses" in step]
    made = [word for step in steps for word in re.findall(r"make (\w+)", step.get("run", ""))]
    assert all(re.fullmatch(r"actions/[a-z-]+@v\d+\.\d+\.\d+", action) for action in actions), actions
    assert made
    assert set(made) <= set(targets)
