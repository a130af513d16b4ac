"""Verdicts on measured times.

A time is worse only where all of this holds:
    effect    the ratios of medians and of trimmed means are above the threshold, and those of the fast and of the slow
              samples above half of it, with times taken as shares of the ceiling that their own run measured: a slower
              machine is not a slower kernel
    in time   times are longer too, and cycles where both runs read the clock, by a third and two thirds of the
              threshold: neither a higher ceiling nor a lower clock is a slower kernel
    evidence  the test of `statistics` says so of the shares, corrected for the number of cases
Fewer than 20 samples a side give the ratio and no verdict.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from kvcalc.check.findings import IMPROVED, NOT_COMPARABLE, REGRESSED, SAME, WITHIN_NOISE, Finding, Settings
from kvcalc.check.results import TIME, Samples
from kvcalc.check.statistics import LEAST_PROCESSES, Difference, difference, holm, shared_correlation_time

LEAST_SAMPLES = 20
LEAST_SIDES = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    """The samples of one case on both sides."""

    id: str
    old: Samples
    now: Samples
    other_gpu: bool

    @property
    def machine(self) -> float | None:
        """How much faster the machine is now in what bounds the case: ceiling over ceiling."""
        if self.old.ceiling is None or self.now.ceiling is None or self.old.bound != self.now.bound:
            return None
        return self.now.ceiling / self.old.ceiling


def judge(pairs: Sequence[Pair], settings: Settings) -> dict[str, Finding]:
    """The findings by row, made all together: the correction needs to know how many cases there are."""
    found: dict[str, Finding] = {}
    judged: list[tuple[Finding, Pair]] = []
    for pair in pairs:
        finding, reason = _shown(pair), _no_verdict(pair.old, pair.now)
        if pair.other_gpu and pair.machine is None:
            note = "another GPU, and no ceiling to compare by"
            found[pair.id] = replace(finding, verdict=NOT_COMPARABLE, note=note)
        elif reason is not None:
            found[pair.id] = replace(finding, note=reason)
        else:
            judged.append((finding, pair))
    shared = _shared_time([pair for _, pair in judged])
    tried = [(finding, _difference(pair, shared), _Scales.of(pair)) for finding, pair in judged]
    worse = holm([each.p_above(scales.ceiling) for _, each, scales in tried])
    better = holm([each.p_below(scales.ceiling) for _, each, scales in tried])
    limit = math.log1p(settings.allowed(TIME))
    for (finding, each, scales), p_worse, p_better in zip(tried, worse, better, strict=True):
        found[finding.id] = _verdict(finding, each, scales, (p_worse, p_better), limit, settings.alpha)
    return found


@dataclass(frozen=True, kw_only=True, slots=True)
class _Scales:
    """What times are multiplied by before they are compared, as logarithms: by what this machine differs.

    ceiling  gives shares of the measured ceiling, which the verdict is about
    time     nothing for the time itself; on another GPU the ceiling, since times say nothing there
    clock    gives cycles, where both runs read the GPU's clock
    """

    ceiling: float
    time: float
    clock: float | None

    @classmethod
    def of(cls, pair: Pair) -> "_Scales":
        ceiling = 0.0 if pair.machine is None else math.log(pair.machine)
        time, clock = (ceiling if pair.other_gpu else 0.0), None
        if not pair.other_gpu and pair.old.clock_hz is not None and pair.now.clock_hz is not None:
            clock = math.log(pair.now.clock_hz / pair.old.clock_hz)
        return cls(ceiling=ceiling, time=time, clock=clock)

    def is_above(self, effect: float, limit: float) -> bool:
        """Whether time and cycles bear out an effect: a third of the limit in time, two thirds in cycles."""
        return effect + self.time > limit / 3 and (self.clock is None or effect + self.clock > limit * 2 / 3)

    def is_below(self, effect: float, limit: float) -> bool:
        return effect + self.time < -limit / 3 and (self.clock is None or effect + self.clock < -limit * 2 / 3)


def _verdict(
    finding: Finding,
    each: Difference,
    scales: _Scales,
    p_values: tuple[float, float],
    limit: float,
    alpha: float,
) -> Finding:
    """By the shares of the ceiling; time and cycles have to bear it out."""
    p_worse, p_better = p_values
    if each.is_above(limit, scales.ceiling) and scales.is_above(each.mean, limit) and p_worse <= alpha:
        return replace(finding, verdict=REGRESSED, p_value=p_worse)
    if each.is_below(limit, scales.ceiling) and scales.is_below(each.mean, limit) and p_better <= alpha:
        return replace(finding, verdict=IMPROVED, p_value=p_better)
    p_value = p_worse if each.mean > 0 else p_better
    if abs(each.median + scales.ceiling) <= limit and abs(each.median + scales.time) <= limit:
        return replace(finding, verdict=SAME, p_value=p_value)
    note = "the spread is too wide to tell"
    if abs(each.median + scales.ceiling) <= limit:
        note = "the machine, not the kernel: the ceiling that this run measured moved with it"
    elif abs(each.median + scales.time) <= limit:
        note = "the ceiling that this run measured moved, the time did not"
    elif scales.clock is not None and abs(scales.clock) > limit / 3:
        note = f"the clock, not the kernel: it ran at {math.exp(scales.clock):.1%} of the baseline's"
    return replace(finding, verdict=WITHIN_NOISE, p_value=p_value, note=note)


def _shown(pair: Pair) -> Finding:
    old, now, machine = pair.old, pair.now, pair.machine
    return Finding(
        id=pair.id,
        metric=TIME,
        baseline=old.median_s,
        current=now.median_s,
        verdict=None,
        baseline_fraction=old.fraction,
        current_fraction=now.fraction,
        fraction_ratio=None if machine is None else old.median_s / now.median_s / machine,
        samples=(len(old.seconds), len(now.seconds)),
    )


def _no_verdict(old: Samples, now: Samples) -> str | None:
    """Why samples give a ratio and no verdict."""
    for samples, side in ((old, "baseline"), (now, "current")):
        if samples.unusable:
            return f"{side}: {samples.unusable}"
    fewest = min(len(old.seconds), len(now.seconds))
    if fewest < LEAST_SAMPLES:
        return f"{fewest} samples; a verdict needs {LEAST_SAMPLES} a side"
    processes = old.process_count, now.process_count
    if max(processes) > 1 and min(processes) < LEAST_PROCESSES:
        counts = f"{processes[0]} and {processes[1]} processes"
        return f"{counts}; a verdict needs 1, or {LEAST_PROCESSES} or more, on both sides: --repeat-process"
    return None


def _shared_time(pairs: Sequence[Pair]) -> float | None:
    """From all cases of single processes; None where they are too few to tell more than a case's own samples."""
    sides = [side for pair in pairs for side in (pair.old, pair.now) if side.process_count == 1]
    return shared_correlation_time([side.seconds for side in sides]) if len(sides) >= LEAST_SIDES else None


def _difference(pair: Pair, shared_time: float | None) -> Difference:
    old, now = pair.old, pair.now
    return difference(
        old.seconds,
        now.seconds,
        baseline_processes=old.processes,
        current_processes=now.processes,
        shared_time=shared_time,
    )
