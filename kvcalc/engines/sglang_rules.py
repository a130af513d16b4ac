"""SGLang's rules through its versions; benchmarks/sglang_judge.py runs the code that they cite."""

from fractions import Fraction

from kvcalc.engines.base import Known, Rule

_POOLS = "sglang/srt/model_executor/pool_configurator.py"
_MEMORY = "sglang/srt/mem_cache/memory_pool.py"
_RUNNER = "sglang/srt/model_executor/model_runner.py"
_MIXIN = "sglang/srt/model_executor/model_runner_kv_cache_mixin.py"
_CONFIGURATOR = "sglang/srt/mem_cache/kv_cache_configurator.py"
_CONFIG = "sglang/srt/configs/model_config.py"

PAGE = Rule(
    name="page",
    history=(
        Known(
            since="0.5.6",
            value=(1, 64),
            says="1 token, 64 for sparse MLA; FlashMLA, TensorRT-LLM and other backends force 32 to 128 (--block-size)",
            source="0.5.3 sglang/srt/server_args.py:820-939; 0.5.23 sglang/srt/arg_groups/overrides.py:1146-1363",
        ),
    ),
)

CELL = Rule(
    name="bytes a token",
    history=(
        Known(
            since="0.5.6",
            says="max(1, KV heads // tp) x (K + V width); MLA: latent and rope whole on every rank, and index keys",
            source=f"0.5.6 {_RUNNER}:1405-1415; 0.5.23 {_POOLS}:340-520",
        ),
    ),
)

SPARSE_FP8 = Rule(
    name="fp8 of sparse MLA",
    history=(
        Known(
            since="0.5.6",
            value=True,
            says="a 656-byte record, and 132 bytes of index key; tokens that fit are counted at 576 + 132 bytes, so "
            "the tensors outgrow the memory by 11 %",
            source=f"0.5.6 {_MEMORY}:1412-1425, {_RUNNER}:1384-1415; 0.5.16 {_POOLS}:187-215",
        ),
        Known(
            since="0.5.17",
            value=False,
            says="a 656-byte record, and 132 bytes of index key; 576 plain bytes for TensorRT-LLM and tilelang kernels",
            source=f"0.5.17 {_POOLS}:198-212; 0.5.23 {_CONFIGURATOR}:3412-3475",
        ),
    ),
)

INDEX_KEYS = Rule(
    name="index keys",
    history=(
        Known(
            since="0.5.6",
            value=True,
            says="every layer of sparse MLA keeps them, those that use another layer's selection too",
            source=f"0.5.6 {_RUNNER}:1405-1415; 0.5.17 {_POOLS}:224-236",
        ),
        Known(
            since="0.5.18",
            value=False,
            says="layers that use another layer's selection keep none",
            source=f"0.5.18 {_POOLS}:352-411; 0.5.23 lines 552-635",
        ),
    ),
)

EXTRA_PAGE = Rule(
    name="rows of the pool",
    history=(
        Known(
            since="0.5.6",
            value=1,
            says="the tokens that fit, and one page for padded tokens",
            source=f"0.5.3 {_MEMORY}:462; 0.5.23 lines 4842-4856",
        ),
    ),
)

WINDOW_POOL = Rule(
    name="window pool",
    history=(
        Known(
            since="0.5.6",
            value=(),
            says="none for the models known here: layers with a window keep every token, like the others",
            source=f"0.5.6 sglang/srt/server_args.py:1123, 1166, {_CONFIG}:1014-1029; 0.5.7 {_CONFIG}:1147-1167",
        ),
        Known(
            since="0.5.8",
            value=("gpt-oss", "llama-4", "mimo-v2"),
            says="for gpt-oss (not on TensorRT-LLM kernels before 0.5.10), Llama 4 and MiMo-V2; in other models, "
            "Gemma 2, Gemma 3 and Mistral among them, layers with a window keep every token",
            source=f"0.5.8 {_CONFIG}:1220-1228, sglang/srt/server_args.py:1278-1283",
        ),
        Known(
            since="0.5.9",
            value=("gpt-oss", "llama-4", "mimo-v2", "step-3.5"),
            says="for gpt-oss (not on TensorRT-LLM kernels before 0.5.10), Llama 4, MiMo-V2 and Step-3.5",
            source=f"0.5.9 {_CONFIG}:1320-1330",
        ),
        Known(
            since="0.5.11",
            value=("gpt-oss", "llama-4", "mimo-v2", "step-3.5", "gemma-4"),
            says="for gpt-oss, Llama 4, MiMo-V2, Step-3.5 and Gemma 4; not for Gemma 2, Gemma 3 and Mistral",
            source=f"0.5.11 {_CONFIG}:1546-1558; 0.5.23 lines 2651-2697",
        ),
    ),
)

WINDOW_SHARE = Rule(
    name="rows of the window pool",
    history=(
        Known(
            since="0.5.6",
            value=(Fraction(4, 5), True, False),
            says="0.8 for each row of full attention (swa_full_tokens_ratio); memory is first counted in rows of all "
            "layers, then split: both divisions round down",
            source=f"0.5.8 sglang/srt/server_args.py:325, {_MIXIN}:206-250",
        ),
        Known(
            since="0.5.10",
            value=(Fraction(4, 5), True, True),
            says="0.8 for each row in whole pages of full attention (swa_full_tokens_ratio); memory is first counted "
            "in rows of all layers, then split",
            source=f"0.5.10 {_MIXIN}:287-371",
        ),
        Known(
            since="0.5.11",
            value=(Fraction(4, 5), False, True),
            says="0.8 for each row in the whole pages of full attention (swa_full_tokens_ratio)",
            source=f"0.5.11 {_POOLS}:184-290; 0.5.12 sglang/srt/server_args.py:435; 0.5.23 {_POOLS}:786-900",
        ),
    ),
)

STATES = Rule(
    name="recurrent states",
    history=(
        Known(
            since="0.5.6",
            says="one slot a running request, in a pool sized by --max-mamba-cache-size, fp32 unless the config or "
            "--mamba-ssm-dtype says otherwise; the extra slots of prefix caching are not counted here",
            source="0.5.6 sglang/srt/server_args.py:433; 0.5.23 sglang/srt/configs/mamba_utils.py:45-97, "
            f"{_CONFIGURATOR}:3229-3405",
        ),
    ),
)

PIPELINE = Rule(
    name="recurrent models on pipeline stages",
    history=(
        Known(
            since="0.5.6",
            value=(True, True, True),
            says="every stage has the states of all layers, and their tokens' rows",
            source=f"0.5.6 {_RUNNER}:1380-1381, 1790-1805, 1916-1942",
        ),
        Known(
            since="0.5.8",
            value=(True, True, False),
            says="every stage has the states of all layers, and their tokens' rows, though it counts memory for "
            "those of its own alone: the tensors outgrow it",
            source=f"0.5.8 {_MIXIN}:126-133, 527-540",
        ),
        Known(
            since="0.5.9",
            value=(True, False, False),
            says="every stage has the states of all layers",
            source=f"0.5.9 {_MIXIN}:460-475, 619-640",
        ),
        Known(
            since="0.5.10",
            value=(False, False, False),
            says="every stage has the states and rows of its own layers",
            source=f"0.5.10 {_MIXIN}:443-460, 654-675",
        ),
    ),
)

DCP = Rule(
    name="decode context parallelism",
    history=(
        Known(
            since="0.5.23",
            says="KV heads over tp / dcp; index keys are whole on every dcp rank",
            source=f"0.5.23 {_CONFIG}:1700-1711, " + _POOLS + ":402-410",
        ),
    ),
)

FORMATS = Rule(
    name="cache formats",
    history=(
        Known(
            since="0.5.6",
            value=frozenset({"bf16", "fp16", "fp8_e4m3", "fp8_e5m2", "nvfp4"}),
            says="16 bits, fp8, or fp4 with a byte of scale for 16",
            source=f"0.5.6 {_RUNNER}:1392-1430",
        ),
        Known(
            since="0.5.16",
            value=frozenset({"bf16", "fp16", "fp8_e4m3", "fp8_e5m2", "nvfp4", "mxfp8"}),
            says="and mxfp8 for keys and values",
            source=f"0.5.16 {_MEMORY}:3197; 0.5.23 {_POOLS}:525-532",
        ),
    ),
)

RULES = (
    PAGE,
    CELL,
    SPARSE_FP8,
    INDEX_KEYS,
    EXTRA_PAGE,
    WINDOW_POOL,
    WINDOW_SHARE,
    STATES,
    PIPELINE,
    DCP,
    FORMATS,
)
