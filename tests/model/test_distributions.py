import math

import numpy as np
import pytest
import scipy.integrate
import scipy.special
import scipy.stats
import torch
from torch import nn
from torch.distributions import Bernoulli, Distribution, Independent, Normal, kl_divergence

from vaecli.config.likelihoods import LIKELIHOODS, Support
from vaecli.config.sections import ModelConfig
from vaecli.data.image_grid import ImageShape
from vaecli.model import conditionals as distributions
from vaecli.model.conditionals import Conditional, Gaussian
from vaecli.model.distributions import (
    ContinuousBernoulliProduct,
    Density,
    DiagonalNormal,
    DiscretizedLogisticProduct,
    IndependentBernoulli,
)
from vaecli.model.links import LINEAR, NO_FLOOR, Floor
from vaecli.model.vae import build_vae
from vaecli.randomness import generator

D, Z = 6, 3


def decoder(name: str, **settings: object) -> Conditional:
    config = ModelConfig(decoder=name, latent_dim=Z, hidden_dim=[7], **settings)
    return build_vae(config, ImageShape(1, 1, D), generator(0, "init")).decoder.double()


@pytest.fixture(params=LIKELIHOODS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def test_every_decoder_returns_a_distribution_over_the_pixels(name):
    z = torch.randn(4, 2, Z, dtype=torch.float64)
    likelihood = decoder(name)(z)
    assert isinstance(likelihood, Distribution)
    assert likelihood.batch_shape == (4, 2)
    assert likelihood.event_shape == (D,)
    assert likelihood.mean.shape == likelihood.stddev.shape == (4, 2, D)
    assert likelihood.log_prob(torch.zeros(2, D, dtype=torch.float64)).shape == (4, 2)


@torch.no_grad()
def test_draws_have_the_mean_and_variance_that_the_distribution_states(name):
    model, z, n = decoder(name), torch.randn(1, Z, dtype=torch.float64), 40_000
    model.start_at(torch.linspace(0.3, 0.7, D, dtype=torch.float64))  # no pixel so dark that a draw is never bright
    one, draws = model(z), model(z.expand(n, Z)).draw(generator(1, "samples"))
    half_a_level = 0.5 / 255 if name == "discretized-logistic" else 0
    assert ((draws.mean(0) - one.mean[0]).abs() < 5 * draws.std(0) / math.sqrt(n) + half_a_level).all()
    squares = (draws - draws.mean(0)).square()  # their mean is the variance: five of its standard errors
    assert ((squares.mean(0) - one.variance[0]).abs() < 5 * squares.std(0) / math.sqrt(n)).all()
    assert (one.variance - one.stddev.square()).abs().max() < 1e-12


def test_draws_come_from_the_generator_alone_and_carry_no_gradient(name):
    likelihood = decoder(name)(torch.zeros(5, Z, dtype=torch.float64))
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first, again = (likelihood.draw(generator(2, "samples")) for _ in range(2))
    assert torch.equal(first, again)
    assert not first.requires_grad
    assert torch.equal(torch.get_rng_state(), before)


def test_gradients_reach_every_parameter(name):
    model = decoder(name, min_log_sigma=None)
    x = torch.rand(50, D, dtype=torch.float64).round()
    model(torch.randn(50, Z, dtype=torch.float64)).log_prob(x).sum().backward()
    for parameter in model.parameters():
        assert (parameter.grad != 0).any()


@pytest.mark.parametrize("mean", ["sigmoid", "linear"])
def test_training_starts_from_the_mean_image(name, mean):
    model = decoder(name, mean=mean)
    target = torch.linspace(0.1, 0.9, D, dtype=torch.float64)
    model.start_at(target)
    nn.init.zeros_(list(model.network.children())[-1].weight)
    # the logistic's location is started there; its tails are cut off at the ends, which moves the mean a little
    tolerance = 0.01 if name == "discretized-logistic" else 1e-12
    assert (model(torch.randn(2, Z, dtype=torch.float64)).mean - target).abs().max() < tolerance


def test_a_pixel_that_is_always_off_starts_at_a_finite_logit():
    model = decoder("bernoulli")
    model.start_at(torch.tensor([0.0, 1.0, 0.5, 0.5, 0.5, 0.5], dtype=torch.float64))
    bias = list(model.network.children())[-1].bias
    # logit(0.001) = -6.9068, logit(0.999) = 6.9068
    assert bias[:2].tolist() == pytest.approx([-6.906754778648554, 6.906754778648554], abs=1e-9)


def test_bernoulli_log_likelihood_is_the_hand_formula():
    p = torch.tensor([0.2, 0.7], dtype=torch.float64)
    likelihood = IndependentBernoulli(torch.logit(p))
    # b = (1, 0): log 0.2 + log 0.3
    assert likelihood.log_prob(torch.tensor([1.0, 0.0]).double()).item() == pytest.approx(
        math.log(0.2) + math.log(0.3), abs=1e-12
    )
    b = torch.tensor([[0.0, 1.0], [1.0, 1.0]], dtype=torch.float64)
    expected = Independent(Bernoulli(p), 1).log_prob(b)
    assert (likelihood.log_prob(b) - expected).abs().max() < 1e-12


def test_bernoulli_sums_to_one_over_all_images():
    likelihood = IndependentBernoulli(torch.tensor([-3.0, 0.1, 2.0, 40.0], dtype=torch.float64))
    images = torch.tensor(list(np.ndindex(2, 2, 2, 2)), dtype=torch.float64)
    assert likelihood.log_prob(images).exp().sum().item() == pytest.approx(1, abs=1e-12)


def test_bernoulli_stays_finite_where_the_probability_saturates():
    logits = torch.tensor([-200.0, 200.0], requires_grad=True)
    value = IndependentBernoulli(logits).log_prob(torch.tensor([1.0, 0.0]))
    value.backward()
    assert value.item() == -400  # log p = -softplus(200) = -200, twice
    assert logits.grad.tolist() == [1.0, -1.0]


def test_normal_log_density_has_all_its_constants():
    # N(1; 0, 2²) N(-1; 1, ½²): -½(¼ + 16) - log 2 - log ½ - log 2π
    normal = DiagonalNormal(torch.tensor([0.0, 1.0]).double(), torch.tensor([2, 0.5]).double().log())
    found = normal.log_prob(torch.tensor([1.0, -1.0], dtype=torch.float64)).item()
    assert found == pytest.approx(-8.125 - math.log(2 * math.pi), abs=1e-12)


def test_normal_agrees_with_scipy_and_torch():
    rng = np.random.default_rng(0)
    mean, log_sigma, y = rng.normal(size=(3, 5, D))
    normal = DiagonalNormal(torch.tensor(mean), torch.tensor(log_sigma))
    expected = scipy.stats.norm.logpdf(y, mean, np.exp(log_sigma)).sum(-1)
    assert np.abs(normal.log_prob(torch.tensor(y)).numpy() - expected).max() < 1e-10
    reference = Normal(torch.tensor(mean), torch.tensor(log_sigma).exp())
    standard = Normal(torch.zeros(D).double(), torch.ones(D).double())
    assert (normal.kl_from_standard() - kl_divergence(reference, standard)).abs().max() < 1e-12


def test_kl_is_appendix_b_of_the_paper():
    # -KL = ½ Σ (1 + log σ² - μ² - σ²); μ = (1, 0), σ = (2, ½): KL = ½(1 + 4 - 1) - log 2 and ½(¼ - 1) + log 2
    normal = DiagonalNormal(torch.tensor([1.0, 0.0]).double(), torch.tensor([2, 0.5]).double().log())
    expected = [2 - math.log(2), -0.375 + math.log(2)]
    assert normal.kl_from_standard().tolist() == pytest.approx(expected, abs=1e-12)


DENSITIES = [name for name, entry in LIKELIHOODS.items() if entry.support is Support.UNIT_INTERVAL]


def one_pixel(name: str, **settings: object) -> Conditional:
    return build_vae(
        ModelConfig(decoder=name, latent_dim=Z, **settings), ImageShape(1, 1, 1), generator(0, "init")
    ).decoder.double()


@pytest.mark.parametrize("name", DENSITIES)
def test_densities_integrate_to_one(name):
    likelihood = one_pixel(name)(torch.ones(1, Z, dtype=torch.float64))
    ends = (0, 1) if name == "continuous-bernoulli" else (-20, 20)
    total, _ = scipy.integrate.quad(
        lambda y: likelihood.log_prob(torch.tensor([[y]], dtype=torch.float64)).exp().item(), *ends, epsabs=1e-10
    )
    assert total == pytest.approx(1, abs=1e-8)


@pytest.mark.parametrize("name", DENSITIES)
@pytest.mark.parametrize("log_sigma", [-14.0, -6.9, -3.0, 0.0, 5.0])
@torch.no_grad()
def test_the_256_levels_and_what_lies_outside_add_up_to_one(name, log_sigma):
    model = one_pixel(name, mean="linear")
    output = list(model.network.children())[-1]
    nn.init.zeros_(output.weight)
    for mean in (-20.0, -0.3, 0.0, 0.4, 1.0, 20.0):
        output.bias.data[0] = 40 * mean if name == "continuous-bernoulli" else mean
        if name == "gaussian":
            output.bias.data[1] = 2 * log_sigma
        if name == "sigma-gaussian":
            model.log_sigma.data.fill_(log_sigma)
        likelihood = model(torch.zeros(1, Z, dtype=torch.float64))
        assert isinstance(likelihood, Density)
        y = ((torch.arange(256, dtype=torch.float64) + 0.3) / 256)[:, None]
        mass = likelihood.level_mass(y)
        assert (mass.exact.exp().sum() + mass.outside.flatten()[0]).item() == pytest.approx(1, abs=1e-12)
        assert mass.censored.exp().sum().item() == pytest.approx(1, abs=1e-12)


def test_level_masses_agree_with_scipy_far_into_the_tail():
    normal = DiagonalNormal(*torch.tensor([[[0.2]], [[math.log(0.01)]]], dtype=torch.float64))
    k = np.array([0, 51, 52, 100, 200, 255])
    found = normal.level_mass(torch.tensor((k + 0.5) / 256)[:, None]).exact[:, 0]
    low, high = (k / 256 - 0.2) / 0.01, ((k + 1) / 256 - 0.2) / 0.01
    right = low + high > 0
    low, high = np.where(right, -high, low), np.where(right, -low, high)
    upper, lower = scipy.stats.norm.logcdf(high), scipy.stats.norm.logcdf(low)
    assert found.numpy() == pytest.approx(upper + np.log1p(-np.exp(lower - upper)), rel=1e-9)
    assert found[-1] < -3000  # 80 standard deviations out, where Φ itself is 1 to rounding


@pytest.mark.parametrize("eta", [-30.0, -0.501, -0.499, -1e-3, 0.0, 1e-9, 0.5, 1.0, 7.0])
def test_continuous_bernoulli_agrees_with_its_closed_forms_on_both_sides_of_one_half(eta):
    likelihood = ContinuousBernoulliProduct(torch.tensor([eta], dtype=torch.float64))
    y = torch.tensor([[0.0], [0.3], [1.0]], dtype=torch.float64)
    weight = lambda y, power: y**power * np.exp(eta * y)  # noqa: E731
    total, first, second = (scipy.integrate.quad(weight, 0, 1, (power,), epsabs=1e-13)[0] for power in (0, 1, 2))
    assert likelihood.log_prob(y).numpy() == pytest.approx(eta * y[:, 0].numpy() - np.log(total), abs=1e-9)
    assert likelihood.mean.item() == pytest.approx(first / total, abs=1e-9)
    assert likelihood.variance.item() == pytest.approx(second / total - (first / total) ** 2, abs=1e-9)


def test_continuous_bernoulli_is_stable_in_float32():
    """λ = ½ exactly, logits of ±200, and a gradient that is the difference y - mean everywhere."""
    eta = torch.tensor([-200.0, -1e-4, 0.0, 1e-4, 200.0], requires_grad=True)
    likelihood = ContinuousBernoulliProduct(eta)
    y = torch.full((5,), 0.25)
    likelihood.log_prob(y).backward()
    assert torch.allclose(eta.grad, y - likelihood.mean.detach(), atol=2e-6)
    (gradient,) = torch.autograd.grad(likelihood.mean.sum(), eta)
    assert torch.allclose(gradient, likelihood.variance.detach(), atol=1e-5)  # A'' is the derivative of A'
    assert likelihood.mean[2].item() == 0.5
    assert likelihood.mean[0].item() == pytest.approx(1 / 200)


def test_discretized_logistic_sums_to_one_and_its_mean_is_within_half_a_level():
    levels = torch.arange(256, dtype=torch.float64)[:, None] / 255
    for location in (-20.0, -0.1, 0.0, 0.3, 1.0, 20.0):
        for log_scale in (-14.0, -8.0, -5.0, -2.0, 5.0):
            likelihood = DiscretizedLogisticProduct(*torch.tensor([[location], [log_scale]], dtype=torch.float64))
            mass = likelihood.log_prob(levels).exp()
            assert mass.sum().item() == pytest.approx(1, abs=1e-12)
            assert likelihood.mean.item() == pytest.approx((mass * levels[:, 0]).sum().item(), abs=0.5 / 255)


def test_discretized_logistic_is_the_hand_formula():
    # s = 1 level, location level 10: P(11) = σ(1.5) - σ(0.5), P(0) = σ(-9.5), P(255) = 1 - σ(244.5) = σ(-244.5)
    likelihood = DiscretizedLogisticProduct(*torch.tensor([[10 / 255], [-math.log(255)]], dtype=torch.float64))
    found = likelihood.log_prob(torch.tensor([[11.0], [0.0], [255.0]], dtype=torch.float64) / 255)
    sigma = scipy.special.expit
    assert found.numpy() == pytest.approx([np.log(sigma(1.5) - sigma(0.5)), np.log(sigma(-9.5)), -244.5], abs=1e-6)


def test_one_scale_is_shared_by_all_pixels_and_is_a_parameter():
    model = decoder("sigma-gaussian")
    assert [key for key, value in model.named_parameters() if value.shape == ()] == ["log_sigma"]
    model.log_sigma.data.fill_(-1.5)
    assert model(torch.randn(3, Z, dtype=torch.float64)).stddev.unique().tolist() == pytest.approx([math.exp(-1.5)])


def test_identity_covariance_is_squared_error_up_to_a_constant():
    likelihood = decoder("i-gaussian")(torch.ones(1, Z, dtype=torch.float64))
    y = torch.rand(1, D, dtype=torch.float64)
    expected = -0.5 * (y - likelihood.mean).square().sum() - 0.5 * D * math.log(2 * math.pi)
    assert likelihood.log_prob(y).item() == pytest.approx(expected.item(), abs=1e-12)


@pytest.mark.parametrize("name", ["i-gaussian", "sigma-gaussian"])
def test_a_given_scale_is_neither_learned_nor_floored(name):
    model = decoder(name, sigma=0.1, min_log_sigma=-1.0)  # log 0.1 = -2.3
    assert len(list(model.parameters())) == 4  # weights and biases of two layers
    likelihood = model(torch.ones(1, Z, dtype=torch.float64))
    assert likelihood.stddev.unique().tolist() == pytest.approx([0.1], rel=1e-15)
    assert model.at_floor(likelihood) is None


def test_a_learned_scale_stops_at_its_floor_and_says_where():
    model = decoder("gaussian", min_log_sigma=-1.0)
    output = list(model.network.children())[-1]
    nn.init.zeros_(output.weight)
    output.bias.data[D:] = torch.tensor([-8.0, -2.5, -2.0, -1.9, 0.0, 4.0])  # log variances
    likelihood = model(torch.zeros(1, Z, dtype=torch.float64))
    assert likelihood.stddev[0].log().tolist() == pytest.approx([-1, -1, -1, -0.95, 0, 2])
    assert model.at_floor(likelihood)[0].tolist() == [True, True, True, False, False, False]


def test_a_scale_below_its_floor_can_rise_but_is_not_pushed_lower():
    x = torch.tensor([-3.0, -3.0, 1.0], requires_grad=True)
    (Floor(-1.0)(x) * torch.tensor([-1.0, 1.0, 1.0])).sum().backward()
    # descent follows -gradient: the first would rise, the second would sink and is held, the third is free
    assert x.grad.tolist() == [-1.0, 0.0, 1.0]


def test_the_encoder_is_a_gaussian_with_free_means():
    encoder = build_vae(ModelConfig(latent_dim=Z), ImageShape(1, 1, D), generator(0, "init")).encoder
    assert isinstance(encoder, Gaussian)
    assert encoder.link is LINEAR
    assert encoder.floor == NO_FLOOR
    assert encoder.at_floor(encoder(torch.zeros(1, D))) is None


def test_the_table_names_final_classes():
    for entry in LIKELIHOODS.values():
        cls = getattr(distributions, entry.class_name)
        assert issubclass(cls, Conditional)
        assert cls.__final__
