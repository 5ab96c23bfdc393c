"""Modes of log p(x, z) over z, and the curvature there, by Newton's method for many images at once.

Axes: B images, Z latent dimensions, P blocks of D outputs of the decoder's network.
"""

import warnings
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from vaecli.model.vae import VAE

MAX_STEPS = 30
CONVERGED = 0.01
"""Nats that a further step would gain, by the quadratic model."""


class Mode(NamedTuple):
    """Hold where log p(x, z) is highest near a start, and the Gaussian with the curvature there."""

    z: Float[Tensor, "B Z"]
    log_joint: Float[Tensor, " B"]
    """log p(x, z) at the mode."""
    scale_tril: Float[Tensor, "B Z Z"]
    """L with L Lᵀ the inverse of the curvature."""

    @property
    def log_evidence(self) -> Float[Tensor, " B"]:
        """Return Laplace's approximation log p(x, z*) + ½ Z log 2π + log |L|, in nats."""
        return self.log_joint + log_volume(self.scale_tril)


def log_volume(scale_tril: Float[Tensor, "*batch Z Z"]) -> Float[Tensor, "*batch"]:
    """Return log ∫ exp(-½ |L⁻¹z|²) dz = ½ Z log 2π + log |L|."""
    log_2pi = torch.log(torch.tensor(2 * torch.pi, dtype=scale_tril.dtype))
    return 0.5 * scale_tril.shape[-1] * log_2pi + scale_tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)


class _Quadratic(NamedTuple):
    """Hold log p(x, z) to second order: its value, its gradient, and the eigenvalues and vectors of its curvature.

    Every eigenvalue is taken as positive and at least the inverse of the prior's largest variance: a direction that the
    likelihood bends upwards is no reason to leave the prior (as in the saddle-free Newton method, Dauphin et al. 2014,
    arXiv 1406.2572).
    """

    value: Float[Tensor, " B"]
    gradient: Float[Tensor, "B Z"]
    eigenvalues: Float[Tensor, "B Z"]
    eigenvectors: Float[Tensor, "B Z Z"]

    def step(self, damping: Float[Tensor, " B"]) -> Float[Tensor, "B Z"]:
        """Return the Newton step, shorter the larger the damping."""
        along = torch.einsum("bij,bi->bj", self.eigenvectors, self.gradient)
        return torch.einsum("bij,bj->bi", self.eigenvectors, along / (self.eigenvalues + damping[:, None]))

    def scale_tril(self) -> Float[Tensor, "B Z Z"]:
        """Return L with L Lᵀ the inverse of the curvature."""
        root = self.eigenvectors / self.eigenvalues.sqrt()[:, None, :]
        factor: Tensor = torch.linalg.cholesky(root @ root.mT)
        return factor


@torch.no_grad()
def find_modes(vae: VAE, target: Float[Tensor, "B D"], start: Float[Tensor, "B Z"]) -> Mode:
    """Climb from a start to a mode of log p(x, z), by damped Newton steps.

    The curvature is exact in the likelihood of the network's outputs, and leaves out that of the network itself
    (Gauss-Newton), of which a network of rectifiers has none.

    Args:
        vae: p(x|z) p(z).
        target: What is scored, one image a row.
        start: Where to begin.

    Returns:
        The mode, everything in float64. An image for which log p(x, z) is not finite stays at its start.
    """
    z, damping = start.clone(), start.new_zeros(len(start), dtype=torch.float64)
    least = 1 / vae.prior.variance.max().item()
    at = _expand(vae, target, z, least)
    found = _Quadratic(*(part.clone() for part in at))
    climbing = torch.arange(len(start), device=start.device)
    for _ in range(MAX_STEPS):
        step = at.step(damping)
        there = (z[climbing] + step).to(z.dtype)
        improved = _log_joint(vae, target[climbing], there).double() >= at.value
        z[climbing[improved]] = there[improved]
        gain = (at.gradient * step).sum(-1)
        stiff = 1e-3 * at.eigenvalues.amax(-1)
        damping = torch.where(improved, damping / 10, torch.maximum(10 * damping, stiff))
        going = ~(improved & (gain < CONVERGED)) & (damping < 1e6 * stiff)
        at = _expand(vae, target[climbing], z[climbing], least)
        for part, now in zip(found, at, strict=True):
            part[climbing] = now
        climbing, damping = climbing[going], damping[going]
        at = _Quadratic(*(part[going] for part in at))
        if len(climbing) == 0:
            break
    return Mode(z.double(), found.value, found.scale_tril())


def _log_joint(vae: VAE, target: Tensor, z: Tensor) -> Tensor:
    log_p: Tensor = vae.decoder(z).log_prob(target) + vae.prior.log_prob(z)
    return log_p


def _expand(vae: VAE, target: Float[Tensor, "B D"], z: Float[Tensor, "B Z"], least: float) -> _Quadratic:
    """Expand log p(x, z) around z, with no eigenvalue below the least.

    The products of Jacobians are taken in the model's precision, sums in float64.
    """
    directions = torch.eye(z.shape[1], dtype=z.dtype, device=z.device)

    def along(direction: Tensor) -> Tensor:
        derivative: Tensor = torch.func.jvp(vae.decoder.output, (z,), (direction.expand_as(z),))[1]
        return derivative

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of torch, of what its own forward mode uses
        jacobian = torch.func.vmap(along)(directions).transpose(0, 1)  # (B, Z, P·D)
    log_p, slope, bend = _likelihood_to_second_order(vae, target, vae.decoder.output(z))
    log_prior, prior_slope, prior_bend = _prior_to_second_order(vae, z)
    gradient = (jacobian @ slope[:, :, None]).squeeze(-1).double() + prior_slope.double()
    blocks = jacobian.unflatten(-1, bend.shape[2:])
    hessian = prior_bend.double()
    for i in range(bend.shape[1]):
        for j in range(bend.shape[2]):
            hessian = hessian + ((blocks[:, :, i] * bend[:, None, i, j]) @ blocks[:, :, j].mT).double()
    sound = hessian.isfinite().all((1, 2)) & gradient.isfinite().all(1)
    hessian = torch.where(sound[:, None, None], -hessian, directions.double())
    eigenvalues, eigenvectors = torch.linalg.eigh((hessian + hessian.mT) / 2)
    value = (log_p + log_prior).double()
    return _Quadratic(value, gradient.where(sound[:, None], 0), eigenvalues.abs().clamp(min=least), eigenvectors)


def _likelihood_to_second_order(vae: VAE, target: Tensor, output: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return log p(x|z) (B), its slope (B, P·D) and its second derivatives (B, P, P, D) in the network's outputs.

    Outputs of two dimensions of x have none between them: a dimension has outputs of its own.
    """
    n_params = vae.decoder.n_params
    with torch.enable_grad():
        output = output.detach().requires_grad_()
        log_p = vae.decoder.distribution(output).log_prob(target)
        (slope,) = torch.autograd.grad(log_p.sum(), output, create_graph=True)
        rows = [_derivative(block.sum(), output) for block in slope.chunk(n_params, -1)]
    bend = torch.stack([row.unflatten(-1, (n_params, -1)) for row in rows], 1)
    return log_p.detach(), slope.detach(), bend


def _prior_to_second_order(vae: VAE, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return log p(z) (B), its gradient (B, Z) and its Hessian (B, Z, Z)."""
    with torch.enable_grad():
        z = z.detach().requires_grad_()
        log_p = vae.prior.log_prob(z)
        (slope,) = torch.autograd.grad(log_p.sum(), z, create_graph=True)
        rows = [_derivative(column.sum(), z) for column in slope.unbind(-1)]
    return log_p.detach(), slope.detach(), torch.stack(rows, 1)


def _derivative(total: Tensor, variable: Tensor) -> Tensor:
    """Return the derivative of a sum; zero where it does not depend on the variable."""
    if not total.requires_grad:
        return torch.zeros_like(variable)
    (found,) = torch.autograd.grad(total, variable, retain_graph=True, allow_unused=True)
    return torch.zeros_like(variable) if found is None else found
