"""Learning algorithms: what is random in a step, and the loss whose gradient it then follows.

Beside Auto-Encoding Variational Bayes, what the paper compares it with (section 5), of the same networks.

Axes: S samples, M images of a minibatch, D pixels, Z latent dimensions.
"""

from collections.abc import Callable
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from vaecli.config.schema import Config, ObjectiveConfig
from vaecli.data.dataset import Batch
from vaecli.model.distributions import Factorised, Posterior
from vaecli.model.objectives import Algorithm, Drawn, Streams, build_objective, explain, loss, reported
from vaecli.model.vae import VAE


@final
class Aevb(Algorithm):
    """Follow the gradient of a bound in all parameters at once, through z = T(ε; x) (paper, algorithm 1)."""

    def __init__(self, config: ObjectiveConfig) -> None:
        self._objective = build_objective(config)

    def loss(self, vae: VAE, drawn: Drawn, kl_weight: float | Tensor) -> tuple[Float[Tensor, ""], Float[Tensor, " 3"]]:
        """Return the negative objective."""
        x, target, epsilon = drawn
        return loss(self._objective, vae, Batch(x, target), epsilon, kl_weight)


@final
class WakeSleep(Algorithm):
    """Learn p(x, z) from images and q(z|x) from dreams, neither by the gradient of the other (Hinton et al. 1995).

    Awake, the decoder and the prior follow ∇_θ log p(x, z) with z ~ q(z|x) for images x. Asleep, the encoder follows
    ∇_φ log q(z'|x') for a dream z' ~ p(z), x' ~ p(x|z'). Both are taken at the same parameters, and there are as many
    dreams as draws of z. It needs no differentiable draws, and its two losses are of no common bound: the sleep phase
    makes KL(p(z|x) ‖ q(z|x)) small on average over dreams, where the ELBO has KL(q(z|x) ‖ p(z|x)) over images.

    A dream x' is a draw of what the likelihood is one of: binary pixels for a Bernoulli, whether images are binary or
    grey. Its mean would not do, although it looks more like a grey image: z' could be told from it without error, and
    log q(z'|x') would have no upper bound.
    """

    @torch.no_grad()
    def draw(
        self,
        vae: VAE,
        batch: Batch,  # noqa: ARG002
        epsilon: Float[Tensor, "S M Z"],
        streams: Streams,
    ) -> tuple[Float[Tensor, "SM Z"], Float[Tensor, "SM D"]]:
        """Draw dreams z' ~ p(z), x' ~ p(x|z'), as many as there are rows of ε."""
        z = vae.prior.draw(epsilon.shape[0] * epsilon.shape[1], epsilon, streams.epsilon)
        likelihood = vae.decoder(z)
        assert isinstance(likelihood, Factorised)
        return z, likelihood.draw(streams.pixels)

    def loss(self, vae: VAE, drawn: Drawn, kl_weight: float | Tensor) -> tuple[Float[Tensor, ""], Float[Tensor, " 3"]]:  # noqa: ARG002
        """Return the mean of -log p(x, z) - log q(z'|x'): each term has a gradient in its own phase's parameters."""
        x, target, epsilon, dreamt_z, dreamt_x = drawn
        with torch.no_grad():
            posterior = vae.encoder(x)
            assert isinstance(posterior, Posterior)
            transported = posterior.transport(epsilon)
        draws = explain(vae, Batch(x, target), posterior, transported)
        wake = draws.log_likelihood + vae.prior.log_prob(draws.z)
        sleep = vae.encoder(dreamt_x).log_prob(dreamt_z)
        value = -wake.mean() - sleep.mean()
        with torch.no_grad():
            return value, reported(value, draws.elbo)


ALGORITHMS: dict[str, Callable[[ObjectiveConfig], Algorithm]] = {
    "aevb": Aevb,
    "wake-sleep": lambda config: WakeSleep(),  # noqa: ARG005
}
"""The algorithms by their names in the config."""


def build_algorithm(config: Config) -> Algorithm:
    """Return the algorithm that a config names."""
    return ALGORITHMS[config.training.algorithm](config.objective)
