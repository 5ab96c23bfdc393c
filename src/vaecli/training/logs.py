"""The append-only logs of a run, and the pictures in them.

The logs are metrics.jsonl and TensorBoard's event files, over the number of images seen. Each is one file that is
written in order and can be cut back to a recorded length, so that a resumed run leaves the same curves as one that was
never stopped.
"""

import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from io import BufferedWriter
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from numpy.typing import NDArray
from PIL import Image
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard import summary

from vaecli.data.dataset import Images
from vaecli.data.image_grid import ImageShape, as_seen, grid, paired_grid
from vaecli.data.preprocess import Preprocess
from vaecli.errors import VaecliError
from vaecli.files import finite, unshare, write_atomically, write_text
from vaecli.model.vae import VAE


class EventLog:
    """Append to one TensorBoard event file."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.file = self.path.open("ab")
        self._records = RecordWriter(self.file)
        if self.path.stat().st_size == 0:
            self._write(Event(file_version="brain.Event:2"))

    def scalars(self, values: Mapping[str, float], images: int, caveat: str | None = None) -> None:
        """Add one point of each tag; a caveat is shown beside the tags' names."""
        for tag, value in values.items():
            point = summary.scalar(tag, value)
            if caveat is not None:
                point.value[0].metadata.display_name = f"{tag} ({caveat})"
            self._add(point, images)

    def bars(self, tag: str, heights: Sequence[float], images: int) -> None:
        """Add a histogram whose bar i, from i to i + 1, has the i-th height."""
        edges = range(1, len(heights) + 1)
        total = sum(heights)
        self._add(summary.histogram_raw(tag, 0, len(heights), total, total, total, list(edges), list(heights)), images)

    def image(self, tag: str, picture: NDArray[np.uint8], images: int) -> None:
        """Add a picture, in grey (h, w) or in colour (h, w, 3)."""
        self._add(summary.image(tag, picture, dataformats="HWC"[: picture.ndim]), images)

    def text(self, tag: str, markdown: str) -> None:
        """Add a page of text."""
        self._add(summary.text(tag, markdown), 0)

    def hparams(self, settings: Mapping[str, str | float | bool], metrics: Mapping[str, float]) -> None:
        """Add the settings of the run, and the tags by which runs are compared."""
        for part in summary.hparams(dict(settings), dict(metrics)):
            self._add(part, 0)

    def _add(self, content: Summary, images: int) -> None:
        self._write(Event(summary=content, step=images))

    def _write(self, event: Event) -> None:
        event.wall_time = time.time()
        self._records.write(event.SerializeToString())


class RunLogs:
    """Append to all logs of a run.

    Args:
        directory: The run's.
        names: The paths below it of metrics.jsonl and of the event files of train and validation, in this order.
        lengths: Bytes to cut each log back to; logs that are not named are emptied.

    Raises:
        VaecliError: A log is shorter than that.
    """

    def __init__(self, directory: Path, names: Sequence[str], lengths: Mapping[str, int]) -> None:
        self._directory = directory
        metrics, train, validation = (directory / name for name in names)
        self._truncate(names, lengths)
        with ExitStack() as opened:
            self._metrics = opened.enter_context(metrics.open("ab"))
            self.train = EventLog(train)
            opened.callback(self.train.file.close)
            self.validation = EventLog(validation)
            opened.callback(self.validation.file.close)
            self._opened = opened.pop_all()

    def row(self, values: Mapping[str, object]) -> None:
        """Append one line to metrics.jsonl."""
        self._metrics.write((json.dumps(finite(dict(values))) + "\n").encode())

    def flush(self) -> None:
        """Hand everything to the system, so that readers see it."""
        for file in self._files:
            file.flush()

    def lengths(self) -> dict[str, int]:
        """Flush everything to the disk and return the bytes of each log, by its path in the run."""
        found = {}
        for file in self._files:
            file.flush()
            os.fsync(file.fileno())
            found[str(Path(file.name).relative_to(self._directory))] = file.tell()
        return found

    def close(self) -> None:
        """Flush and close all, even if one cannot be flushed."""
        self._opened.close()

    @property
    def _files(self) -> tuple[BufferedWriter, ...]:
        return (self._metrics, self.train.file, self.validation.file)

    def _truncate(self, names: Sequence[str], lengths: Mapping[str, int]) -> None:
        logs = [self._directory / name for name in names]
        for name, log in zip(names, logs, strict=True):
            if (log.stat().st_size if log.exists() else 0) < lengths.get(name, 0):
                raise VaecliError(
                    f"{log}: is shorter than when the checkpoint was written, so that the run cannot go on with the "
                    "same curves; start a new run from its weights with --init-from"
                )
        for name, log in zip(names, logs, strict=True):
            if log.exists():
                unshare(log)
                os.truncate(log, lengths.get(name, 0))


def reconstruction_picture(
    vae: VAE, images: Images, preprocess: Preprocess, generator: torch.Generator
) -> UInt8[NDArray[np.uint8], "h w *c"]:
    """Lay out images above their reconstructions.

    Args:
        vae: The model, on the images' device.
        images: To reconstruct.
        preprocess: Turns pixels into x.
        generator: What that draws from.
    """
    originals = images.pixels.float() / 255
    reconstructions = vae.reconstruct(preprocess(images.pixels, generator, images.labels).input)
    shape = (-1, *images.shape.picture)
    return paired_grid(originals.cpu().reshape(shape).numpy(), reconstructions.cpu().reshape(shape).numpy())


def prior_picture(
    vae: VAE, shape: ImageShape, n: int, generator: torch.Generator
) -> UInt8[NDArray[np.uint8], "h w *c"]:
    """Lay out n samples from the prior."""
    return grid(vae.sample(n, generator).cpu().reshape(-1, *shape.picture).numpy(), columns=10)


PROJECTED = 1000
"""Test images that TensorBoard's projector shows at most."""
PROJECTOR_CONFIG = """\
embeddings {{
  tensor_name: "posterior means of test images"
  tensor_path: "embedding.tsv"
{more}}}
"""
OF_LABELS = """\
  metadata_path: "labels.tsv"
"""
OF_THUMBNAILS = """\
  sprite {{
    image_path: "thumbnails.png"
    single_image_dim: {width}
    single_image_dim: {height}
  }}
"""


@torch.no_grad()
def write_projector(
    directory: Path, vae: VAE, images: Images, preprocess: Preprocess, generator: torch.Generator
) -> None:
    """Write what TensorBoard's projector shows: posterior means, with labels, and thumbnails of what are images.

    Args:
        directory: Where the event files of the run are.
        vae: The model, on the images' device.
        images: At least two, and no more than PROJECTED.
        preprocess: Turns pixels into x.
        generator: What that draws from.
    """
    means = vae.encoder(preprocess(images.pixels, generator, images.labels).input).mean.cpu().numpy()
    # Of fewer than three dimensions the projector finds no principal components, and shows nothing.
    means = np.pad(means, [(0, 0), (0, max(0, 3 - means.shape[1]))])
    rows = "\n".join("\t".join(f"{value:.5g}" for value in row) for row in means)
    write_text(directory / "embedding.tsv", rows + "\n")
    more = ""
    if images.labels is not None:
        write_text(directory / "labels.tsv", "\n".join(map(str, images.labels.tolist())) + "\n")
        more += OF_LABELS
    if vae.units is None:
        width, height = _write_thumbnails(directory, images)
        more += OF_THUMBNAILS.format(width=width, height=height)
    write_text(directory / "projector_config.pbtxt", PROJECTOR_CONFIG.format(more=more))


def _write_thumbnails(directory: Path, images: Images) -> tuple[int, int]:
    """Write pictures of the images, and return the width and the height of one."""
    columns = math.ceil(math.sqrt(len(images)))  # the projector wants a square of thumbnails with nothing between
    pixels = as_seen((images.pixels.reshape(-1, *images.shape.picture).float() / 255).cpu().numpy())
    height, width = pixels.shape[1:3]
    thumbnails = grid(pixels, columns, gap=0)
    if thumbnails.ndim == 2:
        thumbnails = 255 - thumbnails  # grey on the projector's white
    write_atomically(
        directory / "thumbnails.png", lambda file: Image.fromarray(thumbnails).save(file, format="PNG", optimize=True)
    )
    return width, height
