"""triton-gqa: our paged split-KV decode kernel for MHA, GQA and MQA, built like triton-mla so that the two compare.

One program holds BLOCK_M rows of one KV head (query tokens x the heads of its group, padded to 16) and walks the blocks
of one split. Row blocks are the fastest grid axis, KV heads the next: row blocks that share K and V tiles run side by
side. K and V may differ in width; a width that is no power of two is padded in registers and shared memory, never read.
As in triton-mla, page ids are fetched one block ahead, and only the last blocks of a sequence mask their scores, under
a branch.

Shape letters: B batch, S splits, M rows of a tile, N tokens of a block, G KV heads, K head_dim, V v_head_dim,
A rows of a sequence (query tokens x all query heads).

What it takes on sm_90, compiled ahead of time by triton 3.6.0 (others: benchmarks/results/triton_resources.md;
reproduce with `python benchmarks/triton_resources.py`):

    rows  K/V widths  cache  rows x tokens  stages, warps  shared memory  registers  spills  programs an SM
       8     128/128  bf16      16 x 64          3, 4             71,680         96       0               3
       8     128/128  fp8       16 x 64          3, 4             55,296        134       0               3
       1     192/128  bf16      16 x 64          3, 4            108,544        124       0               2
      64     128/128  bf16      64 x 64          3, 4            114,688        185       0               2
"""

# ruff: noqa: ANN001, ANN201, ANN202, N803, N806  (arguments of kernels are typed by how they are called)
# mypy: disable-error-code="no-untyped-def, untyped-decorator"
from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl

from kvcalc.architecture.attention import GroupedAttention
from kvcalc.profiling.case import GROUPED, Case
from kvcalc.profiling.inputs import GroupedInputs, Inputs
from kvcalc.profiling.kernels import triton_common as common
from kvcalc.profiling.kernels.base import Output, attends_everything
from kvcalc.profiling.kernels.triton_common import LOG2_E, operand, pages_of, slots_of_block, softmax_step, store_rows
from kvcalc.profiling.kernels.triton_schedule import (
    MIN_ROWS,
    SHARED_MEMORY_BYTES,
    Schedule,
    Tile,
    ceil_div,
    partial_output_bytes,
    plan,
    power_of_two,
)

MAX_WIDTH = 256
OTHER_SHARED_BYTES = 8_192


@triton.jit
def _load(pages_ptr, slots, columns, live, STRIDE: tl.constexpr, WIDTH: tl.constexpr, WIDTH_PAD: tl.constexpr):
    """A [N, WIDTH_PAD] tile of one KV head, zeros where not live and beyond WIDTH."""
    mask = live[:, None]
    if WIDTH_PAD != WIDTH:
        mask = mask & (columns < WIDTH)[None, :]
    return tl.load(pages_ptr + slots[:, None] * STRIDE + columns[None, :], mask=mask, other=0)


@triton.jit(do_not_specialize=["blocks_per_split", "max_splits"])
def gqa_kernel(
    q_ptr,  # [B, A, K]
    k_ptr,  # [pages, PAGE, G, K]
    v_ptr,  # [pages, PAGE, G, V]
    table_ptr,  # int32 [B, table_stride]
    lens_ptr,  # int32 [B]
    out_ptr,  # [B, A, V]
    lse_ptr,  # fp32 [B, A]
    part_ptr,  # fp32 [B, S, A, V]
    part_lse_ptr,  # fp32 [B, S, A], base 2
    scale,  # of the scores, log2(e) and K's scale included
    out_scale,  # of the output: V's scale
    table_stride,
    blocks_per_split,
    max_splits,
    HEADS: tl.constexpr,
    G: tl.constexpr,
    Q_TOKENS: tl.constexpr,
    K: tl.constexpr,
    K_PAD: tl.constexpr,
    V: tl.constexpr,
    V_PAD: tl.constexpr,
    PAGE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    STAGES: tl.constexpr,
    SPLIT: tl.constexpr,
    DOT: tl.constexpr,
    DEQUANT: tl.constexpr,
):
    A: tl.constexpr = Q_TOKENS * HEADS
    GROUP: tl.constexpr = HEADS // G
    ROW_BLOCKS: tl.constexpr = (Q_TOKENS * GROUP + BLOCK_M - 1) // BLOCK_M
    split, sequence = tl.program_id(1), tl.program_id(2)
    row_block, kv_head = tl.program_id(0) % ROW_BLOCKS, tl.program_id(0) // ROW_BLOCKS
    length = tl.load(lens_ptr + sequence)
    n_blocks = tl.cdiv(length, BLOCK_N)
    n_splits = tl.maximum(tl.cdiv(n_blocks, blocks_per_split), 1)
    if split >= n_splits:
        return
    first = split * blocks_per_split
    last = tl.minimum(first + blocks_per_split, n_blocks)
    open_blocks = tl.maximum(length - (Q_TOKENS - 1), 0) // BLOCK_N  # blocks that every query attends whole

    group_rows = row_block * BLOCK_M + tl.arange(0, BLOCK_M)  # [M]
    valid = group_rows < Q_TOKENS * GROUP
    query_token = group_rows // GROUP  # [M]
    rows = query_token * HEADS + kv_head * GROUP + group_rows % GROUP  # [M]
    tokens = tl.arange(0, BLOCK_N)  # [N]
    k_columns, v_columns = tl.arange(0, K_PAD), tl.arange(0, V_PAD)
    q = _load(q_ptr + sequence.to(tl.int64) * A * K, rows, k_columns, valid, K, K, K_PAD).to(DOT)  # [M, K]

    top = tl.full([BLOCK_M], -float("inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, V_PAD], tl.float32)
    table = table_ptr + sequence.to(tl.int64) * table_stride
    next_page = pages_of(table, tl.minimum(first, tl.maximum(last - 1, 0)), tokens, length, PAGE, BLOCK_N)
    for block in tl.range(first, last, num_stages=STAGES):
        page = next_page.to(tl.int64)
        start = block * BLOCK_N
        live = tokens < length - start  # [N]
        slots = slots_of_block(page, start, tokens, PAGE, BLOCK_N)  # [N]
        k = _load(k_ptr + kv_head * K, slots, k_columns, live, G * K, K, K_PAD)  # [N, K]
        v = _load(v_ptr + kv_head * V, slots, v_columns, live, G * V, V, V_PAD)  # [N, V]
        next_page = pages_of(table, tl.minimum(block + 1, last - 1), tokens, length, PAGE, BLOCK_N)

        scores = tl.dot(q, tl.trans(operand(k, DOT, DEQUANT)), input_precision="ieee")  # [M, N]
        if block >= open_blocks:
            visible = length - (Q_TOKENS - 1) + query_token - start  # [M]
            scores = tl.where(tokens[None, :] < visible[:, None], scores, -float("inf"))
        weights, decay, top, total = softmax_step(scores, top, total, scale)
        v = operand(v, DOT, DEQUANT)
        acc = tl.dot(weights.to(DOT), v, acc=acc * decay[:, None], input_precision="ieee")  # [M, V]

    store_rows(
        acc, top, total, out_scale, rows, valid, sequence, split, max_splits,
        out_ptr, lse_ptr, part_ptr, part_lse_ptr, A, V, V_PAD, SPLIT,
    )  # fmt: skip


def tile_for(rows: int, *, head_dim: int, v_head_dim: int, capability: tuple[int, int], is_fp8: bool) -> Tile:
    """Tile for so many rows a KV head on a GPU of that compute capability. Raises KeyError for an unknown one.

    64 tokens where two programs of them share an SM, else fewer. Two stages of 16-bit K and V and the queries fill
    shared memory; an fp8 cache takes as much, two stages of bytes and the 16-bit tiles that they become.
    """
    limit = SHARED_MEMORY_BYTES[capability]
    width = _padded(head_dim) + _padded(v_head_dim)
    large = 32 if is_fp8 and capability[0] != 9 else 64
    block_rows = MIN_ROWS if rows <= MIN_ROWS else large
    for tokens in (64, 32, 16):
        shared = 4 * tokens * width + 2 * block_rows * _padded(head_dim) + OTHER_SHARED_BYTES
        if shared <= limit // 2 or (tokens == 16 and shared <= limit):
            break
    warps = 8 if block_rows > MIN_ROWS and _padded(v_head_dim) > 128 else 4
    return Tile(rows=block_rows, tokens=tokens, stages=3, warps=warps, programs_per_sm=2 if warps == 4 else 1)


def constants(
    *,
    heads: int,
    kv_heads: int,
    q_tokens: int,
    head_dim: int,
    v_head_dim: int,
    page_tokens: int,
    tile: Tile,
    is_split: bool,
    dot: Any,
    dequant: int,
) -> dict[str, Any]:
    """The kernel's compile-time arguments, for a launch and for a compile ahead of time alike."""
    return {
        "HEADS": heads,
        "G": kv_heads,
        "Q_TOKENS": q_tokens,
        "K": head_dim,
        "K_PAD": _padded(head_dim),
        "V": v_head_dim,
        "V_PAD": _padded(v_head_dim),
        "PAGE": page_tokens,
        "BLOCK_M": tile.rows,
        "BLOCK_N": tile.tokens,
        "STAGES": tile.stages,
        "SPLIT": is_split,
        "DOT": dot,
        "DEQUANT": dequant,
    }


def gqa_decode(
    q: torch.Tensor,
    k_pages: torch.Tensor,
    v_pages: torch.Tensor,
    page_table: torch.Tensor,
    seq_lens: torch.Tensor,
    *,
    scale: float,
    k_scale: float,
    v_scale: float,
    tile: Tile,
    schedule: Schedule,
) -> Callable[[], Output]:
    """The launches for q [B, Q, H, K], k_pages [pages, PAGE, G, K], v_pages [pages, PAGE, G, V], page_table [B, most].

    page_table and seq_lens [B] are int32. The callable writes and returns the same out [B, Q, H, V] and lse [B, Q, H]
    each time.
    """
    batch, q_tokens, heads, head_dim = q.shape
    _, page_tokens, kv_heads, v_head_dim = v_pages.shape
    if not (q.is_contiguous() and k_pages.is_contiguous() and v_pages.is_contiguous() and page_table.stride(1) == 1):
        raise ValueError("q, k_pages, v_pages and the rows of page_table must be contiguous")
    out = q.new_empty((batch, q_tokens, heads, v_head_dim))
    lse = q.new_empty((batch, q_tokens, heads), dtype=torch.float32)
    partials = common.new_partials(out, schedule)
    grid = (ceil_div(q_tokens * heads // kv_heads, tile.rows) * kv_heads, schedule.max_splits, batch)
    k_cache, v_cache = common.as_bytes(k_pages), common.as_bytes(v_pages)
    compiled_for = constants(
        heads=heads,
        kv_heads=kv_heads,
        q_tokens=q_tokens,
        head_dim=head_dim,
        v_head_dim=v_head_dim,
        page_tokens=page_tokens,
        tile=tile,
        is_split=schedule.max_splits > 1,
        dot=common.dot_dtype(q.dtype),
        dequant=common.dequantisation(k_pages.dtype, q.dtype),
    )

    def run() -> Output:
        gqa_kernel[grid](
            q,
            k_cache,
            v_cache,
            page_table,
            seq_lens,
            out,
            lse,
            *partials,
            scale * k_scale * LOG2_E,
            v_scale,
            page_table.stride(0),
            schedule.blocks_per_split,
            schedule.max_splits,
            **compiled_for,
            num_warps=tile.warps,
            num_stages=tile.stages,
        )
        if schedule.max_splits > 1:
            common.launch_combine(partials, seq_lens, out, lse, schedule=schedule, block_tokens=tile.tokens)
        return Output(out, lse)

    return run


class TritonGqa:
    """The kernel as the profiler sees it."""

    name = "triton-gqa"

    def version(self) -> str | None:
        return str(triton.__version__)

    def form(self, case: Case) -> str:
        return GROUPED

    def supports(self, case: Case, device: torch.device) -> str | None:
        if case.is_latent:
            return f"computes MHA, GQA and MQA, not {case.attention.label}"
        for name in ("head_dim", "v_head_dim"):
            width = getattr(_attention(case), name)
            if width > MAX_WIDTH:
                return f"{name} {width} is more than {MAX_WIDTH}"
        return attends_everything(case) or common.why_not(case, device)

    def prepare(self, case: Case, inputs: Inputs) -> Callable[[], Output]:
        assert isinstance(inputs, GroupedInputs)
        device = inputs.q.device
        run = gqa_decode(
            inputs.q,
            inputs.k_pages,
            inputs.v_pages,
            inputs.page_table,
            inputs.seq_lens,
            scale=inputs.scale,
            k_scale=inputs.k_scale,
            v_scale=inputs.v_scale,
            tile=_tile(case, device),
            schedule=_schedule(case, device),
        )
        run()
        return run

    def kernel_extra_flop(self, case: Case, device: torch.device) -> int:
        """Padded rows and widths, and the last block's tokens after the end."""
        tile, attention = _tile(case, device), _attention(case)
        width = _padded(attention.head_dim) + _padded(attention.v_head_dim)
        rows = ceil_div(_rows(case), tile.rows) * tile.rows * attention.n_kv_heads
        tokens = sum(ceil_div(tokens, tile.tokens) * tile.tokens for tokens in case.seq_lens)
        return 2 * rows * tokens * width - case.flop(GROUPED)

    def kernel_extra_bytes(self, case: Case, device: torch.device) -> int:
        """Partial outputs, written once and read once."""
        return partial_output_bytes(
            case.seq_lens,
            schedule=_schedule(case, device),
            block_tokens=_tile(case, device).tokens,
            rows=case.query_tokens * case.n_heads,
            width=_attention(case).v_head_dim,
        )

    def workspace_bytes(self, case: Case, device: torch.device) -> int:
        """Outputs, their lse, and partial outputs."""
        rows, width = case.batch * case.query_tokens * case.n_heads, _attention(case).v_head_dim
        return common.workspace_bytes(case, rows=rows, width=width, schedule=_schedule(case, device))


def _padded(width: int) -> int:
    return max(MIN_ROWS, power_of_two(width))


def _attention(case: Case) -> GroupedAttention:
    assert isinstance(case.attention, GroupedAttention)
    return case.attention


def _rows(case: Case) -> int:
    return case.query_tokens * case.n_heads // _attention(case).n_kv_heads


def _tile(case: Case, device: torch.device) -> Tile:
    return tile_for(
        _rows(case),
        head_dim=_attention(case).head_dim,
        v_head_dim=_attention(case).v_head_dim,
        capability=common.capability_of(device),
        is_fp8=case.kv_dtype == "fp8_e4m3",
    )


def _schedule(case: Case, device: torch.device) -> Schedule:
    tile, attention = _tile(case, device), _attention(case)
    rows = _rows(case)
    return plan(
        case.seq_lens,
        programs_per_split=ceil_div(rows, tile.rows) * attention.n_kv_heads,
        slots=common.slots_of(device, tile),
        tile=tile,
        partial_bytes=4 * min(rows, tile.rows) * attention.v_head_dim,
        bytes_per_token=case.cache_bytes_per_token // attention.n_kv_heads,
    )
