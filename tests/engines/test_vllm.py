"""vLLM's rules: blocks by backend, groups, windows, states, sharding; and pools that its own code has judged."""

import json
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvcalc import api
from kvcalc.engines.vllm_blocks import FULL, STATE, WINDOW, Page, equal_pages, grouped
from kvcalc.engines.vllm_packed import repeats
from kvcalc.errors import UsageError
from kvcalc.sizing import cache_size, stage_allocations
from kvcalc.specs.build import build_model
from kvcalc.specs.huggingface.convert import spec_from_config
from kvcalc.specs.reader import Document
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


@pytest.mark.parametrize(
    ("name", "tp", "block", "requests"),
    [
        # as vLLM's own code says for 40 GiB and 30,000 tokens, in 0.13, 0.15, 0.18, 0.20.1, 0.24 and 0.26
        ("jamba-v0.1", 1, 2048, 10.666667),
        ("nemotron-h-56b", 2, 2176, 9.826531),
        ("nemotron-3-nano-30b-a3b", 8, 640, 92.957447),
    ],
)
@pytest.mark.parametrize("version", ["0.13", "0.24"])
def test_mamba_keeps_a_state_for_every_block(name, tp, block, requests, version):
    """Blocks are multiples of the kernel's chunk: 2,048 tokens for Mamba-1, 128 for these Mamba-2."""
    _, layout, (pool,) = laid_out(name, version, mix=Parallelism(tp=tp), prefix_caching=True)
    assert layout.block_tokens == layout.pool_rules.state_every_tokens == block
    assert round(pool.blocks(40 << 30) / pool.sequence_blocks(30_000), 6) == requests
    assert pool.sequence_blocks(30_000) == pool.group_count * -(-30_000 // block)
    assert any("a block every" in note for note in layout.notes)


@pytest.mark.parametrize(("version", "drafts"), [("0.20.1", 0), ("0.22", 3), ("0.27", 3)])
def test_drafts_of_mamba_states_by_block(version, drafts):
    layout = laid_out("jamba-v0.1", version, prefix_caching=True, speculative_tokens=3)[1]
    assert layout.pool_rules.state_blocks == drafts


def test_states_of_mamba_that_are_not_kept_by_block():
    with pytest.raises(UsageError, match="kernel_chunk_tokens"):
        laid_out("nemotron-h-8b", "0.24", prefix_caching=True)
    for name, version, blocks in (
        ("nemotron-h-8b", "0.28", 2),
        ("nemotron-h-8b", "0.11.0", 1),  # switched off
        ("qwen3.5-35b-a3b", "0.13", 1),
    ):
        rules = laid_out(name, version, prefix_caching=True)[1].pool_rules
        assert (rules.state_blocks, rules.state_every_tokens) == (blocks, 0)


def test_short_convolutions_are_no_mamba():
    """LFM2 has no part in "all" in any version: 0.14.0 to 0.27.0 vllm/model_executor/models/lfm2.py."""
    config = {"model_type": "lfm2", "num_hidden_layers": 4, "layer_types": ["conv", "full_attention"] * 2}
    model = build_model(Document("config.json", "", spec_from_config(config, source="config.json")))
    layout = api.layout_for(model, engine="vllm@0.24", prefix_caching=True)
    assert (layout.pool_rules.state_blocks, layout.pool_rules.state_every_tokens) == (2, 0)


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
    for row in rows[::3] + [row for row in rows if row["model"].startswith("deepseek-v4")]:
        mix, caching = Parallelism(tp=row["tp"], pp=row["pp"]), row.get("prefix_caching", False)
        _, layout, pools = laid_out(row["model"], version, mix=mix, prefix_caching=caching, max_batched_tokens=8192)
        pool, blocks = pools[0], min(each.blocks(40 << 30) for each in pools)
        found = {"groups": pool.group_count, "blocks": blocks}
        if mix.pp == 1:
            found["concurrency"] = round(blocks / pool.stated_sequence_blocks(30_000), 6)
            found["tokens"] = layout.stated_tokens(pool, blocks, max_model_len=30_000)
        assert found == row["both"], row["model"]


def test_the_judge_found_nothing_different():
    assert set(JUDGED["verdicts"]) == {"equal", "refused"}


def test_dense_mla_has_no_656_byte_record():
    with pytest.raises(UsageError, match="for sparse MLA only"):
        api.estimate("deepseek-v3", engine="vllm", kv_dtype="fp8_ds_mla")
    assert api.estimate("deepseek-v3.2", engine="vllm", kv_dtype="fp8_ds_mla").cache.bytes_per_token == 48_068


# --- DeepSeek-V4 ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "block_bytes"),
    [
        ("0.22", 22 * (37_440 + 8_640 + 1_728)),  # 43 windows in groups of 22 and 21; a page of each size for 22 layers
        ("0.26", 22 * 37_440 + 21 * 8_640 + 20 * 1_728),
        ("0.33", 21 * 37_440 + 21 * 8_640 + 20 * 1_728),  # the compressed entries: the largest group
    ],
)
def test_block_of_deepseek_v4(version, block_bytes):
    """V4-Flash: 43 layers with windows, 21 of them with entries for 4 tokens and an index, 20 with entries for 128."""
    _, layout, (pool,) = laid_out("deepseek-v4-flash", version)
    assert layout.block_tokens == 256
    assert pool.block_bytes == block_bytes
    assert pool.group_count == 5


def test_blocks_of_a_deepseek_v4_sequence():
    """65,536 tokens: 256 blocks of entries; windows of 128 (two groups), 8 and 128, and twice 8,192 in flight."""
    (pool,) = laid_out("deepseek-v4-flash", "0.33", max_batched_tokens=8192)[2]
    windows = 2 * (-(-(127 + 16_384) // 64) + 1) + (-(-(7 + 16_384) // 4) + 1) + (-(-(127 + 16_384) // 8) + 1)
    assert pool.sequence_blocks(65_536) == 256 + windows


@given(st.lists(st.integers(1, 90), min_size=1, max_size=5))
def test_repeats_pad_least(counts):
    size = repeats(counts, at_least=1)
    padding = {each: sum(-count % each for count in counts) for each in range(1, max(counts) + 1)}
    assert padding[size] == min(padding.values())
    assert all(padding[each] > padding[size] for each in padding if each > size)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"engine": "vllm@0.19"}, "not known before 0.20.0"),
        ({"engine": "vllm", "block_tokens": 64}, "256 tokens only"),
        ({"engine": "vllm", "kv_dtype": "nvfp4"}, "own records only"),
        ({"engine": "vllm", "tp": 8, "dcp": 2}, "windows"),
    ],
)
def test_what_vllm_does_not_do_with_deepseek_v4(options, message):
    with pytest.raises(UsageError, match=message):
        api.estimate("deepseek-v4-flash", **options)


def test_deepseek_v4_fills_gpus_with_blocks():
    found = api.estimate("deepseek-v4-flash", engine="vllm", kv_dtype="fp8_ds_mla", tp=4, gpu="h200-sxm-141gb")
    assert found.cache.bytes_per_token == Fraction(385_025, 100)
    assert found.memory.cache_bytes_per_gpu % (21 * 37_440 + 21 * 8_640 + 20 * 1_728) == 0
