import hashlib
import pickle
import warnings

import pytest
import torch

from identical import traces
from vaecli.errors import LimitReachedError, VaecliError
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
        ({"version": 1}, "has format version 1; this vaecli reads versions 2 and 3"),
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


def test_a_checkpoint_of_version_2_is_read_and_resumed(small, tmp_path):
    """It has an image shape without channels, and other words for what decides the bits."""
    config = small()
    whole = train(config, runs_dir=tmp_path / "whole")
    with pytest.raises(LimitReachedError):
        train(config, runs_dir=tmp_path / "cut", limit=Limit(images=60))
    (cut,) = list_runs(tmp_path / "cut")
    content = torch.load(cut.last, weights_only=True)
    conditions = dict(content["conditions"])
    assert (conditions.pop("replicates"), conditions.pop("steps")) == ("1", "eager")
    before = {
        "version": 2,
        "image_shape": (6, 5),
        "conditions": conditions | {"runs trained together": "1", "steps": "plain"},
    }
    torch.save(content | before, cut.last)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the conditions are what they were
        assert traces(resume(cut))["last"] == traces(whole)["last"]
