"""triton-mla: our paged split-KV MLA decode kernel, in absorbed form.

One program holds BLOCK_M rows (query tokens x heads: all heads attend the same latent) and walks the blocks of a split.
A latent tile is loaded once and is K in the first product and V in the second. 512+64 is no power of two: the rope part
is a tile and a product of its own, added to the same scores. Row blocks are the fastest grid axis, so that the two of
128 heads run side by side and share each tile through L2. Page ids are fetched one block ahead: the loads of a tile
never wait for them.

Shape letters: B batch, S splits, M rows of a tile, N tokens of a block, R kv_lora_rank, P rope width, D = R + P,
A rows of a sequence (query tokens x heads).

What it takes on sm_90, compiled ahead of time by triton 3.6.0 for 512+64 (all GPUs and GQA:
benchmarks/results/triton_resources.md; reproduce with `python benchmarks/triton_resources.py`):

    heads  cache  rows x tokens  stages, warps  shared memory  registers  spills  programs an SM  products a block
       16  bf16      16 x 32          3, 8             93,184        101       0               2  52 mma.sync a warp
       16  fp8       16 x 32          3, 8             92,160        125       0               2  52 mma.sync a warp
      128  bf16      64 x 64          2, 8            229,376        252       0               1  40 wgmma
      128  fp8       64 x 64          3, 8            221,184        250       0               1  40 wgmma

Decisions that compiles of this kernel and of variants of it bear out (numbers: sm_90, 64 rows, triton 3.6.0):
    tail      Loads of all blocks are masked, scores only in a sequence's last blocks, under a branch. Peeling the last
              blocks off the loop instead makes the fp32 accumulator (128 registers a thread) cross from one loop to
              the next and spills 440 to 560 bytes.
    branch    That branch also cuts the def-use chains from the score products to the output product. Along an unbroken
              chain the compiler puts all 8 warps on the rows of the first product, 128 rows where there are 64, and
              both warp groups compute the same scores: 76 wgmma a block, against 40 (32 latent, 4 rope, 4 output)
              with the branch. For the same reason the two score products are added after it, not chained.
    stages    2 at 64 rows (two tiles in shared memory, and the queries), 3 at 16 rows: two programs share an SM, and
              each has one tile in flight while it computes on another.
    fp8       Bytes go through registers into 16-bit tiles; the scale multiplies scores and output.
    TMA       Not used. It needs a page that holds whole tiles, saves 16 registers (238 to 222, without the tail), and
              fills a last tile with whatever the page holds after the last token: that has to be zeroed for V, which
              takes the detour through registers.
"""

# ruff: noqa: ANN001, ANN201, ANN202, N803, N806  (arguments of kernels are typed by how they are called)
# mypy: disable-error-code="no-untyped-def, untyped-decorator"
from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl

from kvcalc.architecture.attention import LatentAttention
from kvcalc.profiling.case import ABSORBED, Case
from kvcalc.profiling.inputs import Inputs, LatentInputs
from kvcalc.profiling.kernels import triton_common as common
from kvcalc.profiling.kernels.base import Output
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

MAX_RANK = 512


@triton.jit
def _load(base, tokens, columns, live, D: tl.constexpr, WIDTH: tl.constexpr, WIDTH_PAD: tl.constexpr):
    """A [N, WIDTH_PAD] tile of rows `base` + token, zeros where not live and beyond WIDTH."""
    mask = live[:, None]
    if WIDTH_PAD != WIDTH:
        mask = mask & (columns < WIDTH)[None, :]
    return tl.load(base + tokens[:, None] * D + columns[None, :], mask=mask, other=0)


@triton.jit(do_not_specialize=["blocks_per_split", "max_splits"])
def mla_kernel(
    q_ptr,  # [B, A, D]
    pages_ptr,  # [pages, PAGE, D]
    table_ptr,  # int32 [B, table_stride]
    lens_ptr,  # int32 [B]
    out_ptr,  # [B, A, R]
    lse_ptr,  # fp32 [B, A]
    part_ptr,  # fp32 [B, S, A, R]
    part_lse_ptr,  # fp32 [B, S, A], base 2
    scale,  # of the scores, log2(e) and the cache's scale included
    out_scale,  # of the output: the cache's scale
    table_stride,
    blocks_per_split,
    max_splits,
    HEADS: tl.constexpr,
    Q_TOKENS: tl.constexpr,
    R: tl.constexpr,
    P: tl.constexpr,
    P_PAD: tl.constexpr,
    PAGE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    STAGES: tl.constexpr,
    SPLIT: tl.constexpr,
    DOT: tl.constexpr,
    DEQUANT: tl.constexpr,
):
    A: tl.constexpr = Q_TOKENS * HEADS
    D: tl.constexpr = R + P
    row_block, split, sequence = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    length = tl.load(lens_ptr + sequence)
    n_blocks = tl.cdiv(length, BLOCK_N)
    n_splits = tl.maximum(tl.cdiv(n_blocks, blocks_per_split), 1)
    if split >= n_splits:
        return
    first = split * blocks_per_split
    last = tl.minimum(first + blocks_per_split, n_blocks)
    open_blocks = tl.maximum(length - (Q_TOKENS - 1), 0) // BLOCK_N  # blocks that every query attends whole

    rows = row_block * BLOCK_M + tl.arange(0, BLOCK_M)  # [M]
    valid = rows < A
    tokens = tl.arange(0, BLOCK_N)  # [N]
    latent, rope = tl.arange(0, R), tl.arange(0, P_PAD)
    queries = q_ptr + sequence.to(tl.int64) * A * D
    q = _load(queries, rows, latent, valid, D, R, R).to(DOT)  # [M, R]
    if P > 0:
        q_rope = _load(queries + R, rows, rope, valid, D, P, P_PAD).to(DOT)  # [M, P]

    top = tl.full([BLOCK_M], -float("inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, R], tl.float32)
    table = table_ptr + sequence.to(tl.int64) * table_stride
    next_page = pages_of(table, tl.minimum(first, tl.maximum(last - 1, 0)), tokens, length, PAGE, BLOCK_N)
    for block in tl.range(first, last, num_stages=STAGES):
        page = next_page.to(tl.int64)
        start = block * BLOCK_N
        live = tokens < length - start  # [N]
        slots = slots_of_block(page, start, tokens, PAGE, BLOCK_N)  # [N]
        k = _load(pages_ptr, slots, latent, live, D, R, R)  # [N, R]
        if P > 0:
            k_rope = _load(pages_ptr + R, slots, rope, live, D, P, P_PAD)  # [N, P]
        next_page = pages_of(table, tl.minimum(block + 1, last - 1), tokens, length, PAGE, BLOCK_N)

        k = operand(k, DOT, DEQUANT)
        if P > 0:
            k_rope = operand(k_rope, DOT, DEQUANT)
            rope_scores = tl.dot(q_rope, tl.trans(k_rope), input_precision="ieee")  # [M, N]
        scores = tl.dot(q, tl.trans(k), input_precision="ieee")  # [M, N]
        if block >= open_blocks:
            visible = length - (Q_TOKENS - 1) + rows // HEADS - start  # [M]
            mask = tokens[None, :] < visible[:, None]
            scores = tl.where(mask, scores, -float("inf"))
            if P > 0:
                rope_scores = tl.where(mask, rope_scores, 0.0)
        if P > 0:
            scores += rope_scores
        weights, decay, top, total = softmax_step(scores, top, total, scale)
        acc = tl.dot(weights.to(DOT), k, acc=acc * decay[:, None], input_precision="ieee")  # [M, R]

    store_rows(
        acc, top, total, out_scale, rows, valid, sequence, split, max_splits,
        out_ptr, lse_ptr, part_ptr, part_lse_ptr, A, R, R, SPLIT,
    )  # fmt: skip


def _tile_of(rows: int, tokens: int, stages: int, warps: int, *, programs_per_sm: int = 1) -> Tile:
    return Tile(rows=rows, tokens=tokens, stages=stages, warps=warps, programs_per_sm=programs_per_sm)


_HOPPER, _HOPPER_FP8 = _tile_of(64, 64, 2, 8), _tile_of(64, 64, 3, 8)
_FP8 = _tile_of(32, 16, 3, 8)
_BY_SHARED_MEMORY = {232_448: _tile_of(64, 32, 2, 8), 166_912: _tile_of(64, 32, 3, 8), 101_376: _tile_of(32, 16, 3, 8)}


def tile_for(rows: int, *, capability: tuple[int, int], is_fp8: bool) -> Tile:
    """Tile for so many rows a sequence on a GPU of that compute capability. Raises KeyError for an unknown one."""
    shared = SHARED_MEMORY_BYTES[capability]
    if rows <= MIN_ROWS:
        return _tile_of(16, 32, 3, 8, programs_per_sm=2 if shared == 232_448 else 1)
    if capability[0] == 9:
        return _HOPPER_FP8 if is_fp8 else _HOPPER
    return _FP8 if is_fp8 else _BY_SHARED_MEMORY[shared]


def constants(
    *,
    heads: int,
    q_tokens: int,
    rank: int,
    rope: int,
    page_tokens: int,
    tile: Tile,
    is_split: bool,
    dot: Any,
    dequant: int,
) -> dict[str, Any]:
    """The kernel's compile-time arguments, for a launch and for a compile ahead of time alike."""
    return {
        "HEADS": heads,
        "Q_TOKENS": q_tokens,
        "R": rank,
        "P": rope,
        "P_PAD": max(MIN_ROWS, power_of_two(rope)),
        "PAGE": page_tokens,
        "BLOCK_M": tile.rows,
        "BLOCK_N": tile.tokens,
        "STAGES": tile.stages,
        "SPLIT": is_split,
        "DOT": dot,
        "DEQUANT": dequant,
    }


def mla_decode(
    q: torch.Tensor,
    pages: torch.Tensor,
    page_table: torch.Tensor,
    seq_lens: torch.Tensor,
    *,
    kv_lora_rank: int,
    scale: float,
    kv_scale: float,
    tile: Tile,
    schedule: Schedule,
) -> Callable[[], Output]:
    """The launches for q [B, Q, H, D], pages [pages, PAGE, D], page_table int32 [B, most], seq_lens int32 [B].

    The callable writes and returns the same out [B, Q, H, R] and lse [B, Q, H] each time.
    """
    batch, q_tokens, heads, width = q.shape
    if not (q.is_contiguous() and pages.is_contiguous() and page_table.stride(1) == 1):
        raise ValueError("q, pages and the rows of page_table must be contiguous")
    rope = width - kv_lora_rank
    out = q.new_empty((batch, q_tokens, heads, kv_lora_rank))
    lse = q.new_empty((batch, q_tokens, heads), dtype=torch.float32)
    partials = common.new_partials(out, schedule)
    grid = (ceil_div(q_tokens * heads, tile.rows), schedule.max_splits, batch)
    cache = common.as_bytes(pages)
    compiled_for = constants(
        heads=heads,
        q_tokens=q_tokens,
        rank=kv_lora_rank,
        rope=rope,
        page_tokens=pages.shape[1],
        tile=tile,
        is_split=schedule.max_splits > 1,
        dot=common.dot_dtype(q.dtype),
        dequant=common.dequantisation(pages.dtype, q.dtype),
    )

    def run() -> Output:
        mla_kernel[grid](
            q,
            cache,
            page_table,
            seq_lens,
            out,
            lse,
            *partials,
            scale * kv_scale * LOG2_E,
            kv_scale,
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


class TritonMla:
    """The kernel as the profiler sees it."""

    name = "triton-mla"

    def version(self) -> str | None:
        return str(triton.__version__)

    def form(self, case: Case) -> str:
        return ABSORBED

    def supports(self, case: Case, device: torch.device) -> str | None:
        if not case.is_latent:
            return f"computes MLA, not {case.attention.label}"
        rank = _attention(case).kv_lora_rank
        if rank != power_of_two(rank) or not MIN_ROWS <= rank <= MAX_RANK:
            return f"needs a kv_lora_rank that is a power of two from {MIN_ROWS} to {MAX_RANK}, not {rank}"
        return common.why_not(case, device)

    def prepare(self, case: Case, inputs: Inputs) -> Callable[[], Output]:
        assert isinstance(inputs, LatentInputs)
        device = inputs.q_absorbed.device
        run = mla_decode(
            inputs.q_absorbed,
            inputs.cache_pages,
            inputs.page_table,
            inputs.seq_lens,
            kv_lora_rank=_attention(case).kv_lora_rank,
            scale=inputs.scale,
            kv_scale=inputs.kv_scale,
            tile=_tile(case, device),
            schedule=_schedule(case, device),
        )
        run()
        return run

    def kernel_extra_flop(self, case: Case, device: torch.device) -> int:
        """Padded rows, padded rope columns, and the last block's tokens after the end."""
        tile, rank = _tile(case, device), _attention(case).kv_lora_rank
        rope = _attention(case).qk_rope_head_dim
        width = 2 * rank + (max(MIN_ROWS, power_of_two(rope)) if rope else 0)
        rows = ceil_div(_rows(case), tile.rows) * tile.rows
        tokens = sum(ceil_div(tokens, tile.tokens) * tile.tokens for tokens in case.seq_lens)
        return 2 * rows * tokens * width - case.flop(ABSORBED)

    def kernel_extra_bytes(self, case: Case, device: torch.device) -> int:
        """Partial outputs, written once and read once."""
        return partial_output_bytes(
            case.seq_lens,
            schedule=_schedule(case, device),
            block_tokens=_tile(case, device).tokens,
            rows=_rows(case),
            width=_attention(case).kv_lora_rank,
        )

    def workspace_bytes(self, case: Case, device: torch.device) -> int:
        """Outputs, their lse, and partial outputs."""
        rows, rank = case.batch * _rows(case), _attention(case).kv_lora_rank
        return common.workspace_bytes(case, rows=rows, width=rank, schedule=_schedule(case, device))


def _attention(case: Case) -> LatentAttention:
    assert isinstance(case.attention, LatentAttention)
    return case.attention


def _rows(case: Case) -> int:
    return case.query_tokens * case.n_heads


def _tile(case: Case, device: torch.device) -> Tile:
    return tile_for(_rows(case), capability=common.capability_of(device), is_fp8=case.kv_dtype == "fp8_e4m3")


def _schedule(case: Case, device: torch.device) -> Schedule:
    tile, rank = _tile(case, device), _attention(case).kv_lora_rank
    rows = _rows(case)
    return plan(
        case.seq_lens,
        programs_per_split=ceil_div(rows, tile.rows),
        slots=common.slots_of(device, tile),
        tile=tile,
        partial_bytes=4 * min(rows, tile.rows) * rank,
        bytes_per_token=case.cache_bytes_per_token,
    )
