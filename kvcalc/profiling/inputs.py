"""The tensors of a case: queries, a paged cache, and poison wherever a kernel must not look.

Shape letters: B batch, Q query tokens, H query heads, G KV heads, D head_dim, Dv v_head_dim, R kv_lora_rank,
P qk_rope_head_dim, N qk_nope_head_dim, V v_head_dim of MLA, T page_tokens, S tokens of one sequence.

Pages are dealt to the sequences in shuffled order. Rows after a sequence's last token and pages that belong to no
sequence are NaN, and the unused places of the page table hold an absurd page id: a kernel that reads any of them shows
it. Values are standard normal and scores have a deviation of about 1: W_UK and W_UV are scaled to keep it so in MLA's
expanded form.

Query t of Q attends the first S - Q + 1 + t tokens of its sequence: the last one attends all; none if that is not
positive.
An fp8 cache holds value / scale, one scale a tensor.
"""

from dataclasses import dataclass

import torch

from kvcalc.architecture.attention import LatentAttention
from kvcalc.profiling.case import Case

UNUSED_PAGE = 2_147_480_000
SPARE_PAGES = 2
FP8_SCALE = 0.017
"""Values up to 7.6 deviations fit below fp8_e4m3's largest number, 448."""

TORCH_DTYPES = {
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "fp8_e4m3": torch.float8_e4m3fn,
}
_FILL_ELEMENTS = 1 << 26


@dataclass(frozen=True, kw_only=True, slots=True)
class LatentInputs:
    """Inputs of MLA.

    q            queries of the expanded form [B, Q, H, N+P], position-free part first
    q_absorbed   the same queries in latent space [B, Q, H, R+P]: q's first N times W_UK, then q's last P
    cache_pages  [pages, T, R+P], latent first, rope last
    page_table   int32 [B, most pages]
    seq_lens     int32 [B]
    w_uk, w_uv   [H, N, R] and [H, R, V]: k = [W_UK c, k_rope], v = W_UV c
    scale        factor of the scores, 1 / sqrt(N + P)
    kv_scale     what an fp8 cache's numbers are multiplied with; 1.0 otherwise
    """

    q: torch.Tensor
    q_absorbed: torch.Tensor
    cache_pages: torch.Tensor
    page_table: torch.Tensor
    seq_lens: torch.Tensor
    w_uk: torch.Tensor
    w_uv: torch.Tensor
    scale: float
    kv_scale: float


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupedInputs:
    """Inputs of MHA, GQA and MQA.

    q           [B, Q, H, D]; heads h of KV head g are g H/G to (g+1) H/G - 1
    k_pages     [pages, T, G, D]
    v_pages     [pages, T, G, Dv]
    page_table  int32 [B, most pages]
    seq_lens    int32 [B]
    scale       factor of the scores, 1 / sqrt(D)
    k_scale, v_scale  what an fp8 cache's numbers are multiplied with; 1.0 otherwise
    """

    q: torch.Tensor
    k_pages: torch.Tensor
    v_pages: torch.Tensor
    page_table: torch.Tensor
    seq_lens: torch.Tensor
    scale: float
    k_scale: float
    v_scale: float


Inputs = LatentInputs | GroupedInputs


def make_inputs(case: Case, device: torch.device | str = "cpu", *, seed: int = 0) -> Inputs:
    """The tensors of a case on a device, the same for the same case, device kind and seed."""
    device = torch.device(device)
    generator = torch.Generator(device).manual_seed(seed)
    dtype = TORCH_DTYPES[case.dtype]

    def normal(*shape: int, deviation: float = 1.0) -> torch.Tensor:
        values = torch.randn(shape, generator=generator, device=device, dtype=torch.float32)
        return values.mul_(deviation).to(dtype)

    def pages(*shape: int) -> torch.Tensor:
        return _poisoned_pages(case, table, total, shape, generator)

    table, total = _page_table(case, device, seed)
    lengths = torch.tensor(case.seq_lens, dtype=torch.int32, device=device)  # [B]
    scale_of_cache = FP8_SCALE if case.kv_dtype == "fp8_e4m3" else 1.0
    attention, rows = case.attention, (case.batch, case.query_tokens)
    if not isinstance(attention, LatentAttention):
        return GroupedInputs(
            q=normal(*rows, attention.n_heads, attention.head_dim),  # [B, Q, H, D]
            k_pages=pages(attention.n_kv_heads, attention.head_dim),  # [pages, T, G, D]
            v_pages=pages(attention.n_kv_heads, attention.v_head_dim),  # [pages, T, G, Dv]
            page_table=table,
            seq_lens=lengths,
            scale=attention.head_dim**-0.5,
            k_scale=scale_of_cache,
            v_scale=scale_of_cache,
        )
    heads, rank = attention.n_heads, attention.kv_lora_rank
    nope, rope = attention.qk_nope_head_dim, attention.qk_rope_head_dim
    q = normal(*rows, heads, nope + rope)  # [B, Q, H, N+P]
    w_uk = normal(heads, nope, rank, deviation=rank**-0.5)  # [H, N, R]
    w_uv = normal(heads, rank, attention.v_head_dim, deviation=rank**-0.5)  # [H, R, V]
    return LatentInputs(
        q=q,
        q_absorbed=absorb(q, w_uk),
        cache_pages=pages(rank + rope),  # [pages, T, R+P]
        page_table=table,
        seq_lens=lengths,
        w_uk=w_uk,
        w_uv=w_uv,
        scale=(nope + rope) ** -0.5,
        kv_scale=scale_of_cache,
    )


def absorb(q: torch.Tensor, w_uk: torch.Tensor) -> torch.Tensor:
    """Queries [B, Q, H, N+P] moved into latent space [B, Q, H, R+P] by W_UK [H, N, R], rounded once."""
    nope = w_uk.shape[1]
    latent = torch.einsum("bqhn,hnr->bqhr", q[..., :nope].float(), w_uk.float())  # [B, Q, H, R]
    return torch.cat([latent.to(q.dtype), q[..., nope:]], dim=-1)


def input_bytes(case: Case) -> int:
    """Device memory that the tensors of a case take, for the fit check (poison and spare pages included)."""
    cache = (sum(case.pages) + SPARE_PAGES) * case.page_tokens * case.cache_bytes_per_token
    attention, rows, weights = case.attention, case.batch * case.query_tokens, 0
    if isinstance(attention, LatentAttention):
        nope, rank = attention.qk_nope_head_dim, attention.kv_lora_rank
        query = nope + rank + 2 * attention.qk_rope_head_dim
        weights = attention.n_heads * rank * (nope + attention.v_head_dim)
    else:
        query = attention.head_dim
    return cache + (rows * attention.n_heads * query + weights) * case.element_bytes


def gather(pages: torch.Tensor, page_table: torch.Tensor, sequence: int, tokens: int) -> torch.Tensor:
    """The first `tokens` rows of a sequence, contiguous: pages [pages, T, ...] -> [tokens, ...]."""
    needed = -(-tokens // pages.shape[1])
    rows = pages[page_table[sequence, :needed].long()]  # [needed, T, ...]
    return rows.flatten(0, 1)[:tokens].contiguous()


def _page_table(case: Case, device: torch.device, seed: int) -> tuple[torch.Tensor, int]:
    """int32 [B, most pages] with shuffled page ids, and the number of pages. Dealt on the CPU: the same everywhere."""
    used, most = sum(case.pages), max(1, *case.pages)
    order = torch.randperm(used + SPARE_PAGES, generator=torch.Generator().manual_seed(seed))
    table = torch.full((case.batch, most), UNUSED_PAGE, dtype=torch.int32)
    dealt = 0
    for sequence, count in enumerate(case.pages):
        table[sequence, :count] = order[dealt : dealt + count].int()
        dealt += count
    return table.to(device), used + SPARE_PAGES


def _poisoned_pages(
    case: Case, table: torch.Tensor, total: int, shape: tuple[int, ...], generator: torch.Generator
) -> torch.Tensor:
    """Pages [total, T, *shape] of normal values, NaN in every row that no sequence has."""
    dtype, device = TORCH_DTYPES[case.kv_dtype], table.device
    is_fp8 = case.kv_dtype == "fp8_e4m3"
    pages = torch.empty((total, case.page_tokens, *shape), dtype=dtype, device=device)
    at_once = max(1, _FILL_ELEMENTS // pages[0].numel())
    for start in range(0, total, at_once):
        part = pages[start : start + at_once]
        if dtype is torch.float32:
            part.normal_(generator=generator)
        else:
            values = torch.randn(part.shape, generator=generator, device=device, dtype=torch.float32)
            part.copy_(values.div_(FP8_SCALE) if is_fp8 else values)
    nan = torch.full((1,), torch.nan, device=device).to(
        dtype
    )  # [1]; fp8 tensors can't be filled or indexed with a number
    used = torch.zeros(total, dtype=torch.bool)
    raw, raw_nan = (pages.view(torch.uint8), nan.view(torch.uint8)) if is_fp8 else (pages, nan)
    dealt = table.cpu()
    for sequence, tokens in enumerate(case.seq_lens):
        count = case.pages[sequence]
        used[dealt[sequence, :count].long()] = True
        if tokens % case.page_tokens:
            raw[int(dealt[sequence, count - 1]), tokens % case.page_tokens :] = raw_nan
    raw[(~used).to(device)] = raw_nan
    return pages
