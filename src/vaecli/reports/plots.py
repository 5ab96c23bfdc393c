"""The plots of a report, and how they are written as SVG."""

from collections.abc import Sequence
from io import BytesIO
from math import ceil
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, FigureBase
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import ScaledTranslation
from numpy.typing import NDArray

from vaecli.config.schema import get_setting
from vaecli.data.image_grid import as_seen
from vaecli.errors import VaecliError
from vaecli.evaluation.generation import reconstruct, sample
from vaecli.files import write_text
from vaecli.reports.statistics import interval
from vaecli.reports.tables import group_by, group_by_support, short_names
from vaecli.sweeps.sweep import JobResult, SweepResult, metrics

COLOURS = mpl.colormaps["tab10"].colors  # type: ignore[attr-defined]
COLUMNS, ROWS = 5, 3
"""Images of each kind in a panel."""
PAGE = 10.3
"""Inches across a page of the report: no figure is wider, so that its letters keep their size."""
MAX_COLUMN = 2.6
"""Inches of a decoder's column at most."""
MAX_CHART = 5.0
"""Inches of a chart at most."""
MAX_LINES = 10
"""Lines in a chart with a legend; more names would be as high as the chart."""
MAX_NAME = 44
"""Characters of a line's name."""
LOGARITHMIC = 8
"""How many times the smallest value the largest must be for a logarithmic axis."""
SVG = "http://www.w3.org/2000/svg"
ET.register_namespace("", SVG)
ET.register_namespace("xlink", "http://www.w3.org/1999/xlink")


def panel(found: SweepResult) -> Figure:
    """Show test images, their reconstructions and samples from the prior, a column per decoder, of the first seed."""
    columns = [_pictures(found, decoder) for decoder in found.decoders]
    height, width = next((column[0].shape[:2] for column in columns if column), (ROWS, COLUMNS))
    column = min(MAX_COLUMN, (PAGE - 0.3) / len(columns))
    size = (column * len(columns) + 0.3, 3 * column * height / width + 0.5)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(3, len(columns), squeeze=False)
    for axes_below, decoder, pictures in zip(axes.T, found.decoders, columns, strict=True):
        axes_below[0].set_title(decoder, fontsize=10)
        for i, axis in enumerate(axes_below):
            axis.set(xticks=[], yticks=[])
            if pictures:
                axis.imshow(pictures[i], cmap="gray", vmin=0, vmax=1, interpolation="none")
            else:
                axis.text(0.5, 0.5, "failed", ha="center", va="center", transform=axis.transAxes)
    for axis, name in zip(axes[:, 0], ("test images", "reconstructions", "prior samples"), strict=True):
        axis.set_ylabel(name, fontsize=10)
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
    images = as_seen(images).clip(0, 1)
    n, height, width, *channels = images.shape
    padded = np.zeros((ROWS * COLUMNS, height, width, *channels), np.float32)
    padded[:n] = images
    grid = padded.reshape(ROWS, COLUMNS, height, width, *channels).swapaxes(1, 2)
    return grid.reshape(ROWS * height, COLUMNS * width, *channels)


def curves(found: SweepResult) -> Figure:
    """Plot the ELBO of held-out images over images seen, a chart for each support, a line a run, a colour a decoder."""
    groups: dict[str, list[str]] = {}
    for result in found.results:
        decoders = groups.setdefault(result.config.support.value, [])
        decoders += [] if result.decoder in decoders else [result.decoder]
    split = split_of_curves(found)
    figure, charts = _charts(len(groups))
    for chart, (support, decoders) in zip(charts, groups.items(), strict=True):
        ends, seen = [], []
        for decoder in decoders:
            colour = COLOURS[found.decoders.index(decoder) % len(COLOURS)]
            for i, result in enumerate(found.of(decoder)):
                images, elbo = _curve(result, split)
                caveat = result.config.caveat
                label = f"{decoder} ({caveat})" if caveat else decoder
                one = "o" if len(elbo) == 1 else None  # a line needs two
                chart.plot(images, elbo, color=colour, lw=1.2, alpha=0.9, marker=one, label=None if i else label)
                ends += elbo[len(elbo) // 10 :]
                seen += images
        chart.set_title(support, fontsize=11)
        chart.set(xlabel=f"{found.sweep.base.data.kind} seen", ylabel=f"{split} ELBO (nats)")
        if seen and max(seen) / min(seen) >= LOGARITHMIC:
            chart.set_xscale("log")
        if ends:
            margin = 0.05 * (max(ends) - min(ends)) + 0.1
            chart.set_ylim(min(ends) - margin, max(ends) + margin)
    _add_legends(figure, charts)
    return figure


def split_of_curves(found: SweepResult) -> str:
    """Return the split whose bound is plotted over training: that of validation, where there is one."""
    with_validation = any(row["split"] == "validation" for r in found.done if r.run for row in r.run.metrics)
    return "validation" if with_validation else "train"


def _curve(result: JobResult, split: str) -> tuple[list[int], list[float]]:
    assert result.run is not None
    rows = [row for row in result.run.metrics if row["split"] == split and row["elbo"] is not None]
    return [row["images"] for row in rows], [row["elbo"] for row in rows]


def _charts(n: int) -> tuple[Figure, list[Axes]]:
    """Return a figure of n charts: up to three side by side, more in rows of two."""
    columns = n if n <= 3 else 2
    rows = ceil(n / columns)
    figure = Figure(figsize=(min(MAX_CHART * columns, PAGE), 0), layout="constrained")
    return figure, add_charts(figure, rows, columns, n)


def add_charts(figure: FigureBase, rows: int, columns: int, n: int) -> list[Axes]:
    """Add the first n charts of a grid, with faint lines and no frame, and return them."""
    charts: list[Axes] = list(figure.subplots(rows, columns, squeeze=False).ravel())
    for chart in charts[n:]:
        chart.remove()
    for chart in charts[:n]:
        chart.grid(alpha=0.25)
        chart.spines[["top", "right"]].set_visible(False)
    return charts[:n]


def _add_legends(figure: Figure, charts: Sequence[Axes]) -> None:
    """Name the lines of each chart below it, and make room for the names."""
    width = figure.get_figwidth() / charts[0].get_subplotspec().get_gridspec().ncols  # type: ignore[union-attr]
    highest = 0
    below = ScaledTranslation(0, -0.52, figure.dpi_scale_trans)  # in inches: under the axis and its title
    for chart in charts:
        names = [str(line.get_label()) for line in chart.lines if not str(line.get_label()).startswith("_")]
        if 0 < len(names) <= MAX_LINES:
            columns = 2 if len(names) > 1 and 0.15 * max(map(len, names)) + 1.1 < width else 1
            highest = max(highest, ceil(len(names) / columns))
            chart.legend(
                frameon=False, fontsize=9, ncols=columns, loc="upper center", borderpad=0, borderaxespad=0,
                bbox_to_anchor=(0.5, 0), bbox_transform=chart.transAxes + below,
            )  # fmt: skip
    n_rows = charts[0].get_subplotspec().get_gridspec().nrows  # type: ignore[union-attr]
    figure.set_figheight(n_rows * (3.4 + 0.19 * highest))


def across_supports(found: SweepResult) -> Figure:
    """Plot what may be compared across supports: a point per seed."""
    wanted = (
        ("bits_per_dim", "bits per dimension"),
        ("binarised_nll", "binarised NLL (nats)"),
        ("mean_squared_error", "mean squared error"),
    )
    figure = Figure(figsize=(PAGE, 0.36 * len(found.decoders) + 0.9), layout=ConstrainedLayoutEngine(wspace=0.08))
    for axis, (name, label) in zip(figure.subplots(1, len(wanted), squeeze=False)[0], wanted, strict=True):
        _dots(axis, found, name)
        axis.xaxis.set_major_locator(MaxNLocator(4))
        axis.set_xlabel(f"{label},\nlower is better")
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
    others = [axis for axis in axes if axis != key]
    figure, charts = _charts(len(supports))
    for chart, (support, results) in zip(charts, supports.items(), strict=True):
        for i, (labels, of_line) in enumerate(group_by(results, others).items()):
            name = ", ".join(f"{name} {value}" for name, value in zip(short_names(others), labels, strict=True))
            _line(chart, of_line, key, COLOURS[i % len(COLOURS)], plain(name) if others else "_")
        chart.set_title(support, fontsize=11)
        chart.set(xlabel=key, ylabel=f"ELBO (nats, {found.sweep.evaluation.split})")
        _mark_values(chart, sorted({get_setting(result.config, key) for result in results}))
    _add_legends(figure, charts)
    return figure


def has_legend(found: SweepResult, key: str, axes: Sequence[str]) -> bool:
    """Return whether every chart of `by_axis` names its lines, as far as it has several."""
    others = [axis for axis in axes if axis != key]
    return all(len(group_by(results, others)) <= MAX_LINES for results in group_by_support(found.done).values())


def plain(name: str, longest: int = MAX_NAME) -> str:
    """Return a name as a plot can show it: printable, of one line, not too long, and no formula."""
    name = "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in name)
    if len(name) > longest:
        name = f"{name[: longest // 2]}…{name[-longest // 2 + 1 :]}"
    return name.replace("$", r"\$")


def _line(chart: Axes, results: Sequence[JobResult], key: str, colour: Any, name: str) -> None:
    by_value: dict[float, list[JobResult]] = {}
    for result in results:
        by_value.setdefault(get_setting(result.config, key), []).append(result)
    x = sorted(by_value)
    intervals = [interval(metrics(by_value[value], "elbo")) for value in x]
    mean = np.array([middle for middle, _ in intervals])
    half = np.array([0.0 if width is None else width for _, width in intervals])
    chart.plot(x, mean, "o-", color=colour, ms=4, lw=1.4, label=name)
    if half.any():
        chart.fill_between(x, mean - half, mean + half, color=colour, alpha=0.15, lw=0)


def _mark_values(chart: Axes, values: Sequence[int | float]) -> None:
    """Choose the scale of an axis, and mark on it the values themselves, if they do not lie too close."""
    place = np.array(values, float)
    if place[0] > 0 and place[-1] / place[0] >= LOGARITHMIC:
        chart.set_xscale("log")
        place = np.log(place)
    if len(place) > 1 and np.diff(place).min() >= 0.08 * np.ptp(place):
        chart.set_xticks(values, [f"{value:g}" for value in values])
        chart.minorticks_off()


def svg(figure: Figure, alt: str) -> str:
    """Return a plot as SVG that can stand in a file as in an HTML page; the same plot gives the same text.

    Its letters stay letters, to be searched and copied; its images keep their pixels.

    Args:
        figure: The plot.
        alt: What it shows, for those who cannot see it.
    """
    buffer = BytesIO()
    with mpl.rc_context({"svg.hashsalt": alt, "svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg", facecolor="white", metadata={"Date": None})
    root = ET.fromstring(buffer.getvalue())  # noqa: S314 - matplotlib's own
    for metadata in root.findall(f"{{{SVG}}}metadata"):
        root.remove(metadata)
    for group in root.iter(f"{{{SVG}}}g"):
        group.attrib.pop("id", None)  # of no use, and the same in every plot of a page
    root.attrib |= {"role": "img", "aria-label": alt}
    return ET.tostring(root, encoding="unicode")


def write_svg(figure: Figure, path: Path, alt: str) -> Path:
    """Write a plot as `svg` returns it; return its path. Raises VaecliError where it cannot be written."""
    try:
        write_text(path, svg(figure, alt))
    except OSError as error:
        raise VaecliError(f"{path}: cannot be written: {error.strerror}") from error
    return path
