"""What GPUs send each other: nothing alone, a latency for little, the link for much, measured values met."""

import pytest

from kvcalc import load_gpu
from kvcalc.timing.exchange import all_gather_s, all_reduce_s, all_to_all_s, link_bytes_per_s, link_name, ranks_reached

H200, GB200, L40S = load_gpu("h200-sxm-141gb"), load_gpu("gb200-186gb"), load_gpu("l40s")
TIMES = [all_reduce_s, all_to_all_s, all_gather_s]


@pytest.mark.parametrize("time", TIMES)
def test_one_rank_sends_nothing(time):
    assert time(1 << 20, 1, H200) == 0


@pytest.mark.parametrize("time", TIMES)
@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_more_bytes_take_longer_and_none_a_latency(time, ranks):
    times = [time(2.0**n, ranks, H200) for n in range(31)]
    assert times == sorted(times)
    assert 2e-6 < times[0] < 15e-6


@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_much_goes_at_a_share_of_the_link(ranks):
    size, link = 1 << 32, H200.link.bytes_per_s_per_direction
    sent = (ranks - 1) / ranks * size
    for time, factor in ((all_reduce_s, 2), (all_to_all_s, 1), (all_gather_s, 1)):
        assert 0.5 < factor * sent / link / time(size, ranks, H200) < 1


@pytest.mark.parametrize(
    ("time", "ranks", "size", "measured_us"),
    [  # aiconfigurator-core 0.12.0 on H200: vLLM 0.24.0 and TensorRT-LLM 1.3.0rc20 all-reduce, NCCL 2.29.2
        (all_reduce_s, 8, 2 * 8192, 5.2),
        (all_reduce_s, 2, 2 * 4_194_304, 34.4),
        (all_reduce_s, 8, 2 * 33_554_432, 317.2),
        (all_to_all_s, 8, 2 * 4_194_304, 40.3),
        (all_to_all_s, 4, 2 * 67_108_864, 341.9),
        (all_gather_s, 8, 2 * 67_108_864, 379.9),
    ],
)
def test_measured_exchanges_are_met_within_their_error(time, ranks, size, measured_us):
    assert time(size, ranks, H200) * 1e6 == pytest.approx(measured_us, rel=0.3)


@pytest.mark.parametrize(
    ("tokens", "dispatch_us", "combine_us"), [(1, 11.9, 12.6), (64, 23.0, 38.8), (256, 60.5, 124.5)]
)
def test_deepep_low_latency_is_met_though_nothing_is_fitted_to_it(tokens, dispatch_us, combine_us):
    """8 H200s, hidden 7168, top 8: wideep_deepep_ll_perf.parquet of SGLang 0.5.12; fp8 there, bf16 back."""
    sent = tokens * 8 * 7168
    assert all_to_all_s(sent, 8, H200) * 1e6 == pytest.approx(dispatch_us, rel=0.3)
    assert all_to_all_s(2 * sent, 8, H200) * 1e6 == pytest.approx(combine_us, rel=0.3)


def test_a_link_reaches_as_far_as_it_is_stated_to_and_pcie_stands_in():
    assert link_bytes_per_s(H200, 8) == H200.link.bytes_per_s_per_direction
    assert link_bytes_per_s(H200, 16) == H200.pcie_bytes_per_s_per_direction
    assert link_bytes_per_s(GB200, 72) == GB200.link.bytes_per_s_per_direction
    assert L40S.link is None and link_bytes_per_s(L40S, 2) == L40S.pcie_bytes_per_s_per_direction
    assert all_reduce_s(1 << 24, 2, L40S) > all_reduce_s(1 << 24, 2, H200)


def test_a_token_reaches_no_more_ranks_than_it_has_experts():
    assert ranks_reached(8, 1) == pytest.approx(1)
    assert ranks_reached(8, 8) == pytest.approx(5.251, abs=1e-3)
    assert ranks_reached(8, 1000) == pytest.approx(8)


def test_the_link_that_is_used_is_named():
    assert link_name(H200, 8) == H200.link.type
    assert link_name(H200, 16) == link_name(L40S, 2) == "PCIe"
