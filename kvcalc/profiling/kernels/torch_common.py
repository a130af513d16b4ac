"""What the torch kernels share: sequences of one length together, queries in blocks, contiguous caches, results.

Shape letters: B batch, b sequences of one length, Q query tokens, q query tokens of a block, H query heads, G KV heads,
h = H/G, X = b G, M = q h rows, S tokens of a sequence, W width of a key row, Z width of an output row.

Torch's operators know no page table. Each kernel gathers the pages of a sequence into a contiguous cache of its own
format in `prepare`: that is the format that it is timed on, and it moves as many bytes as the paged one.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from kvcalc.architecture.attention import GroupedAttention
from kvcalc.profiling.case import Case
from kvcalc.profiling.inputs import TORCH_DTYPES, Inputs, LatentInputs, gather
from kvcalc.profiling.kernels.base import attends_everything
from kvcalc.profiling.kernels.products import product_dtype

QUERY_BLOCK_ROWS = 512


def torch_version() -> str:
    return str(torch.__version__)


def why_not(case: Case) -> str | None:
    """Why torch's operators can't run the case, or None."""
    if case.kv_dtype != case.dtype:
        return f"torch multiplies like formats only, not {case.dtype} queries with a {case.kv_dtype} cache"
    return attends_everything(case)


def kv_heads(case: Case) -> int:
    """KV heads of the cache as the two products see it; MLA's latent is one."""
    return case.attention.n_kv_heads if isinstance(case.attention, GroupedAttention) else 1


def widens(case: Case, device: torch.device) -> bool:
    """Whether products are computed in fp32 because the device has no units for the case's format."""
    dtype = TORCH_DTYPES[case.dtype]
    return product_dtype(dtype, device) is not dtype


@dataclass(frozen=True, kw_only=True, slots=True)
class SameLength:
    """Sequences of one length, which are computed together.

    sequences  their places in the batch
    tokens     their length S, never 0
    queries    the last queries, which attend something: min(Q, S); those before them attend nothing
    """

    sequences: tuple[int, ...]
    tokens: int
    queries: int


def by_length(case: Case) -> tuple[SameLength, ...]:
    """The case's sequences, those of equal length together; empty ones are left out."""
    groups: dict[int, list[int]] = {}
    for sequence, tokens in enumerate(case.seq_lens):
        if tokens:
            groups.setdefault(tokens, []).append(sequence)
    return tuple(
        SameLength(sequences=tuple(sequences), tokens=tokens, queries=min(tokens, case.query_tokens))
        for tokens, sequences in groups.items()
    )


@dataclass(frozen=True, slots=True)
class QueryBlock:
    """Live queries start .. end-1 of a sequence, and the tokens that the last of them attends."""

    start: int
    end: int
    tokens: int

    @property
    def queries(self) -> int:
        return self.end - self.start


def query_blocks(group: SameLength, *, rows_per_query: int) -> Iterator[QueryBlock]:
    """Blocks of queries that are multiplied at once, some QUERY_BLOCK_ROWS rows; tokens after them are left out."""
    size = max(1, QUERY_BLOCK_ROWS // rows_per_query)
    for start in range(0, group.queries, size):
        end = min(group.queries, start + size)
        yield QueryBlock(start, end, group.tokens - group.queries + end)


def masked_pairs(case: Case, *, rows_per_query: int) -> int:
    """(query, token) pairs that kernels in query blocks compute and then mask."""
    return sum(
        len(group.sequences) * block.queries * (block.queries - 1) // 2
        for group in by_length(case)
        for block in query_blocks(group, rows_per_query=rows_per_query)
    )


def causal_mask(queries: int, device: torch.device) -> torch.Tensor:
    """What is added to the scores of a block's last `queries` tokens: 0 where attended, else -inf [q, q]."""
    return torch.full((queries, queries), -torch.inf, device=device).triu_(1)


def cache_of(inputs: Inputs, group: SameLength) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Keys [X, S, W] and values [X, S, Z] of a group, contiguous; MLA's values are the first part of its keys: None."""
    if isinstance(inputs, LatentInputs):
        rows = [gather(inputs.cache_pages, inputs.page_table, each, group.tokens) for each in group.sequences]
        return torch.stack(rows), None  # [b, S, R+P]
    both = []
    for pages in (inputs.k_pages, inputs.v_pages):
        rows = [gather(pages, inputs.page_table, each, group.tokens) for each in group.sequences]
        both.append(torch.stack([row.transpose(0, 1) for row in rows]).flatten(0, 1))  # [b, S, G, D] -> [X, S, D]
    return both[0], both[1]


def query_rows(q: torch.Tensor, group: SameLength, block: QueryBlock, *, kv_heads: int) -> torch.Tensor:
    """Queries [B, Q, H, W] of a block as rows [X, M, W] of their KV heads."""
    first = q.shape[1] - group.queries + block.start
    rows = q[list(group.sequences), first : first + block.queries]  # [b, q, H, W]
    rows = rows.unflatten(2, (kv_heads, -1)).transpose(1, 2)  # [b, G, q, h, W]
    return rows.reshape(rows.shape[0] * kv_heads, -1, q.shape[-1])


class Results:
    """Outputs and lse of a case: 0 and -inf where nothing is attended; calls write the rest."""

    def __init__(self, case: Case, *, width: int, kv_heads: int, device: torch.device) -> None:
        shape = (case.batch, case.query_tokens, case.n_heads)
        self.out = torch.zeros((*shape, width), dtype=TORCH_DTYPES[case.dtype], device=device)  # [B, Q, H, Z]
        self.lse = torch.full(shape, -torch.inf, device=device)  # [B, Q, H]
        self._kv_heads = kv_heads

    def target(self, group: SameLength, block: QueryBlock) -> "Target":
        """Where the rows of a block go: views of runs of neighbouring sequences."""
        places, first = [], self.out.shape[1] - group.queries + block.start
        for start, end in _runs(group.sequences):
            at = slice(
                group.sequences.index(start) * self._kv_heads, (group.sequences.index(end - 1) + 1) * self._kv_heads
            )
            views = [
                whole[start:end, first : first + block.queries].unflatten(2, (self._kv_heads, -1)).transpose(1, 2)
                for whole in (self.out, self.lse)
            ]
            places.append((at, views[0], views[1]))  # [run, G, q, h, Z] and [run, G, q, h]
        return Target(tuple(places))


@dataclass(frozen=True, slots=True)
class Target:
    """Places for the rows of a query block."""

    places: tuple[tuple[slice, torch.Tensor, torch.Tensor], ...]

    def write(self, out: torch.Tensor, lse: torch.Tensor | None) -> None:
        """Outputs [X, M, Z] and, where there is one, lse [X, M], in any format."""
        for at, out_view, lse_view in self.places:
            out_view.copy_(out[at].reshape(out_view.shape))
            if lse is not None:
                lse_view.copy_(lse[at].reshape(lse_view.shape))


def _runs(sequences: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    start = sequences[0]
    for this, following in zip(sequences, (*sequences[1:], -1), strict=True):
        if following != this + 1:
            yield start, this + 1
            start = following
