"""Lower bounds on the evidence, from one primitive: the importance weight.

Axes: S samples, B images, D pixels, Z latent dimensions. Bounds are in nats per image and to be maximised;
the loss of training is the negative mean over the minibatch.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.distributions import Distribution

from vaecli.config.sections import ObjectiveConfig
from vaecli.data.preprocess import Batch
from vaecli.model.distributions import Posterior, Transported, standard_normal
from vaecli.model.priors import Prior
from vaecli.model.vae import VAE, kl_per_dimension


class Elbo(NamedTuple):
    """Hold the two terms of the evidence lower bound, E_q[log p(x|z)] - KL(q(z|x) ‖ p(z))."""

    log_likelihood: Float[Tensor, " B"]
    kl: Float[Tensor, " B"]

    @property
    def value(self) -> Float[Tensor, " B"]:
        """Return the bound itself, always at KL weight 1."""
        return self.log_likelihood - self.kl


class Estimate(NamedTuple):
    """Hold what an objective makes of a minibatch: what is differentiated, and what is reported."""

    surrogate: Float[Tensor, " B"]
    """Its gradient is the estimator's; it is maximised."""
    elbo: Elbo
    """The elbo of the same draws, at KL weight 1."""


@dataclass
class Draws:
    """Hold S reparametrised draws from the posterior of each image, and how well each explains its own image."""

    prior: Prior
    posterior: Posterior
    z: Float[Tensor, "S B Z"]
    log_q: Callable[[], Float[Tensor, "S B"]]
    likelihood: Distribution
    log_likelihood: Float[Tensor, "S B"]
    _log_density_ratio: Float[Tensor, "S B"] | None = field(default=None, init=False)
    """Kept when it is first computed; not by `cached_property`, which `torch.compile` cannot follow."""

    @property
    def elbo(self) -> Elbo:
        """Return SGVB estimator B (paper, eq. 7): the KL term in closed form, the likelihood averaged over S."""
        return Elbo(self.log_likelihood.mean(0), self.kl)

    @property
    def kl(self) -> Float[Tensor, " B"]:
        """Return KL(q(z|x) ‖ p(z)) in closed form where there is one, else its mean over the draws."""
        per_dimension = kl_per_dimension(self.posterior, self.prior)
        return self.log_density_ratio.mean(0) if per_dimension is None else per_dimension.sum(-1)

    @property
    def log_density_ratio(self) -> Float[Tensor, "S B"]:
        """Return log q(z|x) - log p(z), whose expectation is the KL term."""
        if self._log_density_ratio is None:
            log_p = self.prior.log_prob(self.z)
            self._log_density_ratio = self.log_q() - log_p
        return self._log_density_ratio

    def holding_density_fixed(self) -> "Draws":
        """Return the same draws with a log q(z|x) whose gradient reaches the posterior's parameters through z alone."""
        return replace(self, log_q=partial(_around, self.z, self.posterior.log_prob))

    def log_weights(self, kl_weight: float | Tensor = 1.0) -> Float[Tensor, "S B"]:
        """Return log w = log p(x|z) + β (log p(z) - log q(z|x)), with β = 1 unless it is being warmed up."""
        return self.log_likelihood - kl_weight * self.log_density_ratio


def _around(z: Float[Tensor, "S B Z"], log_density: Callable[[Tensor], Tensor]) -> Float[Tensor, "S B"]:
    """Return a log density at z as its expansion around z, whose value and slope are constants.

    Its gradient is the one that comes through z, whatever else the density depends on and however.
    """
    at = z.detach()

    def total(at: Tensor) -> tuple[Tensor, Tensor]:
        values = log_density(at)
        return values.sum(), values

    with torch.no_grad():
        slope, values = torch.func.grad(total, has_aux=True)(at)
    found: Tensor = values + (slope * (z - at)).sum(-1)
    return found


def draw_noise(vae: VAE, batch: Batch, n_samples: int, generator: torch.Generator) -> Float[Tensor, "S B Z"]:
    """Draw ε ~ N(0, I), S times for every image; `generator` is on the batch's device."""
    return standard_normal((n_samples, len(batch.input), vae.latent_dim), batch.input, generator)


def draw(vae: VAE, batch: Batch, epsilon: Float[Tensor, "S B Z"]) -> Draws:
    """Draw z = T(ε; x) S times for every image (paper, eq. 4), with log p(x|z) of each."""
    posterior = vae.encoder(batch.input)
    assert isinstance(posterior, Posterior)
    return explain(vae, batch, posterior, posterior.transport(epsilon))


def explain(vae: VAE, batch: Batch, posterior: Posterior, drawn: Transported) -> Draws:
    """Compute how well each z drawn from the posterior of an image explains it."""
    likelihood = vae.given(batch.input).decoder(drawn.z)
    return Draws(vae.prior, posterior, *drawn, likelihood, likelihood.log_prob(batch.target))


def log_weights(vae: VAE, batch: Batch, n_samples: int, generator: torch.Generator) -> Float[Tensor, "S B"]:
    """Draw log importance weights log p(x, z) - log q(z|x) with z ~ q(z|x).

    Their mean over S is SGVB estimator A (paper, eq. 6); their logsumexp less log S is the bound of Burda et al.
    (2015, eq. 8).

    Args:
        vae: p(x|z) p(z) and q(z|x).
        batch: What the encoder sees, and what is scored.
        n_samples: S.
        generator: Draws ε, on the batch's device.
    """
    return draw(vae, batch, draw_noise(vae, batch, n_samples, generator)).log_weights()


def elbo(vae: VAE, batch: Batch, n_samples: int, generator: torch.Generator) -> Elbo:
    """Estimate the evidence lower bound by SGVB estimator B; arguments as for `log_weights`."""
    return draw(vae, batch, draw_noise(vae, batch, n_samples, generator)).elbo


def log_evidence(vae: VAE, batch: Batch, n_samples: int, generator: torch.Generator) -> Float[Tensor, " B"]:
    """Estimate log p(x) ≥ E[log (1/S) Σ_s w_s]: tighter the more samples; arguments as for `log_weights`."""
    return log_mean_exp(log_weights(vae, batch, n_samples, generator))


def log_mean_exp(log_w: Float[Tensor, "S B"]) -> Float[Tensor, " B"]:
    """Return log (1/S) Σ_s w_s."""
    return log_w.logsumexp(0) - math.log(len(log_w))


Objective = Callable[[VAE, Batch, Tensor, float | Tensor], Estimate]
"""What training maximises, given ε (S, B, Z) and the KL weight."""


def estimator_a(vae: VAE, batch: Batch, epsilon: Float[Tensor, "S B Z"], kl_weight: float | Tensor) -> Estimate:
    """Estimate the elbo by SGVB estimator A (paper, eq. 6): the mean log importance weight."""
    draws = draw(vae, batch, epsilon)
    return Estimate(draws.log_weights(kl_weight).mean(0), draws.elbo)


def estimator_b(vae: VAE, batch: Batch, epsilon: Float[Tensor, "S B Z"], kl_weight: float | Tensor) -> Estimate:
    """Estimate the elbo by SGVB estimator B (paper, eq. 7): the KL term in closed form."""
    bound = draw(vae, batch, epsilon).elbo
    return Estimate(bound.log_likelihood - kl_weight * bound.kl, bound)


def iwae(vae: VAE, batch: Batch, epsilon: Float[Tensor, "S B Z"], kl_weight: float | Tensor) -> Estimate:
    """Estimate the importance-weighted bound (Burda et al. 2015, eq. 8)."""
    draws = draw(vae, batch, epsilon)
    return Estimate(log_mean_exp(draws.log_weights(kl_weight)), draws.elbo)


def stl(vae: VAE, batch: Batch, epsilon: Float[Tensor, "S B Z"], kl_weight: float | Tensor) -> Estimate:
    """Estimate the elbo as estimator A does, without the part of its gradient whose expectation is zero.

    Sticking the landing (Roeder et al. 2017, arXiv 1703.09194): the parameters of q are held fixed in log q(z|x), since
    E_q[∇_φ log q(z|x)] = 0 at fixed z. Where q is the exact posterior, the encoder's gradient has no variance.
    """
    draws = draw(vae, batch, epsilon).holding_density_fixed()
    return Estimate(draws.log_weights(kl_weight).mean(0), draws.elbo)


def dreg(vae: VAE, batch: Batch, epsilon: Float[Tensor, "S B Z"], kl_weight: float | Tensor) -> Estimate:
    """Estimate the importance-weighted bound with the doubly reparametrised gradient (Tucker et al. 2018, eq. 8).

    With normalised weights w̃ the model's gradient is Σ_s w̃_s ∇_θ log w_s, as IWAE's. The encoder's is
    Σ_s w̃_s² (∂ log w_s/∂z_s) ∇_φ z_s, the parameters of q held fixed in log q(z|x): the expectation is the same, and it
    does not drown in noise as S grows (arXiv 1810.04152). At KL weight β it has w̃ (1 - β + β w̃) for w̃².
    """
    posterior = vae.encoder(batch.input)
    assert isinstance(posterior, Posterior)
    z, log_q = posterior.transport(epsilon)
    with torch.no_grad():
        weights = explain(vae, batch, posterior, Transported(z, log_q)).log_weights(kl_weight).softmax(0)
    share = 1 - kl_weight + kl_weight * weights
    scaled = torch.lerp(z.detach(), z, share[..., None])  # the same values, each with its share of the gradient
    draws = explain(vae, batch, posterior, Transported(scaled, log_q)).holding_density_fixed()
    log_w = draws.log_weights(kl_weight)
    weighted = (weights * log_w).sum(0)
    return Estimate(log_mean_exp(log_w).detach() + weighted - weighted.detach(), draws.elbo)


ESTIMATORS: dict[str, Objective] = {"A": estimator_a, "B": estimator_b}
OBJECTIVES: dict[str, Callable[[ObjectiveConfig], Objective]] = {
    "elbo": lambda config: ESTIMATORS[config.estimator],
    "iwae": lambda config: iwae,  # noqa: ARG005
    "stl": lambda config: stl,  # noqa: ARG005
    "dreg": lambda config: dreg,  # noqa: ARG005
}
"""The objectives by their names in the config. A new one is one function above and one entry here."""


def build_objective(config: ObjectiveConfig) -> Objective:
    """Return the objective that a config names."""
    return OBJECTIVES[config.name](config)


def loss(
    objective: Objective, vae: VAE, batch: Batch, epsilon: Float[Tensor, "S B Z"], kl_weight: float | Tensor = 1.0
) -> tuple[Float[Tensor, ""], Float[Tensor, " 3"]]:
    """Return the loss of a minibatch, and what is reported of it: the loss, the log-likelihood and the KL term.

    The paper scales the minibatch's bound by N/M to estimate that of all data (eq. 8). Here the loss is the negative
    mean over the minibatch, so that the step size does not depend on N.
    """
    estimate = objective(vae, batch, epsilon, kl_weight)
    value = -estimate.surrogate.mean()
    return value, reported(value, estimate.elbo)


def reported(value: Float[Tensor, ""], elbo: Elbo) -> Float[Tensor, " 3"]:
    """Return what is reported of a minibatch: the loss, the log-likelihood and the KL term."""
    return torch.stack((value, elbo.log_likelihood.mean(), elbo.kl.mean())).detach()


def kl_weight(config: ObjectiveConfig, step: int, steps_per_epoch: int) -> float:
    """Return the weight of the KL term at a step: kl_weight, after rising from 0 over the epochs of kl_warmup."""
    warmup = config.kl_warmup * steps_per_epoch
    return config.kl_weight * (min(1.0, step / warmup) if warmup else 1.0)


def n_samples(config: ObjectiveConfig, step: int, steps_per_epoch: int) -> int:
    """Return the number of samples per image at a step: L, after the epochs of L_warmup, which have one."""
    return config.L if step >= config.L_warmup * steps_per_epoch else 1


Drawn = tuple[Tensor, ...]
"""All that is random in a step: x as the encoder sees it and as it is scored, ε, and what else an algorithm draws."""


@dataclass(frozen=True)
class Streams:
    """Hold where random numbers come from, on the images' device."""

    epsilon: torch.Generator
    """For what is latent."""
    pixels: torch.Generator
    """For images."""


Inner = Callable[[VAE, Float[Tensor, "M D"], Float[Tensor, "M Z"]], tuple[Tensor, ...]]
"""A function of a model, of x as it is scored, and of z."""


class Algorithm(ABC):
    """Say how a step's gradient comes about; subclasses are final.

    What is random is drawn before, by `draw`. `loss` is a function of the model and of that, so that its gradient can
    be compiled, or taken for several models at once.
    """

    updates: ClassVar[int] = 1
    """How many times the parameters are moved in a step, with what was drawn once."""

    def __init__(self) -> None:
        self.memory: dict[str, Tensor] = {}
        """What is kept from step to step beside the parameters, and in checkpoints."""
        self.inner: Inner | None = None
        """What `draw` evaluates again and again, if anything; where steps are compiled, a compiled form of it."""

    def draw(
        self,
        vae: VAE,  # noqa: ARG002
        batch: Batch,  # noqa: ARG002
        epsilon: Float[Tensor, "S M Z"],  # noqa: ARG002
        streams: Streams,  # noqa: ARG002
        which: Callable[[], Int64[Tensor, " M"]],  # noqa: ARG002
    ) -> Drawn:
        """Draw what the loss needs beside x and ε; here nothing.

        `which` returns the images' numbers among those for training.
        """
        return ()

    @abstractmethod
    def loss(self, vae: VAE, drawn: Drawn, kl_weight: float | Tensor) -> tuple[Float[Tensor, ""], Float[Tensor, " 3"]]:
        """Return what is minimised, and what is reported: the loss and both terms of the ELBO, means over images."""
