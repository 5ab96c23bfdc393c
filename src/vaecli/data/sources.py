"""Where images come from: the embedded MNIST, torchvision's data sets, and arrays of one's own."""

import gzip
import hashlib
import importlib
import lzma
import math
import os
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vaecli.config.data_sets import TORCHVISION
from vaecli.data.unpacking import RATIOS, check_unpacked, read_member
from vaecli.data.vectors import check_vectors
from vaecli.errors import DataError, UsageError, some
from vaecli.files import cache_directory, may_be_file

Part = Literal["train", "test"]
Kind = Literal["images", "vectors"]
Pixels = NDArray[np.uint8]
Labels = NDArray[np.int64]

MAX_COLOURS = 4
"""Channels of a picture at most, as such are: where there are more, and few rows, channels have come first."""
UNSIGNED_BYTES = 0x08
"""The type of an IDX file's values."""
_MNIST = Path(__file__).parent / "mnist"
MNIST_SHA256 = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}


@dataclass(frozen=True)
class Source:
    """Hold images as they were found: `pixels` (N, H, W) or (N, H, W, C), and `labels` (N,) where there are any.

    Vectors stand in their place as they are in the file, (N, D).
    """

    pixels: NDArray[Any]
    labels: Labels | None = None


def load_mnist(part: Part) -> Source:
    """Load the embedded MNIST, checked against the SHA-256 of its files. Raises DataError."""
    prefix = "train" if part == "train" else "t10k"
    return Source(_idx(f"{prefix}-images-idx3-ubyte"), _idx(f"{prefix}-labels-idx1-ubyte").astype(np.int64))


def _idx(name: str) -> Pixels:
    path = _MNIST / f"{name}.xz"
    try:
        content = lzma.decompress(path.read_bytes())
    except (OSError, lzma.LZMAError, EOFError) as error:
        raise DataError(f"{path}: cannot be read ({error}); install vaecli again") from error
    if hashlib.sha256(content).hexdigest() != MNIST_SHA256[name]:
        raise DataError(f"{path}: is not the file that was shipped (SHA-256 differs); install vaecli again")
    n_axes = content[3]
    return np.frombuffer(content, np.uint8, offset=4 + 4 * n_axes).reshape(_idx_shape(content))


def _idx_shape(header: bytes) -> tuple[int, ...]:
    """Return the shape in the header of an IDX file: two zeros, the type, the number of axes, the length of each."""
    return tuple(map(int, np.frombuffer(header, ">u4", count=header[3], offset=4)))


def _read_idx(path: Path, n_axes: int) -> Pixels:
    """Read an IDX file of unsigned bytes, gzipped or not; its header bounds the memory that it takes.

    Raises:
        DataError: It cannot be read, is of another kind, or is not as large as its header says.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as start:
            packed = start.read(2) == b"\x1f\x8b"
        with gzip.open(path) if packed else path.open("rb") as file:
            header = file.read(4 + 4 * n_axes)
            if len(header) < 4 + 4 * n_axes or header[:4] != bytes([0, 0, UNSIGNED_BYTES, n_axes]):
                raise DataError(f"{path}: is not an IDX file of unsigned bytes along {n_axes} axes")
            shape = _idx_shape(header)
            length = math.prod(shape)
            ratio = RATIOS[zipfile.ZIP_DEFLATED] if packed else 1
            if length <= size * ratio:
                check_unpacked(path, length, size)
            content = file.read(length + 1) if length <= size * ratio else b""
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: not a readable IDX file ({_first_line(error)})") from error
    if len(content) != length:
        raise DataError(f"{path}: is not as large as its header says: {' x '.join(map(str, shape))} bytes")
    return np.frombuffer(content, np.uint8).reshape(shape)


def _load_idx(path: Path) -> Source:
    """Load the images of an IDX file, with the labels of the file of the matching name. Raises DataError."""
    pixels = _checked(_read_idx(path, 3), str(path))
    beside = labels_beside(path)
    labels = None if beside is None else _read_idx(beside, 1)
    if labels is not None and len(labels) != len(pixels):
        raise DataError(f"{beside}: holds {len(labels)} labels; {path.name} holds {len(pixels)} images")
    return Source(pixels, None if labels is None else labels.astype(np.int64))


def labels_beside(path: Path) -> Path | None:
    """Return the file with the labels of an IDX file of images, by its name; None for others and where none is."""
    name = path.name.removesuffix(".gz")
    stem = name.replace("images", "labels").replace("idx3", "idx1")
    return _find_idx(path.with_name(stem)) if name.endswith("-ubyte") and stem != name else None


def _find_idx(path: Path) -> Path | None:
    """Return a file that is there under this name or gzipped; None if there is neither."""
    return next((file for file in (path, path.with_name(f"{path.name}.gz")) if may_be_file(file)), None)


def default_data_dir() -> Path:
    """Return `VAECLI_DATA_DIR`, or a folder in the user's cache."""
    return Path(os.environ.get("VAECLI_DATA_DIR") or cache_directory() / "data")


def load_torchvision(name: str, part: Part, directory: Path) -> Source:
    """Load a torchvision data set, from `directory` if its files are there, else downloaded. Raises DataError."""
    source = _find_torchvision(name, part, directory) or _download_torchvision(name, part, directory)
    if name.startswith("emnist-"):
        source = Source(np.ascontiguousarray(source.pixels.transpose(0, 2, 1)), source.labels)  # stored transposed
    return source


def _find_torchvision(name: str, part: Part, directory: Path) -> Source | None:
    """Load a data set from torchvision's folders, whoever packed its files; None where they are not there."""
    emnist = name.startswith("emnist-")
    prefix = f"{name}-{part}" if emnist else "train" if part == "train" else "t10k"
    raw = directory / TORCHVISION[name] / "raw"
    images, labels = (_find_idx(raw / f"{prefix}-{kind}-ubyte") for kind in ("images-idx3", "labels-idx1"))
    if images is None or labels is None:
        return None
    try:
        return _load_idx(images)
    except DataError as error:
        raise DataError(f"{name}: {error}; replace that file, or delete it to download it again") from error


def _download_torchvision(name: str, part: Part, directory: Path) -> Source:
    """Download what is missing of a data set, checked by torchvision. Raises DataError."""
    try:
        datasets = importlib.import_module("torchvision.datasets")
    except (ImportError, RuntimeError, OSError) as error:
        raise DataError(
            f"{name}: needs torchvision, which cannot be imported here ({_first_line(error)}); "
            f"install the release that matches torch: pip install '{_matching_torchvision()}'"
        ) from error
    arguments: dict[str, Any] = {"root": directory, "train": part == "train"}
    if name.startswith("emnist-"):
        arguments["split"] = name.removeprefix("emnist-")
    cls = getattr(datasets, TORCHVISION[name])
    try:
        found = _construct(cls, arguments, directory)
        pixels, labels = found.data.numpy(), found.targets.numpy()
    except Exception as error:  # torchvision passes on the errors of sockets, archives and parsers
        raise DataError(
            f"{name}: cannot be read from {directory}, nor downloaded ({_first_line(error)}); "
            "put torchvision's files there (--data-dir or VAECLI_DATA_DIR)"
        ) from error
    if len(labels) != len(pixels):
        raise DataError(f"{name}: holds {len(labels)} labels and {len(pixels)} images in {directory}; delete its files")
    return Source(_checked(pixels, name), labels.astype(np.int64))


def _construct(cls: Any, arguments: dict[str, Any], directory: Path) -> Any:
    try:
        return cls(**arguments, download=False)
    except RuntimeError:  # torchvision raises it where a file is missing
        directory.mkdir(parents=True, exist_ok=True)
        return cls(**arguments, download=True)


def _matching_torchvision() -> str:
    """Return the torchvision that goes with the installed torch: 2.N and 0.(N + 15) belong together."""
    try:
        return f"torchvision==0.{int(version('torch').split('.')[1]) + 15}.*"
    except (PackageNotFoundError, ValueError, IndexError):
        return "torchvision"


_stand_ins: dict[str, Path] = {}


def stand_in(name: str, path: Path) -> None:
    """Read the array `name` from another path, in this process: a copy on a machine that has it nowhere else."""
    _stand_ins[name] = path


def array_path(name: str) -> Path:
    """Return the file of the array `name`, or what stands in for it."""
    return _stand_ins.get(name, Path(name))


def load_array(name: str, kind: Kind = "images") -> Source:
    """Load a .npy, .npz or IDX file of uint8 images, with the labels of the last two; or one of vectors, not IDX.

    Raises:
        DataError: It cannot be read, or holds something else.
    """
    path = array_path(name)
    if path.suffix not in {".npy", ".npz"}:
        return _load_idx(path)
    try:
        return _read_npy(path, CHECKS[kind]) if path.suffix == ".npy" else _read_npz(path, kind)
    except (DataError, UsageError):
        raise
    except FileNotFoundError as error:
        raise DataError(f"{name}: no such file") from error
    except Exception as error:  # numpy and zipfile share no error for a damaged file
        raise DataError(f"{name}: not a readable {path.suffix} file ({_first_line(error)})") from error


def _read_npy(path: Path, check: Callable[[Any, str], NDArray[Any]]) -> Source:
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    if not isinstance(array, np.ndarray):
        raise DataError(f"{path}: is an archive of arrays; name it .npz")
    return Source(check(array, str(path)))


def _read_npz(path: Path, kind: Kind) -> Source:
    with path.open("rb") as file:
        archive = np.load(file, allow_pickle=False)
        if isinstance(archive, np.ndarray):
            raise DataError(f"{path}: is a single array; name it .npy")
        key = kind if kind in archive.files else archive.files[0] if len(archive.files) == 1 else None
        if key is None:
            other = next((f", or set data.kind={name}" for name in CHECKS if name in archive.files), "")
            raise DataError(f"{path}: holds {some(archive.files)}; name the array `{kind}`{other}")
        pixels = CHECKS[kind](read_member(archive, key, path), str(path))
        labels = read_member(archive, "labels", path) if "labels" in archive.files else None
    if labels is not None and (labels.shape != pixels.shape[:1] or labels.dtype.kind not in "iu"):
        raise DataError(f"{path}: `labels` must be {len(pixels)} integers, not {labels.dtype} of shape {labels.shape}")
    return Source(pixels, None if labels is None else labels.astype(np.int64))


def _checked(pixels: Any, name: str) -> Pixels:
    if pixels.dtype != np.uint8 or pixels.ndim not in {3, 4} or 0 in pixels.shape:
        remedy = 'convert them with (255 * x).round().astype("uint8")' if pixels.dtype.kind == "f" else ""
        remedy = f"if they lie in 0..1, {remedy}" if remedy and pixels.ndim > 2 else remedy
        if pixels.ndim == 2 and pixels.dtype.kind in "fiu":
            remedy = "vectors have data.kind=vectors"
        raise DataError(
            f"{name}: holds {pixels.dtype} of shape {tuple(pixels.shape)}; images are uint8 of shape (N, H, W), or in "
            "colour (N, H, W, C)" + (f"; {remedy}" if remedy else "")
        )
    if pixels.ndim == 4 and pixels.shape[1] <= MAX_COLOURS < pixels.shape[3]:
        raise DataError(
            f"{name}: holds images of shape {tuple(pixels.shape)}, whose channels seem to come first; they come last, "
            "(N, H, W, C): convert them with x.transpose(0, 2, 3, 1)"
        )
    return np.ascontiguousarray(pixels)


CHECKS: dict[Kind, Callable[[Any, str], NDArray[Any]]] = {"images": _checked, "vectors": check_vectors}
"""What an array must hold, and is taken as."""


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
