"""Two clocks for CUDA: events around a graph's replay, and events around the call itself.

A CUDA graph leaves out what the host does between launches, which is what serving engines do too and the only honest
way to time operators below some 100 us. Every sample is one replay: events stand directly before and after it in the
stream, and where the working set would fit the L2 cache a read of a buffer several times as large goes before the
first event. Samples of a block are queued together, so the host is never what is timed.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from kvcalc.profiling.measure.clock import Block, Call, Clock, Rule, Timing, measure

QUEUED_AT_ONCE = 256
CAPTURE_CALLS = 3
"""Calls on the capture stream before the capture, so that lazy set-up is not recorded."""


def _take(run: Call, flush: Call | None, count: int) -> Block:
    seconds: list[float] = []
    while len(seconds) < count:
        events = []
        for _ in range(min(QUEUED_AT_ONCE, count - len(seconds))):
            if flush is not None:
                flush()
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            run()
            end.record()
            events.append((start, end))
        torch.cuda.synchronize()
        seconds += [start.elapsed_time(end) / 1000 for start, end in events]
    return Block(seconds=tuple(seconds))


@dataclass(kw_only=True)
class CudaEventsClock:
    """Events around the call: what the host can't launch in time is in the result."""

    flush: Call | None = None
    cold_cache: str = "not kept cold"
    name: str = "cuda-events"

    @contextmanager
    def ready(self, call: Call) -> Iterator[Callable[[int], Block]]:
        yield lambda count: _take(call, self.flush, count)


@dataclass(kw_only=True)
class CudaGraphClock:
    """Events around the replay of a graph of one call. Capture raises where the call synchronises with the host."""

    flush: Call | None = None
    cold_cache: str = "not kept cold"
    name: str = "cuda-graph"

    @contextmanager
    def ready(self, call: Call) -> Iterator[Callable[[int], Block]]:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(CAPTURE_CALLS):
                call()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            call()
        try:
            yield lambda count: _take(graph.replay, self.flush, count)
        finally:
            torch.cuda.synchronize()
            graph.reset()


def measure_on_cuda(call: Call, *, flush: Call | None, cold_cache: str, rule: Rule) -> tuple[Timing, str | None]:
    """Time a call by graph replay, or by events where it can't be captured; and then the reason, in one line."""
    graph: Clock = CudaGraphClock(flush=flush, cold_cache=cold_cache)
    try:
        return measure(call, clock=graph, rule=rule), None
    except torch.cuda.OutOfMemoryError:
        raise
    except RuntimeError as error:
        torch.cuda.synchronize()
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    events: Clock = CudaEventsClock(flush=flush, cold_cache=cold_cache)
    return measure(call, clock=events, rule=rule), f"not captured in a CUDA graph: {reason}"
