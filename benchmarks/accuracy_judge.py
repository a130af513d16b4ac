"""A table judged: fits on a few points by draw, the rows that each has not seen, and the interval that they get."""

from dataclasses import dataclass, field

import numpy as np
from accuracy_targets import median
from measured_tables import MeasuredTable

from kvcalc.timing.attention_time import machine
from kvcalc.timing.calibrated import BOUNDARIES_BYTES, REGIMES, UNKNOWN, Interval
from kvcalc.timing.calibration.arrays import take
from kvcalc.timing.calibration.fit import POINTS, Fitted, choose_points, fit, leave_one_out, predict_s
from kvcalc.timing.calibration.interval import residual_interval, scale_to
from kvcalc.timing.families import FAMILIES

LARGE_BYTES = 200e6


@dataclass(kw_only=True)
class Judged:
    """A table's fits by seed, with the rows that each has not seen."""

    table: MeasuredTable
    fits: list[Fitted] = field(default_factory=list)
    points: list[np.ndarray] = field(default_factory=list)
    unseen: list[np.ndarray] = field(default_factory=list)
    loo: list[np.ndarray] = field(default_factory=list)

    @property
    def kernel(self):
        return FAMILIES[self.table.family].kernels[self.table.kernel]

    def log_errors(self, values) -> np.ndarray:
        table = self.table
        return np.log(table.seconds) - np.log(predict_s(table.case, machine(table.gpu), self.kernel, values))

    @property
    def cache_bytes(self) -> np.ndarray:
        return np.asarray(self.table.case.cache_bytes)


def judge(table: MeasuredTable, seeds: int) -> Judged:
    judged = Judged(table=table)
    for seed in range(seeds):
        points = choose_points(table.case, POINTS, seed=seed)
        case, seconds = take(table.case, points), table.seconds[points]
        device = machine(table.gpu)
        judged.fits.append(fit(case, seconds, device, judged.kernel))
        judged.loo.append(leave_one_out(case, seconds, device, judged.kernel))
        unseen = np.ones(len(table.seconds), bool)
        unseen[points] = False
        judged.points.append(points)
        judged.unseen.append(unseen)
    return judged


def relative(log_errors: np.ndarray) -> np.ndarray:
    """|expected / measured - 1| from log(measured / expected)."""
    return np.abs(np.expm1(-log_errors))


def summary(log_errors: np.ndarray, cache_bytes: np.ndarray) -> dict[str, float | None]:
    errors, large = relative(log_errors), cache_bytes > LARGE_BYTES
    numbers = {
        "mean": float(np.mean(errors)),
        "median": float(np.median(errors)),
        "p90": float(np.quantile(errors, 0.9)),
        "mean_above_200_mb": float(np.mean(errors[large])) if np.any(large) else None,
        "median_above_200_mb": float(np.median(errors[large])) if np.any(large) else None,
    }
    regime = np.searchsorted(BOUNDARIES_BYTES, cache_bytes, side="right")
    numbers["by_regime"] = {
        name: float(np.mean(errors[regime == number])) if np.any(regime == number) else None
        for number, name in enumerate(REGIMES)
    }
    return numbers


def middle(rows: list[dict]) -> dict:
    """The median over seeds of each number."""
    keys = [key for key in rows[0] if key != "by_regime"]
    found = {key: median([row[key] for row in rows]) for key in keys}
    if "by_regime" in rows[0]:
        found["by_regime"] = {name: median([row["by_regime"][name] for row in rows]) for name in REGIMES}
    return found


def shape_for(judged: Judged, others: list[Judged]) -> tuple[Interval, str]:
    """The interval's shape from other GPUs' tables: the nearest kin that there are; their first draw's unseen rows."""
    table = judged.table
    elsewhere = [each for each in others if each.table.gpu.slug != table.gpu.slug]

    def same_kernel(t: MeasuredTable) -> bool:
        return (t.family, t.kernel, t.eight_bit) == (table.family, table.kernel, table.eight_bit)

    kin = [
        (
            "compute capability, family, kernel and cache",
            lambda t: same_kernel(t) and t.gpu.compute_capability == table.gpu.compute_capability,
        ),
        ("family, kernel and cache", same_kernel),
        ("family and kernel", lambda t: (t.family, t.kernel) == (table.family, table.kernel)),
        ("kernel and cache", lambda t: (t.kernel, t.eight_bit) == (table.kernel, table.eight_bit)),
        ("kernel", lambda t: t.kernel == table.kernel),
    ]
    for name, same in kin:
        chosen = [each for each in elsewhere if same(each.table)]
        if chosen:
            return pooled_interval(chosen), f"{len(chosen)} tables of other GPUs with the same {name}"
    return UNKNOWN, "nothing like it was measured"


def interval_of(judged: Judged, draw: int, shape: Interval) -> Interval:
    """The interval of a draw's fit: the shape, scaled by how far the draw's own points were off when left out."""
    sizes = judged.cache_bytes[judged.points[draw]]
    return scale_to(shape, judged.loo[draw].tolist(), sizes.tolist())


def pooled_interval(chosen: list[Judged]) -> Interval:
    """Quantiles over tables, each with as many rows as the smallest."""
    random = np.random.default_rng(0)
    errors, sizes = [], []
    for each in chosen:
        unseen = np.flatnonzero(each.unseen[0])
        unseen = random.choice(unseen, min(len(unseen), 1400), replace=False)
        errors.append(each.log_errors(each.fits[0].values)[unseen])
        sizes.append(each.cache_bytes[unseen])
    return residual_interval(np.concatenate(errors), np.concatenate(sizes))


def covered(log_errors: np.ndarray, cache_bytes: np.ndarray, interval: Interval) -> dict[str, float | None]:
    regime = np.searchsorted(BOUNDARIES_BYTES, cache_bytes, side="right")
    low, high = np.array(interval.low)[regime], np.array(interval.high)[regime]
    ratio = np.exp(log_errors)
    inside, large = (low <= ratio) & (ratio <= high), cache_bytes > LARGE_BYTES
    return {
        "coverage": float(np.mean(inside)),
        "coverage_above_200_mb": float(np.mean(inside[large])) if np.any(large) else None,
        "half_width": float(np.median((high - low) / 2)),
        "half_width_above_200_mb": float(np.median(((high - low) / 2)[large])) if np.any(large) else None,
    }
