"""The linear VAE is probabilistic PCA (Tipping & Bishop 1999; Lucas et al. 2019): what it should learn is known.

For images y with principal variances λ_1 ≥ λ_2 ≥ ..., the likelihood is largest where σ² is the mean of the λ beyond
the Z-th, and W spans the first Z principal directions; the columns of W can be orthogonal, so that the posterior is
diagonal and the ELBO is the likelihood.
"""

import math

import numpy as np
import pytest
import torch

from vaecli.config.jobs import GapsSpec
from vaecli.config.loading import parse_config
from vaecli.data.dataset import Dataset
from vaecli.data.preprocess import build_preprocess
from vaecli.evaluation.evaluate import evaluate
from vaecli.evaluation.gaps import evaluate_gaps
from vaecli.randomness import generator
from vaecli.runs.run import Run
from vaecli.training.loop import train

Z, D, N_TRAIN = 3, 30, 600


def covariance(pixels: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Of y = (k + u)/256 around a mean, with u integrated out: it adds 1/12 of a level's width squared."""
    y = (pixels.reshape(len(pixels), -1) + 0.5) / 256 - mean
    return y.T @ y / len(y) + np.eye(D) / (12 * 256**2)


def log_likelihood(c: np.ndarray, model: np.ndarray) -> float:
    return -0.5 * (D * math.log(2 * math.pi) + np.linalg.slogdet(model)[1] + np.trace(np.linalg.solve(model, c)))


@pytest.fixture(scope="module")
def faces(tmp_path_factory):
    """Images of three factors of different strength and noise, 600 for training and 300 for testing."""
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.normal(size=(D, Z)))[0]
    y = 0.5 + rng.normal(size=(900, Z)) * [0.5, 0.35, 0.2] @ basis.T + 0.04 * rng.normal(size=(900, D))
    pixels = (256 * y).clip(0, 255).astype(np.uint8).reshape(-1, 6, 5)
    path = tmp_path_factory.mktemp("linear") / "images.npy"
    np.save(path, pixels)
    return path, pixels


@pytest.fixture(scope="module")
def run(faces, tmp_path_factory) -> Run:
    training = {"epochs": 100, "batch_size": 50}
    return trained(faces[0], tmp_path_factory.mktemp("runs"), 0.02, training, decoder="sigma-gaussian")


def trained(path, runs_dir, learning_rate, training, **model) -> Run:
    config = parse_config(
        {
            "data": {"name": str(path), "validation": 0, "test": 300},
            "model": {"latent_dim": Z, "hidden_dim": [], "mean": "linear", **model},
            "optimizer": {"learning_rate": learning_rate},
            "training": {"compile": "off", **training},
            "device": "cpu",
        }
    )
    return train(config, runs_dir=runs_dir)


@pytest.fixture(scope="module")
def best(faces):
    """The maximum of the likelihood in closed form: the mean, W Wᵀ + σ² I, σ² and the principal directions."""
    _, pixels = faces
    mean = ((pixels[:N_TRAIN].reshape(N_TRAIN, -1) + 0.5) / 256).mean(0)
    variances, directions = np.linalg.eigh(covariance(pixels[:N_TRAIN], mean))
    variances, directions = variances[::-1], directions[:, ::-1][:, :Z]
    noise = variances[Z:].mean()
    return mean, (directions * (variances[:Z] - noise)) @ directions.T + noise * np.eye(D), noise, directions


def test_training_reaches_the_maximum_of_the_likelihood(run, faces, best):
    _, pixels = faces
    mean, model, noise, directions = best
    maximum = log_likelihood(covariance(pixels[:N_TRAIN], mean), model)
    found = evaluate(run, k=200, split="train", binarised=False)
    assert maximum - 0.3 < found.log_evidence < maximum + 0.1  # u is drawn, not integrated out
    assert maximum - 0.5 < found.elbo < maximum + 0.1
    assert run.vae.decoder.log_sigma.item() == pytest.approx(0.5 * math.log(noise), abs=0.02)
    w = run.vae.decoder.network[0].weight.detach().double().numpy()
    angles = np.linalg.svd(directions.T @ np.linalg.qr(w)[0])[1]  # cosines between the two subspaces
    assert angles.min() > 0.999


def test_the_evidence_is_that_of_the_gaussian_that_was_learned(run):
    """log N(y; b, WWᵀ + σ²I) of each test image with its own noise, to the Monte-Carlo error; also by the encoder."""
    decoder = run.vae.decoder
    w, b = (p.detach().double() for p in (decoder.network[0].weight, decoder.network[0].bias))
    sigma = decoder.log_sigma.detach().double().exp()
    exact = torch.distributions.MultivariateNormal(b, w @ w.T + sigma**2 * torch.eye(D, dtype=torch.float64))
    support = run.config.model.likelihood.support
    images = Dataset(run.config.data, support).test
    y = build_preprocess(support, run.config.data)(images.pixels, generator(0, "evaluation")).target
    expected = exact.log_prob(y.double()).mean().item()
    for proposal in ("fitted", "encoder"):
        found = evaluate(run, k=500, binarised=False, proposal=proposal)
        assert found.log_evidence == pytest.approx(expected, abs=5 * found.log_evidence_mc_se + 1e-4)


def test_nothing_is_lost_between_the_evidence_and_the_bound(run):
    """The posterior is diagonal and its mean linear in y: no gap of either kind."""
    gaps, _ = evaluate_gaps(run, GapsSpec(limit=100))
    assert gaps.approximation_gap == pytest.approx(0, abs=0.05)
    assert gaps.amortisation_gap == pytest.approx(0, abs=0.15)
    assert gaps.mutual_information <= math.log(100)


def test_at_a_fixed_scale_the_dimensions_of_less_variance_collapse(faces, tmp_path):
    """At σ = 0.25 two of the three have λ > σ²; the rate is ½ Σ log(λ/σ²) over these (Lucas et al. 2019)."""
    path, pixels = faces
    noise = 0.25**2
    mean = ((pixels[:N_TRAIN].reshape(N_TRAIN, -1) + 0.5) / 256).mean(0)
    c = covariance(pixels[:N_TRAIN], mean)
    variances, directions = np.linalg.eigh(c)
    alive = variances > noise
    w = directions[:, alive]
    maximum = log_likelihood(c, (w * (variances[alive] - noise)) @ w.T + noise * np.eye(D))
    rate = 0.5 * np.log(variances[alive] / noise).sum()
    assert alive.sum() == 2
    run = trained(path, tmp_path, 0.05, {"epochs": 200, "batch_size": 100}, decoder="i-gaussian", sigma=0.25)
    found = evaluate(run, k=1, split="train", proposal="encoder", binarised=False)
    assert maximum - 0.05 < found.elbo < maximum + 0.02
    assert found.kl == pytest.approx(rate, abs=0.03)
    assert min(found.kl_per_dimension) < 0.01
    assert found.active_units == 2


@pytest.mark.parametrize(
    ("algorithm", "training"),
    [("wake-sleep", {"epochs": 100, "batch_size": 50}), ("mcem", {"epochs": 30, "batch_size": 100})],
)
def test_other_algorithms_come_near_the_maximum_of_the_likelihood_too(faces, best, tmp_path, algorithm, training):
    """By less than 1 nat, of the Gaussian N(b, WWᵀ + σ²I) that was learned, in closed form."""
    pixels, (mean, model, _, _) = faces[1][:N_TRAIN], best
    maximum = log_likelihood(covariance(pixels, mean), model)
    run = trained(faces[0], tmp_path, 0.02, training | {"algorithm": algorithm}, decoder="sigma-gaussian")
    w, b = (p.detach().double().numpy() for p in run.vae.decoder.network[0].parameters())
    learned = w @ w.T + run.vae.decoder.log_sigma.double().exp().item() ** 2 * np.eye(D)
    assert maximum - 1 < log_likelihood(covariance(pixels, b), learned) < maximum
    assert run.metrics[-1]["elbo"] < maximum + 0.1  # a bound, whoever's encoder it is by
