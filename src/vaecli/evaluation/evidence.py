"""The evidence of many images by importance sampling, a few images at a time, and what it says of its own errors."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from vaecli.data.preprocess import Batch
from vaecli.evaluation.held_out import HeldOut, in_parts
from vaecli.evaluation.result import FEW
from vaecli.model.estimators import Weighted, importance_weighted, sample_counts
from vaecli.model.joint import LogJoint, Scores
from vaecli.model.proposals import Mixture, Proposal, adapt, encoder_proposal, fit_proposal
from vaecli.model.vae import VAE

FITTED_AT_ONCE = 50
"""Images whose proposals are fitted at a time."""


@dataclass(frozen=True)
class Group:
    """Hold the scores that share samples."""

    fitted: Scores
    """Whose first score the proposal is fitted to."""
    weighed: Scores | None = None
    """Which are weighed; None for the same."""


def estimate_evidence(held_out: HeldOut, vae: VAE, batch: Batch, stage: str, groups: Sequence[Group]) -> list[Weighted]:
    """Estimate the evidence of each image, for several groups of scores.

    Args:
        held_out: What is evaluated; its spec says how.
        vae: Its model, or one made from it.
        batch: Its images.
        stage: What the work is called.
        groups: For each a proposal is fitted, beginning with that of the group before.

    Returns:
        For each group what the samples say of all images, on the CPU: results are put into arrays made beforehand,
        since small ones kept from every part would lie between the large temporary ones and keep their memory.
    """
    n, k, spec = len(batch.target), held_out.spec.k, held_out.spec
    stream, pilots = held_out.generator("importance"), held_out.generator("pilots")
    size = FITTED_AT_ONCE if spec.proposal == "fitted" else max(1, held_out.rows // k)
    found: list[Weighted] = []
    done = 0
    for rows, of_part, part in in_parts(vae, batch, size):
        proposal: Proposal = encoder_proposal(of_part, part)
        for i, group in enumerate(groups):
            log_joint = LogJoint(of_part, part.target, held_out.rows, group.fitted)
            if isinstance(proposal, Mixture):
                proposal = adapt(proposal, of_part, part, log_joint, pilots)
            elif spec.proposal == "fitted":
                proposal = fit_proposal(of_part, part, log_joint, pilots)
            weighed = replace(log_joint, scores=group.weighed or group.fitted)
            weighted = importance_weighted(weighed, proposal, k, stream)
            if done == 0:
                found.append(Weighted(*(torch.empty((*field.shape[:-1], n), dtype=field.dtype) for field in weighted)))
            for whole, field in zip(found[i], weighted, strict=True):
                whole[..., rows] = field.cpu()
        done += len(rows)
        held_out.callback(stage, done, n)
    return found


def describe(name: str, weighted: Weighted, score: int, k: int, scale: float = 1.0) -> dict[str, Any]:
    """Return an estimate in the units that `scale` makes of nats, with its errors, under the names of a result."""
    values, size = weighted.log_evidence[-1, score] * scale, weighted.effective_sample_size[score]
    return {
        **mean(name, values),
        f"{name}_mc_se": monte_carlo_error(size, k) * abs(scale),
        f"{name}_effective_sample_size": size.median().item(),
        f"{name}_low_share": (size < FEW).double().mean().item(),
    }


def by_k(log_evidence: Float[Tensor, "K N"], k: int) -> dict[str, float]:
    """Return the mean over images after each number of samples."""
    return {str(count): row.mean().item() for count, row in zip(sample_counts(k), log_evidence, strict=True)}


def mean(name: str, per_image: Tensor) -> dict[str, float]:
    """Return a metric and its standard error over images."""
    return {name: per_image.mean().item(), f"{name}_se": standard_error(per_image)}


def standard_error(per_image: Float[Tensor, " N"]) -> float:
    """Return the standard error of a mean over images."""
    return (per_image.std() / math.sqrt(len(per_image))).item() if len(per_image) > 1 else math.nan


def monte_carlo_error(effective_sample_size: Float[Tensor, " N"], k: int) -> float:
    """Return the error of the mean of log (1/k) Σ w: Var = (1/k) Var(w)/E[w]² = 1/ESS - 1/k for each image."""
    return ((1 / effective_sample_size - 1 / k).clamp(min=0).sum().sqrt() / len(effective_sample_size)).item()
