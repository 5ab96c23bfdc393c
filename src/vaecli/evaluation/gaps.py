"""Where a run's bound is lost, image by image: the approximation and the amortisation gap."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vaecli.config.jobs import GapsSpec
from vaecli.data.preprocess import Batch
from vaecli.errors import UsageError
from vaecli.evaluation.evidence import Group, estimate_evidence, mean
from vaecli.evaluation.held_out import HeldOut, in_order, in_parts, open_held_out, prepare_directory, write_results
from vaecli.evaluation.result import Gaps
from vaecli.model.bound import best_diagonal, elbo_of, expected_kl, mutual_information
from vaecli.model.distributions import DiagonalNormal, standard_normal
from vaecli.model.joint import score_log_likelihood
from vaecli.runs.run import Run
from vaecli.stages import StageCallback

AT_ONCE = 50
"""Images that a Gaussian is fitted to at a time."""
DRAWS = 200
"""By which both bounds of an image are estimated, the same for both."""


def evaluate_gaps(
    run: Run,
    spec: GapsSpec,
    *,
    device: str = "auto",
    data_dir: Path | None = None,
    callback: StageCallback | None = None,
) -> tuple[Gaps, Path]:
    """Split what a run's bound loses into what a diagonal Gaussian loses and what the encoder loses beside it.

    Args:
        run: A trained run with a Gaussian encoder.
        spec: Of which images.
        device: auto, cpu, cuda, cuda:1 or mps.
        data_dir: As for `train`.
        callback: As for `evaluate`.

    Returns:
        The gaps, and the JSON file that holds them; beside it an .npz of the same name has those of every image.

    Raises:
        UsageError: The encoder is not a diagonal Gaussian; otherwise as for `evaluate`.
        VaecliError: As for `evaluate`.
    """
    held_out = open_held_out(run, spec.of_images, device, data_dir, callback)
    path = held_out.run.evaluation_path(held_out.run.checkpoint.progress.step, spec)
    prepare_directory(path)
    best, elbo = _bounds(held_out)
    (weighted,) = estimate_evidence(
        held_out, held_out.vae, held_out.batch, "the evidence", [Group(score_log_likelihood)]
    )
    log_evidence = weighted.log_evidence[-1, 0]
    posterior = _posterior(held_out, held_out.batch)
    kl = expected_kl(posterior, held_out.vae.prior, DRAWS, held_out.generator("samples")).item()
    information = mutual_information(posterior, held_out.generator("samples")).item()
    per_image = {
        "log_evidence": log_evidence,
        "best_elbo": best,
        "elbo": elbo,
        "approximation_gap": log_evidence - best,
        "amortisation_gap": best - elbo,
    }
    metrics: dict[str, Any] = {}
    for name, values in per_image.items():
        metrics |= mean(name, values)
    found = Gaps(
        **held_out.metadata(), **metrics, kl=kl, mutual_information=information, kl_of_aggregate=kl - information
    )
    write_results(path, asdict(found), per_image)
    return found, path


@torch.no_grad()
def _posterior(held_out: HeldOut, batch: Batch) -> DiagonalNormal:
    posterior = held_out.vae.encoder(batch.input)
    if not isinstance(posterior, DiagonalNormal):
        raise UsageError(f"{held_out.run.name}: its encoder is not a diagonal Gaussian, which gaps are measured by")
    return posterior


def _bounds(held_out: HeldOut) -> tuple[Tensor, Tensor]:
    """Return the ELBO of each image with its best diagonal Gaussian and with the encoder's, by the same noise."""
    batch, fitting, noise = held_out.batch, held_out.generator("pilots"), held_out.generator("importance")
    order, best, elbo = list[Tensor](), list[Tensor](), list[Tensor]()
    for rows, vae, part in in_parts(held_out.vae, batch, AT_ONCE):
        fitted = best_diagonal(vae, part, fitting)
        with torch.no_grad():
            posterior = _posterior(held_out, part)
            epsilon = standard_normal((DRAWS, *posterior.mean.shape), posterior.mean, noise)
            for q, found in ((fitted, best), (posterior, elbo)):
                size = max(1, held_out.rows // len(part.target))
                parts = [len(e) * elbo_of(vae, part, q, e).double().cpu() for e in epsilon.split(size)]
                found.append(torch.stack(parts).sum(0) / DRAWS)
        order.append(rows)
        held_out.callback("the best Gaussian of each image", sum(map(len, order)), len(batch.target))
    return in_order(best, order), in_order(elbo, order)
