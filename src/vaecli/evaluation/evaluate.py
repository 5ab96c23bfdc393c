"""Evaluating a run on held-out images: its bounds, its likelihood, and the two bridges between supports."""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.distributions import Distribution

from vaecli import devices
from vaecli.config.likelihoods import Support
from vaecli.config.schema import Config
from vaecli.data.dataset import Batch, Dataset, Images, Split, binarize_dynamically, build_preprocess
from vaecli.errors import UsageError, VaecliError
from vaecli.evaluation.binarised import binarised_model, grey_level, is_binarised_model, is_dequantized
from vaecli.files import write_atomically, write_json
from vaecli.model.distributions import Density
from vaecli.model.estimators import ACTIVE, Scores, Weighted, importance_weighted, sample_counts, score_log_likelihood
from vaecli.model.vae import VAE, kl_per_dimension
from vaecli.randomness import generator
from vaecli.runs.run import Run

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
    run = _evaluable(run)
    config, place = run.config, devices.resolve_device(device)
    path = _prepared(evaluation_path(run, k=k, split=split, limit=limit, seed=seed, binarised=binarised))
    devices.flush_subnormals()
    devices.allow_tf32(place, allowed=False)
    dataset = Dataset(config.data, config.model.likelihood.support, data_dir)
    images = dataset.split(split)
    if len(images) == 0:
        raise UsageError(f"{run.name}: its {split} split has no images")
    images = _on(images if limit is None else images.first(limit), place)
    grey = dataset.in_grey()
    grey_images = _on(grey.split(split).first(len(images)), place)
    vae = run.checkpoint.build_vae().to(place).requires_grad_(requires_grad=False)
    task = _Task(run, vae, grey, images, grey_images.pixels, k, seed, report)
    figures, per_image = _own_figures(task)
    bridge, per_image_of_b = _figures_of_b(task, figures, per_image) if binarised else (_NO_BRIDGE, {})
    evaluation = Evaluation(
        run=run.name,
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
        **bridge,
    )
    try:
        arrays: dict[str, Any] = {name: value.numpy() for name, value in (per_image | per_image_of_b).items()}
        write_atomically(path.with_suffix(".npz"), lambda file: np.savez_compressed(file, **arrays))
        write_json(path, asdict(evaluation))
    except OSError as error:
        raise VaecliError(f"{path}: cannot be written: {error.strerror}") from error
    return evaluation


def _prepared(path: Path) -> Path:
    """The path, in a directory that takes files: better known before hours of work than after."""
    try:
        path.parent.mkdir(exist_ok=True)
        with TemporaryFile(dir=path.parent):
            return path
    except OSError as error:
        raise VaecliError(f"{path.parent}: cannot be written: {error.strerror}") from error


def evaluation_path(
    run: Run, *, k: int, split: Split = "test", limit: int | None = None, seed: int = 0, binarised: bool = True
) -> Path:
    """Where `evaluate` writes: one file for each checkpoint, split, k, limit and seed.

    Beside the JSON, an .npz of the same name holds the figures of every image, for paired comparisons.
    """
    step = run.checkpoint.progress.step
    return run.evaluation_path(step, k=k, split=split, limit=limit, seed=seed, binarised=binarised)


@dataclass(frozen=True)
class _Task:
    """What is evaluated, and how."""

    run: Run
    vae: VAE
    grey: Dataset
    """The data set before any binarisation."""
    images: Images
    """As the run observes them: binarised already where that is done once."""
    grey_pixels: UInt8[Tensor, "N D"]
    k: int
    seed: int
    report: Progress

    @property
    def config(self) -> Config:
        return self.run.config

    def pixel_noise(self) -> torch.Generator:
        """The same for every run, so that all see the same binary images."""
        return generator(self.seed, "evaluation", self.vae.device)


def _evaluable(run: Run) -> Run:
    """The run at the checkpoint to look at: of one that is still training, its newest."""
    state = run.status.get("state")
    if run.file is None and state in {"failed", "diverged"}:
        raise VaecliError(
            f"{run.path}: {state}: {run.status.get('reason')}; name a checkpoint file to evaluate it anyway"
        )
    return Run(run.path, run.last) if run.file is None and run.is_training else run


def _observed(config: Config) -> str:
    support = config.model.likelihood.support
    if support is Support.LEVELS:
        return "as they are"
    if support is Support.UNIT_INTERVAL:
        return "dequantised" if config.data.dequantize else "grey"
    ways = {"dynamic": "binarised anew", "threshold": "binarised at ½", "static": "binarised once", "none": "grey"}
    return ways[config.data.binarize]


def _own_figures(task: _Task) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Everything but the bridge to binarised images, and what of it there is for every image."""
    config, k, support = task.config, task.k, task.config.model.likelihood.support
    batch = build_preprocess(support, config.data)(task.images.pixels, task.pixel_noise())
    scores = _level_scores if is_dequantized(config) else score_log_likelihood
    weighted = _weigh(task.vae, batch, task, "importance sampling", scores)
    seen = _at_posterior_mean(task, batch)
    kl, log_p, size = seen["kl"].sum(1), weighted.log_likelihood[0], weighted.effective_sample_size[0]
    log_evidence = weighted.log_evidence[-1, 0]
    figures: dict[str, Any] = {
        **_mean("elbo", log_p - kl),
        **_mean("log_likelihood", log_p),
        **_mean("kl", kl),
        **_mean("log_evidence", log_evidence),
        "log_evidence_mc_se": _monte_carlo_error(size, k),
        "log_evidence_by_k": _by_k(weighted.log_evidence[:, 0], k),
        "effective_sample_size": size.median().item(),
        "active_units": int((seen["mean"].var(0, correction=0) > ACTIVE).sum()),
        "kl_per_dimension": seen["kl"].mean(0).tolist(),
        **{name: seen[name].mean().item() if name in seen else None for name in _AVERAGED},
        **dict.fromkeys(("bits_per_dim", "bits_per_dim_se", "bits_per_dim_clamped")),
    }
    per_image = {"log_evidence": log_evidence, "mean_squared_error": seen["mean_squared_error"]}
    to_bits = -1 / (task.images.pixels.shape[1] * math.log(2))
    if is_dequantized(config) or support is Support.LEVELS:
        per_image["bits_per_dim"] = weighted.log_evidence[-1, 1 if is_dequantized(config) else 0] * to_bits
        figures |= _mean("bits_per_dim", per_image["bits_per_dim"])
    if figures["mass_outside"]:
        figures["bits_per_dim_clamped"] = weighted.log_evidence[-1, 2].mean().item() * to_bits
    return figures, per_image


_AVERAGED = ("mean_squared_error", "mass_outside", "pixels_at_floor")
_NO_BRIDGE: dict[str, Any] = dict.fromkeys(
    (
        "binarised_nll",
        "binarised_nll_se",
        "binarised_nll_by_k",
        "binarised_effective_sample_size",
        "binarised_is_loose",
    )
)


def _figures_of_b(
    task: _Task, own: dict[str, Any], own_per_image: dict[str, Tensor]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """-log p(b): the model's own evidence where it is a model of b, else that of its decoder with another encoder."""
    if is_binarised_model(task.config):
        log_p, size, by_k = own_per_image["log_evidence"], own["effective_sample_size"], own["log_evidence_by_k"]
    else:
        fitting = partial(task.report, "fitting an encoder to binary images")
        model = binarised_model(task.run, task.vae, task.grey, fitting)
        b = binarize_dynamically(task.grey_pixels, task.pixel_noise())
        weighted = _weigh(model, b, task, "importance sampling of binary images")
        log_p, by_k = weighted.log_evidence[-1, 0], _by_k(weighted.log_evidence[:, 0], task.k)
        size = weighted.effective_sample_size[0].median().item()
    figures = {
        **_mean("binarised_nll", -log_p),
        "binarised_nll_by_k": {rung: -value for rung, value in by_k.items()},
        "binarised_effective_sample_size": size,
        "binarised_is_loose": size < LOOSE,
    }
    return figures, {"binarised_nll": -log_p}


def _weigh(vae: VAE, batch: Batch, task: _Task, stage: str, scores: Scores = score_log_likelihood) -> Weighted:
    """Importance-weight all images of a batch, a few at a time.

    The results are put into arrays made beforehand: small ones kept from every portion would lie between the large
    temporary ones and keep the memory of those from being used again.
    """
    rows, n = ROWS.get(vae.device.type, ROWS_ELSEWHERE), len(batch.input)
    noise, portion = generator(task.seed, "importance", vae.device), max(1, rows // task.k)
    found: Weighted | None = None
    for start in range(0, n, portion):
        end = min(start + portion, n)
        chunk = Batch(batch.input[start:end], batch.target[start:end])
        part = importance_weighted(vae, chunk, task.k, noise, rows, scores)
        if found is None:
            found = Weighted(*(torch.empty((*field.shape[:-1], n), dtype=field.dtype) for field in part))
        for whole, field in zip(found, part, strict=True):
            whole[..., start:end] = field
        task.report(stage, end, n)
    assert found is not None
    return found


def _level_scores(likelihood: Distribution, y: Tensor) -> Float[Tensor, "T S B"]:
    """The density of y, the mass of its levels, and their mass with the tails clamped."""
    assert isinstance(likelihood, Density)
    mass = likelihood.level_mass(y)
    return torch.stack((likelihood.log_prob(y), mass.exact.sum(-1), mass.censored.sum(-1)))


@torch.no_grad()
def _at_posterior_mean(task: _Task, batch: Batch) -> dict[str, Tensor]:
    """What needs no samples: KL and posterior mean (N, Z); squared error, mass outside, share at the floor (N)."""
    vae, config, parts = task.vae, task.config, []
    for x, pixels in zip(batch.input.split(1000), task.grey_pixels.split(1000), strict=True):
        posterior = vae.encoder(x)
        likelihood = vae.decoder(posterior.mean)
        grey = grey_level(likelihood.mean, dequantized=is_dequantized(config))
        kl = kl_per_dimension(posterior, vae.prior)
        assert kl is not None
        part = {"kl": kl, "mean": posterior.mean}
        part["mean_squared_error"] = (grey - pixels / 255).square().mean(1)
        if is_dequantized(config):
            part["mass_outside"] = likelihood.level_mass(x).outside.expand_as(x).mean(1)
        at_floor = vae.decoder.at_floor(likelihood)
        if at_floor is not None:
            part["pixels_at_floor"] = at_floor.expand_as(x).float().mean(1)
        parts.append({name: value.double().cpu() for name, value in part.items()})
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


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
    return {str(rung): row.mean().item() for rung, row in zip(sample_counts(k), log_evidence, strict=True)}
