"""What a report says in numbers: tables of metrics, tests of differences, rankings and warnings."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, pairwise
from typing import NamedTuple

import numpy as np

from vaecli.config.schema import get_setting
from vaecli.evaluation.result import ESTIMATES, KNOWN_FROM, TITLES
from vaecli.reports.statistics import LEVEL, holm, interval, paired, welch
from vaecli.sweeps.sweep import JobResult, SweepResult, metrics

FLOORED, COLLAPSED = 0.01, 0.5
"""Shares beyond which a report warns: of scales on their floor, and of latent units that are not active."""


@dataclass(frozen=True)
class Column:
    """Describe a metric as the report shows it."""

    key: str
    meaning: str
    better: str | None
    """"higher" or "lower", if either is good."""
    digits: int

    @property
    def title(self) -> str:
        """Return what the metric is called."""
        return TITLES[self.key]


WITHIN = (
    Column("elbo", "lower bound on log p(x), nats per test image", "higher", 2),
    Column("log_evidence", "log p(x), nats per test image", "higher", 2),
    Column("log_evidence_effective_sample_size", "median effective sample size of that estimate", None, 1),
)
"""Metrics that may be compared within a support only."""
ACROSS = (
    Column("bits_per_dim", "bits per pixel for the 256 grey levels, densities integrated", "lower", 3),
    Column("binarised_nll", "-log p(b) of the same binary test images, nats", "lower", 2),
    Column(
        "mean_squared_error",
        "of reconstructions, in units of the 0..1 pixel; of vectors in their deviations",
        "lower",
        4,
    ),
    Column("kl", "KL(q(z|x) ‖ p(z)), nats: what the latent carries", None, 2),
    Column("active_units", "latent dimensions whose posterior mean varies", None, 1),
    Column("seconds_per_epoch", "training time of the median epoch; other work on the machine counts in", "lower", 2),
)
"""Metrics that mean the same for every decoder."""
TESTED = ("log_evidence", "bits_per_dim", "binarised_nll", "mean_squared_error")


class Row(NamedTuple):
    """Hold the metrics of the runs that differ in nothing but the seed."""

    labels: tuple[str, ...]
    n: int
    """How many runs."""
    cells: list[str]


class Table(NamedTuple):
    """Hold a table as the templates show it."""

    names: tuple[str, ...]
    """Of the labels."""
    columns: tuple[Column, ...]
    rows: list[Row]


def group_by(results: Sequence[JobResult], keys: Sequence[str]) -> dict[tuple[str, ...], list[JobResult]]:
    """Group results by their settings."""
    groups: dict[tuple[str, ...], list[JobResult]] = {}
    for result in results:
        groups.setdefault(tuple(str(get_setting(result.config, key)) for key in keys), []).append(result)
    return groups


def group_by_support(results: Sequence[JobResult]) -> dict[str, list[JobResult]]:
    """Group results whose bounds are about the same random variable."""
    groups: dict[str, list[JobResult]] = {}
    for result in results:
        groups.setdefault(result.config.support_title, []).append(result)
    return groups


def short_names(keys: Sequence[str]) -> tuple[str, ...]:
    """Return the last part of each key."""
    return tuple(key.rpartition(".")[2] for key in keys)


def table(results: Sequence[JobResult], keys: Sequence[str], columns: tuple[Column, ...]) -> Table:
    """Tabulate metrics over the runs of each choice of settings.

    Args:
        results: Of any jobs; those that failed are not counted.
        keys: The settings whose values label the rows.
        columns: Which metrics.
    """
    rows = []
    for labels, found in group_by(results, keys).items():
        done = [result for result in found if not result.error]
        rows.append(Row(labels, len(done), [_cell(done, column) for column in columns]))
    return Table(short_names(keys), columns, rows)


def _cell(results: Sequence[JobResult], column: Column) -> str:
    values = metrics(results, column.key)
    if not values:
        return "–"
    mean, half = interval(values)
    bound = "" if _are_known(results, column.key) else "≥ " if column.better == "higher" else "≤ "
    return f"{bound}{mean:.{column.digits}f}" + (f" ± {half:.{column.digits}f}" if half is not None else "")


def _are_known(results: Sequence[JobResult], key: str) -> bool:
    """Return whether a metric is known for all of these runs, and not only bounded."""
    return all(result.evaluation is not None and result.evaluation.is_known(key) for result in results)


def _known(results: Sequence[JobResult], key: str) -> list[float]:
    """Return a metric over runs; nothing where one of them has none, or only a bound on it."""
    return metrics(results, key) if _are_known(results, key) else []


def _monte_carlo_error(results: Sequence[JobResult], key: str) -> float:
    """Return the Monte-Carlo error of a mean over runs; 0 for what is not estimated by importance samples."""
    errors = metrics(results, f"{key}_mc_se") if key in ESTIMATES else []
    return math.sqrt(sum(error**2 for error in errors)) / max(1, len(errors))


@dataclass(frozen=True)
class Difference:
    """Describe how two decoders differ in a metric that ranks them, with Holm-corrected p-values."""

    figure: str
    """The metric's title."""
    better: str
    worse: str
    by: float
    digits: int
    over_seeds: float | None
    """Welch's t test between the seeds of either."""
    over_images: float | None
    """The weakest seed's t test paired over the test images."""
    mc_error: float = 0.0
    """Its Monte-Carlo error."""

    @property
    def holds(self) -> bool:
        """Return whether both tests find it, and the Monte-Carlo error is smaller than it."""
        found = all(p is not None and p < LEVEL for p in (self.over_seeds, self.over_images))
        return found and self.mc_error < self.by


def differences(found: SweepResult) -> list[Difference]:
    """Test every pair of decoders on every metric that ranks them, corrected together; a bound ranks nothing."""
    title_of = {result.decoder: result.config.support_title for result in found.results}
    tested = []
    for column in (c for c in (*WITHIN, *ACROSS) if c.key in TESTED):
        for a, b in combinations(found.decoders, 2):
            one, two = _known(found.of(a), column.key), _known(found.of(b), column.key)
            if not one or not two or (column in WITHIN and title_of[a] != title_of[b]):
                continue
            difference = float(np.mean(one) - np.mean(two))
            better, worse = (a, b) if (difference > 0) == (column.better == "higher") else (b, a)
            over_images = paired_over_images(found, a, b, column.key)
            mc_error = math.hypot(*(_monte_carlo_error(found.of(decoder), column.key) for decoder in (a, b)))
            over_seeds = welch(one, two)
            tested.append(
                Difference(
                    column.title, better, worse, abs(difference), column.digits, over_seeds, over_images, mc_error
                )
            )
    seeds, images = holm([d.over_seeds for d in tested]), holm([d.over_images for d in tested])
    return [replace(d, over_seeds=s, over_images=i) for d, s, i in zip(tested, seeds, images, strict=True)]


def rankings(found: SweepResult, tested: Sequence[Difference]) -> list[tuple[str, str]]:
    """Rank the decoders from best to worst by each metric, "≈" between neighbours whose difference does not hold.

    Metrics that may be compared within a support only have one ranking for each support with several decoders.
    """
    rankings = []
    for column in (c for c in (*WITHIN, *ACROSS) if c.key in TESTED):
        about = {frozenset((d.better, d.worse)): d for d in tested if d.figure == column.title}
        groups = group_by_support(found.results) if column in WITHIN else {"": found.results}
        for title, results in groups.items():
            decoders = dict.fromkeys(result.decoder for result in results)
            values = {decoder: _known(found.of(decoder), column.key) for decoder in decoders}
            means = {decoder: float(np.mean(value)) for decoder, value in values.items() if value}
            ranked = sorted(means, key=means.__getitem__, reverse=column.better == "higher")
            text = "".join(ranked[:1])
            for better, worse in pairwise(ranked):
                text += (" > " if about[frozenset((better, worse))].holds else " ≈ ") + worse
            if len(ranked) > 1:
                rankings.append((f"{column.title} ({title})" if title else column.title, text))
    return rankings


def paired_over_images(found: SweepResult, a: str, b: str, key: str) -> float | None:
    """Return the largest p-value over seeds, each paired over the same test images."""
    p_values = []
    for one in found.of(a):
        for two in (result for result in found.of(b) if result.seed == one.seed):
            x, y = one.per_image(key), two.per_image(key)
            if x is not None and y is not None and len(x) == len(y):
                p_values.append(paired(x, y))
    return max(p_values, default=None)


def warnings(results: Sequence[JobResult]) -> list[str]:
    """Say what to know before reading metrics: each warning once, with the decoders that it is about."""
    about: dict[str, list[str]] = {}
    groups: Mapping[tuple[str, ...], list[JobResult]] = group_by(results, ("model.decoder",))
    for (decoder,), found in groups.items():
        of_each = [_warnings_of(result) for result in found if not result.error]
        for text in dict.fromkeys(warning for one in of_each for warning in one):
            n = sum(text in one for one in of_each)
            about.setdefault(text, []).append(f"{decoder} ({n} of {len(of_each)} runs)")
    return [f"{text}: {', '.join(names)}" for text, names in about.items()]


def _warnings_of(result: JobResult) -> list[str]:
    evaluation, found = result.evaluation, []
    assert evaluation is not None
    if evaluation.caveat:
        found.append(f"The bound is {evaluation.caveat}")
    if (evaluation.pixels_at_floor or 0) > FLOORED:
        found.append("Scales sit on their floor, so the likelihood is limited by a setting")
    found += [
        f"The {column.title} is a bound, marked ≥ or ≤, and ranks nothing: "
        f"its median effective sample size is below {KNOWN_FROM:g}"
        for column in (*WITHIN, *ACROSS)
        if not evaluation.is_known(column.key)
    ]
    if evaluation.active_units < COLLAPSED * result.config.model.latent_dim:
        found.append("More than half of the latent units are collapsed")
    return found
