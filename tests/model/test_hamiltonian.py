"""Hamiltonian transitions leave a density as it is: moments of Gaussians, and ranks of a model's own draws."""

import math

import pytest
import torch
from torch.distributions import MultivariateNormal

from conftest import SIGMA, D, Z
from vaecli.model.hamiltonian import Point, differentiate, euclidean, transition
from vaecli.randomness import generator

COVARIANCE = torch.tensor([[1.0, 0.6, 0.0], [0.6, 0.5, -0.1], [0.0, -0.1, 0.2]], dtype=torch.float64)
MEAN = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)


def follow(log_density, z, n, size, noise):
    """Return where n transitions lead, and the mean probability of acceptance."""
    dynamics, total = euclidean(lambda at: Point(at, *differentiate(log_density, at))), 0.0
    point = dynamics.at(z)
    for _ in range(n):
        point, accepted = transition(point, dynamics, torch.tensor(size, dtype=z.dtype), noise)
        total += accepted.mean().item()
    return point, total / n


@pytest.mark.parametrize("size", [0.1, 0.25])
def test_many_chains_reach_a_gaussian_from_elsewhere(size):
    """Mean and covariance of 20,000 independent chains, to five standard errors of a Gaussian's, from z = 0."""
    n, target = 20_000, MultivariateNormal(MEAN, COVARIANCE)
    point, accepted = follow(target.log_prob, torch.zeros(n, 3, dtype=torch.float64), 40, size, generator(0, "chains"))
    assert accepted < 0.999  # steps are of a size that makes errors, which acceptance mends
    variance = COVARIANCE.diagonal()
    assert ((point.z.mean(0) - MEAN).abs() < 5 * (variance / n).sqrt()).all()
    error = ((variance[:, None] * variance + COVARIANCE.square()) / n).sqrt()
    assert ((point.z.T.cov() - COVARIANCE).abs() < 5 * error).all()
    torch.testing.assert_close(point.log_density, target.log_prob(point.z))
    torch.testing.assert_close(point.slope, -(point.z - MEAN) @ COVARIANCE.inverse())


def test_chains_from_the_density_stay_in_it_however_coarse_the_steps():
    """Where half of the proposals are rejected."""
    n, target, noise = 20_000, MultivariateNormal(MEAN, COVARIANCE), generator(0, "chains")
    white = torch.randn(n, 3, generator=noise, dtype=torch.float64)
    point, accepted = follow(target.log_prob, MEAN + white @ torch.linalg.cholesky(COVARIANCE).T, 5, 0.42, noise)
    assert 0.2 < accepted < 0.8
    error = ((COVARIANCE.diagonal()[:, None] * COVARIANCE.diagonal() + COVARIANCE.square()) / n).sqrt()
    assert ((point.z.T.cov() - COVARIANCE).abs() < 5 * error).all()


def test_the_posterior_ranks_its_own_draws_uniformly(oracle):
    """Simulation-based calibration (Talts et al. 2018): z ~ p(z), x ~ p(x|z); the rank of z among 19 draws from p(z|x).

    Ranks over 4,000 images are uniform on 0..19 for every latent dimension and for log p(x, z): Pearson's χ² with 19
    degrees of freedom stays below 50.8, its 99.99 % quantile. Chains begin at the prior; draws are 8 transitions apart.
    """
    vae, _, _ = oracle
    n, noise = 4000, generator(0, "chains")
    with torch.no_grad():
        z = vae.prior.draw(n, vae.decoder.matrix, noise)
        x = z @ vae.decoder.matrix.T + vae.decoder.bias
        x = x + SIGMA * torch.randn(n, D, generator=noise, dtype=torch.float64)

    def log_joint(at):
        return vae.decoder(at).log_prob(x) + vae.prior.log_prob(at)

    begin, rank = vae.prior.draw(n, z, noise), torch.zeros(n, Z + 1)
    own = torch.cat([z, log_joint(z).detach()[:, None]], 1)
    for i in range(19):
        point, _ = follow(log_joint, begin, 20 if i == 0 else 8, 0.2, noise)
        begin = point.z
        rank += torch.cat([point.z, point.log_density[:, None]], 1) < own
    for ranks in rank.long().T:
        counts = ranks.bincount(minlength=20)
        assert ((counts - n / 20).square() / (n / 20)).sum() < 50.8


def test_where_the_density_is_not_finite_nothing_is_accepted():
    def log_density(z):
        return torch.where(z[:, 0].abs() < 1, -0.5 * z.square().sum(-1), math.nan)

    z = torch.zeros(2000, 2, dtype=torch.float64)
    point, _ = follow(log_density, z, 10, 0.3, generator(0, "chains"))
    assert point.log_density.isfinite().all()
    assert (point.z[:, 0].abs() < 1).all()
    assert point.z[:, 0].std() > 0.3
