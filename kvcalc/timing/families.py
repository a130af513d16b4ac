"""Kernel families: how each cuts its work, and where a fit of its parameters starts. Data, not code.

A family is a kernel lineage, whatever engine calls it: those of tuned kernels are in `family_tuned`. Those here only
their source was read of, so their spread is wider.
"""

from kvcalc.errors import UsageError
from kvcalc.hardware import Gpu
from kvcalc.names import nearest
from kvcalc.timing.attention_time import KernelShape
from kvcalc.timing.family import GQA as GQA
from kvcalc.timing.family import MHA as MHA
from kvcalc.timing.family import MLA as MLA
from kvcalc.timing.family import US, kernel
from kvcalc.timing.family import Family as Family
from kvcalc.timing.family import Kernel as Kernel
from kvcalc.timing.family_tuned import TUNED

_UNTRIED = 1.6
"""Wider spread where only the source was read."""

FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        *TUNED,
        Family(
            name="flashinfer",
            description="the FlashAttention-2 lineage: FlashInfer's fa2 templates, flash-attn 2",
            source="github.com/flashinfer-ai/flashinfer fb28d72, include/flashinfer/attention",
            kernels={
                kind: kernel(
                    KernelShape(tile_rows=(16, 64), tile_tokens=((512, tokens, tokens),), schedule="balanced"),
                    wide=_UNTRIED,
                    launch_s=8 * US,
                    bandwidth_fraction=0.85,
                    l2_speedup=1.5,
                    matrix_fraction=0.4,
                    block_bytes_per_s=40e9,
                    item_s=3 * US,
                    overhead_tiles=2,
                    combine_s=1 * US,
                    combine_split_s=0.037 * US,
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
                kind: kernel(
                    KernelShape(tile_rows=(16,), tile_tokens=((512, 32, 32),), schedule="fill"),
                    wide=_UNTRIED,
                    launch_s=12 * US,
                    bandwidth_fraction=0.85,
                    l2_speedup=1.5,
                    matrix_fraction=0.12,
                    block_bytes_per_s=12e9,
                    item_s=4 * US,
                    overhead_tiles=4,
                    combine_s=2 * US,
                    combine_split_s=0.062 * US,
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
                kind: kernel(
                    KernelShape(tile_rows=(16, 64), tile_tokens=((512, 64, 64),), schedule="fill"),
                    wide=_UNTRIED,
                    launch_s=8 * US,
                    bandwidth_fraction=0.85,
                    l2_speedup=1.5,
                    matrix_fraction=0.3,
                    block_bytes_per_s=25e9,
                    item_s=4 * US,
                    overhead_tiles=4,
                    combine_s=2 * US,
                    combine_split_s=0.037 * US,
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


ON_HOPPER = {
    ("vllm", GQA): "fa3-vllm",
    ("vllm", MLA): "fa3",
    ("sglang", MLA): "fa3",
    ("trtllm", GQA): "trtllm-xqa",
}
"""What an engine runs there instead of what others do: the kernels of its tables in aiconfigurator-core 0.12.0, and for
vLLM's MLA in 16 bits, from 0.18 on, the backend that its blocks are cut for (`kvcalc.engines.vllm_rules`)."""


def default_family(gpu: Gpu, attention: str, engine: str = "generic") -> str:
    """The family that an engine runs on a GPU: where a user names none."""
    workstation = (gpu.compute_capability or "").startswith("12.")
    if gpu.architecture in ("Blackwell", "Blackwell Ultra") and not workstation:
        return "trtllm-gen"
    if gpu.architecture == "Hopper":
        usual = "flashmla" if attention == MLA else "fa3"
        return ON_HOPPER.get((engine, MLA if attention == MLA else GQA), usual)
    if attention == MLA:
        return "triton"
    return "trtllm-xqa" if engine == "trtllm" else "flashinfer"
