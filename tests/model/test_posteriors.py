"""Posteriors against numerical Jacobians, other implementations, and a model whose posterior is known, in float64."""

import math

import pytest
import torch
import zuko
from torch.autograd.functional import jacobian
from torch.distributions import MultivariateNormal, Normal

from vaecli.config.sections import ModelConfig
from vaecli.data.image_grid import ImageShape
from vaecli.data.preprocess import Batch
from vaecli.model.bound import best_diagonal, elbo_of
from vaecli.model.conditionals import Described
from vaecli.model.distributions import DiagonalNormal
from vaecli.model.objectives import log_weights
from vaecli.model.posteriors import FullCovariance, FullNormal, TransformedNormal
from vaecli.model.priors import StandardNormal
from vaecli.model.vae import VAE, build_meta_vae, build_vae, kl_per_dimension
from vaecli.randomness import generator

POSTERIORS = ("diagonal", "full", "flow", "iaf")
FLOWS = ("flow", "iaf")
SHAPE, B = ImageShape(1, 2, 3), 4


def posterior(name, latent_dim=3, batch=B):
    """The posteriors of some images by an encoder of weights that are far from their start."""
    config = ModelConfig(posterior=name, latent_dim=latent_dim, hidden_dim=7)
    vae = build_vae(config, SHAPE, generator(0, "init")).double()
    spread = 0.08 if name == "iaf" else 0.2  # its layers are wider
    with torch.no_grad():
        for parameter in vae.encoder.parameters():
            parameter.normal_(0, spread, generator=generator(parameter.numel(), "init"))
    return vae.encoder(torch.rand(batch, 6, dtype=torch.float64))


@pytest.mark.parametrize(
    ("name", "latent_dim"), [(name, dim) for name in POSTERIORS for dim in (1, 2, 5) if dim > 1 or name not in FLOWS]
)
def test_the_density_is_that_of_the_transport(name, latent_dim):
    """log q(z) = log N(ε) - log |∂z/∂ε|, the Jacobian taken by automatic differentiation of z; so it is at given z."""
    q = posterior(name, latent_dim)
    epsilon = torch.randn(2, B, latent_dim, dtype=torch.float64)
    z, log_q = q.transport(epsilon)
    of_noise = Normal(0, 1).log_prob(epsilon).sum(-1)
    whole = jacobian(lambda e: q.transport(e).z, epsilon)
    for s in range(2):
        for b in range(B):
            log_volume = torch.linalg.slogdet(whole[s, b, :, s, b]).logabsdet
            assert log_q()[s, b].item() == pytest.approx((of_noise[s, b] - log_volume).item(), abs=1e-8)
    torch.testing.assert_close(q.log_prob(z), log_q(), rtol=0, atol=1e-8)


@torch.no_grad()
@pytest.mark.parametrize("name", POSTERIORS)
def test_the_density_integrates_to_one_with_the_moments_that_are_said(name):
    """On a grid of 400 by 400 within 20 deviations; those of a flow, by draws, are good to 0.2 deviations."""
    q = posterior(name, 2, batch=1)
    mean, stddev = q.mean[0], q.stddev[0]
    side = torch.linspace(-20, 20, 401, dtype=torch.float64)
    z = mean + stddev * torch.cartesian_prod(side, side)
    mass = q.log_prob(z[:, None])[:, 0].exp() * stddev.prod() * (40 / 400) ** 2
    assert mass.sum().item() == pytest.approx(1, abs=1e-4)
    tolerance = 0.2 if name in FLOWS else 1e-4
    assert ((mass @ z - mean).abs() < tolerance * stddev).all()
    assert ((mass @ (z - mean).square()).sqrt() / stddev - 1).abs().max() < tolerance


def test_the_mean_of_a_flow_that_is_odd_in_its_noise_is_exact():
    """Of z = μ + σ ε it is μ: the draws ±ε of the mean cancel, where independent ones leave some σ/4."""
    mean, log_sigma = torch.randn(2, B, 3, dtype=torch.float64)
    q = TransformedNormal(mean, log_sigma, zuko.transforms.IdentityTransform())
    torch.testing.assert_close(q.mean, mean, rtol=0, atol=1e-12)
    assert (q.stddev / log_sigma.exp() - 1).abs().max() < 0.25  # four times the error of 128 draws


def test_full_covariance_is_that_of_torch():
    """Density, deviations and KL(q ‖ N(0, I)) of `MultivariateNormal`."""
    q = posterior("full")
    assert isinstance(q, FullNormal)
    eye = torch.eye(3, dtype=torch.float64)
    scale_tril = torch.stack([q.transport(e.expand(B, 3)).z - q.mean for e in eye], -1)
    other = MultivariateNormal(q.mean, scale_tril=scale_tril)
    z = torch.randn(5, B, 3, dtype=torch.float64)
    torch.testing.assert_close(q.log_prob(z), other.log_prob(z), rtol=0, atol=1e-10)
    torch.testing.assert_close(q.stddev, other.stddev, rtol=0, atol=1e-12)
    kl = torch.distributions.kl_divergence(other, MultivariateNormal(torch.zeros_like(q.mean), eye))
    found = kl_per_dimension(q, StandardNormal(3))
    torch.testing.assert_close(found.sum(-1), kl, rtol=0, atol=1e-10)
    assert (found >= 0).all()


def test_an_autoregressive_flow_starts_as_the_diagonal_gaussian_below_it():
    """As z = μ + σ ⊙ ε, for any image: with noise of 0 and of ones it is μ and μ + σ, and in between on the line."""
    vae = build_vae(ModelConfig(posterior="iaf", latent_dim=3, hidden_dim=7), SHAPE, generator(0, "init")).double()
    q = vae.encoder(torch.rand(B, 6, dtype=torch.float64))
    epsilon = torch.randn(B, 3, dtype=torch.float64)
    mean = q.transport(torch.zeros_like(epsilon)).z
    sigma = q.transport(torch.ones_like(epsilon)).z - mean
    torch.testing.assert_close(q.transport(epsilon).z, mean + sigma * epsilon, rtol=0, atol=1e-12)
    torch.testing.assert_close(q.mean, mean, rtol=0, atol=1e-12)


def test_an_autoregressive_flow_makes_each_dimension_of_all_others():
    """Layers whose order alternates let each z_i depend on every ε_j."""
    q = posterior("iaf", 5, batch=1)
    whole = jacobian(lambda e: q.transport(e).z, torch.randn(1, 5, dtype=torch.float64))[0, :, 0]
    assert (whole.abs() > 1e-6).all()


@pytest.mark.parametrize("name", FLOWS)
def test_a_flow_is_no_gaussian_and_has_no_closed_kl(name):
    q = posterior(name, 2, batch=1)
    assert isinstance(q, TransformedNormal)
    assert kl_per_dimension(q, StandardNormal(2)) is None
    z = q.transport(torch.randn(100_000, 1, 2, dtype=torch.float64)).z[:, 0]
    skewness = ((z - z.mean(0)) / z.std(0)).pow(3).mean(0)
    assert skewness.abs().max() > 0.1  # five standard errors of a Gaussian's are 0.04


@pytest.mark.parametrize("name", POSTERIORS)
def test_building_draws_from_the_given_generator_alone_and_knows_shapes_without_memory(name):
    config = ModelConfig(posterior=name, latent_dim=3, hidden_dim=7)
    state = torch.get_rng_state()
    one, other = (build_vae(config, SHAPE, generator(0, "init")).state_dict() for _ in range(2))
    shapes = build_meta_vae(config, SHAPE).state_dict()
    assert torch.equal(torch.get_rng_state(), state)
    assert all(tensor.is_meta for tensor in shapes.values())
    assert {name: (t.shape, t.dtype) for name, t in shapes.items()} == {n: (t.shape, t.dtype) for n, t in one.items()}
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


D, Z, SIGMA = 6, 3, 0.7


@pytest.fixture
def correlated(oracle):
    """p(x|z) = N(Wz + b, σ²I) where W's columns are far from orthogonal, its posterior N(m(x), Λ⁻¹), and log p(x)."""
    vae, batch, _ = oracle
    rng = torch.Generator().manual_seed(1)
    w = torch.randn(D, Z, generator=rng, dtype=torch.float64)
    w[:, 1] = w[:, 0] + 0.3 * w[:, 1]
    with torch.no_grad():
        vae.decoder.matrix.copy_(w)
    b = vae.decoder.bias
    precision = torch.eye(Z, dtype=torch.float64) + w.T @ w / SIGMA**2
    evidence = MultivariateNormal(b, w @ w.T + SIGMA**2 * torch.eye(D, dtype=torch.float64)).log_prob(batch.target)
    mean = (batch.input - b) @ w @ torch.linalg.inv(precision) / SIGMA**2
    return vae, batch, precision, mean, evidence


def test_full_covariance_leaves_no_gap_where_the_posterior_is_correlated(correlated):
    """Trained by L-BFGS on the ELBO in closed form, an encoder of full covariance finds the exact posterior."""
    vae, batch, _, _, evidence = correlated
    network = torch.nn.Linear(D, FullCovariance.n_outputs(Z), dtype=torch.float64)
    described = Described(network, FullCovariance(Z))
    model = VAE(described, vae.decoder, vae.prior)
    half = torch.eye(Z, dtype=torch.float64)[:, None].expand(Z, B, Z) * math.sqrt(Z)
    noise = torch.cat((half, -half))  # of mean 0 and covariance I, as the ELBO of a linear model needs it
    optimizer = torch.optim.LBFGS(
        network.parameters(), max_iter=2000, tolerance_grad=1e-9, line_search_fn="strong_wolfe"
    )

    def loss():
        optimizer.zero_grad()
        value = -elbo_of(model, batch, described(batch.input), noise).mean()
        value.backward()
        return value

    optimizer.step(loss)
    gap = evidence - elbo_of(model, batch, described(batch.input), noise)
    assert gap.abs().max() < 1e-6
    weights = log_weights(model, batch, 20, generator(0, "epsilon"))
    assert (weights - evidence).abs().max() < 1e-2  # every weight is the evidence


def test_a_diagonal_posterior_loses_what_the_correlation_costs(correlated):
    """The best diagonal Gaussian has precisions Λ_ii: it loses ½ (Σ log Λ_ii - log |Λ|), whatever the encoder."""
    vae, batch, precision, mean, evidence = correlated
    loss = 0.5 * (precision.diagonal().log().sum() - torch.logdet(precision)).item()
    assert loss > 0.5
    best = DiagonalNormal(mean, -0.5 * precision.diagonal().log().expand_as(mean))
    half = torch.eye(Z, dtype=torch.float64)[:, None].expand(Z, B, Z) * math.sqrt(Z)
    noise = torch.cat((half, -half))
    assert (evidence - elbo_of(vae, batch, best, noise) - loss).abs().max() < 1e-10
    fitted = best_diagonal(vae, Batch(batch.input, batch.target), generator(0, "pilots"))
    assert (evidence - elbo_of(vae, batch, fitted, noise)).min() > loss - 1e-10
