"""The figures of a comparison's report."""

from collections.abc import Sequence
from io import BytesIO

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from vaecli.config.likelihoods import LIKELIHOODS
from vaecli.evaluation.generation import reconstruct, sample
from vaecli.sweeps.comparison import Comparison
from vaecli.sweeps.jobs import JobResult

COLOURS = mpl.colormaps["tab10"].colors  # type: ignore[attr-defined]
COLUMNS, ROWS = 5, 3
"""Images of each kind in a panel."""
WIDTH = 2.6
"""Inches of each decoder."""
DOTS_PER_INCH = 130


def panel(comparison: Comparison) -> Figure:
    """A column per decoder: test images, their reconstructions, samples from the prior; all of the first seed."""
    columns = [_pictures(comparison, decoder) for decoder in comparison.decoders]
    height, width = next((column[0].shape for column in columns if column), (ROWS, COLUMNS))
    size = (WIDTH * len(columns) + 0.3, 3 * WIDTH * height / width + 0.5)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(3, len(columns), squeeze=False)
    for axes_below, decoder, pictures in zip(axes.T, comparison.decoders, columns, strict=True):
        axes_below[0].set_title(decoder, fontsize=11)
        for i, axis in enumerate(axes_below):
            axis.set(xticks=[], yticks=[])
            if pictures:
                axis.imshow(pictures[i], cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            else:
                axis.text(0.5, 0.5, "failed", ha="center", va="center", transform=axis.transAxes)
    for axis, name in zip(axes[:, 0], ("test images", "reconstructions", "prior samples"), strict=True):
        axis.set_ylabel(name, fontsize=11)
    return figure


def _pictures(comparison: Comparison, decoder: str) -> list[NDArray[np.float32]]:
    """Test images, reconstructions and samples of a decoder's first run; nothing where all its runs failed."""
    run = next((outcome.run for outcome in comparison.of(decoder) if outcome.run), None)
    if run is None:
        return []
    n = COLUMNS * ROWS
    pair = reconstruct(run, n, data_dir=comparison.data_dir)
    return [_tile(part) for part in (pair.originals, pair.reconstructions, sample(run, n))]


def _tile(images: NDArray[np.float32]) -> NDArray[np.float32]:
    """Images in rows, edge to edge."""
    height, width = images.shape[1:]
    missing = COLUMNS * ROWS - len(images)
    padded = np.concatenate([images, np.zeros((missing, height, width), np.float32)])
    grid = padded.reshape(ROWS, COLUMNS, height, width).transpose(0, 2, 1, 3)
    return grid.reshape(ROWS * height, COLUMNS * width)


def curves(comparison: Comparison) -> Figure:
    """The validation ELBO over images seen, one chart for each support: a line per seed, a colour per decoder."""
    groups: dict[str, list[str]] = {}
    for decoder in comparison.decoders:
        groups.setdefault(LIKELIHOODS[decoder].support.value, []).append(decoder)
    figure = Figure(figsize=(5 * len(groups), 4.0), layout="constrained")
    axes = figure.subplots(1, len(groups), squeeze=False)[0]
    for axis, (support, decoders) in zip(axes, groups.items(), strict=True):
        ends = []
        for decoder in decoders:
            colour = COLOURS[comparison.decoders.index(decoder) % len(COLOURS)]
            for i, outcome in enumerate(comparison.of(decoder)):
                images, elbo = _curve(outcome)
                caveat = outcome.figures["caveat"]
                label = f"{decoder} ({caveat})" if caveat else decoder
                axis.plot(images, elbo, color=colour, lw=1.2, alpha=0.9, label=None if i else label)
                ends += elbo[len(elbo) // 10 :]
        axis.set(title=support, xlabel="images seen", ylabel="validation ELBO (nats)", xscale="log")
        if ends:
            margin = 0.05 * (max(ends) - min(ends)) + 0.1
            axis.set_ylim(min(ends) - margin, max(ends) + margin)
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
        if axis.lines:
            columns = 2 if all(len(str(line.get_label())) < 30 for line in axis.lines) else 1
            axis.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=columns)
    return figure


def _curve(outcome: JobResult) -> tuple[list[int], list[float]]:
    assert outcome.run is not None
    rows = [row for row in outcome.run.metrics if row["split"] == "validation" and row["elbo"] is not None]
    rows = rows or [row for row in outcome.run.metrics if row["elbo"] is not None]
    return [row["images"] for row in rows], [row["elbo"] for row in rows]


def bridges(comparison: Comparison) -> Figure:
    """What may be compared across supports: a point per seed."""
    wanted = (
        ("bits_per_dim", "bits per dimension"),
        ("binarised_nll", "binarised NLL (nats)"),
        ("mean_squared_error", "mean squared error"),
    )
    figure = Figure(
        figsize=(4.2 * len(wanted), 0.45 * len(comparison.decoders) + 1.3), layout=ConstrainedLayoutEngine(wspace=0.08)
    )
    for axis, (name, label) in zip(figure.subplots(1, len(wanted), squeeze=False)[0], wanted, strict=True):
        _dots(axis, comparison, name)
        axis.xaxis.set_major_locator(MaxNLocator(4))
        axis.set_xlabel(f"{label}, lower is better")
        if name != wanted[0][0]:
            axis.set_yticklabels([])
    return figure


def _dots(axis: mpl.axes.Axes, comparison: Comparison, name: str) -> None:
    decoders: Sequence[str] = comparison.decoders
    for i, decoder in enumerate(decoders):
        values = comparison.values(decoder, name)
        if values:
            colour = COLOURS[i % len(COLOURS)]
            axis.plot(values, [i] * len(values), "o", color=colour, ms=6, alpha=0.8, clip_on=False)
        else:
            axis.text(0.02, i, "not defined", va="center", color="gray", transform=axis.get_yaxis_transform())
    axis.set(yticks=range(len(decoders)), ylim=(len(decoders) - 0.5, -0.5))
    axis.set_yticklabels(decoders)
    axis.grid(axis="x", alpha=0.25)
    axis.spines[["top", "right", "left"]].set_visible(False)
    axis.tick_params(left=False)


def png(figure: Figure) -> bytes:
    """The figure as a PNG file."""
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=DOTS_PER_INCH, facecolor="white")
    return buffer.getvalue()
