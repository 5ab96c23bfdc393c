"""What a run would take, found out by building its model and making some of its steps; nothing is recorded."""

import io
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from vaecli import devices
from vaecli.config.schema import Config
from vaecli.data.dataset import Dataset
from vaecli.model.bound import evaluate_bound
from vaecli.model.vae import evaluating
from vaecli.stages import StageCallback, silent
from vaecli.training.accelerate import choose_step
from vaecli.training.opening import first_state
from vaecli.training.session import Controls
from vaecli.training.state import TrainingState

SECONDS = 2.0
"""For so long steps are timed, or to the end of the first epoch."""
WARM_UP = 3
"""Chunks of steps that are made before: libraries set themselves up in the first ones."""
VALIDATED = 2000
"""Validation images whose bound is timed, at most."""


@dataclass(frozen=True)
class Forecast:
    """Hold what a run is expected to take."""

    device: str
    encoder_parameters: int
    decoder_parameters: int
    prior_parameters: int
    """Beside those that a prior shares with the encoder."""
    images: int
    steps_per_epoch: int
    steps: int
    """All, if no patience ends the run before."""
    timed_steps: int
    seconds_per_step: float
    """The mean of those that were timed."""
    seconds: float
    """Of all steps and of the validation bound after every epoch, at the pace of those that were timed; without what
    comes before the first step, checkpoints, pictures and compilation."""
    compiled: bool
    """Whether the run's steps would be compiled; those that were timed are not."""
    checkpoint_bytes: int
    """Of one of the two that a run keeps."""


def forecast(config: Config, *, data_dir: str | Path | None = None, on_stage: StageCallback = silent) -> Forecast:
    """Build the model of a config, make steps on its images for some two seconds, and forget them.

    Args:
        config: Of the run.
        data_dir: As for `train`.
        on_stage: As for `train`.

    Raises:
        UsageError: The device is not there, or the model is too large.
        DataError: The images cannot be read.
    """
    state, dataset = first_state(config, data_dir, Controls(on_stage=on_stage), None, None)
    compiled, state.compiled = state.compiled, False
    n_bytes = _checkpoint_bytes(state)
    n_timed, seconds_per_step = _time_all(state)
    steps = config.training.epochs * state.steps_per_epoch
    validation = _time_validation(state, dataset) * config.training.epochs
    encoder, decoder = (sum(p.numel() for p in part.parameters()) for part in (state.vae.encoder, state.vae.decoder))
    return Forecast(
        device=devices.describe(state.vae.device),
        encoder_parameters=encoder,
        decoder_parameters=decoder,
        prior_parameters=sum(p.numel() for p in state.vae.parameters()) - encoder - decoder,
        images=len(state.images),
        steps_per_epoch=state.steps_per_epoch,
        steps=steps,
        timed_steps=n_timed,
        seconds_per_step=seconds_per_step,
        seconds=steps * seconds_per_step + validation,
        compiled=compiled,
        checkpoint_bytes=n_bytes,
    )


def _checkpoint_bytes(state: TrainingState) -> int:
    buffer = io.BytesIO()
    torch.save(vars(state.capture({})) | {"config": None, "progress": None}, buffer)
    return len(buffer.getvalue())


def _time_all(state: TrainingState) -> tuple[int, float]:
    """Return how many steps were timed, and the mean time of one over all epochs: the first may have fewer samples."""
    n_timed, seconds = _time_steps(state)
    epochs, warmup = state.config.training.epochs, state.config.objective.L_warmup
    if not 0 < warmup < epochs or state.config.objective.L == 1:
        return n_timed, seconds
    state.end_epoch()
    state.progress.step = warmup * state.steps_per_epoch
    n_more, seconds_later = _time_steps(state)
    return n_timed + n_more, (warmup * seconds + (epochs - warmup) * seconds_later) / epochs


def _time_steps(state: TrainingState) -> tuple[int, float]:
    """Return how many steps were timed, and the mean time of one."""
    step, n_warm, n_timed, seconds = choose_step([state]), 0, 0, 0.0
    state.begin_epoch()
    for chunk in state.chunks():
        began_at = time.perf_counter()
        terms = step(chunk)
        terms.sum().item()  # waits for the device
        passed = time.perf_counter() - began_at
        state.count(chunk, terms)
        is_last = state.progress.position == state.steps_per_epoch
        if n_warm < WARM_UP and not (is_last and n_timed == 0):
            n_warm += 1
            continue
        n_timed, seconds = n_timed + len(chunk), seconds + passed
        if seconds > SECONDS:
            break
    return n_timed, seconds / n_timed


def _time_validation(state: TrainingState, dataset: Dataset) -> float:
    """Return the time that the bound of all validation images takes."""
    images = dataset.validation
    if not len(images):
        return 0.0
    shown = images.first(VALIDATED).to(state.vae.device)
    with evaluating(state.vae):
        began_at = time.perf_counter()
        evaluate_bound(state.vae, shown.pixels, state.preprocess, state.config.seed, shown.labels)
    return (time.perf_counter() - began_at) * len(images) / len(shown)
