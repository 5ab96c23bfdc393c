"""Where a bound is lost: how far the best diagonal Gaussian of an image and the encoder's fall short of the evidence.

log p(x) - ELBO = approximation gap + amortisation gap (Cremer et al. 2018, arXiv 1801.03558): the first is left by the
best diagonal Gaussian of each image, the second is what the encoder, one network for all images, loses beside it.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from vaecli.data.dataset import Batch
from vaecli.model.distributions import DiagonalNormal, standard_normal
from vaecli.model.vae import VAE, kl_per_dimension

STEPS = 300
DRAWS = 8
"""Of each image in each step."""
LEARNING_RATE = 0.1
"""Of Adam at the start, falling to 0 by half a cosine; means move in units of the encoder's deviations."""


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


def elbo_of(vae: VAE, batch: Batch, q: DiagonalNormal, noise: Float[Tensor, "S B Z"]) -> Float[Tensor, " B"]:
    """Return the ELBO of each image with its own q, by the draws that noise is transported to."""
    z, log_q = q.transport(noise)
    log_p: Tensor = vae.decoder(z).log_prob(batch.target)
    kl = kl_per_dimension(q, vae.prior)
    if kl is None:
        elbo: Tensor = (log_p + vae.prior.log_prob(z) - log_q()).mean(0)
        return elbo
    return log_p.mean(0) - kl.sum(-1)


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
