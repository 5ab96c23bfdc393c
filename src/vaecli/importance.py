"""Importance-weighted estimates of the evidence, in chunks whose memory does not grow with the number of samples."""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import Distribution

from vaecli.factorised import DiagonalNormal, standard_normal
from vaecli.observations import Batch
from vaecli.vae import VAE

LADDER = (1, 10, 100, 1000)
"""The numbers of samples, besides the last, at which the bound is reported."""

Scores = Callable[[Distribution, Tensor], Float[Tensor, "T S B"]]
"""The log-likelihoods of T statements about an image, given p(x|z): they share z and the weights' other terms."""


class Weighted(NamedTuple):
    """What k importance samples say of each image. Axes: K rungs of the ladder, T scores, B images."""

    log_evidence: Float[Tensor, "K T B"]
    """log (1/S) Σ_s w_s over the first S samples, S on the ladder: each row a lower bound in expectation, in nats."""
    effective_sample_size: Float[Tensor, "T B"]
    """(Σ w)² / Σ w² over all k samples."""
    log_likelihood: Float[Tensor, "T B"]
    """E_q[score], over all k samples."""


def ladder(k: int) -> list[int]:
    """The rungs below k, and k."""
    return [rung for rung in LADDER if rung < k] + [k]


def log_likelihood(likelihood: Distribution, target: Tensor) -> Float[Tensor, "T S B"]:
    """The one score of an ordinary evaluation: log p(x|z)."""
    return likelihood.log_prob(target)[None]


@torch.no_grad()
def importance_weighted(
    vae: VAE, batch: Batch, k: int, generator: torch.Generator, rows: int, scores: Scores = log_likelihood
) -> Weighted:
    """Weigh k samples from q(z|x) for each image of a batch (Burda et al. 2015, eq. 8).

    Args:
        vae: p(x|z) p(z) and the proposal q(z|x).
        batch: B images.
        k: Samples for each image.
        generator: Draws ε, on the batch's device.
        rows: At most so many samples of all images together are decoded at a time.
        scores: The log-likelihoods to weigh.
    """
    posterior, prior = vae.encoder(batch.input), vae.prior
    assert isinstance(posterior, DiagonalNormal)
    mean, stddev = posterior.mean, posterior.stddev
    rungs, drawn = [], 0
    log_sum = log_sum_of_squares = total = torch.tensor(-math.inf)
    for n_samples in _chunks(k, max(1, rows // len(mean))):
        z = mean + stddev * standard_normal((n_samples, *mean.shape), mean, generator)
        log_p = scores(vae.decoder(z), batch.target)
        log_w = (log_p + (prior.log_prob(z) - posterior.log_prob(z))).double()
        first = drawn == 0
        sums = log_w.logsumexp(1), (2 * log_w).logsumexp(1), log_p.double().sum(1)
        log_sum = sums[0] if first else torch.logaddexp(log_sum, sums[0])
        log_sum_of_squares = sums[1] if first else torch.logaddexp(log_sum_of_squares, sums[1])
        total = sums[2] if first else total + sums[2]
        drawn += n_samples
        if drawn in {*LADDER, k}:
            rungs.append(log_sum - math.log(drawn))
    return Weighted(torch.stack(rungs), (2 * log_sum - log_sum_of_squares).exp(), total / k)


def _chunks(k: int, most: int) -> Iterator[int]:
    """Portions of at most `most` samples that end on every rung of the ladder."""
    drawn = 0
    for rung in ladder(k):
        while drawn < rung:
            portion = min(most, rung - drawn)
            drawn += portion
            yield portion
