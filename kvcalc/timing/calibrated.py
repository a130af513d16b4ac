"""A calibrated kernel: fitted parameters with the interval that held-out measurements give them, and which one to use.

What is fitted is a type of its own, never mixed with stated numbers. Where no calibration of a GPU has a kernel, its
family's middle values stand in, with a wide interval and a note that says so.
"""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import exp, log

from kvcalc.hardware import Gpu
from kvcalc.timing.attention_time import (
    AttentionCase,
    AttentionTime,
    Machine,
    Values,
    attention_time,
    machine,
)
from kvcalc.timing.families import GQA, MHA, MLA, Family, Kernel, default_family, find_family

COVERAGE = 0.90
BOUNDARIES_BYTES = (1_000_000, 20_000_000, 200_000_000)
"""Cache bytes that part the regimes: launch and latency, L2, the climb out of it, streaming."""
REGIMES = ("below 1 MB", "1 to 20 MB", "20 to 200 MB", "above 200 MB")
UNSEEN_SCALE = 1.5
"""How much wider an interval is for what no table measures: several query tokens, windows, selections."""
UNFUSED_HIGH = 8.0
"""More query heads a KV head than the family has a kernel for: what engines fall back to is up to so much slower."""
SIXTEEN_BIT, EIGHT_BIT = "16-bit", "8-bit"
"""Cache entries of two bytes an element, or of one or less: kernels differ."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Interval:
    """Factors on the expected time by regime: `low[i]` to `high[i]` holds 90 % of measurements."""

    low: tuple[float, ...]
    high: tuple[float, ...]

    def factors(self, cache_bytes: float) -> tuple[float, float]:
        """The factors at a cache size."""
        regime = bisect_right(BOUNDARIES_BYTES, cache_bytes)
        return self.low[regime], self.high[regime]

    def scaled(self, scale: float) -> "Interval":
        """Wider or narrower by a factor on the logarithm."""
        return Interval(
            low=tuple(exp(scale * log(value)) for value in self.low),
            high=tuple(exp(scale * log(value)) for value in self.high),
        )


UNKNOWN = Interval(low=(0.5, 0.5, 0.6, 0.7), high=(3.0, 2.5, 2.0, 1.6))
"""Where nothing was measured: a family's middle values on a GPU that no calibration is of."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HeldOut:
    """Absolute relative errors on unseen rows of one regime; None where there were no rows."""

    regime: str
    rows: int
    median: float | None
    mean: float | None
    p90: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Fit:
    """The parameters of one kernel at one cache width, and how far they may be trusted."""

    kernel: str
    cache: str
    points: int
    values: Mapping[str, float]
    held_out: tuple[HeldOut, ...]
    interval: Interval
    interval_from: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Calibration:
    """A kernel family on a GPU, as measured."""

    gpu: str
    family: str
    engine: str | None
    source: str
    date: str
    fits: tuple[Fit, ...]

    def fit(self, kernel: str, *, eight_bit: bool) -> Fit | None:
        """The fit of a kernel at a cache width, if there is one."""
        wanted = EIGHT_BIT if eight_bit else SIXTEEN_BIT
        return next((fit for fit in self.fits if (fit.kernel, fit.cache) == (kernel, wanted)), None)

    @property
    def name(self) -> str:
        return f"{self.family} on {self.gpu}" + (f" ({self.engine})" if self.engine else "")


@dataclass(frozen=True, kw_only=True, slots=True)
class CalibratedKernel:
    """What a call is timed with. `fitted` is whether measurements of this GPU stand behind the values."""

    family: Family
    kernel: Kernel
    machine: Machine
    values: Values
    interval: Interval
    fitted: bool
    origin: str

    def time(self, case: AttentionCase) -> AttentionTime:
        """One call, scalar."""
        return attention_time(case, self.machine, self.kernel.shape, self.values)


def choose(
    attention: str,
    *,
    shared_heads: bool,
    eight_bit: bool,
    gpu: Gpu,
    calibrations: Sequence[Calibration] = (),
    family: str | None = None,
    engine: str = "generic",
) -> CalibratedKernel:
    """The kernel of an attention (mla, or any of gqa, mqa, mha) on a GPU.

    shared_heads  whether several query heads attend one KV head
    calibrations  to choose from, of this GPU; the first of the wanted family that has the kernel is taken
    family        by default the engine's on the GPU, or that of other engines where it is not calibrated, or the only
                  one that is
    """
    calibrated = {calibration.family for calibration in calibrations}
    usual = family or default_family(gpu, attention)
    only = calibrated if family is None and usual not in calibrated and len(calibrated) == 1 else ()
    for name in dict.fromkeys((family or default_family(gpu, attention, engine), usual, *only)):
        found = find_family(name)
        kind = _kind(attention, found, shared_heads=shared_heads)
        fits = ((each, each.fit(kind, eight_bit=eight_bit)) for each in calibrations if each.family == name)
        for calibration, fit in fits:
            if fit is not None:
                return CalibratedKernel(
                    family=found,
                    kernel=found.kernel(kind),
                    machine=machine(gpu),
                    values=fit.values,
                    interval=fit.interval,
                    fitted=True,
                    origin=f"{calibration.name}, {fit.points} points, {calibration.source}",
                )
    name = next(iter(only), usual)
    found = find_family(name)
    kind = _kind(attention, found, shared_heads=shared_heads)
    kernel = found.kernel(kind)
    return CalibratedKernel(
        family=found,
        kernel=kernel,
        machine=machine(gpu),
        values=kernel.start(eight_bit=eight_bit),
        interval=UNKNOWN,
        fitted=False,
        origin=f"no calibration of {name}'s {kind} kernel with a {EIGHT_BIT if eight_bit else SIXTEEN_BIT} cache on "
        f"{gpu.slug}: the family's middle values, and a wide interval",
    )


def _kind(attention: str, family: Family, *, shared_heads: bool) -> str:
    """The kind of kernel that a family runs an attention with."""
    if attention == MLA:
        return MLA
    return MHA if not shared_heads and MHA in family.kernels else GQA
