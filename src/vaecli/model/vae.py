"""The Variational Auto-Encoder: p(x|z) p(z) with the recognition model q(z|x)."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import Distribution

from vaecli.config.schema import ModelConfig
from vaecli.data.image_grid import ImageShape
from vaecli.model import conditionals
from vaecli.model.conditionals import LINKS, Conditional, Described, Floor, Gaussian
from vaecli.model.distributions import DiagonalNormal, Factorised
from vaecli.model.networks import NETWORKS, initialise
from vaecli.model.posteriors import Flow, FullCovariance, FullNormal
from vaecli.model.priors import Examples, GaussianMixture, Prior, StandardNormal, VampPrior

CHUNK = 1000
"""Images that are decoded at a time."""


CLOSED_FORM_KL: dict[tuple[type[Distribution], type[Prior]], Callable[[Any], Tensor]] = {
    (DiagonalNormal, StandardNormal): DiagonalNormal.kl_from_standard,
    (FullNormal, StandardNormal): FullNormal.kl_from_standard,
}
"""KL(q ‖ p) of each latent dimension, (*batch, Z) in nats, for the pairs of posterior and prior that have one."""


def kl_per_dimension(posterior: Distribution, prior: Prior) -> Float[Tensor, "*batch Z"] | None:
    """Return KL(q(z|x) ‖ p(z)) of each latent dimension in nats, or None where the pair has no closed form."""
    closed_form = CLOSED_FORM_KL.get((type(posterior), type(prior)))
    return None if closed_form is None else closed_form(posterior)


class VAE(nn.Module):
    """Combine a latent variable model p(x|z) p(z) with its approximate posterior q(z|x).

    Args:
        encoder: q(z|x); `vae.encoder(x)` with x of shape (*batch, D) is a distribution over (*batch, Z).
        decoder: p(x|z); `vae.decoder(z)` with z of shape (*batch, Z) is a distribution over (*batch, D).
        prior: p(z).
    """

    def __init__(self, encoder: Conditional, decoder: Conditional, prior: Prior) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.prior = prior

    @property
    def latent_dim(self) -> int:
        """Return Z."""
        return self.prior.latent_dim

    @property
    def device(self) -> torch.device:
        """Return the device of the parameters."""
        return next(self.parameters()).device

    @torch.no_grad()
    def sample(self, n: int, generator: torch.Generator, *, draw: bool = False) -> Float[Tensor, "n D"]:
        """Draw z ~ p(z) n times and return the mean of each p(x|z), or a draw from it."""
        if draw:
            return self.simulate(n, generator)[1]
        z = self.prior.draw(n, next(self.parameters()), generator)
        return torch.cat([self._decode(chunk, None) for chunk in z.split(CHUNK)])

    @torch.no_grad()
    def simulate(self, n: int, generator: torch.Generator) -> tuple[Float[Tensor, "n Z"], Float[Tensor, "n D"]]:
        """Draw z ~ p(z) n times and x from each p(x|z): z is then an exact draw from p(z|x)."""
        z = self.prior.draw(n, next(self.parameters()), generator)
        return z, torch.cat([self._decode(chunk, generator) for chunk in z.split(CHUNK)])

    def _decode(self, z: Tensor, generator: torch.Generator | None) -> Tensor:
        likelihood = self.decoder(z)
        assert isinstance(likelihood, Factorised)
        return likelihood.mean if generator is None else likelihood.draw(generator)

    @torch.no_grad()
    def reconstruct(self, x: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        """Return the mean of p(x|z) at the posterior mean of each image."""
        reconstruction: Tensor = self.decoder(self.encoder(x).mean).mean
        return reconstruction


@contextmanager
def evaluating(vae: VAE) -> Iterator[None]:
    """Let layers that work otherwise in training, such as batch normalisation, work as in evaluation meanwhile."""
    vae.eval()
    try:
        yield
    finally:
        vae.train()


def build_vae(
    config: ModelConfig,
    image_shape: ImageShape,
    generator: torch.Generator,
    mean_image: Float[Tensor, " D"] | None = None,
    examples: Examples | None = None,
) -> VAE:
    """Build the VAE that a config describes, on the CPU. Past this point nothing knows of YAML or of decoders' names.

    Args:
        config: Sizes, activation and decoder.
        image_shape: Channels, height and width of an image.
        generator: Draws the initial parameters; on the CPU.
        mean_image: The mean training image in units of the 0..1 pixel, for `init: mean_image`.
        examples: Returns training images, for a prior that starts from some.
    """
    with torch.random.fork_rng(devices=[]):  # a layer's constructor draws from the global generator
        vae = _assemble(config, image_shape)
    for module in (*vae.encoder.children(), *vae.decoder.children()):  # networks, and what else has parameters
        initialise(module, "torch" if config.init == "mean_image" else config.init, generator)
    vae.prior.initialise(generator, examples)
    if config.init == "mean_image" and mean_image is not None:
        vae.decoder.start_at(mean_image)
    return vae


def build_meta_vae(config: ModelConfig, image_shape: ImageShape) -> VAE:
    """Build the VAE that a config describes on the meta device: shapes that take no memory, however large."""
    with torch.device("meta"):
        return _assemble(config, image_shape)


class Family(NamedTuple):
    """Say how q(z|x) of a kind is made of a network."""

    n_outputs: Callable[[int], int]
    """Returns how many outputs the network must have for Z latent dimensions."""
    build: Callable[[nn.Module, int], Conditional]
    """Returns q(z|x), given the network and Z."""


POSTERIORS = {
    "diagonal": Family(lambda latent_dim: 2 * latent_dim, lambda network, _: Gaussian(network)),
    "full": Family(FullCovariance.n_outputs, lambda network, z: Described(network, FullCovariance(z))),
    "flow": Family(Flow.n_outputs, lambda network, z: Described(network, Flow(z))),
}
"""The posteriors by their names in the config."""
PRIORS: dict[str, Callable[[ModelConfig, ImageShape, Conditional], Prior]] = {
    "standard": lambda config, shape, encoder: StandardNormal(config.latent_dim),  # noqa: ARG005
    "mixture": lambda config, shape, encoder: GaussianMixture(config.latent_dim, config.prior_components),  # noqa: ARG005
    "vamp": lambda config, shape, encoder: VampPrior(
        config.latent_dim, config.prior_components, shape.n_pixels, encoder
    ),
}
"""The priors by their names in the config."""
SETTINGS: dict[str, tuple[str, Callable[[ModelConfig], Any]]] = {
    "mean": ("link", lambda config: LINKS[config.mean]),
    "min_log_sigma": ("floor", lambda config: Floor(config.min_log_sigma)),
    "sigma": ("sigma", lambda config: config.sigma),
}
"""A decoder's settings in the config: the argument that each becomes, and its value."""


def _assemble(config: ModelConfig, image_shape: ImageShape) -> VAE:
    likelihood = config.likelihood
    decoder_class: type[Conditional] = getattr(conditionals, likelihood.class_name)
    arguments = {argument: value(config) for argument, value in (SETTINGS[name] for name in likelihood.settings)}
    family = POSTERIORS[config.posterior]
    n_outputs = family.n_outputs(config.latent_dim)
    networks = NETWORKS[config.network](config, image_shape, n_outputs, decoder_class.n_params)
    encoder = family.build(networks.encoder, config.latent_dim)
    decoder = decoder_class(networks.decoder, **arguments)
    return VAE(encoder, decoder, PRIORS[config.prior](config, image_shape, encoder))
