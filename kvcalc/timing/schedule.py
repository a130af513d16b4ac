"""How a kernel cuts a call into thread blocks: row blocks, tiles, splits and waves, as its source says.

Symbols: B requests, G KV heads, R = (n_heads / G) x query_tokens query rows a KV head, M rows of a tile (a row block
pads up to it), h = ceil(R / M) row blocks, N tokens attended, T tokens of a tile, n = ceil(N / T), U = B G units of
work, b thread blocks that an SM holds at a time, S = b SMs / h slots for units, s splits a unit, H tokens of history: N
without a window. Schedules:

    balanced  equal tiles a slot, `overhead_tiles` charged for each request:
              tiles of the busiest slot = min(n, ceil(U (n + overhead) / S)) for U <= S, else ceil(U n / S)
    fill      as many splits as fill the slots once: s = clip(floor(S / U), 1, ceil(n / overhead))
    margin    ceil(1.1 U n / S) tiles a split, at most `max_splits`, where n > `combines_above`: else 1
    threads   1024, 512 or 256 threads a block, and so b = 1, 2 or 4, as U grows; T = 64 Ki / (b x width);
              s = clip(ceil(SMs / U), 1, ceil((N + 1) / T)): rounded up, so the last blocks may be a wave alone.
              Ada's kernels for 8-bit caches need more registers: b = 1, 1 or 3 there
    history   m = floor(N / 128), s = min(m, round(sqrt(8 m)), 8 SMs / U, 6000 / B); idle splits are launched too.
              A 16-bit cache with 4 U m < SMs is cut by `threads`, a block for each query head: XQA is not used there
              (8-bit ones keep to it, as measured). Hopper's kernel for 8-bit caches swaps the operands: M is R,
              padded to a multiple of 8

All but `balanced` run U s equal blocks in waves of S.

Under a window, kernels that count splits by H (`by_history`) launch more than have a tile of the N to attend:

    vLLM's FlashAttention-3  n of the history in `margin`; a window is loaded from its first token on, so the splits
                             beyond its ceil(N / T) tiles are empty, and the combine goes through them
    XQA, 16-bit cache        the splits of `history` on all GPUs; an idle block does all but its tiles
    XQA on Hopper, 8-bit     tiles are aligned, n = ceil(H / T) - floor((H - N) / T); idle blocks return at once
    threads                  s by H, and each takes N / s tokens

FlashAttention-3 has a tile of one warp group for up to 64 rows without a window, else of two or three (`wide_rows`);
plain decode keeps to the first, as it was fitted. Sources: FlashMLA csrc/smxx/get_mla_metadata.cu (balanced);
FlashAttention-3 hopper/flash_prepare_scheduler.cu, heuristics.h and tile_size.h at 0251105, vLLM's at 617264c:
block.h get_n_block_min_max, heuristics.h use_one_mma_wg, tile_size.h (margin); vLLM
VLLM_FLASH_ATTN_MAX_NUM_SPLITS_FOR_CUDA_GRAPH (its 32); TensorRT-LLM decoderMaskedMultiheadAttentionLaunch.h
multi_block_grid_setup (threads), decoderXQAImplCommon.h computeMultiBlockCount, decoderXQARunner.cpp mayHavePerfGain,
xqa/mha_sm90.cu ctaNbQHeads, nbTilesInUse and its launch bounds (history).
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil, log2
from typing import Any, NamedTuple

Number = Any
"""A float, or a numpy array of them where `ops` is numpy's namespace."""

UNSPLIT_PARTIAL = 0.5
"""What an output that was never split costs where all pass through the combine: it is not reduced."""
MARGIN = 1.1
"""FlashAttention-3 splits for a tenth more work than there is."""
HOPPER = "Hopper"
THREAD_ELEMENTS = 65_536
"""Elements of K that a block of 1024 threads takes up in a pass: eight loads of 16 bytes each."""
SHARED_BYTES, SCORE_BYTES = 227 * 1024, 6
"""Shared memory of an SM, and what a token's score takes of it: fp32, and bf16 after the softmax."""
SHORT_PASS, SHORT_ITEM = 1 / 8, 0.7
"""With fewer tokens than one load of each thread, the unrolled loop is not entered: so much of an item is left."""
XQA_TOKENS, XQA_SPLITS, XQA_WAVES, XQA_WORKSPACE, XQA_GAIN = 128, 8, 8, 6000, 4
"""kMinHistoryTokensPerBlock, the factor under the root, kTargetWaveFactor, sub-sequences, kEnableMinBlockFactor."""
BESIDE = 0.5
"""What each further warp group's rows cost to set up and write, of the first's: they work side by side."""
WGMMA_ROWS, WGMMA_ELEMENTS, WGMMA_BLOCKS = 8, 2048, (3, 1)
"""XQA's kernel for 8-bit caches: rows are padded to 8; 3 blocks an SM up to so many row elements; with more, their
registers leave room for one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Operations:
    """The few operations that scalars and arrays spell differently."""

    maximum: Callable[[Number, Number], Number]
    minimum: Callable[[Number, Number], Number]
    ceil: Callable[[Number], Number]
    where: Callable[[Number, Number, Number], Number]
    log2: Callable[[Number], Number]


SCALAR = Operations(
    maximum=max, minimum=min, ceil=ceil, where=lambda condition, yes, no: yes if condition else no, log2=log2
)


@dataclass(frozen=True, kw_only=True, slots=True)
class KernelShape:
    """How a kernel cuts its work: what its source says, not what is fitted.

    tile_rows    query rows of a tile, from small to large; a block of rows takes the smallest that holds it
    small_below  rows up to which the smallest tile is used, several of it if need be
    tile_tokens  cached tokens of a tile: of a 16-bit and an 8-bit cache, for heads up to a width
    blocks_per_sm  thread blocks that an SM holds at a time, where the schedule does not say
    schedule     `balanced`, `fill`, `margin`, `threads` or `history`
    whole_tiles  a short last tile is loaded whole (its masked tokens are read too)
    combines_above  tiles of a request from which all outputs pass through the combine, split or not; None: split ones
    max_splits   of a unit
    fp8_products  an 8-bit cache is multiplied in fp8 where the GPU can
    lone_fp8_rate  matrix rate of a tile of 64 rows in fp8 on one SM, of that where two SMs share a request's tiles
    waits        its few stages wait for latency: a block streams tokens at one rate, whatever their bytes
    narrow_launch  an 8-bit cache of heads up to 64 wide takes a further kernel, of so much of a launch
    by_history   splits are counted by the whole history, however short the window
    aligned_windows  a window's first tile begins at a multiple of tiles, not at its first token
    idle_item    what a block that is launched and has no tile costs of an item: with a 16-bit and an 8-bit cache
    wide_rows    rows of the tile of several warp groups, for heads up to a width: under a window, and for several
                 query tokens of more rows than the first tile has; `wide_tokens` its tokens, where they differ
    thread_blocks  blocks of 1024, 512 and 256 threads that an SM holds in `threads`, with an 8-bit cache
    elsewhere    shapes on other architectures than Hopper, where they differ; "" is any
    """

    tile_rows: tuple[int, ...]
    small_below: int = 0
    tile_tokens: tuple[tuple[int, int, int], ...]
    blocks_per_sm: int = 1
    schedule: str
    whole_tiles: bool = False
    combines_above: int | None = None
    max_splits: int = 128
    fp8_products: bool = False
    lone_fp8_rate: float = 1.0
    waits: bool = False
    narrow_launch: float = 0.0
    wide_rows: tuple[tuple[int, int], ...] = ()
    wide_tokens: tuple[tuple[int, int, int], ...] = ()
    by_history: bool = False
    aligned_windows: bool = False
    idle_item: tuple[float, float] = (0.0, 0.0)
    thread_blocks: tuple[int, int, int] = (1, 2, 4)
    elsewhere: tuple[tuple[str, "KernelShape"], ...] = ()

    def on(self, architecture: str) -> "KernelShape":
        """The shape on a GPU of an architecture."""
        if architecture == HOPPER:
            return self
        return next((shape for name, shape in self.elsewhere if name in (architecture, "")), self)


class Waves(NamedTuple):
    """Rounds of work on the busiest slot: `full` with all `busy` blocks, `last` with what is left, `rest` blocks."""

    full: Number
    busy: Number
    last: Number = 0.0
    rest: Number = 1.0


class Cut(NamedTuple):
    """A call as it is cut.

    padded_rows   rows that a block sets up and writes, with those that pad them
    rows          R, of a unit
    row_waves     of many query tokens: how often the SMs are filled with row blocks
    tiles_each    n
    items, tiles  rounds of (request, split) and of tiles
    split         whether outputs pass through the combine, `splits` of a unit, `partials` in all
    item_share    of an item's time, where its loop is not entered
    stream_share  of a block's threads, of the largest block's
    work_share    tokens that are computed of a tile's, where a tile is a pass of threads, not of the matrix units
    """

    tile_rows: Number
    padded_rows: Number
    rows: Number
    row_blocks: Number
    row_waves: Number
    tile_tokens: Number
    tiles_each: Number
    blocks_per_sm: Number
    items: Waves
    tiles: Waves
    split: Number
    splits: Number
    partials: Number
    item_share: Number = 1.0
    stream_share: Number = 1.0
    work_share: Number = 1.0


def cut(case: Any, sms: int, shape: KernelShape, *, overhead: float, tail: float, ops: Operations) -> Cut:
    """How an AttentionCase is cut. `tail` is how far a last, partly filled wave waits for the one before."""
    least, most, up, where = ops.minimum, ops.maximum, ops.ceil, ops.where
    known = most(case.history_tokens, case.context_tokens) if shape.by_history else case.context_tokens
    windowed = known > case.context_tokens
    rows = case.n_heads * case.query_tokens / case.n_kv_heads
    tile_rows = _rows(rows, shape, ops)
    tokens, units = _tokens(case, shape.tile_tokens, ops), case.batch * case.n_kv_heads
    padded: Number = tile_rows
    if shape.wide_rows:
        wide = windowed | ((case.query_tokens > 1) & (rows > tile_rows))
        padded = where(wide, _wide_rows(case, shape, ops), tile_rows)
        tokens = where(wide, _tokens(case, shape.wide_tokens or shape.tile_tokens, ops), tokens)
        tile_rows, padded = padded, tile_rows + BESIDE * (padded - tile_rows)
    row_blocks, per_sm = up(rows / tile_rows), shape.blocks_per_sm
    splits: Number = 1.0
    item_share: Number = 1.0
    stream_share: Number = 1.0
    evenly: Number = False  # whether each split has a share of the tokens, whatever the tiles
    if shape.schedule == "threads":
        units = case.batch * case.n_heads
        rows, row_blocks = case.query_tokens, case.query_tokens
        parts, per_sm, tokens, splits = _threads(units, case, known, sms, shape, ops)
        item_share = where(case.context_tokens / splits < SHORT_PASS * tokens, SHORT_ITEM, 1.0)
        stream_share, evenly = 1 / parts, True
    elif shape.schedule == "history":
        history = known // XQA_TOKENS
        splits = _history(known, units, case.batch, sms, ops)
        few = (XQA_GAIN * units * most(1, history) < sms) & (case.query_tokens == 1)
        few = where(case.eight_bit, False, few)
        padded = where(case.eight_bit, up(rows / WGMMA_ROWS) * WGMMA_ROWS, tile_rows)
        tile_rows = where(rows <= tile_rows, padded, tile_rows)
        resident = where(padded * case.value_elements <= WGMMA_ELEMENTS, *WGMMA_BLOCKS)
        per_head = _threads(case.batch * case.n_heads, case, known, sms, shape, ops)
        per_sm = where(few, per_head[1], where(case.eight_bit, resident, per_sm))
        tokens, splits = where(few, per_head[2], tokens), where(few, per_head[3], splits)
        units, padded = where(few, case.batch * case.n_heads, units), where(few, 1, padded)
        row_blocks = where(few, 1, row_blocks)
        evenly = few
        item_share = where(few & (case.context_tokens / splits < SHORT_PASS * tokens), SHORT_ITEM, 1.0)
    at_once = sms * per_sm
    row_waves = up(row_blocks / at_once)  # of many query tokens: more row blocks than run at once
    row_blocks = least(row_blocks, at_once)
    slots, units = most(1, at_once // row_blocks), units * row_waves
    tiles_each, tiles_known = up(case.context_tokens / tokens), up(known / tokens)
    if shape.aligned_windows:
        tiles_each = where(windowed, tiles_known - (known - case.context_tokens) // tokens, tiles_each)
    if shape.schedule == "balanced":
        items, tiles, split, splits, partials = _balanced(units, slots, tiles_each, overhead, ops)
    else:
        share = tiles_each / splits
        if shape.schedule == "fill":
            splits = most(1, least(slots // units, up(tiles_each / most(1.0, overhead))))
            share = up(tiles_each / splits)
            splits = up(tiles_each / share)
        elif shape.schedule == "margin":
            share = least(tiles_known, up(MARGIN * units * tiles_known / slots))
            splits = where(tiles_known > (shape.combines_above or 0), up(tiles_known / share), 1)
            splits = least(splits, shape.max_splits)
            share = up(tiles_each / splits)
        elif shape.schedule == "history":
            share = up(share)
        working = least(splits, tiles_each)
        tiled = where(windowed & evenly, splits, working)
        launched, splits = splits, where(windowed, tiled, splits)
        idle: Number = 0.0
        combined = launched
        if shape.by_history:
            if shape.schedule == "fill":
                launched = where(windowed & (case.eight_bit == 0), _history(known, units, case.batch, sms, ops), splits)
            rounds = units * launched / slots - most(1, units * splits / slots)
            idle = where(case.eight_bit, *reversed(shape.idle_item)) * where(windowed, most(0, rounds), 0.0)
            returns = windowed & case.eight_bit if shape.schedule == "history" else False
            combined = where(returns, splits, launched)
        split, partials, splits = combined > 1, units * splits, combined
        items = _waves(partials, slots, tail, 1, ops)
        items = items._replace(full=items.full + idle)
        tiles = _waves(units * tiled, slots, tail, share, ops)
    if shape.combines_above is not None:
        partials = where(split, partials, units * UNSPLIT_PARTIAL)
        split = split | (tiles_known > shape.combines_above)
    return Cut(
        tile_rows=tile_rows,
        padded_rows=padded,
        rows=rows,
        row_blocks=row_blocks,
        row_waves=row_waves,
        tile_tokens=tokens,
        tiles_each=tiles_each,
        blocks_per_sm=per_sm,
        items=items,
        tiles=tiles,
        split=split,
        splits=splits,
        partials=partials,
        item_share=item_share,
        stream_share=stream_share,
        work_share=case.context_tokens / (tiles_each * tokens) if shape.schedule == "threads" else 1.0,
    )


def _rows(rows: Number, shape: KernelShape, ops: Operations) -> Number:
    """Rows of the tile that the kernel takes."""
    tile = shape.tile_rows[-1]
    for size in reversed(shape.tile_rows):
        tile = ops.where(rows <= size, size, tile)
    return ops.where(rows < shape.small_below, shape.tile_rows[0], tile)


def _wide_rows(case: Any, shape: KernelShape, ops: Operations) -> Number:
    """Rows of the tile that several warp groups work on."""
    size: Number = shape.tile_rows[-1]
    for limit, rows in reversed(shape.wide_rows):
        size = ops.where(case.value_elements <= limit, rows, size)
    return size


def _tokens(case: Any, tiles: tuple[tuple[int, int, int], ...], ops: Operations) -> Number:
    """Tokens of a tile: by the width of the heads, and wider ones as the widest that is stated."""
    where = ops.where
    _, wide, wide_eight_bit = tiles[-1]
    tokens = where(case.eight_bit, wide_eight_bit, wide)
    for limit, narrow, narrow_eight_bit in reversed(tiles[:-1]):
        tokens = where(case.value_elements <= limit, where(case.eight_bit, narrow_eight_bit, narrow), tokens)
    return tokens


def _threads(
    units: Number, case: Any, known: Number, sms: int, shape: KernelShape, ops: Operations
) -> tuple[Number, Number, Number, Number]:
    """Parts that 1024 threads are cut into, blocks an SM, tokens of a pass and splits: masked multi-head attention.

    Of 256-thread blocks an SM's registers hold four. Blocks of narrow 16-bit heads need half the registers, so two of
    1024 threads fit where they are not split. A block keeps a score of each of its tokens in shared memory.
    """
    blocks = ops.ceil(4 * sms / units)
    parts = ops.where(blocks > 3, 1, ops.where(blocks > 1, 2, 4))
    narrow = ops.where(case.eight_bit, False, (case.value_elements <= 64) & (units > sms))
    tokens = THREAD_ELEMENTS / (ops.where(narrow, ops.maximum(parts, 2), parts) * case.value_elements)
    splits = ops.minimum(ops.ceil(sms / units), ops.ceil((known + 1) / tokens))
    splits = ops.maximum(1, splits)
    large, medium, small = shape.thread_blocks
    held = ops.where(parts == 1, large, ops.where(parts == 2, medium, small))
    per_sm = ops.where(case.eight_bit, held, ops.where(narrow, ops.maximum(parts, 2), parts))
    fit = SHARED_BYTES // (SCORE_BYTES * case.context_tokens / splits)
    return parts, ops.maximum(1, ops.minimum(per_sm, fit)), tokens, splits


def _balanced(
    units: Number, slots: Number, tiles_each: Number, overhead: float, ops: Operations
) -> tuple[Waves, Waves, Number, Number, Number]:
    """Items, tiles, whether there are splits, splits and partial outputs of FlashMLA's schedule."""
    least, most, up, where = ops.minimum, ops.maximum, ops.ceil, ops.where
    few, rounds, load = units <= slots, up(units / slots), units / slots
    whole = rounds * (tiles_each + overhead) <= load * (tiles_each + overhead) + overhead
    tiles = where(
        few,
        least(tiles_each, up(load * (tiles_each + overhead))),
        where(whole, rounds * tiles_each, up(load * tiles_each)),
    )
    split = where(few, tiles < tiles_each, rounds * tiles_each > tiles)
    splits = most(1.0, tiles_each / tiles)
    busy = where(few & (split == 0), units, slots)
    items = Waves(full=where(few, 1.0, where(split, load, rounds)), busy=busy)
    return items, Waves(full=tiles, busy=busy), split, splits, where(few, units * splits, slots)


def _history(tokens: Number, units: Number, batch: Number, sms: int, ops: Operations) -> Number:
    """Splits of a unit: computeMultiBlockCount."""
    history = tokens // XQA_TOKENS
    splits = ops.minimum((XQA_SPLITS * history) ** 0.5 + 0.5, ops.minimum(history, XQA_WAVES * sms / units)) // 1
    return ops.maximum(1, ops.minimum(splits, XQA_WORKSPACE // batch))


def _waves(blocks: Number, slots: Number, tail: float, share: Number, ops: Operations) -> Waves:
    """`blocks` of `share` each in waves of `slots`; the last wave waits for the others as far as `tail` says."""
    full = blocks // slots
    rest = blocks - full * slots
    several = full > 0
    return Waves(
        full=share * ops.where(several, full + (1 - tail) * rest / slots, 1.0),
        busy=ops.where(several, slots, blocks),
        last=share * ops.where(several & (rest > 0), tail, 0.0),
        rest=ops.maximum(1, rest),
    )
