"""The ELBO over held-out images, as training looks at it, and where it is lost.

What training looks at has random numbers of its own, the same every time, and leaves those of training alone.

log p(x) - ELBO = approximation gap + amortisation gap (Cremer et al. 2018, arXiv 1801.03558): the first is left by the
best diagonal Gaussian of each image, the second is what the encoder, one network for all images, loses beside it.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor

from vaecli.data.preprocess import Batch, Preprocess
from vaecli.model.distributions import DiagonalNormal, Posterior, standard_normal
from vaecli.model.objectives import draw, draw_noise
from vaecli.model.priors import Prior
from vaecli.model.vae import VAE, kl_per_dimension
from vaecli.randomness import generator

CHUNK = 500
"""Images whose bound is estimated at a time."""
ACTIVE = 1e-2
"""A latent dimension is active when the posterior mean varies by more than this over images (Burda et al., 2015)."""
STEPS = 300
DRAWS = 8
"""Of each image in each step."""
LEARNING_RATE = 0.1
"""Of Adam at the start, falling to 0 by half a cosine; means move in units of the encoder's deviations."""


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
def evaluate_bound(
    vae: VAE,
    pixels: Shaped[Tensor, "N D"],
    preprocess: Preprocess,
    seed: int,
    labels: Int64[Tensor, " N"] | None = None,
) -> Bound:
    """Estimate the ELBO by estimator B with one draw per image, and diagnostics of the same draws.

    Args:
        vae: The model, on the same device as the pixels.
        pixels: At least one image.
        preprocess: Turns pixels into x.
        seed: Of the run; evaluation replays its own stream of random numbers.
        labels: Of the images, for a model that is told them.
    """
    stream = generator(seed, "evaluation", pixels.device)
    log_likelihood = torch.zeros((), dtype=torch.float64, device=pixels.device)
    kl = torch.zeros(vae.latent_dim, dtype=torch.float64, device=pixels.device)
    total_kl, n_at_floor, n_scales = torch.zeros_like(log_likelihood), torch.zeros_like(log_likelihood), 0
    means, in_closed_form = [], True
    for start in range(0, len(pixels), CHUNK):
        rows = slice(start, start + CHUNK)
        batch = preprocess(pixels[rows], stream, None if labels is None else labels[rows])
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


def best_diagonal(vae: VAE, batch: Batch, generator: torch.Generator) -> DiagonalNormal:
    """Fit the diagonal Gaussian with the largest ELBO to each image, from the encoder's mean and deviation.

    Args:
        vae: p(x|z) p(z) and q(z|x).
        batch: The images.
        generator: Of the draws, on the batch's device.
    """
    with torch.no_grad():
        begin = vae.encoder(batch.input)
        mean, scale = begin.mean, begin.stddev
    moved, widened = torch.zeros_like(mean).requires_grad_(), torch.zeros_like(mean).requires_grad_()
    optimizer = torch.optim.Adam((moved, widened), lr=LEARNING_RATE)
    for step in range(STEPS):
        optimizer.param_groups[0]["lr"] = LEARNING_RATE * 0.5 * (1 + math.cos(math.pi * step / STEPS))
        q = DiagonalNormal(mean + scale * moved, scale.log() + widened)
        half = standard_normal((DRAWS // 2, *mean.shape), mean, generator)
        loss = -elbo_of(vae, batch, q, torch.cat([half, -half])).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        return DiagonalNormal(mean + scale * moved, scale.log() + widened)


def elbo_of(vae: VAE, batch: Batch, q: Posterior, noise: Float[Tensor, "S B Z"]) -> Float[Tensor, " B"]:
    """Return the ELBO of each image with its own q, by the draws that noise is transported to."""
    z, log_q = q.transport(noise)
    log_p: Tensor = vae.decoder(z).log_prob(batch.target)
    kl = kl_per_dimension(q, vae.prior)
    if kl is None:
        elbo: Tensor = (log_p + vae.prior.log_prob(z) - log_q()).mean(0)
        return elbo
    return log_p.mean(0) - kl.sum(-1)


@torch.no_grad()
def expected_kl(q: Posterior, prior: Prior, n: int, generator: torch.Generator) -> Float[Tensor, ""]:
    """Return the mean KL(q ‖ p) over images: in closed form where there is one, else by n draws of each."""
    kl = kl_per_dimension(q, prior)
    if kl is not None:
        return kl.sum(-1).double().mean()
    shape, total = q.batch_shape + q.event_shape, torch.zeros((), dtype=torch.float64)
    for _ in range(n):
        z, log_q = q.transport(standard_normal(shape, q.mean, generator))
        total = total + (log_q() - prior.log_prob(z)).double().mean() / n
    return total


def mutual_information(q: DiagonalNormal, generator: torch.Generator, rows: int = 200) -> Float[Tensor, ""]:
    """Estimate the mutual information of image and code under the encoder, the mean of log q(z|x_n)/q(z).

    q(z) = (1/N) Σ_n q(z|x_n) is the aggregated posterior; what the mean KL(q(z|x) ‖ p(z)) has beside the mutual
    information is KL(q(z) ‖ p(z)) (Hoffman & Johnson 2016). It is at most log N: N images cannot show more.

    Args:
        q: The posteriors of N images.
        generator: Of the draws.
        rows: Draws whose density under all N parts is computed at a time.
    """
    z, log_q = q.transport(standard_normal(q.mean.shape, q.mean, generator))
    mixture = [q.log_prob(part[:, None]).logsumexp(1) - math.log(len(z)) for part in z.split(rows)]
    information: Tensor = (log_q() - torch.cat(mixture)).double().mean()
    return information
