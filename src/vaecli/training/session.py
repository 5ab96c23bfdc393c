"""A session of training: one run being trained in this process, from where it stands to its end or to a stop."""

import time
import warnings
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import torch
from jaxtyping import Float
from torch import Tensor

from vaecli import devices
from vaecli.config.schema import Config
from vaecli.data.dataset import Dataset
from vaecli.data.summaries import fingerprint
from vaecli.errors import (
    DivergedError,
    InterruptedRunError,
    LimitReachedError,
    ReproducibilityWarning,
    UsageError,
    VaecliError,
    in_plain_words,
)
from vaecli.model.estimators import Bound, evaluate_bound
from vaecli.runs.checkpoint import Checkpoint, load_checkpoint
from vaecli.runs.run import Run, create_run, find_run
from vaecli.stages import StageCallback, silent
from vaecli.training.divergence import check_finite, explain
from vaecli.training.recorder import Recorder, TrainingCallback, unwritable
from vaecli.training.state import Chunk, TrainingState, new_state
from vaecli.training.step import EagerStep, one_by_one
from vaecli.training.stopping import Limit, Stop, never

STEPS_PER_UPDATE = 25
SECONDS_PER_UPDATE = 0.1
"""At least so many steps and seconds lie between two looks at the trace: to look is to wait for the device."""
SECONDS_PER_CHECKPOINT = 15.0
RESUMABLE = ("training.epochs", "training.patience", "device")
"""The settings that may change when a run is resumed."""


@dataclass(frozen=True)
class Controls:
    """Hold what is called before a run and as it goes on, and what may end it; each as for `train`."""

    callback: TrainingCallback | None = None
    stop: Stop = never
    limit: Limit | None = None
    on_stage: StageCallback = silent


class Session:
    """Train one run: yield what to step on, and do all that algorithm 1 leaves out.

    It is a context manager whose exit writes the run's status, whatever happened, and releases its lock.

    Args:
        run: Where it is recorded.
        lock: The run's, held by this process.
        state: Where training stands; the caller changes its parameters and its optimiser, step by step.
        dataset: Its images.
        log_lengths: The bytes of the logs to continue from.
        controls: What is called as it goes on, and what may end it.
    """

    def __init__(
        self,
        run: Run,
        lock: BinaryIO,
        state: TrainingState,
        dataset: Dataset,
        log_lengths: Mapping[str, int],
        controls: Controls,
    ) -> None:
        self.run, self.state, self.dataset = run, state, dataset
        self._lock, self._log_lengths, self._controls = lock, log_lengths, controls
        self._limit = controls.limit or Limit()
        self._best: Checkpoint | None = None

    def __enter__(self) -> "Session":
        self._recorder = Recorder(self.run, self._lock, self.state, self._log_lengths, self._controls.callback)
        self._images_before = self.state.progress.images
        self._updated_at = self._saved_at = time.perf_counter()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        raised = self.close(error)
        if raised is not None and raised is not error:
            raise raised from (None if isinstance(raised, DivergedError) else error)

    def chunks(self) -> Generator[Chunk]:
        """Yield the chunks of minibatches to step on, to the last epoch or until the validation bound stops rising.

        After each chunk the caller makes its steps and calls `advance`, before it asks for the next.
        """
        validation, progress = self.dataset.validation, self.state.progress
        self._recorder.start(validation if len(validation) else self.dataset.train)
        validation = validation.to(self.state.vae.device)
        while progress.epoch < self.state.config.training.epochs and not self._has_converged():
            self.state.begin_epoch(self._controls.on_stage)
            self._clock = time.perf_counter()
            yield from self.state.chunks()
            self.state.end_epoch()
            bound = None
            if len(validation):
                bound = evaluate_bound(self.state.vae, validation.pixels, self.state.preprocess, self.state.config.seed)
                self._keep_if_best(bound)
            self._recorder.end_epoch(bound)
            self._save_if_due()
        self._save()
        self._recorder.finish("converged" if self._has_converged() else "completed", self.dataset.test)

    def advance(self, chunk: Chunk, terms: Float[Tensor, "n 3"]) -> None:
        """Count the steps of a chunk, check that they are finite, report them, and stop if that was asked for.

        Args:
            chunk: Whose steps were made.
            terms: The loss, the log-likelihood and the KL of each.

        Raises:
            DivergedError: A term or a parameter is not finite.
            InterruptedRunError: The controls ask to stop, or a limit is reached.
        """
        state, progress = self.state, self.state.progress
        state.count(chunk, terms)
        stopped, limit = self._controls.stop(), self._limit.reached(progress.images - self._images_before)
        if stopped or limit or progress.position == state.steps_per_epoch or self._is_due():
            check_finite(state)
            progress.seconds += time.perf_counter() - self._clock
            self._recorder.step()
            if progress.position < state.steps_per_epoch:
                self._save_if_due()
            self._clock = self._updated_at = time.perf_counter()
        where = f"at step {progress.step}, in epoch {progress.epoch + 1}"
        if stopped:
            raise InterruptedRunError(f"stopped {where}")
        if limit:
            raise LimitReachedError(f"stopped after {limit}, {where}")

    def close(self, error: BaseException | None) -> BaseException | None:
        """Write the status that an error leaves the run in, close its files, and return the error in plain words."""
        try:
            error = self._conclude(error)
        except Exception as another:  # noqa: BLE001 (a full disk, as a rule; the files are closed all the same)
            error = another
        finally:
            try:
                self._recorder.close()
            except OSError as unflushed:
                error = error or unflushed
        return unwritable(error) if isinstance(error, OSError) else error

    def _conclude(self, error: BaseException | None) -> BaseException | None:
        if isinstance(error, InterruptedRunError):
            self._save()
            self._recorder.status("interrupted", str(error))
        elif isinstance(error, DivergedError):
            repeat = one_by_one(EagerStep(self.state))
            error = DivergedError(explain(self.state, load_checkpoint(self.run.last), error.step, repeat), error.step)
            self._recorder.status("diverged", str(error))
        elif isinstance(error, Exception):
            failure = in_plain_words(error, self.state.replicates)
            reason = str(failure) if failure is not error else f"{type(error).__name__}: {error}"
            self._recorder.status("failed", reason)
            error = failure
        return error

    def _is_due(self) -> bool:
        """Return whether it is time to look at the trace, which means to wait for the device."""
        if self.state.progress.position % STEPS_PER_UPDATE:
            return False
        return time.perf_counter() - self._updated_at >= SECONDS_PER_UPDATE

    def _keep_if_best(self, bound: Bound) -> None:
        """Keep the state for best.pt, to be written with the next checkpoint, if its validation bound is the best."""
        progress = self.state.progress
        if bound.elbo > progress.best_elbo:
            progress.best_elbo, progress.best_epoch = bound.elbo, progress.epoch
            self._best = self.state.capture({})

    def _has_converged(self) -> bool:
        """Return whether the last `patience` epochs brought no better bound, and there are more to come."""
        progress, training = self.state.progress, self.state.config.training
        if training.patience is None or not len(self.dataset.validation):
            return False
        return progress.epoch < training.epochs and progress.epoch - progress.best_epoch >= training.patience

    def _save_if_due(self) -> None:
        if time.perf_counter() - self._saved_at > SECONDS_PER_CHECKPOINT:
            self._save()

    def _save(self) -> None:
        self._recorder.save(self._best)
        self._best, self._saved_at = None, time.perf_counter()


def start_session(
    config: Config,
    runs_dir: str | Path,
    data_dir: str | Path | None,
    controls: Controls,
    *,
    init_from: Run | None = None,
    share: Session | None = None,
) -> Session:
    """Make the run directory of a new run, and all that it needs to be trained; arguments and errors as for `train`.

    `share` is a session whose images can be used, its config being the same but for the seed.
    """
    state, dataset = _first_state(config, data_dir, controls, init_from, share)
    run = create_run(
        config,
        Path(runs_dir),
        device=devices.describe(state.vae.device),
        threads=torch.get_num_threads(),
        data_sha256=fingerprint(config.data.name, controls.on_stage),
        initialised_from=None if init_from is None else str(init_from.checkpoint_path),
    )
    return Session(run, run.lock(), state, dataset, {}, controls)


def resume_session(
    run: Run,
    config: Config | None,
    data_dir: str | Path | None,
    controls: Controls,
    *,
    replicates: int = 1,
    share: Session | None = None,
) -> Session:
    """Bring a run back to where it was; arguments and errors as for `resume`, `share` as for `start_session`.

    `replicates` is how many runs are trained as one batched program, with this one. The lock is taken before anything
    is read, so that nothing that was read is out of date.
    """
    if run.file is not None and run.file.resolve() != run.last.resolve():
        raise UsageError(f"{run.file}: a run goes on from its last checkpoint; --init-from starts anew from this one")
    lock = run.lock()
    try:
        checkpoint = load_checkpoint(run.last) if run.last.is_file() else None
        config = _resumable(run, checkpoint, config)
        source = run.environment.get("initialised_from") if checkpoint is None else None
        if checkpoint is not None:
            torch.set_num_threads(checkpoint.threads)
        init_from = find_run(source, run.path) if source else None
        state, dataset = _first_state(config, data_dir, controls, init_from, share)
        if checkpoint is not None:
            state.restore(checkpoint)
            now = devices.conditions(state.vae.device, replicates, compiled=state.compiled)
            changes = checkpoint.changed_conditions(now) if checkpoint.progress.step else []
            if changes:
                what = f"{run.name}: may not end in the same bits as an uncut run: {'; '.join(changes)}"
                warnings.warn(what, ReproducibilityWarning, stacklevel=3)
        run.write_config(config)
    except BaseException:
        lock.close()
        raise
    return Session(run, lock, state, dataset, checkpoint.logs if checkpoint else {}, controls)


def _first_state(
    config: Config, data_dir: str | Path | None, controls: Controls, init_from: Run | None, share: Session | None
) -> tuple[TrainingState, Dataset]:
    """Return the state before the first step, and the images."""
    device = devices.resolve_device(config.device)
    devices.flush_subnormals()
    devices.allow_tf32(device, config.training.tf32)
    share = share if share and share.state.vae.device == device else None
    support, directory = config.model.likelihood.support, None if data_dir is None else Path(data_dir)
    dataset = share.dataset if share else Dataset(config.data, support, directory, controls.on_stage)
    state = new_state(config, dataset.train, device, share.state if share else None)
    if init_from is not None:
        if init_from.config.model.model_dump(exclude={"init"}) != config.model.model_dump(exclude={"init"}):
            raise UsageError(f"{init_from.name}: has the weights of another model; the `model` sections must agree")
        state.load_weights(init_from.checkpoint)
    return state, dataset


def _resumable(run: Run, checkpoint: Checkpoint | None, config: Config | None) -> Config:
    """Return the config to resume with. Raises an error where nothing can be resumed, or not with these changes."""
    if checkpoint is None and (not (run.path / "config.yaml").is_file() or run.metrics):
        raise VaecliError(f"{run.path}: has no checkpoint to go on from")
    config = config or run.config
    old, epochs = checkpoint.config if checkpoint else run.config, config.training.epochs
    training = config.training.model_copy(update={k: getattr(old.training, k) for k in ("epochs", "patience")})
    if config.model_copy(update={"training": training, "device": old.device}) != old:
        raise UsageError(f"{run.name}: a run is resumed with its own config; only {', '.join(RESUMABLE)} may change")
    if epochs != old.training.epochs and config.optimizer.schedule != "constant":
        raise UsageError(
            f"{run.name}: its {config.optimizer.schedule} schedule ends at epoch {old.training.epochs}, so it cannot "
            f"be extended to {epochs}; start a new run from its weights: "
            f"vae train --config {run.path}/config.yaml --init-from {run.name} training.epochs={epochs}"
        )
    if checkpoint and epochs < checkpoint.progress.epoch:
        raise UsageError(f"{run.name}: has {checkpoint.progress.epoch} epochs already; training.epochs={epochs}")
    return config
