"""flashinfer: FlashInfer's kernels for MLA and for grouped attention, where flashinfer-python is installed.

Shape letters: B batch, Q query tokens, H query heads, G KV heads, D head_dim, R kv_lora_rank, P qk_rope_head_dim,
N qk_nope_head_dim, V v_head_dim, T page_tokens, S tokens of a sequence.

    MLA decode      BatchMLAPagedAttentionWrapper over the pages as they lie: latent and rope are two slices of one
                    cache
    MLA prefill     BatchPrefillWithRaggedKVCacheWrapper over K and V of all heads (192/128), which the projection
                    before it builds; reading them in place of the latent is declared
    others, decode  BatchDecodeWithPagedKVCacheWrapper with one query token
    others          BatchPrefillWithPagedKVCacheWrapper with several
Plans are made in `prepare`: an engine makes one a step for all layers. The first plan compiles the kernel, about a
minute. lse is not asked for: FlashInfer's is in base 2. Code written to the documented interface; it has not run on a
GPU here.
"""

from collections.abc import Callable
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any

import torch

from kvcalc.architecture.attention import GroupedAttention, LatentAttention
from kvcalc.profiling.case import ABSORBED, EXPANDED, GROUPED, PREFILL, Case
from kvcalc.profiling.inputs import GroupedInputs, Inputs, LatentInputs
from kvcalc.profiling.kernels.base import Output, attends_everything
from kvcalc.profiling.kernels.torch_common import by_length, cache_of
from kvcalc.profiling.kernels.torch_sdpa import expanded_cache

WORKSPACE_BYTES = 128 << 20
OLDEST_CAPABILITY = (8, 0)
MLA_RANK, MLA_ROPE = 512, 64
HEAD_DIMS = (64, 128, 256)
TENSOR_CORE_GROUP = 4
"""Query heads of a KV head from which FlashInfer recommends its tensor-core decode kernel."""


class FlashInfer:
    """FlashInfer's paged and ragged attention wrappers."""

    name = "flashinfer"

    def version(self) -> str | None:
        try:
            return version("flashinfer-python")
        except PackageNotFoundError:
            return None

    def form(self, case: Case) -> str:
        if not case.is_latent:
            return GROUPED
        return EXPANDED if case.phase == PREFILL else ABSORBED

    def supports(self, case: Case, device: torch.device) -> str | None:
        return _case_problem(case) or _machine_problem(device)

    def prepare(self, case: Case, inputs: Inputs) -> Callable[[], Output]:
        flashinfer = import_module("flashinfer")

        workspace = torch.empty(WORKSPACE_BYTES, dtype=torch.uint8, device=inputs.q.device)
        if isinstance(inputs, GroupedInputs):
            make = _grouped_decode if case.query_tokens == 1 else _grouped_prefill
            return make(flashinfer, case, inputs, workspace)
        make_latent = _latent_prefill if case.phase == PREFILL else _latent_decode
        return make_latent(flashinfer, case, inputs, workspace)

    def kernel_extra_flop(self, case: Case, device: torch.device) -> int:
        return 0

    def kernel_extra_bytes(self, case: Case, device: torch.device) -> int:
        return case.expanded_kv_bytes - case.cache_read_bytes if self.form(case) == EXPANDED else 0

    def workspace_bytes(self, case: Case, device: torch.device) -> int:
        expanded = 3 * case.expanded_kv_bytes if self.form(case) == EXPANDED else 0
        return WORKSPACE_BYTES + expanded + 2 * case.query_output_bytes


def _case_problem(case: Case) -> str | None:
    attention = case.attention
    if case.dtype not in ("bf16", "fp16"):
        return f"FlashInfer computes in bf16 and fp16, not {case.dtype}"
    if case.kv_dtype != case.dtype:
        return f"FlashInfer is run with caches in the queries' format here, not {case.kv_dtype}"
    if min(case.seq_lens) < case.query_tokens:
        return "FlashInfer's plans want every query to attend a token"
    if isinstance(attention, LatentAttention):
        if (attention.kv_lora_rank, attention.qk_rope_head_dim) != (MLA_RANK, MLA_ROPE):
            return (
                f"FlashInfer's MLA is {MLA_RANK}+{MLA_ROPE}, not {attention.kv_lora_rank}+{attention.qk_rope_head_dim}"
            )
        return None
    if attention.head_dim != attention.v_head_dim or attention.head_dim not in HEAD_DIMS:
        return f"FlashInfer has no kernel for head_dim {attention.head_dim} and v_head_dim {attention.v_head_dim}"
    return attends_everything(case)


def _machine_problem(device: torch.device) -> str | None:
    if device.type != "cuda":
        return f"FlashInfer needs a CUDA device, not {device.type}"
    if find_spec("flashinfer") is None:
        return "flashinfer is not installed: pip install flashinfer-python"
    capability = torch.cuda.get_device_capability(device)
    if capability < OLDEST_CAPABILITY:
        return f"FlashInfer needs sm_80 or newer, not sm_{capability[0]}{capability[1]}"
    try:
        import_module("flashinfer")
    except (ImportError, OSError, RuntimeError) as error:
        return f"flashinfer can't be loaded: {str(error).splitlines()[0]}"
    return None


def _query_indptr(case: Case, device: torch.device) -> torch.Tensor:
    """Where each sequence's queries begin [B+1]."""
    return torch.arange(case.batch + 1, dtype=torch.int32, device=device) * case.query_tokens


def _pages(case: Case, inputs: Inputs) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Where each sequence's pages begin [B+1], the page ids one after another, tokens in each last page [B]."""
    device = inputs.page_table.device
    counts = torch.tensor((0, *case.pages), dtype=torch.int32, device=device)
    ids = torch.cat([inputs.page_table[sequence, :count] for sequence, count in enumerate(case.pages)])
    last = [(tokens - 1) % case.page_tokens + 1 for tokens in case.seq_lens]
    return counts.cumsum(0).int(), ids, torch.tensor(last, dtype=torch.int32, device=device)


def _latent_decode(flashinfer: Any, case: Case, inputs: LatentInputs, workspace: torch.Tensor) -> Callable[[], Output]:
    rank, q = inputs.w_uk.shape[2], inputs.q_absorbed.flatten(0, 1)  # [B Q, H, R+P]
    begins, ids, _ = _pages(case, inputs)
    wrapper = flashinfer.mla.BatchMLAPagedAttentionWrapper(workspace, backend="auto")
    wrapper.plan(
        _query_indptr(case, q.device),
        begins,
        ids,
        inputs.seq_lens,
        case.n_heads,
        rank,
        q.shape[-1] - rank,
        case.page_tokens,
        case.query_tokens > 1,
        inputs.scale,
        q.dtype,
        inputs.cache_pages.dtype,
    )
    q_latent, q_rope = q[..., :rank].contiguous(), q[..., rank:].contiguous()  # the wrapper's own query format
    latents, rope = inputs.cache_pages[..., :rank], inputs.cache_pages[..., rank:]  # [pages, T, R] and [pages, T, P]

    def call() -> Output:
        out = wrapper.run(q_latent, q_rope, latents, rope, return_lse=False)  # [B Q, H, R]
        return Output(out.view(case.batch, case.query_tokens, case.n_heads, rank))

    return call


def _latent_prefill(flashinfer: Any, case: Case, inputs: LatentInputs, workspace: torch.Tensor) -> Callable[[], Output]:
    keys, values = _ragged_kv(case, inputs)
    q = inputs.q.flatten(0, 1)  # [B Q, H, N+P]
    lengths = torch.tensor((0, *case.seq_lens), dtype=torch.int32, device=q.device)
    wrapper = flashinfer.BatchPrefillWithRaggedKVCacheWrapper(workspace, "NHD")
    wrapper.plan(
        _query_indptr(case, q.device),
        lengths.cumsum(0).int(),
        case.n_heads,
        case.n_heads,
        q.shape[-1],
        head_dim_vo=values.shape[-1],
        causal=True,
        sm_scale=inputs.scale,
        q_data_type=q.dtype,
    )

    def call() -> Output:
        out = wrapper.run(q, keys, values)  # [B Q, H, V]
        return Output(out.view(case.batch, case.query_tokens, case.n_heads, -1))

    return call


def _ragged_kv(case: Case, inputs: LatentInputs) -> tuple[torch.Tensor, torch.Tensor]:
    """K [tokens, H, N+P] and V [tokens, H, V] of all sequences one after another."""
    parts: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
    for group in by_length(case):
        cache, _ = cache_of(inputs, group)
        both = (each.unflatten(0, (-1, case.n_heads)).transpose(1, 2) for each in expanded_cache(inputs, cache))
        for sequence, keys, values in zip(group.sequences, *both, strict=True):  # [S, H, N+P] and [S, H, V]
            parts[sequence] = keys, values
    ordered = [parts[sequence] for sequence in range(case.batch)]
    return torch.cat([keys for keys, _ in ordered]), torch.cat([values for _, values in ordered])


def _grouped_decode(
    flashinfer: Any, case: Case, inputs: GroupedInputs, workspace: torch.Tensor
) -> Callable[[], Output]:
    attention = case.attention
    assert isinstance(attention, GroupedAttention)
    begins, ids, last = _pages(case, inputs)
    wrapper = flashinfer.BatchDecodeWithPagedKVCacheWrapper(
        workspace, "NHD", use_tensor_cores=attention.n_heads // attention.n_kv_heads >= TENSOR_CORE_GROUP
    )
    wrapper.plan(
        begins,
        ids,
        last,
        attention.n_heads,
        attention.n_kv_heads,
        attention.head_dim,
        case.page_tokens,
        pos_encoding_mode="NONE",
        q_data_type=inputs.q.dtype,
        kv_data_type=inputs.k_pages.dtype,
        sm_scale=inputs.scale,
    )
    q = inputs.q[:, 0]  # [B, H, D]

    def call() -> Output:
        return Output(wrapper.run(q, (inputs.k_pages, inputs.v_pages))[:, None])  # [B, 1, H, D]

    return call


def _grouped_prefill(
    flashinfer: Any, case: Case, inputs: GroupedInputs, workspace: torch.Tensor
) -> Callable[[], Output]:
    attention = case.attention
    assert isinstance(attention, GroupedAttention)
    begins, ids, last = _pages(case, inputs)
    wrapper = flashinfer.BatchPrefillWithPagedKVCacheWrapper(workspace, "NHD")
    wrapper.plan(
        _query_indptr(case, inputs.q.device),
        begins,
        ids,
        last,
        attention.n_heads,
        attention.n_kv_heads,
        attention.head_dim,
        case.page_tokens,
        causal=True,
        sm_scale=inputs.scale,
        q_data_type=inputs.q.dtype,
        kv_data_type=inputs.k_pages.dtype,
    )
    q = inputs.q.flatten(0, 1)  # [B Q, H, D]

    def call() -> Output:
        out = wrapper.run(q, (inputs.k_pages, inputs.v_pages))  # [B Q, H, D]
        return Output(out.view(case.batch, case.query_tokens, case.n_heads, -1))

    return call
