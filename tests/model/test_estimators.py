"""Importance weighting against the exact evidence of the linear-Gaussian oracle, in float64."""

import math

import pytest
import torch
from scipy import stats

from vaecli.data.preprocess import Batch
from vaecli.evaluation.evidence import monte_carlo_error, standard_error
from vaecli.model.estimators import expected_terms, importance_weighted, sample_counts
from vaecli.model.joint import LogJoint
from vaecli.model.proposals import encoder_proposal
from vaecli.randomness import generator


def weigh(vae, batch, k, seed=0, rows=1000):
    log_joint = LogJoint(vae, batch.target, rows)
    return importance_weighted(log_joint, encoder_proposal(vae, batch), k, generator(seed, "importance"))


def test_the_exact_posterior_gives_the_evidence_at_every_k(oracle):
    vae, batch, evidence = oracle
    found = weigh(vae, batch, 1500)
    assert found.log_evidence.shape == (5, 1, 4)  # k = 1, 10, 100, 1000, 1500
    assert (found.log_evidence - evidence).abs().max() < 1e-10
    assert (found.effective_sample_size - 1500).abs().max() < 1e-6


@pytest.mark.parametrize("rows", [1, 4, 60, 10_000])
def test_no_more_rows_are_decoded_at_a_time_than_asked_for(loose, rows):
    vae, batch, _ = loose
    seen = []
    vae.decoder.register_forward_pre_hook(lambda module, arguments: seen.append(math.prod(arguments[0].shape[:-1])))
    weigh(vae, batch, 250, rows=rows)
    assert sum(seen) == 250 * 4
    assert max(seen) <= max(rows, 4)  # at least one sample of each image


@pytest.mark.parametrize("rows", [1000, 20, 1])
def test_the_estimate_is_the_hand_formula(loose, rows):
    vae, batch, _ = loose
    epsilon = torch.randn(12, 4, 3, generator=generator(0, "importance"), dtype=torch.float64)
    q = vae.encoder(batch.input)
    z = q.mean + q.stddev * epsilon
    log_w = vae.decoder(z).log_prob(batch.target) + vae.prior.log_prob(z) - q.log_prob(z)
    w = log_w.exp()
    found = weigh(vae, batch, 12, rows=rows)
    for row, rung in zip(found.log_evidence[:, 0], (1, 10, 12), strict=True):
        assert (row - w[:rung].mean(0).log()).abs().max() < 1e-10
    assert (found.effective_sample_size[0] - w.sum(0) ** 2 / (w**2).sum(0)).abs().max() < 1e-9
    terms = expected_terms(vae, batch, 12, generator(0, "importance"), rows)
    assert (terms.log_likelihood - vae.decoder(z).log_prob(batch.target).mean(0)).abs().max() < 1e-10
    assert (terms.kl - q.kl_from_standard().sum(-1)).abs().max() < 1e-10


def test_with_a_wrong_encoder_the_expectation_rises_to_the_evidence(loose):
    vae, batch, evidence = loose
    repeats = Batch(*(part.repeat(2000, 1) for part in batch))
    bounds = weigh(vae, repeats, 1000, rows=100_000).log_evidence[:, 0].reshape(4, 2000, 4).mean(1)
    gaps = evidence - bounds
    assert (gaps[:-1] > gaps[1:]).all()
    assert gaps[0].min() > 0.3  # KL(q ‖ posterior) of this encoder
    assert gaps[-1].abs().max() < 0.01


def test_the_monte_carlo_error_covers_the_expected_bound(loose):
    """Over 400 repeats, the interval of ±1.96 errors holds the mean of the k-sample bound in 95 % of them."""
    vae, batch, _ = loose
    k, repeats = 300, 400
    found = weigh(vae, Batch(*(part.repeat(repeats, 1) for part in batch)), k, rows=100_000)
    estimates = found.log_evidence[-1, 0].reshape(repeats, 4).mean(1)
    sizes = found.effective_sample_size[0].reshape(repeats, 4)
    errors = torch.tensor([monte_carlo_error(size, k) for size in sizes])
    covered = ((estimates - estimates.mean()).abs() < 1.96 * errors).sum().item()
    low, high = stats.binom.interval(0.999, repeats, 0.95)
    assert low <= covered <= high
    assert errors.median().item() == pytest.approx(estimates.std().item(), rel=0.15)


def test_the_standard_error_covers_the_evidence_of_fresh_images(oracle):
    """With the exact posterior there is no bias: the interval over images holds E[log p(x)] in 95 % of 400 sets."""
    vae, _, _ = oracle
    rng = generator(5, "samples")
    n, sets = 50, 400
    z = torch.randn(sets * n, 3, generator=rng, dtype=torch.float64)
    x = vae.decoder(z).draw(rng)
    log_p = weigh(vae, Batch(x, x), 2, rows=10**6).log_evidence[-1, 0].reshape(sets, n)
    w, sigma = vae.decoder.matrix.detach(), 0.7
    covariance = w @ w.T + sigma**2 * torch.eye(6, dtype=torch.float64)
    expected = -0.5 * (6 + 6 * math.log(2 * math.pi) + covariance.logdet().item())  # minus the entropy of p(x)
    t = stats.t.ppf(0.975, n - 1)
    covered = sum(abs(row.mean().item() - expected) < t * standard_error(row) for row in log_p)
    low, high = stats.binom.interval(0.999, sets, 0.95)
    assert low <= covered <= high


@pytest.mark.parametrize(("k", "rungs"), [(1, [1]), (10, [1, 10]), (50, [1, 10, 50]), (1000, [1, 10, 100, 1000])])
def test_the_ladder(k, rungs):
    assert sample_counts(k) == rungs
