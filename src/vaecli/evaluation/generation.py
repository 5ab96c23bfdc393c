"""What a trained run can show: new images, reconstructions, encodings of a split, walks through the latent space."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64
from numpy.typing import NDArray
from torch import Tensor

from vaecli.data.dataset import Images, Split
from vaecli.data.preprocess import Batch, build_preprocess, one_hot
from vaecli.errors import UsageError
from vaecli.evaluation.held_out import open_dataset
from vaecli.randomness import generator
from vaecli.runs.run import Run

CHUNK = 1000
"""Images that are encoded at a time."""


class Reconstructions(NamedTuple):
    """Hold images and their reconstructions, both in units of the 0..1 pixel: (N, H, W), or (N, H, W, C) in colour.

    Vectors are (N, D), in their own units.
    """

    originals: Float[NDArray[np.float32], "N ..."]
    reconstructions: Float[NDArray[np.float32], "N ..."]


class Encoding(NamedTuple):
    """Hold the posterior q(z|x) of every image of a split."""

    mean: Float[NDArray[np.float32], "N Z"]
    stddev: Float[NDArray[np.float32], "N Z"]
    labels: Int64[NDArray[np.int64], " N"] | None


def sample(
    run: Run, n: int = 100, *, seed: int = 0, draw: bool = False, label: int | None = None
) -> Float[NDArray[np.float32], "N ..."]:
    """Draw new images: z from the prior, then the mean of p(x|z).

    Args:
        run: A trained run.
        n: How many.
        seed: Of z, and of the pixels if they are drawn.
        draw: Draw x from p(x|z) instead of taking its mean.
        label: Of all of them, for a model that is told labels; None for as many of each, in order.

    Returns:
        Images in units of the 0..1 pixel, (N, H, W) or in colour (N, H, W, C); draws of a Gaussian may lie outside. Of
        vectors (N, D), in their own units.

    Raises:
        UsageError: The model is not told labels, or has none of that number.
        VaecliError: The run's checkpoint cannot be used.
    """
    classes = None if label is None else torch.full((n,), check_label(run, label))
    return _as_data(run, run.vae.sample(n, generator(seed, "samples"), draw=draw, classes=classes))


def check_label(run: Run, label: int) -> int:
    """Return a label that a run's model knows. Raises UsageError."""
    n = run.config.model.n_classes
    if not n:
        raise UsageError(f"{run.name}: its model is not told labels; train with model.condition=labels")
    if not 0 <= label < n:
        raise UsageError(f"{run.name}: has labels 0 to {n - 1}, and no {label}")
    return label


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
    batch = _preprocess(run, images, generator(run.config.seed, "evaluation"))
    originals = images.pixels if run.vae.units is not None else images.pixels.float() / 255
    return Reconstructions(_as_data(run, originals), _as_data(run, run.vae.reconstruct(batch.input)))


@torch.no_grad()
def encode(run: Run, *, split: Split = "test", data_dir: Path | None = None) -> Encoding:
    """Return posterior means and deviations of a split, with its labels; arguments and errors as for `reconstruct`.

    The encoder sees the images as in training: binarised or dequantised by evaluation's own random numbers, the same
    every time.
    """
    images, stream = _images(run, split, data_dir), generator(run.config.seed, "evaluation")
    chunks = (images.at(slice(start, start + CHUNK)) for start in range(0, len(images), CHUNK))
    posteriors = [run.vae.encoder(_preprocess(run, chunk, stream).input) for chunk in chunks]
    return Encoding(
        mean=torch.cat([q.mean for q in posteriors]).numpy(),
        stddev=torch.cat([q.stddev for q in posteriors]).numpy(),
        labels=None if images.labels is None else images.labels.numpy(),
    )


@torch.no_grad()
def manifold(run: Run, n: int = 20, *, label: int | None = None) -> Float[NDArray[np.float32], "N ..."]:
    """Return the mean of p(x|z) on an n by n grid of a 2-dimensional latent space, in rows (paper, figure 4).

    The grid is even in the unit square and goes through the quantiles of the prior, so that every cell has the same
    prior mass. A model that is told labels is given `label`.

    Raises:
        UsageError: The latent space does not have 2 dimensions, or the label is missing or not one of the model's.
        VaecliError: The run's checkpoint cannot be used.
    """
    z, n_classes = latent_grid(run, n), run.config.model.n_classes
    if n_classes and label is None:
        raise UsageError(f"{run.name}: its model is told labels, 0 to {n_classes - 1}: name one with --label")
    vae = run.vae if label is None else run.vae.given(one_hot(torch.tensor(check_label(run, label)), n_classes, z))
    means: Tensor = vae.decoder(z).mean
    return _as_data(run, means)


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
) -> Float[NDArray[np.float32], "N ..."]:
    """Return the mean of p(x|z) at n points on the line between the posterior means of two images of a split.

    A model that is told labels goes from the one's to the other's in the same way.

    Raises:
        UsageError: The split has no image of that number.
        VaecliError: The run's checkpoint cannot be used.
        DataError: The images cannot be read.
    """
    images = _images(run, split, data_dir)
    for number in (first, second):
        if not 0 <= number < len(images):
            raise UsageError(f"{run.name}: its {split} split has images 0 to {len(images) - 1}, and no {number}")
    seen = _preprocess(run, images.at(torch.tensor([first, second])), generator(run.config.seed, "evaluation")).input
    way = torch.linspace(0, 1, n)[:, None]
    z, between = (torch.lerp(ends[:1], ends[1:], way) for ends in (run.vae.encoder(seen).mean, seen))
    means: Tensor = run.vae.given(between).decoder(z).mean
    return _as_data(run, means)


def _images(run: Run, split: Split, data_dir: Path | None) -> Images:
    images = open_dataset(run, run.vae, data_dir).split(split)
    if len(images) == 0:
        raise UsageError(f"{run.name}: its {split} split has no images")
    return images


def _preprocess(run: Run, images: Images, stream: torch.Generator) -> Batch:
    """Turn images into x as in training."""
    config = run.config
    preprocess = build_preprocess(config.support, config.data, config.model.n_classes)
    return preprocess(images.pixels, stream, images.labels)


def _as_data(run: Run, x: Float[Tensor, "N D"]) -> Float[NDArray[np.float32], "N ..."]:
    """Return x as pictures, or as vectors in their own units."""
    if run.vae.units is not None:
        return run.vae.units.restore(x).numpy()
    return x.reshape(-1, *run.checkpoint.image_shape.picture).numpy()
