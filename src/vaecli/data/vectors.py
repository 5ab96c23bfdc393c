"""Real-valued vectors as data: checked, and standardised by those that are trained on.

All of it goes block by block, so that an array may stay in its file, and in the file's own precision.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Shaped
from numpy.typing import NDArray

from vaecli.data.image_grid import MAX_SIDE
from vaecli.errors import DataError
from vaecli.memory import process_memory

BLOCK = 2**22
"""Numbers that are looked at at a time."""


class Units(NamedTuple):
    """Hold what standardises each of the D numbers of a vector v: x = (v - mean)/scale."""

    mean: Float[NDArray[np.float64], " D"]
    scale: Float[NDArray[np.float64], " D"]
    """The deviation; 1 of a number that does not vary."""

    def standardise(self, vectors: Shaped[NDArray[Any], "N D"], name: str) -> Float[NDArray[np.float32], "N D"]:
        """Return x of each v. Raises DataError where it takes more memory than there is; `name` is the data's."""
        needed, available = vectors.size * np.dtype(np.float32).itemsize, process_memory()
        if available is not None and needed > available:
            raise DataError(
                f"{name}: {len(vectors):,} standardised vectors take {needed / 2**30:,.1f} GiB, and "
                f"{available / 2**30:,.1f} GiB is all that this process may use; train on fewer by data.train, or save "
                "fewer rows or columns"
            )
        x = np.empty(vectors.shape, np.float32)
        for rows in _blocks(vectors):
            x[rows] = (vectors[rows] - self.mean) / self.scale
        return x


def units_of(vectors: Shaped[NDArray[Any], "N D"]) -> Units:
    """Return the mean and the deviation of each number over some vectors.

    A number whose deviation is no more than the rounding of its largest value is taken to be the same for all.
    """
    n, first = len(vectors), vectors[0].astype(np.float64)  # sums of differences, which are 0 of what does not vary
    rounding = 10 * np.finfo(np.result_type(vectors, np.float32)).eps
    away, squares, largest = np.zeros_like(first), np.zeros_like(first), np.zeros_like(first)
    for rows in _blocks(vectors):
        away += (vectors[rows] - first).sum(0) / n
    for rows in _blocks(vectors):
        squares += np.square(vectors[rows] - first - away).sum(0)
        largest = np.maximum(largest, np.abs(vectors[rows].astype(np.float64)).max(0))
    deviation = np.sqrt(squares / n)
    return Units(first + away, np.where(deviation > rounding * largest, deviation, 1.0))


def check_vectors(array: Any, name: str) -> Shaped[NDArray[Any], "N D"]:
    """Return an array as it is, if it holds vectors.

    Raises:
        DataError: It does not have a row of numbers for each, or holds some that float32 does not have.
    """
    if array.dtype.kind not in "fiu" or array.ndim != 2 or 0 in array.shape or array.shape[1] > MAX_SIDE:
        raise DataError(
            f"{name}: holds {array.dtype} of shape {tuple(array.shape)}; vectors are numbers of shape (N, D), with D "
            f"up to {MAX_SIDE}{_remedy(array)}"
        )
    n_bad, first = 0, None
    with np.errstate(over="ignore"):  # what float32 cannot hold is infinite
        for rows in _blocks(array):
            bad = np.argwhere(~np.isfinite(array[rows].astype(np.float32)))
            if len(bad) and first is None:
                first = rows.start + int(bad[0, 0]), int(bad[0, 1])
            n_bad += len(bad)
    if first is not None:
        raise DataError(
            f"{name}: holds {array[first]} in row {first[0]}, column {first[1]} (counted from 0), and "
            f"{n_bad} numbers that are not finite in all; leave out these rows or fill them in"
        )
    found: NDArray[Any] = array
    return found


def _remedy(array: Any) -> str:
    if array.dtype.kind == "b":
        return '; convert them with x.astype("uint8")'
    if array.ndim == 1:
        return "; one number each is a column, x[:, None]"
    return "; images have data.kind: images" if array.ndim in {3, 4} else ""


def _blocks(vectors: Any) -> Iterator[slice]:
    step = max(1, BLOCK // vectors.shape[1])
    return (slice(start, start + step) for start in range(0, len(vectors), step))
