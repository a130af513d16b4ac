"""Figures as data, before they are drawn as SVG or by matplotlib: charts of points and lines, and bars.

An axis has a unit; the unit decides where its ticks are and how they read. All axes are logarithmic: what is compared
here differs by factors.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from kvcalc.units import memory, seconds

TOKENS, BYTES, SECONDS, FLOP_RATE, INTENSITY = "tokens", "bytes", "seconds", "FLOP/s", "FLOP/byte"
_BINARY = (TOKENS, BYTES)
MOST_TICKS = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Point:
    """A place in a chart; low and high are the ends of a bar up and down, left and right those of one along."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None
    left: float | None = None
    right: float | None = None
    label: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Series:
    """Points of one name. A reference is a grey line: a limit, or where two axes agree."""

    name: str
    points: Sequence[Point]
    line: bool = False
    reference: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Axis:
    """A logarithmic axis."""

    label: str
    unit: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Chart:
    """Series on two axes; the caption says in words what is to be seen."""

    title: str
    caption: str
    x: Axis
    y: Axis
    series: Sequence[Series] = field(default_factory=list)

    def range_x(self) -> tuple[float, float]:
        """The least and largest x, widened to whole ticks' distance."""
        return _range([value for point in self._points() for value in (point.x, point.left, point.right) if value])

    def range_y(self) -> tuple[float, float]:
        return _range([value for point in self._points() for value in (point.y, point.low, point.high) if value])

    def _points(self) -> Iterator[Point]:
        for series in self.series:
            yield from series.points


@dataclass(frozen=True, kw_only=True, slots=True)
class Bar:
    """One bar with its value in words. `kind` groups bars by colour."""

    label: str
    value: float
    text: str
    kind: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Bars:
    """Horizontal bars from zero, on one linear scale."""

    title: str
    caption: str
    bars: Sequence[Bar]

    @property
    def kinds(self) -> list[str]:
        return list(dict.fromkeys(bar.kind for bar in self.bars if bar.kind))


Figure = Chart | Bars


def _range(values: Sequence[float]) -> tuple[float, float]:
    least, most = min(values, default=1.0), max(values, default=10.0)
    if most / least < 1.5:
        return least / 2, most * 2
    margin = (most / least) ** 0.05
    return least / margin, most * margin


def ticks(low: float, high: float, unit: str) -> list[float]:
    """Round values within a range, at most some seven: powers of two for tokens and bytes, else 1, 2 and 5."""
    if unit in _BINARY:
        first, last = math.ceil(math.log2(low)), math.floor(math.log2(high))
        step = next(step for step in (1, 2, 4, 5, 10, 20, 40, 1000) if (last - first) / step < MOST_TICKS)
        first = -(-first // step) * step
        return [2.0**power for power in range(first, last + 1, step)]
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for digits in ((1, 2, 5), (1,)):
        found = [digit * 10.0**power for power in decades for digit in digits if low <= digit * 10.0**power <= high]
        if len(found) <= MOST_TICKS + 1:
            return found
    return found[:: -(-len(found) // MOST_TICKS)]


def tick_label(value: float, unit: str) -> str:
    """A tick as it reads: `32k`, `4 GiB`, `10 us`."""
    if unit == TOKENS:
        for suffix, tokens in (("m", 1 << 20), ("k", 1 << 10)):
            if value >= tokens:
                return f"{value / tokens:g}{suffix}"
        return f"{value:g}"
    if unit == BYTES:
        return memory(int(value)).replace(".00 ", " ")
    if unit == SECONDS:
        return _trim(seconds(value))
    if unit == FLOP_RATE:
        for prefix, size in (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6)):
            if value >= size:
                return f"{value / size:g} {prefix}FLOP/s"
    return f"{value:g}"


def _trim(text: str) -> str:
    """`10.0 us` as `10 us`."""
    number, _, unit = text.partition(" ")
    return f"{number.rstrip('0').rstrip('.') if '.' in number else number} {unit}"
