"""Conditional distributions p(y | c): networks whose forward pass returns a torch `Distribution`.

The encoder q(z|x) and every decoder p(x|z) are of this one kind. A new decoder is one final class here and one entry in
`vaecli.config.likelihoods`.
"""

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import Distribution

from vaecli.model.distributions import (
    ContinuousBernoulliProduct,
    DiagonalNormal,
    DiscretizedLogisticProduct,
    IndependentBernoulli,
)
from vaecli.model.links import LINEAR, NO_FLOOR, SIGMOID, Floor, Link


class Conditional(nn.Module, ABC):
    """Compute p(y | c), the parameters of y's distribution being given by a network; subclasses are final.

    Args:
        network: Maps c of shape (*batch, context) to (*batch, n_params * D), one block of D outputs per parameter,
            the block that decides the mean first.
    """

    n_params: ClassVar[int]
    """Outputs of the network per dimension of y."""
    link: Link = LINEAR
    """From the network's first block of outputs to the mean of y."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, c: Float[Tensor, "*batch context"]) -> Distribution:
        """Return the distribution of y given c; batch shape (*batch), event shape (D,)."""
        return self.distribution(self.output(c))

    def given(self, context: Float[Tensor, "*context K"]) -> "Conditional":
        """Return p(y | c, context): the same network, to which K more numbers are given after those of each c.

        Args:
            context: For each c, or one for all.
        """
        bound = copy.copy(self)
        bound._modules = {**self._modules, "network": _Followed(self.network, context)}
        return bound

    def output(self, c: Float[Tensor, "*batch context"]) -> Float[Tensor, "*batch outputs"]:
        """Return what decides the distribution: `n_params` blocks of D numbers."""
        output: Tensor = self.network(c)
        return output

    @abstractmethod
    def distribution(self, output: Float[Tensor, "*batch outputs"]) -> Distribution:
        """Return the distribution that an output describes; output i of a block is about dimension i of y alone."""

    def at_floor(self, y: Distribution) -> Tensor | None:  # noqa: ARG002
        """Return which scales of a distribution that `forward` returned sit on their floor; None without a floor."""
        return None

    def _inverse_link(self, mean: Float[Tensor, " D"]) -> Float[Tensor, " D"]:
        """Return the network's output at which the mean of y is `mean`, given in units of the 0..1 pixel."""
        return self.link.inverse(mean)

    @torch.no_grad()
    def start_at(self, mean: Float[Tensor, " D"]) -> None:
        """Set the output layer's bias so that training starts from `mean` as the mean of y whatever c is.

        Raises:
            TypeError: The network's last layer does not add a bias for each of its outputs.
        """
        output = list(self.network.children())[-1]
        bias = getattr(output, "bias", None)
        if not isinstance(bias, Tensor) or bias.shape != (self.n_params * len(mean),):
            raise TypeError(f"init: mean_image needs a bias for each output, which {type(output).__name__} has not")
        bias.zero_()
        bias[: len(mean)] = self._inverse_link(mean)


class _Followed(nn.Module):
    """Call a network with inputs that are followed by a context, one for each or the same for all."""

    def __init__(self, network: nn.Module, context: Float[Tensor, "*context K"]) -> None:
        super().__init__()
        self.network, self.context = network, context

    def forward(self, c: Float[Tensor, "*batch inputs"]) -> Any:
        """Return what the network makes of both side by side."""
        return self.network(torch.cat([c, self.context.expand(*c.shape[:-1], -1)], -1))


@final
class Bernoulli(Conditional):
    """Compute p(b|z) = Π_d Bern(b_d; p_d(z)) (paper, appendix C.1)."""

    n_params: ClassVar[int] = 1
    link = SIGMOID

    def distribution(self, output: Float[Tensor, "*batch outputs"]) -> IndependentBernoulli:
        """Return the distribution of b with these logits."""
        return IndependentBernoulli(output)


@final
class Gaussian(Conditional):
    """Compute N(y; μ(c), diag σ²(c)) with learned mean and log variance: an encoder, and a decoder (App. C.2).

    Args:
        network: As for every `Conditional`.
        link: From the network's output to the mean.
        floor: Of log σ.
    """

    n_params: ClassVar[int] = 2

    def __init__(self, network: nn.Module, link: Link = LINEAR, floor: Floor = NO_FLOOR) -> None:
        super().__init__(network)
        self.link = link
        self.floor = floor

    def distribution(self, output: Float[Tensor, "*batch outputs"]) -> DiagonalNormal:
        """Return the distribution of y with these means, before the link, and log variances."""
        mean, log_variance = output.chunk(2, dim=-1)
        return DiagonalNormal(self.link.mean(mean), self.floor(0.5 * log_variance))

    def at_floor(self, y: Distribution) -> Tensor | None:
        """Return where log σ sits on its floor."""
        assert isinstance(y, DiagonalNormal)
        return self.floor.reached(y.log_sigma)


@final
class Described(Conditional):
    """Compute a distribution from the network's outputs by a function of them, which may have parameters of its own.

    Args:
        network: Maps c to as many outputs as the function takes.
        describe: A function, or a module whose forward pass returns a distribution.
    """

    def __init__(self, network: nn.Module, describe: Callable[[Tensor], Distribution]) -> None:
        super().__init__(network)
        self.describe = describe

    def distribution(self, output: Float[Tensor, "*batch outputs"]) -> Distribution:
        """Return the distribution that an output describes."""
        return self.describe(output)


@final
class IdentityGaussian(Conditional):
    """Compute N(y; μ(z), σ² I) with a given scale: squared error up to a factor and a constant.

    Args:
        network: As for every `Conditional`.
        link: As for `Gaussian`.
        sigma: σ; None for 1.
    """

    n_params: ClassVar[int] = 1

    def __init__(self, network: nn.Module, link: Link = SIGMOID, sigma: float | None = None) -> None:
        super().__init__(network)
        self.link = link
        self._log_sigma = 0.0 if sigma is None else math.log(sigma)

    def distribution(self, output: Float[Tensor, "*batch outputs"]) -> DiagonalNormal:
        """Return the distribution of y with these means, before the link."""
        return DiagonalNormal(self.link.mean(output), output.new_full((), self._log_sigma))


@final
class SigmaGaussian(Conditional):
    """Compute N(y; μ(z), σ² I) with one learned scale for all pixels and images: a parameter like any other.

    Args:
        network: As for every `Conditional`.
        link: As for `Gaussian`.
        floor: As for `Gaussian`.
        sigma: σ where it is given and not learned; it has no floor.
    """

    n_params: ClassVar[int] = 1

    def __init__(
        self, network: nn.Module, link: Link = SIGMOID, floor: Floor = NO_FLOOR, sigma: float | None = None
    ) -> None:
        super().__init__(network)
        self.link = link
        self.floor = floor if sigma is None else NO_FLOOR
        self.sigma = sigma
        if sigma is None:
            self.log_sigma = nn.Parameter(torch.zeros(()))

    def distribution(self, output: Float[Tensor, "*batch outputs"]) -> DiagonalNormal:
        """Return the distribution of y with these means, before the link."""
        mean = self.link.mean(output)
        if self.sigma is not None:
            return DiagonalNormal(mean, output.new_full((), math.log(self.sigma)))
        return DiagonalNormal(mean, self.floor(self.log_sigma))

    def at_floor(self, y: Distribution) -> Tensor | None:
        """Return whether the scale sits on its floor."""
        assert isinstance(y, DiagonalNormal)
        return self.floor.reached(y.log_sigma)


@final
class ContinuousBernoulli(Conditional):
    """Compute p(y|z) = Π_d CB(y_d; λ_d(z)), a density on the unit interval."""

    n_params: ClassVar[int] = 1

    def distribution(self, output: Float[Tensor, "*batch outputs"]) -> ContinuousBernoulliProduct:
        """Return the distribution of y with these logits."""
        return ContinuousBernoulliProduct(output)

    def _inverse_link(self, mean: Float[Tensor, " D"]) -> Float[Tensor, " D"]:
        """Find η by bisection, since the mean rises with it. Means within 0.02 of an end are started there."""
        low, high = torch.full_like(mean, -50.0), torch.full_like(mean, 50.0)
        for _ in range(60):
            middle = (low + high) / 2
            short = ContinuousBernoulliProduct(middle).mean < mean
            low, high = torch.where(short, middle, low), torch.where(short, high, middle)
        return (low + high) / 2


@final
class DiscretizedLogistic(Conditional):
    """Compute P(x|z) on the 256 levels, location and log scale learned for every pixel.

    The location is free: beyond 0 or 1 it gives all mass to the level at that end. The log scale is half the network's
    output less 3, so that training starts from a scale of about 13 levels.

    Args:
        network: As for every `Conditional`.
        floor: Of the log scale.
    """

    n_params: ClassVar[int] = 2

    def __init__(self, network: nn.Module, floor: Floor = NO_FLOOR) -> None:
        super().__init__(network)
        self.floor = floor

    def distribution(self, output: Float[Tensor, "*batch outputs"]) -> DiscretizedLogisticProduct:
        """Return the distribution of x with these locations, and log scales as said above."""
        location, scale = output.chunk(2, dim=-1)
        return DiscretizedLogisticProduct(location, self.floor(0.5 * scale - 3))

    def at_floor(self, y: Distribution) -> Tensor | None:
        """Return where the log scale sits on its floor."""
        assert isinstance(y, DiscretizedLogisticProduct)
        return self.floor.reached(y.log_scale)
