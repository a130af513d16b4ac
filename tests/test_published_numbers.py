"""Published numbers, each as an exact integer with its citation."""

from fractions import Fraction

import pytest

from kvcalc import estimate
from kvcalc.architecture.attention import GroupedAttention, LatentAttention
from kvcalc.sizing import weights_bytes_per_gpu
from kvcalc.workload import Parallelism

GIB = 1 << 30


def per_token(attention: object) -> int:
    """Elements that a layer keeps for a token."""
    return sum(component.elements_per_slot for component in attention.components())


@pytest.mark.parametrize(
    ("model", "bytes_per_token", "arithmetic"),
    [
        # arXiv 2505.09343 (ISCA'25), Table 1: KV cache a token in KB of 1,000 bytes, bf16
        ("deepseek-v3", 70_272, 61 * 576 * 2),
        ("qwen2.5-72b", 327_680, 80 * 2 * 8 * 128 * 2),
        ("llama-3.1-405b", 516_096, 126 * 2 * 8 * 128 * 2),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_isca_table_1(model, bytes_per_token, arithmetic):
    cache = estimate(model, context_tokens=4096).cache
    assert cache.bytes_per_token == bytes_per_token == arithmetic
    assert cache.stored_bytes == 4096 * bytes_per_token
    assert cache.constant_bytes_per_sequence == 0


def test_deepseek_v3_keeps_35136_elements_a_token():
    # arXiv 2412.19437 sec. 2.1.1: 61 layers x (d_c 512 + d_h^R 64)
    assert estimate("deepseek-v3").cache.elements_per_token == 35_136 == 61 * 576


def test_the_number_that_most_calculators_give_is_something_else():
    # 61 layers x 2 x 7,168 x 2 B: K and V as wide as the hidden state
    wrong = 61 * 2 * 7168 * 2
    assert wrong == 1_748_992
    assert 24.8 < wrong / estimate("deepseek-v3").cache.bytes_per_token < 24.9


def test_every_tp_rank_holds_all_of_deepseek_v3s_latent():
    # vLLM 0.33 MLAAttentionSpec has one head, max_tp_shards = 1; facts A.6
    cache = estimate("deepseek-v3", context_tokens=131_072, tp=8).cache
    assert cache.per_rank.bytes_per_token == 70_272
    assert cache.per_rank.stored_bytes == cache.stored_bytes == 131_072 * 70_272
    assert cache.replication_factor == 8


def test_tp_8_leaves_an_eighth_of_llama_3_1_70b_on_a_rank():
    # 8 KV heads, one a rank: 80 x 2 x 8 x 128 x 2 / 8
    cache = estimate("llama-3.1-70b", context_tokens=8192, tp=8).cache
    assert cache.bytes_per_token == 327_680
    assert cache.per_rank.bytes_per_token == 40_960
    assert cache.per_rank.stored_bytes * 8 == cache.stored_bytes
    assert cache.replication_factor == 1


def test_tp_16_on_8_kv_heads_keeps_each_head_twice():
    # vLLM config/model.py: max(1, KV // tp) heads a rank
    cache = estimate("llama-3.1-70b", context_tokens=8192, tp=16).cache
    assert cache.per_rank.bytes_per_token == 40_960
    assert cache.replication_factor == 2


def test_attention_dp_takes_the_copies_away():
    # facts A.6: for MLA, dp attention removes the replication; each replica has its share of the batch
    cache = estimate("deepseek-v3", context_tokens=4096, batch=8, dp=8).cache
    assert cache.replication_factor == 1
    assert cache.per_rank.stored_bytes * 8 == cache.stored_bytes


def test_dcp_shares_the_tokens_instead_of_copying_the_latent():
    # facts A.6: each request's tokens are sharded over dcp ranks, cdiv(tokens, dcp)
    cache = estimate("deepseek-v3", context_tokens=4097, tp=8, dcp=4).cache
    assert cache.per_rank.stored_bytes == 1025 * 70_272
    assert cache.per_rank.bytes_per_token == Fraction(70_272, 4)


@pytest.mark.parametrize(
    ("model", "context_tokens", "printed"),
    [
        ("llama-3.1-8b", 1024, "0.125"),
        ("llama-3.1-8b", 16_000, "1.95"),
        ("llama-3.1-8b", 128_000, "15.62"),
        ("llama-3.1-70b", 1024, "0.313"),
        ("llama-3.1-70b", 16_000, "4.88"),
        ("llama-3.1-70b", 128_000, "39.06"),
    ],
)
def test_hugging_face_llama_3_1_blog(model, context_tokens, printed):
    """huggingface/blog#2345, KV cache in fp16. Its GB are GiB, its 1k is 1,024 and its 16k and 128k are thousands."""
    stored = estimate(model, context_tokens=context_tokens, kv_dtype="fp16").cache.stored_bytes
    # its last digit is cut off or rounded: 15.625 is printed as 15.62, 0.3125 as 0.313
    last_digit = 10.0 ** -len(printed.partition(".")[2])
    assert abs(stored / GIB - float(printed)) <= 0.501 * last_digit


def test_that_blogs_405b_row_is_twice_too_high():
    """The row says 0.984 GB at 1k; 8 KV heads give half of it."""
    stored = estimate("llama-3.1-405b", context_tokens=1024, kv_dtype="fp16").cache.stored_bytes
    assert stored == 528_482_304
    assert 2 * stored / GIB == pytest.approx(0.984, abs=0.0005)


def test_minicpm3_keeps_288_elements_a_layer():
    # openbmb/MiniCPM3-4B config.json: 62 layers, kv_lora_rank 256, qk_rope_head_dim 32
    assert estimate("minicpm3-4b").cache.bytes_per_token == 35_712 == 62 * (256 + 32) * 2


def test_longcat_flash_has_two_caches_in_each_of_its_28_layers():
    # facts B.2; meituan-longcat/LongCat-Flash-Chat config.json
    result = estimate("longcat-flash")
    assert len(result.model.layers) == 28
    assert result.cache.bytes_per_token == 64_512 == 56 * 576 * 2


def test_command_r_v01_is_mha_of_1_31_mb_a_token():
    # facts B.2: 40 layers x 2 x 64 heads x 128 x 2 B
    assert estimate("command-r-v01").cache.bytes_per_token == 1_310_720


def test_deepseek_67b_is_gqa_with_8_kv_heads():
    # deepseek-ai/DeepSeek-LLM@6712a86 README.md:196; one public catalogue says 64
    assert estimate("deepseek-llm-67b").cache.elements_per_token == 194_560 == 95 * 2 * 8 * 128


def test_deepseek_v2_papers_formulas():
    """arXiv 2405.04434 Table 1, a layer: MHA 2 n_h d_h, GQA 2 n_g d_h, MQA 2 d_h, MLA d_c + d_h^R = 9/2 d_h."""

    def grouped(kv_heads: int) -> int:
        return per_token(GroupedAttention(n_heads=32, n_kv_heads=kv_heads, head_dim=128, v_head_dim=128))

    latent = LatentAttention(
        n_heads=32, kv_lora_rank=4 * 128, qk_nope_head_dim=128, qk_rope_head_dim=128 // 2, v_head_dim=128
    )
    assert [grouped(32), grouped(8), grouped(1)] == [2 * 32 * 128, 2 * 8 * 128, 2 * 128]
    assert 2 * per_token(latent) == 9 * 128


@pytest.mark.parametrize(
    ("layers", "heads", "mla", "mha"),
    [(27, 16, 15_552, 110_592), (60, 56, 34_560, 860_160)],
    ids=["small-moe", "large-moe-needs-56-heads"],
)
def test_deepseek_v2_papers_ablation(layers, heads, mla, mha):
    """arXiv 2405.04434 appendix D.2: 15.6K against 110.6K, and 34.6K against 860.2K elements a token."""
    latent = LatentAttention(n_heads=heads, kv_lora_rank=512, qk_nope_head_dim=128, qk_rope_head_dim=64, v_head_dim=128)
    full = GroupedAttention(n_heads=heads, n_kv_heads=heads, head_dim=128, v_head_dim=128)
    assert (layers * per_token(latent), layers * per_token(full)) == (mla, mha)


def test_transformers_before_5_15_kept_71_times_the_latent():
    # facts A.11: H x (n + r + v) elements a layer, 4,997,120 B a token in bf16
    expanded = estimate("deepseek-v3").to_json()["decode"]["attention"]["expanded"]["elements_per_token"]
    assert expanded * 2 == 4_997_120
    assert round(expanded / 35_136, 1) == 71.1


def test_deepseek_v3_parameters():
    """deepseek-ai/DeepSeek-V3@9b4e978 README_WEIGHTS.md: 671B; transformers' class on meta: 671,026,404,352."""
    parameters = estimate("deepseek-v3").model.parameters
    assert parameters.total == 671_026_404_352
    assert round(parameters.active / 1e9, 2) == 37.55
    assert round(parameters.active_without_embedding / 1e9, 2) == 36.63
    assert round(parameters.mtp / 1e9, 2) == 11.61


def test_deepseek_v3_2_adds_an_indexer_of_0_852_billion():
    # facts D.4
    extra = estimate("deepseek-v3.2").model.parameters.total - estimate("deepseek-v3").model.parameters.total
    assert round(extra / 1e9, 3) == 0.852


def test_deepseek_v3_in_its_own_fp8_is_about_a_byte_a_parameter():
    # the checkpoint: 128 x 128 blocks of fp8 with one fp32 scale (arXiv 2412.19437 sec. 3.3.2), tables in bf16
    model = estimate("deepseek-v3").model
    published = weights_bytes_per_gpu(model, Parallelism())
    assert 1.000 < published / model.parameters.total < 1.005


def test_gpt_oss_window_layers_stop_growing_at_128_tokens():
    # openai/gpt-oss-120b config.json: 36 layers, every other one with sliding_window 128, 8 KV heads of 64
    result = estimate("gpt-oss-120b", context_tokens=131_072)
    assert result.cache.bytes_per_token == 18 * 2 * 8 * 64 * 2 == 36_864
    assert result.cache.constant_bytes_per_sequence == 128 * 36_864
    assert result.cache.stored_bytes == (131_072 + 128) * 36_864


def test_gemma_4_31b_where_windows_are_ignored():
    # vllm-project/vllm-metal#505: 220.0 GiB at 262,144 tokens: 901,120 bytes a token, the rate inside the window
    inside = estimate("gemma-4-31b", context_tokens=256).cache.stored_bytes
    assert inside // 256 == 901_120
    assert 220 * GIB == 901_120 * 262_144
