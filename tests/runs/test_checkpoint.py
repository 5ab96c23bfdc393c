import hashlib
import pickle
import sys
import warnings

import pytest
import torch

from identical import traces
from vaecli import cli
from vaecli.errors import LimitReachedError, VaecliError
from vaecli.evaluation.generation import reconstruct
from vaecli.runs.checkpoint import FORMAT, VERSION, load_checkpoint, save_checkpoint
from vaecli.runs.run import Run, list_runs, load_run
from vaecli.training.loop import resume, train
from vaecli.training.stopping import Limit


@pytest.fixture
def run(small, tmp_path) -> Run:
    return train(small(training={"epochs": 1}), runs_dir=tmp_path / "runs")


def test_a_checkpoint_is_plain_and_enough_by_itself(run, tmp_path):
    content = torch.load(run.last, weights_only=True)
    assert (content["format"], content["version"]) == (FORMAT, VERSION)
    alone = tmp_path / "copy.pt"
    alone.write_bytes(run.last.read_bytes())
    copy = load_run(alone)
    assert copy.config == run.config
    z = torch.zeros(1, 3)
    assert torch.equal(copy.vae.decoder(z).mean, load_run(run.last).vae.decoder(z).mean)


def test_saving_and_loading_changes_nothing(run, tmp_path):
    first = load_checkpoint(run.last)
    save_checkpoint(tmp_path / "again.pt", first)
    assert str(load_checkpoint(tmp_path / "again.pt")) == str(first)


def test_a_checkpoint_that_is_replaced_meanwhile_is_that_of_its_digest(run, small, tmp_path, monkeypatch):
    """As one is that is read while its run trains: what was checked, what is used, and the digest are of one file."""
    written = run.last.read_bytes()
    other = train(small(seed=1, training={"epochs": 1}), runs_dir=tmp_path / "other").last.read_bytes()
    load = torch.load

    def replace_and_load(*arguments, **options):
        run.last.write_bytes(other)
        return load(*arguments, **options)

    monkeypatch.setattr(torch, "load", replace_and_load)
    found = load_checkpoint(run.last)
    assert found.config.seed == 0
    assert found.digest == hashlib.sha256(written).hexdigest()


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_a_pickle_that_would_run_code_does_not_run(tmp_path):
    made, path = tmp_path / "made", tmp_path / "bomb.pt"
    for write in (torch.save, lambda value, target: target.write_bytes(pickle.dumps(value))):
        write({"format": FORMAT, "version": VERSION, "config": Bomb(made)}, path)
        with pytest.raises(VaecliError, match=r"holds more than tensors, numbers and strings|not a zip file"):
            load_checkpoint(path)
    assert not made.exists()


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_a_truncated_checkpoint(run, tmp_path, share):
    content = run.last.read_bytes()
    path = tmp_path / "cut.pt"
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(VaecliError, match=r"cut short|or is damaged"):
        load_checkpoint(path)


def test_files_that_are_no_checkpoints(tmp_path):
    path = tmp_path / "x.pt"
    path.write_text("not a checkpoint at all")
    with pytest.raises(VaecliError):
        load_checkpoint(path)
    torch.save({"model": {}}, path)
    with pytest.raises(VaecliError, match="not a checkpoint of vaecli"):
        load_checkpoint(path)
    torch.save([1, 2], path)
    with pytest.raises(VaecliError, match="not a checkpoint of vaecli"):
        load_checkpoint(path)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"version": 1}, "has format version 1; this vaecli reads versions 2, 3, 4 and 5"),
        ({"config": {"model": {"latent_dim": 0}}}, "its config is not valid"),
        ({"config": 3}, "a part is missing or malformed"),
        ({"image_shape": (1, 0, 5)}, "image_shape is 1 x 0 x 5"),
        ({"progress": {"epoch": 1, "extra": 2}}, "a part is missing or malformed"),
        ({"surplus": 1}, "a part is missing or malformed"),
        ({"trace": None}, "trace"),
        ({"threads": "two"}, "threads"),
        ({"model": {"weight": "text"}}, "model"),
    ],
)
def test_checkpoints_with_wrong_parts(run, tmp_path, change, what):
    path = tmp_path / "x.pt"
    torch.save(torch.load(run.last, weights_only=True) | change, path)
    with pytest.raises(VaecliError, match=what):
        load_checkpoint(path)


def test_a_missing_part(run, tmp_path):
    content = torch.load(run.last, weights_only=True)
    del content["generators"]
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(VaecliError, match="generators"):
        load_checkpoint(tmp_path / "x.pt")


def test_weights_that_do_not_fit(run, tmp_path):
    content = torch.load(run.last, weights_only=True)
    content["image_shape"] = (1, 7, 5)
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(VaecliError, match=r"weight has shape \(8, 30\); its config asks for \(8, 35\)"):
        _ = load_run(tmp_path / "x.pt").vae


@pytest.mark.parametrize("version", [2, 3])
def test_a_checkpoint_of_an_earlier_version_is_read_and_resumed(small, tmp_path, version):
    """Neither says whose it is; 2 has an image shape without channels, and other words for what decides the bits."""
    config = small()
    whole = train(config, runs_dir=tmp_path / "whole")
    with pytest.raises(LimitReachedError):
        train(config, runs_dir=tmp_path / "cut", limit=Limit(images=60))
    (cut,) = list_runs(tmp_path / "cut")
    conditions = dict(torch.load(cut.last, weights_only=True)["conditions"])
    assert (conditions.pop("replicates"), conditions.pop("steps")) == ("1", "eager")
    before = {
        "image_shape": (6, 5),
        "conditions": conditions | {"runs trained together": "1", "steps": "plain"},
    }
    as_of_version_3(cut.last, {"version": version} | (before if version == 2 else {}))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the conditions are what they were
        assert traces(resume(cut))["last"] == traces(whole)["last"]


def as_of_version_3(path, change: dict) -> None:
    """Write a checkpoint as earlier versions did, which did not record whose it is."""
    content = torch.load(path, weights_only=True)
    del content["run_id"]
    torch.save(content | {"version": 3} | change, path)


COMMANDS = [
    ["evaluate", "--k", "2", "--ckpt"],
    ["sample", "--ckpt"],
    ["reconstruct", "--ckpt"],
    ["encode", "--ckpt"],
    ["manifold", "--ckpt"],
    ["interpolate", "--ckpt"],
    ["train", "--config", "faces.yaml", "--init-from"],
]


@pytest.mark.parametrize("version", [3, VERSION])
@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
def test_the_best_checkpoint_of_another_run_is_refused_by_every_command(
    small, tmp_path, monkeypatch, capsys, command, version
):
    """By what it says, or, if it is from before it was recorded, by its config, which has more latent dimensions."""
    mine, other = (
        train(small(model={"latent_dim": dim}, training={"epochs": 1}), runs_dir=tmp_path / "runs") for dim in (2, 3)
    )
    if version == 3:
        as_of_version_3(other.best, {})
    mine.best.write_bytes(other.best.read_bytes())
    (tmp_path / "faces.yaml").write_bytes((mine.path / "config.yaml").read_bytes())
    monkeypatch.chdir(tmp_path)
    for named in (mine.path, mine.best):
        monkeypatch.setattr(sys, "argv", ["vae", *command, str(named)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert ended.value.code == 1
        said = capsys.readouterr().err
        reason = "its config is not that of config.yaml in model.latent_dim"
        if version == VERSION:
            reason = "it was written by another run"
        assert said.startswith(f"vae: {mine.best}: is not a checkpoint of {mine.name}: {reason}")
        assert "put back what was replaced, or move this file out of" in said
    assert len(list_runs(tmp_path / "runs")) == 2


def test_a_run_does_not_go_on_from_another_of_the_same_config(small, tmp_path):
    mine, other = (train(small(training={"epochs": 1}), runs_dir=tmp_path) for _ in range(2))
    mine.last.write_bytes(other.last.read_bytes())
    with pytest.raises(VaecliError, match=r"last\.pt: is not a checkpoint of .* written by another run"):
        resume(mine)


def test_a_checkpoint_is_its_runs_wherever_the_run_and_its_images_are_moved(small, tmp_path, faces):
    run = train(small(training={"epochs": 1}), runs_dir=tmp_path / "runs")
    moved = run.path.rename(tmp_path / "kept")
    elsewhere = faces.rename(tmp_path / "elsewhere.npz")
    written = moved / "config.yaml"
    written.write_text(written.read_text().replace(str(faces), str(elsewhere)))
    assert len(reconstruct(load_run(moved), 2).originals) == 2
