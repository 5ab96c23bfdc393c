"""Real-valued vectors as data: checked, and standardised by those that are trained on."""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from vaecli.data.image_grid import MAX_SIDE
from vaecli.errors import DataError

CONSTANT = 1e-6
"""A number whose deviation is below this share of its largest value is taken to be the same for all vectors."""


class Units(NamedTuple):
    """Hold what standardises each of the D numbers of a vector v: x = (v - mean)/scale."""

    mean: Float[NDArray[np.float32], " D"]
    scale: Float[NDArray[np.float32], " D"]
    """The deviation; 1 of a number that does not vary."""

    def standardise(self, vectors: Float[NDArray[np.float32], "N D"]) -> Float[NDArray[np.float32], "N D"]:
        """Return x of each v."""
        return (vectors - self.mean) / self.scale


def units_of(vectors: Float[NDArray[np.float32], "N D"]) -> Units:
    """Return the mean and the deviation of each number over some vectors."""
    mean, deviation = vectors.mean(0, dtype=np.float64), vectors.std(0, dtype=np.float64)
    varies = deviation > CONSTANT * np.maximum(np.abs(vectors.min(0)), np.abs(vectors.max(0)))
    return Units(mean.astype(np.float32), np.where(varies, deviation, 1.0).astype(np.float32))


def check_vectors(array: Any, name: str) -> Float[NDArray[np.float32], "N D"]:
    """Return an array as vectors in float32.

    Raises:
        DataError: It does not have a row of numbers for each, or holds some that are not finite.
    """
    if array.dtype.kind not in "fiu" or array.ndim != 2 or 0 in array.shape or array.shape[1] > MAX_SIDE:
        remedy = "; images have data.kind: images" if array.ndim in {3, 4} else ""
        raise DataError(
            f"{name}: holds {array.dtype} of shape {tuple(array.shape)}; vectors are numbers of shape (N, D), with D "
            f"up to {MAX_SIDE}{remedy}"
        )
    with np.errstate(over="ignore"):  # what float32 cannot hold is infinite, and found below
        vectors = np.ascontiguousarray(array, np.float32)
    finite = np.isfinite(vectors)
    if not finite.all():
        row, column = np.argwhere(~finite)[0]
        raise DataError(
            f"{name}: holds {array[row, column]} in row {row}, column {column} (counted from 0), and "
            f"{(~finite).sum()} numbers that are not finite in all; leave out these rows or fill them in"
        )
    return vectors
