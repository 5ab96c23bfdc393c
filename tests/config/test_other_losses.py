import math

import pytest
import torch
from torch.nn.functional import binary_cross_entropy, mse_loss

from vaecli.config.loading import parse_config
from vaecli.config.other_losses import equivalent
from vaecli.errors import UsageError
from vaecli.model.distributions import DiagonalNormal, IndependentBernoulli

D, Z = 12, 3


def kl(mean, log_variance):
    """KL(N(mean, exp(log_variance)) ‖ N(0, I)) of each latent dimension, as other programs write it."""
    return -0.5 * (1 + log_variance - mean**2 - log_variance.exp())


def gradient(value, *parameters):
    return torch.cat([part.flatten() for part in torch.autograd.grad(value, parameters, retain_graph=True)])


@pytest.mark.parametrize("loss", ["mse-mean", "mse-sum", "bce-mean", "bce-sum"])
@pytest.mark.parametrize("mean_over_latents", [False, True])
def test_the_gradient_is_that_of_the_bound(loss, mean_over_latents):
    """With respect to the decoder's output and to q's parameters; ours is -log p(x|z) + β KL, by our distributions."""
    rng, weight = torch.Generator().manual_seed(0), 0.37
    x = torch.rand(D, generator=rng, dtype=torch.float64)
    logits = torch.randn(D, generator=rng, dtype=torch.float64, requires_grad=True)
    mean, log_variance = (torch.randn(Z, generator=rng, dtype=torch.float64, requires_grad=True) for _ in "ab")

    error = mse_loss if loss.startswith("mse") else binary_cross_entropy
    terms = kl(mean, log_variance)
    theirs = error(logits.sigmoid(), x, reduction=loss.partition("-")[2])
    theirs = theirs + weight * (terms.mean() if mean_over_latents else terms.sum())

    found = equivalent(loss, weight, D, Z if mean_over_latents else 1)
    if found.sigma is None:
        likelihood = IndependentBernoulli(logits)
    else:
        likelihood = DiagonalNormal(logits.sigmoid(), torch.full((D,), math.log(found.sigma), dtype=torch.float64))
    ours = -likelihood.log_prob(x) + found.kl_weight * terms.sum()
    torch.testing.assert_close(
        gradient(theirs, logits, mean, log_variance), found.factor * gradient(ours, logits, mean, log_variance)
    )


@pytest.mark.parametrize(
    ("loss", "weight", "latents", "variance", "beta"),
    [
        ("mse-mean", 0.00025, 1, 0.00025 * 784 / 2, 1),
        ("mse-sum", 1.0, 1, 0.5, 1),  # the usual mse(reduction="sum") + KL is a Gaussian of variance 1/2
        ("mse-sum", 20.0, 20, 0.5, 1),
        ("bce-mean", 0.00025, 1, None, 0.196),
        ("bce-sum", 1.0, 1, None, 1),
        ("bce-sum", 1.0, 20, None, 0.05),
    ],
)
def test_the_formulas_of_the_page(loss, weight, latents, variance, beta):
    found = equivalent(loss, weight, 784, latents)
    assert found.kl_weight == pytest.approx(beta)
    assert (None if found.sigma is None else found.sigma**2) == (
        variance if variance is None else pytest.approx(variance)
    )


def test_what_it_says_is_a_config():
    assert parse_config(equivalent("mse-mean", 0.00025, 784).settings).model.sigma == 0.31305
    assert parse_config(equivalent("bce-mean", 0.00025, 784).settings).objective.kl_weight == 0.196


@pytest.mark.parametrize("weight", [0.0, -1.0, math.inf, math.nan])
def test_without_a_kl_term_there_is_no_likelihood(weight):
    with pytest.raises(UsageError, match="autoencoder"):
        equivalent("mse-mean", weight, 784)


def test_a_weight_that_no_config_can_have_is_refused():
    """2,000 times 784 pixels is above the schema's 10⁶."""
    with pytest.raises(
        UsageError, match=r"a KL weight of 2000 is 1.568e\+06 beside a sum over pixels; 1e\+06 is the most"
    ):
        equivalent("bce-mean", 2000.0, 784)
