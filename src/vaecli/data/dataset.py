"""Data sets: images as uint8 tensors, their splits, and how their pixels become x.

Splits are the same whatever the seed. Pixels k in 0..255 become x minibatch by minibatch and on the device: binarised,
dequantised or as they are.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from numpy.typing import NDArray
from torch import Tensor

from vaecli.config.data_sets import TORCHVISION, is_array
from vaecli.config.likelihoods import Support
from vaecli.config.schema import DataConfig
from vaecli.data.image_grid import MAX_SIDE, ImageShape
from vaecli.data.sources import (
    Part,
    Source,
    array_path,
    default_data_dir,
    load_array,
    load_mnist,
    load_torchvision,
)
from vaecli.errors import DataError
from vaecli.randomness import draw_int16
from vaecli.stages import StageCallback, silent, wait_for

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)
_STATIC_SEED = 20131220


@dataclass(frozen=True)
class Images:
    """Hold the images of one split."""

    pixels: UInt8[Tensor, "N D"]
    labels: Int64[Tensor, " N"] | None
    shape: ImageShape
    origin: tuple[Path, str] | None = None
    """The file that they are in, and which of its images they are; None for images made otherwise."""
    on_stage: StageCallback = silent
    """Is called as something is computed from all of them; what it raises ends that."""

    def __len__(self) -> int:
        return len(self.pixels)

    def first(self, n: int) -> "Images":
        """Return the first n images."""
        labels = None if self.labels is None else self.labels[:n]
        return replace(self, pixels=self.pixels[:n], labels=labels, origin=None)

    def spread(self, n: int | None) -> "Images":
        """Return n images evenly spaced over all, or all of them: often the first of a split are of one kind."""
        if n is None or n >= len(self):
            return self
        rows = torch.arange(n) * len(self) // n
        return replace(self, pixels=self.pixels[rows], labels=None if self.labels is None else self.labels[rows])

    def to(self, device: torch.device) -> "Images":
        """Return the same images with their pixels on a device."""
        return replace(self, pixels=self.pixels.to(device))


class Dataset:
    """Give access to a named data set and its three splits, each read when it is first asked for.

    Args:
        config: The `data` section; `binarize: static` is applied here, once, if the support is binary.
        support: What the decoder's likelihood is a statement about.
        data_dir: Where torchvision's files are or go; None for the default.
        on_stage: Is called as images are read, binarised and summed; what it raises ends that.

    Raises:
        DataError: The images cannot be read, or are too few for the splits asked for.
    """

    def __init__(
        self, config: DataConfig, support: Support, data_dir: Path | None = None, on_stage: StageCallback = silent
    ) -> None:
        self.name = config.name
        self._on_stage = on_stage
        self._config = config
        self._static = support is Support.BINARY and config.binarize == "static"
        self._data_dir = data_dir or default_data_dir()

    def split(self, name: Split) -> Images:
        """Return the images of a split."""
        images: Images = getattr(self, name)
        return images

    def in_grey(self) -> "Dataset":
        """Return the same images with none binarised beforehand."""
        return Dataset(self._config, Support.LEVELS, self._data_dir, self._on_stage) if self._static else self

    @cached_property
    def train(self) -> Images:
        """Return all training images but the held-out ones, or as many of the first as are asked for."""
        available = self._n_training - self._n_validation
        n = available if self._config.train is None else self._config.train
        if n > available:
            raise DataError(
                f"{self.name}: has {available} images to train on; data.train: {n} is more; "
                "choose fewer, or hold out fewer by data.validation"
            )
        return self._images("train", slice(0, n))

    @cached_property
    def validation(self) -> Images:
        """Return the last images of the training split, for early stopping and the best checkpoint; maybe none."""
        return self._images("validation", slice(self._n_training - self._n_validation, self._n_training))

    @cached_property
    def test(self) -> Images:
        """Return the images that nothing but evaluation and reports may look at."""
        images = self._images("test", slice(self._n_training, None) if self._is_own else slice(None))
        trained_on = _shape(self._training_source.pixels)
        if images.shape != trained_on:
            sizes = (" x ".join(map(str, shape.picture)) for shape in (images.shape, trained_on))
            raise DataError(f"{self.name}: its test images have {next(sizes)} pixels, those for training {next(sizes)}")
        return images

    @property
    def _is_own(self) -> bool:
        return is_array(self.name)

    @cached_property
    def _training_source(self) -> Source:
        return self._source("train")

    def _source(self, part: Part) -> Source:
        if self._is_own:
            return wait_for(f"reading {self.name}", lambda: load_array(self.name), self._on_stage)
        if self.name in TORCHVISION:
            return load_torchvision(self.name, part, self._data_dir)
        return load_mnist(part)

    @cached_property
    def _n_training(self) -> int:
        """Count the images that are not for testing."""
        n = len(self._training_source.pixels)
        if not self._is_own:
            return n
        n_test = n // 10 if self._config.test is None else self._config.test
        if n_test >= n:
            raise DataError(f"{self.name}: has {n} images; data.test: {n_test} leaves none for training")
        return n - n_test

    @cached_property
    def _n_validation(self) -> int:
        default = 10_000 if self.name == "mnist" else self._n_training // 6
        n = default if self._config.validation is None else self._config.validation
        if n >= self._n_training:
            raise DataError(
                f"{self.name}: has {self._n_training} training images; data.validation: {n} leaves none to train on"
            )
        return n

    def _images(self, split: Split, rows: slice) -> Images:
        source = self._source("test") if split == "test" and not self._is_own else self._training_source
        chosen = source.pixels[rows]
        shape = _shape(chosen)
        if not shape.is_usable:
            raise DataError(
                f"{self.name}: has images of {shape.height} x {shape.width} pixels, and {MAX_SIDE} is the most along "
                "a side; crop them, or make them smaller"
            )
        pixels = _as_tensor(chosen).flatten(1)
        if self._static:
            grey = pixels
            pixels = wait_for(f"binarising the {split} images", lambda: _binarize_once(grey, split), self._on_stage)
        labels = None if source.labels is None else torch.from_numpy(np.array(source.labels[rows]))
        which = f"images {rows.start} to {rows.stop}{', binarised once' if self._static else ''}"
        origin = (array_path(self.name), which) if self._is_own else None
        return Images(pixels, labels, shape, origin, self._on_stage)


def _shape(pixels: UInt8[NDArray[np.uint8], "N H W *C"]) -> ImageShape:
    """Return the shape of each of many images, in grey or with channels."""
    height, width, channels = (*pixels.shape[1:], 1)[:3]
    return ImageShape(channels, height, width)


def _as_tensor(pixels: UInt8[NDArray[np.uint8], "N H W *C"]) -> UInt8[Tensor, "N H W *C"]:
    """Return a tensor of the same memory, which may be that of a file: nothing here writes to it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(pixels)


def _binarize_once(pixels: UInt8[Tensor, "N D"], split: Split) -> UInt8[Tensor, "N D"]:
    """Draw b ~ Bern(k/255) from a fixed seed of the split, as pixels 0 and 255."""
    generator = torch.Generator().manual_seed(_STATIC_SEED + SPLITS.index(split))
    r = torch.randint(0, 255, pixels.shape, generator=generator, dtype=torch.uint8)
    return (r < pixels).to(torch.uint8) * 255


class Batch(NamedTuple):
    """Hold a minibatch as the model meets it."""

    input: Float[Tensor, "B D"]
    """What the encoder sees."""
    target: Float[Tensor, "B D"]
    """What is scored."""


Preprocess = Callable[[UInt8[Tensor, "B D"], torch.Generator], Batch]
"""Turns pixels into x, drawing from the generator whatever random numbers that takes."""


def binarize_dynamically(pixels: UInt8[Tensor, "B D"], generator: torch.Generator) -> Batch:
    """Draw b ~ Bern(k/255), exactly: b = [r < 257 k] with r uniform on the 255 · 257 integers 0..65534."""
    r = draw_int16(pixels.shape, generator, high=(1 << 15) - 1)  # less 2¹⁵, as is what it is compared with
    b = torch.empty(pixels.shape, device=pixels.device)
    torch.lt(r, (pixels.short() * 257).add_(-1 << 15), out=b)  # a comparison into float32 saves a conversion
    return Batch(b, b)


def binarize_by_threshold(pixels: UInt8[Tensor, "B D"], generator: torch.Generator) -> Batch:  # noqa: ARG001
    """Set b = [k > 127]; images binarised beforehand (0 and 255) pass through unchanged."""
    b = (pixels > 127).float()
    return Batch(b, b)


def dequantize(pixels: UInt8[Tensor, "B D"], generator: torch.Generator) -> Batch:
    """Draw y = (k + u)/256 with u ~ U[0, 1): a density of y bounds the mass of k.

    u is uniform on the multiples of 2⁻¹⁶, so that float32 holds y exactly and rounding never lifts it to (k + 1)/256.
    """
    u = draw_int16(pixels.shape, generator)  # times 2¹⁶, less ½
    y = pixels.float().div_(256).add_(2**-9).add_(u, alpha=2**-24)
    return Batch(y, y)


def scale(pixels: UInt8[Tensor, "B D"], generator: torch.Generator) -> Batch:  # noqa: ARG001
    """Set x = k/255: a mass on levels is one of k; a density or a Bernoulli on it is no likelihood of anything."""
    x = pixels.float() / 255
    return Batch(x, x)


BINARIZATIONS: dict[str, Preprocess] = {
    "dynamic": binarize_dynamically,
    "threshold": binarize_by_threshold,
    "static": binarize_by_threshold,
    "none": scale,
}


def build_preprocess(support: Support, config: DataConfig) -> Preprocess:
    """Return the one way in which a likelihood of this support meets pixels under this config."""
    if support is Support.BINARY:
        return BINARIZATIONS[config.binarize]
    if support is Support.LEVELS:
        return scale
    return dequantize if config.dequantize else scale
