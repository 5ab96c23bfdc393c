"""What a run writes while it trains: curves, pictures, checkpoints and its status."""

import math
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, BinaryIO

import torch

from vaecli.config.loading import dump_config
from vaecli.config.schema import Config
from vaecli.data.dataset import Images
from vaecli.data.image_grid import save_png
from vaecli.errors import VaecliError
from vaecli.files import remove_temporary_files
from vaecli.model.bound import Bound
from vaecli.randomness import Stream, generator
from vaecli.runs.checkpoint import Checkpoint, save_checkpoint
from vaecli.runs.run import LOGS, Run
from vaecli.training.logs import PROJECTED, RunLogs, prior_picture, reconstruction_picture, write_projector
from vaecli.training.state import TrainingState

SECONDS_PER_STATUS = 1.0
SAMPLES, RECONSTRUCTIONS = 50, 30
"""Images in each picture."""
STATUS_METRICS = ("epoch", "step", "elbo", "log_likelihood", "kl", "active_units", "pixels_at_floor")


@dataclass(frozen=True)
class TrainingUpdate:
    """Describe how far a run has come. Bounds are means in nats per image, at KL weight 1."""

    run: Run
    config: Config
    epoch: int
    """The current epoch, from 1."""
    step: int
    """Steps completed of it."""
    steps: int
    """Steps in it."""
    log_likelihood: float
    kl: float
    """Both over the steps of this epoch so far, as the parameters moved."""
    images_per_second: float
    """Since this process began to train."""
    seconds_left: float
    """Until the last epoch, at this pace and with what evaluation takes."""
    validation: Bound | None = None
    """At the end of an epoch, where there are held-out images."""
    ended: bool = False
    """Whether the epoch has ended."""

    @property
    def elbo(self) -> float:
        """Return the training bound."""
        return self.log_likelihood - self.kl


TrainingCallback = Callable[[TrainingUpdate], None]


class Recorder:
    """Record a run, from the state's present to the end of the run or wherever it is cut.

    Args:
        run: Where to write.
        lock: The run's, which is released when the recorder is closed.
        state: What is recorded; read, never changed.
        lengths: Bytes to cut each log back to.
        callback: Is called at every `step` and `end_epoch`.
    """

    def __init__(
        self,
        run: Run,
        lock: BinaryIO,
        state: TrainingState,
        lengths: Mapping[str, int],
        callback: TrainingCallback | None = None,
    ) -> None:
        self._run, self._lock, self._state, self._config = run, lock, state, state.config
        self._callback, self._run_id = callback, run.id
        with ExitStack() as stack:
            stack.enter_context(lock)
            try:
                remove_temporary_files(run.path)
                self._logs = RunLogs(run.path, LOGS, lengths)
            except OSError as error:
                raise unwritable(error) from error
            stack.callback(self._logs.close)
            self._metrics: dict[str, object] = _status_metrics(run.metrics)
            stack.pop_all()
        self._is_new = not lengths
        self._status_at = self._began_at = time.monotonic()
        self._images_before, self._seconds_before = state.progress.images, state.progress.seconds
        self._shown: Images | None = None

    def close(self) -> None:
        """Close the logs, and release the run's lock whatever happens."""
        with self._lock:
            self._logs.close()

    def start(self, images: Images) -> None:
        """Mark the run as running; at its very beginning, log its settings and keep its first weights.

        Args:
            images: The ones whose reconstructions are shown.
        """
        self._shown = images.first(RECONSTRUCTIONS).to(self._state.vae.device)
        self.status("running")
        if self._is_new:
            self._logs.validation.text("config", f"```yaml\n{dump_config(self._config)}```")
            self._logs.validation.hparams(hparams(self._config), {"elbo": 0.0, "log_likelihood": 0.0, "kl": 0.0})
            self._logs.train.file.flush()
            self.save(None)

    def step(self) -> None:
        """Tell the callback how far the epoch has come."""
        if self._callback is not None:
            self._callback(self._update(self._state.progress.position))

    def end_epoch(self, validation: Bound | None) -> None:
        """Log the epoch's curves and pictures, and tell the callback."""
        progress = self._state.progress
        loss, log_likelihood, kl = self._epoch_means(self._state.steps_per_epoch)
        curves = {"elbo": log_likelihood - kl, "log_likelihood": log_likelihood, "kl": kl}
        self._logs.row({"split": "train", **self._position(), **curves, "loss": loss})
        self._logs.train.scalars(curves, progress.images, self._config.caveat)
        self._logs.train.scalars({"optimizer/learning_rate": progress.learning_rate}, progress.images)
        self._metrics |= self._position() | {"train": curves}
        if validation is not None:
            self._end_validation(validation)
        self._log_pictures(progress.epoch)
        self._logs.flush()
        if time.monotonic() - self._status_at > SECONDS_PER_STATUS:
            self.status("running")
        if self._callback is not None:
            self._callback(self._update(self._state.steps_per_epoch, validation))

    def save(self, best: Checkpoint | None) -> None:
        """Write the checkpoints: a new best first, so that the last never speaks of a best that is not there."""
        last = self._state.capture(self._logs.lengths())
        for path, checkpoint in ((self._run.best, best), (self._run.last, last)):
            if checkpoint is not None:
                save_checkpoint(path, replace(checkpoint, run_id=self._run_id))

    def status(self, state: str, reason: str | None = None) -> None:
        """Replace status.json, with the last and best metrics."""
        config = self._config
        facts = {
            "identity": config.identity,
            "decoder": config.model.decoder,
            "support": config.support.value,
            "caveat": config.caveat,
            "data": config.data.name,
            "latent_dim": config.model.latent_dim,
            "seed": config.seed,
            "epochs": config.training.epochs,
        }
        self._status_at = time.monotonic()
        self._run.write_status(state=state, reason=reason, **(self._metrics | facts))

    def finish(self, state: str, test: Images) -> None:
        """Write a picture of samples, test images for TensorBoard's projector, and the final status."""
        if len(test) > 1:
            shown = test.first(PROJECTED).to(self._state.vae.device)
            directory = self._run.path / "tensorboard" / "validation"
            write_projector(directory, self._state.vae, shown, self._state.preprocess, self._generator("evaluation"))
        if self._has_pictures:
            save_png(self._run.path / "samples" / "prior.png", self._prior_picture())
        self.status(state)

    def _end_validation(self, bound: Bound) -> None:
        progress = self._state.progress
        curves = {"elbo": bound.elbo, "log_likelihood": bound.log_likelihood, "kl": bound.kl}
        more: dict[str, float] = {"active_units": bound.active_units}
        diagnostics = {"latent/active_units": float(bound.active_units)}
        if bound.pixels_at_floor is not None:
            more["pixels_at_floor"] = diagnostics["scale/pixels_at_floor"] = bound.pixels_at_floor
        self._logs.row({"split": "validation", **self._position(), **curves, **more})
        self._logs.validation.scalars(curves, progress.images, self._config.caveat)
        self._logs.validation.scalars(diagnostics, progress.images)
        if bound.kl_per_dimension is not None:
            heights = sorted(bound.kl_per_dimension.tolist(), reverse=True)
            self._logs.validation.bars("latent/kl_per_dimension", heights, progress.images)
        self._metrics["last"] = {"epoch": progress.epoch, "step": progress.step, **curves, **more}
        if progress.best_epoch == progress.epoch:
            self._metrics["best"] = self._metrics["last"]

    def _position(self) -> dict[str, int | float]:
        """Return where in training the run is, as the rows of metrics.jsonl say it."""
        progress = self._state.progress
        return {
            "epoch": progress.epoch,
            "step": progress.step,
            "images": progress.images,
            "seconds": round(progress.seconds, 3),
        }

    def _log_pictures(self, epoch: int) -> None:
        if not self._has_pictures or epoch % _epochs_between_pictures(epoch):
            return
        assert self._shown is not None
        state, images, stream = self._state, self._state.progress.images, self._generator("samples")
        pairs = reconstruction_picture(state.vae, self._shown, state.preprocess, stream)
        self._logs.validation.image("reconstructions", pairs, images)
        self._logs.validation.image("prior_samples", self._prior_picture(), images)

    @property
    def _has_pictures(self) -> bool:
        return self._config.data.kind == "images"

    def _prior_picture(self) -> Any:
        return prior_picture(self._state.vae, self._state.images.shape, SAMPLES, self._generator("samples"))

    def _generator(self, stream: Stream) -> torch.Generator:
        """Start a stream anew, so that the same random numbers show every time."""
        return generator(self._config.seed, stream, self._state.vae.device)

    def _update(self, position: int, validation: Bound | None = None) -> TrainingUpdate:
        progress, config = self._state.progress, self._config
        ended = progress.position == 0
        _, log_likelihood, kl = self._epoch_means(position)
        images = progress.images - self._images_before
        total = config.training.epochs * len(self._state.images)
        elapsed = time.monotonic() - self._began_at
        return TrainingUpdate(
            run=self._run,
            config=config,
            epoch=progress.epoch + (not ended),
            step=position,
            steps=self._state.steps_per_epoch,
            log_likelihood=log_likelihood,
            kl=kl,
            images_per_second=images / max(progress.seconds - self._seconds_before, 1e-9),
            seconds_left=(total - progress.images) * elapsed / max(images, 1),
            validation=validation,
            ended=ended,
        )

    def _epoch_means(self, position: int) -> tuple[float, float, float]:
        """Return loss, log-likelihood and KL over the images of the epoch's first steps."""
        m, n = self._config.training.batch_size, len(self._state.images)
        weights = torch.full((position,), float(m), dtype=torch.float64)
        if position == self._state.steps_per_epoch:
            weights[-1] = n - m * (position - 1)
        means = weights @ self._state.trace[:position].cpu().double() / weights.sum()
        loss, log_likelihood, kl = means.tolist()
        return loss, log_likelihood, kl


def _status_metrics(rows: list[dict[str, Any]]) -> dict[str, object]:
    """Return the metrics of the status, as the rows of metrics.jsonl leave them."""
    found: dict[str, object] = {}
    best: dict[str, Any] | None = None
    for row in rows:
        metrics = {key: row[key] for key in STATUS_METRICS if key in row}
        if row["split"] == "train":
            curves = {key: row[key] for key in ("elbo", "log_likelihood", "kl")}
            found |= {key: row[key] for key in ("epoch", "step", "images", "seconds")} | {"train": curves}
        else:
            found["last"] = metrics
            if row["elbo"] is not None and (best is None or row["elbo"] > best["elbo"]):
                found["best"] = best = metrics
    return found


def _epochs_between_pictures(epoch: int) -> int:
    """Return 1 for epochs to 5, 5 to 50, 50 to 500, and so on: pictures take much space in a long run."""
    return 1 if epoch <= 5 else 5 * 10 ** max(0, math.ceil(math.log10(epoch / 50)))


def hparams(config: Config) -> dict[str, str | float | bool]:
    """Return the settings as TensorBoard's table of runs takes them: under short names, and plain values only."""
    flat: dict[str, object] = {"caveat": config.caveat or ""}
    for section, value in config.model_dump(mode="json").items():
        inner = value if isinstance(value, dict) else {section: value}
        flat |= {section if key == "name" else key: item for key, item in inner.items()}
    return {key: item if isinstance(item, str | float | int) else str(item) for key, item in flat.items()}


def unwritable(error: OSError) -> VaecliError:
    """Return an error that names the file which could not be written."""
    return VaecliError(f"{error.filename or 'the run directory'}: cannot be written: {error.strerror or error}")
