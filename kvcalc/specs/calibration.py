"""Calibration files as they are written: keys and types. What they mean is `kvcalc.timing.calibration.store`'s."""

import datetime
from typing import Annotated, Any, Literal

from pydantic import Field

from kvcalc.specs.reader import Document
from kvcalc.specs.schema import Text
from kvcalc.specs.validation import Spec, validate


class HeldOutSpec(Spec):
    """Errors on rows that the fit has not seen, relative to what was measured."""

    regime: Text
    """Cache size."""
    rows: Annotated[int, Field(ge=0)]
    """How many."""
    median: float | None = None
    """Median of the absolute error."""
    mean: float | None = None
    """Mean of the absolute error."""
    p90: float | None = None
    """Its 90th percentile."""


class FitSpec(Spec):
    """One fit: a kind of attention and a width of cache entries."""

    kernel: Literal["mla", "gqa", "mha"]
    """The kernel; mqa is gqa."""
    cache: Literal["16-bit", "8-bit"]
    """Bits of a cache element."""
    points: Annotated[int, Field(ge=1)]
    """Measured points that it was fitted on."""
    values: dict[str, float]
    """The parameters, SI units."""
    held_out: list[HeldOutSpec]
    """Errors by cache size."""
    interval_low: Annotated[list[float], Field(min_length=4, max_length=4)]
    """5th percentile of measured over expected, by regime."""
    interval_high: Annotated[list[float], Field(min_length=4, max_length=4)]
    """95th percentile."""
    interval_from: Text
    """What the interval's shape is from."""


class CalibrationSpec(Spec):
    """A calibration of one kernel family on one GPU."""

    schema_: Annotated[Literal["kvcalc.calibration/1"], Field(alias="schema")]
    """Which kind of file this is."""
    gpu: Text
    """The GPU's slug."""
    family: Text
    """The kernel family."""
    engine: Text | None = None
    """The engine and version whose kernels were measured."""
    source: Text
    """Whose measurements, exact enough to find them again."""
    date: Annotated[datetime.date, Field(strict=False)]
    """The day of the fit."""
    fits: Annotated[list[FitSpec], Field(min_length=1)]
    """One for each kernel and cache width."""


def check_calibration(document: Document) -> CalibrationSpec:
    """A document as a calibration. Raises SpecError with every problem."""
    return validate(document, CalibrationSpec)


def calibration_yaml(data: dict[str, Any]) -> str:
    """The text of a calibration file."""
    import yaml

    return yaml.safe_dump(data, sort_keys=False, width=100, allow_unicode=True)
