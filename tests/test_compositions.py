"""Whatever may be chosen goes together: it trains, goes on to the same bits, evaluates, and is sampled from."""

import math
from itertools import combinations, product

import numpy as np
import pytest

from identical import traces
from vaecli.config.jobs import AnnealingSpec, GapsSpec
from vaecli.config.likelihoods import LIKELIHOODS
from vaecli.errors import LimitReachedError, UsageError
from vaecli.evaluation.annealed import evaluate_annealed
from vaecli.evaluation.evaluate import evaluate
from vaecli.evaluation.gaps import evaluate_gaps
from vaecli.evaluation.generation import encode, manifold, reconstruct, sample
from vaecli.runs.run import list_runs
from vaecli.training.loop import resume, train
from vaecli.training.opening import start_session
from vaecli.training.replicates import train_replicates
from vaecli.training.session import Controls
from vaecli.training.stopping import Limit

PRIORS = ("standard", "mixture", "vamp", "flow")
POSTERIORS = ("diagonal", "full", "flow", "iaf")
OBJECTIVES = ("elbo", "iwae", "stl", "dreg")
KINDS = list(product(PRIORS, POSTERIORS))
DECODERS = tuple(LIKELIHOODS)
TRAINED = [
    (prior, posterior, objective, DECODERS[(i + PRIORS.index(prior)) % len(DECODERS)])
    for i, (prior, posterior, objective) in enumerate(product(PRIORS, POSTERIORS, OBJECTIVES))
]
"""Every prior with every posterior and objective, and decoders in turn so that each meets each choice of the others."""
EVALUATED = [(*kind, DECODERS[(i + half) % len(DECODERS)]) for half in (0, 3) for i, kind in enumerate(KINDS)]
"""Every prior with every posterior, and each with two decoders."""


def test_every_two_choices_meet():
    for first, second in combinations(range(4), 2):
        choices = [sorted(set(column)) for column in zip(*TRAINED, strict=True)]
        assert {(row[first], row[second]) for row in TRAINED} == set(product(choices[first], choices[second]))


def settings(prior: str, posterior: str, decoder: str = "bernoulli", objective: str = "elbo") -> dict:
    return {
        "model": {
            "prior": prior,
            "posterior": posterior,
            "decoder": decoder,
            "latent_dim": 2,
            "hidden_dim": 4,
            "prior_components": 3,
        },
        "objective": {"name": objective, "L": 2},
        "training": {"epochs": 2},
    }


@pytest.mark.parametrize(("prior", "posterior", "objective", "decoder"), TRAINED)
def test_every_model_trains_and_goes_on_to_the_same_bits(small, tmp_path, prior, posterior, objective, decoder):
    config = small(**settings(prior, posterior, decoder, objective))
    uncut = train(config, runs_dir=tmp_path / "uncut")
    assert all(math.isfinite(row["elbo"]) for row in uncut.metrics)
    with pytest.raises(LimitReachedError, match="at step 3, in epoch 1"):
        train(config, runs_dir=tmp_path / "cut", limit=Limit(images=30))
    (cut,) = list_runs(tmp_path / "cut")
    assert traces(resume(cut)) == traces(uncut)


@pytest.mark.parametrize(("prior", "posterior", "decoder"), EVALUATED)
def test_every_model_is_evaluated_and_sampled_from(small, tmp_path, prior, posterior, decoder):
    """Bounds stay below the evidence by fitted proposals, to five of their errors; every picture is finite."""
    run = train(small(**settings(prior, posterior, decoder)), runs_dir=tmp_path)
    fitted, encoder = (evaluate(run, k=300, proposal=proposal, binarised=False) for proposal in ("fitted", "encoder"))
    assert (fitted.kl_per_dimension is None) == (prior != "standard" or posterior in {"flow", "iaf"})
    error = 5 * math.hypot(fitted.log_evidence_mc_se, encoder.log_evidence_mc_se) + 1e-3
    assert encoder.log_evidence < fitted.log_evidence + error
    assert fitted.elbo < fitted.log_evidence + error
    for pictures in (sample(run, 3), reconstruct(run, 3).reconstructions, manifold(run, 3), encode(run).stddev):
        assert np.isfinite(pictures).all()


@pytest.mark.parametrize(
    ("prior", "posterior"), [*zip(PRIORS, ("flow", "full", "diagonal", "iaf"), strict=True), ("mixture", "iaf")]
)
def test_annealing_brackets_the_evidence(small, tmp_path, prior, posterior):
    run = train(small(**settings(prior, posterior)), runs_dir=tmp_path)
    found = evaluate_annealed(run, AnnealingSpec(temperatures=20, chains=4, start="prior", bracket=True, limit=3))
    assert found.difference == pytest.approx(0, abs=0.2)
    assert found.simulated_gap == pytest.approx(0, abs=0.4)


@pytest.mark.parametrize(
    ("prior", "posterior"),
    [(prior, "diagonal") for prior in PRIORS] + [("standard", other) for other in POSTERIORS[1:]],
)
def test_gaps_are_found_of_a_diagonal_posterior_and_of_no_other(small, tmp_path, prior, posterior):
    run = train(small(**settings(prior, posterior)), runs_dir=tmp_path)
    if posterior != "diagonal":
        with pytest.raises(UsageError, match="its encoder is not a diagonal Gaussian"):
            evaluate_gaps(run, GapsSpec())
        return
    gaps, _ = evaluate_gaps(run, GapsSpec())
    assert gaps.approximation_gap > -0.05
    assert gaps.kl > 0


@pytest.mark.parametrize("objective", ["elbo", "dreg"])
@pytest.mark.parametrize(
    ("prior", "posterior"),
    [*zip(PRIORS, ("diagonal", "full", "flow", "flow"), strict=True), ("vamp", "full"), ("mixture", "iaf")],
)
def test_seeds_trained_as_one_program_go_where_each_goes_alone(small, tmp_path, prior, posterior, objective):
    configs = [small(**settings(prior, posterior, objective=objective), seed=seed) for seed in (0, 1)]
    sessions = {i: start_session(config, tmp_path / "together", None, Controls()) for i, config in enumerate(configs)}
    assert train_replicates(sessions) == {}
    for config, session in zip(configs, sessions.values(), strict=True):
        alone = train(config, runs_dir=tmp_path / "alone")
        for mine, theirs in zip(session.run.metrics, alone.metrics, strict=True):
            assert mine["elbo"] == pytest.approx(theirs["elbo"], abs=1e-3)
