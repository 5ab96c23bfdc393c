"""The optimisers, beside those of torch."""

import pytest
import torch
from torch import nn

from vaecli.config.sections import OptimizerConfig
from vaecli.training.optimizers import Adagrad, Adam, build_optimizer

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA"))]
BOTH = [(Adam, torch.optim.Adam), (Adagrad, torch.optim.Adagrad)]


def parameters(device="cpu") -> list[nn.Parameter]:
    stream = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=stream).to(device)) for shape in ((40, 30), (30,), ())]


def gradients(step: int) -> list[torch.Tensor]:
    stream = torch.Generator().manual_seed(step)
    return [torch.randn(p.shape, generator=stream) for p in parameters()]


def move(optimizer, moved, steps, *rate) -> list[torch.Tensor]:
    for step in steps:
        optimizer.zero_grad()
        for parameter, gradient in zip(moved, gradients(step), strict=True):
            parameter.grad = gradient.to(parameter.device)
        optimizer.step(*rate)
    return [parameter.detach().cpu().clone() for parameter in moved]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("ours", "torchs"), BOTH)
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_the_bits_are_those_of_torch(ours, torchs, decay, device):
    """On CUDA the step size is a float32, and Adagrad has no kernel of its own."""
    mine, theirs = parameters(device), parameters(device)
    fused = device == "cpu" or ours is Adam
    found = move(ours(mine, decay), mine, range(20), 0.01)
    wanted = move(torchs(theirs, lr=0.01, weight_decay=decay, fused=fused), theirs, range(20))
    tolerance = 0 if device == "cpu" else 1e-6
    torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_adagrad_without_a_kernel_is_the_same_to_rounding(decay, monkeypatch):
    mine, theirs = parameters(), parameters()
    monkeypatch.setattr(Adagrad, "_move", Adagrad._move_each)
    found = move(Adagrad(mine, decay), mine, range(20), 0.01)
    wanted = move(torch.optim.Adagrad(theirs, lr=0.01, weight_decay=decay, fused=True), theirs, range(20))
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)


def test_the_first_step_of_adam_is_its_step_size_against_the_sign_of_the_gradient():
    """m̂ = g and v̂ = g², so that θ moves by α g/(|g| + ε)."""
    (theta,) = moved = [nn.Parameter(torch.tensor([1.0, 1.0, 1.0]))]
    optimizer = Adam(moved)
    theta.grad = torch.tensor([3.0, -0.02, 0.0])
    optimizer.step(0.5)
    assert theta.tolist() == pytest.approx([0.5, 1.5, 1.0], abs=1e-6)


@pytest.mark.parametrize(("ours", "torchs"), BOTH)
def test_what_is_kept_goes_on_in_another_and_is_that_of_torch(ours, torchs):
    whole, cut, torchs_own = parameters(), parameters(), parameters()
    uncut = move(ours(whole), whole, range(10), 0.01)
    first = ours(cut)
    move(first, cut, range(4), 0.01)
    second, before = ours(cut), {i: dict(kept) for i, kept in first.state_dict().items()}
    second.load_state_dict(before, 4)
    torch.testing.assert_close(move(second, cut, range(4, 10), 0.01), uncut, rtol=0, atol=0)
    theirs = torchs(torchs_own, lr=0.01, fused=True)
    move(theirs, torchs_own, range(10))
    kept = {i: dict(moments) for i, moments in theirs.state_dict()["state"].items()}
    with_steps = {i: {"step": second.n_steps, **moments} for i, moments in second.state_dict().items()}
    torch.testing.assert_close(with_steps, kept, rtol=0, atol=0)


def test_what_another_optimiser_keeps_is_refused():
    with pytest.raises(ValueError, match="not that of Adagrad"):
        Adagrad(parameters()).load_state_dict(Adam(parameters()).state_dict(), 1)
    with pytest.raises(ValueError, match="not that of Adam"):
        Adam(parameters()).load_state_dict({}, 1)


@pytest.mark.parametrize("name", ["adam", "adagrad"])
def test_epsilon_is_that_of_the_config_or_the_optimisers_own(name):
    """The first step of either is α g/(|g| + ε): half of α where ε = |g|."""
    for epsilon, share in ((0.02, 0.5), (None, 1.0)):
        (theta,) = moved = [nn.Parameter(torch.tensor([1.0]))]
        optimizer = build_optimizer(OptimizerConfig(name=name, epsilon=epsilon), moved)
        theta.grad = torch.tensor([0.02])
        optimizer.step(0.5)
        assert theta.tolist() == pytest.approx([1 - 0.5 * share], abs=1e-6)
