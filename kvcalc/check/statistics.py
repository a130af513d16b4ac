"""Whether one set of times is longer than another, without assuming equal variances, normal noise or independence.

The test is Yuen's: Welch's t on the 20 % trimmed means of the logarithms, with winsorised variances. Trimming keeps
outliers from deciding; logarithms make an effect a ratio. Samples of one process that follow each other are alike
(clocks stay a while where they are, machines drift), so the variance of a mean is widened by the sum of their
correlations, taken as far as neighbouring pairs of them stay positive, and over all cases of a run together where they
are enough: how long a clock stays is the machine's to say. Where results carry several processes, a
process is one value, the median of its logarithms, and Welch's test takes those.

Sources: Yuen, Biometrika 61 (1974) 165; Welch, Biometrika 34 (1947) 28; Holm, Scand. J. Statist. 6 (1979) 65; Geyer,
Statist. Sci. 7 (1992) 473, section 3.3 (initial positive sequence).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from operator import mul

TRIMMED = 0.2
LOW, HIGH = 0.05, 0.8
LONGEST_LAG = 200
OWN_UNCERTAINTY = 2.0
"""By what factor the correlation time of one case's samples may well be too long."""
LEAST_PROCESSES = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Mean:
    """A mean of logarithms, the variance of that mean, and the degrees of freedom behind it."""

    value: float
    variance: float
    freedom: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """Current over baseline, as logarithms of ratios.

    low      of the values that one in twenty samples is below
    high     of the values that one in five is above; where a clock jumps between states and stays in one for most of
             a side's samples, medians are far apart, but one of these two is not
    median   of the medians
    mean     of the trimmed means (of the processes' means, where there are several)
    """

    low: float
    high: float
    median: float
    mean: float
    error: float
    freedom: float

    def is_above(self, limit: float, shift: float = 0.0) -> bool:
        """Whether, after `shift` is added, its middle is above a limit, and its ends at least half of it."""
        return min(self.median, self.mean, 2 * (self.low + shift / 2), 2 * (self.high + shift / 2)) + shift > limit

    def is_below(self, limit: float, shift: float = 0.0) -> bool:
        """The same the other way: all of it is below minus the limit."""
        return max(self.median, self.mean, 2 * (self.low + shift / 2), 2 * (self.high + shift / 2)) + shift < -limit

    def p_above(self, shift: float = 0.0) -> float:
        """One-sided p of the current side being longer, after `shift` (a logarithm) is added to it."""
        return _p_above(self.mean + shift, self.error, self.freedom)

    def p_below(self, shift: float = 0.0) -> float:
        return _p_above(-self.mean - shift, self.error, self.freedom)


def difference(
    baseline: Sequence[float],
    current: Sequence[float],
    *,
    baseline_processes: Sequence[int] = (),
    current_processes: Sequence[int] = (),
    shared_time: float | None = None,
) -> Difference:
    """How far `current` is above `baseline`; both are times above 0, in the order in which they were taken.

    processes    the process of each sample; several on both sides make the process the unit
    shared_time  the correlation time of the cases of both runs, where it is known better than from these samples alone
    """
    base, now = [math.log(value) for value in baseline], [math.log(value) for value in current]
    before = by_process(base, baseline_processes)
    after = by_process(now, current_processes)
    if len(before) > 1 and len(after) > 1:
        one, other = plain_mean(before), plain_mean(after)
    else:
        one, other = trimmed_means(base, now, shared_time=shared_time)
    variance = one.variance + other.variance
    return Difference(
        low=_at(now, LOW) - _at(base, LOW),
        high=_at(now, HIGH) - _at(base, HIGH),
        median=median(now) - median(base),
        mean=other.value - one.value,
        error=math.sqrt(variance),
        freedom=_welch_freedom(one, other),
    )


def by_process(values: Sequence[float], processes: Sequence[int]) -> list[float]:
    """The median of each process."""
    groups: dict[int, list[float]] = {}
    for value, process in zip(values, processes or [0] * len(values), strict=True):
        groups.setdefault(process, []).append(value)
    return [median(group) for group in groups.values()]


def plain_mean(values: Sequence[float]) -> Mean:
    """Of independent values."""
    n = len(values)
    mean = math.fsum(values) / n
    spread = math.fsum((value - mean) ** 2 for value in values) / (n - 1)
    return Mean(value=mean, variance=spread / n, freedom=n - 1)


def trimmed_means(*sides: Sequence[float], shared_time: float | None = None) -> list[Mean]:
    """Of values in the order in which they were taken, without the outer fifths; 5 or more a side."""
    kept = [_trimmed(values) for values in sides]
    deviations = [_winsorised(values) for values in sides]
    widening = correlation_time(deviations)
    if shared_time is not None:
        widening = max(shared_time, widening / OWN_UNCERTAINTY)
    return [
        Mean(
            value=math.fsum(inner) / len(inner),
            variance=_product(around, 0) / (len(inner) * (len(inner) - 1)) * widening,
            freedom=max(1.0, (len(inner) - 1) / widening),
        )
        for inner, around in zip(kept, deviations, strict=True)
    ]


def shared_correlation_time(sides: Sequence[Sequence[float]]) -> float:
    """The correlation time of many cases' times: how long a clock stays is the machine's, and not a case's, to say.

    A side whose clock never moved can't tell how much it might have; the others can.
    """
    return correlation_time([_winsorised([math.log(value) for value in values]) for values in sides])


def _trimmed(values: Sequence[float]) -> list[float]:
    cut = int(TRIMMED * len(values))
    return sorted(values)[cut : len(values) - cut]


def _winsorised(values: Sequence[float]) -> list[float]:
    """Deviations from their mean, the outer values taken as the outermost ones that are kept."""
    kept = _trimmed(values)
    low, high = kept[0], kept[-1]
    inside = [min(max(value, low), high) for value in values]
    center = math.fsum(inside) / len(inside)
    return [value - center for value in inside]


def correlation_time(sides: Sequence[Sequence[float]]) -> float:
    """How many samples in a row tell as much as one independent one: 1, or more where neighbours are alike.

    Correlations are the mean of both sides': each alone has too few samples to tell them well.
    """
    wholes = [_product(deviations, 0) for deviations in sides]
    told = [(deviations, whole) for deviations, whole in zip(sides, wholes, strict=True) if whole > 0]
    if not told:
        return 1.0
    time, previous = -1.0, math.inf
    longest = min(LONGEST_LAG, min(len(deviations) for deviations, _ in told) // 2)
    for lag in range(0, longest, 2):
        pair = math.fsum((_product(each, lag) + _product(each, lag + 1)) / whole for each, whole in told) / len(told)
        if pair <= 0:
            break
        previous = min(previous, pair)
        time += 2 * previous
    return max(1.0, time)


def _product(deviations: Sequence[float], lag: int) -> float:
    return math.fsum(map(mul, deviations, islice(deviations, lag, None)))


def _welch_freedom(one: Mean, other: Mean) -> float:
    variance = one.variance + other.variance
    if variance <= 0:
        return one.freedom + other.freedom
    return variance**2 / (one.variance**2 / one.freedom + other.variance**2 / other.freedom)


def median(values: Sequence[float]) -> float:
    ordered = sorted(values)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


def _at(values: Sequence[float], share: float) -> float:
    """The value that a share of the others is below."""
    return sorted(values)[int(share * len(values))]


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down p values: comparing one with alpha keeps the chance of any false alarm among all below alpha."""
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, p_values[index] * (len(p_values) - rank)))
        adjusted[index] = largest
    return adjusted


def _p_above(effect: float, error: float, freedom: float) -> float:
    if error <= 0:
        return 0.0 if effect > 0 else 1.0
    return student_above(effect / error, freedom)


def student_above(t: float, freedom: float) -> float:
    """P(T > t) of Student's distribution."""
    tail = 0.5 * _incomplete_beta(freedom / 2, 0.5, freedom / (freedom + t * t))
    return tail if t >= 0 else 1 - tail


def _incomplete_beta(a: float, b: float, x: float) -> float:
    """The regularised incomplete beta function I_x(a, b)."""
    if x <= 0 or x >= 1:
        return min(max(x, 0.0), 1.0)
    front = math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x))
    if x < (a + 1) / (a + b + 2):
        return front * _fraction(a, b, x) / a
    return 1 - front * _fraction(b, a, 1 - x) / b


def _fraction(a: float, b: float, x: float) -> float:
    """Its continued fraction, by Lentz's method (DLMF 8.17.22)."""
    tiny = 1e-300
    c, d = 1.0, 1 / _away_from_zero(1 - (a + b) * x / (a + 1), tiny)
    value = d
    for m in range(1, 300):
        for numerator in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d = 1 / _away_from_zero(1 + numerator * d, tiny)
            c = _away_from_zero(1 + numerator / c, tiny)
            step = c * d
            value *= step
        if abs(step - 1) < 1e-14:
            break
    return value


def _away_from_zero(value: float, tiny: float) -> float:
    return value if abs(value) > tiny else tiny
