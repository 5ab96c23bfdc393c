"""Factorised distributions: D independent dimensions, with their densities, moments and draws.

The event shape is (D,) and `log_prob` sums over it, in nats, with every constant. What torch's own distributions lack
is a draw from an explicit generator or from given noise, the mass of a grey level, and speed.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from typing import ClassVar, NamedTuple, final

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import Distribution
from torch.distributions.constraints import Constraint
from torch.nn.functional import sigmoid
from torch.special import log_ndtr, ndtr

from vaecli.model.special import bernoulli_log_prob, log_sinhc, polynomial, softplus

LOG_2PI = math.log(2 * math.pi)


class Factorised(Distribution, ABC):
    """Describe D independent dimensions, drawn from with an explicit generator."""

    arg_constraints: ClassVar[dict[str, Constraint]] = {}

    def __init__(self, parameter: Float[Tensor, "*batch D"]) -> None:
        super().__init__(parameter.shape[:-1], parameter.shape[-1:], validate_args=False)

    @abstractmethod
    def draw(self, generator: torch.Generator) -> Float[Tensor, "*batch D"]:
        """Draw y once; no gradient flows through the draw."""


class Transported(NamedTuple):
    """Hold a draw z = T(ε) that noise was transported to, through which gradients flow to the parameters of T."""

    z: Float[Tensor, "*sample B Z"]
    log_q: Callable[[], Float[Tensor, "*sample B"]]
    """Computes log q(z|x) in nats; a function, because not every objective needs it."""


class Posterior(Distribution, ABC):
    """Describe a distribution of z as the image of standard normal noise (paper, section 2.4)."""

    @abstractmethod
    def transport(self, epsilon: Float[Tensor, "*sample B Z"]) -> Transported:
        """Return z = T(ε) for ε ~ N(0, I), with its log density."""


class LevelMass(NamedTuple):
    """Hold the log masses of grey levels k in 0..255 under a density of y = (k + u)/256, one a dimension, in nats."""

    exact: Float[Tensor, "..."]
    """log ∫ p(y) dy over [k/256, (k + 1)/256) only."""
    censored: Float[Tensor, "..."]
    """The same with the mass below 0 given to level 0 and that above 1 to level 255: another model."""
    outside: Float[Tensor, "..."]
    """The mass outside [0, 1), not its logarithm: with the 256 exact masses it adds up to 1."""


class Density(Factorised):
    """Describe a density of y = (k + u)/256 with u ~ U[0, 1)."""

    @abstractmethod
    def log_level_mass(self, y: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Return log ∫ p(y) dy over the level that each y falls in, k = ⌊256 y⌋: `LevelMass.exact`."""

    @abstractmethod
    def level_mass(self, y: Float[Tensor, "..."]) -> LevelMass:
        """Return the masses of the levels that y falls in, k = ⌊256 y⌋."""


@final
class DiagonalNormal(Density, Posterior):
    """Describe N(y; μ, diag σ²) by its mean μ and log σ (which may broadcast against the mean)."""

    def __init__(self, mean: Float[Tensor, "*batch D"], log_sigma: Float[Tensor, "..."]) -> None:
        super().__init__(mean)
        self._mean = mean
        self.log_sigma = log_sigma

    @property
    def mean(self) -> Float[Tensor, "*batch D"]:
        """Return μ."""
        return self._mean

    @property
    def stddev(self) -> Float[Tensor, "*batch D"]:
        """Return σ."""
        return self.log_sigma.exp().expand_as(self._mean)

    @property
    def variance(self) -> Float[Tensor, "*batch D"]:
        """Return σ²."""
        return (2 * self.log_sigma).exp().expand_as(self._mean)

    def log_prob(self, value: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Return log N = -Σ_d [½ ((y_d - μ_d)/σ_d)² + log σ_d + ½ log 2π], in nats."""
        error = (value - self._mean) * (-self.log_sigma).exp()
        return -(0.5 * error.square() + self.log_sigma).sum(-1) - 0.5 * LOG_2PI * value.shape[-1]

    def log_level_mass(self, y: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Return differences of Φ, taken in the smaller tail: naive differences lose whole nats a pixel."""
        _, outer, inner = self._tails((256 * y).floor())
        return inner + torch.log(-torch.expm1(outer - inner))

    def _tails(self, k: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return where a level lies right of the mean, and log Φ of its ends: the one further from the mean first."""
        precision = (-self.log_sigma).exp()
        low, high = (k / 256 - self._mean) * precision, ((k + 1) / 256 - self._mean) * precision
        right = low + high > 0
        return right, log_ndtr(torch.where(right, -high, low)), log_ndtr(torch.where(right, -low, high))

    def level_mass(self, y: Float[Tensor, "..."]) -> LevelMass:
        """Return the masses of levels, with all that lies beyond them."""
        k, precision = (256 * y).floor(), (-self.log_sigma).exp()
        right, outer, inner = self._tails(k)
        exact = inner + torch.log(-torch.expm1(outer - inner))
        rest = torch.log(-torch.expm1(outer))  # of all but what lies beyond the outer end
        first, last = k < 0.5, k > 254.5
        censored = torch.where(first, torch.where(right, rest, inner), exact)
        censored = torch.where(last, torch.where(right, inner, rest), censored)
        outside = ndtr(-self._mean * precision) + ndtr((self._mean - 1) * precision)
        return LevelMass(exact, censored, outside)

    def transport(self, epsilon: Float[Tensor, "..."]) -> Transported:
        """Return z = μ + σ ⊙ ε (paper, eq. 4)."""
        z = self._mean + self.stddev * epsilon
        return Transported(z, partial(self.log_prob, z))

    def kl_from_standard(self) -> Float[Tensor, "*batch D"]:
        """Return KL(N(μ, σ²) ‖ N(0, 1)) = -½ (1 + log σ² - μ² - σ²) of each dimension, in nats (paper, appendix B)."""
        return 0.5 * (self._mean.square() + torch.expm1(2 * self.log_sigma)) - self.log_sigma

    def draw(self, generator: torch.Generator) -> Float[Tensor, "*batch D"]:
        """Draw y = μ + σ ⊙ ε."""
        return self._mean.detach() + self.stddev.detach() * standard_normal(self._mean.shape, self._mean, generator)


@final
class IndependentBernoulli(Factorised):
    """Describe Π_d Bern(y_d; p_d) by its logits, which stay finite where p saturates."""

    def __init__(self, logits: Float[Tensor, "*batch D"]) -> None:
        super().__init__(logits)
        self.logits = logits

    @property
    def mean(self) -> Float[Tensor, "*batch D"]:
        """Return p."""
        return sigmoid(self.logits)

    @property
    def variance(self) -> Float[Tensor, "*batch D"]:
        """Return p (1 - p)."""
        return sigmoid(self.logits) * sigmoid(-self.logits)

    def log_prob(self, value: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Return log p(y) = Σ_d [y_d log p_d + (1 - y_d) log(1 - p_d)] = Σ_d [y_d η_d - log(1 + e^η_d)], in nats."""
        return bernoulli_log_prob(self.logits, value)

    def draw(self, generator: torch.Generator) -> Float[Tensor, "*batch D"]:
        """Draw y_d = 1 with probability p_d."""
        p = self.mean.detach()
        return (uniform(p.shape, p, generator) < p).to(p.dtype)


@final
class ContinuousBernoulliProduct(Density):
    """Describe Π_d CB(y_d; λ_d) on [0, 1] by the logits η = logit λ (Loaiza-Ganem & Cunningham 2019, arXiv 1907.06845).

    As an exponential family, log p(y) = η y - A(η) with A(η) = log ∫₀¹ e^(ηy) dy = log((e^η - 1)/η), which is even in
    η apart from η/2. Around λ = ½, where the closed forms are 0/0, their Taylor series take over.
    """

    SERIES_BELOW = 0.5

    def __init__(self, logits: Float[Tensor, "*batch D"]) -> None:
        super().__init__(logits)
        self.logits = logits

    @property
    def mean(self) -> Float[Tensor, "*batch D"]:
        """Return A'(η) = 1/(1 - e^-η) - 1/η, which is not λ."""
        eta, near = self._apart()
        u = self.logits.clamp(-self.SERIES_BELOW, self.SERIES_BELOW) / 2
        series = 0.5 + 0.5 * u * polynomial(u.square(), 1 / 3, -1 / 45, 2 / 945, -1 / 4725, 2 / 93555)
        size = eta.abs()  # by symmetry on the side where neither the value nor its gradient overflows
        above = -1 / torch.expm1(-size) - 1 / size
        return torch.where(near, series, torch.where(eta > 0, above, 1 - above))

    @property
    def variance(self) -> Float[Tensor, "*batch D"]:
        """Return A''(η) = 1/η² - 1/(4 sinh²(η/2))."""
        eta, near = self._apart()
        u = self.logits.clamp(-self.SERIES_BELOW, self.SERIES_BELOW) / 2
        series = 0.25 * polynomial(u.square(), 1 / 3, -1 / 15, 2 / 189, -1 / 675, 2 / 10395)
        return torch.where(near, series, eta.reciprocal().square() - 0.25 / torch.sinh(eta / 2).square())

    @property
    def stddev(self) -> Float[Tensor, "*batch D"]:
        """Return √A''(η)."""
        return self.variance.sqrt()

    def log_prob(self, value: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Return log p(y) = Σ_d [η_d y_d - A(η_d)], in nats."""
        return (self.logits * value - self._log_normaliser()).sum(-1)

    def log_level_mass(self, y: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Return log of ∫ e^(ηy) dy = e^(η · middle) · width · sinh(u)/u with u = η · width/2, less A(η)."""
        middle = ((256 * y).floor() + 0.5) / 256
        log_integral = self.logits * middle - math.log(256) + log_sinhc(self.logits / 512)
        return log_integral - self._log_normaliser()

    def level_mass(self, y: Float[Tensor, "..."]) -> LevelMass:
        """Return the masses of levels; none lies outside."""
        exact = self.log_level_mass(y)
        return LevelMass(exact, exact, torch.zeros_like(exact))

    def draw(self, generator: torch.Generator) -> Float[Tensor, "*batch D"]:
        """Draw by the inverse CDF, y = log(1 + u (e^η - 1))/η, on the side where e^η does not overflow."""
        u = uniform(self.logits.shape, self.logits, generator)
        eta = self.logits.detach()
        falling = -eta.abs().clamp(min=1e-6)  # nearer to 0 the distribution is uniform to rounding
        y = torch.log1p(u * torch.expm1(falling)) / falling
        return torch.where(eta > 0, 1 - y, y)

    def _log_normaliser(self) -> Tensor:
        """Return A(η) = η/2 + log(sinh(η/2)/(η/2))."""
        return self.logits / 2 + log_sinhc(self.logits / 2)

    def _apart(self) -> tuple[Tensor, Tensor]:
        """Return the logits, with 1 in place of those near 0 so that no branch is 0/0, and a mask of those."""
        near = self.logits.abs() < self.SERIES_BELOW
        return torch.where(near, torch.ones_like(self.logits), self.logits), near


@final
class DiscretizedLogisticProduct(Factorised):
    """Describe mass on the 256 levels x = k/255 by a logistic of location μ and scale s, both in units of x.

    P(k) = σ((k + ½ - 255 μ)/(255 s)) - σ((k - ½ - 255 μ)/(255 s)), with all mass below ½ at k = 0 and all above 254½ at
    k = 255 (Salimans et al. 2017, arXiv 1701.05517, eq. 2).
    """

    def __init__(self, location: Float[Tensor, "*batch D"], log_scale: Float[Tensor, "..."]) -> None:
        super().__init__(location)
        self.location = 255 * location
        self.log_scale = log_scale
        self.scale = 255 * log_scale.exp()

    @property
    def mean(self) -> Float[Tensor, "*batch D"]:
        """Return E[x] to within half a level: Σ_j P(k > j) = Σ_j σ((255 μ - j - ½)/(255 s)), taken as an integral."""
        above, beyond = (self.scale * softplus((self.location - end) / self.scale) for end in (0, 255))
        return (above - beyond) / 255

    @property
    def variance(self) -> Float[Tensor, "*batch D"]:
        """Return Var[x] exactly, from all 256 masses: 256 times the memory of the others."""
        levels = torch.arange(256, dtype=self.location.dtype, device=self.location.device) / 255
        mass = torch.stack([self._log_mass(level.expand_as(self.location)).exp() for level in levels], -1)
        return (mass * levels.square()).sum(-1) - (mass * levels).sum(-1).square()

    @property
    def stddev(self) -> Float[Tensor, "*batch D"]:
        """Return √Var[x]."""
        return self.variance.sqrt()

    def log_prob(self, value: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Return log P(x) = Σ_d log P(k_d), in nats."""
        return self._log_mass(value).sum(-1)

    def draw(self, generator: torch.Generator) -> Float[Tensor, "*batch D"]:
        """Draw a logistic variable by its inverse CDF, rounded to the nearest level."""
        u = uniform(self.location.shape, self.location, generator)
        return (self.location + self.scale * torch.logit(u)).detach().round().clamp(0, 255) / 255

    def _log_mass(self, value: Tensor) -> Tensor:
        """Return log(σ(a) - σ(b)) = log σ(a) + log σ(-b) + log(1 - e^(b - a)), without cancellation."""
        k = value * 255
        above, below = (k + 0.5 - self.location) / self.scale, (k - 0.5 - self.location) / self.scale
        below_edge, above_edge = -softplus(-above), -softplus(below)
        inner = below_edge + above_edge + torch.log(1 - torch.exp(-1 / self.scale))
        return torch.where(k < 0.5, below_edge, torch.where(k > 254.5, above_edge, inner))


def standard_normal(shape: tuple[int, ...], like: Tensor, generator: torch.Generator) -> Tensor:
    """Draw ε ~ N(0, I) in the precision and on the device of `like`."""
    return torch.randn(shape, generator=generator, device=like.device, dtype=like.dtype)


def uniform(shape: tuple[int, ...], like: Tensor, generator: torch.Generator) -> Tensor:
    """Draw u ~ U[0, 1) in the precision and on the device of `like`."""
    return torch.rand(shape, generator=generator, device=like.device, dtype=like.dtype)
