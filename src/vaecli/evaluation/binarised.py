"""The binarised model: every decoder with a mean in the unit interval is a model of binarised images.

If b_d ~ Bern(x_d) given x, then p(b|z) = Π_d Bern(b_d; E[x_d|z]): exact, and through the decoder's mean alone. z is
less certain given b than given grey levels, for which q(z|x) was trained: it only says where to begin a proposal.
"""

from typing import ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor

from vaecli.config.likelihoods import Support
from vaecli.config.schema import Config
from vaecli.model.conditionals import Conditional
from vaecli.model.distributions import IndependentBernoulli
from vaecli.model.vae import VAE

MARGIN = 1e-3
"""Probabilities are kept this far from 0 and 1; from 1e-7 to 1e-3 it changes the result by less than a nat."""


@final
class BinarisedDecoder(Conditional):
    """Compute p(b|z) = Π_d Bern(b_d; p_d) with p from the mean of another decoder.

    Args:
        decoder: Trained on something else than b.
        dequantized: Whether it was trained on y = (k + u)/256, so that E[k/255] = (256 E[y] - ½)/255.
    """

    n_params: ClassVar[int] = 1

    def __init__(self, decoder: Conditional, *, dequantized: bool) -> None:
        super().__init__(decoder)
        self.dequantized = dequantized

    def output(self, c: Float[Tensor, "*batch context"]) -> Float[Tensor, "*batch D"]:
        """Return the logits of p."""
        p = grey_level(self.network(c).mean, dequantized=self.dequantized)
        return torch.logit(p, eps=MARGIN)

    def distribution(self, output: Float[Tensor, "*batch D"]) -> IndependentBernoulli:
        """Return the distribution of b with these logits."""
        return IndependentBernoulli(output)


def grey_level(mean: Tensor, *, dequantized: bool) -> Tensor:
    """Return the mean of k/255 from the mean of what a decoder was trained on."""
    return (256 * mean - 0.5) / 255 if dequantized else mean


def is_dequantized(config: Config) -> bool:
    """Return whether a config's decoder is trained on y = (k + u)/256."""
    return config.support is Support.UNIT_INTERVAL and config.data.dequantize


def is_binarised_model(config: Config) -> bool:
    """Return whether a config's model is trained on dynamically binarised images itself."""
    return config.support is Support.BINARY and config.data.binarize == "dynamic"


def has_binarised_model(config: Config) -> bool:
    """Return whether another model, of binarised images, follows from a config's."""
    return config.support is not Support.REAL and not is_binarised_model(config)


def binarised_model(config: Config, vae: VAE) -> VAE:
    """Return a model of binarised images: the decoder's mean, with the encoder of what the decoder was trained on."""
    return VAE(vae.encoder, BinarisedDecoder(vae.decoder, dequantized=is_dequantized(config)), vae.prior, vae.n_classes)
