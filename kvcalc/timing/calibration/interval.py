"""The interval around a predicted time: what held-out measurements differed from it by, by size of the cache.

An interval is a pair of factors on the expected time for each regime of cache bytes: the 5th and 95th percentile of
measured over expected, on rows that the fit has not seen. A user's own few points are too few to tell quantiles: they
widen or narrow the shape that is shipped for the kind, by as much as so few may say. Pure Python; the quantiles are
made by `residual_interval`.
"""

from collections.abc import Sequence
from math import log
from typing import TYPE_CHECKING

from kvcalc.timing.calibrated import BOUNDARIES_BYTES, COVERAGE, REGIMES, Interval

if TYPE_CHECKING:
    import numpy as np

MIN_ROWS = 40
"""Rows from which a regime's own quantiles are taken; with fewer, its neighbours' join in."""
SCORE_LEVELS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.975, 0.99, 1.0)
SCORES = (0.0, 0.06, 0.13, 0.2, 0.27, 0.37, 0.47, 0.61, 0.78, 0.89, 1.05, 1.35, 1.68, 2.2, 3.0)
"""How far errors reach, in ends of an interval that is of other GPUs' tables: quantiles of |log error| / end on unseen
rows, the median over the public tables, each against the tables of its kin on other GPUs; 3 at most."""
PRIOR_POINTS = 30
"""How many points of its own a kernel needs to outweigh that. Of a table's rows, the share inside its kin's interval is
0.86 with a standard deviation of 0.05 between tables: as a Beta distribution's that is worth 45 points. Fewer, since
tables that lie far from their kin are then left with too narrow an interval; with 24 to 36, intervals hold 80 to 96 %
of the rows of every table."""
SCALE_LIMITS = (0.8, 3.0)
"""Points narrow an interval by so much at most, and widen it by so much."""


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
    """The shape of `interval`, scaled so that it holds 90 % of what is known of such errors and of a few unseen points.

    The next error's distribution, after seeing some, is that of the kin with PRIOR_POINTS points' weight and the seen
    errors with their own (the posterior mean under a Dirichlet prior); the scale is its 0.9 quantile. A scale from the
    points alone, say from their median, would be all noise: over the public tables the median of two dozen errors
    hardly correlates (0.1) with how far the tail reaches, since errors of these fits are not of one shape.
    """
    scores = []
    for error, size in zip(log_errors, cache_bytes, strict=True):
        low, high = interval.factors(size)
        scores.append(abs(error) / max(1e-3, log(high) if error > 0 else -log(low)))
    if not scores:
        return interval
    scores += [_score((number + 0.5) / PRIOR_POINTS) for number in range(PRIOR_POINTS)]
    scale = _quantile(sorted(scores), COVERAGE)
    return interval.scaled(min(max(scale, SCALE_LIMITS[0]), SCALE_LIMITS[1]))


def _score(level: float) -> float:
    """The kin's quantile function, between its knots."""
    upper = next(number for number, knot in enumerate(SCORE_LEVELS) if level <= knot)
    left, right = SCORE_LEVELS[upper - 1], SCORE_LEVELS[upper]
    return SCORES[upper - 1] + (SCORES[upper] - SCORES[upper - 1]) * (level - left) / (right - left)


def _quantile(ordered: Sequence[float], level: float) -> float:
    place = level * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])
