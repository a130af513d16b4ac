"""flashmla: DeepSeek's dense MLA decode kernel for Hopper, from the PyPI package sgl-flash-mla, where it is installed.

Shape letters: B batch, Q query tokens, H query heads, R kv_lora_rank, P qk_rope_head_dim.

Called through the package's legacy interface: upstream's release of 2026-09-30 dropped dense decoding and SM90. The
cache is used as it lies, [pages, 64, 1, R+P]. The schedule of a step is computed by the first call, in `prepare`: an
engine computes it once a step for all layers. The combine kernel is part of the call that is timed; FlashMLA's own
figures leave it out. Code written to the documented interface; it has not run on a GPU here.
"""

from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

import torch

from kvcalc.architecture.attention import LatentAttention
from kvcalc.profiling.case import ABSORBED, DECODE, Case
from kvcalc.profiling.inputs import Inputs, LatentInputs
from kvcalc.profiling.kernels.base import Output

RANK, ROPE, PAGE_TOKENS = 512, 64, 64
ROWS_A_TILE = 64
HOPPER = (9, 0)


class FlashMla:
    """FlashMLA's dense decode, bf16 and fp16."""

    name = "flashmla"

    def version(self) -> str | None:
        for package in ("sgl-flash-mla", "flash-mla"):
            try:
                return f"{package} {version(package)}"
            except PackageNotFoundError:
                continue
        return None

    def form(self, case: Case) -> str:
        return ABSORBED

    def supports(self, case: Case, device: torch.device) -> str | None:
        return _case_problem(case) or _machine_problem(device)

    def prepare(self, case: Case, inputs: Inputs) -> Callable[[], Output]:
        assert isinstance(inputs, LatentInputs)
        from flash_mla import flash_mla_with_kvcache, get_mla_metadata

        cache = inputs.cache_pages[:, :, None]  # [pages, 64, 1, R+P]
        found = get_mla_metadata()
        metadata = found[0] if isinstance(found, tuple) else found
        causal = case.query_tokens > 1

        def call() -> Output:
            out, lse = flash_mla_with_kvcache(
                inputs.q_absorbed,
                cache,
                inputs.page_table,
                inputs.seq_lens,
                RANK,
                metadata,
                None,
                inputs.scale,
                causal,
                use_legacy=True,
            )
            return Output(out, lse.transpose(1, 2))  # [B, Q, H, R] and [B, H, Q] -> [B, Q, H]

        call()
        return call

    def kernel_extra_flop(self, case: Case, device: torch.device) -> int:
        """Rows of query tokens x heads are padded to tiles of 64."""
        rows = case.query_tokens * case.n_heads
        padded = -(-rows // ROWS_A_TILE) * ROWS_A_TILE
        return case.flop(ABSORBED) * (padded - rows) // rows

    def kernel_extra_bytes(self, case: Case, device: torch.device) -> int:
        """fp32 outputs of split sequences, written and read: the most that the scheduler may choose."""
        if device.type != "cuda":
            return 0
        tiles = -(-case.query_tokens * case.n_heads // ROWS_A_TILE)
        parts = max(1, int(torch.cuda.get_device_properties(device).multi_processor_count) // tiles)
        if parts <= case.batch:
            return 0
        splits = min(parts + case.batch, sum(case.pages))
        return 2 * splits * case.query_tokens * case.n_heads * RANK * 4

    def workspace_bytes(self, case: Case, device: torch.device) -> int:
        return self.kernel_extra_bytes(case, device) + 2 * case.query_output_bytes


def _case_problem(case: Case) -> str | None:
    attention = case.attention
    if not isinstance(attention, LatentAttention):
        return "FlashMLA computes MLA only"
    if case.phase != DECODE:
        return "FlashMLA's dense kernel decodes only"
    if (attention.kv_lora_rank, attention.qk_rope_head_dim) != (RANK, ROPE):
        return f"FlashMLA is built for MLA {RANK}+{ROPE}, not {attention.kv_lora_rank}+{attention.qk_rope_head_dim}"
    if case.dtype not in ("bf16", "fp16"):
        return f"FlashMLA computes in bf16 and fp16, not {case.dtype}"
    if case.kv_dtype != case.dtype:
        return f"FlashMLA's dense {case.kv_dtype} kernel wants {case.kv_dtype} queries; this case has {case.dtype} ones"
    if case.page_tokens != PAGE_TOKENS:
        return f"FlashMLA's pages have {PAGE_TOKENS} tokens, not {case.page_tokens}"
    if min(case.seq_lens) < case.query_tokens:
        return "FlashMLA gives queries that attend nothing an lse of its own (+inf)"
    return None


def _machine_problem(device: torch.device) -> str | None:
    if device.type != "cuda":
        return f"FlashMLA needs a CUDA device, not {device.type}"
    if find_spec("flash_mla") is None:
        return "flash_mla is not installed: pip install --no-deps sgl-flash-mla"
    capability = torch.cuda.get_device_capability(device)
    if capability != HOPPER:
        return f"FlashMLA's dense kernel is built for sm_90a, not sm_{capability[0]}{capability[1]}"
    try:
        import flash_mla
    except (ImportError, OSError, RuntimeError) as error:
        return f"flash_mla can't be loaded: {str(error).splitlines()[0]}"
    has_legacy = getattr(flash_mla, "has_legacy", None)
    if has_legacy is None or not (has_legacy() if callable(has_legacy) else has_legacy):
        return "this flash_mla has no dense SM90 kernel: pip install --no-deps sgl-flash-mla"
    return None
