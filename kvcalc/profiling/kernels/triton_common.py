"""What our two Triton decode kernels share: dequantisation, page ids, the softmax step, the epilogue, the combine.

Shape letters: B batch, S splits, M rows of a tile (query tokens x heads), N tokens of a block, V width of an output
head, A all rows of a sequence (query tokens x all query heads).

Scores stay in the base-2 logarithm: exp2(s * scale * log2(e)) is one multiply-add and one instruction. log2(e) is
folded into the scale on the host, and only the lse that leaves the kernel is turned into the natural logarithm.

Under the interpreter (TRITON_INTERPRET=1 before this module is imported) products are taken in fp32: there, tl.dot on
bf16 multiplies bit patterns. Everywhere else DOT is the queries' dtype.
"""

# ruff: noqa: ANN001, ANN201, N803  (arguments of kernels are typed by how they are called)
# mypy: disable-error-code="no-untyped-def, untyped-decorator"
import os
from typing import Any

import torch
import triton
import triton.language as tl

from kvcalc.profiling.case import PREFILL, Case
from kvcalc.profiling.kernels.triton_schedule import SHARED_MEMORY_BYTES, Schedule, Tile, ceil_div, power_of_two

INTERPRETED = os.environ.get("TRITON_INTERPRET", "0") == "1"
LOG2_E = 1.4426950408889634
LN_2 = tl.constexpr(0.6931471805599453)
INTERPRETER_SLOTS = 8
COMBINE_WIDTH = 128
COMBINE_SPLITS = 32
COMBINE_WARPS = 4

PLAIN, INTERPRETED_FP8, BITS_TO_BF16, BITS_TO_FP16 = 0, 1, 2, 3
"""How cache numbers become operands: as they are; by the interpreter's conversion; by moving bits."""
_PLAIN, _INTERPRETED_FP8 = tl.constexpr(PLAIN), tl.constexpr(INTERPRETED_FP8)
_TO_BF16 = tl.constexpr(BITS_TO_BF16)

# e4m3's sign, exponent and fraction moved to where the 16-bit format has its own, two numbers a register, then
# multiplied with 2^(the difference of the exponent biases). Exact, subnormals included; NaN codes become 480.
# 2.5 instructions a number on full-rate pipes, and good for sm_80, which has no e4m3; the compiler's way on sm_90,
# e4m3 -> fp16 -> bf16, takes 2, one of them on the conversion unit. is_pure=False keeps it where it stands: hoisted
# above the layout change, it would have the bytes loaded without pipelining at 16 rows.
_BITS = tl.constexpr("""{
    .reg .b32 a0, a1, s0, s1, one, zero;
    prmt.b32 a0, 0, $2, 0x5040;
    prmt.b32 a1, 0, $2, 0x7060;
    and.b32 s0, a0, 0x80008000;
    and.b32 s1, a1, 0x80008000;
    shr.b32 a0, a0, SHIFT;
    shr.b32 a1, a1, SHIFT;
    lop3.b32 a0, a0, MASK, s0, 0xea;
    lop3.b32 a1, a1, MASK, s1, 0xea;
    mov.b32 one, FACTOR;
    mov.b32 zero, 0x80008000;
    fma.rn.TYPE $0, a0, one, zero;
    fma.rn.TYPE $1, a1, one, zero;
}""")


def _bits(shift: str, mask: str, factor: str, kind: str) -> tl.constexpr:
    text = _BITS.value
    for name, value in (("SHIFT", shift), ("MASK", mask), ("FACTOR", factor), ("TYPE", kind)):
        text = text.replace(name, value)
    return tl.constexpr(text)


BF16_BITS = ("4", "0x07f007f0", "0x7b807b80", "bf16x2")
FP16_BITS = ("1", "0x3f803f80", "0x5c005c00", "f16x2")
"""Shift, mask, factor (2^120, 2^8; twice) and instruction of the conversion."""
_BITS_TO_BF16 = _bits(*BF16_BITS)
_BITS_TO_FP16 = _bits(*FP16_BITS)


@triton.jit
def operand(values, DOT: tl.constexpr, DEQUANT: tl.constexpr):
    """Cache numbers as operands of a product; an fp8 cache is a tensor of bytes, its scale is applied elsewhere."""
    if DEQUANT == _PLAIN:
        return values.to(DOT)
    elif DEQUANT == _INTERPRETED_FP8:
        return values.to(tl.float8e4nv, bitcast=True).to(DOT)
    elif DEQUANT == _TO_BF16:
        return tl.inline_asm_elementwise(_BITS_TO_BF16, "=r,=r,r", [values], dtype=tl.bfloat16, is_pure=False, pack=4)
    else:
        return tl.inline_asm_elementwise(_BITS_TO_FP16, "=r,=r,r", [values], dtype=tl.float16, is_pure=False, pack=4)


@triton.jit
def pages_of(table, block, tokens, length, PAGE: tl.constexpr, BLOCK_N: tl.constexpr):
    """Page ids of a block of tokens: one where a page holds whole blocks, else one a token [N] (0 past the end)."""
    if PAGE % BLOCK_N == 0:
        return tl.load(table + block * BLOCK_N // PAGE)
    else:
        position = block * BLOCK_N + tokens  # [N]
        return tl.load(table + position // PAGE, mask=position < length, other=0)


@triton.jit
def slots_of_block(page, start, tokens, PAGE: tl.constexpr, BLOCK_N: tl.constexpr):
    """Rows of the paged cache where a block's tokens lie [N]; `page` as `pages_of` gives it, int64.

    Worked out anew for each block: offsets that don't change would be kept in registers, which are the scarcer.
    """
    if PAGE % BLOCK_N == 0:
        return page * PAGE + start % PAGE + tokens
    else:
        return page * PAGE + (start + tokens) % PAGE


@triton.jit
def softmax_step(scores, top, total, scale):
    """One block of the online softmax: scores [M, N], maximum so far (base 2), sum [M]; weights [M, N], decay [M]."""
    new_top = tl.maximum(top, tl.max(scores, 1) * scale)  # [M]
    shift = tl.where(new_top == -float("inf"), 0.0, new_top)  # a row may have attended nothing yet
    weights = tl.exp2(scores * scale - shift[:, None])  # [M, N]
    decay = tl.exp2(top - shift)  # [M]
    return weights, decay, new_top, total * decay + tl.sum(weights, 1)


@triton.jit
def store_rows(
    acc,
    top,
    total,
    out_scale,
    rows,
    valid,
    sequence,
    split,
    max_splits,
    out_ptr,
    lse_ptr,
    part_ptr,
    part_lse_ptr,
    A: tl.constexpr,
    V: tl.constexpr,
    V_PAD: tl.constexpr,
    SPLIT: tl.constexpr,
):
    """acc [M, V] over its sums: to the output where nothing is split, else to this split's partial output.

    A branch at run time, for the sequences of a split batch that have one split, costs 120 bytes of spills at 64 rows
    on sm_90 (triton 3.9.0).
    """
    empty = total == 0.0
    total = tl.where(empty, 1.0, total)
    lse = tl.where(empty, -float("inf"), top + tl.log2(total))  # [M], base 2
    acc = acc * (out_scale / total)[:, None]  # [M, V]
    width = tl.arange(0, V_PAD)
    offsets = rows[:, None] * V + width[None, :]  # [M, V]
    mask = valid[:, None]
    if V_PAD != V:
        mask = mask & (width < V)[None, :]
    if not SPLIT:
        base = sequence.to(tl.int64) * A
        tl.store(out_ptr + base * V + offsets, acc.to(out_ptr.dtype.element_ty), mask=mask)
        tl.store(lse_ptr + base + rows, lse * LN_2, mask=valid)
    else:
        base = (sequence.to(tl.int64) * max_splits + split) * A
        tl.store(part_ptr + base * V + offsets, acc, mask=mask)
        tl.store(part_lse_ptr + base + rows, lse, mask=valid)


@triton.jit(do_not_specialize=["max_splits", "blocks_per_split"])
def combine_kernel(
    part_ptr,  # fp32 [B, S, A, V]
    part_lse_ptr,  # fp32 [B, S, A], base 2
    lens_ptr,  # int32 [B]
    out_ptr,  # [B, A, V]
    lse_ptr,  # fp32 [B, A]
    max_splits,
    blocks_per_split,
    A: tl.constexpr,
    V: tl.constexpr,
    BLOCK_N: tl.constexpr,
    WIDTH: tl.constexpr,
    ALL_SPLITS: tl.constexpr,
    SPLITS: tl.constexpr,
):
    """Partial outputs of one row, WIDTH columns of them, weighted by exp2(lse): SPLITS splits at once."""
    row, column, sequence = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    n_splits = tl.maximum(tl.cdiv(tl.cdiv(tl.load(lens_ptr + sequence), BLOCK_N), blocks_per_split), 1)
    first = sequence.to(tl.int64) * max_splits * A + row
    every = tl.arange(0, ALL_SPLITS)
    lse = tl.load(part_lse_ptr + first + every * A, mask=every < n_splits, other=-float("inf"))  # [S]
    top = tl.max(lse, 0)
    top = tl.where(top == -float("inf"), 0.0, top)
    total = tl.sum(tl.exp2(lse - top), 0)
    columns = column * WIDTH + tl.arange(0, WIDTH)
    acc = tl.zeros([WIDTH], tl.float32)
    for start in range(0, n_splits, SPLITS):
        splits = start + tl.arange(0, SPLITS)
        mask = splits < n_splits
        part_lse = tl.load(part_lse_ptr + first + splits * A, mask=mask, other=-float("inf"))  # [SPLITS]
        addresses = part_ptr + (first + splits.to(tl.int64) * A)[:, None] * V + columns[None, :]
        part = tl.load(addresses, mask=mask[:, None] & (columns < V)[None, :], other=0.0)  # [SPLITS, WIDTH]
        acc += tl.sum(part * tl.exp2(part_lse - top)[:, None], 0)
    empty = total == 0.0
    total = tl.where(empty, 1.0, total)
    acc = acc / total
    target = sequence.to(tl.int64) * A + row
    tl.store(out_ptr + target * V + columns, acc.to(out_ptr.dtype.element_ty), mask=columns < V)
    if column == 0:
        tl.store(lse_ptr + target, tl.where(empty, -float("inf"), top + tl.log2(total)) * LN_2)


def combine_constants(*, rows: int, width: int, max_splits: int, block_tokens: int) -> dict[str, Any]:
    """The combine's compile-time arguments, for a launch and for a compile ahead of time alike."""
    splits = power_of_two(max_splits)
    return {
        "A": rows,
        "V": width,
        "BLOCK_N": block_tokens,
        "WIDTH": min(COMBINE_WIDTH, power_of_two(width)),
        "ALL_SPLITS": splits,
        "SPLITS": min(splits, COMBINE_SPLITS),
    }


def launch_combine(
    partials: tuple[torch.Tensor, torch.Tensor],
    seq_lens: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    *,
    schedule: Schedule,
    block_tokens: int,
) -> None:
    """Turns partial outputs into `out` [B, Q, H, V] and `lse` [B, Q, H]."""
    batch, rows, width = out.shape[0], out.shape[1] * out.shape[2], out.shape[3]
    compiled_for = combine_constants(rows=rows, width=width, max_splits=schedule.max_splits, block_tokens=block_tokens)
    grid = (rows, ceil_div(width, compiled_for["WIDTH"]), batch)
    combine_kernel[grid](
        *partials,
        seq_lens,
        out,
        lse,
        schedule.max_splits,
        schedule.blocks_per_split,
        **compiled_for,
        num_warps=COMBINE_WARPS,
    )


def new_partials(out: torch.Tensor, schedule: Schedule) -> tuple[torch.Tensor, torch.Tensor]:
    """Room for fp32 partial outputs [B, S, A, V] and log-sum-exps [B, S, A]; one element where nothing is split."""
    batch, rows, width = out.shape[0], out.shape[1] * out.shape[2], out.shape[3]
    shape = (batch, schedule.max_splits, rows) if schedule.max_splits > 1 else (1, 1, 1)
    part = out.new_empty((*shape, width if schedule.max_splits > 1 else 1), dtype=torch.float32)
    return part, out.new_empty(shape, dtype=torch.float32)


def dot_dtype(dtype: torch.dtype) -> Any:
    """Triton's name of the dtype that operands have."""
    if INTERPRETED:
        return tl.float32
    return {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16, torch.float32: tl.float32}[dtype]


def dequantisation(cache: torch.dtype, dtype: torch.dtype) -> int:
    """How the cache's numbers become operands of that dtype."""
    if cache != torch.float8_e4m3fn:
        return PLAIN
    if INTERPRETED:
        return INTERPRETED_FP8
    return BITS_TO_BF16 if dtype == torch.bfloat16 else BITS_TO_FP16


def as_bytes(pages: torch.Tensor) -> torch.Tensor:
    """An fp8 cache as the bytes that the kernels load."""
    return pages.view(torch.uint8) if pages.dtype == torch.float8_e4m3fn else pages


def capability_of(device: torch.device) -> tuple[int, int]:
    """Compute capability; that of Hopper for the interpreter, which has none."""
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else (9, 0)


def slots_of(device: torch.device, tile: Tile) -> int:
    """Programs that run at once on the device."""
    if device.type != "cuda":
        return INTERPRETER_SLOTS
    return int(torch.cuda.get_device_properties(device).multi_processor_count) * tile.programs_per_sm


def workspace_bytes(case: Case, *, rows: int, width: int, schedule: Schedule) -> int:
    """Outputs, their lse, and partial outputs of so many rows (of the whole batch)."""
    partial = 4 * schedule.max_splits * rows * (width + 1) if schedule.max_splits > 1 else 0
    return rows * (width * case.element_bytes + 4) + partial


def why_not(case: Case, device: torch.device) -> str | None:
    """Why no Triton kernel can run the case on the device, whatever the attention."""
    if case.phase == PREFILL:
        return "is a decode kernel"
    if case.kv_dtype not in (case.dtype, "fp8_e4m3"):
        return f"reads a cache in the queries' format or in fp8_e4m3, not {case.kv_dtype} under {case.dtype}"
    if case.batch > 65_535:
        return f"batch {case.batch} is more than 65,535, the most that a launch grid's third axis takes"
    if INTERPRETED:
        return None
    if device.type != "cuda":
        return "Triton needs a GPU (or its interpreter: TRITON_INTERPRET=1)"
    if torch.version.hip:
        return "tiles and conversions are for NVIDIA GPUs"
    if capability_of(device) not in SHARED_MEMORY_BYTES:
        return "has no tiles for compute capability {}.{}".format(*capability_of(device))
    if case.dtype == "fp32":
        return "computes on tensor cores, in fp16 or bf16"
    return None
