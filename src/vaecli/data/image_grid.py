"""Images as pictures: grids and PNG files."""

import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt8
from numpy.typing import NDArray
from PIL import Image

from vaecli.files import write_atomically

MAX_SIDE = 65536
"""Pixels along a side of an image that can be trained on, saved and loaded."""


class ImageShape(NamedTuple):
    """Hold the shape of one image, which data and distributions take as D = channels · height · width numbers."""

    channels: int
    height: int
    width: int

    @property
    def n_pixels(self) -> int:
        """Return D."""
        return math.prod(self)

    @property
    def is_usable(self) -> bool:
        """Return whether images of this shape can be used: none of its sides is empty or beyond `MAX_SIDE`."""
        return all(0 < side <= MAX_SIDE for side in self)

    @property
    def picture(self) -> tuple[int, int]:
        """Return (height, width), the shape of a grey picture."""
        return self.height, self.width


GAP = 1
BACKGROUND = 64


def grid(
    images: Float[NDArray[np.float32], "N H W"], columns: int | None = None, gap: int = GAP
) -> UInt8[NDArray[np.uint8], "h w"]:
    """Lay images out in rows, with a thin line between them and around.

    Args:
        images: In units of the 0..1 pixel; what lies outside is clipped.
        columns: Images in a row; None for a square.
        gap: The line's width in pixels.
    """
    n, height, width = images.shape
    columns = min(columns or math.ceil(math.sqrt(n)), n)
    rows = math.ceil(n / columns)
    canvas = np.full((rows * (height + gap) + gap, columns * (width + gap) + gap), BACKGROUND, np.uint8)
    levels = (np.nan_to_num(images).clip(0, 1) * 255).round().astype(np.uint8)
    for i, image in enumerate(levels):
        top, left = (i // columns) * (height + gap) + gap, (i % columns) * (width + gap) + gap
        canvas[top : top + height, left : left + width] = image
    return canvas


def paired_grid(
    above: Float[NDArray[np.float32], "N H W"], below: Float[NDArray[np.float32], "N H W"], columns: int = 10
) -> UInt8[NDArray[np.uint8], "h w"]:
    """Rows of images, each with a row of their counterparts under it; the last row is filled up with nothing."""
    rows = []
    for start in range(0, len(above), columns):
        for part in (above[start : start + columns], below[start : start + columns]):
            missing = np.full((columns - len(part), *part.shape[1:]), BACKGROUND / 255, part.dtype)
            rows += [part, missing]
    return grid(np.concatenate(rows), columns)


def save_png(path: Path, picture: UInt8[NDArray[np.uint8], "h w"], scale: int = 2) -> None:
    """Write a picture as PNG atomically, each pixel as a square of `scale`."""
    enlarged = picture.repeat(scale, axis=0).repeat(scale, axis=1)
    write_atomically(path, lambda file: Image.fromarray(enlarged).save(file, format="PNG", optimize=True))
