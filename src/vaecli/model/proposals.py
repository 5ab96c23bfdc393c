"""Where importance samples of z come from: the encoder, or a mixture of Gaussians fitted to each image.

An encoder's q(z|x) is one network for all images, diagonal and narrow, and few of its samples carry weight. A fitted
proposal begins at modes of log p(x, z) with the curvature there (Laplace's approximation), moves with the weights of
pilot samples (adaptive multiple importance sampling: Cornuet et al. 2012, arXiv 0907.1254; mixtures: Cappé et al. 2008,
arXiv 0710.4242), and is then drawn from afresh, so that the weights stay unbiased for p(x).

Axes: S samples, B images, Z latent dimensions, J Gaussians.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, final

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import Distribution

from vaecli.data.preprocess import Batch
from vaecli.model.distributions import Posterior, standard_normal
from vaecli.model.laplace import find_modes, log_volume
from vaecli.model.vae import VAE

PILOTS = 250
"""Samples of a round, for each image."""
MIN_ROUNDS, MAX_ROUNDS = 2, 12
ENOUGH = 0.2
"""The share of a round's samples that count as effective at which a proposal is good enough."""
TEMPERED = 100.0
"""Effective samples that weights are flattened to, where they have fewer: no fit to a handful of points."""
WIDER = 0.45
"""A Gaussian is drawn from with 1 + 0.45/√Z times its scale: tails that are too light cost more than ones too heavy."""
SHARE_OF_ENCODER, SHARE_OF_ALL = 0.05, 0.05
"""The least share of samples from the encoder, so that no weight is above 20 times that under it; and of all
Gaussians together, evenly."""
MAX_STARTS = 8
CANDIDATES = 32
"""Draws from the prior of which the best is a further start."""

LogJointOfImages = Callable[[Float[Tensor, "S B Z"], Tensor], Float[Tensor, "S B"]]
"""Computes log p(x, z) in float64 of the images with these numbers."""


class Proposed(NamedTuple):
    """Hold samples of z, in the model's precision, and their log density under the proposal in float64."""

    z: Float[Tensor, "S B Z"]
    log_q: Float[Tensor, "S B"]


class Proposal(ABC):
    """Represent a distribution of z for each image of a batch; subclasses are final."""

    @abstractmethod
    def draw(self, n: int, generator: torch.Generator) -> Proposed:
        """Draw n samples for each image."""


@final
@dataclass(frozen=True)
class EncoderProposal(Proposal):
    """Represent q(z|x) itself."""

    posterior: Distribution
    like: Float[Tensor, "B Z"]
    """Of the shape, precision and device of z."""

    def draw(self, n: int, generator: torch.Generator) -> Proposed:
        """Draw by transporting standard normal noise."""
        assert isinstance(self.posterior, Posterior)
        z, log_q = self.posterior.transport(standard_normal((n, *self.like.shape), self.like, generator))
        return Proposed(z, log_q().double())


@final
@dataclass(frozen=True)
class Mixture(Proposal):
    """Represent q(z) = π_0 q(z|x) + Σ_j π_j N(z; μ_j, s² L_j L_jᵀ), one mixture for each image, s a little above 1."""

    encoder: EncoderProposal
    log_share: Float[Tensor, "J1 B"]
    """log π, of the encoder last."""
    mean: Float[Tensor, "J B Z"]
    scale_tril: Float[Tensor, "J B Z Z"]

    @property
    def _wider(self) -> float:
        return 1 + WIDER / math.sqrt(self.mean.shape[-1])

    def draw(self, n: int, generator: torch.Generator) -> Proposed:
        """Draw from each part as many as its share says, to within one sample; the order is random."""
        return self.place(*_draw_places(n, self.encoder.like, generator))

    def place(self, u: Float[Tensor, "S B"], noise: Float[Tensor, "S B Z"]) -> Proposed:
        """Return the samples that noise becomes; u in [0, 1) says by which part."""
        bounds = self.log_share.exp().cumsum(0)[:-1]
        part = (u[:, None] >= bounds).sum(1)  # (S, B), of the encoder J
        posterior = self.encoder.posterior
        assert isinstance(posterior, Posterior)
        z = posterior.transport(noise).z.double()
        for j, (mean, scale_tril) in enumerate(zip(self.mean, self.scale_tril, strict=True)):
            gaussian = mean + self._wider * torch.einsum("bij,sbj->sbi", scale_tril, noise.double())
            z = torch.where((part == j)[..., None], gaussian, z)
        z = z.to(noise.dtype)
        return Proposed(z, self.log_prob(z))

    def log_prob(self, z: Float[Tensor, "S B Z"]) -> Float[Tensor, "S B"]:
        """Return log q(z)."""
        return self.log_parts(z).logsumexp(0)

    def log_parts(self, z: Float[Tensor, "S B Z"]) -> Float[Tensor, "J1 S B"]:
        """Return log π_j + log q_j(z) of each part, of the encoder last."""
        parts = []
        whitener = torch.linalg.solve_triangular(
            self.scale_tril, torch.eye(z.shape[-1], dtype=torch.float64, device=z.device), upper=False
        )
        for mean, white, scale_tril in zip(self.mean, whitener, self.scale_tril, strict=True):
            distance = torch.einsum("bij,sbj->sbi", white, z.double() - mean) / self._wider
            volume = log_volume(scale_tril) + z.shape[-1] * math.log(self._wider)
            parts.append(-0.5 * distance.square().sum(-1) - volume)
        parts.append(self.encoder.posterior.log_prob(z).double())
        return self.log_share[:, None] + torch.stack(parts)


def encoder_proposal(vae: VAE, batch: Batch) -> EncoderProposal:
    """Return q(z|x) of each image of a batch as a proposal."""
    posterior = vae.encoder(batch.input)
    return EncoderProposal(posterior, posterior.mean)


@torch.no_grad()
def fit_proposal(vae: VAE, batch: Batch, log_joint: LogJointOfImages, generator: torch.Generator) -> Mixture:
    """Fit a proposal to each image of a batch.

    With few latent dimensions several modes are looked for: from the encoder's mean, and from the best of some draws
    from the prior, several times.

    Args:
        vae: p(x|z) p(z), twice differentiable, and the encoder to begin from.
        batch: The images.
        log_joint: Computes log p(x, z).
        generator: Draws pilot samples, on the batch's device.
    """
    encoder = encoder_proposal(vae, batch)
    starts = [encoder.like]
    for _ in range(min(MAX_STARTS, 20 // vae.latent_dim) - 1):
        candidates = vae.prior.draw(CANDIDATES, encoder.like, generator)
        images = torch.arange(len(batch.target), device=encoder.like.device)
        best = log_joint(candidates[:, None].expand(-1, len(images), -1), images).argmax(0)
        starts.append(candidates[best])
    n = len(starts)
    modes = find_modes(vae, batch.target.repeat(n, 1), torch.cat(starts))
    log_share = modes.log_evidence.unflatten(0, (n, -1)).nan_to_num(nan=-math.inf, posinf=0.0).log_softmax(0)
    log_share = torch.cat([log_share, torch.full_like(log_share[:1], -math.inf)])
    mixture = Mixture(
        encoder,
        _shares(log_share.exp().nan_to_num()),
        modes.z.unflatten(0, (n, -1)),
        modes.scale_tril.unflatten(0, (n, -1)),
    )
    return adapt(mixture, vae, batch, log_joint, generator)


@torch.no_grad()
def adapt(mixture: Mixture, vae: VAE, batch: Batch, log_joint: LogJointOfImages, generator: torch.Generator) -> Mixture:
    """Move a proposal with the weights of pilot samples, until enough of them are effective.

    In each round every sample so far is weighed against the mixture of all proposals that there were, and one step of
    expectation-maximisation fits the next proposal to them. Arguments as for `fit_proposal`.
    """
    adapted = Mixture(mixture.encoder, mixture.log_share.clone(), mixture.mean.clone(), mixture.scale_tril.clone())
    left = torch.arange(len(batch.target), device=mixture.mean.device)
    current, earlier = mixture, list[Mixture]()
    z, log_p = (
        mixture.encoder.like.new_empty((0, *mixture.encoder.like.shape)),
        mixture.log_share.new_empty((0, len(left))),
    )
    log_qs = log_p
    for number in range(MAX_ROUNDS):
        u, noise = _draw_places(PILOTS, mixture.encoder.like, generator)  # of all images, whichever are left
        new = current.place(u[:, left], noise[:, left])
        new_log_p = log_joint(new.z, left)
        size = effective_sample_size(new_log_p - new.log_q)
        old_under_new = torch.logaddexp(log_qs, current.log_prob(z)) if len(z) else log_qs
        new_under_all = torch.stack([*(before.log_prob(new.z) for before in earlier), new.log_q]).logsumexp(0)
        z, log_p = torch.cat([z, new.z]), torch.cat([log_p, new_log_p])
        log_qs = torch.cat([old_under_new, new_under_all])
        earlier.append(current)
        current = _refit(current, z, log_p - log_qs)
        for whole, part in zip(_tensors(adapted), _tensors(current), strict=True):
            whole[:, left] = part
        going = size < ENOUGH * PILOTS
        if number + 1 < MIN_ROUNDS:
            continue
        if not going.any():
            break
        left, z, log_p, log_qs = left[going], z[:, going], log_p[:, going], log_qs[:, going]
        encoder = encoder_proposal(vae, Batch(batch.input[left], batch.target[left]))
        current, *earlier = (
            Mixture(encoder, *(part[:, going] for part in _tensors(each))) for each in (current, *earlier)
        )
    return adapted


def _draw_places(
    n: int, like: Float[Tensor, "B Z"], generator: torch.Generator
) -> tuple[Float[Tensor, "n B"], Float[Tensor, "n B Z"]]:
    """Draw u, one in each of n equal parts of [0, 1) and in random order for each image, and standard normal noise."""
    places = torch.randperm(n, generator=generator, device=like.device).double()
    shift = torch.rand(len(like), generator=generator, device=like.device, dtype=torch.float64)
    return (places[:, None] + shift) / n, standard_normal((n, *like.shape), like, generator)


def _tensors(mixture: Mixture) -> tuple[Tensor, Tensor, Tensor]:
    return mixture.log_share, mixture.mean, mixture.scale_tril


def _refit(mixture: Mixture, z: Float[Tensor, "S B Z"], log_w: Float[Tensor, "S B"]) -> Mixture:
    """Fit a mixture's shares, means and covariances to weighted samples, each covariance as far as they can say."""
    weights = _tempered(log_w.nan_to_num(nan=-math.inf)).softmax(0).nan_to_num()
    parts = mixture.log_parts(z).softmax(0) * weights  # (J1, S, B)
    share, dim, wide = parts.sum(1), z.shape[-1], z.double()
    means, scales = [], []
    for j, (mean, scale_tril) in enumerate(zip(mixture.mean, mixture.scale_tril, strict=True)):
        part = parts[j] / share[j].clamp(min=1e-30)
        size = 1 / part.square().sum(0).clamp(min=1e-30)
        size = torch.where(share[j] > 1e-12, size, 0)[:, None]
        moved = torch.lerp(mean, (part[..., None] * wide).sum(0), size / (size + 1))
        off = wide - moved
        covariance = torch.einsum("sb,sbi,sbj->bij", part, off, off)
        blend = (size / (size + dim))[..., None]
        covariance = blend * covariance + (1 - blend) * scale_tril @ scale_tril.mT
        factor, failed = torch.linalg.cholesky_ex(covariance)
        sound = (failed == 0) & factor.isfinite().all((1, 2)) & moved.isfinite().all(1)
        means.append(torch.where(sound[:, None], moved, mean))
        scales.append(torch.where(sound[:, None, None], factor, scale_tril))
    return Mixture(mixture.encoder, _shares(share), torch.stack(means), torch.stack(scales))


def _shares(share: Float[Tensor, "J1 B"]) -> Float[Tensor, "J1 B"]:
    """Return the logarithm of shares that add up to 1, the encoder's and the Gaussians' not below their least."""
    n = len(share) - 1
    least = torch.full_like(share, SHARE_OF_ALL / n)
    least[-1] = SHARE_OF_ENCODER
    share = share.clamp(min=0)
    return (least + (1 - least.sum(0)) * share / share.sum(0).clamp(min=1e-30)).log().log_softmax(0)


def _tempered(log_w: Float[Tensor, "S B"]) -> Float[Tensor, "S B"]:
    """Raise weights to the largest power up to 1 at which enough of them are effective (by bisection)."""
    low, high = torch.zeros_like(log_w[0]), torch.ones_like(log_w[0])
    enough_already = effective_sample_size(log_w) >= TEMPERED
    for _ in range(12):
        middle = (low + high) / 2
        enough = effective_sample_size(log_w * middle) >= TEMPERED
        low, high = torch.where(enough, middle, low), torch.where(enough, high, middle)
    return log_w * torch.where(enough_already, 1.0, low.clamp(min=1e-4))


def effective_sample_size(log_w: Float[Tensor, "*part S B"]) -> Float[Tensor, "*part B"]:
    """Return (Σ w)² / Σ w² over samples."""
    return (2 * log_w.logsumexp(-2) - (2 * log_w).logsumexp(-2)).exp()
