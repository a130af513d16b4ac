"""torch-sdpa: the best fused scaled-dot-product attention that torch has for a shape on a device.

Shape letters: X sequences x KV heads, M rows (query tokens x query heads of a KV head), C splits, S tokens of a
sequence, n tokens of a split, W row width, H query heads, G KV heads, R kv_lora_rank, P qk_rope_head_dim, N
qk_nope_head_dim.

    CPU, decode    flash attention over splits of the context, which are heads to the operator, combined by lse. Heads
                   of a KV head are query rows. It wants K and V of one width: MLA's V is the whole row (declared), a
                   narrower V is stored padded. All splits but the last are attended by every query; the last one has
                   the mask.
    CPU, prefill   flash attention with its causal rule. One call for each query head of a group: K and V are not
                   copied.
    CUDA, decode   MLA: heads as query rows over the latent; the memory-efficient backend takes 576/512, flash does not.
                   Others: flash (cuDNN, memory-efficient) with its own grouping.
    CUDA, prefill  the first backend that accepts the shape; 192/128 for MLA.
MLA's prefill starts from K [S, H, N+P] and V [S, H, V]: building them belongs to the projection kv_b_proj before it.
Reading them in place of the latent is declared.
"""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from kvcalc.architecture.attention import GroupedAttention
from kvcalc.profiling.case import ABSORBED, EXPANDED, GROUPED, PREFILL, Case
from kvcalc.profiling.inputs import Inputs, LatentInputs
from kvcalc.profiling.kernels.base import Output
from kvcalc.profiling.kernels.torch_common import (
    QueryBlock,
    Results,
    SameLength,
    Target,
    by_length,
    cache_of,
    kv_heads,
    query_rows,
    torch_version,
    why_not,
)

LEAST_SPLIT_TOKENS = 512
SPLITS_A_THREAD = 2
BACKENDS = (
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
)
MASK_ALIGNMENT = 16


class TorchSdpa:
    """Scaled-dot-product attention by torch's fused operators."""

    name = "torch-sdpa"

    def version(self) -> str | None:
        return torch_version()

    def form(self, case: Case) -> str:
        if not case.is_latent:
            return GROUPED
        return EXPANDED if case.phase == PREFILL else ABSORBED

    def supports(self, case: Case, device: torch.device) -> str | None:
        return why_not(case)

    def prepare(self, case: Case, inputs: Inputs) -> Callable[[], Output]:
        heads = case.n_heads if self.form(case) == EXPANDED else kv_heads(case)
        results = Results(case, width=_output_width(case), kv_heads=heads, device=inputs.q.device)
        on_cpu, steps = inputs.q.device.type == "cpu", []
        for group in by_length(case):
            q, keys, values = self._operands(case, inputs, group)
            whole = QueryBlock(0, group.queries, group.tokens)
            rows = query_rows(q, group, whole, kv_heads=heads)
            target = results.target(group, whole)
            make = (cpu_prefill if case.phase == PREFILL else cpu_decode) if on_cpu else cuda_step
            steps.append(make(rows, keys, values, whole, target, scale=inputs.scale, width=results.out.shape[-1]))

        def call() -> Output:
            for step in steps:
                step()
            return Output(results.out, results.lse if on_cpu else None)

        return call

    def _operands(
        self, case: Case, inputs: Inputs, group: SameLength
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Queries [B, Q, H, W], keys [X, S, W] and values [X, S, Z] (None: in the keys) in the form of the case."""
        keys, values = cache_of(inputs, group)
        if not isinstance(inputs, LatentInputs):
            return inputs.q, keys, values
        if self.form(case) == ABSORBED:
            return inputs.q_absorbed, keys, None
        return inputs.q, *expanded_cache(inputs, keys)

    def kernel_extra_flop(self, case: Case, device: torch.device) -> int:
        """Padded widths on a CPU; tokens that the mask of a step with several queries takes away again."""
        key, value = _widths(case)
        padded = max(key, value) if device.type == "cpu" else 0
        computed = case.pairs
        if not _is_causal_rule(case, device):
            computed = sum(min(tokens, case.query_tokens) * tokens for tokens in case.seq_lens)
        width = 2 * padded if padded else key + value
        return 2 * case.n_heads * (computed * width - case.pairs * (key + value))

    def kernel_extra_bytes(self, case: Case, device: torch.device) -> int:
        key, value = _widths(case)
        tokens, size = sum(case.seq_lens), case.element_bytes
        if self.form(case) == EXPANDED:
            width = 2 * max(key, value) if device.type == "cpu" else key + value
            return tokens * case.n_heads * width * size - case.cache_read_bytes
        if case.is_latent or device.type != "cpu":
            return 0
        return tokens * kv_heads(case) * (2 * max(key, value) - key - value) * size

    def workspace_bytes(self, case: Case, device: torch.device) -> int:
        cache = case.cache_read_bytes + max(0, self.kernel_extra_bytes(case, device))
        return 2 * cache + 4 * case.query_output_bytes


def _widths(case: Case) -> tuple[int, int]:
    """Widths of a K and of a V row in the kernel's form."""
    attention = case.attention
    if isinstance(attention, GroupedAttention):
        return attention.head_dim, attention.v_head_dim
    if case.phase == PREFILL:
        return attention.qk_nope_head_dim + attention.qk_rope_head_dim, attention.v_head_dim
    return attention.kv_lora_rank + attention.qk_rope_head_dim, attention.kv_lora_rank


def _output_width(case: Case) -> int:
    return _widths(case)[1]


def _is_causal_rule(case: Case, device: torch.device) -> bool:
    """Whether the operator leaves out what is not attended, instead of masking it."""
    if case.query_tokens == 1:
        return True
    whole = all(tokens <= case.query_tokens for tokens in case.seq_lens)
    return case.phase == PREFILL and whole


def expanded_cache(inputs: LatentInputs, keys: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """K [b H, S, N+P] and V [b H, S, V] from latents and rope [b, S, R+P], rounded to the queries' format."""
    heads, _, rank = inputs.w_uk.shape
    latents = keys[..., :rank].float()
    k = torch.einsum("bsr,hnr->bhsn", latents, inputs.w_uk.float()).to(keys.dtype)
    rope = keys[:, None, :, rank:].expand(-1, heads, -1, -1)  # [b, H, S, P]
    v = torch.einsum("bsr,hrv->bhsv", latents, inputs.w_uv.float()).to(keys.dtype)
    return torch.cat([k, rope], dim=-1).flatten(0, 1), v.flatten(0, 1)


def _flash_on_cpu(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **options: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, **options)
    return out, lse


def _one_width(keys: torch.Tensor, values: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values of one width, zeros added where one is narrower; without values the keys serve as both."""
    if values is None:
        return keys, keys
    width = max(keys.shape[-1], values.shape[-1])
    return functional.pad(keys, (0, width - keys.shape[-1])), functional.pad(values, (0, width - values.shape[-1]))


def cpu_decode(
    q: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor | None,
    block: QueryBlock,
    target: Target,
    *,
    scale: float,
    width: int,
) -> Callable[[], None]:
    """Flash attention over splits: q [X, M, W], keys [X, S, W], values [X, S, Z]."""
    keys, values = _one_width(keys, values)
    q = functional.pad(q, (0, keys.shape[-1] - q.shape[-1]))[:, None]  # [X, 1, M, W]
    seen_by_all = block.tokens - (block.queries if block.queries > 1 else 0)
    wanted = -(-SPLITS_A_THREAD * torch.get_num_threads() // q.shape[0])
    splits = max(1, min(wanted, seen_by_all // LEAST_SPLIT_TOKENS))
    n = seen_by_all // splits
    body = n * splits if n else 0
    heads = q.shape[2] // block.queries
    split_k, split_v = (each[:, :body].unflatten(1, (splits, n)) for each in (keys, values)) if body else (None, None)
    tail_k, tail_v = keys[:, None, body:], values[:, None, body:]  # [X, 1, tail, W]
    mask = None
    if block.queries > 1:
        tail = block.tokens - body
        attended = tail - block.queries + 1 + torch.arange(block.queries)  # [q]
        mask = torch.zeros(block.queries, tail, dtype=q.dtype)
        mask.masked_fill_(torch.arange(tail)[None] >= attended[:, None], -torch.inf)
        mask = mask.repeat_interleave(heads, 0)[None, None]  # [1, 1, M, tail]

    def step() -> None:
        outs, lses = [], []
        if split_k is not None:
            out, lse = _flash_on_cpu(q.expand(-1, splits, -1, -1), split_k, split_v, scale=scale)  # [X, C, M, W]
            outs.append(out)
            lses.append(lse.view(out.shape[:3]))
        if body < block.tokens:
            out, lse = _flash_on_cpu(q, tail_k, tail_v, attn_mask=mask, scale=scale)
            outs.append(out)
            lses.append(lse.view(out.shape[:3]))
        out, lse = (torch.cat(each, 1) if len(each) > 1 else each[0] for each in (outs, lses))
        if out.shape[1] == 1:
            target.write(out[:, 0, :, :width], lse[:, 0])
            return
        total = lse.logsumexp(1)  # [X, M]
        weights = (lse - total[:, None]).exp_()  # [X, C, M]
        target.write((out[..., :width] * weights[..., None]).sum(1), total)

    return step


def cpu_prefill(
    q: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor | None,
    block: QueryBlock,
    target: Target,
    *,
    scale: float,
    width: int,
) -> Callable[[], None]:
    """Causal flash attention, one call for each query head of a group."""
    keys, values = (each[None] for each in _one_width(keys, values))  # [1, X, S, W]
    count, rows = q.shape[:2]
    q = functional.pad(q, (0, keys.shape[-1] - q.shape[-1])).view(
        count, block.queries, -1, keys.shape[-1]
    )  # [X, q, h, W]
    heads = q.shape[2]
    by_head = q.permute(2, 0, 1, 3).contiguous()  # [h, X, q, W]
    options: dict[str, Any] = {"is_causal": True}
    if block.queries < block.tokens:
        attended = block.tokens - block.queries + 1 + torch.arange(block.queries)
        mask = torch.zeros(block.queries, block.tokens, dtype=q.dtype)
        mask.masked_fill_(torch.arange(block.tokens)[None] >= attended[:, None], -torch.inf)
        options = {"attn_mask": mask[None, None]}
    out = torch.empty(count, block.queries, heads, width, dtype=q.dtype)
    lse = torch.empty(count, block.queries, heads)

    def step() -> None:
        for head in range(heads):
            each, each_lse = _flash_on_cpu(by_head[head : head + 1], keys, values, scale=scale, **options)
            out[:, :, head] = each[0, ..., :width]
            lse[:, :, head] = each_lse.view(count, block.queries)
        target.write(out.view(count, rows, width), lse.view(count, rows))

    return step


def cuda_step(
    q: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor | None,
    block: QueryBlock,
    target: Target,
    *,
    scale: float,
    width: int,
) -> Callable[[], None]:
    """`scaled_dot_product_attention` by the first backend that takes the shape; it gives no lse."""
    count, rows, row_width = q.shape
    per_kv = rows // block.queries
    if values is None:  # one KV head whose queries are rows
        operands = (q[:, None], keys[:, None], keys[:, None, :, :width])  # [b, 1, M, W], [b, 1, S, W], [b, 1, S, R]
        mask = _cuda_mask(block, per_kv, q) if block.queries > 1 else None
        options: dict[str, Any] = {"attn_mask": mask}
    else:  # [X, q, h, W] -> [X, h, q, W]; a KV head is a batch, its query heads are its heads
        by_head = q.view(count, block.queries, per_kv, row_width).transpose(1, 2).contiguous()
        operands = (by_head, keys[:, None], values[:, None])
        options = {"enable_gqa": per_kv > 1}
        if block.queries == block.tokens and block.queries > 1:
            options["is_causal"] = True
        elif block.queries > 1:
            options["attn_mask"] = _cuda_mask(block, 1, q)
    options["scale"] = scale
    backend = _backend(operands, options)

    def step() -> None:
        with sdpa_kernel(backend):
            out = functional.scaled_dot_product_attention(*operands, **options)
        if values is not None:
            out = out.transpose(1, 2)  # [X, q, h, Z]
        target.write(out.reshape(count, rows, width), None)

    return step


def _cuda_mask(block: QueryBlock, heads: int, q: torch.Tensor) -> torch.Tensor:
    """Additive mask [1, 1, M, S], its rows aligned as the memory-efficient backend wants them."""
    aligned = -(-block.tokens // MASK_ALIGNMENT) * MASK_ALIGNMENT
    attended = block.tokens - block.queries + 1 + torch.arange(block.queries, device=q.device)
    mask = torch.zeros(block.queries, aligned, dtype=q.dtype, device=q.device)
    mask.masked_fill_(torch.arange(aligned, device=q.device)[None] >= attended[:, None], -torch.inf)
    return mask.repeat_interleave(heads, 0)[None, None, :, : block.tokens]


def _backend(operands: tuple[torch.Tensor, torch.Tensor, torch.Tensor], options: dict[str, Any]) -> SDPBackend:
    """The first backend that computes the operands; math, the last one, takes anything."""
    for backend in BACKENDS[:-1]:
        try:
            with warnings.catch_warnings(), sdpa_kernel(backend):
                warnings.simplefilter("ignore")  # a backend that refuses warns why, once for each condition
                functional.scaled_dot_product_attention(*operands, **options)
        except RuntimeError:
            continue
        return backend
    return BACKENDS[-1]
