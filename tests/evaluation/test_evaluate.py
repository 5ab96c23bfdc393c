import json
import math
from dataclasses import asdict

import numpy as np
import pytest
import torch

from vaecli.config.jobs import EvaluationSpec
from vaecli.config.likelihoods import LIKELIHOODS, Support
from vaecli.config.sections import DataConfig, ModelConfig
from vaecli.data.dataset import Dataset
from vaecli.data.image_grid import ImageShape
from vaecli.data.preprocess import Batch, binarize_dynamically, build_preprocess
from vaecli.errors import UsageError, VaecliError
from vaecli.evaluation import evaluate as evaluation
from vaecli.evaluation.binarised import MARGIN, BinarisedDecoder, binarised_model, grey_level
from vaecli.evaluation.evaluate import evaluate
from vaecli.evaluation.result import NotFiniteError, read_evaluation
from vaecli.files import lock
from vaecli.model.distributions import Density, DiagonalNormal
from vaecli.model.objectives import log_evidence
from vaecli.model.vae import build_vae
from vaecli.randomness import generator
from vaecli.runs.run import LOCK, Run
from vaecli.training.loop import train

SHAPE = ImageShape(1, 6, 5)


@pytest.fixture(params=LIKELIHOODS)
def run(request, small, tmp_path) -> Run:
    return train(small(model={"decoder": request.param}), runs_dir=tmp_path)


@pytest.fixture
def bernoulli(small, tmp_path) -> Run:
    return train(small(), runs_dir=tmp_path)


def test_every_decoder_has_the_metrics_of_its_support(run):
    found = evaluate(run, k=20)
    support = run.config.model.likelihood.support
    assert found.elbo == pytest.approx(found.log_likelihood - found.kl, abs=1e-5)
    assert sum(found.kl_per_dimension) == pytest.approx(found.kl, abs=1e-5)
    assert found.log_evidence >= found.elbo - 5 * found.log_evidence_mc_se
    assert list(found.log_evidence_by_k) == ["1", "10", "20"]
    assert found.log_evidence_by_k["20"] == found.log_evidence
    assert 1 <= found.log_evidence_effective_sample_size <= 20
    assert (found.bits_per_dim is None) == (support is Support.BINARY)
    assert (found.mass_outside is None) == (support is not Support.UNIT_INTERVAL)
    assert found.binarised_nll > 0
    assert found.is_likelihood
    if found.bits_per_dim_clamped is not None:
        assert found.bits_per_dim_clamped < found.bits_per_dim  # the tails are given away
    if support is Support.LEVELS:
        assert found.bits_per_dim == pytest.approx(-found.log_evidence / (30 * math.log(2)))
        assert found.bits_per_dim_clamped is None


def test_the_metrics_are_written_whole_and_repeat(run):
    found = evaluate(run, k=5)
    path = run.evaluation_path(run.checkpoint.progress.step, EvaluationSpec(k=5))
    assert json.loads(path.read_text()) == asdict(found)
    with np.load(path.with_suffix(".npz")) as arrays:
        assert arrays["log_evidence"].mean() == pytest.approx(found.log_evidence)
        assert arrays["binarised_nll"].mean() == pytest.approx(found.binarised_nll)
        assert arrays["mean_squared_error"].shape == (6,)
    assert evaluate(run, k=5) == found


def test_evaluations_that_differ_are_different_files(bernoulli):
    settings = [{}, {"split": "train"}, {"limit": 3}, {"seed": 1}, {"binarised": False}, {"proposal": "encoder"}]
    for more in settings:
        evaluate(bernoulli, k=2, **more)
    evaluate(bernoulli, k=3)
    evaluate(Run(bernoulli.path, bernoulli.last), k=2)
    assert len(list((bernoulli.path / "evaluations").glob("*.json"))) == 8


def test_evaluation_does_not_touch_the_checkpoints(bernoulli):
    before = {path: path.read_bytes() for path in (bernoulli.best, bernoulli.last)}
    evaluate(bernoulli, k=2)
    assert all(path.read_bytes() == content for path, content in before.items())


def test_the_binarised_likelihood_of_a_model_of_binary_images_is_its_own_evidence(bernoulli):
    found = evaluate(bernoulli, k=50)
    assert (found.binarised_nll, found.binarised_nll_se) == (-found.log_evidence, found.log_evidence_se)
    assert found.binarised_nll_by_k == {k: -v for k, v in found.log_evidence_by_k.items()}


def test_the_binarised_model_of_a_bernoulli_gives_its_own_evidence_again(bernoulli, monkeypatch):
    """The decoder's mean and a proposal fitted to it give the same -log p(b) as the model itself."""
    own = evaluate(bernoulli, k=1000)
    monkeypatch.setattr(evaluation, "is_binarised_model", lambda config: False)
    monkeypatch.setattr(evaluation, "has_binarised_model", lambda config: True)
    again = evaluate(bernoulli, k=1000)
    assert again.binarised_nll == pytest.approx(own.binarised_nll, abs=4 * own.binarised_nll_mc_se)


def test_with_the_encoder_as_proposal_only_a_model_of_binary_images_has_a_binarised_likelihood(run):
    found = evaluate(run, k=5, proposal="encoder")
    assert (found.binarised_nll is None) == (run.config.model.likelihood.support is not Support.BINARY)
    assert found.proposal == "encoder"


def test_images_are_spread_evenly_over_the_split(bernoulli, images):
    assert evaluate(bernoulli, k=2, limit=3, binarised=False).n_images == 3
    split = Dataset(bernoulli.config.data, Support.BINARY).test
    expected = torch.from_numpy(images[[54, 56, 58]]).flatten(1)
    assert torch.equal(split.spread(3).pixels, expected)
    assert len(split.spread(100)) == len(split.spread(None)) == 6


def test_the_grey_level_is_the_decoders_mean_in_units_of_k_255():
    vae = build_vae(ModelConfig(decoder="i-gaussian", latent_dim=3), ImageShape(1, 1, 4), generator(0, "init"))
    z = torch.randn(5, 3)
    mean = vae.decoder(z).mean.detach()
    found = BinarisedDecoder(vae.decoder, dequantized=True)(z).mean
    assert torch.allclose(found, ((256 * mean - 0.5) / 255).clamp(MARGIN, 1 - MARGIN), atol=1e-6)
    # y = (k + ½)/256 on average: k = 0 and 255 come back as 0 and 1
    assert grey_level(torch.tensor([0.5, 255.5]) / 256, dequantized=True).tolist() == pytest.approx([0, 1], abs=1e-6)


@pytest.mark.parametrize("name", [n for n, e in LIKELIHOODS.items() if e.support is Support.UNIT_INTERVAL])
def test_at_fixed_z_a_density_bounds_the_mass_of_levels(name):
    """E_u log p(y) - D log 256 ≤ log P(k), by Jensen's inequality; 4000 draws of u, five standard errors."""
    decoder = build_vae(ModelConfig(decoder=name, latent_dim=3), SHAPE, generator(0, "init")).decoder.double()
    pixels = torch.randint(0, 256, (1, 30), dtype=torch.uint8)
    likelihood = decoder(torch.randn(1, 3, dtype=torch.float64))
    y = build_preprocess(Support.UNIT_INTERVAL, DataConfig())(pixels.expand(4000, -1), generator(0, "pixels")).target
    log_p = likelihood.log_prob(y.double())
    assert isinstance(likelihood, Density)
    mass = likelihood.level_mass(y[:1].double()).exact.sum()
    error = 5 * log_p.std() / math.sqrt(4000)
    assert log_p.mean() - 30 * math.log(256) <= mass + error


def test_a_flat_density_costs_eight_bits_and_one_gaussian_on_a_bin_a_quarter_more():
    # continuous Bernoulli at λ = ½ is uniform: log P(k) = -log 256
    vae = build_vae(ModelConfig(decoder="continuous-bernoulli", latent_dim=3), SHAPE, generator(0, "init"))
    for parameter in vae.decoder.parameters():
        torch.nn.init.zeros_(parameter)
    mass = vae.decoder(torch.zeros(1, 3)).level_mass(torch.rand(1, 30)).exact
    assert (-mass / math.log(2)).flatten().tolist() == pytest.approx([8.0] * 30, abs=1e-5)
    # a Gaussian of the bin's own mean and deviation: -E_u log2 p(y) - log2 256 = ½ log2(2πe/12) = 0.2546
    u = (np.arange(100_000) + 0.5) / 100_000
    cost = -(-0.5 * ((u - 0.5) ** 2 * 12) - 0.5 * math.log(2 * math.pi / 12)).mean() / math.log(2)
    assert cost == pytest.approx(0.2546, abs=1e-3)


@pytest.fixture(scope="module")
def mnist():
    return Dataset(DataConfig(), Support.UNIT_INTERVAL)


def test_identity_covariance_costs_at_least_9_325_bits_even_with_perfect_means(mnist):
    pixels = mnist.test.pixels[:2000]
    y = (pixels.double() + 0.5) / 256
    bits = -DiagonalNormal(y, torch.zeros((), dtype=torch.float64)).level_mass(y).exact.mean().item() / math.log(2)
    assert bits == pytest.approx(9.3257, abs=1e-3)  # log2 256 + ½ log2 2π


def test_a_dequantised_density_averages_at_most_4347_42_nats(mnist):
    """A density that knew every level: uniform on each pixel's own bin has 784 log 256 nats."""
    assert 784 * math.log(256) == pytest.approx(4347.42, abs=0.01)
    y = build_preprocess(Support.UNIT_INTERVAL, DataConfig())(mnist.test.pixels[:500], generator(0, "pixels")).target
    means, sigma = (mnist.test.pixels[:500] + 0.5) / 256, torch.tensor(-math.log(256 * math.sqrt(12)))
    assert DiagonalNormal(means, sigma).log_prob(y).mean().item() == pytest.approx(4347.42 - 784 * 0.1765, abs=5)


def test_a_position_free_histogram_of_mnist_scores_1_967_bits(mnist):
    train = torch.cat([mnist.train.pixels, mnist.validation.pixels])
    p = torch.bincount(train.flatten().int(), minlength=256).double() / train.numel()
    test = torch.bincount(mnist.test.pixels.flatten().int(), minlength=256).double()
    assert -(test * p.log2()).sum().item() / test.sum().item() == pytest.approx(1.967, abs=1e-3)


def test_grey_pixels_make_no_likelihood(small, tmp_path):
    relaxed = evaluate(train(small(data={"binarize": "none"}), runs_dir=tmp_path), k=2)
    assert (relaxed.is_likelihood, relaxed.observed) == (False, "grey")
    settings = {"model": {"decoder": "i-gaussian"}, "data": {"dequantize": False}}
    density = evaluate(train(small(**settings), runs_dir=tmp_path), k=2)
    assert not density.is_likelihood
    assert density.bits_per_dim is None
    assert density.binarised_nll > 0


def test_a_model_of_images_binarised_once_is_scored_on_grey_pixels_and_the_same_b_as_all(small, tmp_path, images):
    run = train(small(data={"binarize": "static"}), runs_dir=tmp_path)
    found = evaluate(run, k=2)
    static = Dataset(run.config.data, Support.BINARY).test.pixels
    with torch.no_grad():
        mean = run.vae.decoder(run.vae.encoder((static > 127).float()).mean).mean
    grey = torch.from_numpy(images[54:]).flatten(1) / 255
    assert found.mean_squared_error == pytest.approx((mean - grey).square().mean().item(), rel=1e-5)
    assert found.binarised_nll != -found.log_evidence  # b is drawn from the grey levels, for this run as for any other


def test_the_evidence_is_that_of_the_objectives(bernoulli):
    vae, images = bernoulli.vae, Dataset(bernoulli.config.data, Support.BINARY).test
    found = evaluate(bernoulli, k=4000, binarised=False)
    b = binarize_dynamically(images.pixels, generator(0, "evaluation"))
    with torch.no_grad():
        other = log_evidence(vae, b, 4000, generator(3, "importance")).mean().item()
    assert found.log_evidence == pytest.approx(other, abs=6 * found.log_evidence_mc_se)


def test_splits_without_images_and_runs_without_weights(small, tmp_path, bernoulli):
    none = train(small(data={"validation": 0}), runs_dir=tmp_path)
    with pytest.raises(UsageError, match="its validation split has no images"):
        evaluate(none, split="validation")
    bernoulli.write_status(state="diverged", reason="the KL term is nan")
    with pytest.raises(VaecliError, match="diverged: the KL term is nan; name a checkpoint file"):
        evaluate(bernoulli, k=2)
    assert evaluate(Run(bernoulli.path, bernoulli.last), k=2).checkpoint.startswith("last")
    bernoulli.write_status(state="running")
    assert evaluate(bernoulli, k=2).checkpoint.startswith("best")  # killed, and nobody trains it
    with lock(bernoulli.path / LOCK):
        assert evaluate(bernoulli, k=2).checkpoint.startswith("last")


def test_a_gaussians_own_encoder_is_too_narrow_a_proposal_for_binary_images(small, tmp_path):
    """The same decoder, b and k: with q(z|y) -log p(b) is far higher than with proposals fitted to b."""
    settings = {"model": {"decoder": "gaussian", "hidden_dim": 32}, "training": {"epochs": 100}}
    run = train(small(**settings), runs_dir=tmp_path)
    found = evaluate(run, k=100)
    pixels = Dataset(run.config.data, Support.UNIT_INTERVAL).test.pixels
    b = binarize_dynamically(pixels, generator(0, "evaluation")).target
    y = build_preprocess(Support.UNIT_INTERVAL, run.config.data)(pixels, generator(0, "evaluation")).input
    own = binarised_model(run.config, run.vae)
    with torch.no_grad():
        nll = -log_evidence(own, Batch(y, b), 100, generator(0, "importance")).mean().item()
    assert found.binarised_nll < nll - 1


def test_an_evaluation_is_read_as_it_was_written(bernoulli):
    written = evaluate(bernoulli, k=3)
    path = bernoulli.evaluation_path(bernoulli.checkpoint.progress.step, EvaluationSpec(k=3))
    assert read_evaluation(path) == written


@pytest.mark.parametrize(
    ("change", "error", "what"),
    [
        ({"elbo": None, "elbo_se": None}, NotFiniteError, "not finite: elbo$"),
        ({"elbo": "a number"}, VaecliError, "is not a whole evaluation"),
        ({"kl_per_dimension": {}}, VaecliError, "is not a whole evaluation"),
    ],
)
def test_an_evaluation_with_wrong_parts_is_refused(bernoulli, tmp_path, change, error, what):
    evaluate(bernoulli, k=3)
    path = bernoulli.evaluation_path(bernoulli.checkpoint.progress.step, EvaluationSpec(k=3))
    (tmp_path / "other.json").write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(error, match=what):
        read_evaluation(tmp_path / "other.json")
    (tmp_path / "other.json").write_text(path.read_text()[:-30])
    with pytest.raises(VaecliError, match="is not a whole evaluation: Invalid JSON"):
        read_evaluation(tmp_path / "other.json")
