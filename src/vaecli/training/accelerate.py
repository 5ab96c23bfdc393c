"""Steps made faster: compiled, vmapped over several states, or replayed from a CUDA graph. One place chooses."""

import copy
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import vmap

from vaecli.errors import InterruptedRunError, ReproducibilityWarning, UsageError
from vaecli.model.objectives import Drawn
from vaecli.model.vae import VAE
from vaecli.stages import StageCallback, silent, wait_for
from vaecli.training.functional import Compiled, Functional, compile_function
from vaecli.training.optimizers import Optimizer, build_optimizer
from vaecli.training.state import Chunk, Minibatch, TrainingState
from vaecli.training.step import EagerStep, Step, one_by_one

WARM_UP_STEPS = 3
"""Steps made before a CUDA graph is recorded: libraries set themselves up in the first ones."""


def choose_step(states: Sequence[TrainingState], on_stage: StageCallback = silent) -> Step:
    """Return what makes the steps that a config asks for, of one state or of several as one batched program.

    `on_stage` is called as long as something is prepared for the first step.
    """
    first = states[0]
    if len(states) > 1:
        step: EagerStep | VmappedStep = VmappedStep(states, stack(states))
    else:
        first.replicates = 1
        first.optimizer.n_steps.fill_(first.updates)
        step = CompiledStep(first, on_stage) if first.compiled else EagerStep(first)
    return CudaGraphStep(step) if first.uses_cuda_graph else one_by_one(step)


class CompiledStep(EagerStep):
    """Make eager steps, but with the loss and its gradient compiled into fewer operations.

    What is compiled is a record of the operations of `EagerStep`, forward and backward, and its values are theirs to
    rounding. It is for minibatches of the full size; the last of an epoch may be smaller and is made eagerly. Where the
    number of samples changes, it is compiled anew.

    Args:
        state: What to make steps of.
        on_stage: Is called as long as the compiler is at work; what it raises leaves the state as it is.
    """

    def __init__(self, state: TrainingState, on_stage: StageCallback = silent) -> None:
        super().__init__(state)
        self._on_stage = on_stage
        self._weights = [parameter.detach() for parameter in state.vae.parameters()]
        self._buffers = list(state.vae.buffers())
        self._inner = state.algorithm.inner
        self._gradient: Callable[..., Sequence[Tensor]] | None = None
        self._n_samples = 0

    def __call__(self, minibatch: Minibatch) -> Float[Tensor, " 3"]:
        """Make a step, after the compilation if it is the first of its kind: before anything is drawn for it."""
        if self._n_samples != self.state.n_samples and self._takes(minibatch.pixels):
            try:
                self._gradient, inner = wait_for("compiling the step", self._compile, self._on_stage)
                self._n_samples = self.state.n_samples
                self._use_inner(inner)
            except InterruptedRunError:
                raise
            except Exception as error:  # noqa: BLE001 (there are many on the way to a compiler)
                self._continue_eagerly(error)
        return super().__call__(minibatch)

    def differentiate(self, drawn: Drawn, kl_weight: float | Tensor) -> Float[Tensor, " 3"]:
        """Leave the gradient of the loss with the parameters, and return the loss, the log-likelihood and the KL."""
        if self._gradient is None or not self._takes(drawn[0]):
            return super().differentiate(drawn, kl_weight)
        weight = torch.as_tensor(kl_weight)  # as a number it would be compiled in
        self.optimizer.zero_grad()  # first, so that the next gradients lie where the last ones did, in the caches
        *gradients, terms = self._gradient(*self._weights, *self._buffers, *drawn, weight)
        for parameter, gradient in zip(self.optimizer.parameters, gradients, strict=True):
            parameter.grad = gradient.contiguous()  # as the parameter lies: optimisers go through memory in order
        return terms

    def _takes(self, images: Tensor) -> bool:
        return self.state.compiled and len(images) == self.state.batch_size

    def _use_inner(self, compiled: Compiled | None) -> None:
        """Give the algorithm a compiled form of what it evaluates again and again."""
        eager = self._inner
        if compiled is None or eager is None:
            return

        def evaluate(vae: VAE, target: Tensor, z: Tensor) -> tuple[Tensor, ...]:
            if not self._takes(target):
                return eager(vae, target, z)
            return tuple(compiled(*self._weights, *self._buffers, target, z))

        self.state.algorithm.inner = evaluate

    def _compile(self) -> tuple[Compiled, Compiled | None]:
        """Return what maps parameters, buffers and inputs to results: gradient and terms of the loss; and `inner`."""
        state, n_weights, n_own = self.state, len(self._weights), len(self._weights) + len(self._buffers)
        vae = copy.deepcopy(state.vae)  # whose tensors are replaced meanwhile, even after a stop
        functional, inner = Functional(vae, state.algorithm.loss), self._inner

        def gradient(*tensors: Tensor) -> tuple[Tensor, ...]:
            weights = [weight.detach().requires_grad_() for weight in tensors[:n_weights]]
            buffers, (*drawn, kl_weight) = tensors[n_weights:n_own], tensors[n_own:]
            value, terms = functional.at(weights, buffers, tuple(drawn), kl_weight)
            return *torch.autograd.grad(value, weights), terms

        of_example = {name: torch.Generator() for name in state.generators}  # its values do not matter
        example_of = replace(state, vae=vae, generators=of_example, algorithm=copy.deepcopy(state.algorithm))
        drawn = example_of.draw(state.images.pixels[: state.batch_size])
        own = (*self._weights, *self._buffers)
        compiled = compile_function(gradient, (*own, *drawn, torch.ones(())))
        if inner is None:
            return compiled, None
        within, (_, target, (z, *_), *_) = Functional(vae, inner), drawn

        def evaluate(*tensors: Tensor) -> tuple[Tensor, ...]:
            return within.at(tensors[:n_weights], tensors[n_weights:n_own], *tensors[n_own:])

        return compiled, compile_function(evaluate, (*own, target, z))

    def _continue_eagerly(self, error: Exception) -> None:
        """Give up compiling. Raises UsageError where `training.compile: on` asked for it."""
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)[:200]
        if self.state.config.training.compile == "on":
            raise UsageError(
                f"training.compile: torch.compile failed: {reason}; it needs a C++ compiler; off goes without"
            ) from error
        if self.state.progress.step:
            message = f"may not end in the same bits as an uncut run: its steps cannot be compiled here: {reason}"
            warnings.warn(message, ReproducibilityWarning, stacklevel=2)
        self.state.compiled = False


class Stacked(NamedTuple):
    """Hold the parameters and buffers of R states as stacks, and one optimiser of all."""

    parameters: list[nn.Parameter]
    buffers: list[Tensor]
    optimizer: Optimizer


def stack(states: Sequence[TrainingState]) -> Stacked:
    """Stack the parameters, buffers and moments of several states; what each state has becomes a view of its slice.

    Args:
        states: At the same step; their configs differ in nothing but the seed.
    """
    for state in states:
        state.replicates, state.compiled = len(states), False
    parameters = [nn.Parameter(each) for each in _stack_data([list(state.vae.parameters()) for state in states])]
    buffers = _stack_data([list(state.vae.buffers()) for state in states])
    optimizer = build_optimizer(states[0].config.optimizer, parameters)
    optimizer.stack([state.optimizer for state in states])
    optimizer.n_steps.fill_(states[0].updates)
    for r, state in enumerate(states):
        own = (*state.vae.parameters(), *state.vae.buffers())
        for tensor, stacked in zip(own, (*parameters, *buffers), strict=True):
            tensor.data = stacked.data[r]
    return Stacked(parameters, buffers, optimizer)


def _stack_data(of_each: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    return [torch.stack(tensors).detach() for tensors in zip(*of_each, strict=True)]


class VmappedStep:
    """Make a step of several states as one batched program.

    Every state draws from its own streams and follows its own loss, so that it goes where it would go alone, but for
    the order in which sums of floats are taken.

    Args:
        states: As for `stack`.
        stacked: From `stack`.
    """

    def __init__(self, states: Sequence[TrainingState], stacked: Stacked) -> None:
        self.states = tuple(states)
        self.optimizer = stacked.optimizer
        self._parameters, self._buffers = stacked.parameters, stacked.buffers
        self._losses = vmap(Functional(states[0].vae, states[0].algorithm.loss).at, in_dims=(0, 0, 0, None))

    def __call__(self, *minibatches: Minibatch) -> Float[Tensor, "R 3"]:
        """Make one step of every state, each on its own minibatch."""
        _, kl_weight, learning_rate = minibatches[0]
        of_each = [state.draw(minibatch.pixels) for state, minibatch in zip(self.states, minibatches, strict=True)]
        drawn = tuple(torch.stack(parts) for parts in zip(*of_each, strict=True))
        for _ in range(self.states[0].algorithm.updates):
            values, terms = self._losses(self._parameters, self._buffers, drawn, kl_weight)
            self.optimizer.zero_grad()
            values.sum().backward()
            self.optimizer.step(learning_rate)
        result: Tensor = terms
        return result


class CudaGraphStep:
    """Replay steps from a CUDA graph: one launch for many, instead of some two hundred for each, and the same bits.

    They are recorded at the first full chunk, and at the first with another number of samples; chunks that are not full
    are made step by step.
    """

    def __init__(self, step: EagerStep | VmappedStep) -> None:
        self._step, self._one_by_one = step, one_by_one(step)
        self._graph: torch.cuda.CUDAGraph | None = None
        self._terms: Tensor | None = None
        self._n_samples = 0
        first = step.states[0]
        n, size, device = first.chunk_size, first.batch_size, first.vae.device
        of_all = first.images.pixels
        self._pixels = of_all.new_empty(len(step.states), n, size, of_all.shape[1], device=device)
        self._schedule = torch.empty(2, n, device=device)
        self._chunks = [
            [Minibatch(*one) for one in zip(pixels, *self._schedule, strict=True)] for pixels in self._pixels
        ]

    def __call__(self, *chunks: Chunk) -> Float[Tensor, "..."]:
        """Replay the steps on other images."""
        n, size = self._pixels.shape[1:3]
        if any(len(chunk) < n or len(chunk[-1].pixels) < size for chunk in chunks):
            return self._one_by_one(*chunks)
        for pixels, chunk in zip(self._pixels, chunks, strict=True):
            torch.stack([minibatch.pixels for minibatch in chunk], out=pixels)
        schedule = list(zip(*(minibatch[1:] for minibatch in chunks[0]), strict=True))
        self._schedule.copy_(torch.tensor(schedule, pin_memory=self._schedule.is_cuda), non_blocking=True)
        if self._n_samples != self._step.states[0].n_samples:
            with torch.cuda.device(self._schedule.device):  # where torch puts what names no device
                self._record()
            self._n_samples = self._step.states[0].n_samples
        assert self._graph is not None
        assert self._terms is not None
        self._graph.replay()
        return self._terms

    def _record(self) -> None:
        """Make some steps, take them back, and record; recording itself does not make the steps."""
        states, device = self._step.states, self._schedule.device
        before = [state.capture({}) for state in states]
        side_stream = torch.cuda.Stream(device)
        side_stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(side_stream):
            self._one_by_one(*(chunk[:WARM_UP_STEPS] for chunk in self._chunks))
        torch.cuda.current_stream(device).wait_stream(side_stream)
        for state, checkpoint in zip(states, before, strict=True):
            state.restore(checkpoint)
        self._step.optimizer.n_steps.fill_(states[0].updates)
        self._step.optimizer.zero_grad()
        self._graph = torch.cuda.CUDAGraph()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # from torch 2.13 on a graph finds the generators itself, and says so
            for state in states:
                for name in ("pixels", "epsilon"):
                    self._graph.register_generator_state(state.generators[name])
        with torch.cuda.graph(self._graph, stream=side_stream):
            self._terms = self._one_by_one(*self._chunks)
