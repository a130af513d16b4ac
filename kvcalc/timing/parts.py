"""One part of a step's expected time, with the sum that it came about by."""

from collections.abc import Sequence
from dataclasses import dataclass

from kvcalc.timing.calibrated import CalibratedKernel

LAUNCH_S = 3e-6
"""A small kernel in a CUDA graph."""
REST = (0.8, 1.35)
"""Ends of the 90 % interval of what is not attention, as shares of what is expected: of served steps."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TimedPart:
    """One part of a step: seconds of all its layers, the interval's factors on them, and how it came about.

    symbols, formula  the sum in words, and with its numbers, which give `seconds`
    kernel            what an attention's call was timed with
    """

    name: str
    detail: str
    seconds: float
    low: float
    high: float
    symbols: str
    formula: str
    source: str
    kernel: CalibratedKernel | None = None


def other_part(
    name: str,
    detail: str,
    seconds: float,
    symbols: str,
    formula: str,
    source: str,
    ends: tuple[float, float] = REST,
) -> TimedPart:
    return TimedPart(
        name=name,
        detail=detail,
        seconds=seconds,
        low=ends[0],
        high=ends[1],
        symbols=symbols,
        formula=formula,
        source=source,
    )


def us(seconds: float) -> str:
    return f"{seconds * 1e6:.6f} us / 1,000,000"


def sum_each(count: int, *each_s: float) -> str:
    """`61 x (3 us + 0.7 us) / 1,000,000`."""
    return f"{count} x ({' + '.join(f'{seconds * 1e6:.6f} us' for seconds in each_s)}) / 1,000,000"


def sum_of(each: Sequence[tuple[int, float]]) -> str:
    """`(61 x 3 us + 1 x 0.7 us) / 1,000,000` of counts and seconds."""
    return f"({' + '.join(f'{count} x {seconds * 1e6:.6f} us' for count, seconds in each)}) / 1,000,000"
