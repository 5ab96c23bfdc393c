"""Fitted proposals and annealing against exact answers: quadrature over z, and the linear-Gaussian oracle."""

import math

import pytest
import torch
from torch import nn

from vaecli.config.likelihoods import LIKELIHOODS, Support
from vaecli.config.sections import ModelConfig
from vaecli.data.image_grid import ImageShape
from vaecli.data.preprocess import Batch
from vaecli.evaluation.binarised import BinarisedDecoder
from vaecli.model.annealing import Path, from_above, from_below, start_at_fitted, start_at_prior, target_of
from vaecli.model.estimators import importance_weighted
from vaecli.model.joint import LogJoint
from vaecli.model.laplace import find_modes
from vaecli.model.proposals import fit_proposal
from vaecli.model.vae import VAE, build_vae
from vaecli.randomness import generator

SHAPE = ImageShape(1, 3, 4)
N = 5


def untrained(decoder: str, latent_dim: int, activation="relu", scale=4.0) -> tuple[VAE, Batch]:
    """A model whose decoder depends strongly on z, in float64, and images drawn from it."""
    config = ModelConfig(decoder=decoder, latent_dim=latent_dim, hidden_dim=(16,), activation=activation)
    vae = build_vae(config, SHAPE, generator(3, "init")).double().requires_grad_(requires_grad=False)
    with torch.no_grad():
        for layer in vae.decoder.network:
            if isinstance(layer, nn.Linear):
                layer.weight *= scale
        if decoder == "sigma-gaussian":
            vae.decoder.log_sigma.fill_(-1.5)
    rng = generator(0, "samples")
    x = vae.sample(N, rng, draw=True)
    if LIKELIHOODS[decoder].support is Support.UNIT_INTERVAL:
        x = x.clamp(0, 0.999)
    return vae, Batch(x, x)


def quadrature(vae: VAE, batch: Batch, points: int, reach: float = 9.0) -> torch.Tensor:
    """log ∫ p(x|z) p(z) dz by the trapezoidal rule, which converges faster than any power for smooth integrands."""
    axis = torch.linspace(-reach, reach, points, dtype=torch.float64)
    z = torch.stack(torch.meshgrid(*[axis] * vae.latent_dim, indexing="ij"), -1).reshape(-1, vae.latent_dim)
    joint = LogJoint(vae, batch.target, 20_000)
    total = torch.full((N,), -math.inf, dtype=torch.float64)
    for part in z.split(20_000):
        total = torch.logaddexp(total, joint.of_scores(part[:, None].expand(-1, N, -1))[0].logsumexp(0))
    return total + vae.latent_dim * math.log(2 * reach / (points - 1))


def estimate(vae: VAE, batch: Batch, k: int = 4000, proposal=None):
    log_joint = LogJoint(vae, batch.target, 20_000)
    proposal = proposal or fit_proposal(vae, batch, log_joint, generator(0, "pilots"))
    return importance_weighted(log_joint, proposal, k, generator(0, "importance"))


def assert_agrees(found, exact, k: int = 4000) -> None:
    """Within five Monte-Carlo errors of each image, log mean w having the variance 1/ESS - 1/k."""
    error = (1 / found.effective_sample_size[0] - 1 / k).clamp(min=1e-12).sqrt()
    assert ((found.log_evidence[-1, 0] - exact).abs() < 5 * error).all()


@pytest.mark.parametrize("decoder", LIKELIHOODS)
@pytest.mark.parametrize("latent_dim", [1, 2])
def test_the_evidence_is_that_of_quadrature_for_every_decoder(decoder, latent_dim):
    # a network of tanh, since the trapezoidal rule is exact to 10 digits for smooth integrands only
    scale = 4.0 if latent_dim == 1 else 1.0 if decoder == "discretized-logistic" else 2.0  # for the grid below
    vae, batch = untrained(decoder, latent_dim, activation="tanh", scale=scale)
    points = 20_001 if latent_dim == 1 else 901
    exact = quadrature(vae, batch, points)
    assert torch.allclose(exact, quadrature(vae, batch, points + points // 4), rtol=1e-10)
    found = estimate(vae, batch)
    assert_agrees(found, exact)
    assert found.effective_sample_size.median() > 400  # a tenth


@pytest.mark.parametrize(
    "decoder", [name for name, entry in LIKELIHOODS.items() if entry.support is not Support.BINARY]
)
def test_the_evidence_of_binary_images_is_that_of_quadrature(decoder):
    vae, batch = untrained(decoder, 1, activation="tanh")
    model = VAE(vae.encoder, BinarisedDecoder(vae.decoder, dequantized=True), vae.prior)
    b = Batch(batch.input, (batch.input > 0.5).double())
    assert_agrees(estimate(model, b), quadrature(model, b, 20_001))


def test_modes_on_both_sides_are_found():
    """p(x|z) depends on z² alone, so that the posterior has two modes; one alone is half the evidence."""

    class Square(nn.Module):
        def forward(self, z):
            return 8 * (z.square() - 4).expand(*z.shape[:-1], SHAPE.n_pixels)

    vae, batch = untrained("bernoulli", 1)
    vae.decoder.network = Square()
    x = torch.ones_like(batch.target)
    x[:, ::2] = 0  # so that z² = 4 is likeliest
    batch = Batch(batch.input, x)
    assert_agrees(estimate(vae, batch), quadrature(vae, batch, 20_001))


def test_the_exact_posterior_is_found_where_it_is_gaussian(oracle):
    vae, batch, evidence = oracle
    modes = find_modes(vae, batch.target, torch.zeros(4, 3, dtype=torch.float64))
    posterior = vae.encoder(batch.input)
    assert torch.allclose(modes.z, posterior.mean, atol=1e-9)
    assert torch.allclose(modes.scale_tril, torch.diag_embed(posterior.stddev), atol=1e-9)
    assert torch.allclose(modes.log_evidence, evidence, atol=1e-9)  # Laplace's approximation is exact
    found = estimate(vae, batch, k=500)
    assert (found.effective_sample_size > 250).all()
    assert_agrees(found, evidence, 500)


@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_a_mode_is_a_maximum_with_the_curvature_of_gauss_and_newton(activation):
    """For a Bernoulli, I + JᵀΛJ with J the Jacobian of the logits by autograd, and Λ = diag p(1 - p)."""
    vae, batch = untrained("bernoulli", 3, activation=activation, scale=1.5)
    modes = find_modes(vae, batch.target, torch.zeros(N, 3, dtype=torch.float64))
    curvatures = torch.linalg.inv(modes.scale_tril @ modes.scale_tril.mT)
    for z, curvature in zip(modes.z, curvatures, strict=True):
        jacobian = torch.autograd.functional.jacobian(vae.decoder.network, z)
        p = vae.decoder(z).mean
        assert torch.allclose(curvature, torch.eye(3) + jacobian.T @ torch.diag(p * (1 - p)) @ jacobian, rtol=1e-6)
    nearby = modes.z + 0.2 * torch.randn(500, N, 3, dtype=torch.float64)
    joint = LogJoint(vae, batch.target, 5000)
    assert torch.allclose(joint.of_scores(modes.z[None])[0, 0], modes.log_joint)
    assert (
        joint.of_scores(nearby)[0] < modes.log_joint + 0.1
    ).all()  # 0.01 nats are left to gain, if it were quadratic


def test_the_density_of_a_fitted_proposal_integrates_to_one():
    vae, batch = untrained("bernoulli", 1)
    mixture = fit_proposal(vae, batch, LogJoint(vae, batch.target, 1000), generator(0, "pilots"))
    axis = torch.linspace(-12, 12, 40_001, dtype=torch.float64)
    density = mixture.log_prob(axis[:, None, None].expand(-1, N, 1)).exp()
    assert torch.allclose(torch.trapezoid(density, axis, dim=0), torch.ones(N, dtype=torch.float64), atol=1e-6)
    z, log_q = mixture.draw(1000, generator(0, "importance"))
    assert torch.equal(log_q, mixture.log_prob(z))


def test_the_first_samples_of_a_mixture_are_as_good_as_any():
    """Each of the first 10 samples comes from every part with its share: the by-k bound is not of one part alone."""
    vae, batch = untrained("bernoulli", 1)
    mixture = fit_proposal(vae, batch, LogJoint(vae, batch.target, 1000), generator(0, "pilots"))
    firsts, means = [], []
    for seed in range(300):
        z, _ = mixture.draw(50, generator(seed, "importance"))
        firsts.append(z[0])
        means.append(z.mean(0))
    first, mean = torch.stack(firsts), torch.stack(means)
    error = 5 * first.std(0) / math.sqrt(300)
    assert ((first.mean(0) - mean.mean(0)).abs() < error).all()


@pytest.mark.parametrize("start", ["prior", "fitted"])
def test_annealing_brackets_the_exact_evidence(start):
    """On images that the model drew with a known z: from below and above, within the error of the chains."""
    vae, _ = untrained("bernoulli", 2, activation="tanh")
    rng = generator(1, "samples")
    z = vae.prior.draw(N, next(vae.parameters()), rng)
    x = vae.decoder(z).draw(rng)
    batch = Batch(x, x)
    exact = quadrature(vae, batch, 601)
    log_joint = LogJoint(vae, x, 5000)
    fitted = fit_proposal(vae, batch, log_joint, generator(0, "pilots"))
    target = target_of(log_joint, fitted)
    path = Path(start_at_prior(target) if start == "prior" else start_at_fitted(target, fitted), target, 40)
    noise, steps = generator(0, "annealing"), []
    sizes = path.tune(noise, steps.append)
    below = from_below(*path.forward(100, sizes, noise, steps.append))
    above = from_above(*path.backward(z, 100, sizes, noise, steps.append))
    assert sum(steps) == 3 * 40
    assert ((below.acceptance > 0.4) & (below.acceptance < 0.95)).all()
    for found, sign in ((below, 1), (above, -1)):
        error = 5 * (1 / found.effective_chains - 1 / 100).clamp(min=1e-4).sqrt()
        assert (sign * (found.log_evidence - exact) < error).all()
        assert (found.log_evidence - exact).abs().max() < 0.5
    assert (above.log_evidence - below.log_evidence).mean() > -0.1


def test_a_hamiltonian_transition_leaves_its_target_invariant(oracle):
    """Chains begun in the exact posterior stay in it: mean and covariance after 30 transitions at β = 1."""
    vae, batch, _ = oracle
    posterior = vae.encoder(batch.input)
    fitted = fit_proposal(vae, batch, LogJoint(vae, batch.target, 100_000), generator(0, "pilots"))
    target = target_of(LogJoint(vae, batch.target, 100_000), fitted)
    path = Path(start_at_fitted(target, fitted), target, 30)
    rng = generator(0, "annealing")
    z = posterior.transport(torch.randn(4000, 4, 3, generator=rng, dtype=torch.float64)).z
    moved = path.sample(z, 30, torch.full((4,), 0.7, dtype=torch.float64), rng)
    assert (moved - z).abs().mean() > 0.5 * posterior.stddev.mean()  # it did move
    assert ((moved.mean(0) - posterior.mean).abs() < 5 * posterior.stddev / math.sqrt(4000)).all()
    assert torch.allclose(moved.std(0), posterior.stddev, rtol=0.06)
