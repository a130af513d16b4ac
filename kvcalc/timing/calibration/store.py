"""Calibration files: what was fitted, on what, how far off it was on rows that it had not seen, and the interval.

One file a GPU and kernel family, in kvcalc/data/calibration or wherever a user keeps it. A file is checked like a spec:
unknown keys, missing parameters and values outside their physical range are errors at their place.
"""

import datetime
from functools import cache
from pathlib import Path
from typing import Any

from kvcalc.errors import SpecError
from kvcalc.specs.calibration import FitSpec, calibration_yaml, check_calibration
from kvcalc.specs.reader import Document, read_file
from kvcalc.timing.attention_time import PARAMETERS
from kvcalc.timing.calibrated import REGIMES, Calibration, Fit, HeldOut, Interval
from kvcalc.timing.families import FAMILIES

DATA = Path(__file__).parents[2] / "data" / "calibration"
SCHEMA = "kvcalc.calibration/1"
NOTHING = 1e-12
"""What a fit leaves of a parameter that it pushes to zero: less than a picosecond, or than any share."""


def load(path: Path) -> Calibration:
    """The calibration in a file.

    Raises UsageError where it can't be read, SpecError with every problem and its place.
    """
    return build(read_file(path))


def build(document: Document) -> Calibration:
    """The calibration that a document describes. Raises SpecError with every problem."""
    spec = check_calibration(document)
    problems = []
    if spec.family not in FAMILIES:
        problems.append(document.problem(("family",), f"unknown kernel family '{spec.family}'"))
    for number, fit in enumerate(spec.fits):
        for name in sorted({*PARAMETERS, *fit.values}):
            at = ("fits", number, "values")
            if name not in PARAMETERS:
                problems.append(document.problem((*at, name), f"unknown parameter '{name}'"))
            elif name not in fit.values:
                problems.append(document.problem(at, f"parameter '{name}' is missing"))
            elif not PARAMETERS[name].low <= fit.values[name] <= PARAMETERS[name].high:
                limits = PARAMETERS[name]
                problems.append(
                    document.problem(
                        (*at, name),
                        f"{name} is {fit.values[name]:g}; its physical range is {limits.low:g} to {limits.high:g}",
                    )
                )
        if any(not 0 < low <= 1 <= high for low, high in zip(fit.interval_low, fit.interval_high, strict=True)):
            problems.append(
                document.problem(("fits", number, "interval_low"), "an interval must hold the expected time")
            )
    if problems:
        raise SpecError(problems)
    return Calibration(
        gpu=spec.gpu,
        family=spec.family,
        engine=spec.engine,
        source=spec.source,
        date=spec.date.isoformat(),
        fits=tuple(_fit(fit) for fit in spec.fits),
    )


def _fit(spec: FitSpec) -> Fit:
    return Fit(
        kernel=spec.kernel,
        cache=spec.cache,
        points=spec.points,
        values=dict(spec.values),
        held_out=tuple(HeldOut(**each.model_dump()) for each in spec.held_out),
        interval=Interval(low=tuple(spec.interval_low), high=tuple(spec.interval_high)),
        interval_from=spec.interval_from,
    )


def to_data(calibration: Calibration) -> dict[str, Any]:
    """The file's keys and values."""
    return {
        "schema": SCHEMA,
        "gpu": calibration.gpu,
        "family": calibration.family,
        **({"engine": calibration.engine} if calibration.engine else {}),
        "source": calibration.source,
        "date": datetime.date.fromisoformat(calibration.date),
        "fits": [
            {
                "kernel": fit.kernel,
                "cache": fit.cache,
                "points": fit.points,
                "values": {name: _round(fit.values[name]) for name in PARAMETERS},
                "held_out": [
                    {"regime": each.regime, "rows": each.rows}
                    | (
                        {"median": _round(each.median), "mean": _round(each.mean), "p90": _round(each.p90)}
                        if each.median is not None and each.mean is not None and each.p90 is not None
                        else {}
                    )
                    for each in fit.held_out
                ],
                "interval_low": [_round(value) for value in fit.interval.low],
                "interval_high": [_round(value) for value in fit.interval.high],
                "interval_from": fit.interval_from,
            }
            for fit in calibration.fits
        ],
    }


def _round(value: float) -> float:
    return float(f"{value:.4g}") if abs(value) > NOTHING else 0.0


def to_yaml(calibration: Calibration) -> str:
    """The text of a calibration file."""
    return calibration_yaml(to_data(calibration))


@cache
def packaged(gpu: str) -> tuple[Calibration, ...]:
    """The calibrations of a GPU that come with kvcalc, by file name."""
    found = (load(path) for path in sorted(DATA.glob(f"{gpu}-*.yaml")))
    return tuple(calibration for calibration in found if calibration.gpu == gpu)


@cache
def everything() -> tuple[Calibration, ...]:
    """All calibrations that come with kvcalc."""
    return tuple(load(path) for path in sorted(DATA.glob("*.yaml")))


def regime_errors(absolute: Any, regime: Any) -> tuple[HeldOut, ...]:
    """Errors by regime, of numpy arrays of the absolute relative error and each row's regime number."""
    import numpy as np

    found = []
    for number, name in enumerate(REGIMES):
        errors = absolute[regime == number]
        some = len(errors) > 0
        found.append(
            HeldOut(
                regime=name,
                rows=len(errors),
                median=float(np.median(errors)) if some else None,
                mean=float(np.mean(errors)) if some else None,
                p90=float(np.quantile(errors, 0.9)) if some else None,
            )
        )
    return tuple(found)
