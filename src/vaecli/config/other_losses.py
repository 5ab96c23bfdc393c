"""What another program's loss amounts to: the likelihood and the KL weight whose bound it is, up to a factor.

A loss per image is a(x, x̂) + w KL, where a is a squared error or a cross-entropy, summed over the D pixels or averaged,
and x̂ is the decoder's output. A negative bound is -log p(x|z) + β KL. The two have the same gradient, up to a factor
that an optimiser such as Adam does not see, where -log p(x|z) is a(x, x̂) β/w and a constant.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

from vaecli.errors import UsageError

Loss = Literal["mse-mean", "mse-sum", "bce-mean", "bce-sum"]
LARGEST = 1e6
"""Of a KL weight that a config can have."""


@dataclass(frozen=True)
class Equivalent:
    """Describe the bound that another program's loss is.

    The loss is `factor` times -log p(x|z) + `kl_weight` KL(q(z|x) ‖ p(z)), and a constant.
    """

    decoder: Literal["i-gaussian", "bernoulli"]
    sigma: float | None
    """The scale of every pixel, in units of the 0..1 pixel; None for a Bernoulli."""
    kl_weight: float
    """β: 1 for a Gaussian, whose scale takes the weight in."""
    factor: float

    @property
    def settings(self) -> dict[str, Any]:
        """Return the config that minimises the same here, where it differs from the defaults."""
        if self.sigma is None:
            return {
                "data": {"binarize": "none"},
                "model": {"decoder": self.decoder},
                "objective": {"kl_weight": _rounded(self.kl_weight)},
            }
        return {"data": {"dequantize": False}, "model": {"decoder": self.decoder, "sigma": _rounded(self.sigma)}}


def equivalent(loss: Loss, kl_weight: float, pixels: int, kl_mean_over: int = 1) -> Equivalent:
    """Return the likelihood and the KL weight that a loss amounts to.

    With w the weight of a KL term that is summed over the latent dimensions (where it is averaged over Z of them, w/Z):

    - squared error averaged over D pixels: N(x; x̂, σ² I) with σ² = w D/2; summed: σ² = w/2; β = 1. The same as σ = 1
      and β = w D/2 or w/2;
    - cross-entropy averaged over D pixels: a Bernoulli with β = w D; summed: β = w.

    Args:
        loss: The error and how it is taken over pixels.
        kl_weight: w, as it is written in the other program.
        pixels: D, the numbers of an image: pixels times channels.
        kl_mean_over: Z where the KL is averaged over latent dimensions, 1 where it is summed.

    Raises:
        UsageError: The weight is not positive, and there is no likelihood; or it is more than a config can say.
    """
    if not (math.isfinite(kl_weight) and kl_weight > 0):
        raise UsageError(f"a KL weight of {kl_weight} makes no likelihood; without a KL term it is an autoencoder")
    summed = kl_weight / kl_mean_over * (pixels if loss.endswith("mean") else 1)
    if summed > LARGEST:
        raise UsageError(
            f"a KL weight of {kl_weight:g} is {summed:g} beside a sum over pixels; {LARGEST:g} is the most"
        )
    per_sum = 1 / pixels if loss.endswith("mean") else 1.0
    if loss.startswith("mse"):
        return Equivalent("i-gaussian", math.sqrt(summed / 2), 1.0, per_sum * summed)
    return Equivalent("bernoulli", None, summed, per_sum)


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")
