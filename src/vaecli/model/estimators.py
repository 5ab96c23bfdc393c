"""Importance-weighted estimates of the evidence, in chunks whose memory does not grow with the number of samples."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import Distribution

from vaecli.data.observations import Batch
from vaecli.model.distributions import DiagonalNormal, standard_normal
from vaecli.model.vae import VAE

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
    mean, stddev, portion = posterior.mean, posterior.stddev, max(1, rows // len(batch.input))
    so_far, rungs = None, []
    for drawn in range(0, k, portion):
        n_samples = min(portion, k - drawn)
        z = mean + stddev * standard_normal((n_samples, *mean.shape), mean, generator)
        log_p = scores(vae.decoder(z), batch.target)
        log_w = (log_p + (prior.log_prob(z) - posterior.log_prob(z))).double()
        for rung in (rung for rung in ladder(k) if drawn < rung <= drawn + n_samples):
            weights = log_w[:, : rung - drawn].logsumexp(1)
            rungs.append((weights if so_far is None else torch.logaddexp(so_far.weights, weights)) - math.log(rung))
        so_far = _added(so_far, _sums(log_w, log_p))
    assert so_far is not None
    effective_sample_size = (2 * so_far.weights - so_far.squares).exp()
    return Weighted(torch.stack(rungs), effective_sample_size, so_far.log_likelihood / k)


class _Sums(NamedTuple):
    """Over samples: log Σ w, log Σ w² and Σ log p(x|z)."""

    weights: Float[Tensor, "T B"]
    squares: Float[Tensor, "T B"]
    log_likelihood: Float[Tensor, "T B"]


def _sums(log_w: Float[Tensor, "T S B"], log_p: Float[Tensor, "T more B"]) -> _Sums:
    return _Sums(log_w.logsumexp(1), (2 * log_w).logsumexp(1), log_p.double().sum(1))


def _added(one: _Sums | None, two: _Sums) -> _Sums:
    if one is None:
        return two
    weights, squares = torch.logaddexp(one.weights, two.weights), torch.logaddexp(one.squares, two.squares)
    return _Sums(weights, squares, one.log_likelihood + two.log_likelihood)
