"""Conditional distributions p(y | c): networks whose forward pass returns a torch `Distribution`.

The encoder q(z|x) and every decoder p(x|z) are of this one kind. A new decoder is one final class here and one entry in
`vaecli.config.likelihoods`.
"""

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Literal, final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd import Function
from torch.distributions import Distribution
from torch.nn.functional import sigmoid

from vaecli.model.distributions import (
    ContinuousBernoulliProduct,
    DiagonalNormal,
    DiscretizedLogisticProduct,
    IndependentBernoulli,
)

MeanLink = Literal["sigmoid", "linear"]


class Conditional(nn.Module, ABC):
    """p(y | c) with the parameters of y's distribution given by a network; subclasses are final.

    Args:
        network: Maps c of shape (*batch, context) to (*batch, n_params * D), one block of D outputs per parameter,
            the block that decides the mean first. Its last layer is linear.
    """

    n_params: ClassVar[int]
    """Outputs of the network per dimension of y."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    @abstractmethod
    def forward(self, c: Float[Tensor, "*batch context"]) -> Distribution:
        """The distribution of y given c; batch shape (*batch), event shape (D,)."""

    def at_floor(self, y: Distribution) -> Tensor | None:  # noqa: ARG002
        """Which scales of a distribution that `forward` returned sit on their floor; None where there is none."""
        return None

    def _inverse_link(self, mean: Float[Tensor, " D"]) -> Float[Tensor, " D"]:
        """The network's output at which the mean of y is `mean`, given in units of the 0..1 pixel."""
        return mean

    @torch.no_grad()
    def start_at(self, mean: Float[Tensor, " D"]) -> None:
        """Set the output layer's bias so that training starts from `mean` as the mean of y whatever c is."""
        output = list(self.network.children())[-1]
        assert isinstance(output, nn.Linear)
        output.bias.zero_()
        output.bias[: len(mean)] = self._inverse_link(mean)


@final
class Bernoulli(Conditional):
    """p(b|z) = Π_d Bern(b_d; p_d(z)) (paper, appendix C.1)."""

    n_params: ClassVar[int] = 1

    def forward(self, c: Float[Tensor, "*batch context"]) -> IndependentBernoulli:
        """The distribution of b given z."""
        return IndependentBernoulli(self.network(c))

    def _inverse_link(self, mean: Float[Tensor, " D"]) -> Float[Tensor, " D"]:
        return _logit(mean)


@final
class Gaussian(Conditional):
    """N(y; μ(c), diag σ²(c)) with learned mean and log variance: every encoder, and one decoder (appendix C.2).

    Args:
        network: As for every `Conditional`.
        mean: "sigmoid" for means in the unit interval, "linear" for means anywhere.
        min_log_sigma: The floor of log σ, or None. On pixels that hardly vary a learned scale shrinks without end.
    """

    n_params: ClassVar[int] = 2

    def __init__(self, network: nn.Module, mean: MeanLink = "linear", min_log_sigma: float | None = None) -> None:
        super().__init__(network)
        self.link: MeanLink = mean
        self.min_log_sigma = min_log_sigma

    def forward(self, c: Float[Tensor, "*batch context"]) -> DiagonalNormal:
        """The distribution of y given c."""
        output, log_variance = self.network(c).chunk(2, dim=-1)
        log_sigma = 0.5 * log_variance
        if self.min_log_sigma is not None:
            log_sigma = floor(log_sigma, self.min_log_sigma)
        return DiagonalNormal(_mean(output, self.link), log_sigma)

    def at_floor(self, y: Distribution) -> Tensor | None:
        """Where log σ equals `min_log_sigma`."""
        assert isinstance(y, DiagonalNormal)
        return None if self.min_log_sigma is None else y.log_sigma <= self.min_log_sigma

    def _inverse_link(self, mean: Float[Tensor, " D"]) -> Float[Tensor, " D"]:
        return _logit(mean) if self.link == "sigmoid" else mean


@final
class IdentityGaussian(Conditional):
    """N(y; μ(z), I): squared error up to a factor and a constant."""

    n_params: ClassVar[int] = 1

    def __init__(self, network: nn.Module, mean: MeanLink = "sigmoid") -> None:
        super().__init__(network)
        self.link: MeanLink = mean

    def forward(self, c: Float[Tensor, "*batch context"]) -> DiagonalNormal:
        """The distribution of y given z."""
        mean = _mean(self.network(c), self.link)
        return DiagonalNormal(mean, mean.new_zeros(()))

    def _inverse_link(self, mean: Float[Tensor, " D"]) -> Float[Tensor, " D"]:
        return _logit(mean) if self.link == "sigmoid" else mean


@final
class SigmaGaussian(Conditional):
    """N(y; μ(z), σ² I) with one learned scale for all pixels and images: a parameter of the model like any other.

    Args:
        network: As for every `Conditional`.
        mean: As for `Gaussian`.
        min_log_sigma: As for `Gaussian`.
    """

    n_params: ClassVar[int] = 1

    def __init__(self, network: nn.Module, mean: MeanLink = "sigmoid", min_log_sigma: float | None = None) -> None:
        super().__init__(network)
        self.link: MeanLink = mean
        self.min_log_sigma = min_log_sigma
        self.log_sigma = nn.Parameter(torch.zeros(()))

    def forward(self, c: Float[Tensor, "*batch context"]) -> DiagonalNormal:
        """The distribution of y given z."""
        low = self.min_log_sigma
        return DiagonalNormal(
            _mean(self.network(c), self.link), self.log_sigma if low is None else floor(self.log_sigma, low)
        )

    def at_floor(self, y: Distribution) -> Tensor | None:
        """Whether the scale equals `min_log_sigma`."""
        assert isinstance(y, DiagonalNormal)
        return None if self.min_log_sigma is None else y.log_sigma <= self.min_log_sigma

    def _inverse_link(self, mean: Float[Tensor, " D"]) -> Float[Tensor, " D"]:
        return _logit(mean) if self.link == "sigmoid" else mean


@final
class ContinuousBernoulli(Conditional):
    """p(y|z) = Π_d CB(y_d; λ_d(z)), a density on the unit interval."""

    n_params: ClassVar[int] = 1

    def forward(self, c: Float[Tensor, "*batch context"]) -> ContinuousBernoulliProduct:
        """The distribution of y given z."""
        return ContinuousBernoulliProduct(self.network(c))

    def _inverse_link(self, mean: Float[Tensor, " D"]) -> Float[Tensor, " D"]:
        """By bisection: the mean rises with η. Means within 0.02 of an end are started there."""
        low, high = torch.full_like(mean, -50.0), torch.full_like(mean, 50.0)
        for _ in range(60):
            middle = (low + high) / 2
            short = ContinuousBernoulliProduct(middle).mean < mean
            low, high = torch.where(short, middle, low), torch.where(short, high, middle)
        return (low + high) / 2


@final
class DiscretizedLogistic(Conditional):
    """P(x|z) on the 256 levels, location and log scale learned for every pixel.

    The location is free: beyond 0 or 1 it gives all mass to the level at that end. The log scale is half the network's
    output less 3, so that training starts from a scale of about 13 levels.

    Args:
        network: As for every `Conditional`.
        min_log_sigma: The floor of the log scale, or None.
    """

    n_params: ClassVar[int] = 2

    def __init__(self, network: nn.Module, min_log_sigma: float | None = None) -> None:
        super().__init__(network)
        self.min_log_sigma = min_log_sigma

    def forward(self, c: Float[Tensor, "*batch context"]) -> DiscretizedLogisticProduct:
        """The distribution of x given z."""
        location, output = self.network(c).chunk(2, dim=-1)
        log_scale = 0.5 * output - 3
        return DiscretizedLogisticProduct(
            location, log_scale if self.min_log_sigma is None else floor(log_scale, self.min_log_sigma)
        )

    def at_floor(self, y: Distribution) -> Tensor | None:
        """Where the log scale equals `min_log_sigma`."""
        assert isinstance(y, DiscretizedLogisticProduct)
        return None if self.min_log_sigma is None else y.log_scale <= self.min_log_sigma


def _mean(output: Tensor, link: MeanLink) -> Tensor:
    return sigmoid(output) if link == "sigmoid" else output


def _logit(mean: Tensor, margin: float = 1e-3) -> Tensor:
    """The logit, with pixels that are always off or on kept at a finite distance."""
    return torch.logit(mean, eps=margin)


class _Floor(Function):
    """max(x, low), whose gradient still passes below the floor where descent would raise x."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, low: float) -> Tensor:
        return x.clamp(min=low)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float], output: Tensor) -> None:  # noqa: ARG004
        x, low = inputs
        ctx.save_for_backward(x >= low)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,) = gradients
        (above,) = ctx.saved_tensors
        return gradient * (above | (gradient < 0)), None


def floor(x: Tensor, low: float) -> Tensor:
    """max(x, low), from which x can rise again: a plain clamp would leave it without a gradient for ever."""
    result: Tensor = _Floor.apply(x, low)
    return result
