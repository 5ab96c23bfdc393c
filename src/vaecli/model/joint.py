"""The joint density log p(x, z) of a batch of images, which proposals, importance weights and annealing all ask for."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import Distribution

from vaecli.model.vae import VAE

Scores = Callable[[Distribution, Tensor], Float[Tensor, "T S B"]]
"""The log-likelihoods of T statements about an image, given p(x|z): they share z and the weights' other terms."""


def score_log_likelihood(likelihood: Distribution, target: Tensor) -> Float[Tensor, "T S B"]:
    """Return the one score of an ordinary evaluation: log p(x|z)."""
    return likelihood.log_prob(target)[None]


@dataclass(frozen=True)
class LogJoint:
    """Compute log p(x, z) of the images of a batch, some samples at a time, so that memory does not grow with them.

    Args:
        vae: p(x|z) p(z).
        target: What is scored, one image a row.
        rows: At most so many samples of all images together are decoded at a time.
        scores: The log-likelihoods of each image.
    """

    vae: VAE
    target: Float[Tensor, "B D"]
    rows: int
    scores: Scores = score_log_likelihood

    def of_scores(self, z: Float[Tensor, "S B Z"]) -> Float[Tensor, "T S B"]:
        """Return each score + log p(z), in float64."""
        return self._compute(z, self.target)

    def __call__(self, z: Float[Tensor, "S b Z"], images: Tensor) -> Float[Tensor, "S b"]:
        """Return the first score + log p(z) of the images with these numbers."""
        return self._compute(z, self.target[images])[0]

    @torch.no_grad()
    def _compute(self, z: Tensor, target: Tensor) -> Tensor:
        size = max(1, self.rows // len(target))
        parts = [self.scores(self.vae.decoder(part), target) + self.vae.prior.log_prob(part) for part in z.split(size)]
        return torch.cat([part.double() for part in parts], 1)
