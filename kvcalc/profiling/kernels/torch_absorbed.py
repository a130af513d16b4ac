"""torch-absorbed: two matrix products with a softmax between them, split over the context.

    scores = scale q K^T,   p = exp(scores - max),   out = p V / sum p      split and combined as in flash-decoding

For MLA the queries are absorbed, and the latent is both K and V: rows of one cache. MHA, GQA and MQA have nothing to
absorb; the query heads of a KV head are the rows of the same two products.

Shape letters: X sequences x KV heads, M rows (query tokens x query heads of a KV head), n tokens of a chunk, C chunks,
W width of a key row, Z width of a value row.

Two ways, by device and attention:
    chunks one by one  MLA on a CPU. Each thread takes whole chunks; one stays in cache between its two products, which
                       go through oneDNN: it takes whole rows, so V is W wide (declared). With few rows the keys are
                       the left operand of QK, which is faster, and the scores are turned round.
    chunks at once     all else: batched products over all chunks, in a cache padded with zeros to whole chunks.
In 16-bit formats, scores are fp32 on CUDA and rounded to the format on a CPU, whose products have no other output.
"""

from collections.abc import Callable

import torch

from kvcalc.architecture.attention import LatentAttention
from kvcalc.profiling.case import ABSORBED, GROUPED, Case
from kvcalc.profiling.inputs import TORCH_DTYPES, Inputs, LatentInputs
from kvcalc.profiling.kernels import workers
from kvcalc.profiling.kernels.base import Output
from kvcalc.profiling.kernels.products import has_onednn_linear, product_dtype, times_transposed
from kvcalc.profiling.kernels.torch_common import (
    QUERY_BLOCK_ROWS,
    QueryBlock,
    Results,
    Target,
    by_length,
    cache_of,
    causal_mask,
    kv_heads,
    query_blocks,
    query_rows,
    torch_version,
    why_not,
    widens,
)

CHUNK_TOKENS = 4096
FEW_ROWS = 64
LEAST_CHUNK_TOKENS = 512
CUDA_PRODUCTS = 264
"""Chunks at once on CUDA: enough for two products on each SM of a large GPU."""
SCORE_PASSES = 7
"""Times that fp32 scores cross memory where chunks go at once: product out, max, subtract and exp in place, sum."""


class TorchAbsorbed:
    """Two products and a softmax, split over the context."""

    name = "torch-absorbed"

    def version(self) -> str | None:
        return torch_version()

    def form(self, case: Case) -> str:
        return ABSORBED if case.is_latent else GROUPED

    def supports(self, case: Case, device: torch.device) -> str | None:
        return why_not(case)

    def prepare(self, case: Case, inputs: Inputs) -> Callable[[], Output]:
        heads, device = kv_heads(case), inputs.q.device
        q = inputs.q_absorbed if isinstance(inputs, LatentInputs) else inputs.q
        width = (
            case.attention.kv_lora_rank if isinstance(case.attention, LatentAttention) else case.attention.v_head_dim
        )
        results = Results(case, width=width, kv_heads=heads, device=device)
        steps: list[Callable[[], None]] = []
        for group in by_length(case):
            keys, values = cache_of(inputs, group)
            at_once = None if _one_by_one(case, device) else ChunksAtOnce(keys, values, width=width)
            for block in query_blocks(group, rows_per_query=case.n_heads // heads):
                rows, target = query_rows(q, group, block, kv_heads=heads), results.target(group, block)
                if at_once is None:
                    steps.append(one_by_one(rows, keys, block, target, scale=inputs.scale, width=width))
                else:
                    steps.append(at_once.step(rows, block, target, scale=inputs.scale))

        def call() -> Output:
            for step in steps:
                step()
            return Output(results.out, results.lse)

        return call

    def kernel_extra_flop(self, case: Case, device: torch.device) -> int:
        components, heads = case.attention.components(), case.n_heads
        computed = _computed_pairs(case, device)
        extra = (computed - case.pairs) * heads * sum(component.flop_per_pair for component in components)
        whole_rows = _one_by_one(case, device) and _takes_whole_rows(TORCH_DTYPES[case.dtype], device)
        if isinstance(case.attention, LatentAttention) and whole_rows:
            extra += 2 * computed * heads * case.attention.qk_rope_head_dim  # rope's columns in PV
        return extra

    def kernel_extra_bytes(self, case: Case, device: torch.device) -> int:
        if _one_by_one(case, device):
            return 0  # a chunk's scores and its widened rows stay in cache
        scores = SCORE_PASSES * 4 * _computed_pairs(case, device) * case.n_heads
        return scores + (2 * _widened_bytes(case) if widens(case, device) else 0)

    def workspace_bytes(self, case: Case, device: torch.device) -> int:
        cache = case.cache_read_bytes + 4 * case.query_output_bytes
        if _one_by_one(case, device):
            return cache + 3 * 4 * QUERY_BLOCK_ROWS * 2 * CHUNK_TOKENS
        scores = max(
            (
                len(group.sequences) * block.queries * block.tokens * case.n_heads
                for group in by_length(case)
                for block in query_blocks(group, rows_per_query=case.n_heads // kv_heads(case))
            ),
            default=0,
        )
        return cache + case.cache_read_bytes + 2 * 4 * scores + (_widened_bytes(case) if widens(case, device) else 0)


def _one_by_one(case: Case, device: torch.device) -> bool:
    return case.is_latent and device.type == "cpu"


def _widened_bytes(case: Case) -> int:
    return 4 * case.cache_read_bytes // case.element_bytes


def _chunk_tokens(count: int, tokens: int, device: torch.device) -> int:
    """Tokens of a chunk where all go at once, for `count` sequences x KV heads of `tokens` tokens."""
    wanted = torch.get_num_threads() if device.type == "cpu" else CUDA_PRODUCTS
    return -(-tokens // max(1, min(-(-wanted // count), tokens // LEAST_CHUNK_TOKENS)))


def _computed_pairs(case: Case, device: torch.device) -> int:
    """(query, token) pairs that are multiplied, what is masked and what fills the last chunk included."""
    total = 0
    for group in by_length(case):
        n = _chunk_tokens(len(group.sequences) * kv_heads(case), group.tokens, device)
        for block in query_blocks(group, rows_per_query=case.n_heads // kv_heads(case)):
            tokens = block.tokens if _one_by_one(case, device) else -(-block.tokens // n) * n
            total += len(group.sequences) * block.queries * tokens
    return total


def _takes_whole_rows(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether PV goes through oneDNN's inner product, which takes a matrix only if its rows are contiguous."""
    return product_dtype(dtype, device) is torch.float32 and has_onednn_linear(device)


def one_by_one(
    q: torch.Tensor, cache: torch.Tensor, block: QueryBlock, target: Target, *, scale: float, width: int
) -> Callable[[], None]:
    """Chunk after chunk of each sequence: q [b, M, W] against cache [b, S, W], whose first `width` columns are V."""
    dtype = product_dtype(q.dtype, q.device)
    count, rows = q.shape[:2]
    edges = chunk_edges(block)
    chunks = [(sequence, place) for sequence in range(count) for place in range(len(edges))]
    threads = max(1, min(workers.count(), len(chunks)))
    longest = max(end - start for start, end in edges)
    scratch = [Scratch(rows, longest, cache.shape[2] if cache.dtype is not dtype else 0) for _ in range(threads)]
    peaks = torch.empty(len(edges), count, rows, 1)  # [C, b, M, 1]
    sums = torch.empty(len(edges), count, rows, 1)  # [C, b, M, 1]
    mask = causal_mask(block.queries, q.device) if block.queries > 1 else None
    is_fp32, whole_rows = dtype is torch.float32, _takes_whole_rows(q.dtype, q.device)

    def attend(queries: torch.Tensor, sequence: int, place: int, own: Scratch) -> torch.Tensor:
        """Unnormalised outputs of a chunk [M, W or Z]; its peaks and sums go to their places."""
        start, end = edges[place]
        keys, tokens = cache[sequence, start:end], end - start
        scores = own.scores[: rows * tokens].view(rows, tokens)  # [M, n]
        if keys.dtype is not dtype:
            keys = own.widened[:tokens].copy_(keys)
        if is_fp32 and rows <= FEW_ROWS:
            scores.copy_(times_transposed(keys, queries).t())
        elif is_fp32:
            scores = times_transposed(queries, keys)
        else:
            torch.mul(times_transposed(queries, keys), scale, out=scores)
        if mask is not None and place == len(edges) - 1:
            scores.view(block.queries, -1, tokens)[:, :, tokens - block.queries :] += mask[:, None]
        peak = peaks[place, sequence]
        torch.amax(scores, 1, keepdim=True, out=peak)
        scores.sub_(peak).exp_()
        torch.sum(scores, 1, keepdim=True, out=sums[place, sequence])
        if whole_rows:
            return times_transposed(scores, keys.t())
        return scores.to(dtype) @ keys[:, :width]

    def step() -> None:
        queries = q.to(dtype) * scale if is_fp32 else q
        parts: dict[tuple[int, int], torch.Tensor] = {}
        waiting = iter(chunks)

        def work(thread: int) -> None:
            for sequence, place in waiting:
                parts[place, sequence] = attend(queries[sequence], sequence, place, scratch[thread])

        workers.side_by_side(work, threads)
        stacked = torch.stack([parts[key] for key in sorted(parts)])[..., :width]  # [C b, M, Z]
        target.write(*combine(stacked.unflatten(0, (len(edges), count)), peaks, sums))

    return step


class Scratch:
    """What one thread works in: scores, and widened rows where the cache's format is not that of the products."""

    def __init__(self, rows: int, tokens: int, width: int) -> None:
        self.scores = torch.empty(rows * tokens)
        self.widened = torch.empty(tokens, width)


def chunk_edges(block: QueryBlock) -> tuple[tuple[int, int], ...]:
    """Tokens of the chunks of a block; the last one holds all that is masked and a token that every query attends."""
    edges = list(range(0, block.tokens, CHUNK_TOKENS))
    if len(edges) > 1 and block.tokens - edges[-1] < block.queries:
        edges.pop()
    return tuple(zip(edges, [*edges[1:], block.tokens], strict=True))


def combine(parts: torch.Tensor, peaks: torch.Tensor, sums: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Outputs [..., M, Z] and lse [..., M] from unnormalised [C, ..., M, Z], peaks and sums [C, ..., M, 1], in fp32."""
    peak = peaks.amax(0)  # [..., M, 1]
    weights = (peaks - peak).exp_()  # [C, ..., M, 1]
    total = (sums * weights).sum(0)  # [..., M, 1]
    out = (parts * weights).sum(0) / total
    return out, (peak + total.log()).squeeze(-1)


class ChunksAtOnce:
    """Batched products over all chunks of sequences of one length.

    The cache lies chunk after chunk, [C, X, n, W], so that the first chunks of all X are one block of memory.
    """

    def __init__(self, keys: torch.Tensor, values: torch.Tensor | None, *, width: int) -> None:
        count, tokens, _ = keys.shape
        self.n = _chunk_tokens(count, tokens, keys.device)
        self.keys = self._chunked(keys)
        self.values = self.keys[..., :width] if values is None else self._chunked(values)

    def _chunked(self, rows: torch.Tensor) -> torch.Tensor:
        """[X, S, W] -> [C, X, n, W]"""
        count, tokens, width = rows.shape
        chunks = -(-tokens // self.n)
        padded = rows.new_zeros((count, chunks * self.n, width))
        padded[:, :tokens] = rows
        return padded.view(count, chunks, self.n, width).transpose(0, 1).contiguous()

    def step(self, q: torch.Tensor, block: QueryBlock, target: Target, *, scale: float) -> Callable[[], None]:
        """The call for a block of queries [X, M, W]."""
        chunks = -(-block.tokens // self.n)
        keys, values = (each[:chunks].flatten(0, 1) for each in (self.keys, self.values))  # [C X, n, W or Z]
        count, rows = q.shape[:2]
        dtype = product_dtype(q.dtype, q.device)
        on_cuda = q.device.type == "cuda"
        mask = self._mask(block, chunks, q.device)

        def product(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
            if on_cuda and dtype is not torch.float32:
                return torch.bmm(left, right, out_dtype=torch.float32)
            return torch.bmm(left, right)

        def step() -> None:
            queries = q.to(dtype).expand(chunks, -1, -1, -1).flatten(0, 1)  # [C X, M, W]
            scores = product(queries, keys.to(dtype).transpose(1, 2)).float().mul_(scale)  # [C X, M, n]
            if mask is not None:
                last = scores.view(chunks, count, block.queries, -1, self.n)[-mask.shape[0] :]
                last += mask[:, None, :, None]
            peaks = scores.amax(-1, keepdim=True).clamp_(min=torch.finfo(torch.float32).min)  # [C X, M, 1]
            weights = scores.sub_(peaks).exp_()
            sums = weights.sum(-1, keepdim=True)
            parts = product(weights.to(dtype), values.to(dtype))  # [C X, M, Z]
            shape = (chunks, count, rows, -1)
            target.write(*combine(parts.view(shape).float(), peaks.view(shape), sums.view(shape)))

        return step

    def _mask(self, block: QueryBlock, chunks: int, device: torch.device) -> torch.Tensor | None:
        """Added to the scores of the last chunks, as many as need it [chunks, q, n]; None where all is attended."""
        first_masked = block.tokens - block.queries + 1
        if first_masked == chunks * self.n:
            return None
        start = first_masked // self.n
        tokens = torch.arange(start * self.n, chunks * self.n, device=device)
        attended = first_masked + torch.arange(block.queries, device=device)  # [q]
        mask = torch.zeros(block.queries, tokens.numel(), device=device)
        mask.masked_fill_(tokens[None] >= attended[:, None], -torch.inf)
        return mask.view(block.queries, chunks - start, self.n).transpose(0, 1)
