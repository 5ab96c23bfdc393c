"""Evidence from below and above, by annealed importance sampling with Hamiltonian transitions.

Annealing goes from a start that can be drawn from (the prior, or a proposal fitted to the image) to p(x, z), through
f_β = start^(1-β) p(x, z)^β with β from 0 to 1 (Neal 2001, arXiv physics/9803008; for decoders, Wu et al. 2017, arXiv
1611.04273). The mean of the weights is unbiased for p(x): its logarithm is a bound from below. Backwards, from an
exact draw of z given x, the mean of the inverse weights is unbiased for 1/p(x), a bound from above (bidirectional
Monte Carlo, Grosse et al. 2015, arXiv 1511.02543). Exact draws are there for images that the model itself has drawn.

Axes: C chains, B images, Z latent dimensions, T transitions.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from vaecli.model.hamiltonian import Dynamics, LogDensity, transition
from vaecli.model.joint import LogJoint
from vaecli.model.proposals import Mixture, effective_sample_size

ACCEPTANCE = 0.65
"""The acceptance that step sizes are tuned for."""
STEEPNESS = 4.0
"""Of the schedule: β follows a sigmoid between -4 and 4 (Grosse et al. 2015), slow at both ends."""

Report = Callable[[int], None]
"""Is called with how many transitions more are done."""


@dataclass(frozen=True)
class Start:
    """Hold what annealing begins from.

    Args:
        draw: Draws z (n, B, Z).
        log_prob: The log density of z, differentiable.
        precision: Of the start along the axes, roughly: Hamiltonian steps are scaled by it.
    """

    draw: Callable[[int, torch.Generator], Float[Tensor, "n B Z"]]
    log_prob: LogDensity
    precision: Float[Tensor, "B Z"]


@dataclass(frozen=True)
class Target:
    """Hold p(x, z) for some images, and the axes along which its posteriors are stretched.

    Args:
        log_joint: Of p(x, z).
        axes: Orthonormal, one a column.
        precision: Of the posterior along the axes, roughly.
    """

    log_joint: LogJoint
    axes: Float[Tensor, "B Z Z"]
    precision: Float[Tensor, "B Z"]

    def log_prob(self, z: Float[Tensor, "C B Z"]) -> Float[Tensor, "C B"]:
        """Return log p(x, z), differentiable."""
        vae = self.log_joint.vae
        log_p: Tensor = vae.decoder(z).log_prob(self.log_joint.target) + vae.prior.log_prob(z)
        return log_p


def target_of(log_joint: LogJoint, fitted: Mixture) -> Target:
    """Return p(x, z) with the axes and precisions of the Gaussian that has the largest share in a fitted proposal."""
    largest = fitted.log_share[:-1].argmax(0)
    scale_tril = fitted.scale_tril[largest, torch.arange(len(largest), device=largest.device)]
    variance, axes = torch.linalg.eigh(scale_tril @ scale_tril.mT)
    dtype = fitted.encoder.like.dtype
    return Target(log_joint, axes.to(dtype), variance.reciprocal().to(dtype))


def start_at_prior(target: Target) -> Start:
    """Begin from p(z), its precision taken to be that of its mean variance."""
    vae, n_images = target.log_joint.vae, len(target.precision)

    def draw(n: int, generator: torch.Generator) -> Tensor:
        z = vae.prior.draw(n * n_images, target.precision, generator)
        return z.reshape(n, n_images, -1)

    return Start(draw, vae.prior.log_prob, torch.full_like(target.precision, 1 / vae.prior.variance.mean().item()))


def start_at_fitted(target: Target, fitted: Mixture) -> Start:
    """Begin from a fitted proposal."""
    return Start(lambda n, generator: fitted.draw(n, generator).z, fitted.log_prob, target.precision)


class _Point(NamedTuple):
    """Hold z with the log densities of start and target there, and their gradients."""

    z: Float[Tensor, "C B Z"]
    log_start: Float[Tensor, "C B"]
    log_target: Float[Tensor, "C B"]
    slope_start: Float[Tensor, "C B Z"]
    slope_target: Float[Tensor, "C B Z"]

    def value(self, beta: float) -> Float[Tensor, "C B"]:
        return (1 - beta) * self.log_start + beta * self.log_target

    def slope(self, beta: float) -> Float[Tensor, "C B Z"]:
        return (1 - beta) * self.slope_start + beta * self.slope_target


@dataclass(frozen=True)
class Path:
    """Anneal between a start and a target, over T + 1 values of β.

    Args:
        start: At β = 0.
        target: At β = 1.
        n_transitions: T.
    """

    start: Start
    target: Target
    n_transitions: int

    @property
    def schedule(self) -> Float[Tensor, " T1"]:
        """Return β_0 = 0, ..., β_T = 1."""
        places = torch.linspace(-STEEPNESS, STEEPNESS, self.n_transitions + 1, dtype=torch.float64).sigmoid()
        return (places - places[0]) / (places[-1] - places[0])

    def tune(self, generator: torch.Generator, report: Report) -> Float[Tensor, "T B"]:
        """Find step sizes by a pass of two chains that adapts as it goes; what is measured then keeps them fixed."""
        point = self._at(self.start.draw(2, generator))
        size = torch.full_like(self.target.precision[:, 0], 0.5)
        sizes = []
        for beta in self.schedule[1:].tolist():
            point, accepted = self._transition(point, beta, size, generator)
            size = (size * torch.exp(0.3 * (accepted.mean(0) - ACCEPTANCE))).clamp(1e-4, 2.0)
            sizes.append(size)
            report(1)
        return torch.stack(sizes)

    def forward(
        self, n_chains: int, sizes: Float[Tensor, "T B"], generator: torch.Generator, report: Report
    ) -> tuple[Float[Tensor, "C B"], Float[Tensor, " B"]]:
        """Return log weights, whose exponentials have the expectation p(x), and the acceptance of each image."""
        z = self.start.draw(n_chains, generator)
        return self._anneal(z, self.schedule.tolist(), sizes, generator, report)

    def backward(
        self,
        z: Float[Tensor, "B Z"],
        n_chains: int,
        sizes: Float[Tensor, "T B"],
        generator: torch.Generator,
        report: Report,
    ) -> tuple[Float[Tensor, "C B"], Float[Tensor, " B"]]:
        """Return log weights from exact draws of z given x; the inverse weights have the expectation 1/p(x)."""
        chains = z.expand(n_chains, -1, -1)
        log_w, accepted = self._anneal(chains, self.schedule.flip(0).tolist(), sizes.flip(0), generator, report)
        return -log_w, accepted

    def sample(
        self, z: Float[Tensor, "C B Z"], n: int, size: Float[Tensor, " B"], generator: torch.Generator
    ) -> Float[Tensor, "C B Z"]:
        """Return where n transitions at β = 1 lead: draws from the posterior, if z were or n is large."""
        point = self._at(z)
        for _ in range(n):
            point, _ = self._transition(point, 1.0, size, generator)
        return point.z

    def _anneal(
        self, z: Tensor, schedule: list[float], sizes: Tensor, generator: torch.Generator, report: Report
    ) -> tuple[Tensor, Tensor]:
        """Sum (β' - β)(log p(x, z) - log start(z)) along the way.

        Forwards a transition at β' follows the change from β to β'; backwards it comes before the change, at the β that
        is left, so that the two are each other's reverse.
        """
        point, forwards = self._at(z), schedule[0] < schedule[-1]
        log_w = torch.zeros(z.shape[:2], dtype=torch.float64, device=z.device)
        accepted = torch.zeros_like(self.target.precision[:, 0])
        for (beta, following), size in zip(pairwise(schedule), sizes, strict=True):
            if not forwards:
                point, part = self._transition(point, beta, size, generator)
                accepted += part.mean(0)
            log_w += (following - beta) * (point.log_target - point.log_start).double()
            if forwards:
                point, part = self._transition(point, following, size, generator)
                accepted += part.mean(0)
            report(1)
        return log_w, accepted / self.n_transitions

    def _at(self, z: Tensor) -> _Point:
        """Evaluate both densities, as many chains at a time as a decoder's outputs have room for."""
        parts = []
        for part in z.split(max(1, self.target.log_joint.rows // z.shape[1])):
            with torch.enable_grad():
                variable = part.detach().requires_grad_()
                log_start, log_target = self.start.log_prob(variable), self.target.log_prob(variable)
                (slope_start,) = torch.autograd.grad(log_start.sum(), variable)
                (slope_target,) = torch.autograd.grad(log_target.sum(), variable)
            parts.append(_Point(part, log_start.detach(), log_target.detach(), slope_start, slope_target))
        return _Point(*(torch.cat(fields) for fields in zip(*parts, strict=True)))

    def _transition(
        self, point: _Point, beta: float, size: Float[Tensor, " B"], generator: torch.Generator
    ) -> tuple[_Point, Float[Tensor, "C B"]]:
        """Make one Hamiltonian transition that leaves f_β as it is.

        The mass matrix has the posterior's axes, and its precisions as far as β has come.

        Returns:
            Where it leads, and the probabilities of acceptance.
        """
        axes = self.target.axes
        scale = ((1 - beta) * self.start.precision + beta * self.target.precision).rsqrt()
        dynamics = Dynamics(
            self._at,
            lambda point: point.value(beta),
            lambda point: scale * torch.einsum("bij,cbi->cbj", axes, point.slope(beta)),
            lambda step: torch.einsum("bij,cbj->cbi", axes, scale * step),
        )
        return transition(point, dynamics, size, generator)


class Annealed(NamedTuple):
    """Hold what chains say of each image, in nats."""

    log_evidence: Float[Tensor, " B"]
    """The logarithm of the mean weight, or of the inverse of the mean inverse weight."""
    effective_chains: Float[Tensor, " B"]
    """(Σ w)² / Σ w² over chains, of the inverse weights where those are averaged."""
    acceptance: Float[Tensor, " B"]


def from_below(log_w: Float[Tensor, "C B"], acceptance: Float[Tensor, " B"]) -> Annealed:
    """Return log (1/C) Σ w: in expectation a lower bound on log p(x)."""
    return Annealed(log_w.logsumexp(0) - math.log(len(log_w)), effective_sample_size(log_w), acceptance)


def from_above(log_w: Float[Tensor, "C B"], acceptance: Float[Tensor, " B"]) -> Annealed:
    """Return -log (1/C) Σ 1/w: in expectation an upper bound on log p(x), for images that the model has drawn."""
    below = from_below(-log_w, acceptance)
    return below._replace(log_evidence=-below.log_evidence)
