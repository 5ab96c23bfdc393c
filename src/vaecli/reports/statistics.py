"""Intervals and tests for a handful of seeds and thousands of images."""

import math
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

LEVEL = 0.05


def interval(values: Sequence[float]) -> tuple[float, float | None]:
    """Return the mean and half the width of its 95 % t interval; None for fewer than two values."""
    n = len(values)
    mean = float(np.mean(values))
    if n < 2:
        return mean, None
    return mean, float(stats.t.ppf(1 - LEVEL / 2, n - 1) * np.std(values, ddof=1) / math.sqrt(n))


def welch(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Return the p-value of equal means over seeds, variances free (Welch 1947); None for fewer than two of either."""
    if min(len(a), len(b)) < 2:
        return None
    return _p_value(partial(stats.ttest_ind, equal_var=False), np.asarray(a), np.asarray(b))


def paired(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Return the p-value of equal means over the same images."""
    return _p_value(stats.ttest_rel, a, b)


def _p_value(test: Callable[..., Any], a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Return a p-value also where nothing varies: scipy may have none, and equal means are then no evidence."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        p_value = float(test(a, b).pvalue)
    return p_value if math.isfinite(p_value) else float(a.mean() == b.mean())


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Correct for the number of tests (Holm 1979): the chance of any false finding stays below the level."""
    order = sorted((p, i) for i, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    highest = 0.0
    for rank, (p, i) in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - rank) * p))
        adjusted[i] = highest
    return adjusted
