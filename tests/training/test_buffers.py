"""Models with buffers, such as running means: they are saved, resumed, and kept apart in each replicate.

What is evaluated while a run trains leaves them as they are.
"""

import pytest
import torch
from torch import nn

from identical import traces
from vaecli.data.dataset import Dataset
from vaecli.errors import DivergedError, LimitReachedError
from vaecli.model import networks
from vaecli.model.bound import evaluate_bound
from vaecli.runs.run import list_runs
from vaecli.training.divergence import check_finite
from vaecli.training.loop import resume, train
from vaecli.training.opening import new_state, start_session
from vaecli.training.replicates import train_replicates
from vaecli.training.session import Controls
from vaecli.training.stopping import Limit


@pytest.fixture
def buffered(monkeypatch):
    """Give every encoder a layer with buffers: the running mean and variance of its inputs, and a count."""

    def with_buffers(config, image_shape, n_outputs, n_params):
        built = networks.perceptrons(config, image_shape, n_outputs, n_params)
        return built._replace(encoder=nn.Sequential(nn.BatchNorm1d(image_shape.n_pixels), *built.encoder))

    monkeypatch.setitem(networks.NETWORKS, "mlp", with_buffers)


def test_buffers_are_saved_and_resumed(small, tmp_path, buffered):
    uncut = train(small(), runs_dir=tmp_path / "uncut")
    assert uncut.vae.encoder.network[0].running_mean.abs().max() > 0
    with pytest.raises(LimitReachedError):
        train(small(), runs_dir=tmp_path / "cut", limit=Limit(images=70))
    (cut,) = list_runs(tmp_path / "cut")
    assert traces(resume(cut)) == traces(uncut)


def test_only_steps_move_buffers(small, tmp_path, buffered):
    """Three epochs of five steps: not the bounds, the pictures and the projector's points between and after them."""
    run = train(small(), runs_dir=tmp_path)
    assert run.load(run.last).model["encoder.network.0.num_batches_tracked"] == 15


def test_the_bound_during_training_is_that_of_the_checkpoint(small, tmp_path, buffered):
    """With the running means, which checkpoints hold, and not with those of the images that happen to be there."""
    session = start_session(small(), tmp_path, None, Controls())
    assert train_replicates({0: session}) == {}
    best = session.run.load(session.run.best)
    bound = evaluate_bound(best.build_vae(), session.dataset.validation.pixels, session.state.preprocess, 0)
    assert bound.elbo == pytest.approx(best.progress.best_elbo, rel=1e-6)  # by either library of matrix products


def test_every_replicate_has_buffers_of_its_own(small, tmp_path, buffered):
    """They go where the same runs go alone."""

    def sessions(folder):
        return {seed: start_session(small(seed=seed), tmp_path / folder, None, Controls()) for seed in (0, 1)}

    together, alone = sessions("together"), sessions("alone")
    assert train_replicates(together) == {}
    for seed, session in alone.items():
        assert train_replicates({seed: session}) == {}
        torch.testing.assert_close(
            together[seed].state.vae.state_dict(), session.state.vae.state_dict(), rtol=0, atol=1e-4
        )
    means = [session.state.vae.encoder.network[0].running_mean for session in together.values()]
    assert not means[0].equal(means[1])


def test_a_buffer_that_is_not_finite_is_training_that_diverged(small, buffered):
    config = small()
    state = new_state(config, Dataset(config.data, config.model.likelihood.support).train, torch.device("cpu"))
    check_finite(state)
    state.vae.encoder.network[0].running_var[1] = torch.inf
    with pytest.raises(DivergedError):
        check_finite(state)
