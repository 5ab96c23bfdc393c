"""How pixels k in 0..255 become x: binarised, dequantised or as they are, by minibatch and on the device."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from vaecli.config.likelihoods import Support
from vaecli.config.schema import DataConfig


class Batch(NamedTuple):
    """A minibatch as the model meets it."""

    input: Float[Tensor, "B D"]
    """What the encoder sees."""
    target: Float[Tensor, "B D"]
    """What is scored."""


Observe = Callable[[UInt8[Tensor, "B D"], torch.Generator], Batch]
"""Turns pixels into x, drawing whatever noise that takes from the generator."""


def binarize_dynamically(pixels: UInt8[Tensor, "B D"], generator: torch.Generator) -> Batch:
    """b ~ Bern(k/255), exactly: b = [r < k] with r uniform on the integers 0..254."""
    r = torch.randint(0, 255, pixels.shape, generator=generator, device=pixels.device, dtype=torch.uint8)
    b = (r < pixels).float()
    return Batch(b, b)


def binarize_by_threshold(pixels: UInt8[Tensor, "B D"], generator: torch.Generator) -> Batch:  # noqa: ARG001
    """b = [k > 127]; images binarised beforehand (0 and 255) pass through unchanged."""
    b = (pixels > 127).float()
    return Batch(b, b)


def dequantize(pixels: UInt8[Tensor, "B D"], generator: torch.Generator) -> Batch:
    """y = (k + u)/256 with u ~ U[0, 1): a density of y bounds the mass of k.

    u is uniform on the multiples of 2⁻¹⁶, so that float32 holds y exactly and rounding never lifts it to (k + 1)/256.
    """
    u = torch.randint(0, 1 << 16, pixels.shape, generator=generator, device=pixels.device, dtype=torch.int32)
    y = (pixels.int() * (1 << 16) + u) / (1 << 24)
    return Batch(y, y)


def scale(pixels: UInt8[Tensor, "B D"], generator: torch.Generator) -> Batch:  # noqa: ARG001
    """x = k/255: a mass on levels is one of k; a density or a Bernoulli on it is no likelihood of anything."""
    x = pixels.float() / 255
    return Batch(x, x)


def observation(support: Support, config: DataConfig) -> Observe:
    """The one way in which a likelihood of this support meets pixels under this config."""
    if support is Support.BINARY:
        return {
            "dynamic": binarize_dynamically,
            "threshold": binarize_by_threshold,
            "static": binarize_by_threshold,
            "none": scale,
        }[config.binarize]
    if support is Support.LEVELS:
        return scale
    return dequantize if config.dequantize else scale
