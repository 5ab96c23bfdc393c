"""Posteriors q(z|x) beyond the diagonal Gaussian, as functions of a network's outputs: full covariance, and flows."""

from functools import cache
from typing import Any, ClassVar, final

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.distributions.constraints import Constraint

from vaecli.model.distributions import LOG_2PI, Posterior, Transported
from vaecli.model.flows import FlowLayers

PAIRS, OF_MEAN = 64, 16
"""Pairs ±ε by which the deviation of a flow is taken; of these the draws for its mean, which needs no more to be right
to a hundredth of a deviation, and which training takes of every validation image."""


@final
class FullNormal(Posterior):
    """Describe N(z; μ, L Lᵀ) with L = diag(σ) U, U lower triangular with ones on its diagonal.

    Args:
        mean: μ.
        log_sigma: log σ.
        unit_tril: U.
    """

    arg_constraints: ClassVar[dict[str, Constraint]] = {}

    def __init__(
        self,
        mean: Float[Tensor, "*batch Z"],
        log_sigma: Float[Tensor, "*batch Z"],
        unit_tril: Float[Tensor, "*batch Z Z"],
    ) -> None:
        super().__init__(mean.shape[:-1], mean.shape[-1:], validate_args=False)
        self._mean, self._log_sigma, self._unit_tril = mean, log_sigma, unit_tril

    @property
    def mean(self) -> Float[Tensor, "*batch Z"]:
        """Return μ."""
        return self._mean

    @property
    def stddev(self) -> Float[Tensor, "*batch Z"]:
        """Return the square root of the covariance's diagonal."""
        return self._log_sigma.exp() * self._unit_tril.square().sum(-1).sqrt()

    def log_prob(self, value: Float[Tensor, "... Z"]) -> Float[Tensor, "..."]:
        """Return log N = -½ |L⁻¹(z - μ)|² - Σ_i log σ_i - ½ Z log 2π, in nats."""
        error = (value - self._mean) * (-self._log_sigma).exp()
        identity = torch.eye(error.shape[-1], dtype=error.dtype, device=error.device)
        inverse = torch.linalg.solve_triangular(self._unit_tril, identity, upper=False, unitriangular=True)
        return self._of_noise(torch.einsum("...ij,...j->...i", inverse, error))

    def transport(self, epsilon: Float[Tensor, "... Z"]) -> Transported:
        """Return z = μ + L ε."""
        z = self._mean + self._log_sigma.exp() * torch.einsum("...ij,...j->...i", self._unit_tril, epsilon)
        return Transported(z, lambda: self._of_noise(epsilon))

    def kl_from_standard(self) -> Float[Tensor, "*batch Z"]:
        """Return KL(q(z_i|z_1..z_i-1) ‖ N(0, 1)) of each dimension given those before it: together they are the KL.

        Of dimension i it is ½ (μ_i² + Σ_j L_ij² - 1) - log σ_i, in nats and on average over those before it.
        """
        row = self.stddev.square()
        return 0.5 * (self._mean.square() + row - 1) - self._log_sigma

    def _of_noise(self, epsilon: Tensor) -> Tensor:
        """Return log q where ε is transported to."""
        return -0.5 * epsilon.square().sum(-1) - self._log_sigma.sum(-1) - 0.5 * LOG_2PI * epsilon.shape[-1]


@final
class FullCovariance(nn.Module):
    """Describe N(μ, L Lᵀ) with μ, log σ² and the Z (Z - 1)/2 entries of U below its diagonal given by an encoder.

    Args:
        latent_dim: Z.
    """

    _places: Int64[Tensor, "Z Z"]
    """Where each entry of U stands among those below the diagonal, row by row, then a zero and a one."""

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        self._latent_dim, n = latent_dim, latent_dim * (latent_dim - 1) // 2
        places = np.full((latent_dim, latent_dim), n)
        places[np.tril_indices(latent_dim, -1)] = np.arange(n)
        np.fill_diagonal(places, n + 1)
        self.register_buffer("_places", torch.tensor(places), persistent=False)

    @staticmethod
    def n_outputs(latent_dim: int) -> int:
        """Return how many numbers `forward` takes."""
        return latent_dim * (latent_dim + 3) // 2

    def forward(self, output: Float[Tensor, "*batch outputs"]) -> FullNormal:
        """Return the distribution with this μ, log σ² and U."""
        z = self._latent_dim
        mean, log_variance, below = output.split((z, z, output.shape[-1] - 2 * z), -1)
        zero = torch.zeros_like(output[..., :1])
        return FullNormal(mean, 0.5 * log_variance, torch.cat((below, zero, zero + 1), -1)[..., self._places])


@final
class TransformedNormal(Posterior):
    """Describe z = μ + σ ⊙ f(ε) with ε ~ N(0, I) and an invertible f.

    Args:
        mean: μ.
        log_sigma: log σ.
        transform: f of each image, as one of zuko's.
    """

    arg_constraints: ClassVar[dict[str, Constraint]] = {}

    def __init__(self, mean: Float[Tensor, "*batch Z"], log_sigma: Float[Tensor, "*batch Z"], transform: Any) -> None:
        super().__init__(mean.shape[:-1], mean.shape[-1:], validate_args=False)
        self._shift, self._log_sigma, self._transform = mean, log_sigma, transform

    def log_prob(self, value: Float[Tensor, "... Z"]) -> Float[Tensor, "..."]:
        """Return log q(z) = log N(ε; 0, I) + log |∂f⁻¹/∂y| - Σ_i log σ_i with ε = f⁻¹(y), y = (z - μ)/σ, in nats."""
        y = (value - self._shift) * (-self._log_sigma).exp()
        epsilon, log_volume = self._transform.inv.call_and_ladj(y)
        return self._of_noise(epsilon, -log_volume)  # of f, at ε

    def transport(self, epsilon: Float[Tensor, "... Z"]) -> Transported:
        """Return z = μ + σ ⊙ f(ε)."""
        y, log_volume = self._transform.call_and_ladj(epsilon)
        return Transported(self._shift + self._log_sigma.exp() * y, lambda: self._of_noise(epsilon, log_volume))

    @property
    def mean(self) -> Float[Tensor, "*batch Z"]:
        """Return the mean over fixed noise, the same every time: there is no formula."""
        return self._draws(OF_MEAN).mean(0)

    @property
    def stddev(self) -> Float[Tensor, "*batch Z"]:
        """Return the standard deviation over that noise and more."""
        return self._draws(2 * PAIRS).std(0)

    def _draws(self, n: int) -> Float[Tensor, "n *batch Z"]:
        dim = self._shift.shape[-1]
        noise = fixed_noise(dim)[:n].to(self._shift)
        return self.transport(noise.reshape(-1, *(1,) * len(self.batch_shape), dim).expand(-1, *self._shift.shape)).z

    def _of_noise(self, epsilon: Tensor, log_volume: Tensor) -> Tensor:
        """Return log q where ε is transported to."""
        log_density: Tensor = -0.5 * epsilon.square().sum(-1) - 0.5 * LOG_2PI * epsilon.shape[-1]
        return log_density - log_volume - self._log_sigma.sum(-1)


COUPLING = FlowLayers(context=32, transforms=4, hidden=64, passes=2, from_identity=False)
"""Affine coupling (Dinh et al. 2017, arXiv 1605.08803): cheap both ways, draws and the density of any z."""
AUTOREGRESSIVE = FlowLayers(context=128, transforms=4, hidden=256, passes=None, from_identity=True)
"""Inverse autoregressive flow (Kingma et al. 2016, arXiv 1606.04934): a draw and its density take one pass through each
layer, the density of any other z takes Z. A start near the identity was ahead in `best`, for coupling layers behind."""


@final
class Flow(nn.Module):
    """Describe μ + σ ⊙ f(ε; c) with μ, σ and c given by an encoder, and f by layers whose order of ε alternates.

    Args:
        latent_dim: Z.
        layers: What f is made of.
    """

    def __init__(self, latent_dim: int, layers: FlowLayers) -> None:
        super().__init__()
        self._latent_dim, self.layers = latent_dim, layers
        self.transform = layers.build(latent_dim)

    def start(self) -> None:
        """Make f(ε) = ε where the layers begin so: what they learn is added to a diagonal Gaussian."""
        self.layers.start(self.transform)

    def forward(self, output: Float[Tensor, "*batch outputs"]) -> TransformedNormal:
        """Return the distribution with this μ, log σ² and c."""
        mean, log_variance, context = output.split((self._latent_dim, self._latent_dim, self.layers.context), -1)
        return TransformedNormal(mean, 0.5 * log_variance, self.transform(context))


@cache
def fixed_noise(dim: int) -> Float[Tensor, "n Z"]:
    """Return pairs ±ε, the same every time: the mean over pairs is exact where what they lead to is odd in ε."""
    half = torch.randn(PAIRS, dim, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return torch.stack((half, -half), 1).flatten(0, 1)
