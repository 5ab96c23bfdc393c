"""Gradients of the learning algorithms in closed form, on the linear model of `oracle`, in float64."""

import pytest
import torch

from conftest import SIGMA
from vaecli.config.sections import ModelConfig, ObjectiveConfig
from vaecli.data.image_grid import ImageShape
from vaecli.data.preprocess import Batch, scale
from vaecli.model.algorithms import Aevb, MonteCarloEm, WakeSleep, evaluate_log_joint
from vaecli.model.hamiltonian import Point, euclidean, transition
from vaecli.model.objectives import Streams, draw_noise
from vaecli.model.vae import build_vae
from vaecli.randomness import generator

S = 2
EVERY = torch.arange(4)
"""The images of `oracle`, by their numbers."""


def streams(seed=0) -> Streams:
    return Streams(generator(seed, "epsilon"), generator(seed, "pixels"))


def drawn(algorithm, vae, batch, noise, n_samples=S, rows=EVERY):
    epsilon = draw_noise(vae, batch, n_samples, noise.epsilon)
    return *batch, epsilon, *algorithm.draw(vae, batch, epsilon, noise, lambda: rows)


def gradients(algorithm, vae, given) -> dict[str, torch.Tensor]:
    vae.zero_grad()
    value, _ = algorithm.loss(vae, given, 1.0)
    value.backward()
    return {name: parameter.grad.clone() for name, parameter in vae.named_parameters()}


def test_the_gradients_of_wake_and_sleep_are_those_of_two_regressions(loose):
    """Of x on z ~ q(z|x) for the decoder, of z' on the dream x' for the encoder: residual times input over variance."""
    vae, batch, _ = loose
    x, _, epsilon, dreamt_z, dreamt_x = given = drawn(WakeSleep(), vae, batch, streams())
    found = gradients(WakeSleep(), vae, given)
    with torch.no_grad():
        encoder, decoder = vae.encoder, vae.decoder
        z = x @ encoder.matrix.T + encoder.bias + encoder.log_sigma.exp() * epsilon
        residual = (x - z @ decoder.matrix.T - decoder.bias) / SIGMA**2
        wake = torch.einsum("sbd,sbz->dz", residual, z) / (S * len(x))
        residual = (dreamt_z - dreamt_x @ encoder.matrix.T - encoder.bias) / (2 * encoder.log_sigma).exp()
        sleep = residual.T @ dreamt_x / len(dreamt_x)
    torch.testing.assert_close(found["decoder.matrix"], -wake, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(found["encoder.matrix"], -sleep, rtol=1e-10, atol=1e-12)


def test_each_phase_moves_its_own_parameters_alone(loose):
    """Other images leave the encoder's gradient as it is, and other dreams the decoder's."""
    vae, batch, _ = loose
    given = drawn(WakeSleep(), vae, batch, streams())
    before = gradients(WakeSleep(), vae, given)
    other_images = gradients(WakeSleep(), vae, (given[0] + 1, given[1] + 1, *given[2:]))
    other_dreams = gradients(WakeSleep(), vae, (*given[:3], given[3] + 1, given[4] - 1))
    for name in before:
        asleep = name.startswith("encoder")
        assert torch.equal(before[name], other_images[name]) == asleep
        assert torch.equal(before[name], other_dreams[name]) != asleep


def test_a_dream_is_a_draw_of_the_model(oracle):
    """Its covariance with z' is [[I, Wᵀ], [W, WWᵀ + σ²I]]; 60,000 dreams, each entry to five standard errors."""
    vae, batch, _ = oracle
    n = 60_000
    z, x = WakeSleep().draw(
        vae, batch, torch.zeros(1, n, vae.latent_dim, dtype=torch.float64), streams(), lambda: EVERY
    )
    with torch.no_grad():
        w = vae.decoder.matrix
        top = torch.cat([torch.eye(vae.latent_dim, dtype=torch.float64), w.T], 1)
        bottom = torch.cat([w, w @ w.T + SIGMA**2 * torch.eye(len(w), dtype=torch.float64)], 1)
        expected = torch.cat([top, bottom])
        joint = torch.cat([z, x - vae.decoder.bias], 1)
    variance = expected.diagonal()
    error = ((variance[:, None] * variance + expected.square()) / n).sqrt()  # of a Gaussian's sample covariance
    assert ((joint.T @ joint / n - expected).abs() < 5 * error).all()
    assert (joint.mean(0).abs() < 5 * (variance / n).sqrt()).all()


def test_asleep_nothing_is_left_to_learn_where_the_encoder_is_the_exact_posterior(oracle):
    """The expectation of z' given x' is then what the encoder says: its gradient is 0 to five standard errors."""
    vae, batch, _ = oracle
    found = []
    for seed in range(400):
        given = drawn(WakeSleep(), vae, batch, streams(seed), 25)
        found.append(gradients(WakeSleep(), vae, given)["encoder.matrix"])
    found = torch.stack(found)
    assert (found.mean(0).abs() < 5 * found.std(0) / 400**0.5).all()


def test_what_is_reported_is_the_elbo_of_the_images(loose):
    """By estimator B, whose terms are those of AEVB with the same noise."""
    vae, batch, _ = loose
    given = drawn(WakeSleep(), vae, batch, streams())
    value, terms = WakeSleep().loss(vae, given, 1.0)
    _, of_aevb = Aevb(ObjectiveConfig()).loss(vae, given[:3], 1.0)
    torch.testing.assert_close(terms[1:], of_aevb[1:], rtol=1e-12, atol=0)
    assert terms[0] == value


def test_dreams_of_grey_images_are_binary():
    """What a Bernoulli draws, whatever it is trained on."""
    vae = build_vae(ModelConfig(latent_dim=2, hidden_dim=3), ImageShape(1, 2, 3), generator(0, "init"))
    batch = scale(torch.full((5, 6), 100, dtype=torch.uint8), torch.Generator())
    *_, x = drawn(WakeSleep(), vae, batch, streams())
    assert x.shape == (S * 5, 6)
    assert set(x.unique().tolist()) == {0.0, 1.0}


def expectation_maximisation(vae, n_images=4):
    return MonteCarloEm(vae, n_images, generator(0, "chains"))


def test_the_gradients_of_mcem_are_those_of_two_regressions_on_a_draw_from_the_posterior(loose):
    """Of x on z for the decoder, of z on x for the encoder; nothing else depends on either."""
    vae, batch, _ = loose
    x, _, _, z, _, _ = given = drawn(expectation_maximisation(vae), vae, batch, streams())
    found = gradients(expectation_maximisation(vae), vae, given)
    with torch.no_grad():
        wake = ((x - z @ vae.decoder.matrix.T - vae.decoder.bias) / SIGMA**2).T @ z / len(x)
        residual = (z - x @ vae.encoder.matrix.T - vae.encoder.bias) / (2 * vae.encoder.log_sigma).exp()
        fitted = residual.T @ x / len(x)
    torch.testing.assert_close(found["decoder.matrix"], -wake, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(found["encoder.matrix"], -fitted, rtol=1e-10, atol=1e-12)


def test_chains_of_mcem_come_to_the_posterior_of_their_own_image_at_the_acceptance_asked_for(oracle):
    """2,000 chains of each of four images: mean and variance to five standard errors, and nine of ten accepted."""
    vae, batch, _ = oracle
    n = 2000
    many = Batch(*(part.repeat(n, 1) for part in batch))
    algorithm, noise = expectation_maximisation(vae, 4 * n), streams()
    for _ in range(150):
        z = drawn(algorithm, vae, many, noise, 1, torch.arange(4 * n))[3]
    assert torch.equal(algorithm.memory["z"], z)
    posterior = vae.encoder(batch.input)
    z = z.unflatten(0, (n, 4))
    assert ((z.mean(0) - posterior.mean).abs() < 5 * posterior.stddev / n**0.5).all()
    assert ((z.var(0) / posterior.variance - 1).abs() < 5 * (2 / n) ** 0.5).all()
    dynamics = euclidean(lambda at: Point(at, *evaluate_log_joint(vae, many.target, at)))
    size = algorithm.memory["log_step_size"].exp()
    _, accepted = transition(dynamics.at(algorithm.memory["z"]), dynamics, size, noise.epsilon)
    assert accepted.mean().item() == pytest.approx(0.9, abs=0.02)


def test_only_the_chains_of_a_minibatch_move(oracle):
    vae, batch, _ = oracle
    algorithm = expectation_maximisation(vae, 10)
    before = algorithm.memory["z"].clone()
    rows = torch.tensor([7, 2, 9, 4])
    z = drawn(algorithm, vae, batch, streams(), 1, rows)[3]
    others = [i for i in range(10) if i not in rows]
    assert torch.equal(algorithm.memory["z"][rows], z)
    assert torch.equal(algorithm.memory["z"][others], before[others])
    assert not torch.equal(z, before[rows])
    assert all(parameter.requires_grad for parameter in vae.parameters())
