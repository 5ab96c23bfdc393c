"""Steps that are replayed end in the bits of plain ones: on CUDA for real, and anywhere the bookkeeping around it."""

from contextlib import contextmanager
from unittest.mock import MagicMock

import pytest
import torch

from identical import traces
from vaecli import training
from vaecli.errors import LimitReachedError
from vaecli.observations import observation
from vaecli.runs import list_runs
from vaecli.state import adam_on_device, build_optimizer
from vaecli.steps import Ascent, Recorded, is_recorded, new_step
from vaecli.stopping import Limit
from vaecli.training import resume, train

on_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.fixture
def start(small):
    """A state before its first step, and how its pixels are observed."""

    def begin(**settings):
        state, _ = training._start(small(**settings), None, None)
        return state, observation(state.config.model.likelihood.support, state.config.data)

    return begin


def parameters(state) -> list[bytes]:
    return [parameter.detach().numpy().tobytes() for parameter in state.vae.parameters()]


@on_cuda
@pytest.mark.parametrize("decoder", ["bernoulli", "gaussian", "discretized-logistic"])
@pytest.mark.parametrize("objective", [{}, {"L": 3, "estimator": "A"}, {"name": "iwae", "L": 3}])
def test_replayed_steps_end_in_the_bits_of_plain_ones(small, tmp_path, decoder, objective):
    settings = {"device": "cuda", "model": {"decoder": decoder}, "objective": objective}
    plain, replayed = (
        train(small(**settings, training={"batch_size": 10, "cuda_graph": asked}), runs_dir=tmp_path / str(asked))
        for asked in (False, True)
    )
    for kept in ("model", "optimizer"):
        torch.testing.assert_close(
            getattr(replayed.checkpoint, kept), getattr(plain.checkpoint, kept), rtol=0, atol=0, equal_nan=True
        )


@on_cuda
def test_a_replayed_run_that_was_cut_goes_on_to_the_same_bits(small, tmp_path):
    config = small(device="cuda", training={"cuda_graph": True})
    uncut = train(config, runs_dir=tmp_path / "uncut")
    with pytest.raises(LimitReachedError):
        train(config, runs_dir=tmp_path / "cut", limit=Limit(images=70))
    (cut,) = list_runs(tmp_path / "cut")
    assert traces(resume(cut)) == traces(uncut)


def test_nothing_is_recorded_but_on_cuda(start):
    state, observe = start(training={"cuda_graph": True})
    assert not is_recorded(state)
    assert isinstance(new_step(state, observe), Ascent)


def test_what_is_done_before_a_recording_is_taken_back(start, monkeypatch):
    """With a CUDA graph that is played by the plain step: 45 images in minibatches of 10 leave one of 5 an epoch."""
    state, observe = start()
    plain, other = start()
    step, recorded = Ascent(plain, other), Recorded(state, Ascent(state, observe))
    rounds: list[int] = []
    at_set_rate = Ascent.at_set_rate

    def count(self, pixels, weight):
        rounds.append(len(pixels))
        return at_set_rate(self, pixels, weight)

    class Graph:
        def register_generator_state(self, generator):
            assert generator in state.generators.values()

        def replay(self):
            recorded._figures.copy_(recorded._ascend.at_set_rate(recorded._pixels, 1.0))

    @contextmanager
    def record_only(graph):
        before = state.capture({})
        yield
        state.restore(before)

    monkeypatch.setattr(Ascent, "at_set_rate", count)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", record_only)
    for name in ("Stream", "current_stream", "stream"):
        monkeypatch.setattr(torch.cuda, name, MagicMock())
    for one, ascend in ((plain, step), (state, recorded)):
        for _ in range(2):
            training._run_epoch(one, ascend, lambda: None)
    assert rounds == [10, 10, 10, 10, 5] * 2 + [10] * 3 + [10] + [10, 10, 10, 10, 5] * 2
    assert parameters(state) == parameters(plain)
    assert state.trace.numpy().tobytes() == plain.trace.numpy().tobytes()


def test_adam_with_all_that_it_keeps_on_the_device_is_adam(start):
    """Its step size is a float32 there, so that it may differ in the last bit."""
    one, observe = start()
    other, _ = start()
    other.optimizer = adam_on_device(other.config.optimizer, other.vae)
    assert isinstance(other.optimizer.param_groups[0]["lr"], torch.Tensor)
    for state in (one, other):
        training._run_epoch(state, Ascent(state, observe), lambda: None)
    for mine, theirs in zip(one.vae.parameters(), other.vae.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-7)
    again = build_optimizer(other.config.optimizer, other.vae)
    again.load_state_dict(again.state_dict() | {"state": other.optimizer.state_dict()["state"]})
