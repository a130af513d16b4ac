"""Decode attention time: what one attention call of one layer takes on one GPU, from how its kernel is scheduled.

A decode kernel splits each request's cache along its tokens so that all SMs have work, streams tiles of it through
the matrix units, and combines the splits. The time is the sum of

    launch        what the call costs with nothing to attend, and the schedule of its requests: log2(B)
    queries       queries, new entries and outputs, moved `query_output_passes` times
    items         for each (request, split) that an SM works through: set-up, first loads, epilogue
    tiles         its tiles, each bound by memory, by the matrix units or by what one thread block can stream
    cold          DRAM and TLB latency before the stream runs at full rate, where the cache is not warm in L2
    combine       partial outputs written and read, and the reduction, which takes one split after another

Work comes in rounds of the busiest slot: full waves of thread blocks, and a last one that is partly filled
(`schedule.cut`; its symbols are used here too: M rows and T tokens of a tile, h row blocks, b blocks an SM).

    item = item_s + padded rows x width x blocks at work on the SM / elements_per_s; a block's set-up and epilogue
    tile = norm_p(memory, max(matrix, stream))                        norm_p(a, b) = (a^p + b^p)^(1/p)
        memory = tile bytes x blocks at work / achieved bandwidth; faster by `l2_speedup` for the share that is in L2,
                 and a tile of fewer than 64 rows reads it again for each further row block, at `reread_fraction`
        matrix = T M FLOPs / (achieved matrix rate / SMs) + T M / softmax rate of an SM, padded rows included,
                 for each block at work on the SM
        stream = tile bytes / what one thread block loads and converts in a second
    items and tiles overlap: norm_m(items, tiles); m = 1 is one after the other, large m wholly hidden.

The formula is written once: `ops` is the scalar namespace by default, numpy's for many rows. Sources: schedule.py's;
FlashMLA csrc/smxx (64-row tiles), AITER aiter/mla.py (waves and overhead a split); the parameters' values are
calibration, never datasheet.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from kvcalc.errors import UsageError
from kvcalc.hardware import Gpu
from kvcalc.timing.schedule import SCALAR, Number, cut
from kvcalc.timing.schedule import KernelShape as KernelShape
from kvcalc.timing.schedule import Operations as Operations

THROTTLE_S = 8e-3
"""Kernel time around which a power limit has lowered the clock by half of what it will."""
PARTIAL_BYTES = 8
"""A partial output element: fp32, written once and read once."""
WIDE = (128, 512)
"""Between these, values are so wide that a kernel's tiles leave room for fewer stages; MLA's 512 have own kernels."""
FULL_TILE_ROWS = 64
"""Rows of the smallest tile that fills the matrix units (wgmma, tcgen05); smaller ones swap the operands."""
STREAM_WIDTH = 128
"""Width of the heads for which `block_bytes_per_s` holds, where a kernel's stages wait for latency."""
NARROW = 64
"""Width of heads up to which XQA's kernel for 8-bit caches leaves the queries' preparation to a further kernel."""


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
    "batch_doubling_s": Parameter(
        meaning="launch: sorting and cutting the requests, for each doubling of the batch",
        low=0.0,
        high=1e-6,
        unit="s",
        logarithmic=False,
    ),
    "bandwidth_fraction": Parameter(meaning="achieved share of the stated memory bandwidth", low=0.2, high=1.0),
    "l2_speedup": Parameter(meaning="bandwidth of L2 over that of memory", low=1.0, high=8.0),
    "l2_usable_fraction": Parameter(
        meaning="share of L2 that a cache fills before it is half evicted", low=0.2, high=1.3
    ),
    "matrix_fraction": Parameter(meaning="achieved share of the stated matrix rate", low=0.002, high=1.0),
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
    "elements_per_s": Parameter(
        meaning="elements of query rows, padding too, that one SM sets up and writes", low=2e8, high=1e12, unit="1/s"
    ),
    "overhead_tiles": Parameter(
        meaning="tiles that the scheduler charges for a request, or the fewest in a split",
        low=0.0,
        high=10.0,
        logarithmic=False,
    ),
    "combine_s": Parameter(meaning="combining splits, fixed part", low=0.0, high=30e-6, unit="s", logarithmic=False),
    "combine_split_s": Parameter(
        meaning="combining, for each split, one after another", low=0.0, high=5e-7, unit="s", logarithmic=False
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
class Machine:
    """The stated numbers of a GPU that the time depends on."""

    bandwidth_bytes_per_s: float
    matrix_flop_per_s: float
    fp8_flop_per_s: float
    sms: int
    l2_bytes: float
    architecture: str = ""
    """Some kernels are written for one, or need more registers on one."""


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
        architecture=gpu.architecture or "",
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
    history_tokens         tokens of a request where a window attends fewer: schedules count them; 0 without a window
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
    history_tokens: Number = 0

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


def norm(a: Number, b: Number, power: float, ops: Operations) -> Number:
    """The larger of two times at a large power, their sum at 1."""
    large = ops.maximum(a, b)
    return large * (1 + (ops.minimum(a, b) / large) ** power) ** (1 / power)


def warm_share(resident: Number, ops: Operations) -> Number:
    """Share of a cache that is found in L2, of which it fills `resident`."""
    return ops.maximum(0.0, ops.minimum(1.0, (1.4 - resident) / 0.8))


def attention_time(
    case: AttentionCase, machine: Machine, shape: KernelShape, values: Values, ops: Operations = SCALAR
) -> AttentionTime:
    """The time of one call, term by term."""
    least, most, up, where = ops.minimum, ops.maximum, ops.ceil, ops.where
    bandwidth = values["bandwidth_fraction"] * machine.bandwidth_bytes_per_s
    overhead, tail = values["overhead_tiles"], values["tail_fraction"]
    shape = shape.on(machine.architecture)
    work = cut(case, machine.sms, shape, overhead=overhead, tail=tail, ops=ops)
    tokens, row_blocks, value = work.tile_tokens, work.row_blocks, case.value_elements

    partial_bytes = where(work.split, work.partials * (work.rows / work.row_waves) * value * PARTIAL_BYTES, 0.0)
    query_bytes = case.query_output_bytes
    resident = (case.cache_bytes + partial_bytes / 2 + query_bytes) / (values["l2_usable_fraction"] * machine.l2_bytes)
    warm = warm_share(resident, ops)
    tile_bytes = tokens * case.entry_bytes
    loaded = 1.0 if shape.whole_tiles else case.context_tokens / (work.tiles_each * tokens)
    again = where(work.tile_rows < FULL_TILE_ROWS, values["reread_fraction"] * (row_blocks - 1), 0.0)
    readers = case.n_heads / case.n_kv_heads if shape.schedule == "threads" else 1.0
    cold = (1 - warm) / readers  # a block a query head: heads that share a KV head read it from memory once
    block_memory_s = (
        tile_bytes
        * loaded
        * (cold + (warm + (1 - warm) * (1 - 1 / readers)) / values["l2_speedup"] + again)
        / bandwidth
    )
    rate = machine.matrix_flop_per_s
    if shape.fp8_products:
        lone = where((row_blocks == 1) & (work.tile_rows >= FULL_TILE_ROWS), shape.lone_fp8_rate, 1.0)
        rate = where(case.eight_bit, machine.fp8_flop_per_s * lone, rate)
    achieved = values["matrix_fraction"] * where((value > WIDE[0]) & (value < WIDE[1]), values["wide_fraction"], 1.0)
    pair_s = case.flop_per_pair * machine.sms / (achieved * rate) + 1 / values["pairs_per_s"]
    block_matrix_s = tokens * work.tile_rows * work.work_share * pair_s
    streamed = tokens * 2 * STREAM_WIDTH * where(case.eight_bit, 1, 2) if shape.waits else tile_bytes
    stream_s = streamed * work.work_share / (values["block_bytes_per_s"] * work.stream_share)
    row_s = work.padded_rows * value / values["elements_per_s"]

    def on_sm(blocks: Number) -> Number:
        return most(1.0, least(work.blocks_per_sm, up(blocks * row_blocks / machine.sms)))

    def item_s(blocks: Number) -> Number:
        return values["item_s"] * work.item_share + on_sm(blocks) * row_s

    def tile_s(blocks: Number) -> Number:
        floor_s = most(on_sm(blocks) * block_matrix_s, stream_s)
        return norm(block_memory_s * blocks, floor_s, values["tile_overlap"], ops)

    items, tiles, full_tile_s = work.items, work.tiles, tile_s(work.tiles.busy)
    items_s = items.full * item_s(items.busy) + items.last * item_s(items.rest)
    tiles_s = tiles.full * full_tile_s + tiles.last * tile_s(tiles.rest)
    matrix_share = least(1.0, on_sm(tiles.busy) * block_matrix_s / full_tile_s)
    tiles_s = tiles_s * (1 + values["throttle"] * matrix_share * matrix_share * tiles_s / (tiles_s + THROTTLE_S))
    combine_s = where(
        work.split,
        values["combine_s"]
        + values["combine_split_s"] * work.splits
        + values["partial_passes"] * partial_bytes / bandwidth,
        0.0,
    )
    launches = 1.0
    if shape.narrow_launch:
        launches = where(case.eight_bit, 1 + where(value <= NARROW, shape.narrow_launch, 0.0), 1.0)
    return AttentionTime(
        launch_s=values["launch_s"] * launches + values["batch_doubling_s"] * ops.log2(case.batch),
        queries_s=query_bytes * values["query_output_passes"] / bandwidth,
        items_s=items_s,
        tiles_s=tiles_s,
        overlapped_s=norm(items_s, tiles_s, values["item_overlap"], ops) - items_s - tiles_s,
        cold_s=values["cold_s"] * (1 - warm),
        combine_s=combine_s,
        memory_share=least(1.0, block_memory_s * tiles.busy / full_tile_s),
        matrix_share=matrix_share,
    )


def roofline_s(case: AttentionCase, machine: Machine, ops: Operations = SCALAR) -> Number:
    """The bound from the datasheet: max(bytes / bandwidth, FLOPs / peak), no launch and no schedule.

    The peak is that of fp8 with an 8-bit cache, which some kernels multiply as it is.
    """
    bytes_s = (case.cache_bytes + case.query_output_bytes) / machine.bandwidth_bytes_per_s
    peak = ops.where(case.eight_bit, machine.fp8_flop_per_s, machine.matrix_flop_per_s)
    return ops.maximum(bytes_s, case.flop / peak)


def bound(time: AttentionTime) -> str:
    """What a call mostly waits for: `latency`, `memory` or `compute`."""
    if time.tiles_s < time.total_s / 2:
        return "latency"
    return "memory" if time.memory_share >= time.matrix_share else "compute"
