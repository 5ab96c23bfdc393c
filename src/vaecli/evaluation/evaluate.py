"""Evaluating a run on held-out images: bounds, evidence, diagnostics, and metrics that all decoders share."""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
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
from vaecli.config.schema import Config, EvaluationSpec
from vaecli.data.dataset import Batch, Dataset, Images, Split, binarize_dynamically, build_preprocess
from vaecli.errors import UsageError, VaecliError
from vaecli.evaluation.binarised import binarised_model, grey_level, is_binarised_model, is_dequantized
from vaecli.evaluation.result import LOOSE, Evaluation
from vaecli.files import write_atomically, write_json
from vaecli.model.distributions import Density
from vaecli.model.estimators import ACTIVE, Scores, Weighted, importance_weighted, sample_counts, score_log_likelihood
from vaecli.model.vae import VAE, kl_per_dimension
from vaecli.randomness import generator
from vaecli.runs.run import Run

ROWS = {"cpu": 1000}
"""Samples decoded at a time: on a CPU few enough that a decoder's outputs stay in the cache."""
ROWS_ELSEWHERE = 100_000

EvaluationCallback = Callable[[str, int, int], None]
"""Is called with the stage of the work, how much of it is done, and of how much."""


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
    callback: EvaluationCallback | None = None,
) -> Evaluation:
    """Evaluate a run's checkpoint on a split and write the metrics into the run's `evaluations/`.

    Args:
        run: A trained run.
        k: Importance samples per image.
        split: train, validation or test.
        limit: Only the first so many images; None for all.
        seed: Of evaluation's own random numbers.
        binarised: Whether to evaluate the likelihood of binarised images too, for which most decoders need an encoder
            that is fitted to them; it is kept in the run.
        device: auto, cpu, cuda, cuda:1 or mps.
        data_dir: As for `train`.
        callback: Is called with a stage, how much of it is done, and of how much.

    Raises:
        UsageError: The split has no images, or the device is not there.
        DataError: The images cannot be read.
        VaecliError: The checkpoint cannot be used, or the metrics cannot be written.
    """
    spec = EvaluationSpec(k=k, split=split, limit=limit, seed=seed, binarised=binarised)
    return evaluate_spec(run, spec, device=device, data_dir=data_dir, callback=callback)


def evaluate_spec(
    run: Run,
    spec: EvaluationSpec,
    *,
    device: str = "auto",
    data_dir: Path | None = None,
    callback: EvaluationCallback | None = None,
) -> Evaluation:
    """Evaluate a run as an `EvaluationSpec` describes it; otherwise as `evaluate`."""
    run = _evaluable(run)
    config, place = run.config, devices.resolve_device(device)
    path = _prepared(run.evaluation_path(run.checkpoint.progress.step, spec))
    devices.flush_subnormals()
    devices.allow_tf32(place, allowed=False)
    dataset = Dataset(config.data, config.model.likelihood.support, data_dir)
    images = dataset.split(spec.split)
    if len(images) == 0:
        raise UsageError(f"{run.name}: its {spec.split} split has no images")
    images = (images if spec.limit is None else images.first(spec.limit)).to(place)
    grey = dataset.in_grey()
    grey_pixels = grey.split(spec.split).first(len(images)).to(place).pixels
    vae = run.checkpoint.build_vae().to(place).requires_grad_(requires_grad=False)
    work = _Work(run, vae, grey, images, grey_pixels, spec, callback or (lambda *_: None))
    metrics, per_image = _own_metrics(work)
    binarised, per_image_of_b = _binarised_metrics(work, metrics, per_image) if spec.binarised else (_NOT_BINARISED, {})
    evaluation = Evaluation(
        run=run.name,
        checkpoint=f"{run.checkpoint_path.stem} at step {run.checkpoint.progress.step}",
        split=spec.split,
        n_images=len(images),
        k=spec.k,
        seed=spec.seed,
        decoder=config.model.decoder,
        support=config.model.likelihood.support.value,
        observed=config.observed,
        is_likelihood=config.is_likelihood,
        caveat=config.caveat,
        **metrics,
        **binarised,
    )
    try:
        arrays: dict[str, Any] = {name: value.numpy() for name, value in (per_image | per_image_of_b).items()}
        write_atomically(path.with_suffix(".npz"), lambda file: np.savez_compressed(file, **arrays))
        write_json(path, asdict(evaluation))
    except OSError as error:
        raise VaecliError(f"{path}: cannot be written: {error.strerror}") from error
    return evaluation


def _prepared(path: Path) -> Path:
    """Return the path once its directory takes files: better known before hours of work than after."""
    try:
        path.parent.mkdir(exist_ok=True)
        with TemporaryFile(dir=path.parent):
            return path
    except OSError as error:
        raise VaecliError(f"{path.parent}: cannot be written: {error.strerror}") from error


@dataclass(frozen=True)
class _Work:
    """Hold what is evaluated, and how."""

    run: Run
    vae: VAE
    grey: Dataset
    """The data set before any binarisation."""
    images: Images
    """As the run sees them: binarised already where that is done once."""
    grey_pixels: UInt8[Tensor, "N D"]
    spec: EvaluationSpec
    callback: EvaluationCallback

    @property
    def config(self) -> Config:
        """Return the run's config."""
        return self.run.config

    def pixel_generator(self) -> torch.Generator:
        """Return the same generator for every run, so that all see the same binary images."""
        return generator(self.spec.seed, "evaluation", self.vae.device)


def _evaluable(run: Run) -> Run:
    """Return the run at the checkpoint to evaluate: of one that is still training, its newest."""
    state = run.status.get("state")
    if run.file is None and state in {"failed", "diverged"}:
        raise VaecliError(
            f"{run.path}: {state}: {run.status.get('reason')}; name a checkpoint file to evaluate it anyway"
        )
    return Run(run.path, run.last) if run.file is None and run.is_training else run


def _own_metrics(work: _Work) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Compute all metrics but the binarised likelihood, and those of them that every image has."""
    config, k, support = work.config, work.spec.k, work.config.model.likelihood.support
    batch = build_preprocess(support, config.data)(work.images.pixels, work.pixel_generator())
    scores = _level_scores if is_dequantized(config) else score_log_likelihood
    weighted = _weigh(work.vae, batch, work, "importance sampling", scores)
    at_mean = _at_posterior_mean(work, batch)
    per_dimension = at_mean.get("kl")
    kl = weighted.kl if per_dimension is None else per_dimension.sum(1)
    log_p, size = weighted.log_likelihood[0], weighted.effective_sample_size[0]
    log_evidence = weighted.log_evidence[-1, 0]
    metrics: dict[str, Any] = {
        **_mean("elbo", log_p - kl),
        **_mean("log_likelihood", log_p),
        **_mean("kl", kl),
        **_mean("log_evidence", log_evidence),
        "log_evidence_mc_se": _monte_carlo_error(size, k),
        "log_evidence_by_k": _by_k(weighted.log_evidence[:, 0], k),
        "effective_sample_size": size.median().item(),
        "active_units": int((at_mean["mean"].var(0, correction=0) > ACTIVE).sum()),
        "kl_per_dimension": None if per_dimension is None else per_dimension.mean(0).tolist(),
        **{name: at_mean[name].mean().item() if name in at_mean else None for name in _AVERAGED},
        **dict.fromkeys(("bits_per_dim", "bits_per_dim_se", "bits_per_dim_clamped")),
    }
    per_image = {"log_evidence": log_evidence, "mean_squared_error": at_mean["mean_squared_error"]}
    to_bits = -1 / (work.images.pixels.shape[1] * math.log(2))
    if is_dequantized(config) or support is Support.LEVELS:
        per_image["bits_per_dim"] = weighted.log_evidence[-1, 1 if is_dequantized(config) else 0] * to_bits
        metrics |= _mean("bits_per_dim", per_image["bits_per_dim"])
    if metrics["mass_outside"]:
        metrics["bits_per_dim_clamped"] = weighted.log_evidence[-1, 2].mean().item() * to_bits
    return metrics, per_image


_AVERAGED = ("mean_squared_error", "mass_outside", "pixels_at_floor")
_NOT_BINARISED: dict[str, Any] = {name: None for name in Evaluation.__annotations__ if name.startswith("binarised_")}


def _binarised_metrics(
    work: _Work, own: dict[str, Any], own_per_image: dict[str, Tensor]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Compute -log p(b): the model's own evidence if it is a model of b, else that of its binarised model."""
    if is_binarised_model(work.config):
        log_p, size, by_k = own_per_image["log_evidence"], own["effective_sample_size"], own["log_evidence_by_k"]
    else:
        fitting = partial(work.callback, "fitting an encoder to binary images")
        model = binarised_model(work.run, work.vae, work.grey, fitting)
        b = binarize_dynamically(work.grey_pixels, work.pixel_generator())
        weighted = _weigh(model, b, work, "importance sampling of binary images")
        log_p, by_k = weighted.log_evidence[-1, 0], _by_k(weighted.log_evidence[:, 0], work.spec.k)
        size = weighted.effective_sample_size[0].median().item()
    metrics = {
        **_mean("binarised_nll", -log_p),
        "binarised_nll_by_k": {count: -value for count, value in by_k.items()},
        "binarised_effective_sample_size": size,
        "binarised_is_loose": size < LOOSE,
    }
    return metrics, {"binarised_nll": -log_p}


def _weigh(vae: VAE, batch: Batch, work: _Work, stage: str, scores: Scores = score_log_likelihood) -> Weighted:
    """Importance-weight all images of a batch, a few at a time.

    The results are put into arrays made beforehand: small ones kept from every chunk would lie between the large
    temporary ones and keep the memory of those from being used again.
    """
    rows, n, k = ROWS.get(vae.device.type, ROWS_ELSEWHERE), len(batch.input), work.spec.k
    stream, size = generator(work.spec.seed, "importance", vae.device), max(1, rows // k)
    found: Weighted | None = None
    for start in range(0, n, size):
        end = min(start + size, n)
        chunk = Batch(batch.input[start:end], batch.target[start:end])
        part = importance_weighted(vae, chunk, k, stream, rows, scores)
        if found is None:
            found = Weighted(*(torch.empty((*field.shape[:-1], n), dtype=field.dtype) for field in part))
        for whole, field in zip(found, part, strict=True):
            whole[..., start:end] = field
        work.callback(stage, end, n)
    assert found is not None
    return found


def _level_scores(likelihood: Distribution, y: Tensor) -> Float[Tensor, "T S B"]:
    """Return the density of y, the mass of its levels, and their mass with the tails clamped."""
    assert isinstance(likelihood, Density)
    mass = likelihood.level_mass(y)
    return torch.stack((likelihood.log_prob(y), mass.exact.sum(-1), mass.censored.sum(-1)))


@torch.no_grad()
def _at_posterior_mean(work: _Work, batch: Batch) -> dict[str, Tensor]:
    """Compute what needs no samples.

    Returns:
        The KL term if it has a closed form and the posterior mean (N, Z); squared error, mass outside and the share of
        scales at their floor (N).
    """
    vae, config, parts = work.vae, work.config, []
    for x, pixels in zip(batch.input.split(1000), work.grey_pixels.split(1000), strict=True):
        posterior = vae.encoder(x)
        likelihood = vae.decoder(posterior.mean)
        grey = grey_level(likelihood.mean, dequantized=is_dequantized(config))
        part = {"mean": posterior.mean, "mean_squared_error": (grey - pixels / 255).square().mean(1)}
        kl, at_floor = kl_per_dimension(posterior, vae.prior), vae.decoder.at_floor(likelihood)
        if kl is not None:
            part["kl"] = kl
        if is_dequantized(config):
            part["mass_outside"] = likelihood.level_mass(x).outside.expand_as(x).mean(1)
        if at_floor is not None:
            part["pixels_at_floor"] = at_floor.expand_as(x).float().mean(1)
        parts.append({name: value.double().cpu() for name, value in part.items()})
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _mean(name: str, per_image: Tensor) -> dict[str, float]:
    """Return a metric and its standard error over images."""
    return {name: per_image.mean().item(), f"{name}_se": _standard_error(per_image)}


def _standard_error(per_image: Tensor) -> float:
    return (per_image.std() / math.sqrt(len(per_image))).item() if len(per_image) > 1 else math.nan


def _monte_carlo_error(effective_sample_size: Tensor, k: int) -> float:
    """Return the error of the mean of log (1/k) Σ w: Var = (1/k) Var(w)/E[w]² = 1/ESS - 1/k for each image."""
    return ((1 / effective_sample_size - 1 / k).clamp(min=0).sum().sqrt() / len(effective_sample_size)).item()


def _by_k(log_evidence: Float[Tensor, "K N"], k: int) -> dict[str, float]:
    return {str(count): row.mean().item() for count, row in zip(sample_counts(k), log_evidence, strict=True)}
