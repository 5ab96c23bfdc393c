"""Priors p(z).

A prior needs a density and draws; what else is asked of it follows from those, unless it knows better.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vaecli.errors import UsageError
from vaecli.model.distributions import LOG_2PI, DiagonalNormal, Posterior, standard_normal
from vaecli.model.flows import FlowLayers
from vaecli.model.special import clamp_with_gradient

DRAWS = 2**18
"""Draws from which a prior's variance and quantiles are taken where no formula has them."""
NEAR = 2**10
"""Draws whose first coordinate counts as the same."""
AT_ONCE = 5000
"""Draws from a mixture or a flow that are made at a time."""
FEWER_DRAWS = 2**12
"""Draws from which the variance of a flow is taken, right to some 2 %: each takes Z passes through every layer."""
FLOW = FlowLayers(context=0, transforms=4, hidden=256, passes=None, from_identity=True)
"""Masked autoregressive layers: twice as many were no better in `best`."""
EVERY = slice(None)

Examples = Callable[[int], Float[Tensor, "n D"]]
"""Returns so many training images, evenly spaced over all, in units of the 0..1 pixel; fewer where there are fewer."""


class Prior(nn.Module, ABC):
    """Represent p(z) over Z latent dimensions; subclasses are final."""

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        self.latent_dim = latent_dim

    @abstractmethod
    def log_prob(self, z: Float[Tensor, "*batch Z"]) -> Float[Tensor, "*batch"]:
        """Return log p(z) in nats."""

    @abstractmethod
    def draw(self, n: int, like: Tensor, generator: torch.Generator) -> Float[Tensor, "n Z"]:
        """Draw z n times, in the precision and on the device of `like`."""

    def initialise(self, generator: torch.Generator, examples: Examples | None) -> None:
        """Draw where training starts from, or take it from training images; nothing where there is nothing to learn.

        Args:
            generator: On the CPU; the encoder's and the decoder's parameters are drawn before.
            examples: None where weights will be loaded.
        """

    @property
    def variance(self) -> Float[Tensor, " Z"]:
        """Return the variance of each latent dimension, here that of many draws."""
        return self._draws(DRAWS).var(0)

    @torch.no_grad()
    def quantile(self, u: Float[Tensor, "*batch 2"]) -> Float[Tensor, "*batch 2"]:
        """Map the unit square to z so that equal areas get equal prior mass (paper, figure 4).

        z_1 is a quantile of its marginal and z_2 one of p(z_2 | z_1) (Rosenblatt 1952), here of many draws: to within
        some 2 % of the mass.

        Raises:
            ValueError: The latent space does not have 2 dimensions.
        """
        if self.latent_dim != 2:
            raise ValueError(f"quantiles are taken of 2 latent dimensions, not of {self.latent_dim}")
        z = self._draws(DRAWS).to(u)
        z = z[z[:, 0].argsort()]
        rank = (u[..., 0] * len(z)).long().clamp(0, len(z) - 1)
        first = (rank - NEAR // 2).clamp(0, len(z) - NEAR)
        near = z[first[..., None] + torch.arange(NEAR, device=u.device), 1].sort(-1).values
        place = (u[..., 1:] * NEAR).long().clamp(0, NEAR - 1)
        return torch.stack((z[rank, 0], near.gather(-1, place).squeeze(-1)), -1)

    @torch.no_grad()
    def _draws(self, n: int) -> Float[Tensor, "n Z"]:
        """Draw z n times, the same every time."""
        like = next(self.parameters(), torch.zeros(()))
        return self.draw(n, like, torch.Generator(like.device).manual_seed(0))


@final
class StandardNormal(Prior):
    """Represent p(z) = N(0, I)."""

    def log_prob(self, z: Float[Tensor, "*batch Z"]) -> Float[Tensor, "*batch"]:
        """Return log p(z) = -½ |z|² - ½ Z log 2π, in nats."""
        return -(0.5 * z.square()).sum(-1) - 0.5 * LOG_2PI * z.shape[-1]

    def draw(self, n: int, like: Tensor, generator: torch.Generator) -> Float[Tensor, "n Z"]:
        """Draw z ~ N(0, I)."""
        return standard_normal((n, self.latent_dim), like, generator)

    @property
    def variance(self) -> Float[Tensor, " Z"]:
        """Return 1."""
        return torch.ones(self.latent_dim)

    def quantile(self, u: Float[Tensor, "*batch Z"]) -> Float[Tensor, "*batch Z"]:
        """Return Φ⁻¹(u), the inverse Gaussian CDF."""
        z: Tensor = torch.special.ndtri(u)
        return z


class MixturePrior(Prior):
    """Represent p(z) = Σ_k π_k p_k(z), K parts of any kind that has a density and transports noise."""

    @abstractmethod
    def parts(self, which: slice | Tensor = EVERY) -> Posterior:
        """Return p_k of those k as one batch."""

    @property
    @abstractmethod
    def log_shares(self) -> Float[Tensor, " K"]:
        """Return log π."""

    def log_prob(self, z: Float[Tensor, "*batch Z"]) -> Float[Tensor, "*batch"]:
        """Return log p(z) = log Σ_k π_k p_k(z), in nats."""
        log_p: Tensor = (self.log_shares + self.parts().log_prob(z[..., None, :])).logsumexp(-1)
        return log_p

    @torch.no_grad()
    def draw(self, n: int, like: Tensor, generator: torch.Generator) -> Float[Tensor, "n Z"]:
        """Draw k with probability π_k, then z ~ p_k."""
        which = torch.multinomial(self.log_shares.exp(), n, replacement=True, generator=generator)
        noise = standard_normal((n, self.latent_dim), like, generator)
        pairs = zip(which.split(AT_ONCE), noise.split(AT_ONCE), strict=True)
        return torch.cat([self.parts(k).transport(epsilon).z for k, epsilon in pairs])

    @property
    @torch.no_grad()
    def variance(self) -> Float[Tensor, " Z"]:
        """Return Σ_k π_k (σ_k² + μ_k²) - (Σ_k π_k μ_k)²."""
        parts, share = self.parts(), self.log_shares.exp()[:, None]
        second = (share * (parts.stddev.square() + parts.mean.square())).sum(0)
        variance: Tensor = second - (share * parts.mean).sum(0).square()
        return variance


@final
class GaussianMixture(MixturePrior):
    """Represent Σ_k π_k N(z; μ_k, diag σ_k²), everything learned.

    Args:
        latent_dim: Z.
        n_parts: K.
    """

    def __init__(self, latent_dim: int, n_parts: int) -> None:
        super().__init__(latent_dim)
        self.logits = nn.Parameter(torch.zeros(n_parts))
        self.mean = nn.Parameter(torch.zeros(n_parts, latent_dim))
        self.log_sigma = nn.Parameter(torch.zeros(n_parts, latent_dim))

    @torch.no_grad()
    def initialise(self, generator: torch.Generator, examples: Examples | None) -> None:  # noqa: ARG002
        """Start from equal shares and σ = 1 around means from N(0, I): parts in one place would stay in one."""
        self.mean.normal_(generator=generator)

    @property
    def log_shares(self) -> Float[Tensor, " K"]:
        """Return log π, the logarithm of a softmax."""
        return self.logits.log_softmax(0)

    def parts(self, which: slice | Tensor = EVERY) -> DiagonalNormal:
        """Return N(μ_k, diag σ_k²)."""
        return DiagonalNormal(self.mean[which], self.log_sigma[which])


@final
class VampPrior(MixturePrior):
    """Represent (1/K) Σ_k q(z|u_k), the encoder's posteriors of K learned pseudo-inputs u (Tomczak & Welling 2018).

    Pseudo-inputs start from training images and are kept in 0..1. The authors' code clamps them, and no gradient passes
    at 0 and 1, where most pixels of the images begin; here it passes where it leads back into the interval.

    Args:
        latent_dim: Z.
        n_parts: K.
        n_pixels: D.
        encoder: q(z|x), whose parameters this prior has in common with it; they are registered there alone.
    """

    def __init__(self, latent_dim: int, n_parts: int, n_pixels: int, encoder: nn.Module) -> None:
        super().__init__(latent_dim)
        self.pseudo_inputs = nn.Parameter(torch.zeros(n_parts, n_pixels))
        self._encoder = (encoder,)  # as an attribute it would be registered as a part of this module

    @torch.no_grad()
    def initialise(self, generator: torch.Generator, examples: Examples | None) -> None:  # noqa: ARG002
        """Start from training images. Raises UsageError where there are fewer than K."""
        if examples is None:
            return
        n, images = len(self.pseudo_inputs), examples(len(self.pseudo_inputs))
        if len(images) < n:
            raise UsageError(
                f"model.prior_components: is {n}, and as many pseudo-inputs start from training images, of which there "
                f"are {len(images)}: make it {len(images)} or less"
            )
        self.pseudo_inputs.copy_(images)

    @property
    def log_shares(self) -> Float[Tensor, " K"]:
        """Return -log K."""
        n = len(self.pseudo_inputs)
        return self.pseudo_inputs.new_full((n,), -math.log(n))

    def parts(self, which: slice | Tensor = EVERY) -> Posterior:
        """Return q(z|u_k)."""
        (encoder,) = self._encoder
        posterior = encoder(clamp_with_gradient(self.pseudo_inputs[which], 0.0, 1.0))
        assert isinstance(posterior, Posterior)
        return posterior


@final
class FlowPrior(Prior):
    """Represent p(z) = p_K(f(z)) |∂f/∂z|, p_K a mixture of K Gaussians and f a masked autoregressive flow.

    In each layer of f, y_i = m_i + s_i z_i with m_i and s_i made of the z before it (Papamakarios et al. 2017, arXiv
    1705.07057; as a prior: Chen et al. 2017, arXiv 1611.02731, section 3.2). A density takes one pass through each
    layer, a draw Z. At first f(z) = z, and the prior is the mixture.

    Args:
        latent_dim: Z.
        n_parts: K.
    """

    def __init__(self, latent_dim: int, n_parts: int) -> None:
        super().__init__(latent_dim)
        self.mixture = GaussianMixture(latent_dim, n_parts)
        self.transform = FLOW.build(latent_dim)

    def initialise(self, generator: torch.Generator, examples: Examples | None) -> None:
        """Start from the mixture as it starts: a layer's first weights are drawn as PyTorch does, its last are 0."""
        self.mixture.initialise(generator, examples)
        for parameter in self.transform.parameters():
            nn.init.uniform_(parameter, -(self.latent_dim**-0.5), self.latent_dim**-0.5, generator)
        FLOW.start(self.transform)

    def log_prob(self, z: Float[Tensor, "*batch Z"]) -> Float[Tensor, "*batch"]:
        """Return log p(z) = log p_K(f(z)) + log |∂f/∂z|, in nats."""
        y, log_volume = self.transform().call_and_ladj(z)
        log_p: Tensor = self.mixture.log_prob(y) + log_volume
        return log_p

    @torch.no_grad()
    def draw(self, n: int, like: Tensor, generator: torch.Generator) -> Float[Tensor, "n Z"]:
        """Draw y ~ p_K and return z = f⁻¹(y)."""
        y, to_z = self.mixture.draw(n, like, generator), self.transform().inv
        return torch.cat([to_z(part) for part in y.split(AT_ONCE)])

    @property
    def variance(self) -> Float[Tensor, " Z"]:
        """Return the variance of each latent dimension, that of some draws."""
        return self._draws(FEWER_DRAWS).var(0)
