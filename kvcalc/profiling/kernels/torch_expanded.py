"""torch-expanded: full K and V of every query head are built first, then attended. The textbook form.

Shape letters: H query heads, G KV heads, S tokens, q query tokens of a block, R kv_lora_rank, N qk_nope_head_dim,
P qk_rope_head_dim, V value width, D head_dim.

    MLA           K = [W_UK c, k_rope], V = W_UV c for all heads and tokens: 2 R H (N + V) FLOPs a token, every call
    GQA, MQA, MHA K and V copied for each query head of a group, as `repeat_kv` of transformers does

The latents and the rope keys lie in two contiguous tensors a sequence. K and V of one sequence exist at a time. What
that costs is declared: the decompression's FLOPs, K and V written and read.
"""

from collections.abc import Callable

import torch

from kvcalc.architecture.attention import GroupedAttention
from kvcalc.profiling.case import EXPANDED, GROUPED, Case
from kvcalc.profiling.inputs import TORCH_DTYPES, GroupedInputs, Inputs, LatentInputs, gather
from kvcalc.profiling.kernels.base import Output
from kvcalc.profiling.kernels.products import product_dtype, times_transposed
from kvcalc.profiling.kernels.torch_common import (
    QueryBlock,
    Results,
    SameLength,
    Target,
    by_length,
    causal_mask,
    masked_pairs,
    query_blocks,
    query_rows,
    torch_version,
    why_not,
)

HEADS_A_ROW = 8
"""Query blocks are larger than those of the grouped products: here each head has rows of its own."""


class TorchExpanded:
    """Full keys and values, then attention with a head's own K and V."""

    name = "torch-expanded"

    def version(self) -> str | None:
        return torch_version()

    def form(self, case: Case) -> str:
        return EXPANDED if case.is_latent else GROUPED

    def supports(self, case: Case, device: torch.device) -> str | None:
        return why_not(case)

    def prepare(self, case: Case, inputs: Inputs) -> Callable[[], Output]:
        device = inputs.q.device
        results = Results(case, width=case.attention.v_head_dim, kv_heads=case.n_heads, device=device)
        dtype = product_dtype(inputs.q.dtype, device)
        longest = max(case.seq_lens)
        memory = torch.empty(case.n_heads * longest * inputs.q.shape[-1], dtype=dtype, device=device)
        expand = Decompress(inputs, memory) if isinstance(inputs, LatentInputs) else Repeat(case, inputs, memory)
        steps: list[Callable[[], None]] = []
        for group in by_length(case):
            for sequence in group.sequences:
                one = SameLength(sequences=(sequence,), tokens=group.tokens, queries=group.queries)
                blocks = []
                for block in query_blocks(one, rows_per_query=_rows_per_query(case)):
                    rows = query_rows(inputs.q, one, block, kv_heads=case.n_heads)  # [H, q, W]
                    blocks.append((rows.to(dtype), block, results.target(one, block)))
                steps.append(_step(expand.of(sequence, group.tokens), blocks, inputs.scale))

        def call() -> Output:
            for step in steps:
                step()
            return Output(results.out, results.lse)

        return call

    def kernel_extra_flop(self, case: Case, device: torch.device) -> int:
        flop_per_pair = 2 * case.n_heads * (_key_width(case) + case.attention.v_head_dim)
        return case.decompress_flop + masked_pairs(case, rows_per_query=_rows_per_query(case)) * flop_per_pair

    def kernel_extra_bytes(self, case: Case, device: torch.device) -> int:
        return 2 * self._expanded_bytes(case, device)

    def workspace_bytes(self, case: Case, device: torch.device) -> int:
        scores = 3 * 4 * HEADS_A_ROW * 512 * max(case.seq_lens)
        one = self._expanded_bytes(case, device) * max(case.seq_lens) // max(1, sum(case.seq_lens))
        return case.cache_read_bytes + 2 * one + scores + 2 * case.query_output_bytes

    def _expanded_bytes(self, case: Case, device: torch.device) -> int:
        size = int(product_dtype(TORCH_DTYPES[case.dtype], device).itemsize)
        return case.expanded_kv_bytes // case.element_bytes * size


def _rows_per_query(case: Case) -> int:
    return max(1, case.n_heads // HEADS_A_ROW)


def _key_width(case: Case) -> int:
    attention = case.attention
    if isinstance(attention, GroupedAttention):
        return attention.head_dim
    return attention.qk_nope_head_dim + attention.qk_rope_head_dim


class Decompress:
    """K [H, S, N+P] and V [H, S, V] of a sequence from its latents."""

    def __init__(self, inputs: LatentInputs, memory: torch.Tensor) -> None:
        self.inputs, self.memory = inputs, memory
        self.heads, self.nope, self.rank = inputs.w_uk.shape
        self.w_uk = inputs.w_uk.flatten(0, 1).to(memory.dtype)  # [H N, R]
        self.w_uv = inputs.w_uv.transpose(1, 2).flatten(0, 1).to(memory.dtype)  # [H V, R]

    def of(self, sequence: int, tokens: int) -> Callable[[], tuple[torch.Tensor, torch.Tensor]]:
        """The call that builds K and V."""
        rows = gather(self.inputs.cache_pages, self.inputs.page_table, sequence, tokens)
        latents, rope = rows[:, : self.rank].contiguous(), rows[:, self.rank :].contiguous()  # [S, R] and [S, P]
        width = self.nope + rope.shape[1]
        keys = self.memory[: self.heads * tokens * width].view(self.heads, tokens, width)  # [H, S, N+P]

        def expand() -> tuple[torch.Tensor, torch.Tensor]:
            own = latents.to(keys.dtype)
            positionless = times_transposed(own, self.w_uk).view(tokens, self.heads, self.nope)  # [S, H, N]
            keys[..., : self.nope] = positionless.transpose(0, 1)
            keys[..., self.nope :] = rope
            values = times_transposed(own, self.w_uv).view(tokens, self.heads, -1)  # [S, H, V]
            return keys, values.transpose(0, 1)

        return expand


class Repeat:
    """K [H, S, D] and V [H, S, V] of a sequence, each KV head copied for its query heads."""

    def __init__(self, case: Case, inputs: GroupedInputs, memory: torch.Tensor) -> None:
        self.inputs, self.memory = inputs, memory
        self.heads, self.group = case.n_heads, case.n_heads // inputs.k_pages.shape[2]

    def of(self, sequence: int, tokens: int) -> Callable[[], tuple[torch.Tensor, torch.Tensor]]:
        """The call that builds K and V."""
        table = self.inputs.page_table
        k = gather(self.inputs.k_pages, table, sequence, tokens).transpose(0, 1).contiguous()  # [G, S, D]
        v = gather(self.inputs.v_pages, table, sequence, tokens).transpose(0, 1).contiguous()  # [G, S, V]
        keys = self.memory[: self.heads * tokens * k.shape[-1]].view(self.heads, tokens, -1)
        values = torch.empty(self.heads, tokens, v.shape[-1], dtype=keys.dtype, device=keys.device)

        def expand() -> tuple[torch.Tensor, torch.Tensor]:
            for source, target in ((k, keys), (v, values)):
                target.unflatten(0, (-1, self.group)).copy_(source[:, None].expand(-1, self.group, -1, -1))
            return keys, values

        return expand


def _step(
    expand: Callable[[], tuple[torch.Tensor, torch.Tensor]],
    blocks: list[tuple[torch.Tensor, QueryBlock, Target]],
    scale: float,
) -> Callable[[], None]:
    """Build K and V once, then attend with each block of queries [H, q, N+P]."""
    masks = {block.queries: causal_mask(block.queries, rows.device) for rows, block, _ in blocks if block.queries > 1}

    def step() -> None:
        keys, values = expand()
        for rows, block, target in blocks:
            scores = torch.bmm(rows, keys[:, : block.tokens].transpose(1, 2)).float().mul_(scale)  # [H, q, S]
            if block.queries > 1:
                scores[..., block.tokens - block.queries :] += masks[block.queries]
            peaks = scores.amax(-1)  # [H, q]
            weights = torch.softmax(scores, -1)
            lse = peaks - weights.amax(-1).log_()  # the largest weight is exp(peak - lse)
            target.write(torch.bmm(weights.to(keys.dtype), values[:, : block.tokens]), lse)

    return step
