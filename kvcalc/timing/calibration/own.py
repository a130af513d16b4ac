"""A calibration from a user's own points: fitted on all of them, its interval shaped by what is shipped.

A kernel and cache width with too few points is left out with a note. Own points can't tell quantiles: each group of
them is predicted by a fit of the others, and how those errors compare with the shipped interval widens or narrows it.
"""

from dataclasses import replace

import numpy as np

from kvcalc.errors import UsageError
from kvcalc.hardware import Gpu
from kvcalc.specs.hardware import load_gpus
from kvcalc.timing.attention_time import AttentionCase, machine
from kvcalc.timing.calibrated import (
    BOUNDARIES_BYTES,
    EIGHT_BIT,
    SIXTEEN_BIT,
    UNKNOWN,
    CalibratedKernel,
    Calibration,
    Fit,
    Interval,
    choose,
)
from kvcalc.timing.calibration.arrays import take
from kvcalc.timing.calibration.fit import MIN_POINTS, fit, leave_one_out
from kvcalc.timing.calibration.interval import scale_to
from kvcalc.timing.calibration.store import everything, regime_errors
from kvcalc.timing.calibration.table import KINDS, CaseTable


def calibrate(
    table: CaseTable, gpu: Gpu, *, family: str | None, source: str, date: str
) -> tuple[Calibration, list[str]]:
    """The calibration of a table's points, and notes on what it leaves out.

    Raises UsageError where no kernel has enough points or a fit is not plausible, naming which.
    """
    assert table.seconds is not None
    notes, fits = [], []
    names: dict[str, None] = {}
    case = table.case
    shared = case.n_heads > case.n_kv_heads
    group = np.where(table.kind == KINDS.index("mla"), KINDS.index("mla"), np.where(shared, 1, 0)) * 2 + case.eight_bit
    groups: dict[tuple[str, str, bool], list[np.ndarray]] = {}
    kernels: dict[tuple[str, str, bool], CalibratedKernel] = {}
    for number in np.unique(group).tolist():
        eight_bit = bool(number % 2)
        kernel = choose(KINDS[number // 2], shared_heads=number // 2 != 0, eight_bit=eight_bit, gpu=gpu, family=family)
        kind = next(name for name, value in kernel.family.kernels.items() if value is kernel.kernel)
        key = (kernel.family.name, kind, eight_bit)
        groups.setdefault(key, []).append(np.flatnonzero(group == number))
        kernels[key] = kernel
        names[kernel.family.name] = None
    if len(names) > 1:
        raise UsageError(
            f"the points are of kernels of different families: {', '.join(names)}",
            hint="part them by kernel, or name one with --family",
        )
    for (name, kind, eight_bit), parts in groups.items():
        rows = np.concatenate(parts)
        what = f"{kind} with a {EIGHT_BIT if eight_bit else SIXTEEN_BIT} cache"
        if len(rows) < MIN_POINTS:
            notes.append(f"{what} is left out: {len(rows)} points, and {MIN_POINTS} are the least")
            continue
        try:
            fits.append(
                _fit(take(case, rows), table.seconds[rows], gpu, kernels[name, kind, eight_bit], kind, eight_bit)
            )
        except UsageError as error:
            raise UsageError(f"{what}: {error.message}", hint=error.hint) from None
    if not fits:
        raise UsageError(f"no kernel has {MIN_POINTS} points", hint="24 points from small caches to large are enough")
    calibration = Calibration(
        gpu=gpu.slug, family=next(iter(names)), engine=None, source=source, date=date, fits=tuple(fits)
    )
    return calibration, notes


def _fit(
    case: AttentionCase, seconds: np.ndarray, gpu: Gpu, kernel: CalibratedKernel, kind: str, eight_bit: bool
) -> Fit:
    device = machine(gpu)
    found = fit(case, seconds, device, kernel.kernel)
    errors = leave_one_out(case, seconds, device, kernel.kernel)
    sizes = np.broadcast_to(np.asarray(case.cache_bytes, float), errors.shape)
    shape, origin = shipped_shape(kernel.family.name, kind, EIGHT_BIT if eight_bit else SIXTEEN_BIT, gpu)
    regime = np.searchsorted(BOUNDARIES_BYTES, sizes, side="right")
    return Fit(
        kernel=kind,
        cache=EIGHT_BIT if eight_bit else SIXTEEN_BIT,
        points=len(seconds),
        values=found.values,
        held_out=regime_errors(np.abs(np.expm1(-errors)), regime),
        interval=scale_to(shape, errors.tolist(), sizes.tolist()),
        interval_from=f"{origin}, scaled by the points' own errors where a fit had not seen them",
    )


def shipped_shape(family: str, kind: str, width: str, gpu: Gpu) -> tuple[Interval, str]:
    """The middle of the shipped intervals of the nearest kin, by regime, and what they are of."""
    known = [(calibration, each) for calibration in everything() for each in calibration.fits]
    alike = {other.slug for other in load_gpus() if other.compute_capability == gpu.compute_capability}
    same_kernel = [(of, each) for of, each in known if (of.family, each.kernel, each.cache) == (family, kind, width)]
    for chosen, origin in (
        ([each for of, each in same_kernel if of.gpu in alike], "family and kernel, on the same compute capability"),
        ([each for _, each in same_kernel], "family and kernel"),
        ([each for _, each in known if (each.kernel, each.cache) == (kind, width)], "kernel"),
        ([each for _, each in known if each.kernel == kind], "kernel at any cache width"),
    ):
        if chosen:
            low = np.median([each.interval.low for each in chosen], axis=0)
            high = np.median([each.interval.high for each in chosen], axis=0)
            shape = replace(UNKNOWN, low=tuple(low.tolist()), high=tuple(high.tolist()))
            return shape, f"{len(chosen)} shipped calibrations of the same {origin}"
    return UNKNOWN, "nothing like it was measured"
