"""vLLM's rules: blocks by backend, groups, windows, states, sharding; and pools that its own code has judged."""

import json
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvcalc import api
from kvcalc.engines.vllm_blocks import FULL, STATE, WINDOW, Page, equal_pages, grouped
from kvcalc.errors import UsageError
from kvcalc.sizing import cache_size, stage_allocations
from kvcalc.workload import Parallelism, Workload

ONE = Parallelism()
JUDGED = json.loads((Path(__file__).resolve().parents[2] / "benchmarks/results/engine_judge_vllm.json").read_text())


def laid_out(name, version, *, mix=ONE, **options):
    model = api.load_model(name)
    layout = api.layout_for(model, engine=f"vllm@{version}", parallelism=mix, **options)
    return model, layout, stage_allocations(model, layout, mix)


def gpu(slug):
    return api.load_gpu(slug)


@pytest.mark.parametrize(
    ("name", "version", "slug", "tokens"),
    [
        ("llama-3.1-8b", "0.33", "h100-sxm5-80gb", 16),
        ("deepseek-v3", "0.13", "h100-sxm5-80gb", 64),
        ("deepseek-v3", "0.13", "b200-sxm-180gb", 128),
        ("deepseek-v3", "0.13", "a100-sxm4-80gb", 16),
        ("deepseek-v3", "0.16", "b200-sxm-180gb", 64),
        ("minicpm3-4b", "0.16", "b200-sxm-180gb", 128),
        ("glm-4.7-flash", "0.18", "b200-sxm-180gb", 128),
        ("glm-4.7-flash", "0.20", "b200-sxm-180gb", 32),
        ("deepseek-v3", "0.13", "rtx-5090", 16),
        ("deepseek-v3", "0.33", "h100-sxm5-80gb", 16),
        ("deepseek-v3", "0.33", "b200-sxm-180gb", 32),
        ("deepseek-v3.2", "0.13", "h100-sxm5-80gb", 64),
        ("deepseek-v3.2", "0.33", "b200-sxm-180gb", 64),
    ],
)
def test_block_by_backend(name, version, slug, tokens):
    assert laid_out(name, version, gpu=gpu(slug))[1].block_tokens == tokens


def test_fp8_of_dense_mla_takes_flashmlas_block_on_hopper():
    layout = laid_out("deepseek-v3", "0.33", kv_dtype="fp8", gpu=gpu("h100-sxm5-80gb"))[1]
    assert layout.block_tokens == 64


@pytest.mark.parametrize(("version", "tokens"), [("0.11.0", 944), ("0.11.1", 960), ("0.24", 944), ("0.33", 1024)])
def test_states_raise_the_block(version, tokens):
    """Kimi-Linear, tp 2: a state of 1,085,440 bytes, a token of 1,152, in steps of the version."""
    mix = Parallelism(tp=2)
    assert laid_out("kimi-linear-48b-a3b", version, mix=mix, prefix_caching=False)[1].block_tokens == tokens


@pytest.mark.parametrize(
    ("version", "size", "groups"), [("0.11.0", 10, (1, 2)), ("0.12.0", 12, (1, 1)), ("0.18.0", 12, (1, 1))]
)
def test_group_size_10_and_12_layers(version, size, groups):
    from kvcalc.engines.base import parse_version
    from kvcalc.engines.vllm_rules import GROUP_SIZE

    found = {Page(kind=FULL, page_bytes=64, block_tokens=16): 10, Page(kind=WINDOW, page_bytes=64, block_tokens=16): 12}
    made, parts = grouped(found, merge_below=GROUP_SIZE.at(parse_version(version)))
    assert made == size
    assert tuple(part.groups for part in parts) == groups


def test_group_size_between_the_two_thresholds():
    """10 and 13 layers: 1.3 times. Kept apart below 0.18, merged from there on."""
    found = {Page(kind=FULL, page_bytes=64, block_tokens=16): 10, Page(kind=WINDOW, page_bytes=64, block_tokens=16): 13}
    assert grouped(found, merge_below=Fraction(5, 4))[0] == 10
    assert grouped(found, merge_below=Fraction(3, 2))[0] == 13


@given(
    st.dictionaries(st.integers(1, 5), st.integers(1, 60), min_size=1),
    st.sampled_from([None, Fraction(5, 4), Fraction(3, 2)]),
)
def test_groups_hold_all_layers_and_fewer_dead_ones_than_a_group(counts, merge_below):
    found = {
        Page(kind=WINDOW, page_bytes=64, block_tokens=16, span_tokens=span): count for span, count in counts.items()
    }
    size, groups = grouped(found, merge_below=merge_below)
    for group in groups:
        assert group.layers <= group.groups * size < group.layers + size


def test_pages_of_different_sizes():
    small, large = Page(kind=FULL, page_bytes=64, block_tokens=16), Page(kind=WINDOW, page_bytes=128, block_tokens=16)
    odd, state = Page(kind=FULL, page_bytes=96, block_tokens=16), Page(kind=STATE, page_bytes=100, block_tokens=0)
    with pytest.raises(UsageError):
        equal_pages([small, large], unequal="refuse")
    assert equal_pages([small, large], unequal="blocks")[small].block_tokens == 32
    with pytest.raises(UsageError):
        equal_pages([odd, large], unequal="blocks")
    assert equal_pages([odd, large], unequal="pad")[odd].page_bytes == 128
    assert equal_pages([state, large], unequal="refuse")[state].page_bytes == 128
    with pytest.raises(UsageError):
        equal_pages([Page(kind=FULL, page_bytes=96, block_tokens=16, latent=True), large], unequal="pad")


@pytest.mark.parametrize(("version", "blocks"), [("0.13", 8192 + 520 + 1), ("0.33", 8192 + 1032 + 1)])
def test_a_window_takes_what_is_in_flight(version, blocks):
    """gpt-oss-120b at 131,072 tokens: full 8,192 blocks; a window of 128, and 8,192 or twice 8,192 tokens in flight."""
    (pool,) = laid_out("gpt-oss-120b", version)[2]
    assert pool.sequence_blocks(131_072) == blocks


def test_windows_before_v1_are_kept_whole():
    model, layout, (pool,) = laid_out("gemma-2-27b", "0.7.3")
    size = cache_size(model, layout, Workload(context_tokens=8192), Parallelism())
    assert size.constant_bytes_per_sequence == 0
    assert pool.sequence_bytes(8192) == size.stored_bytes


@pytest.mark.parametrize(("caching", "blocks"), [(False, 1), (True, 2)])
def test_prefix_caching_takes_a_second_state_block(caching, blocks):
    layout = laid_out("qwen3.5-35b-a3b", "0.24", prefix_caching=caching)[1]
    assert layout.pool_rules.state_blocks == blocks


def test_prefix_caching_of_states_is_the_default_from_0_26_on():
    assert not laid_out("qwen3.5-35b-a3b", "0.25")[1].caches_prefixes
    assert laid_out("qwen3.5-35b-a3b", "0.26")[1].caches_prefixes


def test_mamba_with_prefix_caching_is_not_known_before_0_28():
    with pytest.raises(UsageError, match="chunk"):
        laid_out("nemotron-h-8b", "0.24", prefix_caching=True)
    assert laid_out("nemotron-h-8b", "0.28", prefix_caching=True)[2]


def test_speculation_takes_a_state_block_for_each_token():
    layout = laid_out("qwen3.5-35b-a3b", "0.24", prefix_caching=False, speculative_tokens=3)[1]
    assert layout.pool_rules.state_blocks == 4
    layout = laid_out("qwen3.5-35b-a3b", "0.13", prefix_caching=False, speculative_tokens=3)[1]
    assert layout.pool_rules.state_blocks == 1


@pytest.mark.parametrize(
    ("version", "slug", "kv", "size"),
    [
        ("0.13", "h200-sxm-141gb", "fp8_ds_mla", 61 * (656 + 132)),
        ("0.33", "h200-sxm-141gb", "fp8_ds_mla", 61 * (656 + 132)),
        ("0.33", "b200-sxm-180gb", "fp8_e4m3", 61 * (576 + 132)),
    ],
)
def test_fp8_of_sparse_mla(version, slug, kv, size):
    model, layout, _ = laid_out("deepseek-v3.2", version, kv_dtype="fp8", gpu=gpu(slug))
    assert layout.precision.kv.name == kv
    assert cache_size(model, layout, Workload(context_tokens=64), Parallelism()).bytes_per_token == size


def test_quantised_formats_by_version():
    assert laid_out("llama-3.1-8b", "0.20", kv_dtype="int8_per_token_head")
    with pytest.raises(UsageError, match="does not store"):
        laid_out("llama-3.1-8b", "0.13", kv_dtype="int8_per_token_head")
    model, layout, _ = laid_out("llama-3.1-8b", "0.33", kv_dtype="int8_per_token_head")
    assert cache_size(model, layout, Workload(context_tokens=16), Parallelism()).bytes_per_token == 32 * 8 * (256 + 8)


def test_latents_are_whole_on_every_rank_and_dcp_shares_tokens():
    (alone,), (wide,), (shared,) = (
        laid_out("deepseek-v3", "0.33", mix=mix)[2]
        for mix in (Parallelism(), Parallelism(tp=8), Parallelism(tp=8, dcp=8))
    )
    assert alone.sequence_bytes(32_768) == wide.sequence_bytes(32_768) == 8 * shared.sequence_bytes(32_768)
    assert wide.blocks(1 << 35) == shared.blocks(1 << 35)
    for pool, times in ((wide, 1), (shared, 8)):
        assert pool.stated_tokens(1_000, max_model_len=32_768, by_request=False) == 16_000 * times


def test_windows_refuse_dcp():
    with pytest.raises(UsageError, match="windows"):
        laid_out("gpt-oss-120b", "0.33", mix=Parallelism(tp=8, dcp=2))


def test_dcp_uses_up_copies_of_kv_heads():
    assert laid_out("qwen3-235b-a22b", "0.33", mix=Parallelism(tp=8, dcp=2))
    with pytest.raises(UsageError, match="same KV heads"):
        laid_out("llama-3.1-8b", "0.33", mix=Parallelism(tp=8, dcp=2))


def test_stages_share_the_groups_of_the_whole_model():
    """gpt-oss-120b on 2 stages: each has 9 of the 18 layers of each group."""
    whole = laid_out("gpt-oss-120b", "0.33")[2][0]
    stages = laid_out("gpt-oss-120b", "0.33", mix=Parallelism(pp=2))[2]
    assert [stage.block_bytes for stage in stages] == [whole.block_bytes // 2] * 2
    assert all(stage.groups == whole.groups for stage in stages)


@pytest.mark.parametrize("version", sorted({row["version"] for row in JUDGED["rows"]}))
def test_pools_that_vllms_own_code_judged_stay_as_they_are(version):
    rows = [row for row in JUDGED["rows"] if row["version"] == version and row["verdict"] == "equal"]
    assert len(rows) > 150
    for row in rows[::3]:
        mix = Parallelism(tp=row["tp"], pp=row["pp"])
        _, layout, pools = laid_out(row["model"], version, mix=mix, prefix_caching=False, max_batched_tokens=8192)
        pool, blocks = pools[0], min(each.blocks(40 << 30) for each in pools)
        found = {"groups": pool.group_count, "blocks": blocks}
        if mix.pp == 1:
            found["concurrency"] = round(blocks / pool.sequence_blocks(30_000), 6)
            found["tokens"] = layout.stated_tokens(pool, blocks, max_model_len=30_000)
        assert found == row["both"], row["model"]


def test_the_judge_found_nothing_different():
    assert set(JUDGED["verdicts"]) == {"equal", "refused"}


def test_dense_mla_has_no_656_byte_record():
    with pytest.raises(UsageError, match="for sparse MLA only"):
        api.estimate("deepseek-v3", engine="vllm", kv_dtype="fp8_ds_mla")
    assert api.estimate("deepseek-v3.2", engine="vllm", kv_dtype="fp8_ds_mla").cache.bytes_per_token == 48_068
