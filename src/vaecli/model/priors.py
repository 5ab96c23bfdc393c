"""Priors p(z), and the divergence KL(q(z|x) ‖ p(z)) where it has a closed form.

A prior needs a density and draws; what else is asked of it follows from those, unless it knows better.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import Distribution

from vaecli.model.distributions import LOG_2PI, DiagonalNormal, standard_normal

DRAWS = 2**18
"""Draws from which a prior's variance and quantiles are taken where no formula has them."""
NEAR = 2**10
"""Draws whose first coordinate counts as the same."""

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
        return self._many_draws().var(0)

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
        z = self._many_draws().to(u)
        z = z[z[:, 0].argsort()]
        rank = (u[..., 0] * len(z)).long().clamp(0, len(z) - 1)
        first = (rank - NEAR // 2).clamp(0, len(z) - NEAR)
        near = z[first[..., None] + torch.arange(NEAR, device=u.device), 1].sort(-1).values
        place = (u[..., 1:] * NEAR).long().clamp(0, NEAR - 1)
        return torch.stack((z[rank, 0], near.gather(-1, place).squeeze(-1)), -1)

    @torch.no_grad()
    def _many_draws(self) -> Float[Tensor, "n Z"]:
        """Draw many z, the same every time."""
        like = next(self.parameters(), torch.zeros(()))
        return self.draw(DRAWS, like, torch.Generator(like.device).manual_seed(0))


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


CLOSED_FORM_KL: dict[tuple[type[Distribution], type[Prior]], Callable[[Any], Tensor]] = {
    (DiagonalNormal, StandardNormal): DiagonalNormal.kl_from_standard,
}
"""KL(q ‖ p) of each latent dimension, (*batch, Z) in nats, for the pairs of posterior and prior that have one."""


def kl_per_dimension(posterior: Distribution, prior: Prior) -> Float[Tensor, "*batch Z"] | None:
    """Return KL(q(z|x) ‖ p(z)) of each latent dimension in nats, or None where the pair has no closed form."""
    closed_form = CLOSED_FORM_KL.get((type(posterior), type(prior)))
    return None if closed_form is None else closed_form(posterior)
