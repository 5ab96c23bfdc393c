"""The Variational Auto-Encoder: p(x|z) p(z) with the recognition model q(z|x)."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.distributions import Distribution

from vaecli.config.sections import ModelConfig
from vaecli.data.image_grid import ImageShape
from vaecli.data.preprocess import Batch, one_hot
from vaecli.data.vectors import Units
from vaecli.model import conditionals
from vaecli.model.conditionals import Conditional, Described, Gaussian
from vaecli.model.distributions import DiagonalNormal, Factorised
from vaecli.model.links import LINKS, Floor
from vaecli.model.networks import AT_MEAN_IMAGE, NETWORKS, initialise
from vaecli.model.posteriors import AUTOREGRESSIVE, COUPLING, Flow, FullCovariance, FullNormal
from vaecli.model.priors import Examples, FlowPrior, GaussianMixture, Prior, StandardNormal, VampPrior

CHUNK = 1000
"""Images that are decoded at a time."""
Classes = Int64[Tensor, " n"]


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
        n_classes: K, where both are told which of K classes an image is: `vae.encoder` then takes (*batch, D + K) and
            `vae.decoder` (*batch, Z + K), the class as K numbers of which one is 1. `given` takes care of the second.
        units: What x is made back into vectors by; None of images.
    """

    def __init__(
        self,
        encoder: Conditional,
        decoder: Conditional,
        prior: Prior,
        n_classes: int = 0,
        units: "Standardised | None" = None,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.prior = prior
        self.n_classes = n_classes
        self.units = units

    @property
    def latent_dim(self) -> int:
        """Return Z."""
        return self.prior.latent_dim

    @property
    def device(self) -> torch.device:
        """Return the device of the parameters."""
        return next(self.parameters()).device

    def given(self, seen: Float[Tensor, "*batch inputs"]) -> "VAE":
        """Return the model of images of known classes, p(x, z|y); where it is not told the class, the same model.

        Args:
            seen: What the encoder is given of these images, or of one for all: it ends with the class.
        """
        if not self.n_classes:
            return self
        return VAE(self.encoder, self.decoder.given(seen[..., -self.n_classes :]), self.prior, units=self.units)

    @torch.no_grad()
    def sample(
        self, n: int, generator: torch.Generator, *, draw: bool = False, classes: Classes | None = None
    ) -> Float[Tensor, "n D"]:
        """Draw z ~ p(z) n times and return the mean of each p(x|z), or a draw from it; classes as for `simulate`."""
        if draw:
            return self.simulate(n, generator, classes)[1].target
        z = self.prior.draw(n, next(self.parameters()), generator)
        return self._decode(z, self._one_hot(n, classes), None)

    @torch.no_grad()
    def simulate(
        self, n: int, generator: torch.Generator, classes: Classes | None = None
    ) -> tuple[Float[Tensor, "n Z"], Batch]:
        """Draw z ~ p(z) n times and x from each p(x|z): z is then an exact draw from p(z|x).

        Args:
            n: How many.
            generator: Draws them.
            classes: Of each, where the model is told them; None for as many of each class, in order.
        """
        z, told = self.prior.draw(n, next(self.parameters()), generator), self._one_hot(n, classes)
        x = self._decode(z, told, generator)
        return z, Batch(torch.cat([x, told], -1) if self.n_classes else x, x)

    def _one_hot(self, n: int, classes: Classes | None) -> Float[Tensor, "n K"]:
        like = next(self.parameters())
        if not self.n_classes:
            return like.new_empty(n, 0)
        which = torch.arange(n) * self.n_classes // n if classes is None else classes
        return one_hot(which, self.n_classes, like)

    def _decode(self, z: Tensor, told: Tensor, generator: torch.Generator | None) -> Tensor:
        """Return x of each z, some at a time; where all do not fit into memory, that fails at once."""
        x = z.new_empty(0)
        for start in range(0, len(z), CHUNK):
            rows = slice(start, start + CHUNK)
            likelihood = self.given(told[rows]).decoder(z[rows])
            assert isinstance(likelihood, Factorised)
            some = likelihood.mean if generator is None else likelihood.draw(generator)
            x = some.new_empty(len(z), some.shape[1]) if start == 0 else x
            x[rows] = some
        return x

    @torch.no_grad()
    def reconstruct(self, seen: Float[Tensor, "B inputs"]) -> Float[Tensor, "B D"]:
        """Return the mean of p(x|z) at the posterior mean of each image that the encoder is given."""
        reconstruction: Tensor = self.given(seen).decoder(self.encoder(seen).mean).mean
        return reconstruction


class Standardised(nn.Module):
    """Hold the mean and the deviation that x = (v - mean)/scale was made of a vector v by, with the weights."""

    mean: Tensor
    scale: Tensor

    def __init__(self, n: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(n))
        self.register_buffer("scale", torch.ones(n))

    def take(self, units: Units) -> None:
        """Hold these."""
        self.mean.copy_(torch.from_numpy(units.mean))
        self.scale.copy_(torch.from_numpy(units.scale))

    def agree(self, units: Units) -> bool:
        """Return whether it holds these, but for the rounding of sums."""
        mean, scale = (torch.from_numpy(value).to(self.mean) for value in units)
        near = (mean - self.mean).abs() <= 1e-4 * scale + 1e-6 * mean.abs()
        return bool((near & torch.isclose(scale, self.scale, rtol=1e-4, atol=0.0)).all())

    def restore(self, x: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch D"]:
        """Return v."""
        return x * self.scale + self.mean


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
    *,
    of_vectors: bool = False,
) -> VAE:
    """Build the VAE that a config describes, on the CPU. Past this point nothing knows of YAML or of decoders' names.

    Args:
        config: Sizes, activation and decoder.
        image_shape: Channels, height and width of an image.
        generator: Draws the initial parameters; on the CPU.
        mean_image: The mean training image in units of the 0..1 pixel, for `init: mean_image` and `glorot`.
        examples: Returns training images, for a prior that starts from some.
        of_vectors: Whether the data are vectors, and the shape that of a picture of one row; their units are set by
            who knows them.
    """
    with torch.random.fork_rng(devices=[]):  # a layer's constructor draws from the global generator
        vae = _assemble(config, image_shape, of_vectors=of_vectors)
    for module in (*vae.encoder.children(), *vae.decoder.children()):  # networks, and what else has parameters
        initialise(module, AT_MEAN_IMAGE.get(config.init, config.init), generator)
        if isinstance(module, Flow):
            module.start()
    vae.prior.initialise(generator, examples)
    if config.init in AT_MEAN_IMAGE and mean_image is not None:
        vae.decoder.start_at(mean_image)
    return vae


def build_meta_vae(config: ModelConfig, image_shape: ImageShape, *, of_vectors: bool = False) -> VAE:
    """Build the VAE that a config describes on the meta device: shapes that take no memory, however large."""
    with torch.device("meta"):
        return _assemble(config, image_shape, of_vectors=of_vectors)


class Family(NamedTuple):
    """Say how q(z|x) of a kind is made of a network."""

    n_outputs: Callable[[int], int]
    """Returns how many outputs the network must have for Z latent dimensions."""
    build: Callable[[nn.Module, int], Conditional]
    """Returns q(z|x), given the network and Z."""


POSTERIORS = {
    "diagonal": Family(lambda latent_dim: 2 * latent_dim, lambda network, _: Gaussian(network)),
    "full": Family(FullCovariance.n_outputs, lambda network, z: Described(network, FullCovariance(z))),
    "flow": Family(COUPLING.n_outputs, lambda network, z: Described(network, Flow(z, COUPLING))),
    "iaf": Family(AUTOREGRESSIVE.n_outputs, lambda network, z: Described(network, Flow(z, AUTOREGRESSIVE))),
}
"""The posteriors by their names in the config."""
PRIORS: dict[str, Callable[[ModelConfig, ImageShape, Conditional], Prior]] = {
    "standard": lambda config, shape, encoder: StandardNormal(config.latent_dim),  # noqa: ARG005
    "mixture": lambda config, shape, encoder: GaussianMixture(config.latent_dim, config.prior_components),  # noqa: ARG005
    "vamp": lambda config, shape, encoder: VampPrior(
        config.latent_dim, config.prior_components, shape.n_pixels, encoder
    ),
    "flow": lambda config, shape, encoder: FlowPrior(config.latent_dim, config.prior_components),  # noqa: ARG005
}
"""The priors by their names in the config."""
SETTINGS: dict[str, tuple[str, Callable[[ModelConfig], Any]]] = {
    "mean": ("link", lambda config: LINKS[config.mean]),
    "min_log_sigma": ("floor", lambda config: Floor(config.min_log_sigma)),
    "sigma": ("sigma", lambda config: config.sigma),
}
"""A decoder's settings in the config: the argument that each becomes, and its value."""


def _assemble(config: ModelConfig, image_shape: ImageShape, *, of_vectors: bool) -> VAE:
    likelihood = config.likelihood
    decoder_class: type[Conditional] = getattr(conditionals, likelihood.class_name)
    arguments = {argument: value(config) for argument, value in (SETTINGS[name] for name in likelihood.settings)}
    family = POSTERIORS[config.posterior]
    n_outputs = family.n_outputs(config.latent_dim)
    networks = NETWORKS[config.network](config, image_shape, n_outputs, decoder_class.n_params)
    encoder = family.build(networks.encoder, config.latent_dim)
    decoder = decoder_class(networks.decoder, **arguments)
    units = Standardised(image_shape.n_pixels) if of_vectors else None
    return VAE(encoder, decoder, PRIORS[config.prior](config, image_shape, encoder), config.n_classes, units)
