"""Fitting a kernel family's parameters to a few measured points.

Least squares on the logarithm of the time, so that a microsecond of a small call and a millisecond of a large one count
by their ratio, with a soft loss that a few corrupt points don't move (scipy `least_squares`, soft_l1). Every parameter
stays within its physical range and is drawn to its family's value by as much as the family says that GPUs differ: with
two dozen points and as many parameters, what the points don't tell stays where the family has it. A fit that is not
plausible is refused.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from kvcalc.errors import UsageError
from kvcalc.timing.attention_time import PARAMETERS, AttentionCase, Machine, attention_time
from kvcalc.timing.calibrated import BOUNDARIES_BYTES
from kvcalc.timing.calibration.arrays import NUMPY, rows, take
from kvcalc.timing.families import Kernel

POINTS = 24
MIN_POINTS = 8
STRATA_SHARES = (0.17, 0.25, 0.25, 0.33)
CANDIDATES = 6
LEFT_OUT_GROUPS = 4
POINT_SIGMA = 0.04
"""What a good point differs by from a good model: repeated measurements differ by half a percent to two."""
MAX_MEDIAN_ERROR = 0.25
MAX_BANDWIDTH = 1.05
"""Share of the stated bandwidth from which a point that can't lie in L2 is not credible."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Fitted:
    """A fit: a value for each parameter, and the points' log errors (measured over expected) that it leaves."""

    values: Mapping[str, float]
    log_errors: "np.ndarray"

    @property
    def median_error(self) -> float:
        return float(np.median(np.abs(np.expm1(self.log_errors))))


def predict_s(case: AttentionCase, machine: Machine, kernel: Kernel, values: Mapping[str, float]) -> "np.ndarray":
    """Times of all rows of a case."""
    return np.asarray(attention_time(case, machine, kernel.shape, values, NUMPY).total_s)


def choose_points(case: AttentionCase, count: int = POINTS, *, seed: int = 0) -> "np.ndarray":
    """Rows to measure or to fit on: a fixed share from each stratum of cache size, drawn by `seed`.

    Of a few that are drawn at a time, the one is taken that lies farthest from those taken before, in the logarithms of
    batch, heads, KV heads, context and entry bytes. Only cases are looked at, never times.
    """
    random = np.random.default_rng(seed)
    total = rows(case)
    cache = np.broadcast_to(np.asarray(case.cache_bytes, float), (total,))
    features = np.stack(
        [
            np.log2(np.broadcast_to(np.asarray(value, float), (total,)))
            for value in (
                case.batch,
                case.n_heads * case.query_tokens / case.n_kv_heads,
                case.n_kv_heads,
                case.context_tokens,
                case.entry_bytes,
            )
        ]
    ).T
    stratum = np.searchsorted(BOUNDARIES_BYTES, cache, side="right")
    chosen: list[int] = []
    wanted = _quota(np.bincount(stratum, minlength=len(STRATA_SHARES)), min(count, total))
    for number, quota in enumerate(wanted):
        members = np.flatnonzero(stratum == number)
        if not quota:
            continue
        taken: list[int] = []
        while len(taken) < quota:
            candidates = random.choice(np.setdiff1d(members, taken), CANDIDATES)
            apart = np.linalg.norm(features[candidates][:, None] - features[taken][None], axis=2)
            taken.append(int(candidates[np.argmax(apart.min(axis=1))] if taken else candidates[0]))
        chosen += taken
    return np.array(sorted(chosen))


def _quota(available: "np.ndarray", count: int) -> list[int]:
    """Points of each stratum; what an empty one can't give goes to those that have more."""
    quota = [min(int(have), round(count * share)) for have, share in zip(available, STRATA_SHARES, strict=True)]
    while sum(quota) != count:
        step = 1 if sum(quota) < count else -1
        able = [n for n in range(len(quota)) if (quota[n] < available[n] if step > 0 else quota[n] > 0)]
        target = max(able, key=lambda n: (available[n] - quota[n]) * step)
        quota[target] += step
    return quota


def fit(case: AttentionCase, seconds: "np.ndarray", machine: Machine, kernel: Kernel) -> Fitted:
    """The parameters that the points tell, drawn to the family's where they don't. Raises UsageError if implausible."""
    check_points(case, seconds, machine)
    fitted = _fit(case, seconds, machine, kernel)
    _check_fit(fitted)
    return fitted


def check_points(case: AttentionCase, seconds: "np.ndarray", machine: Machine) -> None:
    """Raises UsageError for points that no fit should be made of."""
    if len(seconds) < MIN_POINTS:
        raise UsageError(
            f"{len(seconds)} points are too few to fit",
            hint=f"{POINTS} well-chosen ones are enough, {MIN_POINTS} the least",
        )
    if not np.all(np.isfinite(seconds)) or np.any(seconds <= 0):
        raise UsageError("a point's latency is not a time above 0")
    cache = np.asarray(case.cache_bytes, float)
    large = cache > 4 * machine.l2_bytes
    if np.any(large):
        share = cache[large] / seconds[large] / machine.bandwidth_bytes_per_s
        if np.median(share) > MAX_BANDWIDTH or np.max(share) > 2:
            raise UsageError(
                f"the points reach {np.max(share):.2f} times the stated memory bandwidth on caches four times L2",
                hint="check the GPU, the unit of latency_us and whether the whole cache was read",
            )


def _check_fit(fitted: Fitted) -> None:
    if fitted.median_error > MAX_MEDIAN_ERROR:
        raise UsageError(
            f"the fit misses half of its own points by {fitted.median_error:.0%} or more: it is not this kernel family",
            hint="name another with --family, or part the points by kernel",
        )
    for name in ("launch_s", "bandwidth_fraction", "matrix_fraction"):
        limits, value = PARAMETERS[name], fitted.values[name]
        if value <= limits.low * 1.02 or (name == "launch_s" and value >= limits.high * 0.98):
            raise UsageError(
                f"the fit is not physical: {name} ({limits.meaning}) ends at its limit, {value:.3g}{limits.unit}",
                hint="the points are not a decode attention call in this unit, or not this family's",
            )


def _fit(case: AttentionCase, seconds: "np.ndarray", machine: Machine, kernel: Kernel) -> Fitted:
    from scipy.optimize import least_squares

    names = list(PARAMETERS)
    logarithmic = np.array([PARAMETERS[name].logarithmic for name in names])
    low = np.array([PARAMETERS[name].low for name in names])
    high = np.array([PARAMETERS[name].high for name in names])
    span = high - low
    centre_values = kernel.start(eight_bit=bool(np.all(case.eight_bit)))
    start = np.clip(np.array([centre_values[name] for name in names]), low, high)
    spread = np.array([kernel.spread[name] for name in names])

    def encode(values: "np.ndarray") -> "np.ndarray":
        return np.asarray(np.where(logarithmic, np.log(np.maximum(values, 1e-30)), values / span))

    def decode(coded: "np.ndarray") -> dict[str, float]:
        return dict(zip(names, np.where(logarithmic, np.exp(coded), coded * span).tolist(), strict=True))

    measured, centre = np.log(seconds), encode(start)

    def residuals(coded: "np.ndarray") -> "np.ndarray":
        errors = measured - np.log(predict_s(case, machine, kernel, decode(coded)))
        return np.concatenate([_soft(errors / POINT_SIGMA), (coded - centre) / spread])

    lower, upper = encode(low), encode(high)
    inside = np.clip(centre, lower + 1e-6, upper - 1e-6)
    found = least_squares(residuals, inside, bounds=(lower, upper), x_scale=spread, max_nfev=40)
    values = {
        name: float(min(max(value, PARAMETERS[name].low), PARAMETERS[name].high))
        for name, value in decode(found.x).items()
    }
    return Fitted(values=values, log_errors=measured - np.log(predict_s(case, machine, kernel, values)))


def _soft(scaled: "np.ndarray") -> "np.ndarray":
    """Residuals whose squares are soft_l1's loss: large ones count by their size, not by its square."""
    return np.asarray(np.sign(scaled) * np.sqrt(2 * (np.sqrt(1 + scaled**2) - 1)))


def leave_one_out(case: AttentionCase, seconds: "np.ndarray", machine: Machine, kernel: Kernel) -> "np.ndarray":
    """Log errors of groups of points that the fit of the others has not seen: how far an own fit may be trusted."""
    groups = np.arange(len(seconds)) % min(LEFT_OUT_GROUPS, len(seconds))
    errors = np.empty(len(seconds))
    for group in np.unique(groups):
        out = groups == group
        values = _fit(take(case, ~out), seconds[~out], machine, kernel).values
        errors[out] = np.log(seconds[out]) - np.log(predict_s(take(case, out), machine, kernel, values))
    return errors
