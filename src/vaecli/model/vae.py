"""The Variational Auto-Encoder: p(x|z) p(z) with the recognition model q(z|x)."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vaecli.config.schema import ModelConfig
from vaecli.model import conditionals as distributions
from vaecli.model.conditionals import Conditional, Gaussian
from vaecli.model.distributions import DiagonalNormal
from vaecli.model.networks import initialise, perceptron


class VAE(nn.Module):
    """A latent variable model p(x|z) p(z), prior N(0, I), with approximate posterior q(z|x).

    Args:
        encoder: q(z|x); `vae.encoder(x)` with x of shape (*batch, D) is a distribution over (*batch, Z).
        decoder: p(x|z); `vae.decoder(z)` with z of shape (*batch, Z) is a distribution over (*batch, D).
        latent_dim: Z.
    """

    def __init__(self, encoder: Conditional, decoder: Conditional, latent_dim: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.latent_dim = latent_dim

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.parameters()).device

    @property
    def prior(self) -> DiagonalNormal:
        """p(z) = N(0, I)."""
        zero = next(self.parameters()).new_zeros(self.latent_dim)
        return DiagonalNormal(zero, zero)


def build_vae(
    config: ModelConfig,
    n_pixels: int,
    generator: torch.Generator,
    mean_image: Float[Tensor, " D"] | None = None,
) -> VAE:
    """The VAE that a config describes, on the CPU. Past this point nothing knows of YAML or of decoders' names.

    Args:
        config: Sizes, activation and decoder.
        n_pixels: D.
        generator: Draws the initial parameters; on the CPU.
        mean_image: The mean training image in units of the 0..1 pixel, for `init: mean_image`.
    """
    vae = _assemble(config, n_pixels, "cpu")
    initialise(vae, "normal" if config.init == "normal" else "torch", generator)
    if config.init == "mean_image" and mean_image is not None:
        vae.decoder.start_at(mean_image)
    return vae


def outline(config: ModelConfig, n_pixels: int) -> VAE:
    """The VAE that a config describes in shape only, on the meta device: it takes no memory, however large."""
    return _assemble(config, n_pixels, "meta")


def _assemble(config: ModelConfig, n_pixels: int, device: str) -> VAE:
    likelihood = config.likelihood
    decoder_class: type[Conditional] = getattr(distributions, likelihood.class_name)
    settings = {name: getattr(config, name) for name in likelihood.settings}
    z, hidden = config.latent_dim, config.hidden_dim
    encoder = Gaussian(perceptron((n_pixels, *hidden, 2 * z), config.activation, device))
    outputs = decoder_class.n_params * n_pixels
    decoder = decoder_class(perceptron((z, *reversed(hidden), outputs), config.activation, device), **settings)
    return VAE(encoder, decoder, z)
