"""TensorRT-LLM (PyTorch backend, cache manager V1): blocks of 32 tokens, windows kept whole unless configured.

No release was read but one commit of the main branch; its date is that of the pull requests which it contains.
"""

from dataclasses import dataclass, replace
from math import ceil

from kvcalc.architecture.attention import Attention, Component, CompressedAttention, LatentAttention
from kvcalc.architecture.formats import WEIGHT_FORMATS
from kvcalc.architecture.slots import Window
from kvcalc.engines.absorbed import SIXTEEN_BIT_BYTES, absorbed_elements
from kvcalc.engines.base import (
    ChangedLayout,
    Engine,
    KeptWhole,
    Known,
    Request,
    Rule,
    Version,
    attentions,
    check_format,
)
from kvcalc.errors import UsageError

_FILE = "NVIDIA/TensorRT-LLM@001541ba tensorrt_llm/_torch/pyexecutor/resource_manager.py"
_READ = "2026-02"

BLOCK = Rule(
    name="block",
    history=(
        Known(
            since=_READ,
            value=(32, 64),
            says="32 tokens, 64 for sparse MLA",
            source="KvCacheConfig.tokens_per_block; " + _FILE,
        ),
    ),
)
HEADS = Rule(
    name="bytes a token",
    history=(
        Known(
            since=_READ,
            says="ceil(KV heads / tp) x head_dim x 2; MLA: latent and rope whole on every rank; attention DP: tp 1",
            source=_FILE + ", KVCacheManager.__init__ and get_cache_size_per_token",
        ),
    ),
)
WINDOWS = Rule(
    name="windows",
    history=(
        Known(
            since=_READ,
            says="kept for every token: max_attention_window is the longest sequence unless it is set",
            source=_FILE + ", KVCacheManager.__init__ (max_attention_window_vec)",
        ),
    ),
)
FP8 = Rule(
    name="fp8 and nvfp4",
    history=(
        Known(
            since=_READ,
            value=frozenset({"bf16", "fp16", "fp8_e4m3", "nvfp4"}),
            says="fp8: 1 byte, for MLA too; nvfp4: half a byte and a byte of scale for 16",
            source=_FILE + ", get_cache_size_per_token, calculate_scaling_factor_size_bytes",
        ),
    ),
)
INDEX = Rule(
    name="index keys",
    history=(
        Known(
            since=_READ,
            says="132 bytes a token",
            source="NVIDIA/TensorRT-LLM tensorrt_llm/_torch/attention_backend/sparse/dsa.py, get_cache_size_per_token",
        ),
    ),
)
ABSORBED = Rule(
    name="copies of kv_b_proj",
    history=(
        Known(
            since=_READ,
            says="W_UK transposed, in 16 bits, or fp8 where kv_b_proj has scales by block; W_UV is a view of it; on "
            "compute capability 10 both again in 16 bits where it is fp8",
            source="NVIDIA/TensorRT-LLM@00547a25 tensorrt_llm/_torch/modules/attention.py, MLA.create_weights",
        ),
    ),
)
ADMISSION = Rule(
    name="admission",
    history=(
        Known(
            since=_READ,
            says="a request starts once its prompt and all of its output have room (GUARANTEED_NO_EVICT)",
            source="TensorRT-LLM docs, Useful Build-Time and Runtime Options: CapacitySchedulerPolicy's default",
        ),
    ),
)
UTILIZATION = Rule(
    name="free_gpu_memory_fraction",
    history=(
        Known(
            since=_READ,
            value=0.90,
            says="0.90 of what is free once the weights are loaded; taken here as 0.90 of the GPU",
            source="KvCacheConfig.free_gpu_memory_fraction",
        ),
    ),
)


def _change(attention: Attention, components: tuple[Component, ...]) -> tuple[Component, ...]:
    if isinstance(attention, CompressedAttention):
        raise UsageError(
            f"TensorRT-LLM's pools for compressed attention ({attention.label}) are not known to kvcalc",
            hint="--engine generic gives its stored bytes",
        )
    return tuple(
        replace(component, slots=KeptWhole(component.slots)) if isinstance(component.slots, Window) else component
        for component in components
    )


@dataclass(frozen=True, kw_only=True)
class TrtllmLayout(ChangedLayout):
    """TensorRT-LLM's cache."""

    blackwell: bool

    def copied_weight_bytes(self, attention: Attention, *, weights: str, tp: int) -> int:
        keys, values = absorbed_elements(attention, tp=tp)
        if weights != "fp8_block":
            return SIXTEEN_BIT_BYTES * keys
        again = SIXTEEN_BIT_BYTES * (keys + values) if self.blackwell else 0
        return ceil(keys * WEIGHT_FORMATS[weights].bytes_per_element) + again


def layout(request: Request, version: Version) -> ChangedLayout:
    """TensorRT-LLM's layout."""
    name = ENGINE.label(version)
    check_format(name, request, FP8.at(version))
    if request.parallelism.dcp > 1:
        raise UsageError(f"how {name} shares a sequence over ranks (helix) is not known", hint="leave --dcp at 1")
    plain, sparse = BLOCK.at(version)
    latent = any(isinstance(getattr(each, "base", None), LatentAttention) for each in attentions(request.model))
    notes = []
    if any(component.role.is_state for each in attentions(request.model) for component in each.components()):
        notes.append("recurrent states as the model has them: how TensorRT-LLM pools them is not known")
    return TrtllmLayout(
        name=name,
        precision=request.precision,
        block_tokens=request.block_tokens or (sparse if latent else plain),
        notes=tuple(notes),
        reserves_requests=True,
        change=_change,
        blackwell=(request.compute_capability or (0, 0))[0] == 10,
    )


ENGINE = Engine(
    name="trtllm",
    title="TensorRT-LLM",
    covers=((_READ, _READ),),
    rules=(BLOCK, HEADS, WINDOWS, FP8, INDEX, ABSORBED, ADMISSION, UTILIZATION),
    make=layout,
    memory_utilization=UTILIZATION,
    remark="read at commit 001541ba of the main branch (about 2026-02); releases, and cache manager V2, are not known",
)
