"""The paper's estimator of the evidence, from samples of the posterior (Kingma & Welling 2013, appendix D)."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from vaecli.model.annealing import Path, Report
from vaecli.model.laplace import log_volume
from vaecli.model.proposals import Mixture

STEP_SIZE = 0.5
"""Of the Hamiltonian transitions, in units of the posterior's scales."""


def log_evidence_from_posterior(
    path: Path, fitted: Mixture, n_samples: int, generator: torch.Generator, report: Report
) -> Float[Tensor, " B"]:
    """Estimate log p(x) ≈ -log (1/S) Σ_s q(z_s)/(p(z_s) p(x|z_s)) with z_s from p(z|x).

    Samples of p(z|x) are made by Hamiltonian transitions from draws of a fitted proposal; q is a Gaussian with the mean
    and covariance of the first half, and the second half, which q has not seen, is averaged over. Unlike a mean of
    importance weights it is no bound, and a few samples far out in q's tails can decide it.

    Args:
        path: To the posterior; each sample goes as many transitions as it has.
        fitted: Where the chains begin.
        n_samples: S, and as many to fit q to.
        generator: Of all noise.
        report: Is called with the transitions done.
    """
    z, _ = fitted.draw(2 * n_samples, generator)
    size = torch.full_like(path.target.precision[:, 0], STEP_SIZE)
    for _ in range(path.n_transitions):
        z = path.sample(z, 1, size, generator)
        report(1)
    first, second = z.double().chunk(2)
    mean = first.mean(0)
    off = first - mean
    dim = z.shape[-1]
    covariance = torch.einsum("sbi,sbj->bij", off, off) / max(1, n_samples - 1)
    scale_tril = torch.linalg.cholesky(covariance + 1e-6 * torch.eye(dim, dtype=torch.float64, device=z.device))
    white = torch.linalg.solve_triangular(scale_tril, (second - mean).permute(1, 2, 0), upper=False)
    log_q = -0.5 * white.square().sum(1).T - log_volume(scale_tril)
    every = torch.arange(z.shape[1], device=z.device)
    log_ratio = log_q - path.target.log_joint(second.to(z.dtype), every)
    log_evidence: Tensor = math.log(n_samples) - log_ratio.logsumexp(0)
    return log_evidence
