"""The claims that people repeat about MLA, each with what makes it true."""

from fractions import Fraction

import pytest

from kvcalc import compare, estimate
from kvcalc.architecture.attention import GroupedAttention, LatentAttention
from kvcalc.architecture.slots import EveryNTokens

CONTEXT = 131_072


def elements(attention: object) -> int:
    return sum(component.elements_per_slot for component in attention.components())


def ratios(what_if: str, model: str = "deepseek-v3") -> list[Fraction]:
    return [row.ratio for row in compare([model], what_if=what_if).rows]


DEEPSEEK_V3_MLA = LatentAttention(
    n_heads=128, q_lora_rank=1536, kv_lora_rank=512, qk_nope_head_dim=128, qk_rope_head_dim=64, v_head_dim=128
)
DEEPSEEK_V3_MHA = GroupedAttention(n_heads=128, n_kv_heads=128, head_dim=128, v_head_dim=128)


def test_32x_is_one_of_k_and_v_against_the_latent_without_rope():
    """32x: 128 heads x 128 = 16,384 numbers of K alone over the 512 of the latent; rope and V are left out."""
    key, _ = DEEPSEEK_V3_MHA.components()
    latent, _ = DEEPSEEK_V3_MLA.components()
    assert (key.elements_per_slot, latent.elements_per_slot) == (16_384, 512)
    assert key.elements_per_slot // latent.elements_per_slot == 32


def test_56_9x_is_k_and_v_against_the_whole_entry():
    """56.9x ("around 60x"): K and V of 128 heads, 32,768 numbers, over the 512 + 64 that MLA keeps."""
    assert (elements(DEEPSEEK_V3_MHA), elements(DEEPSEEK_V3_MLA)) == (32_768, 576)
    itself, mha = ratios("mha")
    assert itself == 1
    assert mha == Fraction(32_768, 576)
    assert round(float(mha), 1) == 56.9


def test_1_76_percent_and_6_25_percent_of_the_same_models_mha():
    """1.76 %: MLA, 576 of 32,768. 6.25 %: GQA with 8 groups for 128 heads, 8 of 128."""
    mla, mha, gqa = ratios("mha,gqa:8")
    assert round(100 * float(mla / mha), 2) == 1.76
    assert gqa / mha == Fraction(625, 10_000)


def test_the_often_drawn_8_percent_needs_96_heads_in_8_groups():
    """8.3 %: 8 KV heads for 96 query heads, GPT-3's number; no DeepSeek has 96."""
    gqa = GroupedAttention(n_heads=96, n_kv_heads=8, head_dim=128, v_head_dim=128)
    mha = GroupedAttention(n_heads=96, n_kv_heads=96, head_dim=128, v_head_dim=128)
    assert round(100 * elements(gqa) / elements(mha), 1) == 8.3


def test_deepseek_v2_against_deepseek_67b_is_82_2_percent_on_elements():
    """82.2 %: 34,560 elements a token against 194,560; the same for bytes in any one format."""
    v2, dense = estimate("deepseek-v2").cache, estimate("deepseek-llm-67b").cache
    assert (v2.elements_per_token, dense.elements_per_token) == (34_560, 194_560)
    assert round(100 * float(1 - v2.elements_per_token / dense.elements_per_token), 1) == 82.2


def test_93_3_percent_needs_deepseek_v2s_six_bit_cache():
    """93.3 % (deepseek-ai/DeepSeek-V2@ec98ee3 README.md:58): V2's deployed cache has 6 bits an element on average
    (arXiv 2405.04434 sec. 3.2.3), DeepSeek-67B's 16."""
    v2, dense = estimate("deepseek-v2", kv_dtype="int6").cache, estimate("deepseek-llm-67b").cache
    assert (v2.bytes_per_token, dense.bytes_per_token) == (25_920, 389_120)
    assert round(100 * float(1 - v2.bytes_per_token / dense.bytes_per_token), 1) == 93.3


def test_transmlas_93_percent():
    """92.97 % (arXiv 2502.07864): Llama-2-7B's MHA keeps 8,192 numbers a layer, its conversion 512 + 64."""
    converted, original = estimate("transmla-llama-2-7b").cache, estimate("llama-2-7b").cache
    assert (converted.elements_per_token, original.elements_per_token) == (32 * 576, 32 * 8192)
    assert round(100 * float(1 - converted.elements_per_token / original.elements_per_token), 2) == 92.97


def test_4_25_times_the_flop_of_mha():
    """4.25x ("about 4x"): absorbed, a head costs 2 (576 + 512) FLOPs a pair; MHA with heads of 128, 2 (128 + 128)."""
    mla, mha = (row.decode_attention_flop_per_token for row in compare(["deepseek-v3"], what_if="mha").rows)
    assert Fraction(mla, mha) == Fraction(425, 100)


def test_3_4_times_the_flop_of_its_own_expanded_form():
    """3.4x: against MLA's own expanded form the key is 128 + 64 wide, so the factor is 1,088 / 320 and not 4.25."""
    attention = estimate("deepseek-v3", context_tokens=CONTEXT).to_json()["decode"]["attention"]
    assert attention["flop"] == attention["absorbed"]["flop"] == 61 * 128 * CONTEXT * 2 * (576 + 512)
    assert attention["expanded"]["flop"] == 61 * 128 * CONTEXT * 2 * (192 + 128)
    assert Fraction(attention["absorbed"]["flop"], attention["expanded"]["flop"]) == Fraction(34, 10)


def test_mla_equals_gqa_with_2_25_groups():
    """2.25 groups (arXiv 2405.04434 Table 1): 576 elements over the 2 x 128 that a group keeps."""
    one_group = GroupedAttention(n_heads=128, n_kv_heads=1, head_dim=128, v_head_dim=128)
    assert Fraction(elements(DEEPSEEK_V3_MLA), elements(one_group)) == Fraction(9, 4)


def test_242_flop_a_byte_is_why_mla_decoding_is_near_the_ridge():
    """The latent is read once for 128 heads and serves as K and V: 128 x 2 x 1,088 FLOPs over 1,152 bytes."""
    attention = estimate("deepseek-v3", context_tokens=CONTEXT).to_json()["decode"]["attention"]
    assert attention["flop_per_byte"] == pytest.approx(128 * 2 * 1088 / 1152)
    assert round(attention["flop_per_byte"]) == 242


@pytest.mark.parametrize(("kv_dtype", "total", "record"), [(None, 78_324, 1152), ("fp8_ds_mla", 48_068, 656)])
def test_deepseek_v3_2s_indexer_adds_132_bytes_a_layer(kv_dtype, total, record):
    """78,324 B in bf16, 48,068 B in fp8_ds_mla: 61 x (record + 132), the index key in fp8 with its scale in both."""
    cache = estimate("deepseek-v3.2", kv_dtype=kv_dtype).cache
    assert cache.bytes_per_token == total == 61 * (record + 132)
    assert cache.elements_per_token == 35_136
    assert cache.index_elements_per_token == 61 * 128


@pytest.mark.parametrize(
    ("kv_dtype", "read", "record"), [(None, 1_199_308_800, 1152), ("fp8_ds_mla", 1_137_344_512, 656)]
)
def test_deepseek_v3_2_reads_2048_tokens_and_every_index_key(kv_dtype, read, record):
    """One step at 131,072 tokens: 2,048 selected entries and all 131,072 index keys, in each of 61 layers."""
    attention = estimate("deepseek-v3.2", context_tokens=CONTEXT, kv_dtype=kv_dtype).to_json()["decode"]["attention"]
    assert attention["read_bytes"] == read == 61 * (2048 * record + CONTEXT * 132)


def test_dense_deepseek_v3_reads_all_of_its_cache():
    """9,210,691,584 B: 131,072 entries of 1,152 bytes in 61 layers, 7.7 times what V3.2 reads."""
    result = estimate("deepseek-v3", context_tokens=CONTEXT)
    assert result.to_json()["decode"]["attention"]["read_bytes"] == 9_210_691_584 == result.cache.stored_bytes


def test_kimi_linears_75_percent_is_7_of_27_layers():
    """74.1 % ("up to 75 %"): 20 of 27 layers keep a state of constant size; the other 7 are MLA."""
    result = estimate("kimi-linear-48b-a3b")
    growing = [item for item in result.cache.records if item.record.growth_bytes]
    assert len(result.model.layers) == 27
    assert [item.count for item in growing] == [7]
    assert round(100 * (1 - growing[0].count / 27), 1) == 74.1
    assert result.cache.bytes_per_token == 7 * 576 * 2


@pytest.mark.parametrize(
    ("model", "growth", "period_bytes", "csa", "hca"),
    [
        # deepseek-ai/DeepSeek-V4-Flash and -Pro config.json, compress_ratios; facts A.7: no padding
        ("deepseek-v4-flash", Fraction("3850.25"), 492_832, 21, 20),
        ("deepseek-v4-pro", Fraction("5511.4375"), 705_464, 30, 31),
    ],
    ids=["flash", "pro"],
)
def test_deepseek_v4_grows_by_fractions_of_a_record(model, growth, period_bytes, csa, hca):
    """(584 + 132) / 4 a layer that compresses four tokens to one, 584 / 128 a layer that compresses 128."""
    result = estimate(model, context_tokens=CONTEXT)
    assert growth == csa * Fraction(584 + 132, 4) + hca * Fraction(584, 128)
    assert result.cache.bytes_per_token == growth
    assert (result.cache.period_tokens, result.cache.bytes_per_period) == (128, period_bytes)
    as_json = result.to_json()["cache"]
    assert Fraction(as_json["bytes_per_token"]) == growth, "a decimal with a power of two below it is exact"
    ratios_of_layers = [
        item.record.slots.of.tokens if hasattr(item.record.slots, "of") else item.record.slots.tokens
        for item in result.cache.records
        for component in item.record.components[:1]
        if component.role.is_cache_entry and item.record.growth_bytes
        for _ in range(item.count)
    ]
    assert (ratios_of_layers.count(4), ratios_of_layers.count(128)) == (csa, hca)


def test_deepseek_v4_pro_against_v3_2_at_a_million_tokens():
    """ "10 %" (V4 model card): 11.5 % with fp8 index keys, about 10.5 % with fp4 ones, against V3.2's 48,068 B."""
    base = estimate("deepseek-v3.2", kv_dtype="fp8_ds_mla").cache.bytes_per_token
    fp8 = estimate("deepseek-v4-pro").cache.bytes_per_token
    fp4 = estimate("deepseek-v4-pro", index_dtype="mxfp4_index").cache.bytes_per_token
    assert round(100 * float(fp8 / base), 1) == 11.5
    assert round(100 * float(fp4 / base), 1) == 10.5


def test_a_compressed_entry_is_there_when_its_block_is_full():
    """The 3,850.25 B are an average: an entry appears every 4, or every 128 tokens."""
    assert [EveryNTokens(4).stored(tokens) for tokens in (3, 4, 7, 8)] == [0, 1, 1, 2]
