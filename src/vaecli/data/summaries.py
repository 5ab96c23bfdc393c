"""What takes all images to know: their checksums and their mean, which the user's cache keeps for large files."""

import hashlib
import json
import re
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Float, UInt8
from numpy.typing import NDArray

from vaecli.config.data_sets import is_array
from vaecli.data.sources import array_path
from vaecli.errors import DataError
from vaecli.files import cache_directory, write_json
from vaecli.stages import StageCallback, silent

T = TypeVar("T")
LARGE = 2**28
"""Bytes of a file of which is kept what was computed; of a smaller one that takes less than a second."""
SETTLED = 2.0
"""Seconds for which a file must have stayed as it is: until then a change may leave its time of change the same."""
CHUNK = 2**24
"""Bytes that are read between two words on how far it is."""
AVERAGED, BLOCKS = 1_000_000, 1000
"""Of how many images a mean is taken at most, and in how many blocks, evenly spaced, these lie among more."""


def fingerprint(name: str, on_stage: StageCallback = silent) -> str | None:
    """Return the SHA-256 of an array's file, None for data sets that have checksums of their own. Raises DataError."""
    if not is_array(name):
        return None
    try:
        return _sha256_of_file(array_path(name), on_stage)
    except OSError as error:
        raise DataError(
            f"{name}: {'no such file' if isinstance(error, FileNotFoundError) else error.strerror}"
        ) from error


def sha256_of_images(
    pixels: NDArray[Any], origin: tuple[Path, str] | None = None, on_stage: StageCallback = silent
) -> str:
    """Return the SHA-256 of the pixels of images, by which a checkpoint knows them.

    Args:
        pixels: In one piece.
        origin: The file that they are in, and which of its images they are.
        on_stage: Is called as the checksum is computed.
    """

    def compute() -> str:
        digest, values = hashlib.sha256(), memoryview(pixels.data).cast("B")
        for start in range(0, len(values), CHUNK):
            digest.update(values[start : start + CHUNK])
            on_stage("computing the checksum of the training images", min(start + CHUNK, len(values)), len(values))
        return digest.hexdigest()

    return compute() if origin is None else remembered(*origin, compute, _is_sha256)


def mean_image(
    pixels: UInt8[NDArray[np.uint8], "N D"],
    origin: tuple[Path, str] | None = None,
    on_stage: StageCallback = silent,
) -> Float[NDArray[np.float32], " D"]:
    """Return the mean image, in units of the 0..1 pixel: of all, or of `AVERAGED` in evenly spaced `BLOCKS`.

    Args:
        pixels: Of the images.
        origin: As for `sha256_of_images`.
        on_stage: Is called as the images are summed.
    """
    n, size, starts = len(pixels), 10_000, list(range(0, len(pixels), 10_000))
    if n > AVERAGED:
        size = AVERAGED // BLOCKS
        starts = [i * (n - size) // (BLOCKS - 1) for i in range(BLOCKS)]

    def compute() -> list[int]:
        total = np.zeros(pixels.shape[1], np.uint64)
        for i, start in enumerate(starts, 1):
            total += pixels[start : start + size].sum(0, dtype=np.uint64)
            on_stage("computing the mean image", i, len(starts))
        return [int(value) for value in total]

    def is_sum(kept: Any) -> bool:
        return isinstance(kept, list) and len(kept) == pixels.shape[1] and all(type(value) is int for value in kept)

    total = (
        compute()
        if origin is None
        else remembered(origin[0], f"sum over {len(starts)} times {size} of {origin[1]}", compute, is_sum)
    )
    return (np.array(total, np.float64) / (255 * min(n, size * len(starts)))).astype(np.float32)


def _sha256_of_file(path: Path, on_stage: StageCallback) -> str:
    def compute() -> str:
        digest, done, total = hashlib.sha256(), 0, path.stat().st_size
        buffer = memoryview(bytearray(CHUNK))
        with path.open("rb", buffering=0) as file:
            while n := file.readinto(buffer):
                digest.update(buffer[:n])
                done += n
                on_stage(f"computing the checksum of {path.name}", min(done, total), total)
        return digest.hexdigest()

    return remembered(path, "file", compute, _is_sha256)


def _is_sha256(kept: Any) -> bool:
    return isinstance(kept, str) and re.fullmatch("[0-9a-f]{64}", kept) is not None


def remembered(path: Path, what: str, compute: Callable[[], T], is_sound: Callable[[Any], bool]) -> T:
    """Return what is computed of a large file, from the cache if the file is the same: size, time of change and inode.

    Args:
        path: The file.
        what: Of the file is meant.
        compute: Does it; is called where the cache has no answer, or none that can be used.
        is_sound: Says whether what was kept can be an answer.

    Raises:
        OSError: The file is not there.
    """
    before = _state_of(path, what)
    if before["size"] < LARGE or time.time_ns() - before["mtime_ns"] < SETTLED * 1e9:
        return compute()
    name = hashlib.sha256(f"{before['path']}\0{what}".encode(errors="surrogateescape")).hexdigest()
    with suppress(OSError, ValueError, RecursionError, RuntimeError):  # no cache, no home, or nothing to be read
        kept = json.loads((cache_directory() / "images" / f"{name}.json").read_text())
        if isinstance(kept, dict) and kept.keys() == {*before, "value"} and is_sound(kept["value"]):
            value: T = kept.pop("value")
            if kept == before:
                return value
    found = compute()
    if _state_of(path, what) == before:
        with suppress(OSError, ValueError, RuntimeError):
            directory = cache_directory() / "images"
            directory.mkdir(parents=True, exist_ok=True)
            write_json(directory / f"{name}.json", before | {"value": found})
    return found


def _state_of(path: Path, what: str) -> dict[str, Any]:
    found = path.stat()
    return {
        "path": str(path.resolve()),
        "what": what,
        "size": found.st_size,
        "mtime_ns": found.st_mtime_ns,
        "device": found.st_dev,
        "inode": found.st_ino,
    }
