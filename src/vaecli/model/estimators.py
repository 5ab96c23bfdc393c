"""Estimates over held-out images: the ELBO, and the evidence by importance weights.

Both have random numbers of their own, the same every time, and leave those of training alone.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.distributions import Distribution

from vaecli.data.dataset import Batch, Preprocess
from vaecli.model.distributions import Posterior, standard_normal
from vaecli.model.objectives import draw, draw_noise
from vaecli.model.vae import VAE, kl_per_dimension
from vaecli.randomness import generator

CHUNK = 500
"""Images whose bound is estimated at a time."""
ACTIVE = 1e-2
"""A latent dimension is active when the posterior mean varies by more than this over images (Burda et al., 2015)."""
SAMPLE_COUNTS = (1, 10, 100, 1000)
"""The numbers of samples, besides the last, at which the importance-weighted bound is reported."""


@dataclass(frozen=True)
class Bound:
    """Hold the ELBO over a set of images, one draw each; means over images, in nats per image."""

    log_likelihood: float
    kl: float
    kl_per_dimension: Float[Tensor, " Z"] | None
    """None where the KL term has no closed form."""
    active_units: int
    """Latent dimensions with Var_x E_q[z] > 1e-2."""
    pixels_at_floor: float | None
    """The fraction of learned scales on their floor; None where the decoder has no floor."""

    @property
    def elbo(self) -> float:
        """Return the bound, at KL weight 1."""
        return self.log_likelihood - self.kl


@torch.no_grad()
def evaluate_bound(vae: VAE, pixels: UInt8[Tensor, "N D"], preprocess: Preprocess, seed: int) -> Bound:
    """Estimate the ELBO by estimator B with one draw per image, and diagnostics of the same draws.

    Args:
        vae: The model, on the same device as the pixels.
        pixels: At least one image.
        preprocess: Turns pixels into x.
        seed: Of the run; evaluation replays its own stream of random numbers.
    """
    stream = generator(seed, "evaluation", pixels.device)
    log_likelihood = torch.zeros((), dtype=torch.float64, device=pixels.device)
    kl = torch.zeros(vae.latent_dim, dtype=torch.float64, device=pixels.device)
    total_kl, n_at_floor, n_scales = torch.zeros_like(log_likelihood), torch.zeros_like(log_likelihood), 0
    means, in_closed_form = [], True
    for chunk in pixels.split(CHUNK):
        batch = preprocess(chunk, stream)
        draws = draw(vae, batch, draw_noise(vae, batch, 1, stream))
        log_likelihood += draws.log_likelihood.sum(dtype=torch.float64)
        per_dimension = kl_per_dimension(draws.posterior, vae.prior)
        if per_dimension is None:
            in_closed_form = False
            total_kl += draws.kl.sum(dtype=torch.float64)
        else:
            kl += per_dimension.sum(0, dtype=torch.float64)
        means.append(draws.posterior.mean)
        at_floor = vae.decoder.at_floor(draws.likelihood)
        if at_floor is not None:
            n_at_floor += at_floor.sum()
            n_scales += at_floor.numel()
    n = len(pixels)
    spread = torch.cat(means).double().var(0, correction=0)
    mean_kl = (kl / n).cpu()
    return Bound(
        log_likelihood=log_likelihood.item() / n,
        kl=mean_kl.sum().item() if in_closed_form else total_kl.item() / n,
        kl_per_dimension=mean_kl if in_closed_form else None,
        active_units=int((spread > ACTIVE).sum()),
        pixels_at_floor=n_at_floor.item() / n_scales if n_scales else None,
    )


Scores = Callable[[Distribution, Tensor], Float[Tensor, "T S B"]]
"""The log-likelihoods of T statements about an image, given p(x|z): they share z and the weights' other terms."""


class Weighted(NamedTuple):
    """Hold what k importance samples say of each image. Axes: K sample counts, T scores, B images."""

    log_evidence: Float[Tensor, "K T B"]
    """log (1/S) Σ_s w_s over the first S samples, S a sample count: each row a lower bound in expectation, in nats."""
    effective_sample_size: Float[Tensor, "T B"]
    """(Σ w)² / Σ w² over all k samples."""
    log_likelihood: Float[Tensor, "T B"]
    """E_q[score], over all k samples."""
    kl: Float[Tensor, " B"]
    """E_q[log q(z|x) - log p(z)], over all k samples."""


def sample_counts(k: int) -> list[int]:
    """Return the sample counts below k, and k."""
    return [count for count in SAMPLE_COUNTS if count < k] + [k]


def score_log_likelihood(likelihood: Distribution, target: Tensor) -> Float[Tensor, "T S B"]:
    """Return the one score of an ordinary evaluation: log p(x|z)."""
    return likelihood.log_prob(target)[None]


@torch.no_grad()
def importance_weighted(
    vae: VAE, batch: Batch, k: int, generator: torch.Generator, rows: int, scores: Scores = score_log_likelihood
) -> Weighted:
    """Weigh k samples from q(z|x) for each image of a batch (Burda et al. 2015, eq. 8).

    They are decoded in chunks, so that memory does not grow with k.

    Args:
        vae: p(x|z) p(z) and the proposal q(z|x).
        batch: B images.
        k: Samples for each image.
        generator: Draws ε, on the batch's device.
        rows: At most so many samples of all images together are decoded at a time.
        scores: The log-likelihoods to weigh.
    """
    posterior, n_images = vae.encoder(batch.input), len(batch.input)
    assert isinstance(posterior, Posterior)
    chunk = max(1, rows // n_images)
    so_far, by_count = None, []
    for drawn in range(0, k, chunk):
        n_samples = min(chunk, k - drawn)
        z, log_q = posterior.transport(standard_normal((n_samples, n_images, vae.latent_dim), batch.input, generator))
        log_p = scores(vae.decoder(z), batch.target)
        log_ratio = vae.prior.log_prob(z) - log_q()
        log_w = (log_p + log_ratio).double()
        for count in (count for count in sample_counts(k) if drawn < count <= drawn + n_samples):
            weights = log_w[:, : count - drawn].logsumexp(1)
            by_count.append((weights if so_far is None else torch.logaddexp(so_far.weights, weights)) - math.log(count))
        so_far = _add(so_far, _sums(log_w, log_p, log_ratio))
    assert so_far is not None
    effective_sample_size = (2 * so_far.weights - so_far.squares).exp()
    return Weighted(torch.stack(by_count), effective_sample_size, so_far.log_likelihood / k, -so_far.log_ratio / k)


class _Sums(NamedTuple):
    """Hold log Σ w, log Σ w², Σ log p(x|z) and Σ log p(z)/q(z|x) over samples."""

    weights: Float[Tensor, "T B"]
    squares: Float[Tensor, "T B"]
    log_likelihood: Float[Tensor, "T B"]
    log_ratio: Float[Tensor, " B"]


def _sums(log_w: Float[Tensor, "T S B"], log_p: Float[Tensor, "T S B"], log_ratio: Float[Tensor, "S B"]) -> _Sums:
    return _Sums(
        log_w.logsumexp(1), (2 * log_w).logsumexp(1), log_p.double().sum(1), log_ratio.sum(0, dtype=torch.float64)
    )


def _add(one: _Sums | None, two: _Sums) -> _Sums:
    if one is None:
        return two
    return _Sums(
        torch.logaddexp(one.weights, two.weights),
        torch.logaddexp(one.squares, two.squares),
        one.log_likelihood + two.log_likelihood,
        one.log_ratio + two.log_ratio,
    )
