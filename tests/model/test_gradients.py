"""Gradient estimators of one bound have one expectation, and differ in their variance, in float64."""

import pytest
import torch
from torch.func import grad, vmap

from vaecli.config.sections import ModelConfig, ObjectiveConfig
from vaecli.data.image_grid import ImageShape
from vaecli.data.preprocess import Batch
from vaecli.model.algorithms import Aevb
from vaecli.model.objectives import build_objective, draw_noise
from vaecli.model.vae import build_vae
from vaecli.randomness import generator
from vaecli.training.functional import Functional

PLAIN = {"stl": {"estimator": "A"}, "dreg": {"name": "iwae"}}
"""The objective whose gradient each has in expectation."""


@pytest.fixture
def model():
    """A small VAE before training, and four images."""
    vae = build_vae(ModelConfig(latent_dim=2, hidden_dim=3), ImageShape(1, 2, 3), generator(0, "init")).double()
    x = torch.rand(4, 6, generator=generator(0, "pixels"), dtype=torch.float64).round()
    return vae, Batch(x, x)


def gradients(vae, batch, settings, n_samples, repeats, kl_weight=1.0):
    """Estimate the loss's gradient many times: for each parameter (repeats, size)."""
    functional = Functional(vae, Aevb(ObjectiveConfig(**settings)).loss)
    epsilon = draw_noise(vae, batch, n_samples * repeats, generator(0, "epsilon"))
    epsilon = epsilon.unflatten(0, (repeats, n_samples))
    of_one = grad(lambda parameters, e: functional.at(parameters, [], (*batch, e), kl_weight), has_aux=True)
    found, _ = vmap(of_one, in_dims=(None, 0))([p.detach() for p in vae.parameters()], epsilon)
    names = [name for name, _ in vae.named_parameters()]
    return {name: each.flatten(1) for name, each in zip(names, found, strict=True)}


def of_encoder(found):
    return torch.cat([each for name, each in found.items() if name.startswith("encoder")], 1)


@pytest.mark.parametrize("kl_weight", [1.0, 0.3])
@pytest.mark.parametrize(("name", "n_samples"), [("stl", 1), ("stl", 3), ("dreg", 1), ("dreg", 5)])
def test_the_expectation_is_that_of_the_plain_gradient(model, name, n_samples, kl_weight):
    """20,000 estimates each by the same noise; of some 60 parameters none differs by five standard errors."""
    one = gradients(*model, {"name": name}, n_samples, 20_000, kl_weight)
    plain = gradients(*model, PLAIN[name], n_samples, 20_000, kl_weight)
    for key in one:
        difference = one[key] - plain[key]
        error = difference.std(0) / 20_000**0.5
        assert (difference.mean(0).abs() <= 5 * error + 1e-12).all(), key
    decoders = [key for key in one if key.startswith("decoder")]
    assert all(torch.allclose(one[key], plain[key], rtol=0, atol=1e-12) for key in decoders)  # they are the same
    assert not torch.allclose(of_encoder(one), of_encoder(plain), rtol=0, atol=1e-3)


@pytest.mark.parametrize("n_samples", [1, 5])
def test_where_the_posterior_is_exact_there_is_no_variance(oracle, n_samples):
    """∇_φ of both is 0 for every draw (Roeder et al. 2017; Tucker et al. 2018), and that of A and of IWAE is not."""
    vae, batch, _ = oracle
    for name, plain in PLAIN.items():
        assert of_encoder(gradients(vae, batch, {"name": name}, n_samples, 50)).abs().max() < 1e-12
        assert of_encoder(gradients(vae, batch, plain, n_samples, 50)).std(0).min() > 1e-2


def test_doubly_reparametrised_gradients_vary_less(model):
    """Summed over the encoder's parameters, at 10 samples by more than half."""
    dreg, iwae = (of_encoder(gradients(*model, {"name": name}, 10, 2000)).var(0).sum() for name in ("dreg", "iwae"))
    assert dreg < 0.5 * iwae


def signal_to_noise(model, name, n_samples):
    found = of_encoder(gradients(*model, {"name": name}, n_samples, 4000))
    moving = found.std(0) > 0
    return (found.mean(0)[moving].abs() / found.std(0)[moving]).mean().item()


def test_signal_drowns_in_noise_for_iwae_and_does_not_for_dreg(model):
    """|E g|/√Var g of the encoder falls as 1/√L for IWAE (Rainforth et al. 2018), and does not fall for DReG."""
    iwae, dreg = ([signal_to_noise(model, name, n) for n in (1, 10, 100)] for name in ("iwae", "dreg"))
    assert iwae[2] < 0.5 * iwae[0]
    assert dreg[2] > dreg[1] > dreg[0]


@pytest.mark.parametrize("name", PLAIN)
def test_the_value_is_that_of_the_plain_bound(model, name):
    vae, batch = model
    epsilon = draw_noise(vae, batch, 5, generator(0, "epsilon"))
    one, plain = (
        build_objective(ObjectiveConfig(**s))(vae, batch, epsilon, 0.7) for s in ({"name": name}, PLAIN[name])
    )
    torch.testing.assert_close(one.surrogate, plain.surrogate, rtol=0, atol=1e-12)
    torch.testing.assert_close(one.elbo, plain.elbo, rtol=0, atol=1e-12)
