"""One step of training: done operation by operation, or, on CUDA, recorded once and replayed."""

from collections.abc import Callable

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.optim import Optimizer

from vaecli.config import Config
from vaecli.objectives import objective
from vaecli.observations import Observe
from vaecli.state import TrainingState

Figures = Float[Tensor, " 3"]
"""Loss, log-likelihood and KL: means over the minibatch, left on the device so that nobody waits for them."""
Step = Callable[[UInt8[Tensor, "M D"], float, float], Figures]
"""Follows the gradient on a minibatch, given the KL weight and the step size."""
ROUNDS_BEFORE_RECORDING = 3
"""Libraries set themselves up in the first ones."""


def new_step(state: TrainingState, observe: Observe) -> Step:
    """The step that a config asks for, on a state that it moves."""
    ascend = Ascent(state, observe)
    return Recorded(state, ascend) if is_recorded(state) else ascend


def is_recorded(state: TrainingState) -> bool:
    """Whether steps are replayed: if asked for, where every step is the same work on what lies on a CUDA device."""
    config: Config = state.config
    return (
        config.training.cuda_graph
        and state.vae.device.type == "cuda"
        and state.images.pixels.device.type == "cuda"
        and config.optimizer.name == "adam"
        and config.objective.kl_warmup == 0
    )


class Ascent:
    """A step of stochastic gradient ascent on the bound (paper, algorithm 1)."""

    def __init__(self, state: TrainingState, observe: Observe) -> None:
        self._state, self._observe, self._maximise = state, observe, objective(state.config.objective)

    def __call__(self, pixels: UInt8[Tensor, "M D"], kl_weight: float, learning_rate: float) -> Figures:
        """Do it."""
        set_learning_rate(self._state.optimizer, learning_rate)
        return self.at_set_rate(pixels, kl_weight)

    def at_set_rate(self, pixels: UInt8[Tensor, "M D"], kl_weight: float) -> Figures:
        """Do it with the optimiser's step size as it is: nothing here comes from or goes to the host."""
        vae, optimizer, noise = self._state.vae, self._state.optimizer, self._state.generators
        batch = self._observe(pixels, noise["pixels"])
        bound, elbo = self._maximise(vae, batch, noise["epsilon"], kl_weight)
        loss = -bound.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return torch.stack((loss, elbo.log_likelihood.mean(), elbo.kl.mean())).detach()


class Recorded:
    """The same step in a CUDA graph: one launch instead of some two hundred, and the same bits.

    It is recorded at its first minibatch. The last of an epoch may be smaller and is then done without it.
    """

    def __init__(self, state: TrainingState, ascend: Ascent) -> None:
        self._state, self._ascend = state, ascend
        self._graph: torch.cuda.CUDAGraph | None = None
        self._pixels: UInt8[Tensor, "M D"] | None = None
        self._figures: Figures | None = None

    def __call__(self, pixels: UInt8[Tensor, "M D"], kl_weight: float, learning_rate: float) -> Figures:
        """Replay it on other images."""
        if len(pixels) != self._state.config.training.batch_size:
            return self._ascend(pixels, kl_weight, learning_rate)
        if self._graph is None:
            self._record(pixels, kl_weight)
        assert self._graph is not None
        assert self._pixels is not None
        assert self._figures is not None
        self._pixels.copy_(pixels)
        set_learning_rate(self._state.optimizer, learning_rate)
        self._graph.replay()
        return self._figures

    def _record(self, pixels: UInt8[Tensor, "M D"], kl_weight: float) -> None:
        """Go some rounds, take them back, and record one; recording does not do the step."""
        state, self._pixels = self._state, pixels.clone()
        before = state.capture({})
        aside = torch.cuda.Stream(state.vae.device)
        aside.wait_stream(torch.cuda.current_stream(state.vae.device))
        with torch.cuda.stream(aside):
            for _ in range(ROUNDS_BEFORE_RECORDING):
                self._ascend.at_set_rate(self._pixels, kl_weight)
        torch.cuda.current_stream(state.vae.device).wait_stream(aside)
        state.restore(before)
        state.optimizer.zero_grad()
        self._graph = torch.cuda.CUDAGraph()
        for name in ("pixels", "epsilon"):
            self._graph.register_generator_state(state.generators[name])
        with torch.cuda.graph(self._graph):
            self._figures = self._ascend.at_set_rate(self._pixels, kl_weight)


def set_learning_rate(optimizer: Optimizer, value: float) -> None:
    """Set the step size, in place where it lies on a device."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(value)
        else:
            group["lr"] = value
