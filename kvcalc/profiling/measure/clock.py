"""The one way to time a call: warm up until stable, then sample until there is enough, and keep every sample.

    with clock.ready(call) as take:      # a clock knows a device; `take(n)` runs the call n times and returns a Block
        ...
    measure(call, clock=clock)           # the loop around it, the same for every clock

What is timed is the whole operator: everything that `call` launches, a combine of partial results included. Each clock
says how it kept the caches cold. Clocks: CUDA graph, CUDA events (both in `cuda_clock.py`) and the CPU's, which knows
too whether others used the machine meanwhile. A block of samples is contended where the cores' busy time less this
process's own is 10 % or more of what the measured threads had, or where memory, read just before or just after it,
gives less than two thirds of what it can: a neighbour takes its share, or a hypervisor has put both cores behind
one link to it. Contended samples are taken again, counted, and kept marked.
"""

import os
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

Call = Callable[[], Any]

CONTENTION_LIMIT = 0.10
CONTENTION_WINDOW_S = 0.2
"""Busy time is counted in ticks of 10 ms, so a share of 10 % can't be told in less than about this."""
LEAST_MEMORY_SHARE = 2 / 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One timed call. `process` tells the fresh processes of a repeated run apart."""

    seconds: float
    contended: bool = False
    process: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Block:
    """Samples taken together.

    wall_s        how long that took, flushes included; None where it took no longer than the samples
    others_share  share of the threads' time that others had meanwhile; None where nobody tells
    memory_share  the least share of the memory's bandwidth that was to be had around it; None where nobody tells
    """

    seconds: tuple[float, ...]
    wall_s: float | None = None
    others_share: float | None = None
    memory_share: float | None = None

    @property
    def contended(self) -> bool:
        others_had_cores = self.others_share is not None and self.others_share >= CONTENTION_LIMIT
        return others_had_cores or (self.memory_share is not None and self.memory_share < LEAST_MEMORY_SHARE)


class Clock(Protocol):
    """Times calls on one device."""

    name: str
    cold_cache: str
    """How the caches were kept cold, in words."""

    def ready(self, call: Call) -> AbstractContextManager[Callable[[int], Block]]:
        """Make a call ready to be timed (capture it, say); gives the function that takes a block of samples."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Rule:
    """When it is enough: `samples` of them or `seconds` together, but never fewer than `least_samples`.

    warm_up_s, longest_warm_up_s  the warm-up lasts at least the one, and until two calls in a row agree within `stable`
                                  of each other, but at most the other
    retaken                       contended samples are taken again at most so many times over
    longest_s                     sampling stops after so long in any case, once there are `least_samples`
    """

    samples: int = 30
    seconds: float = 0.1
    least_samples: int = 9
    warm_up_s: float = 0.025
    longest_warm_up_s: float = 1.0
    stable: float = 0.05
    retaken: float = 1.0
    longest_s: float = 5.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Timing:
    """All samples of one call, and what the statistics are made of.

    The statistics take the uncontended samples; where there are none, all of them, and `contended` says so.
    """

    clock: str
    cold_cache: str
    samples: tuple[Sample, ...]
    warm_up_calls: int = 0
    stable: bool = True

    @property
    def clean(self) -> tuple[Sample, ...]:
        return tuple(sample for sample in self.samples if not sample.contended)

    @property
    def contended(self) -> bool:
        return not self.clean

    @property
    def contended_samples(self) -> int:
        return len(self.samples) - len(self.clean)

    @property
    def counted(self) -> tuple[Sample, ...]:
        """The samples that the statistics are made of."""
        return self.clean or self.samples

    def quantile_s(self, fraction: float) -> float:
        return quantile([sample.seconds for sample in self.counted], fraction)

    @property
    def median_s(self) -> float:
        return self.quantile_s(0.5)

    @property
    def p20_s(self) -> float:
        return self.quantile_s(0.2)

    @property
    def p80_s(self) -> float:
        return self.quantile_s(0.8)

    @property
    def least_s(self) -> float:
        return self.quantile_s(0.0)


def quantile(values: Sequence[float], fraction: float) -> float:
    """The value below which `fraction` of the values lie, interpolated linearly between neighbours."""
    ordered = sorted(values)
    if not ordered:
        raise ValueError("no values to take a quantile of")
    position = fraction * (len(ordered) - 1)
    low = int(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)


def measure(call: Call, *, clock: Clock, rule: Rule = Rule()) -> Timing:
    """Time a call by a rule. Raises whatever the call raises."""
    with clock.ready(call) as take:
        warm_up_calls, stable, estimate_s = _warm_up(take, rule)
        samples = _sample(take, rule, estimate_s)
    return Timing(
        clock=clock.name,
        cold_cache=clock.cold_cache,
        samples=tuple(samples),
        warm_up_calls=warm_up_calls,
        stable=stable,
    )


def _warm_up(take: Callable[[int], Block], rule: Rule) -> tuple[int, bool, float]:
    """Calls until two in a row agree; how many, whether they did, and what one took."""
    total_s, calls, previous_s = 0.0, 0, float("inf")
    while True:
        (seconds,) = take(1).seconds
        calls += 1
        total_s += seconds
        agree = abs(seconds - previous_s) <= rule.stable * max(seconds, previous_s) if calls > 1 else False
        previous_s = seconds
        if (agree and total_s >= rule.warm_up_s) or (calls > 1 and total_s >= rule.longest_warm_up_s):
            return calls, agree, seconds


def _sample(take: Callable[[int], Block], rule: Rule, estimate_s: float) -> list[Sample]:
    samples: list[Sample] = []
    clean, clean_s, total_s = 0, 0.0, 0.0
    most = rule.samples + round(rule.samples * rule.retaken)
    while True:
        enough = clean >= rule.samples or clean_s >= rule.seconds
        if (clean >= rule.least_samples and enough) or len(samples) >= most:
            return samples
        if total_s >= rule.longest_s and len(samples) >= rule.least_samples:
            return samples
        block = take(_block_size(rule, clean, estimate_s))
        samples += [Sample(seconds=seconds, contended=block.contended) for seconds in block.seconds]
        total_s += sum(block.seconds) if block.wall_s is None else block.wall_s
        if not block.contended:
            clean += len(block.seconds)
            clean_s += sum(block.seconds)


def _block_size(rule: Rule, clean: int, estimate_s: float) -> int:
    """As many as fill the window in which contention can be told, at most those still missing."""
    fill = round(CONTENTION_WINDOW_S / max(estimate_s, 1e-9))
    if fill < 1:
        return 1
    return min(fill, max(rule.samples - clean, 2))


def usable_cpus() -> tuple[int, ...]:
    """The logical CPUs that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return tuple(sorted(os.sched_getaffinity(0)))
    return tuple(range(os.cpu_count() or 1))


def busy_seconds(stat: Path = Path("/proc/stat"), cpus: Collection[int] | None = None) -> float | None:
    """Time that the usable CPUs have spent on anything but idling, whoever's work it was; None where nobody tells."""
    wanted = {f"cpu{cpu}" for cpu in (usable_cpus() if cpus is None else cpus)}
    try:
        lines = stat.read_text().splitlines()
    except OSError:
        return None
    rows = [line.split() for line in lines if line.split(None, 1)[:1] and line.split(None, 1)[0] in wanted]
    if not rows:
        return None
    # user nice system idle iowait irq softirq steal; guest time is already in user and nice
    ticks = sum(int(value) for row in rows for column, value in enumerate(row[1:9]) if column not in (3, 4))
    return ticks / os.sysconf("SC_CLK_TCK")


@dataclass(kw_only=True)
class CpuClock:
    """The CPU's clock, with the contention filter. `flush`, where given, runs before each sample and is not timed.

    now, own_s, busy_s  the wall clock, the CPU time of this process and the busy time of the cores that it may use, in
                        seconds; busy_s gives None where nobody tells
    memory_share        reads from memory, and gives the share of its bandwidth that was to be had
    """

    threads: int
    flush: Call | None = None
    cold_cache: str = "not kept cold"
    now: Callable[[], float] = time.perf_counter
    own_s: Callable[[], float] = time.process_time
    busy_s: Callable[[], float | None] = busy_seconds
    memory_share: Callable[[], float] | None = None
    name: str = "cpu"

    @contextmanager
    def ready(self, call: Call) -> Iterator[Callable[[int], Block]]:
        share = self.memory_share() if self.memory_share else None

        def take(count: int) -> Block:
            nonlocal share
            before, block = share, self._take(call, count)
            if self.memory_share is None or before is None:
                return block
            share = self.memory_share()
            return replace(block, memory_share=min(before, share))

        yield take

    def _take(self, call: Call, count: int) -> Block:
        """`count` timed calls; untimed ones fill the window in which contention can be told."""
        start_s, own_before_s, busy_before_s = self.now(), self.own_s(), self.busy_s()
        seconds = []
        for _ in range(count):
            if self.flush is not None:
                self.flush()
            begin_s = self.now()
            call()
            seconds.append(self.now() - begin_s)
        while busy_before_s is not None and count > 1 and self.now() - start_s < CONTENTION_WINDOW_S:
            call()
        wall_s = self.now() - start_s
        share = self._others_share(wall_s, own_before_s, busy_before_s)
        return Block(seconds=tuple(seconds), wall_s=wall_s, others_share=share)

    def _others_share(self, wall_s: float, own_before_s: float, busy_before_s: float | None) -> float | None:
        busy_after_s = self.busy_s()
        if busy_before_s is None or busy_after_s is None or wall_s <= 0:
            return None
        others_s = (busy_after_s - busy_before_s) - (self.own_s() - own_before_s)
        return max(0.0, others_s) / (wall_s * self.threads)
