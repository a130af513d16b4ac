"""SGLang, TensorRT-LLM, llama.cpp and transformers: what each stores and allocates."""

import json
from pathlib import Path

import pytest

from kvcalc import api
from kvcalc.errors import UsageError
from kvcalc.sizing import cache_size, stage_allocations
from kvcalc.workload import Parallelism, Workload

ONE = Parallelism()
JUDGED = json.loads(
    (Path(__file__).resolve().parents[2] / "benchmarks/results/engine_judge_transformers.json").read_text()
)


def size_of(name, engine, *, context=4096, mix=ONE, **options):
    model = api.load_model(name)
    layout = api.layout_for(model, engine=engine, parallelism=mix, **options)
    return cache_size(model, layout, Workload(context_tokens=context), mix)


def pool_of(name, engine, *, mix=ONE, **options):
    model = api.load_model(name)
    layout = api.layout_for(model, engine=engine, parallelism=mix, **options)
    return stage_allocations(model, layout, mix)[0]


# --- SGLang -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "size"),
    [
        ("deepseek-v3", {}, 61 * 576 * 2),
        ("deepseek-v3.2", {"kv_dtype": "fp8"}, 61 * (656 + 132)),
        ("glm-5.2", {"kv_dtype": "fp8"}, 78 * 656 + 21 * 132),
        ("llama-3.1-8b", {"kv_dtype": "fp8"}, 32 * 8 * 256),
        ("llama-3.1-8b", {"kv_dtype": "mxfp8"}, 32 * 8 * 256 * 33 // 32),
    ],
)
def test_sglang_bytes_a_token(name, options, size):
    assert size_of(name, "sglang", **options).bytes_per_token == size


def test_sglang_pages_and_the_page_more():
    plain, sparse = pool_of("llama-3.1-8b", "sglang"), pool_of("deepseek-v3.2", "sglang", kv_dtype="fp8")
    assert (plain.page_tokens, sparse.page_tokens) == (1, 64)
    assert sparse.pool_bytes(6400) == (6400 + 64) * 48_068
    assert sparse.capacity_tokens(48_068 * 6463) == 6400


def test_sglang_index_keys_are_whole_on_dcp_ranks():
    one, eight = (
        pool_of("deepseek-v3.2", "sglang@0.5.23", kv_dtype="fp8", mix=Parallelism(tp=8, dcp=dcp)) for dcp in (1, 8)
    )
    assert one.cell_bytes == 61 * (656 + 132)
    assert eight.cell_bytes == 61 * (656 + 8 * 132)
    with pytest.raises(UsageError, match="not known"):
        pool_of("deepseek-v3.2", "sglang@0.5.12", mix=Parallelism(tp=8, dcp=8))


# --- TensorRT-LLM -----------------------------------------------------------------------------------------------------


def test_trtllm_keeps_windows_whole():
    assert size_of("gemma-3-27b", "trtllm").bytes_per_token == 62 * 16 * 128 * 2 * 2
    assert size_of("gemma-3-27b", "generic").bytes_per_token == 10 * 16 * 128 * 2 * 2


def test_trtllm_blocks_and_fp8_of_mla():
    assert size_of("llama-3.1-8b", "trtllm", context=33).allocated_bytes == 64 * 131_072
    assert size_of("deepseek-v3", "trtllm", kv_dtype="fp8").bytes_per_token == 61 * 576
    assert size_of("deepseek-v3.2", "trtllm", kv_dtype="fp8").bytes_per_token == 61 * (576 + 132)
    assert size_of("llama-3.1-8b", "trtllm", kv_dtype="nvfp4").bytes_per_token == 32 * 8 * 2 * (64 + 8)


def test_trtllm_heads_on_more_ranks_than_heads():
    size = size_of("llama-3.1-8b", "trtllm", mix=Parallelism(tp=16))
    assert size.per_rank.bytes_per_token == 32 * 1 * 256 * 2
    assert size.replication_factor == 2


# --- llama.cpp --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("date", "elements"), [("2025-12-31", 576 + 512), ("2026-01-25", 576)])
def test_llama_cpp_dropped_the_value_cache_of_mla(date, elements):
    size = size_of("deepseek-v3", f"llama-cpp@{date}", kv_dtype="fp16")
    assert size.bytes_per_token == 61 * elements * 2
    assert size.elements_per_token == 61 * elements


def test_the_second_copy_changes_no_flop():
    old, new = (api.estimate("deepseek-v3", engine=f"llama-cpp@{date}") for date in ("2025-12-31", "2026-01-25"))
    assert old.attention("decode").flop == new.attention("decode").flop


@pytest.mark.parametrize(("kv", "bytes_for_32"), [("q8_0", 34), ("q5_1", 24), ("q5_0", 22), ("q4_1", 20), ("q4_0", 18)])
def test_llama_cpp_quantised_types(kv, bytes_for_32):
    assert size_of("llama-3.1-8b", "llama-cpp", kv_dtype=kv).bytes_per_token == 32 * 8 * 256 // 32 * bytes_for_32


def test_llama_cpp_pads_contexts_and_windows():
    token = 131_072
    assert pool_of("llama-3.1-8b", "llama-cpp").sequence_bytes(1000) == 1024 * token
    layer = 16 * 128 * 2 * 2
    assert pool_of("gemma-3-27b", "llama-cpp").sequence_bytes(8192) == layer * (10 * 8192 + 52 * 1536)


def test_llama_cpp_states_are_fp32_and_layers_are_split():
    size = size_of("kimi-linear-48b-a3b", "llama-cpp")
    states = 20 * (32 * 128 * 128 + 3 * 32 * 128 * 3) * 4
    assert size.constant_bytes_per_sequence == states
    with pytest.raises(UsageError, match="splits layers"):
        size_of("llama-3.1-8b", "llama-cpp", mix=Parallelism(tp=2))


# --- transformers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "version", "elements"),
    [
        ("deepseek-v3", "5.14.1", 61 * 128 * 320),
        ("deepseek-v3", "5.15.0", 61 * 576),
        ("deepseek-v3", "5.23.0", 61 * 576),
        ("deepseek-v3.2", "5.17.0", 61 * 128 * 320),
        ("deepseek-v3.2", "5.18.0", 61 * 576),
        ("falcon-40b", "5.23.0", 60 * 128 * 2 * 64),
    ],
)
def test_transformers_elements_a_token(name, version, elements):
    assert size_of(name, f"transformers@{version}").elements_per_token == elements


def test_transformers_expanded_cache_is_71_times_the_latent():
    old, new = (size_of("deepseek-v3", f"transformers@{version}") for version in ("5.14.1", "5.23.0"))
    assert old.bytes_per_token == 4_997_120
    assert float(old.bytes_per_token / new.bytes_per_token) == pytest.approx(71.1, abs=0.02)


def test_transformers_index_keys_have_no_scales():
    size = size_of("deepseek-v3.2", "transformers@5.23.0")
    assert size.bytes_per_token == 61 * (576 + 128) * 2


def test_transformers_windows_keep_one_token_less():
    size = size_of("gemma-3-27b", "transformers", context=8192)
    layer = 16 * 128 * 2 * 2
    assert size.stored_bytes == layer * (10 * 8192 + 52 * 1023)


def test_transformers_itself_found_nothing_different():
    assert set(JUDGED["verdicts"]) == {"equal", "not there"}
    assert {row["version"] for row in JUDGED["rows"]} >= {"5.14.1", "5.15.0", "5.17.0", "5.18.0"}
