"""Explicit random-number streams: one generator for each purpose, derived from the run's seed."""

import hashlib
from typing import Literal

import torch

Stream = Literal[
    "init", "permutation", "epsilon", "pixels", "evaluation", "importance", "pilots", "annealing", "samples"
]


def generator(seed: int, stream: Stream, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a generator for one purpose; streams of different names or seeds are independent.

    Args:
        seed: The run's seed.
        stream: What the numbers are for.
        device: Where they are drawn.
    """
    digest = hashlib.sha256(f"{seed}/{stream}".encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:8]) >> 1)
