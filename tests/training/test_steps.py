"""Replayed steps end in the bits of eager ones, and vmapped steps of several runs where each goes alone."""

import os
import shutil
from contextlib import contextmanager
from dataclasses import replace
from unittest.mock import MagicMock

import pytest
import torch

from identical import traces
from vaecli.config.likelihoods import LIKELIHOODS
from vaecli.data.dataset import Dataset
from vaecli.data.preprocess import Batch
from vaecli.errors import InterruptedRunError, LimitReachedError, ReproducibilityWarning, UsageError
from vaecli.runs.run import list_runs
from vaecli.training import accelerate
from vaecli.training import state as training_state
from vaecli.training.accelerate import CompiledStep, CudaGraphStep, VmappedStep, choose_step
from vaecli.training.loop import resume, train
from vaecli.training.opening import new_state
from vaecli.training.optimizers import build_optimizer
from vaecli.training.state import TrainingState
from vaecli.training.step import EagerStep, one_by_one
from vaecli.training.stopping import Limit

needs_compiler = pytest.mark.skipif(not (os.environ.get("CXX") or shutil.which("g++")), reason="needs a C++ compiler")
on_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
SEEDS = (0, 1, 5)
EXACT = {"optimizer": {"learning_rate": 2**-9, "schedule": "constant"}}
"""A step size that float32 holds, as which it lies on a device."""
NORMALISED = {"network": "conv", "channels": [3, 4], "normalization": "batch", "activation": "gated"}
"""A model with buffers, which every step moves."""
MODELS = {name: {"decoder": name} for name in LIKELIHOODS} | {
    "normalised": NORMALISED,
    "normalised mlp": {"normalization": "batch"},
    "layers": NORMALISED | {"normalization": "layer"},
}


@on_cuda
@pytest.mark.parametrize("decoder", ["bernoulli", "gaussian", "discretized-logistic"])
@pytest.mark.parametrize(
    "settings",
    [{}, {"L": 3, "estimator": "A"}, {"name": "iwae", "L": 3}, {"kl_warmup": 2}, {"optimizer": {"name": "adagrad"}}],
)
def test_replayed_steps_end_in_the_bits_of_eager_ones(small, tmp_path, monkeypatch, decoder, settings):
    monkeypatch.setattr(training_state, "STEPS_PER_LAUNCH", 2)
    optimizer = settings.pop("optimizer", {})
    settings = {"device": "cuda", "model": {"decoder": decoder}, "objective": settings, "optimizer": optimizer}
    eager, replayed = (
        train(small(**settings, training={"batch_size": 10, "cuda_graph": asked}), runs_dir=tmp_path / str(asked))
        for asked in (False, True)
    )
    for kept in ("model", "optimizer"):
        torch.testing.assert_close(
            getattr(replayed.checkpoint, kept), getattr(eager.checkpoint, kept), rtol=0, atol=0, equal_nan=True
        )


@on_cuda
def test_a_replayed_run_that_was_cut_goes_on_to_the_same_bits(small, tmp_path, monkeypatch):
    monkeypatch.setattr(training_state, "STEPS_PER_LAUNCH", 2)
    config = small(device="cuda", training={"cuda_graph": True})
    uncut = train(config, runs_dir=tmp_path / "uncut")
    with pytest.raises(LimitReachedError):
        train(config, runs_dir=tmp_path / "cut", limit=Limit(images=70))
    (cut,) = list_runs(tmp_path / "cut")
    assert traces(resume(cut)) == traces(uncut)


def first_state(config):
    images = Dataset(config.data, config.model.likelihood.support).train
    return new_state(config, images, torch.device(config.device))


def test_nothing_is_recorded_but_on_cuda(small):
    state = first_state(small(training={"cuda_graph": True}))
    assert not state.uses_cuda_graph
    assert state.chunk_size == 1


@pytest.fixture
def pretended(monkeypatch):
    """Replay CUDA graphs operation by operation; return the sizes of the minibatches of all steps made."""
    recorded: list[CudaGraphStep] = []
    sizes: list[int] = []

    class Noted(CudaGraphStep):
        def __init__(self, step):
            super().__init__(step)
            recorded.append(self)

    class Graph:
        def register_generator_state(self, generator):
            states = recorded[-1]._step.states
            assert any(generator is stream for state in states for stream in state.generators.values())

        def replay(self):
            step = recorded[-1]
            step._terms.copy_(step._one_by_one(*step._chunks))

    @contextmanager
    def record_only(graph, stream):
        states = recorded[-1]._step.states
        before = [state.capture({}) for state in states]
        yield
        for state, checkpoint in zip(states, before, strict=True):
            state.restore(checkpoint)
        recorded[-1]._step.optimizer.n_steps.fill_(states[0].progress.step)

    for kind in (EagerStep, VmappedStep):
        make = kind.__call__

        def count(self, *minibatches, make=make):
            sizes.append(len(minibatches[0].pixels))
            return make(self, *minibatches)

        monkeypatch.setattr(kind, "__call__", count)
    monkeypatch.setattr(training_state, "STEPS_PER_LAUNCH", 2)
    monkeypatch.setattr(accelerate, "WARM_UP_STEPS", 1)
    monkeypatch.setattr(accelerate, "CudaGraphStep", Noted)
    monkeypatch.setattr(TrainingState, "uses_cuda_graph", property(lambda state: state.config.training.cuda_graph))
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", record_only)
    for name in ("Stream", "current_stream", "stream", "device"):
        monkeypatch.setattr(torch.cuda, name, MagicMock())
    return sizes


def outcome(run) -> dict:
    return {key: value for key, value in traces(run)["last"].items() if key != "config"}


@pytest.mark.parametrize(
    "settings",
    [EXACT, {"objective": {"kl_warmup": 2}, "optimizer": {"name": "adagrad"}}, EXACT | {"model": NORMALISED}],
)
def test_a_run_whose_steps_are_replayed_ends_in_the_same_bits(small, tmp_path, pretended, settings):
    """45 images in minibatches of 10: two chunks of two steps an epoch, and a minibatch of five."""
    eager = train(small(**settings), runs_dir=tmp_path / "eager")
    pretended.clear()
    replayed = train(small(**settings, training={"cuda_graph": True}), runs_dir=tmp_path / "replayed")
    before_recording, recorded, epoch = [10], [10, 10], [10, 10, 10, 10, 5]
    assert pretended == before_recording + recorded + 3 * epoch
    assert outcome(replayed) == outcome(eager)


def test_another_number_of_samples_is_recorded_anew(small, tmp_path, pretended):
    """After one epoch of one sample and before the two of three: the same bits, and a warm-up and a record more."""
    settings = EXACT | {"objective": {"name": "iwae", "L": 3, "L_warmup": 1}}
    eager = train(small(**settings), runs_dir=tmp_path / "eager")
    pretended.clear()
    replayed = train(small(**settings, training={"cuda_graph": True}), runs_dir=tmp_path / "replayed")
    recorded, epoch = [10, 10, 10], [10, 10, 10, 10, 5]
    assert pretended == recorded + epoch + recorded + 2 * epoch
    assert outcome(replayed) == outcome(eager)


@pytest.mark.parametrize("n_images", [10, 30, 45, 75])
def test_a_replayed_run_goes_on_from_between_its_chunks(small, tmp_path, pretended, monkeypatch, n_images):
    eager = train(small(**EXACT), runs_dir=tmp_path / "eager")
    config, limit = small(**EXACT, training={"cuda_graph": True}), Limit(images=n_images)
    monkeypatch.setattr(training_state, "STEPS_PER_LAUNCH", 1)
    with pytest.raises(LimitReachedError):
        train(config, runs_dir=tmp_path / "cut", limit=limit)
    monkeypatch.setattr(training_state, "STEPS_PER_LAUNCH", 2)
    (cut,) = list_runs(tmp_path / "cut")
    assert outcome(resume(cut)) == outcome(eager)


def first_states(config, seeds=SEEDS) -> list[TrainingState]:
    """Return states before their first step, in float64."""
    found = []
    for seed in seeds:
        state = first_state(config.model_copy(update={"seed": seed}))
        state.vae.double()
        state.optimizer = build_optimizer(state.config.optimizer, state.vae.parameters())
        state.preprocess = in_float64(state.preprocess)
        found.append(state)
    return found


def in_float64(preprocess):
    def to_x(pixels, generator):
        return Batch(*(part.double() for part in preprocess.to_x(pixels, generator)))

    return replace(preprocess, to_x=to_x)


def train_states(states, step, n_epochs) -> None:
    """Make the epochs of all states, with the steps of each round made at once."""
    for _ in range(n_epochs):
        for chunks in zip(*(state.chunks() for state in states), strict=True):
            terms = step(*chunks)
            for state, chunk, own in zip(states, chunks, terms.unbind(1) if len(states) > 1 else [terms], strict=True):
                state.count(chunk, own)
        for state in states:
            state.end_epoch()


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=on_cuda)])
@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize(
    "objective",
    [
        {"L": 2, "kl_warmup": 1},
        {"estimator": "A"},
        {"name": "iwae", "L": 3, "L_warmup": 2},
        {"name": "stl"},
        {"name": "dreg", "L": 3},
    ],
    ids=["B", "A", "iwae", "stl", "dreg"],
)
def test_runs_whose_steps_are_made_together_go_where_each_goes_alone(small, device, model, objective):
    """15 steps in float64: only the order of sums differs, by some 1e-16 each time, and steps are of 1e-3."""
    config = small(model=model, objective=objective, device=device)
    alone = first_states(config)
    for state in alone:
        train_states([state], one_by_one(EagerStep(state)), 3)
    together = first_states(config)
    train_states(together, choose_step(together), 3)
    for one, other in zip(alone, together, strict=True):
        torch.testing.assert_close(other.vae.state_dict(), one.vae.state_dict(), rtol=0, atol=1e-9)
        torch.testing.assert_close(other.optimizer.state_dict(), one.optimizer.state_dict(), rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(other.trace, one.trace, rtol=1e-6, atol=1e-6)  # kept in float32
        assert other.progress.step == one.progress.step == 15
    assert not torch.equal(together[0].trace, together[1].trace)


def test_runs_together_have_the_optimiser_that_each_has_alone(small):
    """With an ε far above the gradients a step is far smaller."""
    config = small(optimizer={"epsilon": 10.0, "weight_decay": 0.1})
    (alone, *_), together = first_states(config), first_states(config)
    train_states([alone], one_by_one(EagerStep(alone)), 1)
    train_states(together, choose_step(together), 1)
    torch.testing.assert_close(together[0].vae.state_dict(), alone.vae.state_dict(), rtol=0, atol=1e-9)


@pytest.mark.parametrize("model", [{}, NORMALISED], ids=["mlp", "normalised"])
def test_runs_together_are_replayed_too(small, pretended, model):
    eager = first_states(small(**EXACT, model=model))
    train_states(eager, choose_step(eager), 2)
    pretended.clear()
    replayed = first_states(small(**EXACT, model=model, training={"cuda_graph": True}))
    train_states(replayed, choose_step(replayed), 2)
    assert pretended == [10, 10, 10] + 2 * [10, 10, 10, 10, 5]
    for one, other in zip(eager, replayed, strict=True):
        torch.testing.assert_close(other.vae.state_dict(), one.vae.state_dict(), rtol=0, atol=0)
        torch.testing.assert_close(other.optimizer.state_dict(), one.optimizer.state_dict(), rtol=0, atol=0)
        assert torch.equal(other.trace, one.trace)


@needs_compiler
@pytest.mark.parametrize(
    ("model", "objective", "products"),
    [
        ({"decoder": "bernoulli"}, {"L": 1}, "torch"),
        ({"decoder": "sigma-gaussian"}, {"name": "iwae", "L": 2, "L_warmup": 1}, "onednn"),
        # at KL weight 0 nothing depends on where the means of z lie, and Adam would follow the rounding of nothing
        (NORMALISED, {"kl_warmup": 0}, "torch"),
        *(
            pytest.param({"prior": prior, "prior_components": 4, **model}, objective, "torch", marks=pytest.mark.slow)
            for prior, model, objective in (
                ("mixture", {"posterior": "full", "activation": "tanh"}, {"name": "dreg", "L": 2}),
                ("vamp", {"posterior": "diagonal", "activation": "gated"}, {"name": "stl"}),
                ("mixture", {"posterior": "flow", "network": "conv", "channels": 2}, {"L": 2}),
            )
        ),
    ],
)
def test_compiled_steps_are_the_same_to_rounding_and_go_on_to_the_same_bits(
    small, tmp_path, model, objective, products
):
    def settings(compiled):
        chosen = {"compile": compiled, "products": products}
        return small(model=model, objective={"kl_warmup": 2, **objective}, training=chosen)

    eager = train(settings("off"), runs_dir=tmp_path / "eager")
    compiled = train(settings("on"), runs_dir=tmp_path / "compiled")
    for one, other in zip(eager.metrics, compiled.metrics, strict=True):
        assert one["elbo"] == pytest.approx(other["elbo"], abs=1e-4)
    assert eager.checkpoint.conditions["steps"] == "eager"
    assert compiled.checkpoint.conditions["steps"] == "compiled"
    assert any((compiled.checkpoint.model[name] != weight).any() for name, weight in eager.checkpoint.model.items())
    with pytest.raises(LimitReachedError):
        train(settings("on"), runs_dir=tmp_path / "cut", limit=Limit(images=75))
    (cut,) = list_runs(tmp_path / "cut")
    assert traces(resume(cut)) == traces(compiled)


@needs_compiler
def test_who_stops_a_run_while_it_is_compiled_loses_nothing(small, tmp_path):
    """The stop is asked for as the compiler starts; the step was not begun, so that nothing was drawn for it."""
    config, compiling = small(training={"compile": "on"}), []

    def on_stage(stage, done, total):
        if stage == "compiling the step":
            compiling.append(done)

    with pytest.raises(InterruptedRunError, match="stopped while compiling the step"):
        train(config, runs_dir=tmp_path / "cut", stop=lambda: bool(compiling), on_stage=on_stage)
    (cut,) = list_runs(tmp_path / "cut")
    assert cut.checkpoint.progress.step == 0
    assert traces(resume(cut)) == traces(train(config, runs_dir=tmp_path / "uncut"))


@pytest.mark.parametrize("products", ["torch", "onednn"])
def test_both_libraries_train_to_the_same_figures_and_go_on_to_the_same_bits(small, tmp_path, products):
    """Float32 products differ in the last digits, which five steps carry to the fifth digit of the bound."""
    of_torch = train(small(training={"products": "torch"}), runs_dir=tmp_path / "torch")
    config = small(training={"products": products})
    run = train(config, runs_dir=tmp_path / "uncut")
    assert run.metrics[-1]["elbo"] == pytest.approx(of_torch.metrics[-1]["elbo"], abs=1e-3)
    assert run.environment["matrix_products"] == run.checkpoint.conditions["matrix products"] == products
    with pytest.raises(LimitReachedError):
        train(config, runs_dir=tmp_path / "cut", limit=Limit(images=75))
    (cut,) = list_runs(tmp_path / "cut")
    assert traces(resume(cut)) == traces(run)


def test_a_run_keeps_to_the_library_it_began_with(small, tmp_path, monkeypatch):
    """What is the faster one elsewhere is another one, and its bits are others."""
    monkeypatch.setattr("vaecli.devices.choose_library", lambda setting, device: "onednn")
    with pytest.raises(LimitReachedError):
        train(small(), runs_dir=tmp_path, limit=Limit(images=75))
    monkeypatch.setattr("vaecli.devices.choose_library", lambda setting, device: "torch")
    (cut,) = list_runs(tmp_path)
    assert resume(cut).checkpoint.conditions["matrix products"] == "onednn"


def test_a_run_whose_library_is_not_to_be_had_goes_on_with_the_other_and_says_so(small, tmp_path, monkeypatch):
    with pytest.raises(LimitReachedError):
        train(small(training={"products": "onednn"}), runs_dir=tmp_path, limit=Limit(images=75))
    monkeypatch.setattr("vaecli.training.state.has_onednn", lambda device: False)
    monkeypatch.setattr("vaecli.devices.choose_library", lambda setting, device: "torch")
    (cut,) = list_runs(tmp_path)
    with pytest.warns(ReproducibilityWarning, match="matrix products onednn before, torch now"):
        assert resume(cut).status["state"] == "completed"


@pytest.mark.parametrize(
    ("settings", "compiled"),
    [
        ({"epochs": 2_400, "compile": "auto"}, True),  # of five steps
        ({"epochs": 2_399, "compile": "auto"}, False),
        ({"epochs": 2_400, "compile": "off"}, False),
        ({"compile": "on"}, True),
    ],
)
def test_long_runs_are_compiled(small, settings, compiled):
    assert first_state(small(training=settings)).compiled is compiled


def test_what_cannot_be_compiled_goes_without_unless_it_was_asked_for(small, tmp_path, monkeypatch):
    def fail(self):
        raise RuntimeError("no compiler")

    monkeypatch.setattr(CompiledStep, "_compile", fail)
    monkeypatch.setattr("vaecli.training.opening.STEPS_TO_COMPILE_FOR", 1)
    eager = train(small(), runs_dir=tmp_path / "eager")
    without = train(small(training={"compile": "auto"}), runs_dir=tmp_path / "without")
    assert outcome(without) == outcome(eager)
    assert without.checkpoint.conditions["steps"] == "eager"
    with pytest.raises(UsageError, match=r"training.compile: torch.compile failed: no compiler"):
        train(small(training={"compile": "on"}), runs_dir=tmp_path / "asked")
    (run,) = list_runs(tmp_path / "asked")
    assert run.status["state"] == "failed"


def test_a_run_keeps_to_the_steps_it_began_with(small, tmp_path, monkeypatch):
    """A run that is extended may come to be one that is worth it."""
    config = small(training={"compile": "auto"}, optimizer={"schedule": "constant"})
    run = train(config, runs_dir=tmp_path)
    monkeypatch.setattr("vaecli.training.opening.STEPS_TO_COMPILE_FOR", 1)
    longer = config.model_copy(update={"training": config.training.model_copy(update={"epochs": 4})})
    assert resume(run, longer).checkpoint.conditions["steps"] == "eager"
