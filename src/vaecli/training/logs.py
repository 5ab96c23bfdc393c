"""The append-only logs of a run: metrics.jsonl and TensorBoard's event files, over the number of images seen.

Each is one file that is written in order and can be cut back to a recorded length, so that a resumed run leaves the
same curves as one that was never stopped.
"""

import json
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from io import BufferedWriter
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard import summary

from vaecli.errors import VaecliError
from vaecli.files import finite
from vaecli.runs.run import EVENTS, LOGS


class EventLog:
    """One TensorBoard event file, appended to."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.path = directory / EVENTS
        self.file = self.path.open("ab")
        self._records = RecordWriter(self.file)
        if self.path.stat().st_size == 0:
            self._write(Event(file_version="brain.Event:2"))

    def scalars(self, values: Mapping[str, float], images: int, caveat: str | None = None) -> None:
        """One point of each tag; a caveat is shown beside the tags' names."""
        for tag, value in values.items():
            point = summary.scalar(tag, value)
            if caveat is not None:
                point.value[0].metadata.display_name = f"{tag} ({caveat})"
            self._add(point, images)

    def bars(self, tag: str, heights: Sequence[float], images: int) -> None:
        """A histogram whose bar i, from i to i + 1, has the i-th height."""
        edges = range(1, len(heights) + 1)
        total = sum(heights)
        self._add(summary.histogram_raw(tag, 0, len(heights), total, total, total, list(edges), list(heights)), images)

    def image(self, tag: str, picture: NDArray[np.uint8], images: int) -> None:
        """A grey picture of shape (h, w)."""
        self._add(summary.image(tag, picture, dataformats="HW"), images)

    def text(self, tag: str, markdown: str) -> None:
        """A page of text."""
        self._add(summary.text(tag, markdown), 0)

    def hparams(self, settings: Mapping[str, str | float | bool], metrics: Mapping[str, float]) -> None:
        """The settings of the run, and the tags by which runs are compared."""
        for part in summary.hparams(dict(settings), dict(metrics)):
            self._add(part, 0)

    def _add(self, content: Summary, images: int) -> None:
        self._write(Event(summary=content, step=images))

    def _write(self, event: Event) -> None:
        event.wall_time = time.time()
        self._records.write(event.SerializeToString())


class RunLogs:
    """All append-only logs of a run.

    Args:
        directory: The run's.
        lengths: Bytes to cut each log back to; logs that are not named are emptied.

    Raises:
        VaecliError: A log is shorter than that.
    """

    def __init__(self, directory: Path, lengths: Mapping[str, int]) -> None:
        self._directory = directory
        self._truncate(lengths)
        with ExitStack() as opened:
            self._metrics = opened.enter_context((directory / "metrics.jsonl").open("ab"))
            self.train = EventLog(directory / "tensorboard" / "train")
            opened.callback(self.train.file.close)
            self.validation = EventLog(directory / "tensorboard" / "validation")
            opened.callback(self.validation.file.close)
            self._opened = opened.pop_all()

    def row(self, values: Mapping[str, object]) -> None:
        """Append one line to metrics.jsonl."""
        self._metrics.write((json.dumps(finite(dict(values))) + "\n").encode())

    def flush(self) -> None:
        """Let readers see everything."""
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

    def _truncate(self, lengths: Mapping[str, int]) -> None:
        logs = [self._directory / name for name in LOGS]
        for name, log in zip(LOGS, logs, strict=True):
            if (log.stat().st_size if log.exists() else 0) < lengths.get(name, 0):
                raise VaecliError(
                    f"{log}: is shorter than when the checkpoint was written, so that the run cannot go on with the "
                    "same curves; start a new run from its weights with --init-from"
                )
        for name, log in zip(LOGS, logs, strict=True):
            if log.exists():
                os.truncate(log, lengths.get(name, 0))
