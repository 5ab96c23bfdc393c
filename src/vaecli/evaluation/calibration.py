"""Simulation-based calibration: whether q(z|x) is as wide, and where, as the posterior that it stands for."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy.stats
import torch
from jaxtyping import Int64
from numpy.typing import NDArray
from torch import Tensor

from vaecli.errors import UsageError
from vaecli.evaluation.held_out import open_model, prepare_directory, rows_at_once, write_results
from vaecli.model.distributions import standard_normal
from vaecli.model.vae import VAE
from vaecli.randomness import generator
from vaecli.runs.run import Run
from vaecli.stages import StageCallback, silent

DRAWS, BINS = 99, 20
"""Draws from q(z|x) for each image, so that there are 100 ranks; and the bins of their histogram."""
FEWEST = 5 * BINS
"""Images: chi-square needs five in each bin."""


@dataclass(frozen=True)
class Calibration:
    """Hold how the ranks of the true z among draws from q(z|x) lie in each latent dimension; uniform if q is right."""

    run: str
    checkpoint: str
    decoder: str
    caveat: str | None
    """Of the run's bound: what it was trained on are no draws of its likelihood, as the images here are."""
    n_images: int
    """Drawn from the model."""
    draws: int
    """From q(z|x), for each image: ranks go from 0 to this."""
    seed: int
    p_value: float
    """Of the dimension that is least uniform, by chi-square, times the number of dimensions (Bonferroni)."""
    chi_square: list[float]
    """Of the histogram against equal bins."""
    chi_square_p: list[float]
    deviation: list[float]
    """The largest distance between the ranks' distribution function and the uniform one (Kolmogorov–Smirnov)."""
    deviation_p: list[float]
    """Conservative, since ranks are discrete."""
    mean: list[float]
    """Of the ranks, as shares; 0.5 if q is right, below where its draws lie above z."""
    spread: list[float]
    """Of the ranks, over that of uniform ones: above 1 where q is too narrow, below where it is too wide."""
    histogram: list[list[int]]
    """Images in each bin, from the lowest ranks to the highest."""


@torch.no_grad()
def posterior_ranks(
    vae: VAE, n: int, draws: int, noise: torch.Generator, *, rows: int = 10_000, callback: StageCallback = silent
) -> Int64[NDArray[np.int64], "n Z"]:
    """Return how many of `draws` draws from q(z|x) lie below z in each dimension, for z ~ p(z) and x ~ p(x|z).

    Where q(z|x) is the posterior, z and the draws are exchangeable given x, and each rank from 0 to `draws` is as
    likely as any other (Cook et al. 2006; Talts et al. 2018, arXiv 1804.06788, theorem 1).

    Args:
        vae: In evaluation mode.
        n: Images to draw.
        draws: From q(z|x), for each.
        noise: Draws all of it.
        rows: Draws of z that are made at a time, at most.
        callback: Is told of the stage and its progress.
    """
    z, (seen, _) = vae.simulate(n, noise)
    ranks, done = list[Tensor](), 0
    for some_z, some_seen in zip(*(part.split(max(1, rows // draws)) for part in (z, seen)), strict=True):
        epsilon = standard_normal((draws, *some_z.shape), some_z, noise)
        ranks.append((vae.encoder(some_seen).transport(epsilon).z < some_z).sum(0))
        done += len(some_z)
        callback("the ranks of z", done, n)
    found: NDArray[np.int64] = torch.cat(ranks).cpu().numpy()
    return found


def evaluate_calibration(
    run: Run, *, n: int = 1000, seed: int = 0, device: str = "auto", callback: StageCallback | None = None
) -> tuple[Calibration, Path]:
    """Draw images from a run's model and see where their z lie among draws from q(z|x).

    Args:
        run: A trained run.
        n: How many images.
        seed: Of evaluation's own random numbers.
        device: auto, cpu, cuda, cuda:1 or mps.
        callback: As for `evaluate`.

    Returns:
        The calibration, and the JSON file that holds it; beside it an .npz of the same name has the ranks.

    Raises:
        UsageError: There are too few images for the tests, or the device is not there.
        VaecliError: As for `evaluate`.
    """
    if n < FEWEST:
        raise UsageError(f"calibration needs at least {FEWEST} images, not {n}: the tests would mean nothing")
    run, vae = open_model(run, device)
    step, checkpoint = run.checkpoint.progress.step, run.checkpoint_path.stem
    path = run.path / "evaluations" / f"{checkpoint}-step{step}-calibration-{n}images-seed{seed}.json"
    prepare_directory(path)
    noise = generator(seed, "samples", vae.device)
    ranks = posterior_ranks(vae, n, DRAWS, noise, rows=rows_at_once(vae.device), callback=callback or silent)
    found = Calibration(
        run=run.name, checkpoint=f"{checkpoint} at step {step}", decoder=run.config.model.decoder,
        caveat=run.config.caveat, n_images=n, draws=DRAWS, seed=seed, **uniformity(ranks, DRAWS),
    )  # fmt: skip
    write_results(path, asdict(found), {"ranks": torch.from_numpy(ranks)})
    return found, path


def uniformity(ranks: Int64[NDArray[np.int64], "n Z"], draws: int) -> dict[str, Any]:
    """Test whether ranks in 0..draws are uniform in each dimension.

    Returns:
        The fields of `Calibration` from `p_value` on.
    """
    n, latent_dim = ranks.shape
    histogram = np.stack([np.bincount(column * BINS // (draws + 1), minlength=BINS) for column in ranks.T])
    chi_square, chi_square_p = scipy.stats.chisquare(histogram, axis=1)
    counts = np.stack([np.bincount(column, minlength=draws + 1) for column in ranks.T])
    uniform = np.arange(1, draws + 2) / (draws + 1)
    deviation = np.abs(counts.cumsum(1) / n - uniform).max(1)
    shares = (ranks + 0.5) / (draws + 1)
    of_uniform = np.sqrt((1 - (draws + 1.0) ** -2) / 12)
    return {
        "p_value": float(min(1, latent_dim * chi_square_p.min())),
        "chi_square": chi_square.tolist(),
        "chi_square_p": chi_square_p.tolist(),
        "deviation": deviation.tolist(),
        "deviation_p": scipy.stats.kstwo.sf(deviation, n).tolist(),
        "mean": shares.mean(0).tolist(),
        "spread": (shares.std(0) / of_uniform).tolist(),
        "histogram": histogram.tolist(),
    }
