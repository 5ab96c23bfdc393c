"""Conditional distributions p(y | c): networks whose forward pass returns a torch `Distribution`.

The encoder q(z|x) and every decoder p(x|z) are of this one kind. All are factorised: given c, the D dimensions of y
are independent, so the event shape is (D,) and `log_prob` sums over it, in nats, with every constant.
"""

import math
from abc import ABC, abstractmethod
from typing import ClassVar, Literal, final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd import Function
from torch.distributions import Distribution
from torch.distributions.constraints import Constraint
from torch.nn.functional import binary_cross_entropy_with_logits, sigmoid

LOG_2PI = math.log(2 * math.pi)
MeanLink = Literal["sigmoid", "linear"]


class Factorised(Distribution, ABC):
    """A distribution of D independent dimensions, drawn from with an explicit generator."""

    arg_constraints: ClassVar[dict[str, Constraint]] = {}

    def __init__(self, parameter: Float[Tensor, "*batch D"]) -> None:
        super().__init__(parameter.shape[:-1], parameter.shape[-1:], validate_args=False)

    @abstractmethod
    def draw(self, generator: torch.Generator) -> Float[Tensor, "*batch D"]:
        """One draw of y; no gradient flows through it."""


@final
class DiagonalNormal(Factorised):
    """N(y; μ, diag σ²), by its mean μ and log σ (which may broadcast against the mean)."""

    def __init__(self, mean: Float[Tensor, "*batch D"], log_sigma: Float[Tensor, "..."]) -> None:
        super().__init__(mean)
        self._mean = mean
        self.log_sigma = log_sigma

    @property
    def mean(self) -> Float[Tensor, "*batch D"]:
        """μ."""
        return self._mean

    @property
    def stddev(self) -> Float[Tensor, "*batch D"]:
        """σ."""
        return self.log_sigma.exp().expand_as(self._mean)

    @property
    def variance(self) -> Float[Tensor, "*batch D"]:
        """σ²."""
        return (2 * self.log_sigma).exp().expand_as(self._mean)

    def log_prob(self, value: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """log N = -Σ_d [½ ((y_d - μ_d)/σ_d)² + log σ_d + ½ log 2π], in nats."""
        error = (value - self._mean) * (-self.log_sigma).exp()
        return -(0.5 * error.square() + self.log_sigma).sum(-1) - 0.5 * LOG_2PI * value.shape[-1]

    def kl_from_standard(self) -> Float[Tensor, "*batch D"]:
        """KL(N(μ, σ²) ‖ N(0, 1)) = -½ (1 + log σ² - μ² - σ²) of each dimension, in nats (paper, appendix B)."""
        return 0.5 * (self._mean.square() + self.variance - 1) - self.log_sigma

    def draw(self, generator: torch.Generator) -> Float[Tensor, "*batch D"]:
        """y = μ + σ ⊙ ε."""
        return self._mean.detach() + self.stddev.detach() * standard_normal(self._mean.shape, self._mean, generator)


@final
class IndependentBernoulli(Factorised):
    """Π_d Bern(y_d; p_d) by its logits: log p = -softplus(-logit), which does not overflow where p saturates."""

    def __init__(self, logits: Float[Tensor, "*batch D"]) -> None:
        super().__init__(logits)
        self.logits = logits

    @property
    def mean(self) -> Float[Tensor, "*batch D"]:
        """p."""
        return sigmoid(self.logits)

    @property
    def variance(self) -> Float[Tensor, "*batch D"]:
        """p (1 - p)."""
        return sigmoid(self.logits) * sigmoid(-self.logits)

    def log_prob(self, value: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """log p(y) = Σ_d [y_d log p_d + (1 - y_d) log(1 - p_d)], in nats."""
        logits, value = torch.broadcast_tensors(self.logits, value)
        return -binary_cross_entropy_with_logits(logits, value, reduction="none").sum(-1)

    def draw(self, generator: torch.Generator) -> Float[Tensor, "*batch D"]:
        """y_d = 1 with probability p_d."""
        p = self.mean.detach()
        return (uniform(p.shape, p, generator) < p).to(p.dtype)


def standard_normal(shape: tuple[int, ...], like: Tensor, generator: torch.Generator) -> Tensor:
    """ε ~ N(0, I) in the precision and on the device of `like`."""
    return torch.randn(shape, generator=generator, device=like.device, dtype=like.dtype)


def uniform(shape: tuple[int, ...], like: Tensor, generator: torch.Generator) -> Tensor:
    """u ~ U[0, 1) in the precision and on the device of `like`."""
    return torch.rand(shape, generator=generator, device=like.device, dtype=like.dtype)


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

    @abstractmethod
    def _inverse_link(self, mean: Float[Tensor, " D"]) -> Float[Tensor, " D"]:
        """The network's output at which the mean of y is `mean`, given in units of the 0..1 pixel."""

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
    def setup_context(ctx: torch.autograd.function.FunctionCtx, inputs: tuple[Tensor, float], output: Tensor) -> None:  # noqa: ARG004
        x, low = inputs
        ctx.save_for_backward(x >= low)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,) = gradients
        (above,) = ctx.saved_tensors  # type: ignore[attr-defined]
        return gradient * (above | (gradient < 0)), None


def floor(x: Tensor, low: float) -> Tensor:
    """max(x, low), from which x can rise again: a plain clamp would leave it without a gradient for ever."""
    result: Tensor = _Floor.apply(x, low)
    return result
