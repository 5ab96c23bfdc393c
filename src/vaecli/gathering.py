"""The pixels of minibatches, collected from wherever all images are."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from jaxtyping import UInt8
from torch import Tensor

RESIDENT = 2**30
"""Bytes of images beyond which they are taken to be in a file or in another memory than the device's."""
AHEAD = 2**22
"""Bytes that are collected at a time, while those before them are used."""


def gather(pixels: UInt8[Tensor, "N D"], rows: Sequence[Tensor], device: torch.device) -> Iterator[Tensor]:
    """The pixels of each minibatch, uint8 (M, D), on the device, in the order asked for.

    Args:
        pixels: All images, in memory or mapped from a file.
        rows: Which images make each minibatch, int64 (M,), on the device of `pixels`.
        device: Where to.
    """
    if pixels.device == device and (device.type != "cpu" or pixels.numel() <= RESIDENT):
        yield from (pixels.index_select(0, minibatch) for minibatch in rows)
    else:
        yield from _gather_ahead(pixels, rows, device)


def _gather_ahead(pixels: UInt8[Tensor, "N D"], rows: Sequence[Tensor], device: torch.device) -> Iterator[Tensor]:
    """Collect some minibatches in a thread while those before are used, so that no step waits for a disk or a bus."""
    source = pixels.numpy()

    def collect(part: Sequence[Tensor]) -> Sequence[Tensor]:
        rows_of_all = torch.cat(list(part)).numpy()
        chunk = torch.from_numpy(source.take(rows_of_all, axis=0))  # torch would start more threads for it
        if device.type == "cuda":
            chunk = chunk.pin_memory().to(device, non_blocking=True)
        minibatches: tuple[Tensor, ...] = chunk.to(device).split([len(minibatch) for minibatch in part])
        return minibatches

    n_minibatches = max(1, AHEAD // (max(map(len, rows), default=1) * pixels.shape[1]))
    with ThreadPoolExecutor(1) as thread:
        coming = None
        for start in range(0, len(rows), n_minibatches):
            ready, coming = coming, thread.submit(collect, rows[start : start + n_minibatches])
            if ready is not None:
                yield from ready.result()
        if coming is not None:
            yield from coming.result()
