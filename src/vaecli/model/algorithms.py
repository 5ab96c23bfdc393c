"""Learning algorithms: what is random in a step, and the loss whose gradient it then follows.

Beside Auto-Encoding Variational Bayes, what the paper compares it with (section 5), of the same networks.

Axes: S samples, M images of a minibatch, D pixels, Z latent dimensions.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import final

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from vaecli.config.schema import Config
from vaecli.config.sections import ObjectiveConfig
from vaecli.data.preprocess import Batch
from vaecli.model.distributions import Factorised, Posterior
from vaecli.model.hamiltonian import Point, differentiate, euclidean, transition
from vaecli.model.objectives import Algorithm, Drawn, Inner, Streams, build_objective, draw, explain, loss, reported
from vaecli.model.vae import VAE
from vaecli.randomness import generator


@final
class Aevb(Algorithm):
    """Follow the gradient of a bound in all parameters at once, through z = T(ε; x) (paper, algorithm 1)."""

    def __init__(self, config: ObjectiveConfig) -> None:
        super().__init__()
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
        which: Callable[[], Int64[Tensor, " M"]],  # noqa: ARG002
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


@final
class MonteCarloEm(Algorithm):
    """Learn p(x, z) from draws of its own posterior, without an encoder (paper, appendix E).

    Every training image has a chain, which goes on from where it was when its image was last in a minibatch. The E step
    is one Hamiltonian transition of the minibatch's chains; the M step follows ∇_θ log p(x, z), whose expectation under
    p(z|x) is ∇_θ log p(x), in five updates of the weights. Chains begin at draws from the prior, which is the posterior
    as long as the decoder does not depend on z. One step size for all follows the acceptance of minibatches to 90 %.

    The encoder takes no part in that. It is fitted beside it to the same draws, by ∇_φ log q(z|x), so that a bound can
    be reported, images encoded and proposals begin somewhere.

    Args:
        vae: Whose prior the chains begin at.
        n_images: How many are trained on.
        generator: Draws where chains begin, on the images' device.
    """

    updates = 5
    ACCEPTANCE = 0.9
    FIRST_SIZE = 0.1
    RATE = 0.3
    """The logarithm of the step size moves by so much times what the acceptance is off."""

    @torch.no_grad()
    def __init__(self, vae: VAE, n_images: int, generator: torch.Generator) -> None:
        super().__init__()
        like = next(vae.parameters())
        self.inner: Inner = evaluate_log_joint
        log_size = torch.full((), math.log(self.FIRST_SIZE), dtype=like.dtype, device=like.device)
        self.memory = {"z": vae.prior.draw(n_images, like, generator), "log_step_size": log_size}

    @torch.no_grad()
    def draw(
        self,
        vae: VAE,
        batch: Batch,
        epsilon: Float[Tensor, "S M Z"],
        streams: Streams,
        which: Callable[[], Int64[Tensor, " M"]],
    ) -> Drawn:
        """Move the chains of the images, and return where they are, with what is reported of the images' ELBO."""
        elbo = draw(vae, batch, epsilon).elbo
        chains, log_size = self.memory["z"], self.memory["log_step_size"]
        rows = which().to(chains.device)
        with fixed(vae):
            dynamics = euclidean(lambda z: Point(z, *self.inner(vae, batch.target, z)))
            point, accepted = transition(dynamics.at(chains[rows]), dynamics, log_size.exp(), streams.epsilon)
        chains[rows] = point.z
        log_size += self.RATE * (accepted.mean() - self.ACCEPTANCE)
        return point.z, elbo.log_likelihood.mean(), elbo.kl.mean()

    def loss(self, vae: VAE, drawn: Drawn, kl_weight: float | Tensor) -> tuple[Float[Tensor, ""], Float[Tensor, " 3"]]:  # noqa: ARG002
        """Return the mean of -log p(x, z) - log q(z|x): the encoder's parameters are in the second term alone."""
        x, target, _, z, log_likelihood, kl = drawn
        value = -log_joint(vae, target, z).mean() - vae.encoder(x).log_prob(z).mean()
        return value, torch.stack((value, log_likelihood, kl)).detach()


def log_joint(vae: VAE, target: Float[Tensor, "M D"], z: Float[Tensor, "M Z"]) -> Float[Tensor, " M"]:
    """Return log p(x, z) of each image with its own z, differentiable."""
    log_p: Tensor = vae.decoder(z).log_prob(target) + vae.prior.log_prob(z)
    return log_p


def evaluate_log_joint(
    vae: VAE, target: Float[Tensor, "M D"], z: Float[Tensor, "M Z"]
) -> tuple[Float[Tensor, " M"], Float[Tensor, "M Z"]]:
    """Return log p(x, z) of each image, and its gradient in z."""
    return differentiate(lambda at: log_joint(vae, target, at), z)


@contextmanager
def fixed(vae: VAE) -> Iterator[None]:
    """Take no gradient in the parameters meanwhile."""
    vae.requires_grad_(requires_grad=False)
    try:
        yield
    finally:
        vae.requires_grad_(requires_grad=True)


ALGORITHMS: dict[str, Callable[[Config, VAE, int], Algorithm]] = {
    "aevb": lambda config, vae, n_images: Aevb(config.objective),  # noqa: ARG005
    "wake-sleep": lambda config, vae, n_images: WakeSleep(),  # noqa: ARG005
    "mcem": lambda config, vae, n_images: MonteCarloEm(vae, n_images, generator(config.seed, "chains", vae.device)),
}
"""The algorithms by their names in the config."""


def build_algorithm(config: Config, vae: VAE, n_images: int) -> Algorithm:
    """Return the algorithm that a config names, to train a model on so many images."""
    return ALGORITHMS[config.training.algorithm](config, vae, n_images)
