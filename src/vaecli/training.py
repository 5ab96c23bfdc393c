"""Training by Auto-Encoding Variational Bayes (Kingma & Welling 2013, algorithm 1).

The paper scales the minibatch's bound by N/M to estimate that of all data (eq. 8). Here the loss is the negative mean
over the minibatch, so that the step size does not depend on N.
"""

import math
import time
from dataclasses import replace
from pathlib import Path

import torch

from vaecli import devices
from vaecli.checkpoints import Checkpoint, load_checkpoint
from vaecli.config import Config, ObjectiveConfig, OptimizerConfig
from vaecli.datasets import Dataset, Images
from vaecli.errors import DivergedError, InterruptedRunError, UsageError, VaecliError
from vaecli.objectives import Objective, objective
from vaecli.observations import Observe, observation
from vaecli.recording import Recorder, Reporter, ignore
from vaecli.runs import Run, create_run, record_environment
from vaecli.sources import fingerprint
from vaecli.state import TrainingState, new_state
from vaecli.stopping import Stop, never
from vaecli.validation import evaluate_bound

STEPS_PER_REPORT = 25
RESUMABLE = ("training.epochs", "training.patience", "device")
"""The settings that a run may be resumed with."""


def train(
    config: Config,
    *,
    runs_dir: str | Path = "runs",
    data_dir: str | Path | None = None,
    init_from: Run | None = None,
    report: Reporter = ignore,
    stop: Stop = never,
) -> Run:
    """Train a VAE from the start, in a run directory of its own.

    Args:
        config: From `load_config` or `parse_config`.
        runs_dir: Where the run directory is made.
        data_dir: Where torchvision's data sets are; None for `VAECLI_DATA_DIR` or the user's cache.
        init_from: A run whose weights to start from.
        report: Is told of the progress.
        stop: Is asked after every step whether to checkpoint and stop.

    Returns:
        The finished run.

    Raises:
        UsageError: The device is not there, or the weights are those of another model.
        DataError: The images are not to be had.
        DivergedError: The loss was not finite; the last good checkpoint is kept.
        InterruptedRunError: `stop` said so; `resume` goes on.
        VaecliError: The run directory cannot be written.
    """
    device = devices.resolve_device(config.device)
    devices.flush_subnormals()
    dataset = _dataset(config, data_dir)
    state = new_state(config, dataset.train, device)
    if init_from is not None:
        if init_from.config.model.model_dump(exclude={"init"}) != config.model.model_dump(exclude={"init"}):
            raise UsageError(f"{init_from.name}: has the weights of another model; the `model` sections must agree")
        state.load_weights(init_from.checkpoint)
    run = create_run(config, Path(runs_dir))
    started_from = None if init_from is None else str(init_from.checkpoint_path)
    record_environment(
        run,
        device=devices.describe(device),
        threads=torch.get_num_threads(),
        data_sha256=fingerprint(config.data.name),
        initialised_from=started_from,
    )
    return _fit(run, state, dataset, None, report, stop)


def resume(
    run: Run,
    config: Config | None = None,
    *,
    data_dir: str | Path | None = None,
    report: Reporter = ignore,
    stop: Stop = never,
) -> Run:
    """Go on with a run from its last checkpoint: where it was cut, or beyond its end with more epochs.

    Args:
        run: From `find_run` or `load_run`.
        config: The run's own, changed in nothing but `RESUMABLE` settings; None for as it was.
        data_dir: As for `train`.
        report: As for `train`.
        stop: As for `train`.

    Raises:
        UsageError: The changes asked for would not continue the same run.
        VaecliError: The checkpoint cannot be used; otherwise as for `train`.
    """
    if run.file is not None and run.file.resolve() != run.last.resolve():
        raise UsageError(f"{run.file}: a run goes on from its last checkpoint; --init-from starts anew from this one")
    if not run.last.is_file():
        raise VaecliError(f"{run.path}: has no checkpoint to go on from")
    checkpoint = load_checkpoint(run.last)
    config = config or checkpoint.config
    _check_resumable(run, checkpoint, config)
    device = devices.resolve_device(config.device)
    devices.flush_subnormals()
    torch.set_num_threads(checkpoint.threads)
    dataset = _dataset(config, data_dir)
    state = new_state(config, dataset.train, device)
    state.restore(checkpoint)
    run.write_config(config)
    return _fit(run, state, dataset, checkpoint, report, stop)


def _check_resumable(run: Run, checkpoint: Checkpoint, config: Config) -> None:
    old, epochs = checkpoint.config, config.training.epochs
    kept = _with_training(config, epochs=old.training.epochs, patience=old.training.patience)
    if kept.model_copy(update={"device": old.device}) != old:
        raise UsageError(f"{run.name}: a run is resumed with its own config; only {', '.join(RESUMABLE)} may change")
    if epochs != old.training.epochs and config.optimizer.schedule != "constant":
        raise UsageError(
            f"{run.name}: its {config.optimizer.schedule} schedule ends at epoch {old.training.epochs}, so it cannot "
            f"be extended to {epochs}; start a new run from its weights: "
            f"vae train --config {run.path}/config.yaml --init-from {run.name} training.epochs={epochs}"
        )
    if epochs < checkpoint.progress.epoch:
        raise UsageError(f"{run.name}: has {checkpoint.progress.epoch} epochs already; training.epochs={epochs}")


def _with_training(config: Config, **values: object) -> Config:
    """The config with other values in its training section."""
    return config.model_copy(update={"training": config.training.model_copy(update=values)})


def _dataset(config: Config, data_dir: str | Path | None) -> Dataset:
    return Dataset(config.data, config.model.likelihood.support, None if data_dir is None else Path(data_dir))


def _fit(
    run: Run, state: TrainingState, dataset: Dataset, checkpoint: Checkpoint | None, report: Reporter, stop: Stop
) -> Run:
    """Train to the end, keeping the status true whatever happens."""
    with Recorder(run, state, None if checkpoint is None else checkpoint.logs, report) as record:
        try:
            converged = _maximise_bound(state, dataset.validation, record, stop)
            record.finish("converged" if converged else "completed", dataset.test)
        except InterruptedRunError as error:
            record.save()
            record.status("interrupted", str(error))
            raise
        except DivergedError as error:
            record.status("diverged", str(error))
            raise
        except Exception as error:
            record.status("failed", f"{type(error).__name__}: {error}")
            raise
    return run


def _maximise_bound(state: TrainingState, held_out: Images, record: Recorder, stop: Stop) -> bool:
    """Repeat epochs to the last one, or until the bound on held-out images has stopped rising; say which."""
    config, progress, patience = state.config, state.progress, state.config.training.patience
    observe = observation(config.model.likelihood.support, config.data)
    maximise = objective(config.objective)
    held_out = replace(held_out, pixels=held_out.pixels.to(state.vae.device))
    record.start(held_out, observe)
    while progress.epoch < config.training.epochs:
        if patience is not None and len(held_out) and progress.epoch - progress.best_epoch >= patience:
            return True
        _run_epoch(state, observe, maximise, record, stop)
        record.end_epoch(evaluate_bound(state.vae, held_out.pixels, observe, config.seed) if len(held_out) else None)
    return False


def _run_epoch(state: TrainingState, observe: Observe, maximise: Objective, record: Recorder, stop: Stop) -> None:
    """One pass over the images in random minibatches, from wherever in it the state stands (paper, algorithm 1)."""
    vae, optimizer, progress, config = state.vae, state.optimizer, state.progress, state.config
    pixels, noise = state.images.pixels, state.generators
    if state.permutation is None:
        state.permutation = torch.randperm(len(pixels), generator=noise["permutation"])
    minibatches = state.permutation.to(pixels.device).split(config.training.batch_size)
    clock = time.perf_counter()
    for rows in minibatches[progress.position :]:
        batch = observe(pixels[rows], noise["pixels"])
        bound, elbo = maximise(
            vae, batch, noise["epsilon"], kl_weight(config.objective, progress.step, len(minibatches))
        )
        loss = -bound.mean()
        optimizer.zero_grad()
        loss.backward()
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config.optimizer, progress.step, config.training.epochs * len(minibatches))
        optimizer.step()
        state.trace[progress.position] = torch.stack((loss, elbo.log_likelihood.mean(), elbo.kl.mean())).detach()
        progress.position += 1
        progress.step += 1
        progress.images += len(rows)
        stopping = stop()
        if stopping or progress.position % STEPS_PER_REPORT == 0 or progress.position == len(minibatches):
            _check_finite(state)
            progress.seconds += time.perf_counter() - clock
            record.step()
            clock = time.perf_counter()
        if stopping:
            raise InterruptedRunError(f"stopped at step {progress.step}, in epoch {progress.epoch + 1}")
    state.permutation = None
    progress.epoch += 1
    progress.position = 0


def learning_rate(config: OptimizerConfig, step: int, steps: int) -> float:
    """The step size at a step 0..steps: constant, or falling to 0 on a line or on half a cosine."""
    remaining = 1 - step / steps
    factor = {"constant": 1.0, "linear": remaining, "cosine": 0.5 * (1 - math.cos(math.pi * remaining))}
    return config.learning_rate * factor[config.schedule]


def kl_weight(config: ObjectiveConfig, step: int, steps_per_epoch: int) -> float:
    """The weight of the KL term at a step: kl_weight, after rising from 0 over the epochs of kl_warmup."""
    warmup = config.kl_warmup * steps_per_epoch
    return config.kl_weight * (min(1.0, step / warmup) if warmup else 1.0)


def _check_finite(state: TrainingState) -> None:
    """Raise DivergedError, naming the step and the term, where a loss or a parameter is not finite."""
    trace = state.trace[: state.progress.position]
    step = state.progress.step
    if not trace.isfinite().all():
        row = int((~trace.isfinite()).any(1).int().argmax())
        step -= len(trace) - 1 - row
        terms = zip(("log-likelihood", "KL term", "loss"), trace[row, [1, 2, 0]].tolist(), strict=True)
        what = " and ".join(f"the {name} is {value}" for name, value in terms if not math.isfinite(value))
    elif not all(parameter.isfinite().all() for parameter in state.vae.parameters()):
        what = "a parameter is not finite any more"
    else:
        return
    raise DivergedError(
        f"training diverged: at step {step} (epoch {state.progress.epoch + 1}) {what}; "
        f"the last good checkpoint is kept. A smaller optimizer.learning_rate usually helps"
        + ("" if state.config.model.min_log_sigma is not None else ", and so does a floor, model.min_log_sigma=-7")
    )
