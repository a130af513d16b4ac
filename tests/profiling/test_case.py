"""A case: FLOPs and bytes against integers computed by hand, names, and what is refused. Needs no torch."""

import subprocess
import sys
from dataclasses import replace

import pytest

from kvcalc.architecture.attention import GroupedAttention, LatentAttention, Mamba2
from kvcalc.architecture.attention.selected import SelectedAttention
from kvcalc.errors import UsageError
from kvcalc.profiling.case import ABSORBED, EXPANDED, GROUPED, Case, rank_attention
from kvcalc.profiling.kernels import KERNELS, load

V3 = LatentAttention(n_heads=128, kv_lora_rank=512, qk_nope_head_dim=128, qk_rope_head_dim=64, v_head_dim=128)
LLAMA_70B = GroupedAttention(n_heads=64, n_kv_heads=8, head_dim=128, v_head_dim=128)


def case(attention=V3, **options):
    return Case(**{"attention": attention, "phase": "decode", "batch": 1, "context_tokens": 4096, **options})


def test_v3_decode_absorbed_is_2176_flop_a_head_and_token_and_1152_bytes_a_token():
    one = case()
    assert one.flop() == one.flop(ABSORBED) == 2176 * 128 * 4096
    assert one.cache_bytes_per_token == 1152
    assert one.cache_read_bytes == 1152 * 4096
    assert one.query_output_bytes == 128 * (576 + 512) * 2
    assert one.bytes == 1152 * 4096 + 278_528
    assert one.pairs == 4096


def test_v3_expanded_is_640_flop_a_head_and_token_and_its_decompression_is_declared_apart():
    one = case()
    assert one.flop(EXPANDED) == 2 * 128 * 320 * 4096
    assert one.decompress_flop == 2 * 512 * 128 * (128 + 128) * 4096
    assert one.expanded_kv_bytes == 128 * (192 + 128) * 2 * 4096


def test_prefill_counts_the_triangle_in_the_expanded_form():
    prompt = case(phase="prefill", context_tokens=100)
    assert prompt.query_tokens == 100
    assert prompt.flop() == prompt.flop(EXPANDED) == 2 * 128 * 320 * (100 * 101 // 2)
    chunk = case(phase="prefill", context_tokens=100, query_tokens=10)
    assert chunk.pairs == sum(range(91, 101))


def test_grouped_attention_by_hand():
    one = case(LLAMA_70B, batch=3, context_tokens=1000)
    assert one.flop() == one.flop(GROUPED) == 3 * 4 * 64 * 128 * 1000
    assert one.cache_bytes_per_token == 2 * 8 * 128 * 2
    assert one.bytes == 3 * (4096 * 1000 + 2 * 64 * 128 * 2)
    assert one.expanded_kv_bytes == 3 * 1000 * 64 * 256 * 2


def test_a_form_that_the_attention_does_not_have_is_refused():
    with pytest.raises(ValueError, match="has no absorbed form"):
        case(LLAMA_70B).flop(ABSORBED)


def test_ragged_lengths_add_up_and_short_ones_have_fewer_queries():
    ragged = case(batch=4, context_tokens=100, query_tokens=3, seq_lens=(100, 0, 2, 50))
    assert ragged.pairs == (98 + 99 + 100) + 0 + (1 + 2) + (48 + 49 + 50)
    assert ragged.flop() == 2176 * 128 * ragged.pairs
    assert ragged.cache_read_bytes == 1152 * 152
    assert ragged.pages == (2, 0, 1, 1)


@pytest.mark.parametrize(
    ("dtype", "kv_dtype", "bytes_per_token"),
    [("fp32", "", 2304), ("bf16", "fp8", 576), ("fp16", "fp16", 1152), ("bf16", "fp8_e4m3", 576)],
)
def test_cache_formats(dtype, kv_dtype, bytes_per_token):
    assert case(dtype=dtype, kv_dtype=kv_dtype).cache_bytes_per_token == bytes_per_token


def test_ids_are_stable_and_tell_cases_apart():
    assert case(batch=8).id == "mla-512+64-h128-decode-b8-n4096-q1-bf16"
    assert case(LLAMA_70B, dtype="fp32").id == "gqa-128-h64-g8-decode-b1-n4096-q1-fp32"
    assert case(kv_dtype="fp8", page_tokens=1).id == "mla-512+64-h128-decode-b1-n4096-q1-bf16-kv-fp8_e4m3-page1"
    ids = {
        case(**options).id
        for options in (
            {},
            {"batch": 2},
            {"phase": "prefill"},
            {"query_tokens": 2},
            {"batch": 2, "seq_lens": (4096, 1)},
            {"batch": 2, "seq_lens": (4096, 2)},
            {"attention": replace(V3, v_head_dim=256)},
        )
    }
    assert len(ids) == 7


def test_json_has_the_promised_keys():
    row = case().as_json(kernel="torch-sdpa", form=ABSORBED)
    promised = "kernel attention phase n_heads batch context_tokens query_tokens dtype kv_dtype bytes flop"
    assert set(promised.split()) <= set(row)
    assert (row["attention"], row["n_heads"], row["flop"]) == ("mla", 128, 2176 * 128 * 4096)


def test_attention_names():
    assert case(replace(LLAMA_70B, n_kv_heads=64)).attention_name == "mha"
    assert case(replace(LLAMA_70B, n_kv_heads=1)).attention_name == "mqa"
    assert case(LLAMA_70B).attention_name == "gqa"
    assert case().attention_name == "mla"


def test_a_rank_has_its_share_of_heads_and_all_of_the_latent():
    share = rank_attention(V3, tp=8)
    assert share.n_heads == 16
    assert case(share).cache_bytes_per_token == 1152
    assert rank_attention(LLAMA_70B, tp=4).n_kv_heads == 2
    assert rank_attention(LLAMA_70B, tp=16).n_kv_heads == 1
    assert rank_attention(SelectedAttention(base=V3, top_k=2048, indexer=None)) == V3


@pytest.mark.parametrize(("attention", "tp"), [(V3, 3), (replace(LLAMA_70B, n_heads=24, n_kv_heads=6), 4)])
def test_heads_that_can_not_be_spread_are_refused(attention, tp):
    with pytest.raises(UsageError):
        rank_attention(attention, tp=tp)


def test_kinds_without_a_kernel_are_refused_by_name():
    mamba = Mamba2(n_heads=8, head_dim=8, n_groups=1, d_state=16, conv_kernel=4)
    with pytest.raises(UsageError, match="Mamba-2"):
        rank_attention(mamba)


@pytest.mark.parametrize(
    "options",
    [
        {"phase": "train"},
        {"dtype": "int8"},
        {"kv_dtype": "nvfp4"},
        {"batch": 0},
        {"context_tokens": 4, "query_tokens": 5},
        {"batch": 2, "seq_lens": (1,)},
        {"seq_lens": (4097,)},
    ],
)
def test_senseless_cases_are_refused(options):
    with pytest.raises(UsageError):
        case(**options)


def test_unknown_kernels_get_a_hint():
    with pytest.raises(UsageError) as error:
        load("triton-mia")
    assert "triton-mla" in (error.value.hint or "")


def test_a_kernel_whose_package_is_missing_says_so(monkeypatch):
    monkeypatch.setitem(KERNELS, "absent", "no_such_package_here:Kernel")
    kernel = load("absent")
    assert "no_such_package_here is not installed" in (kernel.supports(case(), None) or "")
    assert kernel.version() is None


def test_cases_and_the_kernel_table_need_no_torch():
    code = "import sys, kvcalc.profiling.case, kvcalc.profiling.kernels; print({'torch', 'triton'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
