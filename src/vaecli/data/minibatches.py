"""The pixels of minibatches, gathered from wherever all images are: in memory, in a file, or on a GPU."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import overload

import torch
from jaxtyping import Shaped
from torch import Tensor

RESIDENT = 2**30
"""Bytes of images beyond which they are taken to be in a file or in another memory than the device's."""
AHEAD = 2**22
"""Bytes that are collected at a time, if not minibatch by minibatch."""


class MinibatchRows(Sequence[Tensor]):
    """Cut a permutation into minibatches, each when it is asked for: there may be millions.

    Args:
        permutation: Of all images.
        size: Images of a minibatch.
        first: The first minibatch that is wanted.
        end: The one after the last; None for all.
    """

    def __init__(self, permutation: Tensor, size: int, first: int = 0, end: int | None = None) -> None:
        self._permutation, self._size, self._first = permutation, size, first
        n = -(-len(permutation) // size)
        self._end = n if end is None else min(end, n)

    def __len__(self) -> int:
        return max(0, self._end - self._first)

    @overload
    def __getitem__(self, place: int) -> Tensor: ...
    @overload
    def __getitem__(self, place: slice) -> "MinibatchRows": ...
    def __getitem__(self, place: int | slice) -> "Tensor | MinibatchRows":
        if isinstance(place, slice):
            first, end, _ = place.indices(len(self))
            return MinibatchRows(self._permutation, self._size, self._first + first, self._first + end)
        start = (self._first + range(len(self))[place]) * self._size
        return self._permutation[start : start + self._size]


def gather(pixels: Shaped[Tensor, "N D"], rows: Sequence[Tensor], device: torch.device) -> Iterator[Tensor]:
    """Yield the pixels of each minibatch, (M, D), on the device, in the order asked for.

    Args:
        pixels: All images, in memory or mapped from a file.
        rows: Which images make each minibatch, int64 (M,), on the device of `pixels`; none is larger than the first.
        device: Where to.
    """
    if pixels.device != device or (device.type == "cpu" and pixels.nbytes > RESIDENT):
        yield from _gather_ahead(pixels, rows, device)
    elif device.type == "cpu":
        yield from (pixels.index_select(0, minibatch) for minibatch in rows)
    else:
        yield from _gather_in_parts(pixels, rows)


def _parts(rows: Sequence[Tensor], pixels: Shaped[Tensor, "N D"]) -> Iterator[Sequence[Tensor]]:
    """Split into as many minibatches at a time as have `AHEAD` bytes, and one at least."""
    n = max(1, AHEAD // ((len(rows[0]) if rows else 1) * pixels[0].nbytes))
    return (rows[start : start + n] for start in range(0, len(rows), n))


def _gather_in_parts(pixels: Shaped[Tensor, "N D"], rows: Sequence[Tensor]) -> Iterator[Tensor]:
    """Gather many in one launch: on a GPU that takes as long as one."""
    for part in _parts(rows, pixels):
        yield from pixels.index_select(0, torch.cat(list(part))).split([len(minibatch) for minibatch in part])


def _gather_ahead(pixels: Shaped[Tensor, "N D"], rows: Sequence[Tensor], device: torch.device) -> Iterator[Tensor]:
    """Collect some minibatches in a thread while those before are used, so that no step waits for a disk or a bus."""
    source = pixels.numpy()

    def collect(part: Sequence[Tensor]) -> Sequence[Tensor]:
        rows_of_all = torch.cat(list(part)).numpy()
        chunk = torch.from_numpy(source.take(rows_of_all, axis=0))  # torch would start more threads for it
        if device.type == "cuda":
            chunk = chunk.pin_memory().to(device, non_blocking=True)
        minibatches: tuple[Tensor, ...] = chunk.to(device).split([len(minibatch) for minibatch in part])
        return minibatches

    with ThreadPoolExecutor(1) as thread:
        coming = None
        for part in _parts(rows, pixels):
            ready, coming = coming, thread.submit(collect, part)
            if ready is not None:
                yield from ready.result()
        if coming is not None:
            yield from coming.result()
