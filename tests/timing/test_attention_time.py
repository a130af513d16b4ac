"""The attention time model: what must hold of it for any parameters in their ranges, and what it costs."""

import time
from dataclasses import fields, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvcalc.api import estimate, load_gpu
from kvcalc.timing.attention_time import (
    PARAMETERS,
    AttentionCase,
    attention_time,
    bound,
    machine,
    roofline_s,
)
from kvcalc.timing.families import FAMILIES, MLA, default_family
from kvcalc.timing.schedule import SCALAR, Cut, cut

H100, B200, L40S = (machine(load_gpu(slug)) for slug in ("h100-sxm5-80gb", "b200-sxm-180gb", "l40s"))
KERNELS = [(family.name, kind) for family in FAMILIES.values() for kind in family.kernels]


def mla(batch: int = 8, context: int = 32_768, heads: int = 128, query: int = 1, element: int = 2) -> AttentionCase:
    return AttentionCase(
        batch=batch,
        n_heads=heads,
        n_kv_heads=1,
        context_tokens=context,
        query_tokens=query,
        entry_bytes=576 * element,
        flop_per_pair=2 * (576 + 512),
        value_elements=512,
        query_output_elements=576 + 512,
        eight_bit=element == 1,
    )


def gqa(batch: int = 8, context: int = 8192, heads: int = 64, kv_heads: int = 8, width: int = 128) -> AttentionCase:
    return AttentionCase(
        batch=batch,
        n_heads=heads,
        n_kv_heads=kv_heads,
        context_tokens=context,
        query_tokens=1,
        entry_bytes=4 * width,
        flop_per_pair=4 * width,
        value_elements=width,
        query_output_elements=2 * width,
    )


def case_of(kind: str, **size: int) -> AttentionCase:
    return mla(**size) if kind == MLA else gqa(**size)


def seconds(case: AttentionCase, family: str, kind: str, device=H100, **changed: float) -> float:
    kernel = FAMILIES[family].kernels[kind]
    return attention_time(case, device, kernel.shape, {**kernel.values, **changed}).total_s


@pytest.mark.parametrize(("family", "kind"), KERNELS)
def test_every_family_has_physical_values(family: str, kind: str) -> None:
    kernel = FAMILIES[family].kernels[kind]
    for eight_bit in (False, True):
        start = kernel.start(eight_bit=eight_bit)
        assert set(start) == set(PARAMETERS) == set(kernel.spread)
        for name, value in start.items():
            assert PARAMETERS[name].low <= value <= PARAMETERS[name].high, name


@pytest.mark.parametrize(("family", "kind"), KERNELS)
@pytest.mark.parametrize("size", ["batch", "context"])
def test_more_work_takes_longer_up_to_a_wave(family: str, kind: str, size: str) -> None:
    """Doubling the batch or the context never makes a call faster by more than a better filled schedule explains."""
    previous = 0.0
    for power in range(0, 15 if size == "context" else 9):
        now = seconds(case_of(kind, **{size: 1 << power}), family, kind)
        assert now > 0.93 * previous
        previous = now


@pytest.mark.parametrize(("family", "kind"), KERNELS)
def test_a_long_stream_takes_twice_as_long_for_twice_the_cache(family: str, kind: str) -> None:
    one, two = (seconds(case_of(kind, batch=64, context=1 << power), family, kind) for power in (16, 17))
    assert two / one == pytest.approx(2, rel=0.06)


@pytest.mark.parametrize(("family", "kind"), KERNELS)
@given(
    batch=st.integers(1, 1024),
    context=st.integers(1, 1 << 17),
    heads=st.sampled_from([1, 2, 8, 16, 32, 64, 128]),
)
@settings(max_examples=40, deadline=None)
def test_a_cold_stream_is_never_faster_than_achieved_rates(family, kind, batch, context, heads) -> None:
    """Where nothing is warm in L2, the time is at least the achieved bandwidth's and at least the launch."""
    kv_heads = 1 if kind == MLA else heads if kind == "mha" else max(1, heads // 8)
    case = (
        mla(batch=batch, context=context, heads=heads)
        if kind == MLA
        else gqa(batch=batch, context=context, heads=heads, kv_heads=kv_heads)
    )
    kernel = FAMILIES[family].kernels[kind]
    time_ = attention_time(case, H100, kernel.shape, kernel.values)
    assert time_.total_s >= kernel.values["launch_s"]
    assert all(getattr(time_, field.name) >= 0 for field in fields(time_) if field.name != "overlapped_s")
    if case.cache_bytes > 4 * H100.l2_bytes:
        achieved = kernel.values["bandwidth_fraction"] * H100.bandwidth_bytes_per_s
        assert time_.total_s >= 0.99 * case.cache_bytes / achieved
        assert time_.total_s > roofline_s(case, H100)


def test_the_terms_add_up_and_are_what_they_are_called() -> None:
    kernel = FAMILIES["flashmla"].kernels[MLA]
    small = attention_time(mla(batch=1, context=64), H100, kernel.shape, kernel.values)
    assert small.combine_s == 0
    assert small.cold_s == 0
    assert small.total_s == pytest.approx(
        small.launch_s + small.queries_s + small.items_s + small.tiles_s + small.overlapped_s
    )
    assert bound(small) == "latency"
    large = attention_time(mla(batch=64, context=131_072, heads=16), H100, kernel.shape, kernel.values)
    assert large.cold_s == kernel.values["cold_s"]
    assert bound(large) == "memory"
    many_heads = attention_time(mla(batch=64, context=131_072, heads=128), H100, kernel.shape, kernel.values)
    assert bound(many_heads) == "compute"
    alone = attention_time(mla(batch=1, context=131_072), H100, kernel.shape, kernel.values)
    assert alone.combine_s > 0


def test_heads_are_padded_to_whole_tiles() -> None:
    """16 heads multiply as many rows as 64; on a small-tile kernel, 32 heads read the cache twice through L2."""
    sixteen, sixty_four = (seconds(mla(batch=128, heads=heads), "flashmla", MLA, combine_s=0) for heads in (16, 64))
    assert sixty_four / sixteen < 1.03
    small, doubled = (seconds(mla(batch=128, heads=heads), "trtllm-gen", MLA, B200) for heads in (16, 32))
    assert 1.3 < doubled / small < 1.7


def test_warm_l2_is_faster_and_ends_with_its_size() -> None:
    resident, cold = (
        seconds(mla(batch=4, heads=16, context=context), "trtllm-gen", MLA, B200) for context in (16_384, 32_768)
    )
    assert cold > 1.7 * resident
    dry = replace(B200, l2_bytes=1.0)
    assert seconds(mla(batch=4, heads=16, context=16_384), "trtllm-gen", MLA, dry) > 1.2 * resident


def test_query_tokens_multiply_rows_not_reads() -> None:
    one, four = (seconds(mla(batch=64, heads=16, query=query), "flashmla", MLA) for query in (1, 4))
    assert 1 < four / one < 1.15
    assert seconds(mla(batch=64, heads=128, query=4), "flashmla", MLA) > 2.5 * one


def test_wider_tiles_take_longer_to_set_up_and_write() -> None:
    """Small caches of many requests: a tile of 32 rows against one of 16, on the kernel that pads to them."""
    kernel = FAMILIES["trtllm-xqa"].kernels["gqa"]
    small = [gqa(batch=512, context=64, heads=8 * group) for group in (16, 24)]
    narrow, wide = (attention_time(case, H100, kernel.shape, kernel.values) for case in small)
    assert wide.items_s > 1.1 * narrow.items_s


def test_a_shape_may_be_of_hopper_alone() -> None:
    kernel = FAMILIES["trtllm-xqa"].kernels["gqa"]
    case = gqa(batch=3, context=4096)
    here, there = (
        attention_time(case, replace(H100, architecture=name), kernel.shape, kernel.values)
        for name in ("Hopper", "Ampere")
    )
    assert here.items_s != there.items_s


def test_hoppers_8_bit_tiles_have_as_many_rows_as_there_are_padded_to_8() -> None:
    """Twice the time of the matrix units for 9 to 16 rows; and one block an SM where they and the heads are wide."""
    kernel = FAMILIES["trtllm-xqa"].kernels["gqa"]

    def of(group: int, architecture: str = "Hopper") -> Cut:
        case = replace(gqa(batch=256, context=4096, heads=8 * group), eight_bit=True, value_elements=256)
        shape = kernel.shape.on(architecture)
        return cut(case, 132, shape, overhead=1.0, tail=0.5, ops=SCALAR)

    assert [of(group).tile_rows for group in (2, 8, 12, 16, 32)] == [8, 8, 16, 16, 32]
    assert [of(group).blocks_per_sm for group in (8, 12, 16)] == [3, 1, 1]
    assert of(2, "Ampere").tile_rows == 64


def test_adas_8_bit_blocks_need_more_registers() -> None:
    kernel = FAMILIES["trtllm-xqa"].kernels["mha"]

    def held(units: int, architecture: str, *, eight_bit: bool = True) -> float:
        case = replace(gqa(batch=units, context=4096, heads=1), n_kv_heads=1, eight_bit=eight_bit)
        return cut(case, 142, kernel.shape.on(architecture), overhead=1.0, tail=0.5, ops=SCALAR).blocks_per_sm

    assert [held(units, "Ada Lovelace") for units in (64, 256, 1024)] == [1, 1, 3]
    assert [held(units, "Hopper") for units in (64, 256, 1024)] == [1, 2, 4]
    assert held(1024, "Ada Lovelace", eight_bit=False) == 4


def test_a_prediction_costs_little() -> None:
    case, kernel = mla(), FAMILIES["flashmla"].kernels[MLA]
    best = min(_cost(case, kernel) for _ in range(5))
    assert best < 100e-6  # 12 us on an idle core; the bound allows for a busy machine


def _cost(case, kernel) -> float:
    started = time.process_time()
    for _ in range(300):
        attention_time(case, H100, kernel.shape, kernel.values)
    return (time.process_time() - started) / 300


def assert_same_in_numpy(cases: list[AttentionCase], kernel) -> None:
    """On each kind of GPU that kernels have shapes of their own for."""
    import numpy as np

    from kvcalc.timing.calibration.arrays import NUMPY

    arrays = AttentionCase(
        **{field.name: np.array([getattr(case, field.name) for case in cases]) for field in fields(AttentionCase)}
    )
    for device in (H100, B200, L40S):
        together = attention_time(arrays, device, kernel.shape, kernel.values, NUMPY).total_s
        alone = [attention_time(case, device, kernel.shape, kernel.values).total_s for case in cases]
        np.testing.assert_allclose(together, alone, rtol=1e-12)


def test_scalar_equals_numpy_on_random_rows() -> None:
    np = pytest.importorskip("numpy")
    random = np.random.default_rng(0)
    for family, kind in KERNELS:
        kernel = FAMILIES[family].kernels[kind]
        cases = [
            case_of(kind, batch=int(batch), context=int(context), heads=int(heads))
            for batch, context, heads in zip(
                random.integers(1, 1024, 60),
                2 ** random.uniform(0, 17, 60),
                random.choice([8, 16, 24, 40, 64, 128], 60),
                strict=True,
            )
        ]
        assert_same_in_numpy(cases, kernel)


def test_scalar_equals_numpy_with_a_window() -> None:
    np = pytest.importorskip("numpy")
    random = np.random.default_rng(1)
    for family, kind in KERNELS:
        kernel = FAMILIES[family].kernels[kind]
        cases = [
            replace(gqa(batch=int(batch), context=int(min(context, 1024)), width=64), history_tokens=int(context))
            for batch, context in zip(random.integers(1, 512, 60), 2 ** random.uniform(0, 17, 60), strict=True)
        ]
        cases = [replace(case, eight_bit=number % 2 == 0) for number, case in enumerate(cases)]
        assert_same_in_numpy(cases, kernel)


def test_a_window_costs_more_beyond_a_long_history_where_splits_are_counted_by_it() -> None:
    short = replace(gqa(batch=1, context=128, width=64), history_tokens=256)
    long_ = replace(short, history_tokens=65_536)
    for family, slower in (("trtllm-xqa", True), ("fa3-vllm", True), ("fa3", False), ("trtllm-gen", False)):
        one, two = (seconds(case, family, "gqa") for case in (short, long_))
        assert two > 1.01 * one if slower else two == one


@pytest.mark.parametrize(
    ("slug", "latent", "grouped"),
    [
        ("h100-sxm5-80gb", "flashmla", "fa3"),
        ("b200-sxm-180gb", "trtllm-gen", "trtllm-gen"),
        ("gb300-279gb", "trtllm-gen", "trtllm-gen"),
        ("rtx-pro-6000-blackwell-server", "triton", "flashinfer"),
        ("a100-sxm4-80gb", "triton", "flashinfer"),
        ("mi300x", "triton", "flashinfer"),
    ],
)
def test_defaults_name_families_that_have_the_kernel(slug: str, latent: str, grouped: str) -> None:
    gpu = load_gpu(slug)
    assert (default_family(gpu, MLA), default_family(gpu, "gqa")) == (latent, grouped)
    assert MLA in FAMILIES[latent].kernels
    assert "gqa" in FAMILIES[grouped].kernels


@pytest.mark.parametrize("model", ["deepseek-v3", "llama-3.1-8b", "deepseek-v3.2", "gpt-oss-120b"])
def test_a_step_on_a_calibrated_gpu_has_an_expected_time(model: str) -> None:
    result = estimate(model, gpu="h200-sxm-141gb", tp=8, batch=16, context_tokens=16_384)
    time_ = result.to_json()["decode"]["time"]
    low, high = time_["interval_s"]
    assert time_["roofline_s"] < time_["expected_s"] < 20 * time_["roofline_s"]
    assert low < time_["expected_s"] < high
    assert sum(term["expected_s"] for term in time_["expected_terms"]) == pytest.approx(time_["expected_s"])


def test_a_step_without_a_calibration_says_why() -> None:
    time_ = estimate("llama-3.1-8b", gpu="mi300x").to_json()["decode"]["time"]
    assert time_["expected_s"] is None
    assert time_["interval_s"] is None
    assert "no calibration of mi300x" in time_["expected_note"]
    recurrent = estimate("qwen3-next-80b-a3b", gpu="h100-sxm5-80gb").to_json()["decode"]["time"]
    assert recurrent["expected_s"] is None
    assert "is modelled" in recurrent["expected_note"]


def test_aggregated_serving_adds_other_prefills() -> None:
    sizes = {"gpu": "h100-sxm5-80gb", "batch": 64, "context_tokens": 2048}
    alone = estimate("llama-3.1-8b", **sizes).predictions["decode"]
    among = estimate("llama-3.1-8b", **sizes, output_tokens=256).predictions["decode"]
    assert among.expected_s > 1.2 * alone.expected_s
    assert [part.name for part in among.parts][-1] == "other prefills"
