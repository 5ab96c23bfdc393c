"""The pictures of an encoder's faults: where a bound is lost, and where the true z lies among draws of q(z|x)."""

from pathlib import Path

import numpy as np
import scipy.stats
from matplotlib.figure import Figure

from vaecli.evaluation.calibration import Calibration
from vaecli.reports.plots import write_svg

APPROXIMATION, AMORTISATION = "#4269d0", "#efb118"
COLUMNS, PANELS = 5, 20
"""Dimensions side by side, and in all: of more, those that are least uniform."""
LEVEL = 0.99
"""Of the bins of uniform ranks, so many lie in the band."""


def draw_gaps(path: Path) -> Path:
    """Draw both gaps of every image, beside the JSON file that holds their means.

    Images are sorted by the sum of their gaps, so that the upper edge is what the bound of each loses.

    Args:
        path: The file that `evaluate_gaps` wrote.

    Returns:
        The picture's path.

    Raises:
        VaecliError: It cannot be written.
    """
    with np.load(path.with_suffix(".npz")) as arrays:
        approximation, amortisation = arrays["approximation_gap"], arrays["amortisation_gap"]
    order = np.argsort(approximation + amortisation)
    share = (np.arange(len(order)) + 0.5) / len(order) * 100
    figure = Figure(figsize=(7, 3.6), layout="constrained")
    chart = figure.subplots()
    first, both = approximation[order], (approximation + amortisation)[order]
    chart.fill_between(
        share, 0, first, color=APPROXIMATION, lw=0, label="approximation: no diagonal Gaussian does better"
    )
    chart.fill_between(share, first, both, color=AMORTISATION, lw=0, label="amortisation: the encoder does not find it")
    chart.plot(share, both, color="black", lw=1, label="log p(x) - ELBO")
    chart.set(xlabel="images, sorted by what their bound loses (%)", ylabel="nats", xlim=(0, 100))
    chart.set_ylim(min(0.0, float(first.min())), float(np.quantile(both, 0.99)) * 1.1)
    chart.grid(alpha=0.25)
    chart.spines[["top", "right"]].set_visible(False)
    chart.legend(frameon=False, loc="upper left")
    return write_svg(
        figure, path.with_suffix(".svg"), "What the bound of each image loses: approximation and amortisation gap"
    )


def draw_calibration(found: Calibration, path: Path) -> Path:
    """Draw the histogram of ranks of each latent dimension over the band of uniform ones, beside the JSON file.

    Args:
        found: Of `evaluate_calibration`.
        path: The file that it wrote.

    Returns:
        The picture's path.

    Raises:
        VaecliError: It cannot be written.
    """
    shown = np.sort(np.argsort(found.chi_square_p, kind="stable")[:PANELS])
    histogram = np.array(found.histogram)
    bins = histogram.shape[1]
    columns = min(COLUMNS, len(shown))
    lines = -(-len(shown) // columns)
    figure = Figure(figsize=(1.9 * columns + 0.6, 1.5 * lines + 0.5), layout="constrained")
    axes = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False).ravel()
    low, high = scipy.stats.binom.interval(LEVEL, found.n_images, 1 / bins)
    edges = np.linspace(0, 1, bins + 1)
    for axis, dimension in zip(axes, shown, strict=False):
        axis.axhspan(low, high, color="0.85", lw=0)
        axis.axhline(found.n_images / bins, color="0.5", lw=0.8)
        axis.stairs(histogram[dimension], edges, color="#4269d0", lw=1.4)
        axis.set_title(f"z{dimension}: spread {found.spread[dimension]:.2f}", fontsize=8)
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=7)
    for axis in axes[len(shown) :]:
        axis.set_visible(False)
    axes[0].set(xlim=(0, 1), xticks=(0, 0.5, 1), ylim=(0, 1.05 * max(high, histogram[shown].max())))
    figure.supxlabel("rank of z among draws from q(z|x)", fontsize=8)
    figure.supylabel("images", fontsize=8)
    return write_svg(
        figure, path.with_suffix(".svg"), "Ranks of z among draws from q(z|x), over the band of uniform ranks"
    )
