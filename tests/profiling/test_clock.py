"""The clock: warm-up, how many samples, percentiles, and the contention filter. All with a clock that tests turn."""

from contextlib import contextmanager
from itertools import chain, repeat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvcalc.profiling.measure.clock import (
    CONTENTION_WINDOW_S,
    Block,
    CpuClock,
    Rule,
    Sample,
    Timing,
    busy_seconds,
    measure,
    quantile,
)


class ScriptedClock:
    """Gives the durations of a script, the last one for ever; blocks may be contended by a script too."""

    name = "scripted"
    cold_cache = "none to cool"

    def __init__(self, *durations, shares=()):
        self._durations = chain(durations, repeat(durations[-1]))
        self._shares = chain(shares, repeat(None))
        self.blocks = []

    @contextmanager
    def ready(self, call):
        def take(count):
            seconds = tuple(next(self._durations) for _ in range(count))
            for _ in seconds:
                call()
            share = next(self._shares) if count > 1 else None
            self.blocks.append(count)
            return Block(seconds=seconds, others_share=share)

        yield take


class FakeMachine:
    """A CPU whose clock moves only while a call runs, on which others take `others` CPU seconds a second."""

    def __init__(self, *, call_s, others=0.0, threads=2):
        self.now_s = self.own_s = self.busy_s = 0.0
        self.call_s, self.others, self.threads, self.calls, self.flushes = call_s, others, threads, 0, 0

    def call(self):
        self.calls += 1
        self._pass(self.call_s)

    def flush(self):
        self.flushes += 1
        self._pass(0.01)

    def _pass(self, seconds):
        self.now_s += seconds
        self.own_s += seconds * self.threads
        self.busy_s += seconds * (self.threads + self.others)

    def clock(self, **options):
        return CpuClock(
            threads=self.threads,
            now=lambda: self.now_s,
            own_s=lambda: self.own_s,
            busy_s=lambda: self.busy_s,
            **options,
        )


def test_warm_up_goes_on_until_two_calls_agree():
    clock = ScriptedClock(9.0, 3.0, 1.0, 1.02, 1.0)
    timing = measure(lambda: None, clock=clock, rule=Rule(longest_warm_up_s=100))
    assert timing.warm_up_calls == 4
    assert timing.stable
    assert max(sample.seconds for sample in timing.samples) == 1.0


def test_warm_up_lasts_its_least_time_even_when_calls_agree_at_once():
    timing = measure(lambda: None, clock=ScriptedClock(0.001), rule=Rule(warm_up_s=0.025))
    assert timing.warm_up_calls == 25


def test_warm_up_that_never_settles_ends_and_says_so():
    durations = [1.0, 2.0] * 500
    timing = measure(lambda: None, clock=ScriptedClock(*durations), rule=Rule(longest_warm_up_s=10, longest_s=30))
    assert not timing.stable
    assert timing.warm_up_calls < 12


def test_short_calls_are_sampled_until_there_are_enough_of_them():
    assert len(measure(lambda: None, clock=ScriptedClock(1e-5)).samples) == 30


def test_long_calls_are_sampled_until_there_is_enough_time_but_at_least_so_often():
    assert len(measure(lambda: None, clock=ScriptedClock(0.02), rule=Rule(samples=30, seconds=0.1)).samples) == 10
    assert len(measure(lambda: None, clock=ScriptedClock(3.0), rule=Rule(least_samples=9)).samples) == 9


def test_contended_blocks_are_taken_again_and_kept_marked():
    timing = measure(lambda: None, clock=ScriptedClock(1e-3, shares=(0.5, 0.0)), rule=Rule(seconds=9))
    assert len(timing.clean) == 30
    assert timing.contended_samples == 30
    assert not timing.contended
    assert timing.counted == timing.clean


def test_contention_that_never_ends_is_given_up_on_and_said():
    timing = measure(lambda: None, clock=ScriptedClock(1e-3, shares=repeat(0.5)), rule=Rule(retaken=1.0))
    assert timing.contended
    assert len(timing.samples) == 60
    assert timing.median_s == 1e-3


def test_contended_samples_do_not_move_the_statistics():
    slow = [Sample(seconds=9.0, contended=True)] * 50
    timing = Timing(clock="", cold_cache="", samples=(*slow, Sample(seconds=1.0), Sample(seconds=3.0)))
    assert timing.median_s == 2.0
    assert timing.p80_s < 3.0


def test_the_whole_call_is_timed_and_the_flush_is_not():
    machine = FakeMachine(call_s=0.004)
    timing = measure(machine.call, clock=machine.clock(flush=machine.flush, cold_cache="flushed"))
    assert timing.median_s == pytest.approx(0.004)
    assert machine.flushes == len(timing.samples) + timing.warm_up_calls
    assert timing.cold_cache == "flushed"


@pytest.mark.parametrize(("others", "contended"), [(0.0, False), (0.19, False), (0.21, True), (1.0, True)])
def test_others_are_what_the_cores_did_beyond_this_process(others, contended):
    machine = FakeMachine(call_s=0.004, others=others)
    timing = measure(machine.call, clock=machine.clock())
    assert timing.contended is contended  # 2 threads: 0.2 CPU seconds a second are 10 %


def test_a_short_block_is_filled_up_until_contention_can_be_told():
    machine = FakeMachine(call_s=1e-3)
    with machine.clock().ready(machine.call) as take:
        block = take(5)
    assert len(block.seconds) == 5
    assert machine.now_s == pytest.approx(CONTENTION_WINDOW_S, abs=2e-3)


def test_where_nobody_tells_the_busy_time_nothing_is_contended():
    machine = FakeMachine(call_s=1e-3, others=5.0)
    clock = machine.clock()
    clock.busy_s = lambda: None
    assert not measure(machine.call, clock=clock).contended


def test_busy_time_leaves_out_idle_and_waiting_and_other_cpus(tmp_path):
    stat = tmp_path / "stat"
    stat.write_text(
        "cpu  1 1 1 1 1 1 1 1 0 0\ncpu0 100 10 20 5000 300 4 6 60 50 0\ncpu1 999 9 9 9 9 9 9 9 0 0\nintr 5\n"
    )
    assert busy_seconds(stat, cpus=[0]) == pytest.approx(2.0)  # 200 ticks of 10 ms; guest time is in user already
    assert busy_seconds(stat, cpus=[7]) is None
    assert busy_seconds(tmp_path / "absent", cpus=[0]) is None


def test_a_call_that_raises_raises():
    def fail():
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        measure(fail, clock=CpuClock(threads=1))


def test_quantiles_are_interpolated():
    assert quantile([4.0, 1.0, 3.0, 2.0, 5.0], 0.5) == 3.0
    assert quantile([1.0, 2.0], 0.5) == 1.5
    assert quantile([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], 0.2) == 2.0
    with pytest.raises(ValueError, match="no values"):
        quantile([], 0.5)


@given(st.lists(st.floats(1e-9, 1e3), min_size=1, max_size=40))
def test_percentiles_are_ordered_and_within_the_samples(values):
    timing = Timing(clock="", cold_cache="", samples=tuple(Sample(seconds=value) for value in values))
    assert min(values) <= timing.p20_s <= timing.median_s <= timing.p80_s <= max(values)


@pytest.mark.parametrize(("share", "contended"), [(1.0, False), (0.67, False), (0.66, True), (0.5, True)])
def test_slow_memory_before_or_after_a_block_is_contention(share, contended):
    for shares in ((share, 1.0), (1.0, share)):
        machine, told = FakeMachine(call_s=0.004), iter((*shares, 1.0))
        with machine.clock(memory_share=lambda told=told: next(told)).ready(machine.call) as take:
            assert take(3).contended is contended
            assert take(3).contended is (contended and shares[1] == share)  # after one block is before the next
