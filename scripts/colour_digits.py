"""Paint MNIST: `python scripts/colour_digits.py OUT.npz` writes the colour images that `configs/colour.yaml` trains on.

The first 20,000 training digits, 28 x 28 pixels in three channels, each in a light colour of its own on a dark one,
with some noise in every pixel: of a ground that is one colour all over a likelihood would think of nothing else.
"""

import sys
from pathlib import Path

import numpy as np

from vaecli.data.sources import load_mnist

N = 20_000
NOISE = 8
"""Grey levels, the standard deviation of the noise."""
SEED = 0


def main(path: Path) -> None:
    """Blend from the colour of the ground to that of the digit, as far as a pixel is lit, and add the noise."""
    mnist, rng = load_mnist("train"), np.random.default_rng(SEED)
    light, dark = rng.integers(128, 256, (N, 1, 1, 3)), rng.integers(0, 128, (N, 1, 1, 3))
    lit = mnist.pixels[:N, :, :, None] / 255
    assert mnist.labels is not None
    painted = dark + lit * (light - dark) + rng.normal(0, NOISE, (*mnist.pixels[:N].shape, 3))
    np.savez_compressed(path, images=painted.round().clip(0, 255).astype(np.uint8), labels=mnist.labels[:N])
    print(path)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
