"""Encoder and decoder that are told the class of an image: p(x|z, y) and q(z|x, y)."""

import sys

import numpy as np
import pytest
import torch
from torch.distributions import MultivariateNormal

import vaecli
from identical import traces
from vaecli import cli
from vaecli.config.jobs import AnnealingSpec, GapsSpec
from vaecli.config.likelihoods import Support
from vaecli.config.sections import DataConfig
from vaecli.data.image_grid import ImageShape
from vaecli.data.preprocess import build_preprocess
from vaecli.errors import ConfigError, DataError, InterruptedRunError, LimitReachedError, UsageError
from vaecli.model.objectives import draw_noise, dreg, estimator_a, estimator_b, iwae, stl
from vaecli.model.vae import build_vae
from vaecli.randomness import generator
from vaecli.runs.run import list_runs
from vaecli.training.opening import start_session
from vaecli.training.replicates import train_replicates
from vaecli.training.session import Controls
from vaecli.training.stopping import Limit

TOLD = {"condition": "labels", "classes": 5}


@pytest.fixture(scope="module")
def vectors(tmp_path_factory):
    """Two thousand vectors in four dimensions whose class shifts them far, and that are Gaussian within a class."""
    noise = np.random.default_rng(0)
    labels = np.arange(2000) % 3
    within = noise.normal(size=(2000, 2)) @ noise.normal(size=(2, 4)) + 0.3 * noise.normal(size=(2000, 4))
    path = tmp_path_factory.mktemp("data") / "classes.npz"
    np.savez(path, vectors=within + 10 * np.eye(4)[labels], labels=labels)
    return path


@pytest.fixture(scope="module")
def linear(vectors, tmp_path_factory):
    """A linear VAE of these that is told the class, which is then exact: x given y is Gaussian around a mean of y."""
    settings = (
        f"data.name={vectors}", "data.kind=vectors", "data.validation=200", "data.test=100",
        "model.condition=labels", "model.classes=3", "model.decoder=sigma-gaussian", "model.mean=linear",
        "model.latent_dim=2", "model.hidden_dim=[]", "model.posterior=full", "optimizer.learning_rate=0.02",
        "training.epochs=40", "training.batch_size=100",
    )  # fmt: skip
    return vaecli.train(vaecli.load_config("bernoulli", settings), runs_dir=tmp_path_factory.mktemp("runs"))


def exact_evidence(run, path):
    """Return log p(x|y) of the test vectors in closed form: N(W z + V y + b, σ² I) over z ~ N(0, I)."""
    with np.load(path) as arrays:
        v, labels = torch.from_numpy(arrays["vectors"][1900:]), torch.from_numpy(arrays["labels"][1900:])
    vae = run.vae
    x = (v - vae.units.mean) / vae.units.scale
    output = vae.decoder.network[-1]
    weight, sigma = output.weight.detach().double(), vae.decoder.log_sigma.detach().double().exp()
    mean = weight[:, 2:][:, labels].T + output.bias.detach().double()
    covariance = weight[:, :2] @ weight[:, :2].T + sigma**2 * torch.eye(4)
    return MultivariateNormal(mean, covariance).log_prob(x.double()).numpy()


def test_the_evidence_of_a_linear_model_is_that_of_its_own_class(linear, vectors):
    """In closed form, image by image: of another class it would be some hundred nats lower."""
    found = vaecli.evaluate(linear, k=500)
    exact = exact_evidence(linear, vectors)
    assert found.log_evidence == pytest.approx(exact.mean(), abs=0.01)
    (per_image,) = (linear.path / "evaluations").glob("*-k500*.npz")
    with np.load(per_image) as arrays:
        np.testing.assert_allclose(arrays["log_evidence"], exact, atol=0.2)


def test_the_gaps_begin_at_the_bound_of_each_images_own_class(small, tmp_path):
    """Its ELBO, by 200 draws, is that of an ordinary evaluation, by 100, and no fitted Gaussian has a worse one."""
    run = vaecli.train(small(model=TOLD, training={"epochs": 20}), runs_dir=tmp_path)
    gaps, file = vaecli.evaluate_gaps(run, GapsSpec())
    ordinary = vaecli.evaluate(run, k=50)
    with np.load(file.with_suffix(".npz")) as ours, np.load(next(file.parent.glob("*-k50-*.npz"))) as theirs:
        np.testing.assert_allclose(ours["elbo"], theirs["elbo"], atol=1.0)
        assert (ours["best_elbo"] > ours["elbo"] - 0.05).all()
    assert gaps.elbo == pytest.approx(ordinary.elbo, abs=0.5)


def test_annealing_goes_on_where_it_was_cut_and_agrees_with_importance_sampling(linear):
    def stop(stage: str, done: int, total: int) -> None:
        if stage == "annealing" and done > total / 2:  # of three classes, in three parts
            raise InterruptedRunError("stopped")

    spec = AnnealingSpec(temperatures=20, chains=5, limit=30)
    with pytest.raises(InterruptedRunError):
        vaecli.evaluate_annealed(linear, spec, callback=stop)
    assert list((linear.path / "evaluations").glob("*.partial.npz"))
    cut = vaecli.evaluate_annealed(linear, spec)
    assert abs(cut.difference) < 0.1
    assert vaecli.evaluate_annealed(linear, spec) == cut


def test_samples_of_a_class_have_its_mean(linear, vectors):
    with np.load(vectors) as arrays:
        means = [arrays["vectors"][arrays["labels"] == y].mean(0) for y in range(3)]
    for y, mean in enumerate(means):
        np.testing.assert_allclose(vaecli.sample(linear, 4000, label=y).mean(0), mean, atol=0.5)
    of_each = vaecli.sample(linear, 6000).reshape(3, 2000, 4)  # as many of each class, in order
    np.testing.assert_allclose(of_each.mean(1), means, atol=0.5)


def test_a_reconstruction_is_of_its_own_class(linear):
    pair = vaecli.reconstruct(linear, 30)
    assert (pair.originals[:, :3].argmax(1) == np.arange(1900, 1930) % 3).all()
    assert (pair.reconstructions[:, :3].argmax(1) == np.arange(1900, 1930) % 3).all()


def test_a_line_between_two_images_ends_at_their_reconstructions(linear):
    """The first two test vectors are of two classes, and the class goes with z."""
    line, pair = vaecli.interpolate(linear, 0, 1, 5), vaecli.reconstruct(linear, 2)
    np.testing.assert_allclose(line[[0, -1]], pair.reconstructions, atol=1e-3)
    np.testing.assert_allclose(line[2], pair.reconstructions.mean(0), atol=1e-3)  # all is linear


@pytest.mark.parametrize("network", ["mlp", "conv"])
@pytest.mark.parametrize("objective", [estimator_a, estimator_b, iwae, stl, dreg])
def test_every_objective_decodes_an_image_by_its_own_class(small, images, network, objective):
    """With the class's weights zero nothing depends on it; else each image's bound is the one it has alone."""
    model = {**TOLD, "network": network, "hidden_dim": 8, "init": "torch"}
    config = small(model=model | ({"channels": 4} if network == "conv" else {})).model
    vae = build_vae(config, ImageShape(1, 6, 5), generator(0, "init"))
    pixels, labels = torch.from_numpy(images[:7]).flatten(1), torch.arange(7) % 5
    batch = build_preprocess(Support.BINARY, DataConfig(binarize="threshold"), 5)(
        pixels, generator(0, "pixels"), labels
    )
    assert batch.input.shape == (7, 30 + 5)
    epsilon = draw_noise(vae, batch, 3, generator(0, "epsilon"))
    together = objective(vae, batch, epsilon, 1.0).elbo.value
    alone = [objective(vae, batch.at(slice(i, i + 1)), epsilon[:, i : i + 1], 1.0).elbo.value for i in range(7)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-4, atol=1e-4)
    moved = batch._replace(input=torch.cat([batch.input[:, :30], batch.input[:, 30:].roll(1, 1)], 1))
    assert not torch.allclose(objective(vae, moved, epsilon, 1.0).elbo.value, together)


@pytest.mark.parametrize(
    "settings", [{}, {"network": "conv", "channels": 4}, {"posterior": "flow", "prior": "mixture"}]
)
@pytest.mark.parametrize("compiled", ["off", "on"])
def test_a_run_that_is_told_labels_is_resumed_to_the_same_bits(small, tmp_path, settings, compiled):
    if compiled == "on" and settings:
        pytest.skip("compiled once, since it takes ten seconds")
    config = small(model=TOLD | settings, training={"compile": compiled})
    whole = vaecli.train(config, runs_dir=tmp_path / "whole")
    with pytest.raises(LimitReachedError):
        vaecli.train(config, runs_dir=tmp_path / "cut", limit=Limit(images=60))
    (run,) = list_runs(tmp_path / "cut")
    assert traces(vaecli.resume(run)) == traces(whole)


def test_seeds_that_are_trained_together_go_where_each_goes_alone(small, tmp_path):
    configs = [small(model=TOLD, seed=seed) for seed in (0, 1)]
    sessions = {i: start_session(each, tmp_path / "both", None, Controls()) for i, each in enumerate(configs)}
    assert train_replicates(sessions) == {}
    for config, session in zip(configs, sessions.values(), strict=True):
        alone = vaecli.train(config, runs_dir=tmp_path / "alone").vae.state_dict()
        together = vaecli.load_run(session.run.path).vae.state_dict()
        for name, weights in alone.items():
            torch.testing.assert_close(together[name], weights, rtol=0, atol=1e-4)


def test_labels_that_are_missing_or_beyond_the_classes_are_refused_before_training(small, tmp_path, images):
    np.save(tmp_path / "unlabelled.npy", images)
    with pytest.raises(DataError, match=r"the data have none; give them in a .npz as `labels`"):
        vaecli.train(small(model=TOLD, data={"name": str(tmp_path / "unlabelled.npy")}), runs_dir=tmp_path / "runs")
    with pytest.raises(DataError, match=r"labels go from 0 to 4; .* model.classes must be 5 at least"):
        vaecli.train(small(model=TOLD | {"classes": 3}), runs_dir=tmp_path / "runs")
    np.savez(tmp_path / "negative.npz", images=images, labels=np.arange(len(images)) % 5 - 1)
    with pytest.raises(DataError, match=r"labels go from -1 to 3; .* none may be negative: renumber them"):
        vaecli.train(small(model=TOLD, data={"name": str(tmp_path / "negative.npz")}), runs_dir=tmp_path / "runs")
    assert list_runs(tmp_path / "runs") == []


def test_what_labels_do_not_go_with_is_refused_with_its_place():
    for settings, problem in (
        (["model.prior=vamp"], "model.prior: must be 'standard', 'mixture' or 'flow' with condition: labels"),
        (["training.algorithm=mcem"], "training.algorithm: must be 'aevb' with condition: labels"),
        (["training.algorithm=wake-sleep"], "training.algorithm: must be 'aevb' with condition: labels"),
    ):
        with pytest.raises(ConfigError) as raised:
            vaecli.load_config("bernoulli", ["model.condition=labels", *settings])
        assert problem in str(raised.value)


def test_labels_are_asked_of_models_that_are_told_them_only(small, tmp_path):
    plain = vaecli.train(small(), runs_dir=tmp_path / "plain")
    with pytest.raises(UsageError, match=r"its model is not told labels; train with model.condition=labels"):
        vaecli.sample(plain, label=1)
    told = vaecli.train(small(model=TOLD | {"latent_dim": 2}), runs_dir=tmp_path / "told")
    with pytest.raises(UsageError, match=r"has labels 0 to 4, and no 5"):
        vaecli.sample(told, label=5)
    with pytest.raises(UsageError, match=r"is told labels, 0 to 4: name one with --label"):
        vaecli.manifold(told)
    with pytest.raises(UsageError, match=r"is told labels, for which the explorer has no controls"):
        vaecli.explore(told)


def test_sample_and_manifold_take_a_label(small, tmp_path, monkeypatch):
    run = vaecli.train(small(model=TOLD | {"latent_dim": 2}), runs_dir=tmp_path)
    for command, name in (("sample", "sample-label3-seed0.png"), ("manifold", "manifold-label3.png")):
        monkeypatch.setattr(sys, "argv", ["vae", command, "--ckpt", str(run.path), "--label", "3"])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert not ended.value.code
        assert (run.path / "samples" / name).exists()
