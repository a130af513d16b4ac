"""Decode attention time: what one attention call of one layer takes on one GPU, from how its kernel is scheduled.

A decode kernel splits each request's cache along its tokens so that all SMs have work, streams tiles of it through
the matrix units, and combines the splits. The time is the sum of

    launch        what the call costs with nothing to attend
    queries       queries, new entries and outputs, moved `query_output_passes` times
    items         for each (request, split) that an SM works through: set-up, first loads, epilogue
    tiles         its tiles, each bound by memory, by the matrix units or by what one thread block can stream
    cold          DRAM and TLB latency before the stream runs at full rate, where the cache is not warm in L2
    combine       partial outputs written and read, and the reduction's latency in log2(splits)

Symbols: B requests, G KV heads, R = (n_heads / G) x query_tokens query rows a KV head, M rows of a tile (a row block
pads up to it), h = ceil(R / M) row blocks, N tokens attended, T tokens of a tile, n = ceil(N / T), U = B G units of
work, S = SMs / h slots for them, s splits a unit.

    balanced schedule (FlashMLA get_mla_metadata: equal tiles a slot, `overhead_tiles` charged for each request):
        tiles of the busiest slot = min(n, ceil(U (n + overhead) / S)) for U <= S, else ceil(U n / S)
    waves schedule (a whole number of splits a unit, thread blocks in waves):
        s = clip(floor(S / U), 1, ceil(n / overhead)); tiles = waves x ceil(n / s);
        waves = tail ceil(U / S) + (1 - tail) U / S for U > S, since blocks of a wave do not wait for each other
    tile = norm_p(memory, max(matrix, stream))                        norm_p(a, b) = (a^p + b^p)^(1/p)
        memory = tile bytes x slots at work / achieved bandwidth; faster by `l2_speedup` for the share that is in L2,
                 and a tile of fewer than 64 rows reads it again for each further row block, at `reread_fraction`
        matrix = T M FLOPs / (achieved matrix rate / SMs) + T M / softmax rate of an SM, padded rows included
        stream = tile bytes / what one thread block loads and converts in a second
    items and tiles overlap: norm_m(items, tiles); m = 1 is one after the other, large m wholly hidden.

The formula is written once: `ops` is the scalar namespace by default, numpy's for many rows. Sources: FlashMLA
csrc/smxx/get_mla_metadata.cu (schedule, 64-row tiles), FlashAttention-3 hopper/heuristics.h (split heuristic), AITER
aiter/mla.py (waves and overhead a split); the parameters' values are calibration, never datasheet.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import ceil, log2
from typing import Any

from kvcalc.errors import UsageError
from kvcalc.hardware import Gpu

Number = Any
"""A float, or a numpy array of them where `ops` is numpy's namespace."""

THROTTLE_S = 3e-3
"""Kernel time around which a power limit has lowered the clock by half of what it will."""
PARTIAL_BYTES = 8
"""A partial output element: fp32, written once and read once."""
WIDE = (128, 512)
"""Between these, values are so wide that a kernel's tiles leave room for fewer stages; MLA's 512 have own kernels."""
UNSPLIT_PARTIAL = 0.5
"""What an output that was never split costs where all pass through the combine: it is not reduced."""
FULL_TILE_ROWS = 64
"""Rows of the smallest tile that fills the matrix units (wgmma, tcgen05); smaller ones swap the operands."""


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
class Parameter:
    """A parameter's meaning and the range outside which it would not be physical."""

    meaning: str
    low: float
    high: float
    unit: str = ""
    logarithmic: bool = True


PARAMETERS: dict[str, Parameter] = {
    "launch_s": Parameter(meaning="a call with nothing to attend, in a CUDA graph", low=1e-6, high=250e-6, unit="s"),
    "bandwidth_fraction": Parameter(meaning="achieved share of the stated memory bandwidth", low=0.2, high=1.0),
    "l2_speedup": Parameter(meaning="bandwidth of L2 over that of memory", low=1.0, high=8.0),
    "l2_usable_fraction": Parameter(
        meaning="share of L2 that a cache fills before it is half evicted", low=0.2, high=1.3
    ),
    "matrix_fraction": Parameter(meaning="achieved share of the stated matrix rate", low=0.02, high=1.0),
    "wide_fraction": Parameter(
        meaning="matrix rate for values of 129 to 511 elements, of that for narrower ones", low=0.2, high=1.3
    ),
    "pairs_per_s": Parameter(
        meaning="softmax: (query, token) pairs that one SM exponentiates in a second", low=1e9, high=1e12, unit="1/s"
    ),
    "block_bytes_per_s": Parameter(
        meaning="what one thread block can stream and convert", low=5e9, high=5e12, unit="B/s"
    ),
    "item_s": Parameter(meaning="set-up and epilogue of one (request, split)", low=2e-8, high=60e-6, unit="s"),
    "overhead_tiles": Parameter(
        meaning="tiles that the scheduler charges for a request, or the fewest in a split",
        low=0.0,
        high=10.0,
        logarithmic=False,
    ),
    "combine_s": Parameter(meaning="combining splits, fixed part", low=0.0, high=30e-6, unit="s", logarithmic=False),
    "combine_doubling_s": Parameter(
        meaning="combining, for each doubling of the splits", low=0.0, high=8e-6, unit="s", logarithmic=False
    ),
    "partial_passes": Parameter(meaning="partial outputs moved, in writes and reads of fp32", low=0.05, high=6.0),
    "query_output_passes": Parameter(meaning="times that queries and outputs are moved", low=0.2, high=12.0),
    "tile_overlap": Parameter(meaning="norm p of memory and compute in a tile", low=2.0, high=16.0),
    "item_overlap": Parameter(meaning="norm m of items and tiles: 1 one after the other", low=1.0, high=8.0),
    "cold_s": Parameter(
        meaning="latency before a cold stream runs at full rate", low=0.0, high=25e-6, unit="s", logarithmic=False
    ),
    "tail_fraction": Parameter(
        meaning="how far a last, partly filled wave costs a whole one", low=0.0, high=1.0, logarithmic=False
    ),
    "reread_fraction": Parameter(
        meaning="cost of reading a small tile's cache again through L2", low=0.0, high=1.0, logarithmic=False
    ),
    "throttle": Parameter(
        meaning="slowdown of long kernels that fill the matrix units", low=0.0, high=0.5, logarithmic=False
    ),
}

Values = Mapping[str, float]
"""A value for each of PARAMETERS."""


@dataclass(frozen=True, kw_only=True, slots=True)
class KernelShape:
    """How a kernel cuts its work: what its source says, not what is fitted.

    tile_rows    query rows of a tile, from small to large; a block of rows takes the smallest that holds it
    small_below  rows up to which the smallest tile is used, several of it if need be
    tile_tokens  cached tokens of a tile
    blocks_per_sm  thread blocks that an SM holds at a time
    schedule     `balanced` or `waves`
    whole_tiles  a short last tile is loaded whole (its masked tokens are read too)
    combines_above  tiles of a request from which all outputs pass through the combine, split or not; None: split ones
    fp8_products  an 8-bit cache is multiplied in fp8 where the GPU can
    lone_fp8_rate  matrix rate of a tile of 64 rows in fp8 on one SM, of that where two SMs share a request's tiles
    """

    tile_rows: tuple[int, ...]
    small_below: int = 0
    tile_tokens: int
    blocks_per_sm: int = 1
    schedule: str
    whole_tiles: bool = False
    combines_above: int | None = None
    fp8_products: bool = False
    lone_fp8_rate: float = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """The stated numbers of a GPU that the time depends on."""

    bandwidth_bytes_per_s: float
    matrix_flop_per_s: float
    fp8_flop_per_s: float
    sms: int
    l2_bytes: float


ASSUMED_L2_BYTES = {"Blackwell": 132_644_864, "Blackwell Ultra": 132_644_864, "Hopper": 62_914_560}
"""Where a GPU's L2 is stated by nobody: that of its architecture's data-centre part (B200, H200), which has its die."""


def machine(gpu: Gpu) -> Machine:
    """What the time of a kernel depends on.

    Raises UsageError for a GPU whose SMs nobody states, MissingPeakError where it has no bf16 peak.
    """
    if gpu.num_sms is None:
        raise UsageError(f"{gpu.slug} states no number of SMs; without it there is no schedule to time")
    peak = float(gpu.peak("bf16"))
    return Machine(
        bandwidth_bytes_per_s=float(gpu.memory_bandwidth_bytes_per_s),
        matrix_flop_per_s=peak,
        fp8_flop_per_s=float(gpu.peak_flop_per_s.get("fp8", peak)),
        sms=gpu.num_sms,
        l2_bytes=float(gpu.l2_cache_bytes or ASSUMED_L2_BYTES.get(gpu.architecture, 1)),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class AttentionCase:
    """One call; every field may be an array.

    context_tokens         tokens attended by a request: what is left of a window or a selection
    entry_bytes            cache bytes of one token and KV head, K and V together (MLA: the latent with its rope, once)
    flop_per_pair          FLOPs of one query head against one entry
    value_elements         width of one head's partial output
    query_output_elements  elements of one head's query and output
    eight_bit              whether the cache has a byte an element, or less
    """

    batch: Number
    n_heads: Number
    n_kv_heads: Number
    context_tokens: Number
    query_tokens: Number
    entry_bytes: Number
    flop_per_pair: Number
    value_elements: Number
    query_output_elements: Number
    eight_bit: Number = False

    @property
    def cache_bytes(self) -> Number:
        """Bytes of cache that the call reads, each once."""
        return self.batch * self.n_kv_heads * self.context_tokens * self.entry_bytes

    @property
    def query_output_bytes(self) -> Number:
        return 2 * self.batch * self.n_heads * self.query_tokens * self.query_output_elements

    @property
    def flop(self) -> Number:
        return self.batch * self.n_heads * self.query_tokens * self.context_tokens * self.flop_per_pair


@dataclass(frozen=True, kw_only=True, slots=True)
class AttentionTime:
    """The terms of a call, in seconds; `overlapped_s` is what items and tiles hide of each other (negative)."""

    launch_s: Number
    queries_s: Number
    items_s: Number
    tiles_s: Number
    overlapped_s: Number
    cold_s: Number
    combine_s: Number
    memory_share: Number
    matrix_share: Number

    @property
    def total_s(self) -> Number:
        return (
            self.launch_s
            + self.queries_s
            + self.items_s
            + self.tiles_s
            + self.overlapped_s
            + self.cold_s
            + self.combine_s
        )


def _norm(a: Number, b: Number, power: float, ops: Operations) -> Number:
    large = ops.maximum(a, b)
    return large * (1 + (ops.minimum(a, b) / large) ** power) ** (1 / power)


def _rows(case: AttentionCase, shape: KernelShape, ops: Operations) -> tuple[Number, Number]:
    """Rows of the tile that the kernel takes, and how many row blocks there are."""
    rows = case.n_heads * case.query_tokens / case.n_kv_heads
    tile = shape.tile_rows[-1]
    for size in reversed(shape.tile_rows):
        tile = ops.where(rows <= size, size, tile)
    tile = ops.where(rows < shape.small_below, shape.tile_rows[0], tile)
    return tile, ops.ceil(rows / tile)


def attention_time(
    case: AttentionCase, machine: Machine, shape: KernelShape, values: Values, ops: Operations = SCALAR
) -> AttentionTime:
    """The time of one call, term by term."""
    least, most, up, where = ops.minimum, ops.maximum, ops.ceil, ops.where
    bandwidth = values["bandwidth_fraction"] * machine.bandwidth_bytes_per_s
    overhead, tokens = values["overhead_tiles"], shape.tile_tokens
    tile_rows, row_blocks = _rows(case, shape, ops)
    blocks_at_once = machine.sms * shape.blocks_per_sm
    waves = up(row_blocks / blocks_at_once)  # of many query tokens: more row blocks than run at once
    row_blocks = least(row_blocks, blocks_at_once)
    slots = most(1, blocks_at_once // row_blocks)
    tiles_each, units = up(case.context_tokens / tokens), case.batch * case.n_kv_heads * waves
    few = units <= slots
    rounds, load = up(units / slots), units / slots

    if shape.schedule == "balanced":
        whole = rounds * (tiles_each + overhead) <= load * (tiles_each + overhead) + overhead
        tiles = where(
            few,
            least(tiles_each, up(load * (tiles_each + overhead))),
            where(whole, rounds * tiles_each, up(load * tiles_each)),
        )
        split = where(few, tiles < tiles_each, rounds * tiles_each > tiles)
        items = where(few, 1.0, where(split, load, rounds))
        splits = most(1.0, tiles_each / tiles)
        busy = where(few & (split == 0), units, slots)
        partials = where(few, units * splits, slots)
        if shape.combines_above is not None:
            partials = where(split, partials, units * UNSPLIT_PARTIAL)
            split = split | (tiles_each > shape.combines_above)
    else:
        limit = up(tiles_each / most(1.0, overhead))
        splits = most(1, least(slots // units, limit))
        share = up(tiles_each / splits)
        splits = up(tiles_each / share)
        split = splits > 1
        tail = values["tail_fraction"]
        items = where(few, 1.0, tail * rounds + (1 - tail) * load)
        tiles = items * share
        partials = units * splits
        busy = least(slots, units * splits)

    partial_bytes = where(
        split,
        partials * case.n_heads * case.query_tokens / (case.n_kv_heads * waves) * case.value_elements * PARTIAL_BYTES,
        0.0,
    )
    query_bytes = case.query_output_bytes
    resident = (case.cache_bytes + partial_bytes / 2 + query_bytes) / (values["l2_usable_fraction"] * machine.l2_bytes)
    warm = most(0.0, least(1.0, (1.4 - resident) / 0.8))
    tile_bytes = tokens * case.entry_bytes
    loaded = 1.0 if shape.whole_tiles else case.context_tokens / (tiles_each * tokens)
    again = where(tile_rows < FULL_TILE_ROWS, values["reread_fraction"] * (row_blocks - 1), 0.0)
    memory_s = tile_bytes * loaded * busy * (1 - warm + warm / values["l2_speedup"] + again) / bandwidth
    rate = machine.matrix_flop_per_s
    if shape.fp8_products:
        lone = where((row_blocks == 1) & (tile_rows >= FULL_TILE_ROWS), shape.lone_fp8_rate, 1.0)
        rate = where(case.eight_bit, machine.fp8_flop_per_s * lone, rate)
    value = case.value_elements
    achieved = values["matrix_fraction"] * where((value > WIDE[0]) & (value < WIDE[1]), values["wide_fraction"], 1.0)
    sharing = most(1.0, least(shape.blocks_per_sm, busy * row_blocks / machine.sms))
    matrix_s = (
        sharing
        * (tokens * tile_rows)
        * (case.flop_per_pair * machine.sms / (achieved * rate) + 1 / values["pairs_per_s"])
    )
    floor_s = most(matrix_s, tile_bytes / values["block_bytes_per_s"])
    tile_s = _norm(memory_s, floor_s, values["tile_overlap"], ops)

    tiles_s, items_s = tiles * tile_s, items * values["item_s"]
    matrix_share = least(1.0, matrix_s / tile_s)
    tiles_s = tiles_s * (1 + values["throttle"] * matrix_share * matrix_share * tiles_s / (tiles_s + THROTTLE_S))
    combine_s = where(
        split,
        values["combine_s"]
        + values["combine_doubling_s"] * ops.log2(splits)
        + values["partial_passes"] * partial_bytes / bandwidth,
        0.0,
    )
    return AttentionTime(
        launch_s=values["launch_s"],
        queries_s=query_bytes * values["query_output_passes"] / bandwidth,
        items_s=items_s,
        tiles_s=tiles_s,
        overlapped_s=_norm(items_s, tiles_s, values["item_overlap"], ops) - items_s - tiles_s,
        cold_s=values["cold_s"] * (1 - warm),
        combine_s=combine_s,
        memory_share=least(1.0, memory_s / tile_s),
        matrix_share=matrix_share,
    )


def roofline_s(case: AttentionCase, machine: Machine, ops: Operations = SCALAR) -> Number:
    """The bound from the datasheet: max(bytes / bandwidth, FLOPs / peak), no launch and no schedule."""
    bytes_s = (case.cache_bytes + case.query_output_bytes) / machine.bandwidth_bytes_per_s
    return ops.maximum(bytes_s, case.flop / machine.matrix_flop_per_s)


def bound(time: AttentionTime) -> str:
    """What a call mostly waits for: `latency`, `memory` or `compute`."""
    if time.tiles_s < time.total_s / 2:
        return "latency"
    return "memory" if time.memory_share >= time.matrix_share else "compute"
