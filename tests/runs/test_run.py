import json
import os
import sys
from pathlib import Path

import pytest
import torch

from vaecli import cli
from vaecli.config.jobs import EvaluationSpec
from vaecli.config.schema import Config
from vaecli.errors import UsageError, VaecliError
from vaecli.files import lock
from vaecli.runs.run import LOCK, create_run, find_run, list_runs, load_run
from vaecli.training.loop import train


@pytest.fixture
def some(tmp_path, monkeypatch):
    """Three runs: two of the config `a` in one second, and one of `b`."""
    return [
        create_run(Config(name=name, seed=seed), tmp_path / "runs") for name, seed in (("a", 0), ("a", 0), ("b", 1))
    ]


def test_two_runs_of_one_second_get_two_directories(some):
    first, _, other = some
    assert len({run.path for run in some}) == 3
    assert first.name.endswith("-bernoulli-s0")
    assert other.path.parent.name == "b"


def test_runs_are_listed_by_time(some, tmp_path):
    assert {run.path for run in list_runs(tmp_path / "runs")} == {run.path for run in some}
    (tmp_path / "runs" / "a" / "stray").mkdir()
    (tmp_path / "runs" / "file").touch()
    assert len(list_runs(tmp_path / "runs")) == 3
    assert list_runs(tmp_path / "none") == []


def test_a_run_is_found_by_path_name_and_prefix(some, tmp_path):
    first, _, other = some
    root = tmp_path / "runs"
    for reference in (other.path, str(other.path) + "/", other.name, f"b/{other.name}", "b/", f"b/{other.name[:6]}"):
        assert find_run(reference, root).path == other.path
    assert find_run(first.name, root).path == first.path  # exact, though it begins the second's name too
    with pytest.raises(UsageError, match=r"3 runs begin with it: .*bernoulli-s0"):
        find_run(first.name[:4], root)
    with pytest.raises(UsageError, match="no such run or checkpoint; `vae runs ls`"):
        find_run("nothing", root)
    with pytest.raises(UsageError, match="no such run"):
        find_run("", root)


def test_a_checkpoint_file_stands_for_itself(some):
    run = some[0]
    run.last.write_bytes(b"x")
    named = find_run(run.last, Path("nowhere"))
    assert (named.path, named.checkpoint_path) == (run.path, run.last)
    assert load_run(run.path).checkpoint_path == run.last
    run.best.write_bytes(b"x")
    assert load_run(run.path).checkpoint_path == run.best


def test_a_run_goes_on_being_seen_through_the_checkpoint_that_was_read(small, tmp_path):
    """A best one that comes later is not what was evaluated, nor is the evaluation named after it."""
    trained = train(small(data={"validation": 0}, training={"epochs": 1}), runs_dir=tmp_path)
    run = load_run(trained.path)
    assert run.checkpoint.progress.epoch == 1
    run.best.write_bytes(run.last.read_bytes())
    assert run.checkpoint_path == run.last
    assert run.evaluation_path(6, EvaluationSpec(k=5)).name.startswith("last-step6")
    assert load_run(trained.path).checkpoint_path == run.best


def test_a_run_without_checkpoints(some):
    with pytest.raises(VaecliError, match="has no checkpoint yet"):
        _ = some[0].vae


def test_status_survives_damage(some):
    run = some[0]
    assert run.status == {}
    with lock(run.path / LOCK):
        run.write_status(state="running", elbo=float("nan"))
        assert (run.status["state"], run.status["elbo"]) == ("running", None)
    assert (run.status["state"], run.status["reason"]) == ("interrupted", "its process was killed")
    for content in ('{"state": "run', "[1]"):
        (run.path / "status.json").write_text(content)
        assert run.status == {"state": "unreadable", "reason": "status.json: is damaged"}


ROW = {
    "split": "train", "epoch": 1, "step": 5, "images": 45, "seconds": 0.1,
    "elbo": -2.0, "log_likelihood": -1.0, "kl": 1.0,
}  # fmt: skip


def test_damaged_metrics_are_an_error(some):
    path = some[0].path / "metrics.jsonl"
    path.write_text(json.dumps(ROW) + '\n{"b"')
    assert some[0].metrics == [ROW]  # the second is being written
    path.write_text(json.dumps(ROW) + '\n{"b"\n')
    with pytest.raises(VaecliError, match=r"metrics.jsonl: cannot be read"):
        _ = some[0].metrics


@pytest.mark.parametrize(
    ("row", "what"),
    [
        ([1], "it: Input should be"), (None, "it: "), ("text", "it: "), (ROW | {"split": "test"}, "split: "),
        (ROW | {"split": []}, "split: "), (ROW | {"elbo": "high"}, "elbo: "), (ROW | {"seconds": None}, "seconds: "),
        (ROW | {"images": 1.5}, "images: "), (ROW | {"step": {}}, "step: "), ({"split": "train"}, "epoch: Field requ"),
    ],
)  # fmt: skip
def test_metrics_of_wrong_types_are_an_error_that_names_the_line(some, row, what):
    path = some[0].path / "metrics.jsonl"
    path.write_text(f"{json.dumps(ROW | {'elbo': None})}\n{json.dumps(row)}\n")
    with pytest.raises(VaecliError, match=rf"metrics.jsonl:2: is not a row of metrics: {what}"):
        _ = some[0].metrics


def test_a_directory_that_cannot_be_written(tmp_path):
    (tmp_path / "runs").write_text("a file")
    with pytest.raises(VaecliError, match="cannot be written"):
        create_run(Config(), tmp_path / "runs")


def test_the_environment_says_what_ran(tmp_path):
    found = create_run(Config(), tmp_path, device="a device").environment
    assert found["torch"] in torch.__version__
    assert found["device"] == "a device"
    assert {"python", "platform", "command", "git_commit", "git_dirty", "vaecli", "numpy", "cores"} <= set(found)


DEEP = '{"best": ' * 5000 + "1" + "}" * 5000


@pytest.mark.parametrize(
    "content",
    [
        '{"state": 3, "reason": [], "epoch": "ten", "epochs": {}, "images": "x", "seconds": null, "support": []}',
        '{"best": 5, "last": [1]}', '{"best": {"elbo": "high"}}', '{"best": {"elbo": {}, "epoch": 1}, "caveat": 7}',
        '{"best": {"epoch": 1}}', DEEP, "\x00", '"text"',
    ],
)  # fmt: skip
def test_a_status_of_any_content_breaks_no_listing(some, tmp_path, monkeypatch, capsys, content):
    (some[0].path / "status.json").write_text(content)
    monkeypatch.chdir(tmp_path)
    commands = (
        ("ls",),
        ("ls", "--sort", "elbo"),
        ("show", str(some[0].path)),
        ("diff", *(str(r.path) for r in some[:2])),
    )
    for command in commands:
        monkeypatch.setattr(sys, "argv", ["vae", "runs", *command])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert not ended.value.code
    assert some[2].name in capsys.readouterr().out


def test_what_is_not_a_run_hides_no_run(some, tmp_path):
    """A link to itself, and a status that is a pipe, which nobody writes to."""
    (tmp_path / "runs" / "a" / "loop").symlink_to(tmp_path / "runs" / "a" / "loop")
    (tmp_path / "runs" / "loop").symlink_to(tmp_path / "runs" / "loop")
    os.mkfifo(some[1].path / "status.json")
    assert {run.path for run in list_runs(tmp_path / "runs")} == {run.path for run in some}
    assert some[1].status == {}
