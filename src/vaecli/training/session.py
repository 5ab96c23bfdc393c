"""Training by Auto-Encoding Variational Bayes (Kingma & Welling 2013, algorithm 1).

The paper scales the minibatch's bound by N/M to estimate that of all data (eq. 8). Here the loss is the negative mean
over the minibatch, so that the step size does not depend on N.
"""

import math
import os
import time
import warnings
from collections.abc import Callable, Generator, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from vaecli import devices
from vaecli.config.schema import Config, OptimizerConfig
from vaecli.data.dataset import Dataset, Images
from vaecli.data.observations import Observe, observation
from vaecli.data.sources import fingerprint
from vaecli.errors import (
    DivergedError,
    InterruptedRunError,
    LimitReachedError,
    ReproducibilityWarning,
    UsageError,
    VaecliError,
)
from vaecli.model.objectives import kl_weight
from vaecli.model.validation import evaluate_bound
from vaecli.runs.checkpoint import Checkpoint, load_checkpoint
from vaecli.runs.run import Run, create_run, find_run
from vaecli.training.divergence import check_finite, explain
from vaecli.training.recorder import Recorder, Reporter, ignore
from vaecli.training.state import TrainingState, new_state
from vaecli.training.step import Ascent, Minibatch, Portion, Step, new_step, one_by_one, steps_at_a_time
from vaecli.training.stopping import Limit, Stop, never

STEPS_PER_REPORT = 25
SECONDS_PER_REPORT = 0.1
"""At least so many steps and seconds lie between two looks at the figures: to look is to wait for the device."""
RESUMABLE = ("training.epochs", "training.patience", "device")
"""The settings that a run may be resumed with."""
Portions = Generator[Portion, Float[Tensor, "n 3"], None]
"""Asks for the steps of training, a portion at a time, and is sent the figures of each (see `step.Step`)."""


@dataclass(frozen=True)
class Controls:
    """Who is told how a run goes on, and who may end it; each as for `train`."""

    report: Reporter = ignore
    stop: Stop = never
    limit: Limit | None = None


@dataclass(frozen=True)
class Training:
    """A run that is about to be trained. What makes its steps is chosen by whoever has it."""

    run: Run
    state: TrainingState
    dataset: Dataset
    observe: Observe
    portions: Portions
    """Does all but the steps, and keeps the run's status true whatever happens."""

    def carry_out(self) -> Run:
        """Train to the end."""
        drive(self.portions, partial(new_step, [self.state], self.observe))
        return Run(self.run.path)  # without what was read of it before


def train(
    config: Config,
    *,
    runs_dir: str | Path = "runs",
    data_dir: str | Path | None = None,
    init_from: Run | None = None,
    report: Reporter = ignore,
    stop: Stop = never,
    limit: Limit | None = None,
) -> Run:
    """Train a VAE from the start, in a run directory of its own.

    Args:
        config: From `load_config` or `parse_config`.
        runs_dir: Where the run directory is made.
        data_dir: Where torchvision's data sets are; None for `VAECLI_DATA_DIR` or the user's cache.
        init_from: A run whose weights to start from.
        report: Is told of the progress.
        stop: Is asked after every step (or every few that are replayed at once) whether to checkpoint and stop.
        limit: Of the time or the images after which to do so; None for none.

    Returns:
        The finished run.

    Raises:
        UsageError: The device is not there, the weights are those of another model, or this one is too large.
        DataError: The images are not to be had.
        DivergedError: The loss was not finite; the last good checkpoint is kept.
        InterruptedRunError: `stop` said so; `resume` goes on.
        LimitReachedError: The limit was reached; `resume` goes on.
        VaecliError: The run directory cannot be written.
    """
    oversight = Controls(report, stop, limit)
    return begin(config, runs_dir, data_dir, oversight, init_from=init_from).carry_out()


def begin(
    config: Config,
    runs_dir: str | Path,
    data_dir: str | Path | None,
    oversight: Controls,
    *,
    init_from: Run | None = None,
    beside: Training | None = None,
) -> Training:
    """Make the run directory of a new run, and all that it needs to be trained; arguments and errors as for `train`.

    `beside` is a training whose images it can share, its config being the same but for the seed.
    """
    state, dataset = _start(config, data_dir, init_from, beside)
    run = create_run(
        config,
        Path(runs_dir),
        device=devices.describe(state.vae.device),
        threads=torch.get_num_threads(),
        data_sha256=fingerprint(config.data.name),
        initialised_from=None if init_from is None else str(init_from.checkpoint_path),
    )
    return _training(run, state, dataset, {}, oversight)


def _training(
    run: Run, state: TrainingState, dataset: Dataset, lengths: Mapping[str, int], oversight: Controls
) -> Training:
    observe = observation(state.config.model.likelihood.support, state.config.data)
    portions = _fit(run, state, dataset, observe, lengths, oversight)
    return Training(run, state, dataset, observe, portions)


def _start(
    config: Config, data_dir: str | Path | None, init_from: Run | None, beside: Training | None = None
) -> tuple[TrainingState, Dataset]:
    """The state before the first step, and the images."""
    device = devices.resolve_device(config.device)
    devices.flush_subnormals()
    devices.allow_tf32(device, config.training.tf32)
    if beside is not None and beside.state.vae.device != device:
        beside = None
    dataset = beside.dataset if beside else _dataset(config, data_dir)
    state = new_state(config, dataset.train, device, beside.state if beside else None)
    if init_from is not None:
        if init_from.config.model.model_dump(exclude={"init"}) != config.model.model_dump(exclude={"init"}):
            raise UsageError(f"{init_from.name}: has the weights of another model; the `model` sections must agree")
        state.load_weights(init_from.checkpoint)
    return state, dataset


def resume(
    run: Run,
    config: Config | None = None,
    *,
    data_dir: str | Path | None = None,
    report: Reporter = ignore,
    stop: Stop = never,
    limit: Limit | None = None,
) -> Run:
    """Go on with a run from its last checkpoint: where it was cut, or beyond its end with more epochs.

    A run that was cut before its first checkpoint starts again, in its own directory. Where the machine is not what it
    was, an ReproducibilityWarning says so.

    Args:
        run: From `find_run` or `load_run`.
        config: The run's own, changed in nothing but `RESUMABLE` settings; None for as it was.
        data_dir: As for `train`.
        report: As for `train`.
        stop: As for `train`.
        limit: As for `train`.

    Raises:
        UsageError: The changes asked for would not continue the same run.
        VaecliError: The checkpoint cannot be used; otherwise as for `train`.
    """
    return go_on(run, config, data_dir, Controls(report, stop, limit)).carry_out()


def go_on(
    run: Run,
    config: Config | None,
    data_dir: str | Path | None,
    oversight: Controls,
    *,
    replicates: int = 1,
    beside: Training | None = None,
) -> Training:
    """Bring a run back to where it was; arguments and errors as for `resume`.

    `replicates` is as for `conditions`, and `beside` as for `begin`.
    """
    if run.file is not None and run.file.resolve() != run.last.resolve():
        raise UsageError(f"{run.file}: a run goes on from its last checkpoint; --init-from starts anew from this one")
    checkpoint = load_checkpoint(run.last) if run.last.is_file() else None
    if checkpoint is None and (not (run.path / "config.yaml").is_file() or run.metrics):
        raise VaecliError(f"{run.path}: has no checkpoint to go on from")
    config = config or run.config
    _check_resumable(run, checkpoint, config)
    if checkpoint is None:
        source = run.environment.get("initialised_from")
        state, dataset = _start(config, data_dir, find_run(source, run.path) if source else None, beside)
    else:
        torch.set_num_threads(checkpoint.threads)
        state, dataset = _start(config, data_dir, None, beside)
        state.restore(checkpoint)
        if checkpoint.progress.step:
            _warn_of_other_bits(
                run, checkpoint, devices.conditions(state.vae.device, replicates, compiled=state.compiled)
            )
    run.write_config(config)
    return _training(run, state, dataset, checkpoint.logs if checkpoint else {}, oversight)


def _warn_of_other_bits(run: Run, checkpoint: Checkpoint, now: Mapping[str, str]) -> None:
    """Say what is not as it was: sums are taken in another order by other hardware and other versions."""
    before, cores = devices.DEFAULTS | checkpoint.conditions, os.cpu_count() or 1
    changes = [
        f"{name} {before.get(name, 'unknown')} before, {value} now"
        for name, value in now.items()
        if before.get(name) != value
    ]
    if checkpoint.threads > cores:
        changes.append(f"{checkpoint.threads} threads, on {cores} cores now")
    if changes:
        warnings.warn(
            f"{run.name}: may not end in the same bits as an uncut run: {'; '.join(changes)}",
            ReproducibilityWarning,
            stacklevel=4,
        )


def _check_resumable(run: Run, checkpoint: Checkpoint | None, config: Config) -> None:
    old, epochs = checkpoint.config if checkpoint else run.config, config.training.epochs
    kept = _with_training(config, epochs=old.training.epochs, patience=old.training.patience)
    if kept.model_copy(update={"device": old.device}) != old:
        raise UsageError(f"{run.name}: a run is resumed with its own config; only {', '.join(RESUMABLE)} may change")
    if epochs != old.training.epochs and config.optimizer.schedule != "constant":
        raise UsageError(
            f"{run.name}: its {config.optimizer.schedule} schedule ends at epoch {old.training.epochs}, so it cannot "
            f"be extended to {epochs}; start a new run from its weights: "
            f"vae train --config {run.path}/config.yaml --init-from {run.name} training.epochs={epochs}"
        )
    if checkpoint and epochs < checkpoint.progress.epoch:
        raise UsageError(f"{run.name}: has {checkpoint.progress.epoch} epochs already; training.epochs={epochs}")


def _with_training(config: Config, **values: object) -> Config:
    """The config with other values in its training section."""
    return config.model_copy(update={"training": config.training.model_copy(update=values)})


def _dataset(config: Config, data_dir: str | Path | None) -> Dataset:
    return Dataset(config.data, config.model.likelihood.support, None if data_dir is None else Path(data_dir))


def _fit(
    run: Run,
    state: TrainingState,
    dataset: Dataset,
    observe: Observe,
    lengths: Mapping[str, int],
    oversight: Controls,
) -> Portions:
    """Train to the end, keeping the status true whatever happens; `lengths` are those of the logs to go on from."""
    with Recorder(run, state, lengths, oversight.report) as record:
        try:
            record.start(dataset.validation if len(dataset.validation) else dataset.train, observe)
            converged = yield from _maximise_bound(
                state, dataset.validation, observe, record, _Supervisor(state, record, oversight)
            )
            record.finish("converged" if converged else "completed", dataset.test)
        except InterruptedRunError as error:
            record.save()
            record.status("interrupted", str(error))
            raise
        except DivergedError as error:
            repeat = partial(_repeat, state, observe)
            explained = DivergedError(
                explain(state, load_checkpoint(run.last), observe, error.step, repeat), error.step
            )
            record.status("diverged", str(explained))
            raise explained from None
        except Exception as error:
            failure = in_words(error, state.replicates)
            record.status("failed", str(failure) if failure is not error else f"{type(error).__name__}: {error}")
            if failure is error:
                raise
            raise failure from error


def in_words(error: Exception, replicates: int) -> Exception:
    """Out of memory as an error of ours; any other as it is."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error):
        fewer = f", or resources.together, which is {replicates} here," if replicates > 1 else ""
        return VaecliError(f"out of memory; make training.batch_size, objective.L or model.hidden_dim{fewer} smaller")
    return error


def _maximise_bound(
    state: TrainingState, held_out: Images, observe: Observe, record: Recorder, supervise: "_Supervisor"
) -> Generator[Portion, Float[Tensor, "n 3"], bool]:
    """Repeat epochs to the last one, or until the bound on held-out images has stopped rising; say which."""
    config, patience = state.config, state.config.training.patience
    held_out = replace(held_out, pixels=held_out.pixels.to(state.vae.device))
    while state.progress.epoch < config.training.epochs:
        if patience is not None and len(held_out) and state.progress.epoch - state.progress.best_epoch >= patience:
            return True
        supervise.start_clock()
        yield from _epoch(state, steps_at_a_time(state), supervise)
        record.end_epoch(evaluate_bound(state.vae, held_out.pixels, observe, config.seed) if len(held_out) else None)
    return False


def _epoch(state: TrainingState, n: int, after_portion: Callable[[], None]) -> Portions:
    """One pass over the images in random minibatches, from wherever in it the state stands (paper, algorithm 1).

    Args:
        state: Is moved by whoever is asked for the steps, and counts them here.
        n: Steps in a portion; the first one ends at a multiple of it, and the last of the epoch may have fewer.
        after_portion: Called after each.
    """
    config, minibatches = state.config, state.minibatches()
    while pixels := list(islice(minibatches, n - state.progress.position % n)):
        first = state.progress.step
        portion = [
            Minibatch(
                batch,
                kl_weight(config.objective, step, state.steps_per_epoch),
                learning_rate(config.optimizer, step, config.training.epochs * state.steps_per_epoch),
            )
            for step, batch in enumerate(pixels, first)
        ]
        figures = yield portion
        progress = state.progress
        state.trace[progress.position : progress.position + len(portion)] = figures
        progress.learning_rate = float(portion[-1].learning_rate)
        progress.position += len(portion)
        progress.step += len(portion)
        progress.images += sum(len(batch) for batch in pixels)
        after_portion()
    state.permutation = None
    state.progress.epoch += 1
    state.progress.position = 0


def drive(portions: Portions, make: Callable[[], Step]) -> None:
    """Make all the steps that are asked for, by what `make` makes at the first."""
    step: Step | None = None
    with closing(portions), suppress(StopIteration):
        portion = next(portions)
        while True:
            try:
                step = step or make()
                figures = step(portion)
            except BaseException as error:  # is told to where the status is kept
                portions.throw(error)
                raise
            portion = portions.send(figures)


class _Supervisor:
    """Called after every portion: now and then looks at the figures and reports them, and stops when asked to."""

    def __init__(self, state: TrainingState, record: Recorder, oversight: Controls) -> None:
        self._state, self._record = state, record
        self._stop, self._limit = oversight.stop, oversight.limit or Limit()
        self._images_before, self._looked_at = state.progress.images, time.perf_counter()
        self.start_clock()

    def start_clock(self) -> None:
        """Begin to count the seconds of training."""
        self._clock = time.perf_counter()

    def __call__(self) -> None:
        progress = self._state.progress
        stopped, limit = self._stop(), self._limit.reached(progress.images - self._images_before)
        at_end = progress.position == self._state.steps_per_epoch
        if stopped or limit or at_end or self._is_due(progress.position):
            check_finite(self._state)
            progress.seconds += time.perf_counter() - self._clock
            self._record.step()
            self.start_clock()
            self._looked_at = self._clock
        where = f"at step {progress.step}, in epoch {progress.epoch + 1}"
        if stopped:
            raise InterruptedRunError(f"stopped {where}")
        if limit:
            raise LimitReachedError(f"stopped after {limit}, {where}")

    def _is_due(self, position: int) -> bool:
        return position % STEPS_PER_REPORT == 0 and time.perf_counter() - self._looked_at >= SECONDS_PER_REPORT


def _repeat(state: TrainingState, observe: Observe, step: int) -> None:
    """Train up to a step, and do nothing else."""

    def after_step() -> None:
        if state.progress.step >= step and state.progress.position < state.steps_per_epoch:
            raise InterruptedRunError  # at its end an epoch is completed

    ascend = one_by_one(Ascent(state, observe))
    while state.progress.step < step:
        with suppress(InterruptedRunError):
            drive(_epoch(state, 1, after_step), lambda: ascend)


def learning_rate(config: OptimizerConfig, step: int, steps: int) -> float:
    """The step size at a step 0..steps: constant, or falling to 0 on a line or on half a cosine."""
    remaining = 1 - step / steps
    factor = {"constant": 1.0, "linear": remaining, "cosine": 0.5 * (1 - math.cos(math.pi * remaining))}
    return config.learning_rate * factor[config.schedule]
