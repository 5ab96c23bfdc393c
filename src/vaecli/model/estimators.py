"""Estimates for each image of a batch: the terms of the ELBO, and the evidence by importance weights."""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from vaecli.data.preprocess import Batch
from vaecli.model.joint import LogJoint
from vaecli.model.objectives import Elbo, draw, draw_noise
from vaecli.model.proposals import Proposal
from vaecli.model.vae import VAE

AT_ONCE = 5000
"""Samples of z of each image that are drawn at a time; they are decoded a few at a time."""
SAMPLE_COUNTS = (1, 10, 100, 1000)
"""The numbers of samples, besides the last, at which the importance-weighted bound is reported."""


class Weighted(NamedTuple):
    """Hold what k importance samples say of each image. Axes: K sample counts, T scores, B images."""

    log_evidence: Float[Tensor, "K T B"]
    """log (1/S) Σ_s w_s over the first S samples, S a sample count: each row a lower bound in expectation, in nats."""
    effective_sample_size: Float[Tensor, "T B"]
    """(Σ w)² / Σ w² over all k samples."""


def sample_counts(k: int) -> list[int]:
    """Return the sample counts below k, and k."""
    return [count for count in SAMPLE_COUNTS if count < k] + [k]


@torch.no_grad()
def importance_weighted(log_joint: LogJoint, proposal: Proposal, k: int, generator: torch.Generator) -> Weighted:
    """Weigh k samples from a proposal for each image of a batch (Burda et al. 2015, eq. 8).

    Args:
        log_joint: Of p(x, z), for B images.
        proposal: Where samples come from.
        k: Samples for each image; memory does not grow with them.
        generator: Of the samples, on the batch's device.
    """
    total = squares = None
    by_count = []
    for drawn in range(0, k, AT_ONCE):
        n = min(AT_ONCE, k - drawn)
        z, log_q = proposal.draw(n, generator)
        log_w = log_joint.of_scores(z) - log_q
        counts = (count for count in sample_counts(k)[:-1] if drawn < count <= drawn + n)
        by_count += [_add(total, log_w[:, : count - drawn].logsumexp(1)) - math.log(count) for count in counts]
        total, squares = _add(total, log_w.logsumexp(1)), _add(squares, (2 * log_w).logsumexp(1))
    assert total is not None
    assert squares is not None
    by_count.append(total - math.log(k))
    return Weighted(torch.stack(by_count), (2 * total - squares).exp())


def _add(one: Tensor | None, two: Tensor) -> Tensor:
    return two if one is None else torch.logaddexp(one, two)


@torch.no_grad()
def expected_terms(vae: VAE, batch: Batch, n: int, generator: torch.Generator, rows: int) -> Elbo:
    """Estimate the two terms of the ELBO of each image by n draws, the KL term in closed form where there is one.

    Args:
        vae: The model.
        batch: B images.
        n: Draws for each image.
        generator: Draws ε, on the batch's device.
        rows: At most so many samples of all images together are decoded at a time.
    """
    size = max(1, rows // len(batch.target))
    noise = draw_noise(vae, batch, n, generator)
    terms = [(len(part), draw(vae, batch, part).elbo) for part in noise.split(size)]
    mean = (sum((count * term[i].double() for count, term in terms), torch.zeros(())) / n for i in range(2))
    return Elbo(*mean)
