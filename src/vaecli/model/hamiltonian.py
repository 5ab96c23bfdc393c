"""Hamiltonian Monte Carlo: transitions that leave a density of z as it is (Neal 2011, arXiv 1206.1901).

Chains lie along the leading axes, each with a density of its own. The last axis is z.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

LEAPFROG_STEPS = 10
JITTER = 0.2
"""Every step size is drawn from this share around the one asked for: trajectories of one length may go in circles."""

LogDensity = Callable[[Float[Tensor, "*chains Z"]], Float[Tensor, "*chains"]]


class Point(NamedTuple):
    """Hold where chains are, with the log density there and its gradient."""

    z: Float[Tensor, "*chains Z"]
    log_density: Float[Tensor, "*chains"]
    slope: Float[Tensor, "*chains Z"]


P = TypeVar("P", bound=Any)
"""A named tuple of tensors that begin with the axes of the chains, `z` among them."""


@dataclass(frozen=True)
class Dynamics(Generic[P]):
    """Hold a density and the mass matrix M = A⁻ᵀ A⁻¹ by which its space is measured; momenta p are as if M were I.

    Args:
        at: Evaluates the density.
        log_density: Of an evaluated point.
        force: Aᵀ ∇ log density of an evaluated point.
        displacement: From p times a step size to A p times it, by which z moves.
    """

    at: Callable[[Float[Tensor, "*chains Z"]], P]
    log_density: Callable[[P], Float[Tensor, "*chains"]]
    force: Callable[[P], Float[Tensor, "*chains Z"]]
    displacement: Callable[[Float[Tensor, "*chains Z"]], Float[Tensor, "*chains Z"]]


def euclidean(at: Callable[[Float[Tensor, "*chains Z"]], Point]) -> Dynamics[Point]:
    """Return the dynamics with M = I of a density that `at` evaluates."""
    return Dynamics(at, lambda point: point.log_density, lambda point: point.slope, lambda step: step)


def differentiate(
    log_density: LogDensity, z: Float[Tensor, "*chains Z"]
) -> tuple[Float[Tensor, "*chains"], Float[Tensor, "*chains Z"]]:
    """Return a log density and its gradient."""
    with torch.enable_grad():
        variable = z.detach().requires_grad_()
        value = log_density(variable)
        (slope,) = torch.autograd.grad(value.sum(), variable)
    return value.detach(), slope


def transition(
    point: P, dynamics: Dynamics[P], size: Float[Tensor, "..."], generator: torch.Generator
) -> tuple[P, Float[Tensor, "*chains"]]:
    """Make one transition of every chain: a random momentum, leapfrog steps, and acceptance or none.

    Args:
        point: Where the chains are, evaluated by `dynamics.at`.
        dynamics: The density, and how to move in it.
        size: Of a leapfrog step; it broadcasts against the axes of the chains.
        generator: Of momenta, step sizes and acceptances, on the chains' device.

    Returns:
        Where it leads, and the probabilities of acceptance.
    """
    z = point.z
    momentum = torch.randn(z.shape, generator=generator, device=z.device, dtype=z.dtype)
    u, v = (torch.rand(z.shape[:-1], generator=generator, device=z.device, dtype=z.dtype) for _ in range(2))
    step = (size * (1 - JITTER + 2 * JITTER * u))[..., None]
    moved, energy = point, dynamics.log_density(point) - 0.5 * momentum.square().sum(-1)
    for _ in range(LEAPFROG_STEPS):
        momentum = momentum + 0.5 * step * dynamics.force(moved)
        moved = dynamics.at(moved.z + dynamics.displacement(step * momentum))
        momentum = momentum + 0.5 * step * dynamics.force(moved)
    change = dynamics.log_density(moved) - 0.5 * momentum.square().sum(-1) - energy
    probability = change.exp().clamp(max=1).nan_to_num(nan=0).to(z.dtype)
    taken = v < probability
    kept = (
        torch.where(taken.reshape(taken.shape + (1,) * (new.ndim - taken.ndim)), new, old)
        for new, old in zip(moved, point, strict=True)
    )
    return type(point)(*kept), probability
