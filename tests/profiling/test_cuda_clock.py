"""The CUDA clocks and ceilings, where there is a GPU (`pytest -m gpu`). Times are never asserted."""

import pytest

torch = pytest.importorskip("torch", reason="needs torch: pip install 'kvcalc[profile]'")

from kvcalc.api import load_model  # noqa: E402
from kvcalc.profiling.measure.clock import Rule, measure  # noqa: E402
from kvcalc.profiling.measure.cuda_clock import CudaEventsClock, CudaGraphClock, measure_on_cuda  # noqa: E402
from kvcalc.profiling.run import run  # noqa: E402
from kvcalc.profiling.session import open_session  # noqa: E402
from kvcalc.profiling.sweep import Request  # noqa: E402

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
FEW = Rule(samples=5, least_samples=5, warm_up_s=0)


@pytest.fixture
def counter():
    return torch.zeros(1, device="cuda")


@pytest.mark.parametrize("clock", [CudaEventsClock(), CudaGraphClock()])
def test_every_sample_is_one_call_that_really_ran(clock, counter):
    with clock.ready(lambda: counter.add_(1.0)) as take:
        before = float(counter)
        block = take(7)
    assert len(block.seconds) == 7
    assert all(seconds > 0 for seconds in block.seconds)
    assert float(counter) == before + 7


def test_the_flush_runs_before_each_sample(counter):
    flushes = []
    timing = measure(lambda: counter.add_(1.0), clock=CudaGraphClock(flush=lambda: flushes.append(1)), rule=FEW)
    assert len(flushes) == len(timing.samples) + timing.warm_up_calls


def test_a_call_that_can_not_be_captured_is_timed_by_events_and_says_why(counter):
    timing, note = measure_on_cuda(lambda: counter.add_(1.0).item(), flush=None, cold_cache="", rule=FEW)
    assert timing.clock == "cuda-events"
    assert note.startswith("not captured in a CUDA graph: ")
    timing, note = measure_on_cuda(lambda: counter.add_(1.0), flush=None, cold_cache="", rule=FEW)
    assert (timing.clock, note) == ("cuda-graph", None)


def test_a_call_that_raises_raises():
    def fail():
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        measure_on_cuda(fail, flush=None, cold_cache="", rule=FEW)


def test_the_ceilings_are_below_the_datasheet_where_there_is_one():
    from kvcalc.profiling.session import datasheet_of

    session = open_session("cuda", quick=True)
    session.measure_ceilings("bf16")
    assert session.ceilings.read_bandwidth_bytes_per_s > session.ceilings.copy_bandwidth_bytes_per_s / 2 > 0
    gpu = datasheet_of(session)
    if gpu is not None:
        assert session.ceilings.copy_bandwidth_bytes_per_s < 1.05 * gpu.memory_bandwidth_bytes_per_s


def test_a_tiny_run_is_right_and_tells_the_conditions():
    request = Request(batches=(2,), contexts=(512,), tp=8, quick=True, limit_s=120)
    results = run(load_model("deepseek-v2-lite"), request, spec="deepseek-v2-lite", device="cuda")
    found = results.to_json()
    assert found["environment"]["device"]["kind"] == "cuda"
    assert results.timed
    assert results.wrong == []
    assert results.failed == []
