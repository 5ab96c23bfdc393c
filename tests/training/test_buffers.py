"""Models with buffers, such as running means: they are saved, resumed, and kept apart in each replicate."""

import pytest
import torch
from torch import nn

from identical import traces
from vaecli.errors import LimitReachedError
from vaecli.model import networks
from vaecli.runs.run import list_runs
from vaecli.training.loop import resume, train
from vaecli.training.opening import start_session
from vaecli.training.replicates import train_replicates
from vaecli.training.session import Controls
from vaecli.training.stopping import Limit


class RunningMean(nn.Module):
    """Subtract a running mean of the inputs, which training moves and which is not a parameter."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(n))
        self.register_buffer("n_seen", torch.zeros((), dtype=torch.int64))

    def forward(self, x):
        if self.training and torch.is_grad_enabled() and not torch._C._functorch.is_functorch_wrapped_tensor(x):
            self.mean.lerp_(x.detach().mean(0), 0.1)
            self.n_seen += 1
        return x - self.mean


@pytest.fixture
def buffered(monkeypatch):
    """Give every encoder a layer with buffers."""

    def with_buffers(config, image_shape, n_outputs, n_params):
        built = networks.perceptrons(config, image_shape, n_outputs, n_params)
        return built._replace(encoder=nn.Sequential(RunningMean(image_shape.n_pixels), *built.encoder))

    monkeypatch.setitem(networks.NETWORKS, "mlp", with_buffers)


def test_buffers_are_saved_and_resumed(small, tmp_path, buffered):
    uncut = train(small(), runs_dir=tmp_path / "uncut")
    assert uncut.checkpoint.model["encoder.network.0.n_seen"] > 0
    assert uncut.vae.encoder.network[0].mean.abs().max() > 0
    with pytest.raises(LimitReachedError):
        train(small(), runs_dir=tmp_path / "cut", limit=Limit(images=70))
    (cut,) = list_runs(tmp_path / "cut")
    assert traces(resume(cut)) == traces(uncut)


def test_every_replicate_has_buffers_of_its_own(small, tmp_path, buffered):
    """Each starts from a mean of its own, which its steps use: they go where the same runs go alone."""

    def sessions(folder):
        made = {seed: start_session(small(seed=seed), tmp_path / folder, None, Controls()) for seed in (0, 1)}
        for seed, session in made.items():
            session.state.vae.encoder.network[0].mean.fill_(0.5 * seed)
            session.state.vae.encoder.network[0].eval()
        return made

    together, alone = sessions("together"), sessions("alone")
    assert train_replicates(together) == {}
    for seed, session in alone.items():
        assert train_replicates({seed: session}) == {}
        torch.testing.assert_close(
            together[seed].state.vae.state_dict(), session.state.vae.state_dict(), rtol=0, atol=1e-4
        )
        assert together[seed].state.vae.encoder.network[0].mean.eq(0.5 * seed).all()
