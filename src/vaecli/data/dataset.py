"""Data sets: images as uint8 tensors, and their splits, which are the same whatever the seed."""

import warnings
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from numpy.typing import NDArray
from torch import Tensor

from vaecli.config.likelihoods import Support
from vaecli.config.schema import TORCHVISION, DataConfig, is_array
from vaecli.data.sources import Part, Source, default_data_dir, load_array, load_mnist, load_torchvision
from vaecli.errors import DataError

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)
_STATIC_SEED = 20131220


@dataclass(frozen=True)
class Images:
    """The images of one split."""

    pixels: UInt8[Tensor, "N D"]
    labels: Int64[Tensor, " N"] | None
    height: int
    width: int

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def mean(self) -> Float[Tensor, " D"]:
        """The mean image, in units of the 0..1 pixel."""
        total = sum((chunk.sum(0, dtype=torch.float64) for chunk in self.pixels.split(10_000)), torch.zeros(()))
        return (total / (255 * len(self))).float()

    def first(self, n: int) -> "Images":
        """The first n images."""
        return Images(self.pixels[:n], None if self.labels is None else self.labels[:n], self.height, self.width)


class Dataset:
    """A named data set and its three splits, each read when it is first asked for.

    Args:
        config: The `data` section; `binarize: static` is applied here, once, if the support is binary.
        support: What the decoder's likelihood is a statement about.
        data_dir: Where torchvision's files are or go; None for the default.

    Raises:
        DataError: Images that are not to be had, or too few for the splits asked for.
    """

    def __init__(self, config: DataConfig, support: Support, data_dir: Path | None = None) -> None:
        self.name = config.name
        self._config = config
        self._static = support is Support.BINARY and config.binarize == "static"
        self._data_dir = data_dir or default_data_dir()

    def split(self, name: Split) -> Images:
        """The images of a split."""
        images: Images = getattr(self, name)
        return images

    def in_grey(self) -> "Dataset":
        """The same images with none binarised beforehand."""
        return Dataset(self._config, Support.LEVELS, self._data_dir) if self._static else self

    @cached_property
    def train(self) -> Images:
        """All but the held-out images."""
        return self._images("train", slice(0, self._n_training - self._n_validation))

    @cached_property
    def validation(self) -> Images:
        """The last images of the training split."""
        return self._images("validation", slice(self._n_training - self._n_validation, self._n_training))

    @cached_property
    def test(self) -> Images:
        """The images that nothing but evaluation and reports may look at."""
        return self._images("test", slice(self._n_training, None) if self._is_own else slice(None))

    @property
    def _is_own(self) -> bool:
        return is_array(self.name)

    @cached_property
    def _training_source(self) -> Source:
        return self._source("train")

    def _source(self, part: Part) -> Source:
        if self._is_own:
            return load_array(self.name)
        if self.name in TORCHVISION:
            return load_torchvision(self.name, part, self._data_dir)
        return load_mnist(part)

    @cached_property
    def _n_training(self) -> int:
        """How many images are not for testing."""
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
        pixels = _as_tensor(chosen).flatten(1)
        if self._static:
            pixels = _binarize_once(pixels, split)
        labels = None if source.labels is None else torch.from_numpy(np.array(source.labels[rows]))
        return Images(pixels, labels, *chosen.shape[1:])


def _as_tensor(pixels: UInt8[NDArray[np.uint8], "N H W"]) -> UInt8[Tensor, "N H W"]:
    """The same memory, which may be that of a file: nothing here writes to it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(pixels)


def _binarize_once(pixels: UInt8[Tensor, "N D"], split: Split) -> UInt8[Tensor, "N D"]:
    """b ~ Bern(k/255) from a fixed seed of the split, as pixels 0 and 255."""
    generator = torch.Generator().manual_seed(_STATIC_SEED + SPLITS.index(split))
    r = torch.randint(0, 255, pixels.shape, generator=generator, dtype=torch.uint8)
    return (r < pixels).to(torch.uint8) * 255
