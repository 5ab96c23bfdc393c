import json
from dataclasses import asdict

import numpy as np
import pytest

from vaecli.config.jobs import AnnealingSpec, GapsSpec
from vaecli.errors import UsageError
from vaecli.evaluation import annealed
from vaecli.evaluation.annealed import evaluate_annealed
from vaecli.evaluation.gaps import evaluate_gaps
from vaecli.reports.diagnostics import draw_gaps
from vaecli.runs.run import Run
from vaecli.training.loop import train

QUICK = AnnealingSpec(temperatures=15, chains=30, bracket=True)
SHORTEST = AnnealingSpec(temperatures=4, chains=4, bracket=True)
"""Where only the same numbers are asked for, not good ones."""


@pytest.fixture(params=["bernoulli", "sigma-gaussian", "discretized-logistic"])  # one of each support
def run(request, small, tmp_path) -> Run:
    return train(small(model={"decoder": request.param}), runs_dir=tmp_path)


@pytest.fixture
def bernoulli(small, tmp_path) -> Run:
    return train(small(), runs_dir=tmp_path)


def written(run: Run, part: str) -> list:
    return [path for path in (run.path / "evaluations").iterdir() if part in path.name]


def test_annealing_agrees_with_importance_sampling_and_brackets_images_of_the_model(run):
    found = evaluate_annealed(run, QUICK)
    assert found.n_images == 6
    assert found.difference == pytest.approx(0, abs=0.1 + 5 * found.log_evidence_mc_se)
    assert 0.3 < found.acceptance < 0.95
    # both bounds are noisy: over 6 images and 30 chains to within half a nat
    assert -0.5 < found.simulated_gap < 0.5
    assert found.simulated_lower - 0.5 < found.simulated_fitted < found.simulated_upper + 0.5
    (path,) = written(run, "bracket.json")
    assert json.loads(path.read_text()) == asdict(found)
    with np.load(path.with_suffix(".npz")) as arrays:
        assert arrays["lower"].mean() == pytest.approx(found.log_evidence)
        assert arrays["simulated_upper"].shape == (6,)


def test_annealing_from_the_prior_comes_to_the_same(bernoulli):
    found = evaluate_annealed(bernoulli, AnnealingSpec(temperatures=60, chains=50, start="prior"))
    assert found.difference == pytest.approx(0, abs=0.2)
    assert (found.simulated_lower, found.simulated_gap) == (None, None)


def test_an_annealing_that_was_stopped_goes_on_to_the_same(bernoulli, monkeypatch):
    monkeypatch.setattr(annealed, "AT_ONCE", 2)
    whole = evaluate_annealed(bernoulli, SHORTEST)
    for path in written(bernoulli, "ais"):
        path.unlink()

    def stop(stage: str, done: int, total: int) -> None:
        if stage == "annealing" and done > 0.5 * total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate_annealed(bernoulli, SHORTEST, callback=stop)
    (kept,) = written(bernoulli, "partial")
    with np.load(kept) as arrays:
        assert 0 < len(arrays["lower"]) < 6
    seen = []
    again = evaluate_annealed(
        bernoulli, SHORTEST, callback=lambda stage, done, total: seen.append((stage, done, total))
    )
    assert again == whole
    assert not written(bernoulli, "partial")
    first = next(done / total for stage, done, total in seen if stage == "annealing")
    assert first > 1 / 3  # it did not begin again
    assert [done == total for stage, done, total in seen if stage.startswith("annealing")].count(True) == 2


def test_what_was_kept_of_another_checkpoint_or_is_damaged_is_not_gone_on_from(bernoulli, monkeypatch):
    whole = evaluate_annealed(bernoulli, SHORTEST)
    (path,) = written(bernoulli, "bracket.json")
    kept = path.with_suffix(".partial.npz")
    kept.write_bytes(b"damaged")
    assert evaluate_annealed(bernoulli, SHORTEST) == whole
    np.savez(kept, digest="another", lower=np.zeros(6))
    assert evaluate_annealed(bernoulli, SHORTEST) == whole


def test_the_papers_estimator_is_near_the_evidence_where_few_dimensions_are(bernoulli, small, tmp_path):
    found = evaluate_annealed(bernoulli, AnnealingSpec(method="posterior", temperatures=10, chains=400))
    assert found.difference == pytest.approx(0, abs=0.15)
    assert (found.log_evidence_mc_se, found.acceptance) == (None, None)
    many = train(small(model={"latent_dim": 11}), runs_dir=tmp_path)
    with pytest.raises(
        UsageError, match="11 latent dimensions; the estimator from posterior samples is of use up to 10"
    ):
        evaluate_annealed(many, AnnealingSpec(method="posterior"))


def test_the_gaps_add_up_and_are_drawn(run):
    gaps, path = evaluate_gaps(run, GapsSpec())
    assert gaps.log_evidence - gaps.elbo == pytest.approx(gaps.approximation_gap + gaps.amortisation_gap)
    assert gaps.amortisation_gap > -0.05  # the best of an image is no worse than the encoder's
    assert gaps.approximation_gap > -0.1
    assert gaps.kl == pytest.approx(gaps.mutual_information + gaps.kl_of_aggregate)
    assert gaps.mutual_information <= np.log(6) + 1e-6
    picture = draw_gaps(path)
    assert picture.read_text().startswith("<svg")
    with np.load(path.with_suffix(".npz")) as arrays:
        assert arrays["approximation_gap"].mean() == pytest.approx(gaps.approximation_gap)
