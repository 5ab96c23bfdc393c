"""The ELBO over held-out images, as training looks at it.

It has random numbers of its own, the same every time, and leaves those of training alone.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from vaecli.data.dataset import Preprocess
from vaecli.model.objectives import draw, draw_noise
from vaecli.model.vae import VAE, kl_per_dimension
from vaecli.randomness import generator

CHUNK = 500
"""Images whose bound is estimated at a time."""
ACTIVE = 1e-2
"""A latent dimension is active when the posterior mean varies by more than this over images (Burda et al., 2015)."""


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
