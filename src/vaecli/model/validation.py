"""Bounds on held-out images. Evaluation has its own noise, the same every time, and leaves training's alone."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from vaecli.data.observations import Observe
from vaecli.model.objectives import draw, noise
from vaecli.model.vae import VAE
from vaecli.randomness import generator

CHUNK = 500
ACTIVE = 1e-2
"""A latent dimension is active when the posterior mean varies by more than this over images (Burda et al., 2015)."""


@dataclass(frozen=True)
class Bound:
    """The ELBO over a set of images, one draw each; means over images, in nats per image."""

    log_likelihood: float
    kl: float
    kl_per_dimension: Float[Tensor, " Z"]
    active_units: int
    """Latent dimensions with Var_x E_q[z] > 1e-2."""
    pixels_at_floor: float | None
    """The fraction of learned scales on their floor; None where the decoder has no floor."""

    @property
    def elbo(self) -> float:
        """The bound, at KL weight 1."""
        return self.log_likelihood - self.kl


@torch.no_grad()
def evaluate_bound(vae: VAE, pixels: UInt8[Tensor, "N D"], observe: Observe, seed: int) -> Bound:
    """The ELBO by estimator B with one draw per image, and what is seen on the way.

    Args:
        vae: The model, on the same device as the pixels.
        pixels: At least one image.
        observe: How pixels become x.
        seed: Of the run; evaluation replays the noise of its own stream.
    """
    stream = generator(seed, "evaluation", pixels.device)
    log_likelihood = torch.zeros((), dtype=torch.float64, device=pixels.device)
    kl = torch.zeros(vae.latent_dim, dtype=torch.float64, device=pixels.device)
    floored, scales = torch.zeros_like(log_likelihood), 0
    means = []
    for chunk in pixels.split(CHUNK):
        batch = observe(chunk, stream)
        draws = draw(vae, batch, noise(vae, batch, 1, stream))
        log_likelihood += draws.log_likelihood.sum(dtype=torch.float64)
        kl += draws.posterior.kl_from_standard().sum(0, dtype=torch.float64)
        means.append(draws.posterior.mean)
        at_floor = vae.decoder.at_floor(draws.likelihood)
        if at_floor is not None:
            floored += at_floor.sum()
            scales += at_floor.numel()
    n = len(pixels)
    spread = torch.cat(means).double().var(0, correction=0)
    kl_per_dimension = (kl / n).cpu()
    return Bound(
        log_likelihood=log_likelihood.item() / n,
        kl=kl_per_dimension.sum().item(),
        kl_per_dimension=kl_per_dimension,
        active_units=int((spread > ACTIVE).sum()),
        pixels_at_floor=floored.item() / scales if scales else None,
    )
