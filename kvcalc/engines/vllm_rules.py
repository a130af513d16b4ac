"""vLLM's rules: each with the version from which it holds and the file and line of the released wheel that says so."""

from collections.abc import Callable
from fractions import Fraction

from kvcalc.engines.base import Known, Rule

_UTILS = "vllm/v1/core/kv_cache_utils.py"
_SPECS = "vllm/v1/kv_cache_interface.py"

GROUP_SIZE = Rule(
    name="hybrid group size",
    history=(
        Known(
            since="0.11.0",
            value=None,
            says="the layer count of the rarest kind; the last group of a kind is padded with dead layers",
            source=f"0.11.0 {_UTILS}, _get_kv_cache_groups_uniform_page_size; 0.11.1 line 976",
        ),
        Known(
            since="0.12.0",
            value=Fraction(5, 4),
            says="as before, but the most frequent kind's count where it is below 1.25 times the rarest's",
            source=f"0.12.0 {_UTILS}:1017; 0.13.0 line 1022",
        ),
        Known(
            since="0.18.0",
            value=Fraction(3, 2),
            says="as before, with 1.5 instead of 1.25",
            source=f"0.18.0 {_UTILS}:1043; 0.33.0 vllm/v1/core/kv_cache_planning.py:524",
        ),
    ),
)

UNEQUAL_PAGES = Rule(
    name="pages of different sizes",
    history=(
        Known(
            since="0.11.0",
            value="refuse",
            says="a model whose kinds of layers have pages of different sizes is refused",
            source="0.11.1 vllm/v1/core/kv_cache_utils.py, get_kv_cache_groups",
        ),
        Known(
            since="0.12.0",
            value="blocks",
            says="smaller pages get larger blocks, where the largest page is a multiple of theirs",
            source="0.12.0 vllm/v1/core/kv_cache_utils.py, unify_kv_cache_spec_page_size",
        ),
        Known(
            since="0.24.0",
            value="pad",
            says="as before, and else padding, for all but MLA and where the backend takes it",
            source="0.24.0 vllm/v1/core/kv_cache_utils.py; 0.33.0 vllm/v1/core/kv_cache_planning.py:350-405",
        ),
    ),
)

STATED_TOKENS = Rule(
    name="GPU KV cache size",
    history=(
        Known(since="0.6.4", value=False, says="blocks x tokens a block", source="0.6.4 vllm/worker/worker.py:226"),
        Known(
            since="0.11.0",
            value=False,
            says="blocks // groups x smallest block (x dcp): as if all layers were full attention",
            source=f"0.11.0 {_UTILS}:1080; 0.13.0 lines 1269-1290",
        ),
        Known(
            since="0.20.1",
            value=True,
            says="int(requests of max_model_len that fit x max_model_len): for hybrids not memory over bytes a token",
            source=f"0.20.1 {_UTILS}:1706; 0.33.0 lines 1061-1148",
        ),
    ),
)

UTILIZATION = Rule(
    name="gpu_memory_utilization",
    history=(
        Known(since="0.6.4", value=0.90, says="0.90 of the GPU", source="0.13.0 vllm/config/cache.py:49"),
        Known(
            since="0.20.0", value=0.92, says="0.92 of the GPU", source="0.20.0 vllm/config/cache.py:66; 0.33.0 line 215"
        ),
    ),
)

IN_FLIGHT = Rule(
    name="window and chunk slack",
    history=(
        Known(
            since="0.6.4",
            value=None,
            says="windows are kept for every token",
            source="0.6.4 vllm/worker/cache_engine.py:101",
        ),
        Known(
            since="0.11.0",
            value=1,
            says="a window takes window - 1 + max_num_batched_tokens in blocks and one block more; a chunk, none more",
            source=f"0.13.0 {_SPECS}:199-240",
        ),
        Known(
            since="0.26.0",
            value=2,
            says="as before, for each of the steps under way: 2 with async scheduling, or pp",
            source="0.26.0 vllm/config/vllm.py:512-533; 0.33.0 vllm/v1/kv_cache_interface.py:861-955",
        ),
    ),
)

PREFIX_CACHING = Rule(
    name="prefix caching of models with states",
    history=(
        Known(
            since="0.11.0",
            value=False,
            says="off by default",
            source="0.13.0 vllm/config/model.py:1754; 0.24.0 line 1832",
        ),
        Known(since="0.26.0", value=True, says="on by default", source="0.26.0 vllm/config/model.py; 0.33.0 line 2277"),
    ),
)

STATE_BLOCKS = Rule(
    name="blocks of a recurrent state",
    history=(
        Known(since="0.11.0", value=(1, 1, 0), says="1 a sequence", source=f"0.13.0 {_SPECS}:244-262"),
        Known(
            since="0.15.0",
            value=(1, 2, 1),
            says="1 a sequence, and 1 a speculative token; 2 instead of 1 where prefixes are cached (align)",
            source=f"0.15.0 {_SPECS}:294; 0.33.0 line 1135",
        ),
    ),
)

OFF, EVERY_BLOCK, EVERY_BLOCK_AND_DRAFTS, ALIGN = "off", "every block", "every block and drafts", "align"
MAMBA1_CHUNK_TOKENS = 2048
MAMBA_ALL = Rule(
    name="prefix caching of Mamba states",
    history=(
        Known(
            since="0.11.0",
            value=OFF,
            says="switched off, as for other states",
            source="0.11.0 vllm/model_executor/models/config.py:296",
        ),
        Known(
            since="0.11.1",
            value=EVERY_BLOCK,
            says="a state for every block of Mamba-1 and Mamba-2, the block a multiple of the kernel's chunk, for "
            "Mamba-1 of 2,048 (all); switched off for other states",
            source="0.11.1 vllm/model_executor/models/config.py:293-420; 0.13.0 vllm/config/model.py:1382-1397, "
            "vllm/v1/kv_cache_interface.py:261",
        ),
        Known(
            since="0.15.0",
            value=EVERY_BLOCK,
            says="as before; other states have a second block (align)",
            source="0.15.0 vllm/model_executor/models/config.py:333-487, vllm/v1/kv_cache_interface.py:294",
        ),
        Known(
            since="0.22.0",
            value=EVERY_BLOCK_AND_DRAFTS,
            says="as before, and a block for each speculative token",
            source="0.22.0 vllm/platforms/interface.py:633, vllm/v1/kv_cache_interface.py; 0.24.0 lines 649-653",
        ),
        Known(
            since="0.28.0",
            value=ALIGN,
            says="as for other states (align)",
            source="0.28.0 vllm/model_executor/models/config.py:604; 0.33.0 line 765",
        ),
    ),
)

STATE_ALIGNMENT = Rule(
    name="attention block of models with states",
    history=(
        Known(
            since="0.11.0",
            value=(16, 16),
            says="raised in steps of 16 until its page holds a state",
            source="0.11.0 vllm/model_executor/models/config.py:367",
        ),
        Known(
            since="0.11.1",
            value=(16, 64),
            says="in steps of 16, for MLA of 64, for CUTLASS MLA of 128",
            source="0.11.1 vllm/model_executor/models/config.py:344-424",
        ),
        Known(
            since="0.20.0",
            value=(16, 0),
            says="in steps of the backend's block",
            source="0.20.0 vllm/platforms/interface.py:573-601",
        ),
        Known(
            since="0.27.0",
            value=(16, 128),
            says="in steps of the backend's block, for MLA of 128 at least",
            source="0.27.0 vllm/platforms/interface.py:888; 0.33.0 line 1088",
        ),
    ),
)


def _mla_block_forced(major: int, qk_nope_head_dim: int, eight_bit: bool) -> int:
    return {9: 64, 10: 128}.get(major, 16)


def _mla_block_forced_flashinfer(major: int, qk_nope_head_dim: int, eight_bit: bool) -> int:
    return {9: 64, 10: 64 if qk_nope_head_dim == 128 else 128}.get(major, 16)


def _mla_block_preferred(*widths: int) -> Callable[[int, int, bool], int]:
    def block(major: int, qk_nope_head_dim: int, eight_bit: bool) -> int:
        return {9: 64 if eight_bit else 16, 10: 32 if qk_nope_head_dim in widths else 128}.get(major, 16)

    return block


MLA_BLOCK = Rule(
    name="MLA block",
    history=(
        Known(
            since="0.11.0",
            value=_mla_block_forced,
            says="64 tokens for FlashMLA (SM90), 128 for CUTLASS MLA (SM100), 64 for sparse MLA, else 16",
            source="0.13.0 vllm/platforms/cuda.py:208-231; 0.11.0 lines 159-182",
        ),
        Known(
            since="0.15.0",
            value=_mla_block_forced_flashinfer,
            says="as before, but on SM100 64 for FlashInfer MLA where qk_nope_head_dim is 128",
            source="0.15.0 vllm/platforms/cuda.py:170-246",
        ),
        Known(
            since="0.18.0",
            value=_mla_block_preferred(64, 128),
            says="16 tokens for FlashAttention MLA (SM90) and Triton MLA, 64 for FlashMLA, which takes fp8 there; on "
            "SM100 32 for FlashInfer MLA where qk_nope_head_dim is 64 or 128, else 128; 64 for sparse MLA",
            source="0.18.0 vllm/platforms/interface.py:465, vllm/v1/attention/backends/mla/flashinfer_mla.py",
        ),
        Known(
            since="0.19.0",
            value=_mla_block_preferred(64, 128, 192),
            says="as before, and 32 for a qk_nope_head_dim of 192 too",
            source="0.19.0 vllm/v1/attention/backends/mla/flashinfer_mla.py; 0.33.0 line 245, platforms/cuda.py:78-152",
        ),
    ),
)

SPARSE_FP8 = Rule(
    name="fp8 of sparse MLA",
    history=(
        Known(
            since="0.11.0",
            value=False,
            says="the 656-byte fp8_ds_mla record",
            source="0.11.0 vllm/model_executor/models/config.py:408-421",
        ),
        Known(
            since="0.20.0",
            value=True,
            says="the 656-byte record for FlashMLA sparse; 576 plain bytes for FlashInfer sparse (SM100)",
            source="0.33.0 vllm/model_executor/layers/attention/mla_attention.py:360-377, vllm/platforms/cuda.py:92-98",
        ),
    ),
)

ABSORBED = Rule(
    name="copies of kv_b_proj",
    history=(
        Known(
            since="0.11.0",
            value=2,
            says="W_UK and W_UV in 16 bits beside kv_b_proj where that is quantised; views of it where it is not",
            source="0.11.0 vllm/v1/attention/backends/mla/common.py:1301-1390; 0.13.0 lines 1562-1655; 0.20.0 "
            "vllm/model_executor/layers/attention/mla_attention.py:816-903; 0.33.0 lines 1240-1349 and "
            "model_executor/layers/quantization/utils/quant_utils.py:513-575",
        ),
    ),
)

INDEX = Rule(
    name="index keys",
    history=(
        Known(
            since="0.11.0",
            says="132 bytes a token (128 fp8 and one fp32 scale), on every rank",
            source="0.33.0 vllm/model_executor/models/deepseek_v2.py:727-733",
        ),
    ),
)

SHARDING = Rule(
    name="sharding",
    history=(
        Known(
            since="0.11.0",
            says="KV heads over tp, never fewer than one a rank; MLA's latent and index keys whole on every rank; "
            "states over tp; dcp shares the tokens of full attention among ranks that hold the same heads; windows "
            "refuse it",
            source="0.33.0 vllm/config/model.py:1578-1683, vllm/v1/kv_cache_interface.py:643; 0.13.0 line 82",
        ),
    ),
)

PIPELINE = Rule(
    name="pipeline remainder",
    history=(
        Known(
            since="0.11.0",
            says="one layer each to the stages before the last, from the back; groups are those of the whole model",
            source="0.33.0 vllm/distributed/utils.py:198-241",
        ),
    ),
)

_FORMATS = {"fp16", "bf16", "fp8_e4m3", "fp8_e5m2", "fp8_ds_mla"}
FORMATS = Rule(
    name="cache formats",
    history=(
        Known(
            since="0.6.4",
            value=frozenset({"fp16", "bf16", "fp32", "fp8_e4m3", "fp8_e5m2"}),
            says="16 bits or fp8",
            source="0.6.4 vllm/worker/cache_engine.py:114",
        ),
        Known(
            since="0.11.0",
            value=frozenset(_FORMATS),
            says="16 bits, fp8, fp8_ds_mla",
            source="0.13.0 vllm/config/cache.py:24-30",
        ),
        Known(
            since="0.20.0",
            value=frozenset({*_FORMATS, "int8_per_token_head", "fp8_per_token_head", "nvfp4"}),
            says="and int8 or fp8 with a scale a token and head, nvfp4",
            source="0.20.0 vllm/config/cache.py:19-33",
        ),
        Known(
            since="0.26.0",
            value=frozenset({*_FORMATS, "int8_per_token_head", "fp8_per_token_head", "int4_per_token_head", "nvfp4"}),
            says="and int4 with a scale a token and head",
            source="0.26.0 vllm/config/cache.py:32",
        ),
        Known(
            since="0.30.0",
            value=frozenset(
                {*_FORMATS, "int8_per_token_head", "fp8_per_token_head", "int4_per_token_head", "nvfp4", "nvfp4_ds_mla"}
            ),
            says="and nvfp4_ds_mla",
            source="0.30.0 vllm/config/cache.py:48; 0.33.0 lines 45-66",
        ),
    ),
)

BATCHED_TOKENS = Rule(
    name="max_num_batched_tokens",
    history=(
        Known(
            since="0.11.0",
            value=((70, 8192), (0, 2048)),
            says="8,192 for the server on a GPU of 70 GiB or more that is no A100, else 2,048",
            source="0.11.0 vllm/engine/arg_utils.py:1605-1620; 0.24.0 line 2404",
        ),
        Known(
            since="0.28.0",
            value=((160, 16384), (70, 8192), (0, 2048)),
            says="as before, and 16,384 on a GPU of 160 GiB or more",
            source="0.28.0 vllm/engine/arg_utils.py; 0.33.0 lines 2970-3002",
        ),
    ),
)

RULES = (
    MLA_BLOCK,
    GROUP_SIZE,
    UNEQUAL_PAGES,
    IN_FLIGHT,
    BATCHED_TOKENS,
    STATE_ALIGNMENT,
    STATE_BLOCKS,
    PREFIX_CACHING,
    MAMBA_ALL,
    SPARSE_FP8,
    INDEX,
    ABSORBED,
    FORMATS,
    SHARDING,
    PIPELINE,
    UTILIZATION,
    STATED_TOKENS,
)
