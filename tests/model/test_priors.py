"""Priors with parts: densities that integrate to one, draws that follow them, and where their parameters start."""

import math

import pytest
import torch
from torch.autograd.functional import jacobian
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from vaecli.config.sections import ModelConfig
from vaecli.data.image_grid import ImageShape
from vaecli.errors import UsageError
from vaecli.model.priors import FlowPrior, GaussianMixture, Prior, VampPrior
from vaecli.model.vae import build_vae
from vaecli.randomness import generator

PRIORS = ("standard", "mixture", "vamp", "flow")
K, SHAPE = 4, ImageShape(1, 2, 3)


@pytest.fixture
def examples():
    """Four images of six pixels: some of 0 and 1, where a clamp has no gradient."""
    images = torch.rand(K, 6, generator=generator(0, "pixels"))
    images[:, :3] = images[:, :3].round()
    return images


def build(name: str, examples, **settings) -> Prior:
    """A prior with parts of different shares and widths, and layers of a flow that move them."""
    config = ModelConfig(prior=name, latent_dim=2, hidden_dim=5, prior_components=K, **settings)
    prior = build_vae(config, SHAPE, generator(0, "init"), None, lambda n: examples[:n]).double().prior
    mixture = prior.mixture if isinstance(prior, FlowPrior) else prior
    with torch.no_grad():
        if isinstance(mixture, GaussianMixture):
            mixture.logits.copy_(torch.arange(4.0))
            mixture.log_sigma.copy_(torch.linspace(-1.5, 0.5, 8).reshape(4, 2))
        if isinstance(prior, FlowPrior):
            for parameter in prior.transform.parameters():
                parameter.normal_(0, 0.04, generator=generator(parameter.numel(), "init"))
    return prior


@torch.no_grad()
def on_a_grid(prior: Prior) -> tuple[torch.Tensor, torch.Tensor]:
    """Points with a spacing of 0.08 from -20 to 20, far beyond the narrowest and the widest part, and their masses."""
    side = torch.linspace(-20, 20, 501, dtype=torch.float64)
    z = torch.cartesian_prod(side, side)
    return z, torch.cat([prior.log_prob(part) for part in z.split(50_000)]).exp() * 0.08**2


def moments(prior: Prior) -> tuple[torch.Tensor, torch.Tensor]:
    """The mean and the variance of each dimension, by the masses of a grid."""
    z, mass = on_a_grid(prior)
    mean = mass @ z
    return mean, mass @ (z - mean).square()


@pytest.mark.parametrize("name", PRIORS)
def test_the_density_integrates_to_one_and_has_the_variance_that_is_said(name, examples):
    """By a grid; that of a flow is of 4,096 draws, and right to some four standard errors of √(2/4096)."""
    prior = build(name, examples)
    assert on_a_grid(prior)[1].sum().item() == pytest.approx(1, abs=1e-6)
    error = (prior.variance / moments(prior)[1] - 1).abs().max()
    assert error < (0.09 if name == "flow" else 1e-5)


def test_a_mixture_is_that_of_torch(examples):
    prior = build("mixture", examples)
    parts = Independent(Normal(prior.mean, prior.log_sigma.exp()), 1)
    other = MixtureSameFamily(Categorical(logits=prior.logits), parts)
    z = torch.randn(3, 7, 2, dtype=torch.float64)
    assert (prior.log_prob(z) - other.log_prob(z)).abs().max() < 1e-12


def test_vamp_is_the_mean_of_the_encoders_posteriors(examples):
    config = ModelConfig(prior="vamp", latent_dim=2, hidden_dim=5, prior_components=K)
    vae = build_vae(config, SHAPE, generator(0, "init"), None, lambda n: examples[:n]).double()
    z = torch.randn(7, 2, dtype=torch.float64)
    each = torch.stack([vae.encoder(u).log_prob(z) for u in examples.double()])
    assert (vae.prior.log_prob(z) - (each.logsumexp(0) - math.log(K))).abs().max() < 1e-6  # images are of float32
    assert [name for name in vae.state_dict() if name.startswith("prior")] == ["prior.pseudo_inputs"]


@pytest.mark.parametrize("name", ["mixture", "vamp", "flow"])
def test_draws_and_quantiles_follow_the_density(name, examples):
    """Means and variances to five standard errors; cells of the unit square to 2 % of the prior's mass."""
    prior = build(name, examples)
    z = prior.draw(100_000, torch.zeros((), dtype=torch.float64), generator(0, "samples"))
    assert z.dtype == torch.float64
    mean, variance = moments(prior)
    assert ((z.mean(0) - mean).abs() < 5 * (variance / 100_000).sqrt()).all()
    assert (z.var(0) / variance - 1).abs().max() < 0.05
    quarter = prior.quantile(torch.tensor([[0.25, 0.5]], dtype=torch.float64))[0]
    assert (z[:, 0] < quarter[0]).double().mean().item() == pytest.approx(0.25, abs=0.02)
    near = z[(z[:, 0] - quarter[0]).abs() < 0.05]
    assert (near[:, 1] < quarter[1]).double().mean().item() == pytest.approx(0.5, abs=0.06)


def test_the_density_under_a_flow_is_that_of_its_change_of_variables(examples):
    """log p(z) = log p_K(y) + log |∂y/∂z|, the Jacobian by automatic differentiation; a draw of y leads back to z."""
    prior = build("flow", examples)
    assert isinstance(prior, FlowPrior)
    z = prior.draw(5, torch.zeros((), dtype=torch.float64), generator(0, "samples"))
    y = prior.mixture.draw(5, torch.zeros((), dtype=torch.float64), generator(0, "samples"))
    torch.testing.assert_close(prior.transform()(z), y, rtol=0, atol=1e-9)
    assert (y - z).abs().min() > 1e-3
    volume = torch.stack([torch.linalg.slogdet(jacobian(prior.transform(), one)).logabsdet for one in z])
    torch.testing.assert_close(prior.log_prob(z), prior.mixture.log_prob(y) + volume, rtol=0, atol=1e-9)


def test_a_flow_starts_as_its_mixture():
    config = ModelConfig(prior="flow", latent_dim=5, hidden_dim=5, prior_components=K)
    prior = build_vae(config, SHAPE, generator(0, "init")).prior
    assert isinstance(prior, FlowPrior)
    z = torch.randn(7, 5)
    torch.testing.assert_close(prior.log_prob(z), prior.mixture.log_prob(z), rtol=0, atol=1e-5)
    assert prior.transform.transforms[0].hyper[0].weight.std() > 0.1  # U(-1/√5, 1/√5) has 0.26


def test_pseudo_inputs_start_from_images_stay_in_the_unit_interval_and_move(examples):
    """At 0 and 1 a gradient passes where it leads inside, and beyond where it leads back."""
    prior = build("vamp", examples)
    assert torch.equal(prior.pseudo_inputs.detach(), examples.double())
    inside = prior.log_prob(torch.zeros(2, dtype=torch.float64))
    (slope,) = torch.autograd.grad(inside, prior.pseudo_inputs)
    assert (slope != 0).any()
    with torch.no_grad():
        prior.pseudo_inputs[:] = torch.where(examples > 0.5, 5.0, -5.0)
        beyond = prior.log_prob(torch.zeros(2, dtype=torch.float64))
        prior.pseudo_inputs.clamp_(0, 1)
        assert beyond == prior.log_prob(torch.zeros(2, dtype=torch.float64))


def test_as_many_images_as_pseudo_inputs_are_needed(examples):
    with pytest.raises(UsageError, match=r"model.prior_components: is 4, .* are 3: make it 3 or less"):
        build("vamp", examples[:3])


def test_a_mixture_does_not_start_in_one_place(examples):
    config = ModelConfig(prior="mixture", latent_dim=2, hidden_dim=5, prior_components=K)
    one, other = (build_vae(config, SHAPE, generator(seed, "init")).prior for seed in (0, 1))
    assert isinstance(one, GaussianMixture)
    assert len(one.mean.unique(dim=0)) == K
    assert not torch.equal(one.mean, other.mean)


def test_a_vamp_prior_follows_the_encoder_it_is_made_of(examples):
    config = ModelConfig(prior="vamp", latent_dim=2, hidden_dim=5, prior_components=K)
    vae = build_vae(config, SHAPE, generator(0, "init"), None, lambda n: examples[:n])
    assert isinstance(vae.prior, VampPrior)
    before = vae.prior.log_prob(torch.zeros(2))
    with torch.no_grad():
        vae.encoder.network[-1].bias += 1
    assert vae.prior.log_prob(torch.zeros(2)) != before
    vae.prior.log_prob(torch.zeros(2)).backward()
    assert all(parameter.grad is not None for parameter in vae.encoder.parameters())
