"""Steps that are replayed end in the bits of plain ones, and steps of several runs together where each goes alone."""

import os
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import MagicMock

import pytest
import torch

from identical import traces
from vaecli.config.likelihoods import LIKELIHOODS
from vaecli.config.loading import dump_config
from vaecli.data.observations import Batch, observation
from vaecli.errors import LimitReachedError, UsageError
from vaecli.runs.run import list_runs
from vaecli.training import session as training
from vaecli.training import step as steps
from vaecli.training.session import resume, train
from vaecli.training.state import build_optimizer
from vaecli.training.step import Ascent, Compiled, Recorded, Replicates, is_recorded, new_step, one_by_one
from vaecli.training.stopping import Limit

on_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
SEEDS = (0, 1, 5)
EXACT = {"optimizer": {"learning_rate": 2**-9, "schedule": "constant"}}
"""A step size that float32 holds, as which it lies on a device."""


@on_cuda
@pytest.mark.parametrize("decoder", ["bernoulli", "gaussian", "discretized-logistic"])
@pytest.mark.parametrize(
    "settings",
    [{}, {"L": 3, "estimator": "A"}, {"name": "iwae", "L": 3}, {"kl_warmup": 2}, {"optimizer": {"name": "adagrad"}}],
)
def test_replayed_steps_end_in_the_bits_of_plain_ones(small, tmp_path, monkeypatch, decoder, settings):
    monkeypatch.setattr(steps, "STEPS_PER_LAUNCH", 2)
    optimizer = settings.pop("optimizer", {})
    settings = {"device": "cuda", "model": {"decoder": decoder}, "objective": settings, "optimizer": optimizer}
    plain, replayed = (
        train(small(**settings, training={"batch_size": 10, "cuda_graph": asked}), runs_dir=tmp_path / str(asked))
        for asked in (False, True)
    )
    for kept in ("model", "optimizer"):
        torch.testing.assert_close(
            getattr(replayed.checkpoint, kept), getattr(plain.checkpoint, kept), rtol=0, atol=0, equal_nan=True
        )


@on_cuda
def test_a_replayed_run_that_was_cut_goes_on_to_the_same_bits(small, tmp_path, monkeypatch):
    monkeypatch.setattr(steps, "STEPS_PER_LAUNCH", 2)
    config = small(device="cuda", training={"cuda_graph": True})
    uncut = train(config, runs_dir=tmp_path / "uncut")
    with pytest.raises(LimitReachedError):
        train(config, runs_dir=tmp_path / "cut", limit=Limit(images=70))
    (cut,) = list_runs(tmp_path / "cut")
    assert traces(resume(cut)) == traces(uncut)


def test_nothing_is_recorded_but_on_cuda(small):
    state, _ = training._start(small(training={"cuda_graph": True}), None, None)
    assert not is_recorded(state)


@pytest.fixture
def pretended(monkeypatch):
    """CUDA graphs that are replayed operation by operation, and the sizes of the minibatches of all steps made."""
    recorded: list[Recorded] = []
    sizes: list[int] = []

    class Noted(Recorded):
        def __init__(self, ascend):
            super().__init__(ascend)
            recorded.append(self)

    class Graph:
        def register_generator_state(self, generator):
            states = recorded[-1]._ascend.states
            assert any(generator is stream for state in states for stream in state.generators.values())

        def replay(self):
            step = recorded[-1]
            step._figures.copy_(step._steps(*step._portions))

    @contextmanager
    def record_only(graph, stream):
        states = recorded[-1]._ascend.states
        before = [state.capture({}) for state in states]
        yield
        for state, checkpoint in zip(states, before, strict=True):
            state.restore(checkpoint)
        recorded[-1]._ascend.optimizer.n_steps.fill_(states[0].progress.step)

    for kind in (Ascent, Replicates):
        ascend = kind.__call__

        def count(self, *minibatches, ascend=ascend):
            sizes.append(len(minibatches[0].pixels))
            return ascend(self, *minibatches)

        monkeypatch.setattr(kind, "__call__", count)
    monkeypatch.setattr(steps, "STEPS_PER_LAUNCH", 2)
    monkeypatch.setattr(steps, "ROUNDS_BEFORE_RECORDING", 1)
    monkeypatch.setattr(steps, "Recorded", Noted)
    monkeypatch.setattr(steps, "is_recorded", lambda state: state.config.training.cuda_graph)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", record_only)
    for name in ("Stream", "current_stream", "stream", "device"):
        monkeypatch.setattr(torch.cuda, name, MagicMock())
    return sizes


def outcome(run) -> dict:
    return {key: value for key, value in traces(run)["last"].items() if key != "config"}


@pytest.mark.parametrize("settings", [EXACT, {"objective": {"kl_warmup": 2}, "optimizer": {"name": "adagrad"}}])
def test_a_run_whose_steps_are_replayed_ends_in_the_same_bits(small, tmp_path, pretended, settings):
    """45 images in minibatches of 10: two portions of two steps an epoch, and a minibatch of five."""
    plain = train(small(**settings), runs_dir=tmp_path / "plain")
    pretended.clear()
    replayed = train(small(**settings, training={"cuda_graph": True}), runs_dir=tmp_path / "replayed")
    before_recording, recorded, epoch = [10], [10, 10], [10, 10, 10, 10, 5]
    assert pretended == before_recording + recorded + 3 * epoch
    assert outcome(replayed) == outcome(plain)


@pytest.mark.parametrize("n_images", [10, 30, 45, 75])
def test_a_replayed_run_goes_on_from_between_its_portions(small, tmp_path, pretended, monkeypatch, n_images):
    plain = train(small(**EXACT), runs_dir=tmp_path / "plain")
    config, limit = small(**EXACT, training={"cuda_graph": True}), Limit(images=n_images)
    monkeypatch.setattr(steps, "STEPS_PER_LAUNCH", 1)
    with pytest.raises(LimitReachedError):
        train(config, runs_dir=tmp_path / "cut", limit=limit)
    monkeypatch.setattr(steps, "STEPS_PER_LAUNCH", 2)
    (cut,) = list_runs(tmp_path / "cut")
    assert outcome(resume(cut)) == outcome(plain)


def beginnings(config, seeds=SEEDS) -> list:
    """States before their first step, in float64, and how their pixels are observed."""
    found = []
    for seed in seeds:
        state, _ = training._start(config.model_copy(update={"seed": seed}), None, None)
        state.vae.double()
        state.optimizer = build_optimizer(state.config.optimizer, state.vae)
        found.append(state)
    observe = observation(config.model.likelihood.support, config.data)
    return found, lambda pixels, noise: Batch(*(part.double() for part in observe(pixels, noise)))


def go_together(states, observe, n_epochs) -> None:
    """The epochs of all, with the steps of each round made together."""
    step = new_step(states, observe)
    for _ in range(n_epochs):
        epochs = [training._epoch(state, training.steps_at_a_time(state), lambda: None) for state in states]
        asked = [next(epoch) for epoch in epochs]
        while asked:
            figures = step(*asked)
            asked = []
            for r, epoch in enumerate(epochs):
                try:
                    asked.append(epoch.send(figures[:, r]))
                except StopIteration:
                    continue


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=on_cuda)])
@pytest.mark.parametrize("decoder", LIKELIHOODS)
@pytest.mark.parametrize(
    "objective",
    [{"L": 2, "kl_warmup": 1}, {"estimator": "A"}, {"name": "iwae", "L": 3}],
    ids=["B", "A", "iwae"],
)
def test_runs_whose_steps_are_made_together_go_where_each_goes_alone(small, device, decoder, objective):
    """15 steps in float64: only the order of sums differs, by some 1e-16 each time, and steps are of 1e-3."""
    config = small(model={"decoder": decoder}, objective=objective, device=device)
    alone, observe = beginnings(config)
    for state in alone:
        step = one_by_one(Ascent(state, observe))
        for _ in range(3):
            training.drive(training._epoch(state, 1, lambda: None), lambda step=step: step)
    together, observe = beginnings(config)
    go_together(together, observe, 3)
    for one, other in zip(alone, together, strict=True):
        torch.testing.assert_close(other.vae.state_dict(), one.vae.state_dict(), rtol=0, atol=1e-9)
        torch.testing.assert_close(other.optimizer.state_dict(), one.optimizer.state_dict(), rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(other.trace, one.trace, rtol=1e-6, atol=1e-6)  # kept in float32
        assert other.progress.step == one.progress.step == 15
    assert not torch.equal(together[0].trace, together[1].trace)


def test_runs_together_are_replayed_too(small, pretended):
    plain, observe = beginnings(small(**EXACT))
    go_together(plain, observe, 2)
    pretended.clear()
    replayed, observe = beginnings(small(**EXACT, training={"cuda_graph": True}))
    go_together(replayed, observe, 2)
    assert pretended == [10, 10, 10] + 2 * [10, 10, 10, 10, 5]
    for one, other in zip(plain, replayed, strict=True):
        torch.testing.assert_close(other.vae.state_dict(), one.vae.state_dict(), rtol=0, atol=0)
        torch.testing.assert_close(other.optimizer.state_dict(), one.optimizer.state_dict(), rtol=0, atol=0)
        assert torch.equal(other.trace, one.trace)


COMPILE = """
import sys
import pytest
from identical import traces
from vaecli import load_config, train
from vaecli.errors import LimitReachedError
from vaecli.runs.run import list_runs
from vaecli.training.stopping import Limit
from vaecli.training.session import resume

for decoder, objective in ("bernoulli", "objective.L=1"), ("sigma-gaussian", "objective.name=iwae"):
    settings = [f"model.decoder={decoder}", objective, "objective.kl_warmup=2"]
    runs = f"{sys.argv[2]}/{decoder}"
    plain = train(load_config(sys.argv[1], settings), runs_dir=f"{runs}/plain")
    config = load_config(sys.argv[1], [*settings, "training.compile=on"])
    compiled = train(config, runs_dir=f"{runs}/compiled")
    for one, other in zip(plain.metrics, compiled.metrics, strict=True):
        assert one["elbo"] == pytest.approx(other["elbo"], abs=1e-4)
    assert plain.checkpoint.conditions["steps"] == "plain"
    assert compiled.checkpoint.conditions["steps"] == "compiled"
    assert any((compiled.checkpoint.model[name] != weight).any() for name, weight in plain.checkpoint.model.items())
    with pytest.raises(LimitReachedError):
        train(config, runs_dir=f"{runs}/cut", limit=Limit(images=75))
    (cut,) = list_runs(f"{runs}/cut")
    assert traces(resume(cut)) == traces(compiled)
"""


@pytest.mark.skipif(not (os.environ.get("CXX") or shutil.which("g++")), reason="needs a C++ compiler")
def test_compiled_steps_are_the_same_to_rounding_and_go_on_to_the_same_bits(small, tmp_path):
    """In a process without type checks at run time, which cannot be compiled; one after another, each its own model."""
    (tmp_path / "small.yaml").write_text(dump_config(small(model={"hidden_dim": 60})))
    done = subprocess.run(
        [sys.executable, "-c", COMPILE, tmp_path / "small.yaml", tmp_path],
        capture_output=True, text=True, check=False, timeout=300, cwd=Path(__file__).parents[1],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("settings", "compiled"),
    [
        ({"epochs": 10_000, "compile": "auto"}, True),  # of five steps
        ({"epochs": 9_999, "compile": "auto"}, False),
        ({"epochs": 10_000, "compile": "off"}, False),
        ({"compile": "on"}, True),
    ],
)
def test_long_runs_are_compiled(small, settings, compiled):
    state, _ = training._start(small(training=settings), None, None)
    assert state.compiled is compiled


def test_what_cannot_be_compiled_goes_without_unless_it_was_asked_for(small, tmp_path, monkeypatch):
    def fail(self):
        raise RuntimeError("no compiler")

    monkeypatch.setattr(Compiled, "_compile", fail)
    monkeypatch.setattr("vaecli.training.state.STEPS_TO_COMPILE_FOR", 1)
    plain = train(small(), runs_dir=tmp_path / "plain")
    without = train(small(training={"compile": "auto"}), runs_dir=tmp_path / "without")
    assert outcome(without) == outcome(plain)
    assert without.checkpoint.conditions["steps"] == "plain"
    with pytest.raises(UsageError, match=r"training.compile: torch.compile failed: no compiler"):
        train(small(training={"compile": "on"}), runs_dir=tmp_path / "asked")
    (run,) = list_runs(tmp_path / "asked")
    assert run.status["state"] == "failed"


def test_a_run_keeps_to_the_steps_it_began_with(small, tmp_path, monkeypatch):
    """A run that is extended may come to be one that is worth it."""
    config = small(training={"compile": "auto"}, optimizer={"schedule": "constant"})
    run = train(config, runs_dir=tmp_path)
    monkeypatch.setattr("vaecli.training.state.STEPS_TO_COMPILE_FOR", 1)
    longer = config.model_copy(update={"training": config.training.model_copy(update={"epochs": 4})})
    assert resume(run, longer).checkpoint.conditions["steps"] == "plain"
