"""Data sets: images as uint8 tensors, or standardised vectors, and their splits, the same whatever the seed."""

import warnings
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Int64, Shaped, UInt8
from numpy.typing import NDArray
from torch import Tensor

from vaecli.config.data_sets import TORCHVISION, is_array
from vaecli.config.likelihoods import Support
from vaecli.config.sections import DataConfig
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
from vaecli.data.vectors import Units, units_of
from vaecli.errors import DataError
from vaecli.memory import process_memory
from vaecli.stages import StageCallback, silent, wait_for

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)
_STATIC_SEED = 20131220
_ORDER_SEED = 20131221


@dataclass(frozen=True)
class Images:
    """Hold the images of one split, or its vectors."""

    pixels: Shaped[Tensor, "N D"]
    """uint8; of vectors float32, standardised."""
    labels: Int64[Tensor, " N"] | None
    shape: ImageShape
    """Of vectors that of a picture of one row."""
    origin: tuple[Path, str] | None = None
    """The file that they are in, and which of its images they are; None for images made otherwise."""
    on_stage: StageCallback = silent
    """Is called as something is computed from all of them; what it raises ends that."""

    def __len__(self) -> int:
        return len(self.pixels)

    def at(self, rows: slice | Int64[Tensor, " n"]) -> "Images":
        """Return some of the images."""
        labels = None if self.labels is None else self.labels[rows]
        return replace(self, pixels=self.pixels[rows], labels=labels, origin=None)

    def first(self, n: int) -> "Images":
        """Return the first n images."""
        return self.at(slice(n))

    def spread(self, n: int | None) -> "Images":
        """Return n images evenly spaced over all, or all of them: often the first of a split are of one kind."""
        if n is None or n >= len(self):
            return self
        return self.at(torch.arange(n) * len(self) // n)

    def to(self, device: torch.device) -> "Images":
        """Return the same images with their pixels on a device."""
        return replace(self, pixels=self.pixels.to(device))


class Dataset:
    """Give access to a named data set and its three splits, each read when it is first asked for.

    Args:
        config: The `data` section; `binarize: static` is applied here, once, if the support is binary, and vectors are
            standardised.
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
        return self._images("train", self._training_rows)

    @property
    def _training_rows(self) -> slice:
        available = self._n_training - self._n_validation
        n = available if self._config.train is None else self._config.train
        if n > available:
            raise DataError(
                f"{self.name}: has {available} {self._config.kind} to train on; data.train: {n} is more; "
                "choose fewer, or hold out fewer by data.validation"
            )
        return slice(0, n)

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

    @cached_property
    def units(self) -> Units | None:
        """Return what standardises vectors, by those that are trained on; None of images."""
        if self._config.kind == "images":
            return None
        trained_on = self._training_source.pixels[self._rows("train", self._training_rows)]
        return wait_for("standardising the vectors", lambda: units_of(trained_on), self._on_stage)

    def _rows(self, split: Split, rows: slice) -> "slice | Int64[NDArray[Any], ' n']":
        """Return where images of a split lie in their source; those in a random order are copied into memory."""
        if not self._config.shuffle or (split == "test" and not self._is_own):
            return rows
        chosen = self._order[rows]
        needed, available = self._training_source.pixels[0].nbytes * len(chosen), process_memory()
        if available is not None and needed > available:
            raise DataError(
                f"{self.name}: {len(chosen):,} {self._config.kind} in a random order take {needed / 2**30:,.1f} GiB, "
                f"and {available / 2**30:,.1f} GiB is all that this process may use; train on fewer by data.train, or "
                "shuffle the file itself and leave out data.shuffle"
            )
        return chosen

    @cached_property
    def _order(self) -> Int64[NDArray[Any], " N"]:
        generator = torch.Generator().manual_seed(_ORDER_SEED)
        return torch.randperm(len(self._training_source.pixels), generator=generator).numpy()

    @property
    def _is_own(self) -> bool:
        return is_array(self.name)

    @cached_property
    def _training_source(self) -> Source:
        return self._source("train")

    def _source(self, part: Part) -> Source:
        if self._is_own:
            return wait_for(f"reading {self.name}", lambda: load_array(self.name, self._config.kind), self._on_stage)
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
            raise DataError(f"{self.name}: has {n} {self._config.kind}; data.test: {n_test} leaves none for training")
        return n - n_test

    @cached_property
    def _n_validation(self) -> int:
        default = 10_000 if self.name == "mnist" else self._n_training // 6
        n = default if self._config.validation is None else self._config.validation
        if n >= self._n_training:
            raise DataError(
                f"{self.name}: has {self._n_training} training {self._config.kind}; data.validation: {n} leaves "
                "none to train on"
            )
        return n

    def _images(self, split: Split, rows: slice) -> Images:
        source = self._source("test") if split == "test" and not self._is_own else self._training_source
        at = self._rows(split, rows)
        chosen = source.pixels[at]
        shape = _shape(chosen)
        if not shape.is_usable:
            raise DataError(
                f"{self.name}: has images of {shape.height} x {shape.width} pixels, and {MAX_SIDE} is the most along "
                "a side; crop them, or make them smaller"
            )
        units = self.units
        pixels = _as_tensor(chosen if units is None else units.standardise(chosen, self.name)).flatten(1)
        if self._static:
            grey = pixels
            pixels = wait_for(f"binarising the {split} images", lambda: _binarize_once(grey, split), self._on_stage)
        labels = None if source.labels is None else torch.from_numpy(np.array(source.labels[at]))
        order = ", in a random order" if self._config.shuffle else ""
        made = ", binarised once" if self._static else "" if units is None else ", standardised"
        which = f"{self._config.kind} {rows.start} to {rows.stop}{order}{made}"
        origin = (array_path(self.name), which) if self._is_own else None
        return Images(pixels, labels, shape, origin, self._on_stage)


def _shape(pixels: Shaped[NDArray[Any], "N ..."]) -> ImageShape:
    """Return the shape of each of many images, in grey or with channels, or of vectors."""
    height, width, channels = (*(1,) * (pixels.ndim == 2), *pixels.shape[1:], 1)[:3]
    return ImageShape(channels, height, width)


def _as_tensor(pixels: Shaped[NDArray[Any], "N ..."]) -> Shaped[Tensor, "N ..."]:
    """Return a tensor of the same memory, which may be that of a file: nothing here writes to it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(pixels)


def _binarize_once(pixels: UInt8[Tensor, "N D"], split: Split) -> UInt8[Tensor, "N D"]:
    """Draw b ~ Bern(k/255) from a fixed seed of the split, as pixels 0 and 255."""
    generator = torch.Generator().manual_seed(_STATIC_SEED + SPLITS.index(split))
    r = torch.randint(0, 255, pixels.shape, generator=generator, dtype=torch.uint8)
    return (r < pixels).to(torch.uint8) * 255
