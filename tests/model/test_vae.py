"""The prior as a module, and what a VAE does with it."""

from typing import final

import pytest
import torch
from torch.distributions import Normal

from vaecli.config.likelihoods import Support
from vaecli.config.sections import DataConfig, ModelConfig
from vaecli.data.image_grid import ImageShape
from vaecli.data.preprocess import build_preprocess
from vaecli.model.bound import evaluate_bound
from vaecli.model.estimators import expected_terms, importance_weighted
from vaecli.model.joint import LogJoint
from vaecli.model.objectives import draw, draw_noise
from vaecli.model.priors import Prior, StandardNormal
from vaecli.model.proposals import encoder_proposal
from vaecli.model.vae import VAE, build_vae, kl_per_dimension
from vaecli.randomness import generator


@final
class Shifted(Prior):
    """Represent N(1, I), a prior that no closed form of the KL is registered for."""

    def log_prob(self, z):
        return Normal(torch.ones_like(z), 1).log_prob(z).sum(-1)

    def draw(self, n, like, generator):
        return 1 + torch.randn(n, self.latent_dim, generator=generator, dtype=like.dtype)


def test_the_standard_normal():
    prior, z = StandardNormal(3), torch.randn(7, 3, dtype=torch.float64)
    assert (prior.log_prob(z) - Normal(0, 1).log_prob(z).sum(-1)).abs().max() < 1e-12
    u = torch.rand(7, 3, dtype=torch.float64)
    assert (Normal(0, 1).cdf(prior.quantile(u)) - u).abs().max() < 1e-12
    drawn = prior.draw(100_000, z, generator(0, "samples"))
    assert drawn.dtype == torch.float64
    assert drawn.mean(0).abs().max() < 0.02  # five standard errors are 0.016
    assert (drawn.var(0) - 1).abs().max() < 0.03
    assert not StandardNormal(3).state_dict()  # nothing to save


@pytest.fixture
def batch(images):
    preprocess = build_preprocess(Support.BINARY, DataConfig(binarize="threshold"))
    return preprocess(torch.from_numpy(images).flatten(1), generator(0, "pixels"))


@pytest.fixture
def shifted():
    vae = build_vae(ModelConfig(latent_dim=3, hidden_dim=8), ImageShape(1, 6, 5), generator(0, "init"))
    return VAE(vae.encoder, vae.decoder, Shifted(3))


def test_without_a_closed_form_the_kl_is_estimated_by_the_same_draws(shifted, batch):
    """KL(N(μ, σ²) ‖ N(1, 1)) = ½ Σ (σ² + (μ - 1)² - 1 - log σ²), for comparison."""
    draws = draw(shifted, batch, draw_noise(shifted, batch, 20_000, generator(0, "epsilon")))
    q = draws.posterior
    assert kl_per_dimension(q, shifted.prior) is None
    exact = 0.5 * (q.variance + (q.mean - 1).square() - 1 - q.variance.log()).sum(-1)
    error = 5 * draws.log_density_ratio.std(0) / 20_000**0.5
    assert ((draws.kl - exact).abs() < error).all()
    assert torch.equal(draws.elbo.kl, draws.kl)


def test_bounds_and_evidence_work_with_a_prior_of_ones_own(shifted, batch, images):
    pixels = torch.from_numpy(images).flatten(1)
    preprocess = build_preprocess(Support.BINARY, DataConfig(binarize="threshold"))
    bound = evaluate_bound(shifted, pixels, preprocess, 0)
    assert bound.kl_per_dimension is None
    terms = expected_terms(shifted, batch, 500, generator(0, "importance"), 10_000)
    assert bound.kl == pytest.approx(terms.kl.mean().item(), rel=0.1)  # about 1.5 nats, by one draw and by 500
    log_joint = LogJoint(shifted, batch.target, 10_000)
    weighted = importance_weighted(log_joint, encoder_proposal(shifted, batch), 500, generator(0, "importance"))
    # Jensen: the elbo of the same draws stays below the importance-weighted bound
    assert (terms.value <= weighted.log_evidence[-1, 0] + 1e-5).all()
    assert shifted.sample(4, generator(0, "samples")).shape == (4, 30)


def test_what_a_prior_does_not_know_is_taken_from_its_draws():
    """N(1, I): the variance is 1, and the quantiles are Φ⁻¹(u) + 1, of z_2 whatever z_1 is."""
    prior = Shifted(2)
    assert (prior.variance - 1).abs().max() < 0.02  # five standard errors of 262,144 draws are 0.014
    u = torch.tensor([[0.1, 0.9], [0.5, 0.5], [0.975, 0.2]], dtype=torch.float64)
    expected = 1 + torch.special.ndtri(u)
    assert (prior.quantile(u) - expected).abs().max() < 0.15  # five standard errors of a decile of 1,024 are 0.09
    with pytest.raises(ValueError, match="not of 3"):
        Shifted(3).quantile(torch.rand(4, 2))
