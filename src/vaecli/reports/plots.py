"""The plots of a report."""

from collections.abc import Sequence
from io import BytesIO
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from vaecli.config.schema import get_setting
from vaecli.evaluation.generation import reconstruct, sample
from vaecli.reports.statistics import interval
from vaecli.reports.tables import group_by, group_by_support, short_names
from vaecli.sweeps.sweep import JobResult, SweepResult, metrics

COLOURS = mpl.colormaps["tab10"].colors  # type: ignore[attr-defined]
COLUMNS, ROWS = 5, 3
"""Images of each kind in a panel."""
WIDTH = 2.6
"""Inches of each decoder."""
DOTS_PER_INCH = 130
MAX_LINES = 10
"""Lines in a chart with a legend; with more of them their names would hide it."""


def panel(found: SweepResult) -> Figure:
    """Show test images, their reconstructions and samples from the prior, a column per decoder, of the first seed."""
    columns = [_pictures(found, decoder) for decoder in found.decoders]
    height, width = next((column[0].shape for column in columns if column), (ROWS, COLUMNS))
    size = (WIDTH * len(columns) + 0.3, 3 * WIDTH * height / width + 0.5)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(3, len(columns), squeeze=False)
    for axes_below, decoder, pictures in zip(axes.T, found.decoders, columns, strict=True):
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


def _pictures(found: SweepResult, decoder: str) -> list[NDArray[np.float32]]:
    """Return test images, reconstructions and samples of a decoder's first run; nothing where all its runs failed."""
    run = next((result.run for result in found.of(decoder) if result.run), None)
    if run is None:
        return []
    n = COLUMNS * ROWS
    pair = reconstruct(run, n, data_dir=found.data_dir)
    return [_tile(part) for part in (pair.originals, pair.reconstructions, sample(run, n))]


def _tile(images: NDArray[np.float32]) -> NDArray[np.float32]:
    """Lay images out in ROWS and COLUMNS; where there are fewer, the rest stays black."""
    n, height, width = images.shape
    missing = max(0, ROWS * COLUMNS - n)
    padded = np.concatenate([images, np.zeros((missing, height, width), np.float32)])
    grid = padded.reshape(ROWS, COLUMNS, height, width).transpose(0, 2, 1, 3)
    return grid.reshape(ROWS * height, COLUMNS * width)


def curves(found: SweepResult) -> Figure:
    """Plot the validation ELBO over images seen, a chart for each support, a line per seed, a colour per decoder."""
    groups: dict[str, list[str]] = {}
    for result in found.results:
        decoders = groups.setdefault(result.config.model.likelihood.support.value, [])
        decoders += [] if result.decoder in decoders else [result.decoder]
    figure = Figure(figsize=(5 * len(groups), 4.0), layout="constrained")
    axes = figure.subplots(1, len(groups), squeeze=False)[0]
    for axis, (support, decoders) in zip(axes, groups.items(), strict=True):
        ends = []
        for decoder in decoders:
            colour = COLOURS[found.decoders.index(decoder) % len(COLOURS)]
            for i, result in enumerate(found.of(decoder)):
                images, elbo = _curve(result)
                caveat = result.config.caveat
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


def _curve(result: JobResult) -> tuple[list[int], list[float]]:
    assert result.run is not None
    rows = [row for row in result.run.metrics if row["split"] == "validation" and row["elbo"] is not None]
    rows = rows or [row for row in result.run.metrics if row["elbo"] is not None]
    return [row["images"] for row in rows], [row["elbo"] for row in rows]


def across_supports(found: SweepResult) -> Figure:
    """Plot what may be compared across supports: a point per seed."""
    wanted = (
        ("bits_per_dim", "bits per dimension"),
        ("binarised_nll", "binarised NLL (nats)"),
        ("mean_squared_error", "mean squared error"),
    )
    figure = Figure(
        figsize=(4.2 * len(wanted), 0.45 * len(found.decoders) + 1.3), layout=ConstrainedLayoutEngine(wspace=0.08)
    )
    for axis, (name, label) in zip(figure.subplots(1, len(wanted), squeeze=False)[0], wanted, strict=True):
        _dots(axis, found, name)
        axis.xaxis.set_major_locator(MaxNLocator(4))
        axis.set_xlabel(f"{label}, lower is better")
        if name != wanted[0][0]:
            axis.set_yticklabels([])
    return figure


def _dots(axis: Axes, found: SweepResult, name: str) -> None:
    decoders: Sequence[str] = found.decoders
    for i, decoder in enumerate(decoders):
        values = metrics(found.of(decoder), name)
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


def is_numeric(results: Sequence[JobResult], key: str) -> bool:
    """Return whether a setting takes several values that can stand on an axis."""
    values = [get_setting(result.config, key) for result in results]
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    return numbers and len(set(map(str, values))) > 1


def by_axis(found: SweepResult, key: str, axes: Sequence[str]) -> Figure:
    """Plot the ELBO over a setting, a chart for each support, a line for each choice of the others, a band over seeds.

    Args:
        found: A sweep.
        key: The setting.
        axes: All settings that vary but the seed.
    """
    supports = group_by_support(found.done)
    figure = Figure(figsize=(5.2 * len(supports), 4.2), layout="constrained")
    others = [axis for axis in axes if axis != key]
    charts = figure.subplots(1, len(supports), squeeze=False)[0]
    for chart, (support, results) in zip(charts, supports.items(), strict=True):
        lines = group_by(results, others)
        for i, (labels, of_line) in enumerate(lines.items()):
            name = ", ".join(f"{name} {value}" for name, value in zip(short_names(others), labels, strict=True))
            name = name.replace("$", r"\$")  # which would begin a formula
            _line(chart, of_line, key, COLOURS[i % len(COLOURS)], name)
        chart.set(title=support, xlabel=key, ylabel=f"ELBO (nats, {found.sweep.evaluation.split})")
        chart.grid(alpha=0.25)
        chart.spines[["top", "right"]].set_visible(False)
        if others and len(lines) <= MAX_LINES:
            chart.legend(frameon=False, fontsize=9)
    return figure


def _line(chart: Axes, results: Sequence[JobResult], key: str, colour: Any, name: str) -> None:
    by_value: dict[float, list[JobResult]] = {}
    for result in results:
        by_value.setdefault(get_setting(result.config, key), []).append(result)
    x = sorted(by_value)
    intervals = [interval(metrics(by_value[value], "elbo")) for value in x]
    mean = np.array([middle for middle, _ in intervals])
    half = np.array([0.0 if width is None else width for _, width in intervals])
    chart.plot(x, mean, "o-", color=colour, ms=4, lw=1.4, label=name)
    chart.fill_between(x, mean - half, mean + half, color=colour, alpha=0.15, lw=0)
    if min(x) > 0 and max(x) / min(x) >= 8:
        chart.set_xscale("log")
        chart.set_xticks(x, [f"{value:g}" for value in x])
        chart.minorticks_off()


def png(figure: Figure) -> bytes:
    """Return a plot as the content of a PNG file."""
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=DOTS_PER_INCH, facecolor="white")
    return buffer.getvalue()
