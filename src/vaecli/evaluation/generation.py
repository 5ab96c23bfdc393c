"""What a trained VAE does with images: draw new ones, reconstruct given ones, and encode a split."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64
from numpy.typing import NDArray
from torch import Tensor

from vaecli.data.dataset import Dataset, Images, Split
from vaecli.data.observations import Observe, observation
from vaecli.errors import UsageError
from vaecli.model.distributions import Factorised, standard_normal
from vaecli.model.vae import VAE
from vaecli.randomness import generator
from vaecli.runs.run import Run

CHUNK = 1000


class Reconstructions(NamedTuple):
    """Images above what the model makes of them, both in units of the 0..1 pixel."""

    originals: Float[NDArray[np.float32], "N H W"]
    reconstructions: Float[NDArray[np.float32], "N H W"]


class Encoding(NamedTuple):
    """The posterior q(z|x) of every image of a split."""

    mean: Float[NDArray[np.float32], "N Z"]
    stddev: Float[NDArray[np.float32], "N Z"]
    labels: Int64[NDArray[np.int64], " N"] | None


def sample(run: Run, n: int = 100, *, seed: int = 0, draw: bool = False) -> Float[NDArray[np.float32], "N H W"]:
    """New images: z from the prior, then the mean of p(x|z).

    Args:
        run: A trained run.
        n: How many.
        seed: Of z, and of the pixels if they are drawn.
        draw: Draw x from p(x|z) instead of taking its mean.

    Returns:
        Images in units of the 0..1 pixel; draws of a Gaussian may lie outside.

    Raises:
        VaecliError: The run's checkpoint cannot be used.
    """
    images = sample_prior(run.vae, n, generator(seed, "samples"), draw=draw)
    return images.reshape(n, *run.checkpoint.image_shape).numpy()


@torch.no_grad()
def sample_prior(vae: VAE, n: int, noise: torch.Generator, *, draw: bool = False) -> Float[Tensor, "N D"]:
    """The means of p(x|z), or draws from it, for n draws of z ~ p(z)."""
    like = next(vae.parameters())
    z = standard_normal((n, vae.latent_dim), like, noise)
    return torch.cat([_picture(vae, chunk, noise if draw else None) for chunk in z.split(CHUNK)])


def _picture(vae: VAE, z: Tensor, noise: torch.Generator | None) -> Tensor:
    likelihood = vae.decoder(z)
    assert isinstance(likelihood, Factorised)
    return likelihood.mean if noise is None else likelihood.draw(noise)


@torch.no_grad()
def reconstruct_images(
    vae: VAE, images: Images, observe: Observe, noise: torch.Generator
) -> tuple[Float[Tensor, "N D"], Float[Tensor, "N D"]]:
    """The images, and the mean of p(x|z) at the posterior mean of each."""
    batch = observe(images.pixels, noise)
    return images.pixels.float() / 255, vae.decoder(vae.encoder(batch.input).mean).mean


def reconstruct(run: Run, n: int = 20, *, split: Split = "test", data_dir: Path | None = None) -> Reconstructions:
    """The first n images of a split, and the mean of p(x|z) at the posterior mean of each.

    Args:
        run: A trained run.
        n: How many; fewer if the split has fewer.
        split: train, validation or test.
        data_dir: As for `train`.

    Raises:
        VaecliError: The run's checkpoint cannot be used.
        DataError: The images are not to be had.
    """
    images = _split(run, split, data_dir).first(n)
    pair = reconstruct_images(run.vae, images, _observe(run), generator(run.config.seed, "evaluation"))
    shape = (len(images), images.height, images.width)
    return Reconstructions(*(part.reshape(shape).numpy() for part in pair))


@torch.no_grad()
def encode(run: Run, *, split: Split = "test", data_dir: Path | None = None) -> Encoding:
    """Posterior means and deviations of a split, with its labels; arguments and errors as for `reconstruct`.

    The encoder sees the images as in training: binarised or dequantised with evaluation's noise, the same every time.
    """
    images, observe, noise = _split(run, split, data_dir), _observe(run), generator(run.config.seed, "evaluation")
    posteriors = [run.vae.encoder(observe(chunk, noise).input) for chunk in images.pixels.split(CHUNK)]
    return Encoding(
        mean=torch.cat([q.mean for q in posteriors]).numpy(),
        stddev=torch.cat([q.stddev for q in posteriors]).numpy(),
        labels=None if images.labels is None else images.labels.numpy(),
    )


@torch.no_grad()
def manifold(run: Run, n: int = 20) -> Float[NDArray[np.float32], "N H W"]:
    """The mean of p(x|z) on an n by n grid of a 2-dimensional latent space, in rows (paper, figure 4).

    The grid is even in the unit square, and goes through the inverse CDF of the Gaussian prior: every cell has the same
    prior mass.

    Raises:
        UsageError: The latent space has not 2 dimensions.
        VaecliError: The run's checkpoint cannot be used.
    """
    if run.config.model.latent_dim != 2:
        raise UsageError(
            f"{run.name}: has {run.config.model.latent_dim} latent dimensions; a manifold is drawn of 2: "
            "train with model.latent_dim=2"
        )
    z = torch.special.ndtri((torch.arange(n, dtype=torch.float64) + 0.5) / n).float()
    grid = torch.stack(torch.meshgrid(-z, z, indexing="ij"), -1).reshape(-1, 2).flip(-1)  # first latent to the right
    means: Tensor = run.vae.decoder(grid).mean
    return means.reshape(n * n, *run.checkpoint.image_shape).numpy()


@torch.no_grad()
def interpolate(
    run: Run, first: int = 0, second: int = 1, n: int = 10, *, split: Split = "test", data_dir: Path | None = None
) -> Float[NDArray[np.float32], "N H W"]:
    """The mean of p(x|z) at n points on the line between the posterior means of two images of a split.

    Raises:
        UsageError: The split has no image of that number.
        VaecliError: The run's checkpoint cannot be used.
        DataError: The images are not to be had.
    """
    images = _split(run, split, data_dir)
    for number in (first, second):
        if not 0 <= number < len(images):
            raise UsageError(f"{run.name}: its {split} split has images 0 to {len(images) - 1}, and no {number}")
    pixels = images.pixels[[first, second]]
    ends = run.vae.encoder(_observe(run)(pixels, generator(run.config.seed, "evaluation")).input).mean
    z = torch.lerp(ends[:1], ends[1:], torch.linspace(0, 1, n)[:, None])
    means: Tensor = run.vae.decoder(z).mean
    return means.reshape(n, images.height, images.width).numpy()


def _split(run: Run, split: Split, data_dir: Path | None) -> Images:
    config = run.config
    images = Dataset(config.data, config.model.likelihood.support, data_dir).split(split)
    if len(images) == 0:
        raise UsageError(f"{run.name}: its {split} split has no images")
    return images


def _observe(run: Run) -> Observe:
    return observation(run.config.model.likelihood.support, run.config.data)
