"""A session of training: one run being trained in this process, from where it stands to its end or to a stop."""

import time
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import BinaryIO

from jaxtyping import Float
from torch import Tensor

from vaecli.data.dataset import Dataset
from vaecli.errors import DivergedError, InterruptedRunError, LimitReachedError, in_plain_words
from vaecli.model.bound import Bound, evaluate_bound
from vaecli.model.vae import evaluating
from vaecli.runs.checkpoint import Checkpoint
from vaecli.runs.run import Run
from vaecli.stages import StageCallback, silent
from vaecli.training.divergence import check_finite, explain
from vaecli.training.recorder import Recorder, TrainingCallback, unwritable
from vaecli.training.state import Chunk, TrainingState
from vaecli.training.step import EagerStep, one_by_one
from vaecli.training.stopping import Limit, Stop, never

STEPS_PER_UPDATE = 25
SECONDS_PER_UPDATE = 0.1
"""At least so many steps and seconds lie between two looks at the trace: to look is to wait for the device."""
SECONDS_PER_CHECKPOINT = 15.0


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

    @property
    def on_stage(self) -> StageCallback:
        """Return what is told of work that takes long before a step."""
        return self._controls.on_stage

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
        validation, progress, vae = self.dataset.validation, self.state.progress, self.state.vae
        self._recorder.start(validation if len(validation) else self.dataset.train)
        validation = validation.to(vae.device)
        while progress.epoch < self.state.config.training.epochs and not self._has_converged():
            self.state.begin_epoch(self._controls.on_stage)
            self._clock = time.perf_counter()
            yield from self.state.chunks()
            self.state.end_epoch()
            bound = None
            with evaluating(vae):
                if len(validation):
                    bound = evaluate_bound(
                        vae, validation.pixels, self.state.preprocess, self.state.config.seed, validation.labels
                    )
                    self._keep_if_best(bound)
                self._recorder.end_epoch(bound)
            self._save_if_due()
        self._save()
        with evaluating(vae):
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
            error = DivergedError(explain(self.state, self.run.load(self.run.last), error.step, repeat), error.step)
            self._recorder.status("diverged", str(error))
        elif isinstance(error, Exception):
            failure = in_plain_words(error, self.state.replicates)
            reason = str(failure) if failure is not error else f"{type(error).__name__}: {error}"
            self._recorder.status("failed", reason)
            error = failure
        return error

    def _is_due(self) -> bool:
        """Return whether it is time to look at the trace, which means to wait for the device."""
        many = self.state.progress.position % STEPS_PER_UPDATE == 0
        return many and time.perf_counter() - self._updated_at >= SECONDS_PER_UPDATE

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
