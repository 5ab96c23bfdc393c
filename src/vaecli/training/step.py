"""One step of training: what is random is drawn, the loss differentiated, and the parameters moved."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from vaecli.model.objectives import Drawn
from vaecli.training.state import Chunk, Minibatch, TrainingState

Step = Callable[..., Float[Tensor, "..."]]
"""Makes the steps of a chunk, or of one chunk for each of several states. Returns, for every step (and every state),
the loss, the log-likelihood and the KL: means over the minibatch, left on the device so that nobody waits for them."""


class EagerStep:
    """Make a step of stochastic gradient ascent (paper, algorithm 1), by whichever algorithm the config names."""

    def __init__(self, state: TrainingState) -> None:
        self.states = (state,)
        self.state = state
        self.optimizer = state.optimizer

    def __call__(self, minibatch: Minibatch) -> Float[Tensor, " 3"]:
        """Draw what is random, differentiate the loss, and move the parameters: nothing here waits for the device."""
        drawn = self.state.draw(minibatch.pixels)
        for _ in range(self.state.algorithm.updates):
            terms = self.differentiate(drawn, minibatch.kl_weight)
            self.optimizer.step(minibatch.learning_rate)
        return terms

    def differentiate(self, drawn: Drawn, kl_weight: float | Tensor) -> Float[Tensor, " 3"]:
        """Leave the gradient of the loss with the parameters, and return the loss, the log-likelihood and the KL."""
        value, terms = self.state.algorithm.loss(self.state.vae, drawn, kl_weight)
        self.optimizer.zero_grad()
        value.backward()
        return terms


def one_by_one(step: Callable[..., Tensor]) -> Step:
    """Return a function that makes the steps of chunks one after another."""

    def make(*chunks: Chunk) -> Float[Tensor, "..."]:
        return torch.stack([step(*minibatches) for minibatches in zip(*chunks, strict=True)])

    return make
