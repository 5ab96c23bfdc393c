"""How images and vectors become what a model meets: minibatch by minibatch, and on the device.

Pixels k in 0..255 become x: binarised, dequantised or as they are. Vectors are standardised beforehand.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64, Shaped, UInt8
from torch import Tensor

from vaecli.config.likelihoods import Support
from vaecli.config.sections import DataConfig
from vaecli.errors import DataError
from vaecli.randomness import draw_int16


class Batch(NamedTuple):
    """Hold a minibatch as the model meets it."""

    input: Float[Tensor, "B DK"]
    """What the encoder sees: x, and after it the image's class as K numbers, where the model is told the class."""
    target: Float[Tensor, "B D"]
    """What is scored."""

    def at(self, rows: slice | Int64[Tensor, " b"]) -> "Batch":
        """Return some of the images."""
        return Batch(self.input[rows], self.target[rows])


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


def take(vectors: Float[Tensor, "B D"], generator: torch.Generator) -> Batch:  # noqa: ARG001
    """Take standardised vectors as they are."""
    return Batch(vectors, vectors)


ToX = Callable[[Shaped[Tensor, "B D"], torch.Generator], Batch]
BINARIZATIONS: dict[str, ToX] = {
    "dynamic": binarize_dynamically,
    "threshold": binarize_by_threshold,
    "static": binarize_by_threshold,
    "none": scale,
}


@dataclass(frozen=True)
class Preprocess:
    """Turn pixels or vectors into x, and let each be followed by its class where the model is told the class."""

    to_x: ToX
    """Draws from the generator whatever random numbers that takes."""
    n_classes: int = 0
    """K; 0 where the model is not told the class."""

    def __call__(
        self,
        pixels: Shaped[Tensor, "B D"],
        generator: torch.Generator,
        labels: Int64[Tensor, " B"] | None = None,
    ) -> Batch:
        """Return the minibatch.

        Raises:
            DataError: There are no labels, or not those of K classes, and the model is told the class.
        """
        batch = self.to_x(pixels, generator)
        if not self.n_classes:
            return batch
        check_labels(labels, self.n_classes)
        assert labels is not None
        return Batch(torch.cat([batch.input, one_hot(labels, self.n_classes, batch.input)], -1), batch.target)


def one_hot(classes: Int64[Tensor, "*n"], n_classes: int, like: Tensor) -> Float[Tensor, "*n K"]:
    """Return classes as K numbers of which one is 1, of the precision and on the device of another tensor."""
    return torch.eye(n_classes, dtype=like.dtype, device=like.device)[classes.to(like.device)]


def check_labels(labels: Int64[Tensor, " N"] | None, n_classes: int) -> None:
    """Refuse labels that a model of so many classes cannot be told. Raises DataError."""
    if labels is None:
        raise DataError(
            "model.condition: labels: the data have none; give them in a .npz as `labels`, or set condition: none"
        )
    least, largest = (int(labels.min()), int(labels.max())) if len(labels) else (0, 0)
    if not 0 <= least <= largest < n_classes:
        raise DataError(
            f"model.classes: {n_classes}, and labels go from {least} to {largest}; they are numbered from 0, so that "
            + ("none may be negative: renumber them" if least < 0 else f"model.classes must be {largest + 1} at least")
        )


def build_preprocess(support: Support, config: DataConfig, n_classes: int = 0) -> Preprocess:
    """Return the one way in which a likelihood of this support meets the data under this config.

    Args:
        support: What x is.
        config: The `data` section.
        n_classes: As for `Preprocess`.
    """
    if support is Support.REAL:
        return Preprocess(take, n_classes)
    if support is Support.BINARY:
        return Preprocess(BINARIZATIONS[config.binarize], n_classes)
    if support is Support.LEVELS or not config.dequantize:
        return Preprocess(scale, n_classes)
    return Preprocess(dequantize, n_classes)
