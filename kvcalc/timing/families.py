"""Kernel families: how each cuts its work, and where a fit of its parameters starts. Data, not code.

A family is a kernel lineage, whatever engine calls it. Its shapes are what its source says, and for closed kernels what
fits their measurements best (tile sizes of trtllm-gen and XQA); its values are round numbers in the middle of what it
reaches on the GPUs that it runs on, and `spread` is how far a GPU may lie from them.
A calibration on a GPU moves the values; they alone give a prediction with a wide interval.

The values were set by hand from the measurements of H100, H200 and B200 in aiconfigurator-core 0.12.0 (Apache-2.0) and
from the overheads in the kernels' sources; no row of another GPU's tables was looked at for them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from kvcalc.errors import UsageError
from kvcalc.hardware import Gpu
from kvcalc.names import nearest
from kvcalc.timing.attention_time import PARAMETERS, KernelShape

MLA, GQA, MHA = "mla", "gqa", "mha"
"""Kinds that have kernels of their own: MQA is a value of gqa; one query head a KV head leaves no rows to share."""

US = 1e-6


@dataclass(frozen=True, kw_only=True, slots=True)
class Kernel:
    """One kernel of a family: its shape, where its parameters start, and their spread in a fit.

    spread           standard deviations: of the logarithm for logarithmic parameters, else a share of the range
    eight_bit_values  what is different with a cache of a byte an element
    """

    shape: KernelShape
    values: Mapping[str, float]
    spread: Mapping[str, float]
    eight_bit_values: Mapping[str, float] = field(default_factory=dict)

    def start(self, *, eight_bit: bool) -> Mapping[str, float]:
        """The values that a fit starts from."""
        return {**self.values, **self.eight_bit_values} if eight_bit else self.values


@dataclass(frozen=True, kw_only=True, slots=True)
class Family:
    """A kernel lineage, by attention kind.

    max_group  query heads a KV head from which the engine has no fused kernel, and the family says nothing
    """

    name: str
    description: str
    source: str
    kernels: Mapping[str, Kernel]
    max_group: int | None = None

    def kernel(self, kind: str) -> Kernel:
        """Raises UsageError for a kind that the family has no kernel of."""
        if kind not in self.kernels:
            raise UsageError(f"family {self.name} has no {kind} kernel", hint=f"it has {', '.join(self.kernels)}")
        return self.kernels[kind]


_SPREAD = {
    "launch_s": 0.3,
    "bandwidth_fraction": 0.08,
    "l2_speedup": 0.3,
    "l2_usable_fraction": 0.15,
    "matrix_fraction": 0.3,
    "wide_fraction": 0.3,
    "pairs_per_s": 0.5,
    "block_bytes_per_s": 0.5,
    "item_s": 0.4,
    "overhead_tiles": 0.15,
    "combine_s": 0.03,
    "combine_doubling_s": 0.06,
    "partial_passes": 0.4,
    "query_output_passes": 0.7,
    "tile_overlap": 0.3,
    "item_overlap": 0.25,
    "cold_s": 0.1,
    "tail_fraction": 0.15,
    "reread_fraction": 0.12,
    "throttle": 0.12,
}
_COMMON = {
    "wide_fraction": 1.0,
    "pairs_per_s": 25e9,
    "l2_usable_fraction": 0.85,
    "tail_fraction": 0.2,
    "reread_fraction": 0.4,
    "throttle": 0.02,
}


def _kernel(
    shape: KernelShape, *, wide: float = 1.0, eight_bit: Mapping[str, float] | None = None, **values: float
) -> Kernel:
    complete = {**_COMMON, **values}
    return Kernel(
        shape=shape,
        eight_bit_values=eight_bit or {},
        values={name: complete[name] for name in PARAMETERS},
        spread={name: wide * _SPREAD[name] for name in PARAMETERS},
    )


_HOPPER_MLA = KernelShape(tile_rows=(64,), tile_tokens=64, schedule="balanced", fp8_products=True)
_GROUPED = KernelShape(tile_rows=(64,), tile_tokens=128, schedule="waves")
_UNTRIED = 1.6
"""Wider spread where only the source was read."""

FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        Family(
            name="flashmla",
            description="FlashMLA and what TensorRT-LLM runs for MLA on Hopper: equal tiles for each SM",
            source="github.com/deepseek-ai/FlashMLA 9241ae3, csrc/api/dense_decode.h",
            kernels={
                MLA: _kernel(
                    _HOPPER_MLA,
                    eight_bit={
                        "launch_s": 7.2 * US,
                        "matrix_fraction": 0.42,
                        "item_s": 5.3 * US,
                        "query_output_passes": 2.2,
                    },
                    launch_s=7.6 * US,
                    bandwidth_fraction=0.93,
                    l2_speedup=1.8,
                    matrix_fraction=0.74,
                    block_bytes_per_s=60e9,
                    item_s=4.2 * US,
                    overhead_tiles=5,
                    combine_s=0.2 * US,
                    combine_doubling_s=0.5 * US,
                    partial_passes=0.8,
                    query_output_passes=1.8,
                    tile_overlap=7,
                    item_overlap=1.1,
                    cold_s=4 * US,
                )
            },
        ),
        Family(
            name="fa3",
            description="FlashAttention-3 on Hopper",
            source="github.com/Dao-AILab/flash-attention 0251105, hopper/heuristics.h",
            kernels={
                MLA: _kernel(
                    KernelShape(tile_rows=(64,), tile_tokens=64, schedule="balanced", combines_above=4),
                    launch_s=6 * US,
                    bandwidth_fraction=0.95,
                    l2_speedup=1.3,
                    matrix_fraction=0.74,
                    block_bytes_per_s=55e9,
                    item_s=4.5 * US,
                    overhead_tiles=4,
                    combine_s=0.4 * US,
                    combine_doubling_s=0.95 * US,
                    partial_passes=0.85,
                    query_output_passes=0.85,
                    tile_overlap=4,
                    item_overlap=1.05,
                    cold_s=6 * US,
                    throttle=0.11,
                ),
                GQA: _kernel(
                    KernelShape(tile_rows=(64,), tile_tokens=128, schedule="balanced"),
                    eight_bit={"launch_s": 10 * US, "matrix_fraction": 0.5, "wide_fraction": 0.75, "pairs_per_s": 17e9},
                    launch_s=6.9 * US,
                    bandwidth_fraction=0.97,
                    l2_speedup=1.7,
                    l2_usable_fraction=0.95,
                    matrix_fraction=0.69,
                    block_bytes_per_s=45e9,
                    item_s=1.8 * US,
                    overhead_tiles=1.2,
                    combine_s=0.2 * US,
                    combine_doubling_s=0.55 * US,
                    partial_passes=0.3,
                    query_output_passes=0.75,
                    tile_overlap=3,
                    item_overlap=1.2,
                    cold_s=6.5 * US,
                ),
            },
        ),
        Family(
            name="trtllm-gen",
            description="TensorRT-LLM's generated kernels for Blackwell, also in SGLang, vLLM and FlashInfer",
            source="github.com/flashinfer-ai/flashinfer fb28d72, trtllm_batch_decode_with_kv_cache_mla",
            max_group=32,
            kernels={
                MLA: _kernel(
                    KernelShape(
                        tile_rows=(16, 64),
                        small_below=64,
                        tile_tokens=256,
                        schedule="waves",
                        whole_tiles=True,
                        fp8_products=True,
                        lone_fp8_rate=0.65,
                    ),
                    eight_bit={
                        "launch_s": 8.2 * US,
                        "bandwidth_fraction": 0.89,
                        "l2_speedup": 1.1,
                        "matrix_fraction": 0.62,
                        "item_s": 0.65 * US,
                        "query_output_passes": 1.9,
                        "tile_overlap": 2.8,
                        "cold_s": 4.8 * US,
                    },
                    pairs_per_s=80e9,
                    launch_s=9.5 * US,
                    bandwidth_fraction=0.77,
                    l2_speedup=1.5,
                    l2_usable_fraction=0.92,
                    matrix_fraction=0.93,
                    block_bytes_per_s=500e9,
                    item_s=0.5 * US,
                    overhead_tiles=1.3,
                    combine_s=0.5 * US,
                    combine_doubling_s=1.2 * US,
                    partial_passes=0.75,
                    query_output_passes=0.8,
                    tile_overlap=4,
                    item_overlap=1.3,
                    cold_s=6.8 * US,
                    tail_fraction=0.25,
                    reread_fraction=0.53,
                ),
                GQA: _kernel(
                    _GROUPED,
                    eight_bit={"pairs_per_s": 80e9},
                    launch_s=9.7 * US,
                    bandwidth_fraction=0.97,
                    l2_speedup=2,
                    l2_usable_fraction=0.8,
                    matrix_fraction=0.8,
                    block_bytes_per_s=90e9,
                    item_s=1.2 * US,
                    overhead_tiles=1,
                    combine_s=0.2 * US,
                    combine_doubling_s=0.5 * US,
                    partial_passes=0.8,
                    query_output_passes=6,
                    tile_overlap=8,
                    item_overlap=2.3,
                    cold_s=3.5 * US,
                    tail_fraction=0.27,
                ),
            },
        ),
        Family(
            name="trtllm-xqa",
            description="TensorRT-LLM before Blackwell: XQA for grouped heads, masked multi-head attention for MHA",
            source="github.com/NVIDIA/TensorRT-LLM, cpp/kernels/xqa and decoderMaskedMultiheadAttention",
            max_group=32,
            kernels={
                GQA: _kernel(
                    _GROUPED,
                    eight_bit={
                        "matrix_fraction": 0.8,
                        "pairs_per_s": 20e9,
                        "item_s": 0.7 * US,
                        "item_overlap": 4,
                        "cold_s": 8.8 * US,
                    },
                    pairs_per_s=50e9,
                    launch_s=5.5 * US,
                    bandwidth_fraction=0.92,
                    l2_speedup=1.3,
                    l2_usable_fraction=0.8,
                    matrix_fraction=0.3,
                    block_bytes_per_s=70e9,
                    item_s=3.8 * US,
                    overhead_tiles=2,
                    combine_s=0.8 * US,
                    combine_doubling_s=0.4 * US,
                    partial_passes=2.5,
                    query_output_passes=3.5,
                    tile_overlap=6,
                    item_overlap=2,
                    cold_s=11 * US,
                ),
                MHA: _kernel(
                    KernelShape(tile_rows=(64,), tile_tokens=128, blocks_per_sm=2, schedule="waves"),
                    eight_bit={"item_s": 2.7 * US, "pairs_per_s": 60e9},
                    launch_s=7 * US,
                    bandwidth_fraction=0.93,
                    l2_speedup=1.3,
                    l2_usable_fraction=0.8,
                    matrix_fraction=0.8,
                    block_bytes_per_s=40e9,
                    item_s=1.6 * US,
                    overhead_tiles=1,
                    combine_s=1 * US,
                    combine_doubling_s=1 * US,
                    partial_passes=0.5,
                    query_output_passes=0.5,
                    tile_overlap=4,
                    item_overlap=2.6,
                    cold_s=9 * US,
                ),
            },
        ),
        Family(
            name="flashinfer",
            description="the FlashAttention-2 lineage: FlashInfer's fa2 templates, flash-attn 2",
            source="github.com/flashinfer-ai/flashinfer fb28d72, include/flashinfer/attention",
            kernels={
                kind: _kernel(
                    KernelShape(tile_rows=(16, 64), tile_tokens=tokens, schedule="balanced"),
                    wide=_UNTRIED,
                    launch_s=8 * US,
                    bandwidth_fraction=0.85,
                    l2_speedup=1.5,
                    matrix_fraction=0.4,
                    block_bytes_per_s=40e9,
                    item_s=3 * US,
                    overhead_tiles=2,
                    combine_s=1 * US,
                    combine_doubling_s=0.6 * US,
                    partial_passes=0.8,
                    query_output_passes=1,
                    tile_overlap=4,
                    item_overlap=1.5,
                    cold_s=6 * US,
                )
                for kind, tokens in ((MLA, 64), (GQA, 128))
            },
        ),
        Family(
            name="triton",
            description="the Triton decode kernel of vLLM and SGLang: 16 rows, 32 tokens, two stages",
            source="github.com/vllm-project/vllm, v1/attention/ops/triton_decode_attention.py",
            kernels={
                kind: _kernel(
                    KernelShape(tile_rows=(16,), tile_tokens=32, schedule="waves"),
                    wide=_UNTRIED,
                    launch_s=12 * US,
                    bandwidth_fraction=0.85,
                    l2_speedup=1.5,
                    matrix_fraction=0.12,
                    block_bytes_per_s=12e9,
                    item_s=4 * US,
                    overhead_tiles=4,
                    combine_s=2 * US,
                    combine_doubling_s=1 * US,
                    partial_passes=1,
                    query_output_passes=1,
                    tile_overlap=3,
                    item_overlap=1.5,
                    cold_s=6 * US,
                )
                for kind in (MLA, GQA)
            },
        ),
        Family(
            name="kvcalc",
            description="kvcalc's own Triton kernel: 16 or 64 rows, 64 tokens, splits that fill one wave",
            source="kvcalc/profiling/kernels",
            kernels={
                kind: _kernel(
                    KernelShape(tile_rows=(16, 64), tile_tokens=64, schedule="waves"),
                    wide=_UNTRIED,
                    launch_s=8 * US,
                    bandwidth_fraction=0.85,
                    l2_speedup=1.5,
                    matrix_fraction=0.3,
                    block_bytes_per_s=25e9,
                    item_s=4 * US,
                    overhead_tiles=4,
                    combine_s=2 * US,
                    combine_doubling_s=0.6 * US,
                    partial_passes=1,
                    query_output_passes=1,
                    tile_overlap=3,
                    item_overlap=1.3,
                    cold_s=5 * US,
                )
                for kind in (MLA, GQA)
            },
        ),
    )
}


def find_family(name: str) -> Family:
    """The family of that name. Raises UsageError with the nearest name."""
    if name not in FAMILIES:
        raise UsageError(f"unknown kernel family '{name}'", hint=nearest(name, FAMILIES))
    return FAMILIES[name]


def default_family(gpu: Gpu, attention: str) -> str:
    """The family that the tuned engines run on a GPU: where a user names none."""
    workstation = (gpu.compute_capability or "").startswith("12.")
    if gpu.architecture in ("Blackwell", "Blackwell Ultra") and not workstation:
        return "trtllm-gen"
    if gpu.architecture == "Hopper":
        return "flashmla" if attention == MLA else "fa3"
    return "triton" if attention == MLA else "flashinfer"
