"""The charts of an experiment's page: our curves under the published points, figures side by side, pictures."""

from collections.abc import Mapping, Sequence
from math import ceil
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Picture
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from vaecli.config.schema import get_setting
from vaecli.data.image_grid import as_seen
from vaecli.errors import VaecliError
from vaecli.evaluation.generation import manifold, reconstruct, sample
from vaecli.papers.comparison import SEED, Figure, Outcome
from vaecli.papers.experiment import Experiment, as_key
from vaecli.papers.results import thin
from vaecli.papers.spec import Chart
from vaecli.reports.plots import PAGE, add_charts, plain

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
"""Told apart by colour-blind readers too (Okabe & Ito 2008)."""
MARKERS = ("o", "s", "D", "^", "v", "P")
STYLES = {"train": (0, (4, 2)), "validation": "solid"}
LATE = 0.03
"""The share of the images from which on a curve decides the range of a chart."""
UNITS = {"active_units": "active units"}
"""Of a curve's metric that is not in nats."""
MAX_TITLE = 80
"""Letters of a chart's title."""
SIDE = 10
"""Images along the side of a picture."""
Figures = Mapping[str, list[Figure]]
"""Published numbers and ours, by the name of their kind."""


def draw(chart: Chart, experiment: Experiment, outcomes: Sequence[Outcome], figures: Figures) -> Picture | None:
    """Draw a chart of an experiment's page; None where there is nothing to show yet."""
    outcomes = [outcome for outcome in outcomes if outcome.matches(chart.where)]
    figures = {name: [figure for figure in kind if _may_be(figure, chart.where)] for name, kind in figures.items()}
    return {"curves": draw_curves, "figures": draw_figures, "pictures": draw_pictures}[chart.kind](
        chart, experiment, outcomes, figures
    )


def _may_be(figure: Figure, where: Mapping[str, Any]) -> bool:
    """Return whether a published number may be of runs with these settings."""
    return all(as_key(figure.value.where.get(key, value)) == as_key(value) for key, value in where.items())


def describe(where: Mapping[str, Any]) -> str:
    """Describe settings by the last part of each key."""
    return ", ".join(f"{key.rpartition('.')[2]} {_shown(value)}" for key, value in where.items() if key != SEED)


def _shown(value: Any) -> str:
    """Return a setting's value as it is written."""
    return str([*value] if isinstance(value, tuple) else value)


def values_of(outcomes: Sequence[Outcome], key: str | None) -> list[Any]:
    """Return the values of a setting, each once; one None where there is no setting."""
    return [None] if key is None else list(dict.fromkeys(as_key(get_setting(o.config, key)) for o in outcomes))


def _panels(n: int, height: float | None = None, shape: tuple[int, int] = (1, 1)) -> tuple[Picture, list[Axes]]:
    """Return n charts, two or three in a row, of a height in inches or in proportion to a shape (rows, columns)."""
    columns = 2 if n == 4 else min(n, 3)
    rows = ceil(n / columns)
    width = PAGE if n > 1 else 0.7 * PAGE
    height = width / columns * shape[0] / shape[1] if height is None else height
    picture = Picture(figsize=(width, height * rows + 0.7), layout="constrained")
    return picture, add_charts(picture, rows, columns, n)


def draw_curves(chart: Chart, experiment: Experiment, outcomes: Sequence[Outcome], figures: Figures) -> Picture | None:
    """Draw a metric over images seen, our curves as lines, and published numbers as markers."""
    panels, lines = values_of(outcomes, chart.panels), values_of(outcomes, chart.lines)
    if not panels:
        return None
    colour = {value: COLOURS[i % len(COLOURS)] for i, value in enumerate(lines)}
    picture, axes = _panels(len(panels), 2.7)
    shown = {name: figures[name] for name in chart.published if figures[name]}
    for axis, panel in zip(axes, panels, strict=True):
        here = {} if chart.panels is None else {chart.panels: panel}
        late = _draw_lines(axis, chart, [o for o in outcomes if o.matches(here)], colour)
        for i, name in enumerate(shown):
            for figure in shown[name]:
                where = figure.value.where
                if chart.panels is None or as_key(where.get(chart.panels, panel)) == panel:
                    paint = colour.get(as_key(where.get(chart.lines or "")), COLOURS[0])
                    late += _draw_published(axis, figure, experiment, MARKERS[i % len(MARKERS)], paint)
        if late:
            margin = 0.06 * (max(late) - min(late)) + 0.1
            axis.set_ylim(min(late) - margin, max(late) + margin)
        axis.set_xscale("log")
        axis.set_title("" if chart.panels is None else describe(here), fontsize=10)
        axis.set_xlabel("images seen")
    for axis in axes:
        axis.set_ylabel(UNITS.get(chart.metric, "nats per image") if axis.get_subplotspec().is_first_col() else "")  # type: ignore[union-attr]
    left, right = (f(axis.get_xlim()[i] for axis in axes) for i, f in ((0, min), (1, max)))
    for axis in axes:
        axis.set_xlim(left, right)
    _add_legend(picture, chart, colour, shown)
    return picture


def _draw_lines(axis: Axes, chart: Chart, outcomes: Sequence[Outcome], colour: Mapping[Any, str]) -> list[float]:
    """Draw our curves; return the values by which the range is chosen."""
    found: list[tuple[float, float]] = []
    for outcome in outcomes:
        paint = colour[values_of([outcome], chart.lines)[0]]
        for split in chart.splits:
            images, values = outcome.curve(split, chart.metric)
            shown = thin(images)
            images, values = [images[i] for i in shown], [values[i] for i in shown]
            marker = "." if len(images) == 1 else None
            axis.plot(images, values, color=paint, lw=1.4, ls=STYLES[split], marker=marker)
            found += zip(images, values, strict=True)
    last = max((images for images, _ in found), default=0)
    late = [value for images, value in found if images >= LATE * last]
    return late or [value for _, value in found]


def _draw_published(axis: Axes, figure: Figure, experiment: Experiment, marker: str, colour: str) -> list[float]:
    """Draw a published number hollow, and ours filled where it is of an evaluation; return them."""
    at, value, shown = figure.published.images or experiment.spec.budget, figure.value.value, list[float]()
    if value is not None:
        error = [figure.uncertainty or 0.0]
        axis.errorbar([at], [value], yerr=error, fmt=marker, color=colour, mfc="white", ms=6.5, zorder=4)
        shown.append(value)
    if figure.ours is not None and figure.published.ours.evaluation is not None:
        axis.plot([figure.images], [figure.ours], marker, color=colour, ms=5, zorder=5)
        shown.append(figure.ours)
    return shown


def _add_legend(picture: Picture, chart: Chart, colour: Mapping[Any, str], shown: Mapping[str, list[Figure]]) -> None:
    handles = [
        Line2D(
            [],
            [],
            color=paint,
            lw=1.4,
            ls=STYLES[split],
            label=plain(f"{_shown(value)}, {split}" if chart.lines else split),
        )
        for value, paint in colour.items()
        for split in chart.splits
    ]
    for i, figures in enumerate(shown.values()):
        published, marker = figures[0].published, MARKERS[i % len(MARKERS)]
        handles.append(
            Line2D(
                [], [], color="0.35", marker=marker, mfc="white", ls="", label=plain(f"published: {published.title}")
            )
        )
        if published.ours.evaluation is not None:
            label = plain(f"ours at the end: {published.ours.evaluation} images")
            handles.append(Line2D([], [], color="0.35", marker=marker, ls="", label=label))
    picture.legend(handles=handles, loc="outside lower center", frameon=False, fontsize=9, ncols=2)


def draw_figures(
    chart: Chart,
    experiment: Experiment,  # noqa: ARG001
    outcomes: Sequence[Outcome],  # noqa: ARG001
    figures: Figures,
) -> Picture | None:
    """Draw each of some published numbers as a hollow marker with its tolerance, and ours beside it as a filled one."""
    kinds = [figures[name] for name in chart.published or list(figures) if figures[name]]
    if not kinds:
        return None
    heights = [len(kind) for kind in kinds]
    picture = Picture(figsize=(0.7 * PAGE, 0.3 * sum(heights) + 0.6 * len(kinds) + 0.6), layout="constrained")
    same_unit = len({kind[0].published.unit for kind in kinds}) == 1
    axes = picture.subplots(len(kinds), 1, sharex=same_unit, squeeze=False, height_ratios=heights)[:, 0]
    for axis, kind in zip(axes, kinds, strict=True):
        _draw_kind(axis, kind)
        if axis is axes[-1] or not same_unit:
            axis.set_xlabel(kind[0].published.unit)
    handles = [
        Line2D([], [], color=COLOURS[1], marker="D", mfc="white", ls="", label="published"),
        Line2D([], [], color=COLOURS[0], marker="o", ls="", label="ours"),
        Line2D([], [], color="0.85", lw=7, label="tolerance"),
    ]
    picture.legend(handles=handles, loc="outside lower center", frameon=False, fontsize=9, ncols=3)
    return picture


def _draw_kind(axis: Axes, kind: Sequence[Figure]) -> None:
    """Draw the numbers of one kind below each other, under its title."""
    for y, figure in enumerate(kind):
        value, tolerance, goal = figure.value.value, figure.published.tolerance, figure.published.goal
        if value is not None:
            low = value - (0 if goal == "at_most" else tolerance)
            high = value + (0 if goal == "at_least" else tolerance)
            axis.plot([low, high], [y, y], color="0.85", lw=7, solid_capstyle="butt", zorder=1)
            axis.errorbar([value], [y], xerr=[figure.uncertainty or 0.0], fmt="D", color=COLOURS[1], mfc="white", ms=6)
        if figure.ours is not None:
            half = [0.0 if figure.half_width is None else figure.half_width]
            axis.errorbar([figure.ours], [y], xerr=half, fmt="o", color=COLOURS[0], ms=6, capsize=3)
    axis.set_title(plain(kind[0].published.title, MAX_TITLE), fontsize=10, loc="left")
    axis.set_yticks(range(len(kind)), [plain(describe(figure.value.where)) for figure in kind], fontsize=9)
    axis.set_ylim(len(kind) - 0.5, -0.5)
    axis.xaxis.set_major_locator(MaxNLocator(7, integer=kind[0].published.digits == 0))
    axis.grid(axis="x", alpha=0.25)
    axis.spines[["top", "right", "left"]].set_visible(False)
    axis.tick_params(left=False)


def draw_pictures(
    chart: Chart,
    experiment: Experiment,
    outcomes: Sequence[Outcome],
    figures: Figures,  # noqa: ARG001
) -> Picture | None:
    """Show a manifold, samples or reconstructions of each run, of the first seed."""
    chosen: dict[Any, Any] = {}
    for outcome in outcomes:
        panel = values_of([outcome], chart.panels)[0]
        if outcome.run is not None and outcome.rows and panel not in chosen:
            try:
                chosen[panel] = _tile(chart, outcome, experiment)
            except VaecliError:  # no checkpoint yet, or no plane to show
                continue
    if not chosen:
        return None
    picture, axes = _panels(len(chosen), shape=next(iter(chosen.values())).shape[:2])
    for axis, (panel, pixels) in zip(axes, chosen.items(), strict=True):
        axis.imshow(pixels, cmap="gray", vmin=0, vmax=1, interpolation="none")
        axis.set(xticks=[], yticks=[])
        axis.grid(visible=False)
        axis.spines[:].set_visible(False)
        axis.set_title("" if chart.panels is None else describe({chart.panels: panel}), fontsize=10)
    return picture


def _tile(chart: Chart, outcome: Outcome, experiment: Experiment) -> Any:
    """Return the images of a run laid out in a square."""
    assert outcome.run is not None
    run = outcome.run.at(experiment.sweep.evaluation.checkpoint)
    if chart.show == "manifold":
        images, side = manifold(run, 2 * SIDE), 2 * SIDE
    elif chart.show == "samples":
        images, side = sample(run, SIDE * SIDE), SIDE
    else:
        images, side = reconstruct(run, SIDE * SIDE, data_dir=experiment.data_dir).reconstructions, SIDE
    images = as_seen(images).clip(0, 1)
    n, height, width, *channels = images.shape
    padded = np.zeros((side * side, height, width, *channels), np.float32)  # where a split has fewer, the rest is black
    padded[:n] = images
    grid = padded.reshape(side, side, height, width, *channels).swapaxes(1, 2)
    return grid.reshape(side * height, side * width, *channels)
