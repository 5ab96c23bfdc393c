"""One step of training, as algorithm 1 of the paper has it."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from vaecli.data.dataset import Batch
from vaecli.model.objectives import build_objective, loss
from vaecli.training.state import Chunk, Minibatch, TrainingState

Step = Callable[..., Float[Tensor, "..."]]
"""Makes the steps of a chunk, or of one chunk for each of several states. Returns, for every step (and every state),
the loss, the log-likelihood and the KL: means over the minibatch, left on the device so that nobody waits for them."""


class EagerStep:
    """Make a step of stochastic gradient ascent on the bound (paper, algorithm 1)."""

    def __init__(self, state: TrainingState) -> None:
        self.states = (state,)
        self.state = state
        self.optimizer = state.optimizer
        self.objective = build_objective(state.config.objective)

    def __call__(self, minibatch: Minibatch) -> Float[Tensor, " 3"]:
        """Draw x and ε, differentiate the loss, and move the parameters: nothing here waits for the device."""
        batch, epsilon = self.state.draw(minibatch.pixels)
        terms = self.differentiate(batch, epsilon, minibatch.kl_weight)
        self.optimizer.step(minibatch.learning_rate)
        return terms

    def differentiate(
        self, batch: Batch, epsilon: Float[Tensor, "S B Z"], kl_weight: float | Tensor
    ) -> Float[Tensor, " 3"]:
        """Leave the gradient of the loss with the parameters, and return the loss, the log-likelihood and the KL."""
        value, terms = loss(self.objective, self.state.vae, batch, epsilon, kl_weight)
        self.optimizer.zero_grad()
        value.backward()
        return terms


def one_by_one(step: Callable[..., Tensor]) -> Step:
    """Return a function that makes the steps of chunks one after another."""

    def make(*chunks: Chunk) -> Float[Tensor, "..."]:
        return torch.stack([step(*minibatches) for minibatches in zip(*chunks, strict=True)])

    return make
