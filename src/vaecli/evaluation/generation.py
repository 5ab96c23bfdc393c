"""What a trained run can show: new images, reconstructions, encodings of a split, walks through the latent space."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from numpy.typing import NDArray
from torch import Tensor

from vaecli.data.dataset import Batch, Dataset, Images, Split, build_preprocess
from vaecli.errors import UsageError
from vaecli.randomness import generator
from vaecli.runs.run import Run

CHUNK = 1000
"""Images that are encoded at a time."""


class Reconstructions(NamedTuple):
    """Hold images and their reconstructions, both in units of the 0..1 pixel: (N, H, W), or (N, H, W, C) in colour."""

    originals: Float[NDArray[np.float32], "N H W *C"]
    reconstructions: Float[NDArray[np.float32], "N H W *C"]


class Encoding(NamedTuple):
    """Hold the posterior q(z|x) of every image of a split."""

    mean: Float[NDArray[np.float32], "N Z"]
    stddev: Float[NDArray[np.float32], "N Z"]
    labels: Int64[NDArray[np.int64], " N"] | None


def sample(run: Run, n: int = 100, *, seed: int = 0, draw: bool = False) -> Float[NDArray[np.float32], "N H W *C"]:
    """Draw new images: z from the prior, then the mean of p(x|z).

    Args:
        run: A trained run.
        n: How many.
        seed: Of z, and of the pixels if they are drawn.
        draw: Draw x from p(x|z) instead of taking its mean.

    Returns:
        Images in units of the 0..1 pixel, (N, H, W) or in colour (N, H, W, C); draws of a Gaussian may lie outside.

    Raises:
        VaecliError: The run's checkpoint cannot be used.
    """
    return _pictures(run, run.vae.sample(n, generator(seed, "samples"), draw=draw))


def reconstruct(run: Run, n: int = 20, *, split: Split = "test", data_dir: Path | None = None) -> Reconstructions:
    """Return the first n images of a split, and the mean of p(x|z) at the posterior mean of each.

    Args:
        run: A trained run.
        n: How many; fewer if the split has fewer.
        split: train, validation or test.
        data_dir: As for `train`.

    Raises:
        VaecliError: The run's checkpoint cannot be used.
        DataError: The images cannot be read.
    """
    images = _images(run, split, data_dir).first(n)
    batch = _preprocess(run, images.pixels, generator(run.config.seed, "evaluation"))
    return Reconstructions(
        _pictures(run, images.pixels.float() / 255), _pictures(run, run.vae.reconstruct(batch.input))
    )


@torch.no_grad()
def encode(run: Run, *, split: Split = "test", data_dir: Path | None = None) -> Encoding:
    """Return posterior means and deviations of a split, with its labels; arguments and errors as for `reconstruct`.

    The encoder sees the images as in training: binarised or dequantised by evaluation's own random numbers, the same
    every time.
    """
    images, stream = _images(run, split, data_dir), generator(run.config.seed, "evaluation")
    posteriors = [run.vae.encoder(_preprocess(run, chunk, stream).input) for chunk in images.pixels.split(CHUNK)]
    return Encoding(
        mean=torch.cat([q.mean for q in posteriors]).numpy(),
        stddev=torch.cat([q.stddev for q in posteriors]).numpy(),
        labels=None if images.labels is None else images.labels.numpy(),
    )


@torch.no_grad()
def manifold(run: Run, n: int = 20) -> Float[NDArray[np.float32], "N H W *C"]:
    """Return the mean of p(x|z) on an n by n grid of a 2-dimensional latent space, in rows (paper, figure 4).

    The grid is even in the unit square and goes through the quantiles of the prior, so that every cell has the same
    prior mass.

    Raises:
        UsageError: The latent space does not have 2 dimensions.
        VaecliError: The run's checkpoint cannot be used.
    """
    means: Tensor = run.vae.decoder(latent_grid(run, n)).mean
    return _pictures(run, means)


@torch.no_grad()
def latent_grid(run: Run, n: int) -> Float[Tensor, "N 2"]:
    """Return the points z of the n by n grid that `manifold` decodes, in rows: z_1 to the right, z_2 upwards.

    Raises:
        UsageError: The latent space does not have 2 dimensions.
        VaecliError: The run's checkpoint cannot be used.
    """
    if run.config.model.latent_dim != 2:
        raise UsageError(
            f"{run.name}: has {run.config.model.latent_dim} latent dimensions; a manifold is drawn of 2: "
            "train with model.latent_dim=2"
        )
    u = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    square = torch.stack(torch.meshgrid(u.flip(0), u, indexing="ij"), -1).reshape(-1, 2).flip(-1)  # z_1 to the right
    z: Tensor = run.vae.prior.quantile(square).float()
    return z


@torch.no_grad()
def interpolate(
    run: Run, first: int = 0, second: int = 1, n: int = 10, *, split: Split = "test", data_dir: Path | None = None
) -> Float[NDArray[np.float32], "N H W *C"]:
    """Return the mean of p(x|z) at n points on the line between the posterior means of two images of a split.

    Raises:
        UsageError: The split has no image of that number.
        VaecliError: The run's checkpoint cannot be used.
        DataError: The images cannot be read.
    """
    images = _images(run, split, data_dir)
    for number in (first, second):
        if not 0 <= number < len(images):
            raise UsageError(f"{run.name}: its {split} split has images 0 to {len(images) - 1}, and no {number}")
    batch = _preprocess(run, images.pixels[[first, second]], generator(run.config.seed, "evaluation"))
    ends = run.vae.encoder(batch.input).mean
    means: Tensor = run.vae.decoder(torch.lerp(ends[:1], ends[1:], torch.linspace(0, 1, n)[:, None])).mean
    return _pictures(run, means)


def _images(run: Run, split: Split, data_dir: Path | None) -> Images:
    config = run.config
    images = Dataset(config.data, config.model.likelihood.support, data_dir).split(split)
    if len(images) == 0:
        raise UsageError(f"{run.name}: its {split} split has no images")
    return images


def _preprocess(run: Run, pixels: UInt8[Tensor, "N D"], stream: torch.Generator) -> Batch:
    """Turn pixels into x as in training."""
    return build_preprocess(run.config.model.likelihood.support, run.config.data)(pixels, stream)


def _pictures(run: Run, images: Float[Tensor, "N D"]) -> Float[NDArray[np.float32], "N H W *C"]:
    return images.reshape(-1, *run.checkpoint.image_shape.picture).numpy()
