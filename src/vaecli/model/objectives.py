"""Lower bounds on the evidence, from one primitive: the importance weight.

Axes: S samples, B images, D pixels, Z latent dimensions. Everything is in nats per image and to be maximised;
the loss of training is the negative mean over the minibatch.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import Distribution

from vaecli.config.schema import ObjectiveConfig
from vaecli.data.observations import Batch
from vaecli.model.distributions import DiagonalNormal, standard_normal
from vaecli.model.vae import VAE


class Elbo(NamedTuple):
    """The evidence lower bound, E_q[log p(x|z)] - KL(q(z|x) ‖ p(z)), in its two terms."""

    log_likelihood: Float[Tensor, " B"]
    kl: Float[Tensor, " B"]

    @property
    def value(self) -> Float[Tensor, " B"]:
        """The bound itself, always at KL weight 1."""
        return self.log_likelihood - self.kl


class Draws(NamedTuple):
    """S reparametrised draws from the posterior of each image, and how well each explains its own image."""

    posterior: DiagonalNormal
    z: Float[Tensor, "S B Z"]
    likelihood: Distribution
    log_likelihood: Float[Tensor, "S B"]

    @property
    def elbo(self) -> Elbo:
        """SGVB estimator B (paper, eq. 7): the KL term in closed form, the likelihood averaged over S."""
        return Elbo(self.log_likelihood.mean(0), self.posterior.kl_from_standard().sum(-1))

    def log_weights(self, prior: DiagonalNormal, kl_weight: float | Tensor = 1.0) -> Float[Tensor, "S B"]:
        """log w = log p(x|z) + β (log p(z) - log q(z|x)), with β = 1 unless it is being warmed up."""
        return self.log_likelihood + kl_weight * (prior.log_prob(self.z) - self.posterior.log_prob(self.z))


def noise(vae: VAE, batch: Batch, n_samples: int, generator: torch.Generator) -> Float[Tensor, "S B Z"]:
    """ε ~ N(0, I), S times for every image; `generator` is on the batch's device."""
    return standard_normal((n_samples, len(batch.input), vae.latent_dim), batch.input, generator)


def draw(vae: VAE, batch: Batch, epsilon: Float[Tensor, "S B Z"]) -> Draws:
    """z = μ(x) + σ(x) ⊙ ε, S times for every image (paper, eq. 4), and log p(x|z) of each."""
    posterior = vae.encoder(batch.input)
    assert isinstance(posterior, DiagonalNormal)
    z = posterior.mean + posterior.stddev * epsilon
    likelihood = vae.decoder(z)
    return Draws(posterior, z, likelihood, likelihood.log_prob(batch.target))


def log_weights(vae: VAE, batch: Batch, n_samples: int, generator: torch.Generator) -> Float[Tensor, "S B"]:
    """Log importance weights log p(x, z) - log q(z|x) with z ~ q(z|x).

    Their mean over S is SGVB estimator A (paper, eq. 6); their logsumexp less log S is the bound of Burda et al.
    (2015, eq. 8).

    Args:
        vae: p(x|z) p(z) and q(z|x).
        batch: What the encoder sees, and what is scored.
        n_samples: S.
        generator: Draws ε, on the batch's device.
    """
    return draw(vae, batch, noise(vae, batch, n_samples, generator)).log_weights(vae.prior)


def elbo(vae: VAE, batch: Batch, n_samples: int, generator: torch.Generator) -> Elbo:
    """The evidence lower bound by SGVB estimator B; arguments as for `log_weights`."""
    return draw(vae, batch, noise(vae, batch, n_samples, generator)).elbo


def log_evidence(vae: VAE, batch: Batch, n_samples: int, generator: torch.Generator) -> Float[Tensor, " B"]:
    """log p(x) ≥ E[log (1/S) Σ_s w_s]: tighter the more samples; arguments as for `log_weights`."""
    return log_mean_exp(log_weights(vae, batch, n_samples, generator))


def log_mean_exp(log_w: Float[Tensor, "S B"]) -> Float[Tensor, " B"]:
    """log (1/S) Σ_s w_s."""
    return log_w.logsumexp(0) - math.log(len(log_w))


Objective = Callable[[VAE, Batch, Tensor, float | Tensor], tuple[Tensor, Elbo]]
"""What training maximises, given ε (S, B, Z) and the KL weight: the bound (B,) with its gradient, and, to report, the
elbo of the same draws at weight 1."""


def estimator_a(
    vae: VAE, batch: Batch, epsilon: Float[Tensor, "S B Z"], kl_weight: float | Tensor
) -> tuple[Float[Tensor, " B"], Elbo]:
    """SGVB estimator A (paper, eq. 6): the mean log importance weight."""
    draws = draw(vae, batch, epsilon)
    return draws.log_weights(vae.prior, kl_weight).mean(0), draws.elbo


def estimator_b(
    vae: VAE, batch: Batch, epsilon: Float[Tensor, "S B Z"], kl_weight: float | Tensor
) -> tuple[Float[Tensor, " B"], Elbo]:
    """SGVB estimator B (paper, eq. 7): the KL term in closed form."""
    bound = draw(vae, batch, epsilon).elbo
    return bound.log_likelihood - kl_weight * bound.kl, bound


def iwae(
    vae: VAE, batch: Batch, epsilon: Float[Tensor, "S B Z"], kl_weight: float | Tensor
) -> tuple[Float[Tensor, " B"], Elbo]:
    """The importance-weighted bound (Burda et al. 2015, eq. 8)."""
    draws = draw(vae, batch, epsilon)
    return log_mean_exp(draws.log_weights(vae.prior, kl_weight)), draws.elbo


def kl_weight(config: ObjectiveConfig, step: int, steps_per_epoch: int) -> float:
    """The weight of the KL term at a step: kl_weight, after rising from 0 over the epochs of kl_warmup."""
    warmup = config.kl_warmup * steps_per_epoch
    return config.kl_weight * (min(1.0, step / warmup) if warmup else 1.0)


def objective(config: ObjectiveConfig) -> Objective:
    """The objective that a config names."""
    return {("elbo", "A"): estimator_a, ("elbo", "B"): estimator_b}.get((config.name, config.estimator), iwae)
