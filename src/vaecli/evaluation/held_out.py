"""What is evaluated: the model of one checkpoint, and the held-out images as it sees them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Int64, Shaped
from torch import Tensor

from vaecli import devices
from vaecli.config.jobs import EvaluationSpec
from vaecli.config.schema import Config
from vaecli.data.dataset import Dataset, Images
from vaecli.data.preprocess import Batch, binarize_dynamically, build_preprocess
from vaecli.data.summaries import fingerprint
from vaecli.errors import DataError, UsageError, VaecliError
from vaecli.files import write_atomically, write_json
from vaecli.model.vae import VAE
from vaecli.products import use_library
from vaecli.randomness import Stream, generator
from vaecli.runs.run import Run
from vaecli.stages import StageCallback, silent

ROWS = {"cpu": 1000}
"""Samples decoded at a time: on a CPU few enough that a decoder's outputs stay in the cache."""
ROWS_ELSEWHERE = 100_000


@dataclass(frozen=True)
class HeldOut:
    """Hold a model and the images that it is evaluated on."""

    run: Run
    vae: VAE
    images: Images
    """As the run sees them: binarised already where that is done once."""
    grey_pixels: Shaped[Tensor, "N D"]
    spec: EvaluationSpec
    callback: StageCallback

    @property
    def config(self) -> Config:
        """Return the run's config."""
        return self.run.config

    @property
    def rows(self) -> int:
        """Return how many samples are decoded at a time."""
        return rows_at_once(self.vae.device)

    @cached_property
    def batch(self) -> Batch:
        """Return the images as the model takes them, by random numbers that are the same for every run."""
        preprocess = build_preprocess(self.config.support, self.config.data, self.config.model.n_classes)
        return preprocess(self.images.pixels, self.generator("evaluation"), self.images.labels)

    @cached_property
    def binary_batch(self) -> Batch:
        """Return the same images for the encoder, to be scored as one dynamic binarisation, the same for every run."""
        b = binarize_dynamically(self.grey_pixels, self.generator("evaluation"))
        return Batch(self.batch.input, b.target)

    def generator(self, stream: Stream) -> torch.Generator:
        """Return a generator of evaluation's own random numbers."""
        return generator(self.spec.seed, stream, self.vae.device)

    def metadata(self) -> dict[str, Any]:
        """Return what every result of an evaluation says of its origin."""
        return {
            "run": self.run.name,
            "checkpoint": f"{self.run.checkpoint_path.stem} at step {self.run.checkpoint.progress.step}",
            "split": self.spec.split,
            "n_images": len(self.images),
            "seed": self.spec.seed,
            "decoder": self.config.model.decoder,
            "support": self.config.support.value,
            "observed": self.config.observed,
            "is_likelihood": self.config.is_likelihood,
            "caveat": self.config.caveat,
        }


class Part(NamedTuple):
    """Hold some images and their model."""

    rows: Int64[Tensor, " b"]
    """Which they are among all."""
    vae: VAE
    batch: Batch


def in_parts(vae: VAE, batch: Batch, size: int) -> Iterator[Part]:
    """Yield all images, at most so many at a time, with their model.

    Where the model is told the class, a part has images of one class and the model is that of this class, so that any
    z may be decoded by it.
    """
    n = len(batch.target)
    if not vae.n_classes:
        for rows in torch.arange(n).split(size):
            yield Part(rows, vae, batch.at(slice(int(rows[0]), int(rows[-1]) + 1)))
        return
    classes = batch.input[:, -vae.n_classes :].argmax(1).cpu()
    for which in classes.unique():
        for rows in (classes == which).nonzero().flatten().split(size):
            part = batch.at(rows.to(batch.input.device))
            yield Part(rows, vae.given(part.input[0]), part)


def in_order(parts: Sequence[Tensor], rows: Sequence[Tensor]) -> Tensor:
    """Return what was found of each part, along the first axis, in the order of all images."""
    return torch.cat(list(parts))[torch.cat(list(rows)).argsort()]


def open_held_out(
    run: Run, spec: EvaluationSpec, device: str, data_dir: Path | None, callback: StageCallback | None
) -> HeldOut:
    """Load a run's model and the images to evaluate it on.

    Raises:
        UsageError: The split has no images, or the device is not there.
        DataError: The images cannot be read.
        VaecliError: The checkpoint cannot be used.
    """
    run, vae = open_model(run, device, spec.checkpoint)  # checked before images are read
    place, on_stage = vae.device, callback or silent
    dataset = open_dataset(run, vae, data_dir, on_stage)
    images = dataset.split(spec.split)
    if len(images) == 0:
        raise UsageError(f"{run.name}: its {spec.split} split has no images")
    grey_pixels = dataset.in_grey().split(spec.split).spread(spec.limit).to(place).pixels
    return HeldOut(run, vae, images.spread(spec.limit).to(place), grey_pixels, spec, on_stage)


def open_dataset(run: Run, vae: VAE, data_dir: Path | None, on_stage: StageCallback = silent) -> Dataset:
    """Return the data of a run.

    Raises:
        DataError: The file has changed since. What is held out of it goes by position, so that these may be images that
            were trained on; of a checkpoint by itself, only vectors of other units are told.
    """
    name, was = run.config.data.name, run.environment.get("data_sha256")
    changed = was is not None and fingerprint(name, on_stage) != was
    dataset = Dataset(run.config.data, run.config.support, data_dir, on_stage)
    if not changed and vae.units is not None and dataset.units is not None:
        changed = not vae.units.agree(dataset.units)
    if changed:
        raise DataError(
            f"{name}: has changed since {run.name} was trained on it; put the file back, or train on this one"
        )
    return dataset


def open_model(run: Run, device: str, checkpoint: Literal["best", "last"] = "best") -> tuple[Run, VAE]:
    """Load a run's model, and return the run at the checkpoint that it is of.

    Raises:
        UsageError: The device is not there.
        VaecliError: The checkpoint cannot be used.
    """
    run, place = _evaluable(run).at(checkpoint), devices.resolve_device(device)
    devices.flush_subnormals()
    devices.allow_tf32(place, allowed=False)
    vae = run.checkpoint.build_vae().to(place).requires_grad_(requires_grad=False)
    use_library(vae, devices.choose_library(run.config.training.products, place))
    return run, vae


def rows_at_once(device: torch.device) -> int:
    """Return how many samples are decoded at a time."""
    return ROWS.get(device.type, ROWS_ELSEWHERE)


def _evaluable(run: Run) -> Run:
    """Return the run at the checkpoint to evaluate: of one that is still training, its newest."""
    state = run.status.get("state")
    if run.file is None and state in {"failed", "diverged"}:
        raise VaecliError(
            f"{run.path}: {state}: {run.status.get('reason')}; name a checkpoint file to evaluate it anyway"
        )
    return Run(run.path, run.last) if run.file is None and run.is_training else run


def prepare_directory(path: Path) -> None:
    """Check that results can be written: better known before hours of work than after. Raises VaecliError."""
    try:
        path.parent.mkdir(exist_ok=True)
        with TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise VaecliError(f"{path.parent}: cannot be written: {error.strerror}") from error


def write_results(path: Path, content: dict[str, Any], per_image: dict[str, Tensor]) -> None:
    """Write metrics as JSON, and beside them those of every image as .npz. Raises VaecliError."""
    arrays: dict[str, Any] = {name: value.cpu().numpy() for name, value in per_image.items()}
    try:
        write_atomically(path.with_suffix(".npz"), lambda file: np.savez_compressed(file, **arrays))
        write_json(path, content)
    except OSError as error:
        raise VaecliError(f"{path}: cannot be written: {error.strerror}") from error
