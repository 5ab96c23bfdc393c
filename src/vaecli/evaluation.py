"""Evaluating a run on held-out images: its bounds, its likelihood, and the two bridges between supports."""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import Distribution

from vaecli import devices
from vaecli.binarised import grey_level, is_dequantized, is_model_of_b, model_of_b
from vaecli.config import Config
from vaecli.datasets import Dataset, Images, Split
from vaecli.errors import UsageError, VaecliError
from vaecli.factorised import Density
from vaecli.files import write_json
from vaecli.importance import Weighted, importance_weighted, ladder, log_likelihood
from vaecli.likelihoods import Support
from vaecli.observations import Batch, binarize_dynamically, observation
from vaecli.randomness import generator
from vaecli.runs import Run
from vaecli.vae import VAE
from vaecli.validation import ACTIVE

ROWS = {"cpu": 1000}
"""Samples decoded at a time: on a CPU few enough that a decoder's outputs stay in the cache."""
ROWS_ELSEWHERE = 100_000
LOOSE = 5.0
"""A median effective sample size below this marks a bound as loose."""

Progress = Callable[[str, int, int], None]
"""Is told what is being done, how much of it is done, and of how much."""


def ignore(stage: str, done: int, total: int) -> None:
    """Tell nobody."""


@dataclass(frozen=True)
class Evaluation:
    """The figures of one checkpoint on one split. Means over images, in nats per image unless said otherwise."""

    run: str
    checkpoint: str
    split: str
    n_images: int
    k: int
    seed: int
    decoder: str
    support: str
    observed: str
    """How pixels became x."""
    is_likelihood: bool
    caveat: str | None
    elbo: float
    elbo_se: float
    """Standard errors are over images."""
    log_likelihood: float
    log_likelihood_se: float
    kl: float
    kl_se: float
    log_evidence: float
    log_evidence_se: float
    log_evidence_mc_se: float
    """The Monte-Carlo error of log_evidence, with the images fixed."""
    log_evidence_by_k: dict[str, float]
    effective_sample_size: float
    """Median over images."""
    active_units: int
    kl_per_dimension: list[float]
    mean_squared_error: float
    """Of the decoder's mean at the posterior mean, in units of the 0..1 pixel."""
    pixels_at_floor: float | None
    bits_per_dim: float | None
    """-log P(k)/(D ln 2) on the 256 levels, a density integrated over each level only."""
    bits_per_dim_se: float | None
    mass_outside: float | None
    """The mass of a pixel outside [0, 1), on average: with those of the 256 levels it adds up to 1."""
    bits_per_dim_clamped: float | None
    """With the tails given to the edge levels: another, censored model. It ranks nothing."""
    binarised_nll: float | None
    """-log p(b) for one dynamic binarisation of the split, the same for every run."""
    binarised_nll_se: float | None
    binarised_nll_by_k: dict[str, float] | None
    binarised_effective_sample_size: float | None
    binarised_is_loose: bool | None
    """Whether the median effective sample size is below 5: a loose bound."""


def evaluate(
    run: Run,
    *,
    k: int = 5000,
    split: Split = "test",
    limit: int | None = None,
    seed: int = 0,
    binarised: bool = True,
    device: str = "auto",
    data_dir: Path | None = None,
    report: Progress = ignore,
) -> Evaluation:
    """Evaluate a run's checkpoint on a split and write the figures into the run's `evaluations/`.

    Args:
        run: A trained run.
        k: Importance samples per image.
        split: train, validation or test.
        limit: Only the first so many images; None for all.
        seed: Of evaluation's own noise.
        binarised: Whether to cross the bridge to binarised images as well, for which most decoders need an encoder
            fitted anew; it is kept in the run.
        device: auto, cpu, cuda, cuda:1 or mps.
        data_dir: As for `train`.
        report: Is told of the progress.

    Raises:
        UsageError: The split has no images, or the device is not there.
        DataError: The images are not to be had.
        VaecliError: The checkpoint cannot be used, or the figures cannot be written.
    """
    config, place = run.config, devices.resolve_device(device)
    devices.flush_subnormals()
    vae = run.vae.to(place).requires_grad_(requires_grad=False)
    dataset = Dataset(config.data, config.model.likelihood.support, data_dir)
    images = dataset.split(split)
    images = _on(images if limit is None else images.first(limit), place)
    if len(images) == 0:
        raise UsageError(f"{run.name}: its {split} split has no images")
    figures = _figures(vae, config, images, k, seed, partial(report, "importance sampling"))
    if binarised:
        figures |= _binarised(run, vae, dataset, images, k, seed, figures, report)
    evaluation = Evaluation(
        run=str(run.path),
        checkpoint=f"{run.checkpoint_path.stem} at step {run.checkpoint.progress.step}",
        split=split,
        n_images=len(images),
        k=k,
        seed=seed,
        decoder=config.model.decoder,
        support=config.model.likelihood.support.value,
        observed=_observed(config),
        is_likelihood=config.is_likelihood,
        caveat=config.caveat,
        **figures,
    )
    _write(run, evaluation, limit, binarised=binarised)
    return evaluation


def _observed(config: Config) -> str:
    support = config.model.likelihood.support
    if support is Support.BINARY:
        return {"dynamic": "binarised dynamically", "threshold": "binarised at ½", "static": "binarised once"}.get(
            config.data.binarize, "grey"
        )
    if support is Support.UNIT_INTERVAL:
        return "dequantised" if config.data.dequantize else "grey"
    return "levels"


def _figures(
    vae: VAE, config: Config, images: Images, k: int, seed: int, report: Callable[[int, int], None]
) -> dict[str, Any]:
    """Everything but the binarised bridge."""
    observe = observation(config.model.likelihood.support, config.data)
    batch = observe(images.pixels, generator(seed, "evaluation", vae.device))
    has_levels = is_dequantized(config)
    weighted = _weigh(vae, batch, k, seed, report, _level_scores if has_levels else log_likelihood)
    kl, mean, squared_error, outside, floored = _at_posterior_mean(vae, config, batch, images, has_levels=has_levels)
    per_image = weighted.log_likelihood[0] - kl.sum(1)
    log_evidence = weighted.log_evidence[-1, 0]
    bits = 1 / (images.pixels.shape[1] * math.log(2))
    by_levels = weighted.log_evidence[-1, 1] if has_levels else log_evidence
    has_bits = has_levels or config.model.likelihood.support is Support.LEVELS
    return {
        **_mean("elbo", per_image),
        **_mean("log_likelihood", weighted.log_likelihood[0]),
        **_mean("kl", kl.sum(1)),
        **_mean("log_evidence", log_evidence),
        "log_evidence_mc_se": _monte_carlo_error(weighted.effective_sample_size[0], k),
        "log_evidence_by_k": _by_k(weighted.log_evidence[:, 0], k),
        "effective_sample_size": weighted.effective_sample_size[0].median().item(),
        "active_units": int((mean.var(0, correction=0) > ACTIVE).sum()),
        "kl_per_dimension": kl.mean(0).tolist(),
        "mean_squared_error": squared_error,
        "pixels_at_floor": floored,
        "bits_per_dim": -by_levels.mean().item() * bits if has_bits else None,
        "bits_per_dim_se": _standard_error(by_levels) * bits if has_bits else None,
        "mass_outside": outside,
        "bits_per_dim_clamped": -weighted.log_evidence[-1, 2].mean().item() * bits if outside else None,
        **dict.fromkeys(
            (
                "binarised_nll",
                "binarised_nll_se",
                "binarised_nll_by_k",
                "binarised_effective_sample_size",
                "binarised_is_loose",
            )
        ),
    }


def _binarised(
    run: Run, vae: VAE, dataset: Dataset, images: Images, k: int, seed: int, figures: dict[str, Any], report: Progress
) -> dict[str, Any]:
    """-log p(b), from the figures themselves where the model is one of b already."""
    if is_model_of_b(run.config):
        nll, se, size = -figures["log_evidence"], figures["log_evidence_se"], figures["effective_sample_size"]
        by_k = {rung: -value for rung, value in figures["log_evidence_by_k"].items()}
    else:
        model = model_of_b(run, vae, dataset, partial(report, "fitting an encoder to binary images"))
        b = binarize_dynamically(images.pixels, generator(seed, "evaluation", vae.device))
        weighted = _weigh(model, b, k, seed, partial(report, "importance sampling of binary images"))
        log_p = weighted.log_evidence[-1, 0]
        nll, se, size = -log_p.mean().item(), _standard_error(log_p), weighted.effective_sample_size[0].median().item()
        by_k = {rung: -value for rung, value in _by_k(weighted.log_evidence[:, 0], k).items()}
    return {
        "binarised_nll": nll,
        "binarised_nll_se": se,
        "binarised_nll_by_k": by_k,
        "binarised_effective_sample_size": size,
        "binarised_is_loose": size < LOOSE,
    }


def _weigh(
    vae: VAE,
    batch: Batch,
    k: int,
    seed: int,
    report: Callable[[int, int], None],
    scores: Callable[[Distribution, Tensor], Tensor] = log_likelihood,
) -> Weighted:
    """Importance-weight all images of a batch, a few at a time."""
    rows = ROWS.get(vae.device.type, ROWS_ELSEWHERE)
    noise, parts, done = generator(seed, "importance", vae.device), [], 0
    for chunk in zip(*(part.split(max(1, rows // k)) for part in batch), strict=True):
        parts.append(importance_weighted(vae, Batch(*chunk), k, noise, rows, scores))
        done += len(chunk[0])
        report(done, len(batch.input))
    return Weighted(*(torch.cat(field, dim=-1).cpu() for field in zip(*parts, strict=True)))


def _level_scores(likelihood: Distribution, y: Tensor) -> Float[Tensor, "T S B"]:
    """The density of y, the mass of its levels, and their mass with the tails clamped."""
    assert isinstance(likelihood, Density)
    mass = likelihood.level_mass(y)
    return torch.stack((likelihood.log_prob(y), mass.exact.sum(-1), mass.censored.sum(-1)))


@torch.no_grad()
def _at_posterior_mean(
    vae: VAE, config: Config, batch: Batch, images: Images, *, has_levels: bool
) -> tuple[Tensor, Tensor, float, float | None, float | None]:
    """KL (N, Z), posterior means (N, Z), squared error, mass outside [0, 1), and scales on their floor."""
    kl, means, errors, outside, floored = [], [], [], [], []
    for x, pixels in zip(batch.input.split(1000), images.pixels.split(1000), strict=True):
        posterior = vae.encoder(x)
        likelihood = vae.decoder(posterior.mean)
        grey = grey_level(likelihood.mean, dequantized=is_dequantized(config))
        kl.append(posterior.kl_from_standard().double().cpu())
        means.append(posterior.mean.double().cpu())
        errors.append((grey - pixels / 255).square().mean(1).double().cpu())
        if has_levels:
            outside.append(likelihood.level_mass(x).outside.expand_as(x).mean(1).double().cpu())
        at_floor = vae.decoder.at_floor(likelihood)
        if at_floor is not None:
            floored.append(at_floor.expand_as(x).double().mean(1).cpu())
    average = [torch.cat(part).mean().item() if part else None for part in (errors, outside, floored)]
    assert average[0] is not None
    return torch.cat(kl), torch.cat(means), average[0], average[1], average[2]


def _on(images: Images, device: torch.device) -> Images:
    return replace(images, pixels=images.pixels.to(device))


def _mean(name: str, per_image: Tensor) -> dict[str, float]:
    """A figure and its standard error over images."""
    return {name: per_image.mean().item(), f"{name}_se": _standard_error(per_image)}


def _standard_error(per_image: Tensor) -> float:
    return (per_image.std() / math.sqrt(len(per_image))).item()


def _monte_carlo_error(effective_sample_size: Tensor, k: int) -> float:
    """Of the mean of log (1/k) Σ w: by the delta method Var = (1/k) Var(w)/E[w]² = 1/ESS - 1/k for each image."""
    return ((1 / effective_sample_size - 1 / k).clamp(min=0).sum().sqrt() / len(effective_sample_size)).item()


def _by_k(log_evidence: Float[Tensor, "K N"], k: int) -> dict[str, float]:
    return {str(rung): row.mean().item() for rung, row in zip(ladder(k), log_evidence, strict=True)}


def _write(run: Run, evaluation: Evaluation, limit: int | None, *, binarised: bool) -> None:
    """One file for each checkpoint, split, k, limit and seed."""
    step = run.checkpoint.progress.step
    name = f"{run.checkpoint_path.stem}-step{step}-{evaluation.split}-k{evaluation.k}"
    name += "" if limit is None else f"-first{limit}"
    name += f"-seed{evaluation.seed}" + ("" if binarised else "-no-binarised")
    path = run.path / "evaluations" / f"{name}.json"
    try:
        path.parent.mkdir(exist_ok=True)
        write_json(path, asdict(evaluation))
    except OSError as error:
        raise VaecliError(f"{path}: cannot be written: {error.strerror}") from error
