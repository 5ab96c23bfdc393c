"""Steps of training: made one by one as algorithm 1 has them, or, on CUDA, many recorded once and replayed."""

import logging
import warnings
from collections.abc import Callable, Sequence
from types import FunctionType
from typing import NamedTuple

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap

from vaecli.data.observations import Batch, Observe
from vaecli.errors import ReproducibilityWarning, UsageError
from vaecli.model.objectives import Elbo, Objective, noise, objective
from vaecli.model.vae import VAE
from vaecli.training.optimizers import Optimizer
from vaecli.training.state import TrainingState
from vaecli.training.stopping import block_sigint

STEPS_PER_LAUNCH = 25
"""Of a CUDA graph."""
ROUNDS_BEFORE_RECORDING = 3
"""Libraries set themselves up in the first ones."""


class Minibatch(NamedTuple):
    """What one step depends on, beside the state that it moves."""

    pixels: UInt8[Tensor, "M D"]
    kl_weight: float | Float[Tensor, ""]
    learning_rate: float | Float[Tensor, ""]


Portion = Sequence[Minibatch]
"""The minibatches of some steps."""
Step = Callable[..., Float[Tensor, "..."]]
"""Makes the steps of a portion, or of one portion for each of several states. Returns, of every step (and every state),
the loss, the log-likelihood and the KL: means over the minibatch, left on the device so that nobody waits for them."""


class Ascent:
    """Stochastic gradient ascent on the bound (paper, algorithm 1)."""

    def __init__(self, state: TrainingState, observe: Observe) -> None:
        self.states = (state,)
        self.optimizer: Optimizer = state.optimizer
        self._vae, self._streams, self._n_samples = state.vae, state.generators, state.config.objective.L
        self._observe, self._maximise = observe, objective(state.config.objective)
        self.optimizer.n_steps.fill_(state.progress.step)
        state.replicates = 1

    def __call__(self, minibatch: Minibatch) -> Float[Tensor, " 3"]:
        """One step: nothing here waits for the device."""
        pixels, kl_weight, learning_rate = minibatch
        batch = self._observe(pixels, self._streams["pixels"])
        epsilon = noise(self._vae, batch, self._n_samples, self._streams["epsilon"])
        figures = self._differentiate(batch, epsilon, kl_weight)
        self.optimizer.step(learning_rate)
        return figures

    def _differentiate(self, batch: Batch, epsilon: Tensor, kl_weight: float | Tensor) -> Float[Tensor, " 3"]:
        """The gradient of the loss, left with the parameters."""
        bound, elbo = self._maximise(self._vae, batch, epsilon, kl_weight)
        loss = -bound.mean()
        self.optimizer.zero_grad()
        loss.backward()
        return torch.stack((loss, elbo.log_likelihood.mean(), elbo.kl.mean())).detach()


class Replicates:
    """The same, for several states whose configs differ in nothing but the seed, as one batched program.

    Their parameters, and what the optimiser keeps of each, are stacked, and from then on each state's are views of its
    slice. Every state draws from its own streams and follows its own bound, so that it goes where it would go alone,
    but for the order in which sums of floats are taken.

    Args:
        states: At the same step.
        observe: How pixels become x.
    """

    def __init__(self, states: Sequence[TrainingState], observe: Observe) -> None:
        self.states = tuple(states)
        for state in states:
            state.replicates, state.compiled = len(states), False
        config, vae = states[0].config, states[0].vae
        self._bound = _Bound(vae, objective(config.objective))
        self._observe, self._n_samples = observe, config.objective.L
        stacks = zip(*(state.vae.parameters() for state in states), strict=True)
        self._parameters = [nn.Parameter(torch.stack(stack).detach()) for stack in stacks]
        self.optimizer: Optimizer = type(states[0].optimizer)(self._parameters, config.optimizer.weight_decay)
        self.optimizer.stack([state.optimizer for state in states])
        self.optimizer.n_steps.fill_(states[0].progress.step)
        for r, state in enumerate(states):
            for parameter, stacked in zip(state.vae.parameters(), self._parameters, strict=True):
                parameter.data = stacked.data[r]

    def __call__(self, *minibatches: Minibatch) -> Float[Tensor, "R 3"]:
        """One step of every state, each on its own minibatch."""
        _, kl_weight, learning_rate = minibatches[0]
        batches, epsilons = [], []
        for state, minibatch in zip(self.states, minibatches, strict=True):
            batches.append(self._observe(minibatch.pixels, state.generators["pixels"]))
            epsilons.append(noise(state.vae, batches[-1], self._n_samples, state.generators["epsilon"]))
        stacked = Batch(*(torch.stack(parts) for parts in zip(*batches, strict=True)))
        bound, elbo = vmap(self._bound.at, in_dims=(0, 0, 0, None))(
            self._parameters, stacked, torch.stack(epsilons), kl_weight
        )
        loss = -bound.mean(-1)
        self.optimizer.zero_grad()
        loss.sum().backward()
        self.optimizer.step(learning_rate)
        return torch.stack((loss, elbo.log_likelihood.mean(-1), elbo.kl.mean(-1)), -1).detach()


class _Bound(nn.Module):
    """An objective as the forward pass of a module, which is what can be called with other parameters."""

    def __init__(self, vae: VAE, maximise: Objective) -> None:
        super().__init__()
        self.vae, self._maximise = vae, maximise
        self._names = [name for name, _ in self.named_parameters()]

    def forward(self, batch: Batch, epsilon: Tensor, kl_weight: float | Tensor) -> tuple[Tensor, Elbo]:
        return self._maximise(self.vae, batch, epsilon, kl_weight)

    def at(
        self, parameters: Sequence[Tensor], batch: Batch, epsilon: Tensor, kl_weight: float | Tensor
    ) -> tuple[Tensor, Elbo]:
        """The same with parameters other than the model's own."""
        named = dict(zip(self._names, parameters, strict=True))
        result: tuple[Tensor, Elbo] = functional_call(self, named, (batch, epsilon, kl_weight))
        return result


class Recorded:
    """Steps in a CUDA graph: one launch for many, instead of some two hundred for each, and the same bits.

    They are recorded at the first portion that is a full one; the others are made one by one.
    """

    def __init__(self, ascend: Ascent | Replicates) -> None:
        self._ascend, self._steps = ascend, one_by_one(ascend)
        self._graph: torch.cuda.CUDAGraph | None = None
        self._figures: Tensor | None = None
        first = ascend.states[0]
        n, size, device = steps_at_a_time(first), first.batch_size, first.vae.device
        n_pixels = first.images.pixels.shape[1]
        self._pixels = torch.empty(len(ascend.states), n, size, n_pixels, dtype=torch.uint8, device=device)
        self._schedule = torch.empty(2, n, device=device)
        self._portions = [
            [Minibatch(*step) for step in zip(pixels, *self._schedule, strict=True)] for pixels in self._pixels
        ]

    def __call__(self, *portions: Portion) -> Float[Tensor, "..."]:
        """Replay them on other images."""
        n, size = self._pixels.shape[1:3]
        if any(len(portion) < n or len(portion[-1].pixels) < size for portion in portions):
            return self._steps(*portions)
        for pixels, portion in zip(self._pixels, portions, strict=True):
            torch.stack([minibatch.pixels for minibatch in portion], out=pixels)
        schedule = list(zip(*(minibatch[1:] for minibatch in portions[0]), strict=True))
        self._schedule.copy_(torch.tensor(schedule, pin_memory=self._schedule.is_cuda), non_blocking=True)
        if self._graph is None:
            with torch.cuda.device(self._schedule.device):  # where torch puts what it is not told where to put
                self._record()
        assert self._graph is not None
        assert self._figures is not None
        self._graph.replay()
        return self._figures

    def _record(self) -> None:
        """Go some rounds, take them back, and record; recording does not make the steps."""
        states, device = self._ascend.states, self._schedule.device
        before = [state.capture({}) for state in states]
        aside = torch.cuda.Stream(device)
        aside.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(aside):
            self._steps(*(portion[:ROUNDS_BEFORE_RECORDING] for portion in self._portions))
        torch.cuda.current_stream(device).wait_stream(aside)
        for state, checkpoint in zip(states, before, strict=True):
            state.restore(checkpoint)
        self._ascend.optimizer.n_steps.fill_(states[0].progress.step)
        self._ascend.optimizer.zero_grad()
        self._graph = torch.cuda.CUDAGraph()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # from torch 2.13 on a graph finds the generators itself, and says so
            for state in states:
                for name in ("pixels", "epsilon"):
                    self._graph.register_generator_state(state.generators[name])
        with torch.cuda.graph(self._graph, stream=aside):
            self._figures = self._steps(*self._portions)


class Compiled(Ascent):
    """The same to rounding, with the bound and its gradient compiled into fewer operations by `torch.compile`.

    What was compiled is for minibatches of the full size; the last of an epoch may be smaller and goes without.
    """

    def __init__(self, state: TrainingState, observe: Observe) -> None:
        super().__init__(state, observe)
        self._state, self._size = state, state.batch_size
        self._weights = [parameter.detach() for parameter in state.vae.parameters()]
        self._gradient: Callable[..., tuple[list[Tensor], Tensor]] | None = None

    def _differentiate(self, batch: Batch, epsilon: Tensor, kl_weight: float | Tensor) -> Float[Tensor, " 3"]:
        if len(batch.input) < self._size or not self._state.compiled:
            return super()._differentiate(batch, epsilon, kl_weight)
        weight = torch.as_tensor(kl_weight)  # as a number it would be compiled in
        if self._gradient is None:
            try:
                self._gradient = self._compile()
                with block_sigint():  # or a Ctrl-C would end the compiler, which is a process of its own
                    gradients, figures = self._gradient(self._weights, batch, epsilon, weight)
            except Exception as error:  # noqa: BLE001 (there are many on the way to a compiler)
                self._give_up(error)
                return super()._differentiate(batch, epsilon, kl_weight)
        else:
            gradients, figures = self._gradient(self._weights, batch, epsilon, weight)
        for parameter, gradient in zip(self.optimizer.parameters, gradients, strict=True):
            parameter.grad = gradient
        return figures

    def _compile(self) -> Callable[..., tuple[list[Tensor], Tensor]]:
        logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # it warns that there is no GPU
        bound_at = _Bound(self._vae, self._maximise).at

        def loss(weights: list[Tensor], batch: Batch, epsilon: Tensor, kl_weight: Tensor) -> tuple[Tensor, Tensor]:
            bound, elbo = bound_at(weights, batch, epsilon, kl_weight)
            value = -bound.mean()
            return value, torch.stack((value, elbo.log_likelihood.mean(), elbo.kl.mean())).detach()

        differentiated = grad_and_value(loss, has_aux=True)

        def gradient(
            weights: list[Tensor], batch: Batch, epsilon: Tensor, kl_weight: Tensor
        ) -> tuple[list[Tensor], Tensor]:
            gradients, (_, figures) = differentiated(weights, batch, epsilon, kl_weight)
            return gradients, figures

        # What is compiled is kept with the code object, and looked at again at every call to see whether it still
        # applies. With one of its own it always does, and a process may compile as many as it likes.
        own = FunctionType(gradient.__code__.replace(), gradient.__globals__, closure=gradient.__closure__)
        compiled: Callable[..., tuple[list[Tensor], Tensor]] = torch.compile(
            own, fullgraph=True, dynamic=False, options={"guard_filter_fn": lambda guards: [False] * len(guards)}
        )
        return torch.no_grad()(compiled)

    def _give_up(self, error: Exception) -> None:
        """Go on without, unless it was asked for. Raises UsageError."""
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)[:200]
        if self._state.config.training.compile == "on":
            raise UsageError(
                f"training.compile: torch.compile failed: {reason}; it needs a C++ compiler; off goes without"
            ) from error
        if self._state.progress.step:
            message = f"may not end in the same bits as an uncut run: its steps cannot be compiled here: {reason}"
            warnings.warn(message, ReproducibilityWarning, stacklevel=2)
        self._state.compiled = False


def one_by_one(ascend: Callable[..., Tensor]) -> Step:
    """Steps made as they come."""

    def step(*portions: Portion) -> Float[Tensor, "..."]:
        return torch.stack([ascend(*minibatches) for minibatches in zip(*portions, strict=True)])

    return step


def new_step(states: Sequence[TrainingState], observe: Observe) -> Step:
    """What makes the steps that a config asks for, of one state or of several together."""
    first = states[0]
    if len(states) > 1:
        ascend: Ascent | Replicates = Replicates(states, observe)
    else:
        ascend = Compiled(first, observe) if first.compiled else Ascent(first, observe)
    return Recorded(ascend) if is_recorded(first) else one_by_one(ascend)


def is_recorded(state: TrainingState) -> bool:
    """Whether steps are replayed: if asked for, where the parameters and the images lie on a CUDA device."""
    return (
        state.config.training.cuda_graph
        and state.vae.device.type == "cuda"
        and state.images.pixels.device.type == "cuda"
    )


def steps_at_a_time(state: TrainingState) -> int:
    """How many steps a portion has."""
    full_ones = len(state.images) // state.batch_size
    return min(STEPS_PER_LAUNCH, full_ones) if is_recorded(state) else 1
