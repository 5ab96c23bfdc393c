"""Real-valued vectors: from an array to a trained model, and back into their own units."""

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import vaecli
from identical import traces
from vaecli import cli
from vaecli.config.likelihoods import Support
from vaecli.config.sections import DataConfig
from vaecli.data.dataset import Dataset
from vaecli.data.sources import load_array
from vaecli.errors import ConfigError, DataError, LimitReachedError, UsageError
from vaecli.runs.run import list_runs
from vaecli.training.opening import start_session
from vaecli.training.replicates import train_replicates
from vaecli.training.session import Controls
from vaecli.training.stopping import Limit

SETTINGS = (
    "data.kind=vectors", "data.validation=100", "model.decoder=sigma-gaussian", "model.mean=linear",
    "model.latent_dim=2", "model.hidden_dim=[]", "training.batch_size=50", "training.epochs=2",
)  # fmt: skip


def write_vectors(path, n=600, scale=3.0, shift=50.0):
    """Write rows of a plane in five dimensions, with some noise, and one number that never varies."""
    noise = np.random.default_rng(0)
    plane = noise.normal(size=(n, 2)) @ noise.normal(size=(2, 4)) + 0.1 * noise.normal(size=(n, 4))
    vectors = np.concatenate([scale * plane + shift, np.full((n, 1), 0.1)], 1)
    np.save(path, vectors)
    return vectors


@pytest.fixture
def path(tmp_path):
    write_vectors(tmp_path / "v.npy")
    return tmp_path / "v.npy"


@pytest.fixture
def vae(monkeypatch, capsys):
    """Run a command, and return its exit code and what it printed."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["vae", *map(str, arguments)])
        try:
            cli.main()
        except SystemExit as exit_:
            return exit_.code or 0, capsys.readouterr()
        return 0, capsys.readouterr()

    return run


def train(path, runs_dir, *settings):
    config = vaecli.load_config("bernoulli", [f"data.name={path}", *SETTINGS, *settings])
    return vaecli.train(config, runs_dir=runs_dir)


def test_training_vectors_have_mean_zero_and_deviation_one_and_what_does_not_vary_is_zero(path):
    dataset = Dataset(DataConfig(name=str(path), kind="vectors", validation=100), Support.REAL)
    x = dataset.train.pixels
    assert (len(dataset.train), len(dataset.validation), len(dataset.test)) == (440, 100, 60)
    torch.testing.assert_close(x.mean(0), torch.zeros(5), atol=1e-4, rtol=0)
    torch.testing.assert_close(x.std(0, correction=0), torch.tensor([1.0, 1, 1, 1, 0]), atol=1e-4, rtol=0)


def test_validation_and_test_vectors_are_standardised_by_those_that_are_trained_on(path):
    vectors = np.load(path)
    dataset = Dataset(DataConfig(name=str(path), kind="vectors", validation=100, train=200), Support.REAL)
    mean, deviation = vectors[:200].mean(0), vectors[:200].std(0)
    expected = (vectors[540:, :4] - mean[:4]) / deviation[:4]
    np.testing.assert_allclose(dataset.test.pixels[:, :4].numpy(), expected, atol=1e-4)


def test_samples_and_reconstructions_are_in_the_units_of_the_data(path, tmp_path):
    """Of a linear VAE with a learned scale the marginal is Gaussian, with nearly the data's own mean and covariance."""
    run = train(path, tmp_path / "runs", "training.epochs=60", "training.batch_size=20", "optimizer.learning_rate=0.03")
    vectors = np.load(path)
    drawn = vaecli.sample(run, 20_000, draw=True)
    assert drawn.shape == (20_000, 5)
    np.testing.assert_allclose(drawn.mean(0), vectors.mean(0), atol=0.5)
    np.testing.assert_allclose(np.cov(drawn.T)[:4, :4], np.cov(vectors.T)[:4, :4], rtol=0.25, atol=0.6)
    pair = vaecli.reconstruct(run, 10)
    np.testing.assert_allclose(pair.originals, vectors[540:550], rtol=1e-4)
    assert np.abs(pair.reconstructions - pair.originals)[:, :4].mean() < 0.1 * vectors.std(0)[:4].mean()


def test_the_bound_does_not_depend_on_the_units_of_the_data(path, tmp_path):
    write_vectors(tmp_path / "other.npy", scale=3000.0, shift=-7.0)
    one, other = (vaecli.evaluate(train(p, tmp_path / "runs"), k=50) for p in (path, tmp_path / "other.npy"))
    assert one.elbo == pytest.approx(other.elbo, abs=0.01)
    assert (one.support, one.observed, one.bits_per_dim, one.binarised_nll) == ("real", "standardised", None, None)


def test_a_run_on_vectors_is_resumed_to_the_same_bits(path, tmp_path):
    config = vaecli.load_config("bernoulli", [f"data.name={path}", *SETTINGS])
    with pytest.raises(LimitReachedError):
        vaecli.train(config, runs_dir=tmp_path / "cut", limit=Limit(images=250))
    (run,) = list_runs(tmp_path / "cut")
    assert traces(vaecli.resume(run)) == traces(vaecli.train(config, runs_dir=tmp_path / "whole"))


def test_a_run_on_vectors_writes_no_pictures_and_a_projector_without_thumbnails(path, tmp_path):
    run = train(path, tmp_path / "runs")
    assert not list(run.path.rglob("*.png"))
    projector = (run.path / "tensorboard" / "validation" / "projector_config.pbtxt").read_text()
    assert "embedding.tsv" in projector
    assert "sprite" not in projector
    assert json.loads((run.path / "status.json").read_text())["state"] == "completed"


def test_seeds_that_are_trained_together_keep_their_units(path, tmp_path):
    config = vaecli.load_config("bernoulli", [f"data.name={path}", *SETTINGS])
    configs = [config.model_copy(update={"seed": seed}) for seed in (0, 1)]
    sessions = {i: start_session(each, tmp_path / "runs", None, Controls()) for i, each in enumerate(configs)}
    assert train_replicates(sessions) == {}
    for session in sessions.values():
        units = vaecli.load_run(session.run.path).vae.units
        torch.testing.assert_close(units.mean[4], torch.tensor(0.1))
        assert units.scale[4] == 1


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("model.decoder=bernoulli", "model.decoder: must be 'gaussian', 'i-gaussian', 'sigma-gaussian'"),
        ("model.mean=sigmoid", "model.mean: must be 'linear'"),
        ("model.network=conv", "model.network: must be 'mlp'"),
        ("model.prior=vamp", "model.prior: must be 'standard', 'mixture' or 'flow'"),
        ("data.name=mnist", "data.kind: must be 'images', unless data.name is a .npy or .npz file"),
    ],
)
def test_what_vectors_do_not_go_with_is_refused_with_its_place(path, setting, message):
    with pytest.raises(ConfigError, match="command line: ") as raised:
        vaecli.load_config("bernoulli", [f"data.name={path}", *SETTINGS, setting])
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((4, 3, 2)), r"vectors are numbers of shape \(N, D\).*images have data.kind: images"),
        (np.zeros(4), r"vectors are numbers of shape \(N, D\).*; one number each is a column, x\[:, None\]"),
        (np.zeros((4, 2), bool), r'; convert them with x.astype\("uint8"\)'),
        (np.array([["a"], ["b"]]), "vectors are numbers"),
        (np.array([[1.0, 2.0], [3.0, np.nan]]), "holds nan in row 1, column 1 .counted from 0., and 1 numbers"),
        (np.full((5, 1), 1e300), "holds 1e.300 in row 0, column 0 .*5 numbers that are not finite"),
    ],
)
def test_arrays_that_are_no_vectors_are_refused(tmp_path, array, message):
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(DataError, match=message):
        _ = Dataset(DataConfig(name=str(tmp_path / "a.npy"), kind="vectors"), Support.REAL).train


def test_vectors_that_are_taken_for_images_are_told_how_they_are_read(path, tmp_path):
    np.savez(tmp_path / "v.npz", vectors=np.load(path), labels=np.zeros(600, int))
    for name, remedy in (("v.npy", "vectors have data.kind=vectors"), ("v.npz", "or set data.kind=vectors")):
        with pytest.raises(DataError, match=remedy):
            _ = Dataset(DataConfig(name=str(tmp_path / name)), Support.BINARY).train


def test_vectors_are_no_pictures(path, tmp_path):
    run = train(path, tmp_path / "runs")
    with pytest.raises(UsageError, match="is of vectors, of which the explorer has no controls"):
        vaecli.explore(run)


def test_commands_write_arrays_of_vectors(path, tmp_path, vae):
    run = train(path, tmp_path / "runs")
    for command, name, shape in (
        ("sample", "sample-seed0.npy", (100, 5)),
        ("interpolate", "interpolate-test-0-1.npy", (10, 5)),
        ("manifold", "manifold.npy", (400, 5)),
    ):
        assert vae(command, "--ckpt", run.path)[0] == 0
        assert np.load(run.path / "samples" / name).shape == shape
    assert vae("reconstruct", "--ckpt", run.path)[0] == 0
    with np.load(run.path / "samples" / "reconstruct-test.npz") as arrays:
        assert arrays["originals"].shape == arrays["reconstructions"].shape == (20, 5)
    code, printed = vae("sample", "--ckpt", run.path, "--out", tmp_path / "v.png")
    assert code == 2
    assert "is of vectors, which are no pictures; it must end in .npy" in printed.err


def test_decoders_are_compared_on_vectors_in_a_report_without_pictures(path, tmp_path, vae):
    """Of the tutorial's three decoders two are densities on all real numbers."""
    settings = (f"data.name={path}", *SETTINGS, "training.epochs=1")
    command = ("compare-decoders", "--seeds", "1", "--limit", "5", "--k", "5", "--quiet", "--runs-dir", tmp_path)
    code, printed = vae(*command, *settings)
    assert code == 0
    report = Path(printed.out.strip()).with_name("report.md").read_text()
    assert "gaussian, i-gaussian; 1 seed each" in report
    assert "5 test vectors" in report
    assert "![ELBO over vectors seen, of each run]" in report
    assert "reconstructions and prior samples" not in report
    code, printed = vae(*command, "--decoders", "bernoulli", *settings)
    assert code == 2
    assert "model.decoder: must be 'gaussian', 'i-gaussian', 'sigma-gaussian' with data.kind: vectors" in printed.err


def test_a_run_from_the_weights_of_another_has_the_units_of_its_own_data(path, tmp_path):
    write_vectors(tmp_path / "other.npy", scale=3000.0, shift=-7.0)
    first = train(path, tmp_path / "runs")
    config = vaecli.load_config("bernoulli", [f"data.name={tmp_path / 'other.npy'}", *SETTINGS])
    run = vaecli.train(config, runs_dir=tmp_path / "runs", init_from=first)
    mean = np.load(tmp_path / "other.npy")[:440].mean(0)  # of 600, less 60 for testing and 100 held out
    np.testing.assert_allclose(run.vae.units.mean.numpy(), mean, rtol=1e-5)
    np.testing.assert_allclose(
        vaecli.reconstruct(run, 5).originals, np.load(tmp_path / "other.npy")[540:545], rtol=1e-3
    )


def test_vectors_are_standardised_in_their_own_precision_and_stay_in_their_file(tmp_path):
    """Of 1e8 and a little float32 keeps nothing: its neighbours there are 8 apart."""
    little = np.random.default_rng(0).normal(size=(300, 1))
    np.save(tmp_path / "v.npy", 1e8 + little)
    dataset = Dataset(DataConfig(name=str(tmp_path / "v.npy"), kind="vectors", validation=0, test=1), Support.REAL)
    expected = (little[:299] - little[:299].mean()) / little[:299].std()
    np.testing.assert_allclose(dataset.train.pixels.numpy(), expected, atol=1e-6)
    assert isinstance(load_array(dataset.name, "vectors").pixels, np.memmap)


def test_vectors_beyond_the_memory_are_refused_before_it_is_taken(path, monkeypatch):
    monkeypatch.setattr("vaecli.data.vectors.process_memory", lambda: 440 * 5 * 4 - 1)
    dataset = Dataset(DataConfig(name=str(path), kind="vectors", validation=100), Support.REAL)
    with pytest.raises(DataError, match=r"440 standardised vectors take .* train on fewer by data.train"):
        _ = dataset.train
    assert len(dataset.test) == 60


def test_vectors_that_have_changed_since_are_not_taken_for_those_that_were_trained_on(path, tmp_path):
    """With other units the same x would be other vectors."""
    run = train(path, tmp_path / "runs")
    np.save(path, 10 * np.load(path))
    for use in (vaecli.evaluate, vaecli.reconstruct, vaecli.encode):
        with pytest.raises(DataError, match=r"v.npy: has changed since .* put the file back, or train on this one"):
            use(run)
    assert vaecli.sample(run, 3).shape == (3, 5)


def test_results_on_vectors_speak_of_vectors(path, tmp_path, vae):
    run = train(path, tmp_path / "runs", "training.epochs=1")
    for options in (("--k", "3"), ("--gaps",), ("--method", "ais", "--temperatures", "3", "--chains", "2")):
        code, printed = vae("evaluate", "--ckpt", run.path, "--limit", "3", *options, "--quiet")
        assert code == 0
        assert "3 test vectors, standardised" in printed.out
        assert "image" not in printed.out.replace("3images", "")  # in the name of a file
    assert re.search(rf">vectors</th><td[^>]*>{re.escape(str(path))}</td>", run._repr_html_())
