"""The evidence by other means than importance sampling: annealing, which brackets it, and the paper's own estimator.

They take longer, and say whether what importance sampling says can be trusted.
"""

import itertools
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vaecli.config.jobs import AnnealingSpec
from vaecli.data.preprocess import Batch
from vaecli.errors import UsageError, VaecliError
from vaecli.evaluation.evidence import mean, monte_carlo_error
from vaecli.evaluation.held_out import HeldOut, in_order, in_parts, open_held_out, prepare_directory, write_results
from vaecli.evaluation.result import AnnealedEvaluation
from vaecli.files import write_atomically
from vaecli.model.annealing import Path as AnnealingPath
from vaecli.model.annealing import from_above, from_below, start_at_fitted, start_at_prior, target_of
from vaecli.model.estimators import importance_weighted
from vaecli.model.joint import LogJoint
from vaecli.model.posterior_samples import log_evidence_from_posterior
from vaecli.model.proposals import fit_proposal
from vaecli.model.vae import VAE
from vaecli.randomness import generator
from vaecli.runs.run import Run
from vaecli.stages import StageCallback

AT_ONCE = 20
"""Images that are annealed at a time; what is done is kept after each."""
MOST_DIMENSIONS = 10
"""Latent dimensions up to which the paper's estimator is of use: it says "less than 5"."""


def evaluate_annealed(
    run: Run,
    spec: AnnealingSpec,
    *,
    device: str = "auto",
    data_dir: Path | None = None,
    callback: StageCallback | None = None,
) -> AnnealedEvaluation:
    """Estimate a run's evidence by annealing, or by the paper's estimator, beside that of fitted proposals.

    What is done is kept in the run's `evaluations/`, so that an evaluation that was stopped goes on.

    Args:
        run: A trained run.
        spec: How.
        device: auto, cpu, cuda, cuda:1 or mps.
        data_dir: As for `train`.
        callback: As for `evaluate`.

    Raises:
        UsageError: The method does not go with the model; otherwise as for `evaluate`.
        VaecliError: As for `evaluate`.
    """
    held_out = open_held_out(run, spec.of_images, device, data_dir, callback)
    if spec.method == "posterior" and held_out.vae.latent_dim > MOST_DIMENSIONS:
        raise UsageError(
            f"{run.name}: has {held_out.vae.latent_dim} latent dimensions; the estimator from posterior samples is of "
            f"use up to {MOST_DIMENSIONS}: use ais"
        )
    path = held_out.run.evaluation_path(held_out.run.checkpoint.progress.step, spec)
    prepare_directory(path)
    work = _Work(held_out, spec)
    arrays = _in_parts(work, held_out.batch, path.with_suffix(".partial.npz"), "annealing")
    simulated = dict[str, Tensor]()
    if spec.bracket:
        z, drawn = _simulate(held_out)
        kept = path.with_suffix(".simulated.partial.npz")
        simulated = _in_parts(work, drawn, kept, "annealing images that the model drew", z)
    found = _summarise(work, arrays, simulated)
    write_results(path, asdict(found), arrays | {f"simulated_{name}": value for name, value in simulated.items()})
    for kept in path.parent.glob(f"{path.stem}*.partial.npz"):
        kept.unlink(missing_ok=True)
    return found


@dataclass(frozen=True)
class _Work:
    """Hold what is annealed, and how."""

    held_out: HeldOut
    spec: AnnealingSpec

    def do(
        self, vae: VAE, batch: Batch, seed: int, z: Tensor | None, report: Callable[[int], None]
    ) -> dict[str, Tensor]:
        """Estimate the evidence of a few images; from above too where an exact draw z is given.

        The random numbers of a part are its own, so that what is done again after a stop has the same.
        """
        held_out = self.held_out
        noise = generator(seed, "annealing", vae.device)
        log_joint = LogJoint(vae, batch.target, held_out.rows)
        fitted = fit_proposal(vae, batch, log_joint, noise)
        weighted = importance_weighted(log_joint, fitted, held_out.spec.k, noise)
        found = {"fitted": weighted.log_evidence[-1, 0]}
        target = target_of(log_joint, fitted)
        begin = start_at_prior(target) if self.spec.start == "prior" else start_at_fitted(target, fitted)
        path = AnnealingPath(begin, target, self.spec.temperatures)
        if self.spec.method == "posterior":
            found["lower"] = log_evidence_from_posterior(path, fitted, self.spec.chains, noise, report)
            return found
        sizes = path.tune(noise, report)
        below = from_below(*path.forward(self.spec.chains, sizes, noise, report))
        found |= {"lower": below.log_evidence, "effective": below.effective_chains, "acceptance": below.acceptance}
        if z is not None:
            found["upper"] = from_above(*path.backward(z, self.spec.chains, sizes, noise, report)).log_evidence
        return found


def _in_parts(work: _Work, batch: Batch, kept: Path, stage: str, z: Tensor | None = None) -> dict[str, Tensor]:
    """Do all images, a few at a time, and keep what is done in a file, to begin from it another time."""
    held_out = work.held_out
    digest = held_out.run.checkpoint.digest or ""
    done = _read_kept(kept, digest)
    n_done = len(done.get("lower", ()))
    passes = 1 if work.spec.method == "posterior" else 2 if z is None else 3
    parts = list(in_parts(held_out.vae, batch, AT_ONCE))
    begins = [0, *itertools.accumulate(len(part.rows) for part in parts)]
    n_parts_done = begins.index(n_done)
    total, steps = (passes * work.spec.temperatures * count for count in (len(parts), n_parts_done))

    def report(more: int) -> None:
        nonlocal steps
        steps += more
        held_out.callback(stage, min(steps, total - 1), total)

    for begin, (rows, vae, part) in zip(begins[n_parts_done:], parts[n_parts_done:], strict=False):
        exact = None if z is None else z[rows.to(z.device)]
        found = work.do(vae, part, held_out.spec.seed + begin, exact, report)
        done = {
            name: torch.cat([done[name], value.cpu().double()]) if done else value.cpu().double()
            for name, value in found.items()
        }
        arrays: dict[str, Any] = {name: value.numpy() for name, value in done.items()} | {"digest": np.array(digest)}
        try:
            write_atomically(kept, partial(np.savez, **arrays))
        except OSError as error:
            raise VaecliError(f"{kept}: cannot be written: {error.strerror}") from error
    held_out.callback(stage, total, total)
    return {name: in_order([value], [part.rows for part in parts]) for name, value in done.items()}


def _simulate(held_out: HeldOut) -> tuple[Tensor, Batch]:
    """Draw as many images from the model as there are, of the same classes where it is told them."""
    vae, images = held_out.vae, held_out.images
    return vae.simulate(len(images), held_out.generator("samples"), images.labels if vae.n_classes else None)


def _read_kept(kept: Path, digest: str) -> dict[str, Tensor]:
    """Return what was done before for this very checkpoint; nothing where that cannot be read."""
    try:
        with np.load(kept, allow_pickle=False) as arrays:
            if str(arrays["digest"]) != digest:
                return {}
            return {name: torch.from_numpy(arrays[name]) for name in arrays.files if name != "digest"}
    except Exception:  # noqa: BLE001 (there is none, or it is damaged: numpy and zipfile share no error)
        return {}


def _summarise(work: _Work, arrays: dict[str, Tensor], simulated: dict[str, Tensor]) -> AnnealedEvaluation:
    difference = arrays["lower"] - arrays["fitted"]
    below, above = (simulated.get(name) for name in ("lower", "upper"))
    metrics: dict[str, Any] = {
        **mean("log_evidence", arrays["lower"]),
        "log_evidence_mc_se": monte_carlo_error(arrays["effective"], work.spec.chains)
        if "effective" in arrays
        else None,
        "acceptance": arrays["acceptance"].mean().item() if "acceptance" in arrays else None,
        "fitted_log_evidence": arrays["fitted"].mean().item(),
        "difference": difference.mean().item(),
        "largest_difference": difference.abs().max().item(),
        "simulated_lower": None if below is None else below.mean().item(),
        "simulated_upper": None if above is None else above.mean().item(),
        "simulated_fitted": simulated["fitted"].mean().item() if simulated else None,
        "simulated_gap": None if below is None or above is None else (above - below).mean().item(),
    }
    return AnnealedEvaluation(
        **work.held_out.metadata(),
        method=work.spec.method,
        start=work.spec.start,
        temperatures=work.spec.temperatures,
        chains=work.spec.chains,
        **metrics,
    )
