"""What a selection of tokens adds to attention: index scores, top k, and reading tokens one by one."""

from dataclasses import replace

import pytest

from kvcalc.api import estimate, load_gpu
from kvcalc.timing.attention_time import PARAMETERS, AttentionCase, machine
from kvcalc.timing.families import FAMILIES, MLA
from kvcalc.timing.selection import (
    BLACKWELL,
    ELSEWHERE,
    GATHER_SLOWDOWN,
    HOPPER,
    gathered,
    index_kernel,
    index_time,
    top_k_s,
)

H100 = machine(load_gpu("h100-sxm5-80gb"))


def scores(batch: int, context: int, query: int = 1, heads: int = 64) -> AttentionCase:
    return AttentionCase(
        batch=batch,
        n_heads=heads,
        n_kv_heads=1,
        context_tokens=context,
        query_tokens=query,
        entry_bytes=132,
        flop_per_pair=256,
        value_elements=1,
        query_output_elements=128,
        eight_bit=True,
    )


def total(batch: int, context: int, query: int = 1, heads: int = 64) -> float:
    return index_time(scores(batch, context, query, heads), H100, HOPPER).total_s


def test_segments_of_256_keys_are_dealt_out_over_the_sms() -> None:
    """ceil(1 x ceil(33,792 / 256) / 132) = 1 round, and one key more is a second."""
    one, two = (index_time(scores(1, size), H100, HOPPER) for size in (132 * 256, 132 * 256 + 1))
    assert two.segments_s == pytest.approx(2 * one.segments_s, rel=0.02)
    assert total(132, 1) == pytest.approx(total(1, 1), rel=0.05)  # a segment for each request, all at once
    assert total(1024, 1) > total(132, 1) + 7 * 0.2e-6


def test_each_query_is_a_request_but_reads_its_keys_from_l2() -> None:
    assert total(64, 256, query=4) == pytest.approx(total(256, 256), rel=0.05)
    dry = replace(H100, l2_bytes=1)
    several, many = (index_time(scores(*size), dry, HOPPER).total_s for size in ((16, 32_768, 4), (64, 32_768)))
    assert several < many


def test_heads_and_keys_cost() -> None:
    assert total(64, 65_536, heads=64) > total(64, 65_536, heads=32)
    assert total(64, 65_536) > 1.8 * total(64, 32_768) - HOPPER.launch_s


def test_index_scores_are_as_measured() -> None:
    """SGLang's table of H100 (aiconfigurator-core 0.12.0), rows that no value was set on."""
    for batch, context, measured in ((1, 2048, 3.8e-6), (64, 1024, 4.3e-6), (512, 64, 6.7e-6), (16, 8192, 6.1e-6)):
        assert total(batch, context) == pytest.approx(measured, rel=0.2)


def test_scalar_equals_numpy() -> None:
    np = pytest.importorskip("numpy")
    from kvcalc.timing.calibration.arrays import NUMPY

    random = np.random.default_rng(0)
    batch, context = random.integers(1, 1024, 100), random.integers(1, 100_000, 100)
    query = random.integers(1, 16, 100)
    together = index_time(scores(batch, context, query), H100, BLACKWELL, NUMPY).total_s
    alone = [
        index_time(scores(*map(int, row)), H100, BLACKWELL).total_s for row in zip(batch, context, query, strict=True)
    ]
    np.testing.assert_allclose(together, alone, rtol=1e-12)
    picked = top_k_s(batch, context, 2048, 132, NUMPY)
    np.testing.assert_allclose(
        picked, [top_k_s(int(b), int(n), 2048, 132) for b, n in zip(batch, context, strict=True)]
    )


@pytest.mark.parametrize(
    ("slug", "kernel"),
    [
        ("h200-sxm-141gb", HOPPER),
        ("gb300-279gb", BLACKWELL),
        ("a100-sxm4-80gb", ELSEWHERE),
        ("rtx-pro-6000-blackwell-server", ELSEWHERE),
        ("mi300x", ELSEWHERE),
    ],
)
def test_where_no_kernel_was_measured_the_interval_is_wide(slug: str, kernel) -> None:
    assert index_kernel(load_gpu(slug)) is kernel
    assert ELSEWHERE.ends[1] / ELSEWHERE.ends[0] > max(each.ends[1] / each.ends[0] for each in (HOPPER, BLACKWELL))


def test_top_k_passes_over_scores_with_a_block_a_query() -> None:
    assert top_k_s(8, 2048, 2048, 132) == 0  # all are selected
    assert top_k_s(1, 4096, 2048, 132) == top_k_s(132, 4096, 2048, 132)
    assert top_k_s(264, 4096, 2048, 132) == 2 * top_k_s(132, 4096, 2048, 132)
    assert top_k_s(1, 1 << 20, 2048, 132) > 100 * top_k_s(1, 4096, 2048, 132)


def test_gathering_is_slower_and_stays_physical() -> None:
    for family in FAMILIES.values():
        if MLA in family.kernels:
            values = gathered(family.kernels[MLA].values)
            assert values["matrix_fraction"] == family.kernels[MLA].values["matrix_fraction"] / GATHER_SLOWDOWN
            assert all(PARAMETERS[name].low <= value <= PARAMETERS[name].high for name, value in values.items())


@pytest.mark.parametrize("model", ["deepseek-v3.2", "glm-5"])
@pytest.mark.parametrize("slug", ["h200-sxm-141gb", "b200-sxm-180gb"])
def test_a_step_with_a_selection_has_its_parts(model: str, slug: str) -> None:
    found = estimate(model, gpu=slug, tp=8, batch=8, context_tokens=32_768, kv_dtype="fp8").predictions["decode"]
    parts = {part.name: part for part in found.parts}
    assert {"attention", "index scores", "top k", "indexer"} <= set(parts)
    assert "gathered" in parts["attention"].source
    layers = len(estimate(model, context_tokens=8).model.layers)
    assert 4e-6 < parts["index scores"].seconds / layers < 40e-6
    for name in ("index scores", "top k", "indexer"):
        low, high = parts[name].low, parts[name].high
        assert low <= 1 < high
    short = estimate(model, gpu=slug, tp=8, batch=8, context_tokens=2048, kv_dtype="fp8").predictions["decode"]
    assert {part.name: part for part in short.parts}["top k"].seconds == pytest.approx(layers * 3e-6)
