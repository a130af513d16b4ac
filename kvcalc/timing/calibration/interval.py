"""The interval around a predicted time: what held-out measurements differed from it by, by size of the cache.

An interval is a pair of factors on the expected time for each regime of cache bytes: the 5th and 95th percentile of
measured over expected, on rows that the fit has not seen. A user's own few points are too few to tell quantiles: they
only widen or narrow the shape that is shipped for the kind. Pure Python; the quantiles are made by `residual_interval`.
"""

from collections.abc import Sequence
from math import log
from statistics import median
from typing import TYPE_CHECKING

from kvcalc.timing.calibrated import BOUNDARIES_BYTES, COVERAGE, REGIMES, Interval

if TYPE_CHECKING:
    import numpy as np

MIN_ROWS = 40
"""Rows from which a regime's own quantiles are taken; with fewer, its neighbours' join in."""
MEDIAN_SHARE = 0.35
"""Half of the errors lie within so much of a 90 % interval's half-width: the median of the packaged calibrations'
regimes, whose tails are heavier than a normal distribution's (0.41)."""
SCALE_LIMITS = (0.8, 3.0)
"""A few points narrow an interval by so much at most, and widen it by so much."""


def residual_interval(log_errors: "np.ndarray", cache_bytes: "np.ndarray") -> Interval:
    """Quantiles of measured over expected by regime. A regime with few rows borrows those of its neighbours."""
    import numpy as np

    regime = np.searchsorted(BOUNDARIES_BYTES, cache_bytes, side="right")
    low, high = [], []
    for number in range(len(REGIMES)):
        reach = 0
        while np.sum(np.abs(regime - number) <= reach) < MIN_ROWS and reach < len(REGIMES):
            reach += 1
        errors = log_errors[np.abs(regime - number) <= reach]
        low.append(float(min(1.0, np.exp(np.quantile(errors, (1 - COVERAGE) / 2)))))
        high.append(float(max(1.0, np.exp(np.quantile(errors, (1 + COVERAGE) / 2)))))
    return Interval(low=tuple(low), high=tuple(high))


def scale_to(interval: Interval, log_errors: Sequence[float], cache_bytes: Sequence[float]) -> Interval:
    """The shape of `interval`, scaled by what a few unseen points say: the median of their errors over its width."""
    ratios = []
    for error, size in zip(log_errors, cache_bytes, strict=True):
        low, high = interval.factors(size)
        ratios.append(abs(error) / max(1e-3, (log(high) - log(low)) / 2))
    if not ratios:
        return interval
    return interval.scaled(min(max(median(ratios) / MEDIAN_SHARE, SCALE_LIMITS[0]), SCALE_LIMITS[1]))
