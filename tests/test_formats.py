"""Number formats: each one's bytes for the sizes that are documented."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvcalc import estimate
from kvcalc.architecture.attention import CompressedAttention, GroupedAttention, Indexer, LatentAttention, by_record
from kvcalc.architecture.formats import ALIASES, CACHE_FORMATS, WEIGHT_FORMATS, Packing, cache_format
from kvcalc.architecture.layout import precision_for
from kvcalc.errors import UsageError
from tests.drawn_models import quick

MLA = LatentAttention(n_heads=128, kv_lora_rank=512, qk_nope_head_dim=128, qk_rope_head_dim=64, v_head_dim=128)
GQA = GroupedAttention(n_heads=32, n_kv_heads=8, head_dim=128, v_head_dim=128)
V4 = CompressedAttention(
    n_heads=64, head_dim=512, qk_rope_head_dim=64, q_lora_rank=1024, o_groups=8, o_lora_rank=1024, window_tokens=128
)
INDEX = (Indexer(heads=64, head_dim=128).component(),)


def record(format: str, components: tuple, shards: int = 1) -> int:
    return cache_format(format).record_bytes(components, shards=shards)


@pytest.mark.parametrize(
    ("format", "components", "size"),
    [
        # FlashMLA README, FP8 KV cache; vLLM 0.33 flashmla_sparse.py: 512 fp8 + 4 fp32 scales + 64 bf16 rope
        ("fp8_ds_mla", MLA.components(), 512 + 4 * 4 + 64 * 2),
        # vLLM 0.33 flashmla_sparse.py: 256 + 64 + 32
        ("nvfp4_ds_mla", MLA.components(), 352),
        # vLLM 0.33, SGLang 0.5.23: 448 fp8 + 64 bf16 rope + 8 of scales and pad
        ("fp8_ds_v4", V4.components(), 448 + 64 * 2 + 8),
        # vLLM 0.33 deepseek_v2.py: head_dim + head_dim // 128 * 4
        ("fp8_index", INDEX, 132),
        # facts A.0: MXFP4 indexer
        ("mxfp4_index", INDEX, 68),
        ("bf16", INDEX, 256),
        # facts A.0: (kl + r) * b, and plain fp8
        ("bf16", MLA.components(), 1152),
        ("fp8", MLA.components(), 576),
        ("fp32", MLA.components(), 2304),
        # facts A.0: KV x (d_k + d_v) x b
        ("bf16", GQA.components(), 8 * 256 * 2),
        ("fp16", GQA.components(), 8 * 256 * 2),
        ("fp32", GQA.components(), 8 * 256 * 4),
        ("fp8", GQA.components(), 8 * 256),
        ("fp8_e5m2", GQA.components(), 8 * 256),
        ("int8", GQA.components(), 8 * 256),
        ("int4", GQA.components(), 8 * 128),
        # facts A.1: nvfp4 = d/2 + d/16 a head; mxfp8 + 1 a 32
        ("nvfp4", GQA.components(), 8 * 2 * (64 + 8)),
        ("mxfp8", GQA.components(), 8 * 2 * (128 + 4)),
        ("mxfp4", GQA.components(), 8 * 2 * (64 + 4)),
        # facts A.1: one fp32 scale for K and one for V per token and head: (hs_k + hs_v) * b + 8
        ("int8_per_token_head", GQA.components(), 8 * (256 + 8)),
        ("fp8_per_token_head", GQA.components(), 8 * (256 + 8)),
        ("int4_per_token_head", GQA.components(), 8 * (128 + 8)),
        # llama.cpp ggml-common.h:194-256: bytes a block of 32
        ("q8_0", GQA.components(), 8 * 2 * 4 * 34),
        ("q5_1", GQA.components(), 8 * 2 * 4 * 24),
        ("q5_0", GQA.components(), 8 * 2 * 4 * 22),
        ("q4_1", GQA.components(), 8 * 2 * 4 * 20),
        ("q4_0", GQA.components(), 8 * 2 * 4 * 18),
        # arXiv 2405.04434 sec. 3.2.3: 6 bits an element on average
        ("int6", MLA.components(), 432),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bytes_of_documented_sizes(format, components, size):
    assert record(format, components) == size


@pytest.mark.parametrize(
    ("name", "elements", "size"),
    [
        ("q8_0", 32, 34),
        ("q5_1", 32, 24),
        ("q5_0", 32, 22),
        ("q4_1", 32, 20),
        ("q4_0", 32, 18),
        ("nvfp4", 16, 9),
        ("mxfp4", 32, 17),
        ("mxfp8", 32, 33),
        ("int6", 4, 3),
        ("int4", 2, 1),
    ],
)
def test_blocks(name, elements, size):
    packing = CACHE_FORMATS[name].packing
    assert (packing.elements, packing.bytes) == (elements, size)


@pytest.mark.parametrize(
    ("name", "elements", "size"),
    [
        # arXiv 2412.19437 sec. 3.3.2: one fp32 scale for each 128 x 128 block
        ("fp8_block", 128 * 128, 128 * 128 + 4),
        ("mxfp4", 32, 17),
        ("nvfp4", 16, 9),
        ("bf16", 1, 2),
        # GPTQ and AWQ: groups of 128, one fp16 scale
        ("int4", 128, 66),
    ],
)
def test_weight_blocks(name, elements, size):
    assert (WEIGHT_FORMATS[name].elements, WEIGHT_FORMATS[name].bytes) == (elements, size)


@quick
@given(
    elements=st.integers(1, 64),
    size=st.integers(1, 64),
    scale=st.integers(0, 8),
    heads=st.integers(1, 9),
    width=st.integers(1, 300),
)
def test_a_block_never_spans_two_heads(elements, size, scale, heads, width):
    packing = Packing(elements, size, scale_bytes=scale)
    assert packing.bytes_for(heads=heads, width=width) == heads * packing.bytes_for(heads=1, width=width)
    exact = heads * (width * packing.bytes_per_element + scale)
    assert exact <= packing.bytes_for(heads=heads, width=width) < exact + heads * size


@pytest.mark.parametrize("width", [1, 31, 32, 33])
def test_a_head_is_rounded_up_to_whole_blocks(width):
    assert Packing(32, 34).bytes_for(heads=2, width=width) == 2 * 34 * (1 if width <= 32 else 2)


def test_padding_is_once_a_record_and_scales_are_once_a_head():
    assert CACHE_FORMATS["fp8_ds_v4"].padding == 1
    one_head = GroupedAttention(n_heads=8, n_kv_heads=1, head_dim=128, v_head_dim=128).components()
    assert record("int8_per_token_head", GQA.components(), shards=8) == record("int8_per_token_head", one_head) == 264


def test_a_rank_holds_its_heads_and_never_less_than_one():
    assert record("bf16", GQA.components(), shards=3) == 3 * 512
    assert record("bf16", GQA.components(), shards=8) == 512
    assert record("bf16", GQA.components(), shards=16) == 512
    assert record("bf16", MLA.components(), shards=8) == 1152


@pytest.mark.parametrize("name", sorted(CACHE_FORMATS))
def test_every_format_is_named_described_and_sourced(name):
    format = CACHE_FORMATS[name]
    assert format.name == name
    assert len(format.description) > 10
    assert len(format.source) > 5
    assert format.compute in ("bf16", "fp16", "fp32", "fp8")


@pytest.mark.parametrize(("alias", "name"), sorted(ALIASES.items()))
def test_aliases(alias, name):
    assert cache_format(alias) is CACHE_FORMATS[name]


def test_all_formats_of_the_design_are_there():
    plain = "fp32 fp16 bf16 fp8 fp8_e4m3 fp8_e5m2 int8 int4 nvfp4 mxfp8 int6 q8_0 q5_1 q5_0 q4_1 q4_0"
    for name in [*plain.split(), "fp8_ds_mla", "nvfp4_ds_mla"]:
        assert cache_format(name)


@pytest.mark.parametrize(
    ("name", "hint"),
    [("fp9", "did you mean 'fp8'"), ("BF-16", "'bf16'"), ("q4", "'q4_0'"), ("zzzzzzzz", "known: "), ("", "known: ")],
)
def test_an_unknown_format_is_told_the_nearest(name, hint):
    with pytest.raises(UsageError, match=f"unknown cache format '{name}'") as raised:
        cache_format(name)
    assert hint in raised.value.hint


@pytest.mark.parametrize(
    ("model", "options", "component"),
    [
        ("llama-3.1-8b", {"kv_dtype": "fp8_ds_mla"}, "key"),
        ("llama-3.1-8b", {"kv_dtype": "fp8_index"}, "key"),
        ("deepseek-v3", {"kv_dtype": "mxfp4_index"}, "latent"),
        ("deepseek-v3.2", {"index_dtype": "fp8_ds_mla"}, "index key"),
        ("kimi-linear-48b-a3b", {"state_dtype": "fp8_ds_mla"}, "state"),
    ],
    ids=str,
)
def test_a_format_without_a_place_for_a_component_says_so(model, options, component):
    with pytest.raises(UsageError, match=f"it has no place for '{component}'") as raised:
        estimate(model, **options)
    assert raised.value.exit_code == 2
    assert "kvcalc list formats" in raised.value.hint


@pytest.mark.parametrize(
    ("asked", "record_bytes"),
    [(None, 584), ("bf16", 584), ("fp8", 584), ("fp8_e4m3", 584), ("fp32", 2048)],
    ids=str,
)
def test_deepseek_v4_keeps_its_own_record_in_the_modes_that_engines_run(asked, record_bytes):
    precision = precision_for({"kv": "fp8_ds_v4"}, kv_dtype=asked)
    assert precision.kv.record_bytes(V4.components(), shards=1) == record_bytes


def test_index_keys_are_the_models_own_unless_asked_otherwise():
    assert precision_for({"index": "fp8_index"}).index.name == "fp8_index"
    assert precision_for({"index": "fp8_index"}, kv_dtype="bf16").index.name == "fp8_index"
    assert precision_for({"index": "fp8_index"}, index_dtype="bf16").index.name == "bf16"
    assert precision_for({}).index.name == "bf16"


def test_states_and_compressors_have_formats_of_their_own():
    precision = precision_for({"state": "fp32"}, kv_dtype="fp8")
    assert (precision.state.name, precision.convolution.name, precision.compressor.name) == ("fp32", "bf16", "fp32")
    assert precision_for({"state": "fp32"}, state_dtype="bf16").state.name == "bf16"


def test_a_record_is_what_lies_together():
    groups = list(by_record(V4.components()))
    assert [[component.name for component in group] for group in groups] == [["window kv", "window rope"]]
    assert [len(group) for group in by_record(GQA.components())] == [2]
