"""Evaluating a run on held-out images: bounds, evidence, diagnostics, and metrics that all decoders share."""

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import Distribution

from vaecli.config.jobs import EvaluationSpec
from vaecli.config.likelihoods import Support
from vaecli.data.dataset import Split
from vaecli.evaluation.binarised import (
    binarised_model,
    grey_level,
    has_binarised_model,
    is_binarised_model,
    is_dequantized,
)
from vaecli.evaluation.evidence import Group, by_k, describe, estimate_evidence, mean
from vaecli.evaluation.held_out import HeldOut, in_order, in_parts, open_held_out, prepare_directory, write_results
from vaecli.evaluation.result import Evaluation
from vaecli.model.bound import ACTIVE
from vaecli.model.distributions import Density
from vaecli.model.estimators import expected_terms
from vaecli.model.joint import score_log_likelihood
from vaecli.model.vae import kl_per_dimension
from vaecli.runs.run import Run
from vaecli.stages import StageCallback

DRAWS = 100
"""Draws from q(z|x) by which the ELBO of each image is estimated."""
AT_ONCE = 100
"""Images whose ELBO is estimated at a time."""


def evaluate(
    run: Run,
    *,
    proposal: Literal["fitted", "encoder"] = "fitted",
    k: int = 500,
    split: Split = "test",
    limit: int | None = None,
    seed: int = 0,
    binarised: bool = True,
    device: str = "auto",
    data_dir: Path | None = None,
    callback: StageCallback | None = None,
) -> Evaluation:
    """Evaluate a run's checkpoint on a split and write the metrics into the run's `evaluations/`.

    Args:
        run: A trained run.
        proposal: Where importance samples come from: "fitted" to each image, or the "encoder", as papers report it.
        k: Importance samples per image.
        split: train, validation or test.
        limit: Only so many images, evenly spaced over the split; None for all.
        seed: Of evaluation's own random numbers.
        binarised: Whether to evaluate the likelihood of binarised images too.
        device: auto, cpu, cuda, cuda:1 or mps.
        data_dir: As for `train`.
        callback: Is called with a stage, how much of it is done, and of how much.

    Raises:
        UsageError: The split has no images, or the device is not there.
        DataError: The images cannot be read.
        VaecliError: The checkpoint cannot be used, or the metrics cannot be written.
    """
    spec = EvaluationSpec(proposal=proposal, k=k, split=split, limit=limit, seed=seed, binarised=binarised)
    return evaluate_spec(run, spec, device=device, data_dir=data_dir, callback=callback)


def evaluate_spec(
    run: Run,
    spec: EvaluationSpec,
    *,
    device: str = "auto",
    data_dir: Path | None = None,
    callback: StageCallback | None = None,
) -> Evaluation:
    """Evaluate a run as an `EvaluationSpec` describes it; otherwise as `evaluate`."""
    held_out = open_held_out(run, spec, device, data_dir, callback)
    path = held_out.run.evaluation_path(held_out.run.checkpoint.progress.step, spec)
    prepare_directory(path)
    metrics, per_image = _terms_of_the_bound(held_out)
    for more, more_per_image in (_evidence(held_out), _binarised(held_out)):
        metrics, per_image = metrics | more, per_image | more_per_image
    if spec.binarised and is_binarised_model(held_out.config):
        metrics, per_image = _own_is_binarised(metrics, per_image)
    evaluation = Evaluation(**held_out.metadata(), proposal=spec.proposal, k=spec.k, **metrics)
    write_results(path, asdict(evaluation), per_image)
    return evaluation


@torch.no_grad()
def _terms_of_the_bound(held_out: HeldOut) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Compute the ELBO by draws from the encoder, and what the posterior mean says."""
    vae, config, batch, stream = held_out.vae, held_out.config, held_out.batch, held_out.generator("importance")
    of_vectors = config.support is Support.REAL
    parts, order = [], []
    for rows, of_part, part in in_parts(vae, batch, AT_ONCE):
        terms = expected_terms(of_part, part, DRAWS, stream, held_out.rows)
        posterior = of_part.encoder(part.input)
        likelihood = of_part.decoder(posterior.mean)
        grey = grey_level(likelihood.mean, dequantized=is_dequantized(config))
        pixels = held_out.grey_pixels[rows.to(vae.device)]
        found = {
            "log_likelihood": terms.log_likelihood,
            "kl": terms.kl,
            "mean": posterior.mean,
            "mean_squared_error": (grey - (pixels if of_vectors else pixels / 255)).square().mean(1),
        }
        kl, at_floor = kl_per_dimension(posterior, vae.prior), vae.decoder.at_floor(likelihood)
        if kl is not None:
            found["kl_per_dimension"] = kl
        if is_dequantized(config):
            found["mass_outside"] = likelihood.level_mass(part.target).outside.expand_as(part.target).mean(1)
        if at_floor is not None:
            found["pixels_at_floor"] = at_floor.expand_as(part.target).float().mean(1)
        parts.append({name: value.double().cpu() for name, value in found.items()})
        order.append(rows)
        held_out.callback("the bound", sum(map(len, order)), len(batch.target))
    whole = {name: in_order([part[name] for part in parts], order) for name in parts[0]}
    per_dimension = whole.get("kl_per_dimension")
    metrics: dict[str, Any] = {
        **mean("elbo", whole["log_likelihood"] - whole["kl"]),
        **mean("log_likelihood", whole["log_likelihood"]),
        **mean("kl", whole["kl"]),
        "active_units": int((whole["mean"].var(0, correction=0) > ACTIVE).sum()),
        "kl_per_dimension": None if per_dimension is None else per_dimension.mean(0).tolist(),
        **{name: whole[name].mean().item() if name in whole else None for name in _AVERAGED},
    }
    return metrics, {
        "elbo": whole["log_likelihood"] - whole["kl"],
        "mean_squared_error": whole["mean_squared_error"],
    }


_AVERAGED = ("mean_squared_error", "mass_outside", "pixels_at_floor")


def _evidence(held_out: HeldOut) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Estimate log p(x), and for models of grey levels the bits that a pixel costs."""
    config, k = held_out.config, held_out.spec.k
    groups = [Group(score_log_likelihood), *([Group(_level_score, _level_scores)] if is_dequantized(config) else [])]
    own, *rest = estimate_evidence(held_out, held_out.vae, held_out.batch, "the evidence", groups)
    metrics = describe("log_evidence", own, 0, k) | {"log_evidence_by_k": by_k(own.log_evidence[:, 0], k)}
    per_image = {"log_evidence": own.log_evidence[-1, 0], "effective_sample_size": own.effective_sample_size[0]}
    metrics |= dict.fromkeys(name for name in Evaluation.__annotations__ if name.startswith("bits_per_dim"))
    to_bits = -1 / (held_out.batch.target.shape[1] * math.log(2))
    if is_dequantized(config) or config.support is Support.LEVELS:
        levels = (rest or [own])[0]
        metrics |= describe("bits_per_dim", levels, 0, k, to_bits)
        per_image["bits_per_dim"] = levels.log_evidence[-1, 0] * to_bits
    if rest and not rest[0].log_evidence[-1, 0].equal(rest[0].log_evidence[-1, 1]):  # some mass lies outside
        metrics["bits_per_dim_clamped"] = rest[0].log_evidence[-1, 1].mean().item() * to_bits
    return metrics, per_image


def _level_score(likelihood: Distribution, y: Tensor) -> Float[Tensor, "T S B"]:
    """Return the mass of the levels that y falls in."""
    assert isinstance(likelihood, Density)
    return likelihood.log_level_mass(y).sum(-1)[None]


def _level_scores(likelihood: Distribution, y: Tensor) -> Float[Tensor, "T S B"]:
    """Return the mass of the levels that y falls in, and their mass with the tails clamped."""
    assert isinstance(likelihood, Density)
    mass = likelihood.level_mass(y)
    return torch.stack((mass.exact.sum(-1), mass.censored.sum(-1)))


def _binarised(held_out: HeldOut) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Estimate -log p(b) by the binarised model; nothing where it is not asked for, or is the model's own evidence.

    With the encoder as the proposal it is not estimated: that of a model of grey levels finds almost none of p(z|b).
    """
    spec, config = held_out.spec, held_out.config
    names = [name for name in Evaluation.__annotations__ if name.startswith("binarised_nll")]
    nothing: dict[str, Any] = dict.fromkeys(names)
    if not spec.binarised or spec.proposal == "encoder" or not has_binarised_model(config):
        return nothing, {}
    model = binarised_model(config, held_out.vae)
    (found,) = estimate_evidence(
        held_out, model, held_out.binary_batch, "the evidence of binary images", [Group(score_log_likelihood)]
    )
    metrics = describe("binarised_nll", found, 0, spec.k, -1.0)
    metrics["binarised_nll_by_k"] = by_k(-found.log_evidence[:, 0], spec.k)
    return metrics, {"binarised_nll": -found.log_evidence[-1, 0]}


def _own_is_binarised(
    metrics: dict[str, Any], per_image: dict[str, Tensor]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Add the evidence of a model of binary images as its binarised likelihood."""
    of_evidence = {name: value for name, value in metrics.items() if name.startswith("log_evidence")}
    renamed = {name.replace("log_evidence", "binarised_nll"): value for name, value in of_evidence.items()}
    renamed["binarised_nll"] = -renamed["binarised_nll"]
    renamed["binarised_nll_by_k"] = {count: -value for count, value in renamed["binarised_nll_by_k"].items()}
    return metrics | renamed, per_image | {"binarised_nll": -per_image["log_evidence"]}
