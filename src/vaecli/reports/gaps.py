"""The picture of where a bound is lost, image by image."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from vaecli.reports.plots import write_svg

APPROXIMATION, AMORTISATION = "#4269d0", "#efb118"


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
