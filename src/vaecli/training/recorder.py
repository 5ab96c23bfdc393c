"""What a run leaves behind while it trains: curves, pictures, checkpoints, status, and news for whoever watches."""

import math
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vaecli.config.loading import dump_config
from vaecli.config.schema import Config
from vaecli.data.dataset import Images
from vaecli.data.image_grid import grid, paired_grid, save_png
from vaecli.data.observations import Observe
from vaecli.errors import VaecliError
from vaecli.evaluation.generation import reconstruct_images, sample_prior
from vaecli.files import lock, sweep
from vaecli.model.validation import Bound
from vaecli.randomness import generator
from vaecli.runs.checkpoint import Checkpoint, save_checkpoint
from vaecli.runs.run import LOCK, Run
from vaecli.training.logs import RunLogs
from vaecli.training.projector import POINTS, write_projector
from vaecli.training.state import TrainingState

SECONDS_PER_CHECKPOINT = 15.0
SECONDS_PER_STATUS = 1.0
SAMPLES, RECONSTRUCTIONS = 50, 30
"""Images in each picture."""
STATUS_FIGURES = ("epoch", "step", "elbo", "log_likelihood", "kl", "active_units", "pixels_at_floor")


@dataclass(frozen=True)
class Report:
    """News of a run. Bounds are means in nats per image, at KL weight 1."""

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
        """The training bound."""
        return self.log_likelihood - self.kl


Reporter = Callable[[Report], None]


def ignore(report: Report) -> None:
    """Report to nobody."""


class Recorder:
    """Records a stretch of training, from the state's present to the end of the run or wherever it is cut.

    Args:
        run: Where to.
        state: What is recorded; read, never changed but for its best bound.
        lengths: Bytes to cut each log back to.
        report: Is told at every `step` and `end_epoch`.
    """

    def __init__(self, run: Run, state: TrainingState, lengths: Mapping[str, int], report: Reporter = ignore) -> None:
        self._run, self._state, self._config, self._report = run, state, state.config, report
        with ExitStack() as stack:
            try:
                self._lock = stack.enter_context(lock(run.path / LOCK))
                sweep(run.path)
                self._logs = RunLogs(run.path, lengths)
            except BlockingIOError as error:
                raise VaecliError(f"{run.path}: is being trained by another process") from error
            except OSError as error:
                raise _unwritable(error) from error
            stack.pop_all()
        self._is_new = not lengths
        self._best: Checkpoint | None = None
        self._figures: dict[str, object] = _figures(run.metrics)
        self._saved_at = self._noted_at = self._began_at = time.monotonic()
        self._images_before, self._seconds_before = state.progress.images, state.progress.seconds
        self._shown: Images | None = None
        self._observe: Observe | None = None

    def __enter__(self) -> "Recorder":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            with self._lock:
                self._logs.close()
        except OSError as unflushed:
            error = error or unflushed
        if isinstance(error, OSError):
            raise _unwritable(error) from error

    def start(self, images: Images, observe: Observe) -> None:
        """Mark the run as running; at its very beginning, log its settings and keep its first weights.

        Args:
            images: Of which reconstructions are shown.
            observe: How pixels become x.
        """
        shown = images.first(RECONSTRUCTIONS)
        self._shown, self._observe = replace(shown, pixels=shown.pixels.to(self._state.vae.device)), observe
        self.status("running")
        if self._is_new:
            self._logs.validation.text("config", f"```yaml\n{dump_config(self._config)}```")
            self._logs.validation.hparams(hparams(self._config), {"elbo": 0.0, "log_likelihood": 0.0, "kl": 0.0})
            self._logs.train.file.flush()
            self.save()

    def step(self) -> None:
        """Report; in a long epoch, keep a checkpoint now and then."""
        position = self._state.progress.position
        self._report(self._news(position))
        if position < self._state.steps_per_epoch:
            self._save_if_due()

    def end_epoch(self, validation: Bound | None) -> None:
        """Log the epoch's curves and pictures, and keep a checkpoint if it is time."""
        progress = self._state.progress
        news = self._news(self._state.steps_per_epoch, validation)
        row = {
            "split": "train",
            "epoch": progress.epoch,
            "step": progress.step,
            "images": progress.images,
            "seconds": round(progress.seconds, 3),
            "elbo": news.elbo,
            "log_likelihood": news.log_likelihood,
            "kl": news.kl,
            "loss": self._epoch_means(self._state.steps_per_epoch)[0],
        }
        self._logs.row(row)
        curves = {tag: float(row[tag]) for tag in ("elbo", "log_likelihood", "kl")}  # type: ignore[arg-type]
        self._logs.train.scalars(curves, progress.images, self._config.caveat)
        self._logs.train.scalars({"optimizer/learning_rate": progress.learning_rate}, progress.images)
        self._figures |= {
            "epoch": progress.epoch,
            "step": progress.step,
            "images": progress.images,
            "seconds": row["seconds"],
            "train": curves,
        }
        if validation is not None:
            self._end_validation(validation)
        self._log_pictures(progress.epoch)
        self._logs.flush()
        if time.monotonic() - self._noted_at > SECONDS_PER_STATUS:
            self.status("running")
        self._report(news)
        self._save_if_due()

    def save(self) -> None:
        """Write the checkpoints: the best first, so that the last never speaks of a best that is not there."""
        lengths = self._logs.lengths()
        if self._best is not None:
            save_checkpoint(self._run.best, self._best)
            self._best = None
        save_checkpoint(self._run.last, self._state.capture(lengths))
        self._saved_at = time.monotonic()

    def status(self, state: str, reason: str | None = None) -> None:
        """Replace status.json, with the last and best figures."""
        config = self._config
        facts = {
            "identity": config.identity,
            "decoder": config.model.decoder,
            "support": config.model.likelihood.support.value,
            "caveat": config.caveat,
            "data": config.data.name,
            "latent_dim": config.model.latent_dim,
            "seed": config.seed,
            "epochs": config.training.epochs,
        }
        self._noted_at = time.monotonic()
        self._run.write_status(state=state, reason=reason, **(self._figures | facts))

    def finish(self, state: str, test: Images) -> None:
        """Keep the final checkpoint, a picture of samples, test images for TensorBoard's projector, and the status."""
        self.save()
        if len(test) > 1 and self._observe is not None:
            vae, directory = self._state.vae, self._run.path / "tensorboard" / "validation"
            shown = test.first(POINTS)
            shown = replace(shown, pixels=shown.pixels.to(vae.device))
            noise = generator(self._config.seed, "evaluation", vae.device)
            write_projector(directory, vae, shown, self._observe, noise)
        save_png(self._run.path / "samples" / "prior.png", self._prior_picture())
        self.status(state)

    def _end_validation(self, bound: Bound) -> None:
        progress = self._state.progress
        if bound.elbo > progress.best_elbo:
            progress.best_elbo, progress.best_epoch = bound.elbo, progress.epoch
            self._best = self._state.capture({})
        figures = {"elbo": bound.elbo, "log_likelihood": bound.log_likelihood, "kl": bound.kl}
        more: dict[str, float] = {"active_units": bound.active_units}
        diagnostics = {"latent/active_units": float(bound.active_units)}
        if bound.pixels_at_floor is not None:
            more["pixels_at_floor"] = diagnostics["scale/pixels_at_floor"] = bound.pixels_at_floor
        self._logs.row(
            {
                "split": "validation",
                "epoch": progress.epoch,
                "step": progress.step,
                "images": progress.images,
                "seconds": round(progress.seconds, 3),
                **figures,
                **more,
            }
        )
        self._logs.validation.scalars(figures, progress.images, self._config.caveat)
        self._logs.validation.scalars(diagnostics, progress.images)
        heights = sorted(bound.kl_per_dimension.tolist(), reverse=True)
        self._logs.validation.bars("latent/kl_per_dimension", heights, progress.images)
        self._figures["last"] = {"epoch": progress.epoch, "step": progress.step, **figures, **more}
        if progress.best_epoch == progress.epoch:
            self._figures["best"] = self._figures["last"]

    def _log_pictures(self, epoch: int) -> None:
        if epoch % _every(epoch):
            return
        assert self._shown is not None
        assert self._observe is not None
        shown, images = self._shown, self._state.progress.images
        noise = generator(self._config.seed, "samples", shown.pixels.device)
        pair = torch.stack(reconstruct_images(self._state.vae, shown, self._observe, noise)).cpu()
        rows = pair.reshape(2, len(shown), shown.height, shown.width)
        self._logs.validation.image("reconstructions", paired_grid(rows[0].numpy(), rows[1].numpy()), images)
        self._logs.validation.image("prior_samples", self._prior_picture(), images)

    def _prior_picture(self) -> NDArray[np.uint8]:
        state = self._state
        noise = generator(self._config.seed, "samples", state.vae.device)
        images = sample_prior(state.vae, SAMPLES, noise).cpu()
        return grid(images.reshape(-1, state.images.height, state.images.width).numpy(), columns=10)

    def _news(self, position: int, validation: Bound | None = None) -> Report:
        progress, config = self._state.progress, self._config
        ended = progress.position == 0
        _, log_likelihood, kl = self._epoch_means(position)
        images = progress.images - self._images_before
        total = config.training.epochs * len(self._state.images)
        elapsed = time.monotonic() - self._began_at
        return Report(
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
        """Loss, log-likelihood and KL over the images of the epoch's first steps."""
        m, n = self._config.training.batch_size, len(self._state.images)
        weights = torch.full((position,), float(m), dtype=torch.float64)
        if position == self._state.steps_per_epoch:
            weights[-1] = n - m * (position - 1)
        means = weights @ self._state.trace[:position].cpu().double() / weights.sum()
        loss, log_likelihood, kl = means.tolist()
        return loss, log_likelihood, kl

    def _save_if_due(self) -> None:
        if time.monotonic() - self._saved_at > SECONDS_PER_CHECKPOINT:
            self.save()


def _figures(metrics: list[dict[str, Any]]) -> dict[str, object]:
    """The figures of the status, as the rows of metrics.jsonl leave them."""
    found: dict[str, object] = {}
    best: dict[str, Any] | None = None
    for row in metrics:
        figures = {key: row[key] for key in STATUS_FIGURES if key in row}
        if row["split"] == "train":
            curves = {key: row[key] for key in ("elbo", "log_likelihood", "kl")}
            found |= {key: row[key] for key in ("epoch", "step", "images", "seconds")} | {"train": curves}
        else:
            found["last"] = figures
            if row["elbo"] is not None and (best is None or row["elbo"] > best["elbo"]):
                found["best"] = best = figures
    return found


def _every(epoch: int) -> int:
    """Between how many epochs pictures are logged: every one to 5, every 5th to 50, every 50th to 500, and so on."""
    return 1 if epoch <= 5 else 5 * 10 ** max(0, math.ceil(math.log10(epoch / 50)))


def hparams(config: Config) -> dict[str, str | float | bool]:
    """The settings as TensorBoard's table of runs takes them: under short names, and plain values only."""
    flat: dict[str, object] = {"caveat": config.caveat or ""}
    for section, value in config.model_dump(mode="json").items():
        inner = value if isinstance(value, dict) else {section: value}
        flat |= {section if key == "name" else key: item for key, item in inner.items()}
    return {key: item if isinstance(item, str | float | int) else str(item) for key, item in flat.items()}


def _unwritable(error: OSError) -> VaecliError:
    return VaecliError(f"{error.filename or 'the run directory'}: cannot be written: {error.strerror or error}")
