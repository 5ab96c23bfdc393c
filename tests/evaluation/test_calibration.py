"""Simulation-based calibration against posteriors that are known, and encoders that are wrong by a known amount."""

import json
from dataclasses import asdict

import numpy as np
import pytest
import scipy.integrate
import scipy.stats
import torch

from vaecli.errors import UsageError
from vaecli.evaluation.calibration import BINS, DRAWS, evaluate_calibration, posterior_ranks, uniformity
from vaecli.randomness import generator
from vaecli.reports.diagnostics import draw_calibration
from vaecli.training.loop import train

N = 2000


def ranks_of(vae):
    return posterior_ranks(vae, N, DRAWS, generator(0, "samples"))


def expected_share_of_the_lowest_bin(scale: float, shift: float = 0.0) -> float:
    """P(rank < 5) of 99 draws where q is N(m + shift s, (scale s)²) and the posterior N(m, s²), by quadrature."""

    def integrand(e: float) -> float:  # z = m + s e
        return scipy.stats.norm.pdf(e) * scipy.stats.binom.cdf(4, DRAWS, scipy.stats.norm.cdf((e - shift) / scale))

    return scipy.integrate.quad(integrand, -9, 9, limit=200)[0]


def test_of_an_exact_posterior_every_rank_is_equally_likely(oracle):
    vae, _, _ = oracle
    ranks = ranks_of(vae)
    assert ranks.shape == (N, 3)
    assert ranks.min() == 0
    assert ranks.max() == DRAWS
    found = uniformity(ranks, DRAWS)
    assert found["p_value"] > 0.05
    assert min(found["deviation_p"]) > 0.05
    assert found["mean"] == pytest.approx([0.5] * 3, abs=3 * 0.2887 / N**0.5)
    assert found["spread"] == pytest.approx([1] * 3, abs=3 * 0.4472 / N**0.5)
    assert expected_share_of_the_lowest_bin(1) == pytest.approx(1 / BINS, abs=1e-8)


@pytest.mark.parametrize(("scale", "shift"), [(0.5, 0), (0.8, 0), (1.5, 0), (1, 0.5)])
def test_an_encoder_that_is_off_has_the_histogram_that_follows(oracle, scale, shift):
    """Too narrow: the ends are too full, as ∪; too wide: too empty, as ∩; draws too high: z is lower, that end full."""
    vae, _, _ = oracle
    vae.encoder.bias = vae.encoder.bias + shift * vae.encoder.log_sigma.exp()
    vae.encoder.log_sigma = vae.encoder.log_sigma + np.log(scale)
    found = uniformity(ranks_of(vae), DRAWS)
    share = expected_share_of_the_lowest_bin(scale, shift)
    assert abs(share - 1 / BINS) > 0.01
    lowest, highest = (np.array(found["histogram"])[:, end] / N for end in (0, -1))
    assert lowest == pytest.approx([share] * 3, abs=4 * (share * (1 - share) / N) ** 0.5)
    if not shift:
        assert highest == pytest.approx([share] * 3, abs=4 * (share * (1 - share) / N) ** 0.5)
        assert ((np.array(found["spread"]) > 1) == (scale < 1)).all()
    assert max(found["chi_square_p"]) < 1e-3
    assert max(found["deviation_p"]) < 0.05


def test_what_is_tested_is_what_scipy_tests():
    ranks = np.random.default_rng(0).integers(0, DRAWS + 1, (N, 2))
    found = uniformity(ranks, DRAWS)
    for i in range(2):
        counts = np.histogram(ranks[:, i], bins=BINS, range=(0, DRAWS + 1))[0]
        assert found["histogram"][i] == counts.tolist()
        assert found["chi_square"][i] == pytest.approx(((counts - N / BINS) ** 2).sum() / (N / BINS))
        assert found["chi_square_p"][i] == pytest.approx(scipy.stats.chi2.sf(found["chi_square"][i], BINS - 1))
    assert found["p_value"] == pytest.approx(min(1, 2 * min(found["chi_square_p"])))


@pytest.mark.parametrize("decoder", ["bernoulli", "gaussian", "discretized-logistic"])
def test_a_run_is_calibrated_and_drawn(small, tmp_path, decoder):
    run = train(small(model={"decoder": decoder}), runs_dir=tmp_path)
    found, path = evaluate_calibration(run, n=100)
    assert json.loads(path.read_text()) == asdict(found)
    assert np.array(found.histogram).shape == (3, BINS)
    assert np.array(found.histogram).sum(1).tolist() == [100] * 3
    with np.load(path.with_suffix(".npz")) as arrays:
        assert arrays["ranks"].shape == (100, 3)
    again, _ = evaluate_calibration(run, n=100)
    assert again == found
    picture = draw_calibration(found, path).read_text()
    assert [f"z{i}: spread {found.spread[i]:.2f}" in picture for i in range(3)] == [True] * 3


def test_too_few_images_for_a_test_are_refused(small, tmp_path):
    run = train(small(training={"epochs": 1}), runs_dir=tmp_path)
    with pytest.raises(UsageError, match="calibration needs at least 100 images, not 99"):
        evaluate_calibration(run, n=99)


def test_draws_of_a_model_do_not_depend_on_how_they_are_asked_for(oracle):
    vae, _, _ = oracle
    _, batch = vae.simulate(5, generator(0, "samples"))
    assert torch.equal(batch.target, vae.sample(5, generator(0, "samples"), draw=True))
