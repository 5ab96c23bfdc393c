"""The objectives against closed forms, in float64."""

import math

import pytest
import torch

from vaecli.config.likelihoods import LIKELIHOODS
from vaecli.config.sections import ModelConfig, ObjectiveConfig
from vaecli.data.image_grid import ImageShape
from vaecli.data.preprocess import Batch
from vaecli.model.objectives import build_objective, draw, draw_noise, elbo, log_evidence, log_mean_exp, log_weights
from vaecli.model.vae import build_vae
from vaecli.randomness import generator

D, Z, B = 6, 3, 4
SHAPE = ImageShape(1, 1, D)


@pytest.mark.parametrize("n_samples", [1, 7])
def test_with_the_exact_posterior_every_weight_is_the_evidence(oracle, n_samples):
    vae, batch, evidence = oracle
    weights = log_weights(vae, batch, n_samples, generator(0, "epsilon"))
    assert weights.shape == (n_samples, B)
    assert (weights - evidence).abs().max() < 1e-12
    assert (log_evidence(vae, batch, n_samples, generator(1, "epsilon")) - evidence).abs().max() < 1e-12


def test_with_the_exact_posterior_the_elbo_is_the_evidence_in_expectation(oracle):
    vae, batch, evidence = oracle
    bound = elbo(vae, batch, 200_000, generator(0, "epsilon"))
    # only the likelihood varies, and by less than 2 nats: five standard errors are below 0.025
    assert (bound.value - evidence).abs().max() < 0.025


def test_estimators_a_and_b_agree_in_expectation(loose):
    vae, batch, _ = loose
    draws = draw(vae, batch, draw_noise(vae, batch, 200_000, generator(0, "epsilon")))
    a, b = draws.log_weights(), draws.log_likelihood - draws.elbo.kl
    error = (a - b).std(0) / math.sqrt(200_000)
    assert ((a.mean(0) - b.mean(0)).abs() < 5 * error).all()
    assert (a.std(0) > 0).all()


def test_the_bound_rises_with_the_samples_and_stays_below_the_evidence(loose):
    vae, batch, evidence = loose
    rng, repeats = generator(0, "epsilon"), 20_000
    bounds = []
    for n_samples in (1, 2, 5, 50):
        weights = log_weights(vae, batch, n_samples * repeats, rng).reshape(n_samples, repeats * B)
        bounds.append(log_mean_exp(weights).reshape(repeats, B).mean(0))
    gaps = evidence - torch.stack(bounds)
    assert (gaps[:-1] > gaps[1:]).all()  # strictly tighter each time; the gap at S=1 is KL(q ‖ posterior) ≈ 0.9
    assert (gaps > 0).all()
    kl = evidence - elbo(vae, batch, 200_000, rng).value
    assert (gaps[0] - kl).abs().max() < 0.05


@pytest.mark.parametrize("n_samples", [1, 5])
def test_each_image_is_paired_with_its_own_samples(oracle, n_samples):
    """Mixing images along the samples leaves the sum over the batch right, and every image wrong."""
    vae, batch, _ = oracle
    draws = draw(vae, batch, draw_noise(vae, batch, n_samples, generator(0, "epsilon")))
    epsilon = torch.randn(n_samples, B, Z, generator=generator(0, "epsilon"), dtype=torch.float64)
    for i in range(B):
        alone = vae.encoder(batch.input[i])
        for s in range(n_samples):
            z = alone.mean + alone.stddev * epsilon[s, i]
            assert (draws.z[s, i] - z).abs().max() < 1e-12
            expected = vae.decoder(z).log_prob(batch.target[i])
            assert draws.log_likelihood[s, i].item() == pytest.approx(expected.item(), abs=1e-10)


def test_the_encoder_sees_one_thing_and_another_is_scored(oracle):
    vae, batch, _ = oracle
    other = Batch(batch.input, batch.target + 1)
    one, two = (draw(vae, b, draw_noise(vae, b, 3, generator(0, "epsilon"))) for b in (batch, other))
    assert torch.equal(one.z, two.z)
    assert (one.log_likelihood != two.log_likelihood).all()


@pytest.mark.parametrize("name", LIKELIHOODS)
@pytest.mark.parametrize(
    "settings",
    [
        {"estimator": "A"},
        {"estimator": "B", "L": 4},
        {"name": "iwae", "L": 3},
        {"name": "stl", "L": 2},
        {"name": "dreg", "L": 3},
    ],
    ids=["A", "B", "iwae", "stl", "dreg"],
)
def test_gradients_reach_every_parameter_of_the_vae(name, settings):
    vae = build_vae(ModelConfig(decoder=name, latent_dim=Z, hidden_dim=[7, 5]), SHAPE, generator(0, "init")).double()
    x = torch.rand(64, D, dtype=torch.float64).round()
    config, batch = ObjectiveConfig(**settings), Batch(x, x)
    bound, _ = build_objective(config)(vae, batch, draw_noise(vae, batch, config.L, generator(0, "epsilon")), 1.0)
    bound.mean().backward()
    for key, parameter in vae.named_parameters():
        assert (parameter.grad != 0).any(), key


def test_iwae_with_one_sample_is_estimator_a_sample_by_sample(loose):
    vae, batch, _ = loose
    a, iwae = (
        build_objective(config)(vae, batch, draw_noise(vae, batch, 1, generator(0, "epsilon")), 1.0)[0]
        for config in (ObjectiveConfig(estimator="A"), ObjectiveConfig(name="iwae"))
    )
    assert (a - iwae).abs().max() < 1e-12


@pytest.mark.parametrize(
    "settings", [{"estimator": "A"}, {"estimator": "B"}, {"name": "iwae"}, {"name": "stl"}, {"name": "dreg"}]
)
def test_the_kl_weight_changes_what_is_maximised_and_not_what_is_reported(loose, settings):
    vae, batch, _ = loose
    maximise, epsilon = (
        build_objective(ObjectiveConfig(**settings, L=2)),
        draw_noise(vae, batch, 2, generator(0, "epsilon")),
    )
    full, reported = maximise(vae, batch, epsilon, 1.0)
    free, again = maximise(vae, batch, epsilon, 0.0)
    assert torch.equal(reported.value, again.value)
    assert (full != free).all()
    draws = draw(vae, batch, epsilon)
    weighted = settings.get("name") in {"iwae", "dreg"}
    expected = log_mean_exp(draws.log_likelihood) if weighted else draws.log_likelihood.mean(0)
    assert (free - expected).abs().max() < 1e-12  # at weight 0 only the likelihood is left


def test_log_mean_exp_does_not_overflow():
    # log of the mean of e^1000 and 3 e^1000 is 1000 + log 2
    weights = torch.tensor([[1000.0], [1000.0 + math.log(3)]], dtype=torch.float64)
    assert log_mean_exp(weights).item() == pytest.approx(1000 + math.log(2), abs=1e-12)
