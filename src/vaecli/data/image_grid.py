"""Images as pictures: grids and PNG files."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt8
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from vaecli.files import write_atomically

MAX_SIDE = 65536
"""Pixels along a side of an image that can be trained on, saved and loaded."""


class ImageShape(NamedTuple):
    """Hold the shape of one image, which data and distributions take as D = height · width · channels numbers.

    They are in that order, as pictures are stored: the channels of a pixel lie side by side.
    """

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
    def picture(self) -> tuple[int, ...]:
        """Return (height, width), the shape of a grey picture, or (height, width, channels) where there are several."""
        return (self.height, self.width) if self.channels == 1 else (self.height, self.width, self.channels)


class Labels(NamedTuple):
    """Hold what is written around a grid: above its columns, and on both sides of its rows."""

    top: Sequence[str] = ()
    left: Sequence[str] = ()
    right: Sequence[str] = ()


GAP = 1
BACKGROUND = 64
LETTER_SIZE, SPACE = 13, 6
"""Of labels, in pixels: the height of letters, and what is left free around them."""
MIN_CELL = 48, 20
"""The width and height at least, in pixels, of an image that has a label."""


def as_seen(images: Float[NDArray[np.float32], "N H W *C"]) -> Float[NDArray[np.float32], "N H w *c"]:
    """Return images in grey or in three colours; channels that are neither stand side by side, in grey."""
    n, height = images.shape[:2]
    is_seen = images.ndim == 3 or images.shape[3] == 3
    return images if is_seen else images.transpose(0, 1, 3, 2).reshape(n, height, -1)


def grid(
    images: Float[NDArray[np.float32], "N H W *C"], columns: int | None = None, gap: int = GAP
) -> UInt8[NDArray[np.uint8], "h w *c"]:
    """Lay images out in rows, with a thin line between them and around.

    Args:
        images: In units of the 0..1 pixel; what lies outside is clipped.
        columns: Images in a row; None for a square.
        gap: The line's width in pixels.

    Returns:
        A picture in grey (h, w), or in colour (h, w, 3).
    """
    images = as_seen(images)
    n, height, width = images.shape[:3]
    columns = min(columns or math.ceil(math.sqrt(n)), n)
    rows = math.ceil(n / columns)
    size = rows * (height + gap) + gap, columns * (width + gap) + gap
    canvas = np.full((*size, *images.shape[3:]), BACKGROUND, np.uint8)
    levels = (np.nan_to_num(images).clip(0, 1) * 255).round().astype(np.uint8)
    for i, image in enumerate(levels):
        top, left = (i // columns) * (height + gap) + gap, (i % columns) * (width + gap) + gap
        canvas[top : top + height, left : left + width] = image
    return canvas


def paired_grid(
    above: Float[NDArray[np.float32], "N H W *C"], below: Float[NDArray[np.float32], "N H W *C"], columns: int = 10
) -> UInt8[NDArray[np.uint8], "h w *c"]:
    """Rows of images, each with a row of their counterparts under it; the last row is filled up with nothing."""
    rows = []
    for start in range(0, len(above), columns):
        for part in (above[start : start + columns], below[start : start + columns]):
            missing = np.full((columns - len(part), *part.shape[1:]), BACKGROUND / 255, part.dtype)
            rows += [part, missing]
    return grid(np.concatenate(rows), columns)


def save_png(
    path: Path, picture: UInt8[NDArray[np.uint8], "h w *c"], scale: int = 2, labels: Labels | None = None
) -> None:
    """Write a picture as PNG atomically, each pixel as a square of `scale`; a larger one where labels need it."""
    if labels is not None:
        height, width = picture.shape[:2]
        columns, rows = len(labels.top) or 1, max(len(labels.left), len(labels.right)) or 1
        scale = max(scale, math.ceil(MIN_CELL[0] * columns / width), math.ceil(MIN_CELL[1] * rows / height))
    enlarged = Image.fromarray(picture.repeat(scale, axis=0).repeat(scale, axis=1))
    drawn = enlarged if labels is None else _label(enlarged, labels)
    write_atomically(path, lambda file: drawn.save(file, format="PNG", optimize=True))


def _label(picture: Image.Image, labels: Labels) -> Image.Image:
    """Return a picture with labels around it, dark on white."""
    font = ImageFont.load_default(LETTER_SIZE)

    def room(texts: Sequence[str]) -> int:
        return math.ceil(max(map(font.getlength, texts), default=-2 * SPACE)) + 2 * SPACE

    left, right = room(labels.left), room(labels.right)
    above = LETTER_SIZE + 2 * SPACE if labels.top else 0
    width, height = picture.size
    canvas = Image.new(picture.mode, (left + width + right, above + height), "white")
    canvas.paste(picture, (left, above))
    draw = ImageDraw.Draw(canvas)
    every = math.ceil(room(labels.top) * len(labels.top) / width)  # of those that would touch, only some
    for i, text in enumerate(labels.top):
        if i % (every or 1) == 0:
            place = left + (i + 0.5) * width / len(labels.top), above / 2
            draw.text(place, text, fill="black", font=font, anchor="mm")
    for texts, x, anchor in ((labels.left, left - SPACE, "rm"), (labels.right, left + width + SPACE, "lm")):
        for i, text in enumerate(texts):
            draw.text((x, above + (i + 0.5) * height / len(texts)), text, fill="black", font=font, anchor=anchor)
    return canvas
