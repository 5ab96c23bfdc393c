"""Runs by other algorithms than AEVB: to the same bits when cut, compiled and together as alone."""

import os
import shutil

import pytest
import torch

from identical import traces
from vaecli.errors import LimitReachedError
from vaecli.evaluation.evaluate import evaluate
from vaecli.randomness import generator
from vaecli.runs.run import list_runs
from vaecli.training.loop import resume, train
from vaecli.training.opening import first_state, start_session
from vaecli.training.replicates import train_replicates
from vaecli.training.session import Controls
from vaecli.training.stopping import Limit

needs_compiler = pytest.mark.skipif(not (os.environ.get("CXX") or shutil.which("g++")), reason="needs a C++ compiler")
ALGORITHMS = ("wake-sleep", "mcem")
MODELS = {
    "bernoulli": {},
    "mixture": {"prior": "mixture", "prior_components": 3, "posterior": "full", "decoder": "gaussian"},
    "flow": {"posterior": "flow", "decoder": "discretized-logistic", "normalization": "layer"},
    "conv": {"network": "conv", "channels": [3, 4], "decoder": "continuous-bernoulli"},
}


@pytest.fixture(params=ALGORITHMS)
def by(request, small):
    """Return a function that builds a config of each algorithm in turn."""
    return lambda **sections: small(
        **sections | {"training": {"algorithm": request.param} | sections.get("training", {})}
    )


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_a_run_that_was_cut_goes_on_to_the_same_bits(by, tmp_path, model):
    config = by(model=model, objective={"L": 2})
    uncut = train(config, runs_dir=tmp_path / "uncut")
    with pytest.raises(LimitReachedError):
        train(config, runs_dir=tmp_path / "cut", limit=Limit(images=75))
    (cut,) = list_runs(tmp_path / "cut")
    assert traces(resume(cut)) == traces(uncut)


@pytest.mark.parametrize("model", [MODELS["bernoulli"], MODELS["mixture"]], ids=["bernoulli", "mixture"])
def test_seeds_trained_as_one_program_go_where_each_goes_alone(by, tmp_path, model):
    configs = [by(model=model, seed=seed) for seed in (0, 1)]
    sessions = {i: start_session(config, tmp_path / "together", None, Controls()) for i, config in enumerate(configs)}
    assert train_replicates(sessions) == {}
    for config, session in zip(configs, sessions.values(), strict=True):
        alone = train(config, runs_dir=tmp_path / "alone")
        for mine, theirs in zip(session.run.metrics, alone.metrics, strict=True):
            assert mine["elbo"] == pytest.approx(theirs["elbo"], abs=1e-3)


@needs_compiler
@pytest.mark.slow
def test_compiled_steps_are_the_same_to_rounding_and_go_on_to_the_same_bits(by, tmp_path):
    eager = train(by(), runs_dir=tmp_path / "eager")
    config = by(training={"compile": "on"})
    compiled = train(config, runs_dir=tmp_path / "compiled")
    for one, other in zip(eager.metrics, compiled.metrics, strict=True):
        assert one["elbo"] == pytest.approx(other["elbo"], abs=1e-4)
    assert compiled.checkpoint.conditions["steps"] == "compiled"
    with pytest.raises(LimitReachedError):
        train(config, runs_dir=tmp_path / "cut", limit=Limit(images=75))
    (cut,) = list_runs(tmp_path / "cut")
    assert traces(resume(cut)) == traces(compiled)


def test_chains_begin_at_draws_from_the_prior_of_another_run(small, tmp_path):
    """As at those from its own where it starts anew; 15 steps of Adam at rate 0.1 move the means by more than 0.1."""
    model = MODELS["mixture"]
    other = train(small(model=model, optimizer={"learning_rate": 0.1}), runs_dir=tmp_path)
    config = small(model=model, training={"algorithm": "mcem"})
    (fresh, _), (state, _) = (first_state(config, None, Controls(), run, None) for run in (None, other))
    for one in (fresh, state):
        expected = one.vae.prior.draw(45, torch.zeros(()), generator(config.seed, "chains"))
        assert torch.equal(one.algorithm.memory["z"], expected)
    assert (state.algorithm.memory["z"] - fresh.algorithm.memory["z"]).abs().max() > 0.1


def test_what_is_trained_is_evaluated(by, tmp_path):
    """The bound stays below the evidence by fitted proposals, to five of its errors."""
    found = evaluate(train(by(), runs_dir=tmp_path), k=300)
    assert found.elbo < found.log_evidence + 5 * found.log_evidence_mc_se
