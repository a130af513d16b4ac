"""How our Triton decode kernels cut a batch into programs, and with which tiles. Pure: neither torch nor triton needed.

A program attends BLOCK_M query rows (query tokens x heads that share a KV head) to one split of one sequence's context.
A split is a whole number of blocks of BLOCK_N tokens, the same number for every split of every sequence, so that
programs take equally long in a ragged batch as well; only a sequence's last split may be shorter.

The number of blocks a split is the one with the least modelled time, in units of one block on a busy slot:
    waves x (blocks_per_split + start)            waves = ceil(programs / slots)
    + waves x partial + combine x splits + launch where a context is split
`slots` is SMs x programs an SM holds; `start` what a program costs beyond its blocks (0.6 to 1.6 blocks of 64 tokens
fit the published measurements of MLA kernels on Hopper); `partial` the traffic of its fp32 partial output, in blocks;
`combine` and `launch` the second kernel, which reads the splits of a row in turn: reasoned, not measured.
The outcome is about one full wave, or several where one would leave slots idle.
"""

from collections.abc import Sequence
from dataclasses import dataclass

SHARED_MEMORY_BYTES = {
    (8, 0): 166_912,
    (8, 6): 101_376,
    (8, 7): 166_912,
    (8, 9): 101_376,
    (9, 0): 232_448,
    (10, 0): 232_448,
    (10, 3): 232_448,
    (12, 0): 101_376,
    (12, 1): 101_376,
}
"""Most shared memory one program may take, by compute capability: CUDA C++ Programming Guide, technical specifications
(the capacity of an SM less 1 KiB that the system keeps)."""

MIN_ROWS = 16
"""Rows of the smallest matrix-product tile."""
MAX_SPLITS = 256
START_TOKENS = 64
LAUNCH_TOKENS = 64
COMBINE_TOKENS = 2
WORTH_A_WAVE = 0.95
"""More waves must shorten the modelled time to this: programs drift apart, a wave ends less sharply than modelled."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Tile:
    """Compile-time shape of stage one.

    rows            query rows of a program (BLOCK_M)
    tokens          tokens of a block (BLOCK_N)
    stages, warps   software-pipelining depth and warps of a program
    programs_per_sm how many programs an SM holds at once, by registers and shared memory
    """

    rows: int
    tokens: int
    stages: int
    warps: int
    programs_per_sm: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Schedule:
    """The cut of one batch: every split has `blocks_per_split` blocks; the longest sequence has `max_splits` splits."""

    blocks_per_split: int
    max_splits: int

    def splits(self, tokens: int, *, block_tokens: int) -> int:
        """Splits of a sequence of so many tokens; an empty sequence has one, which writes its zeros."""
        return max(1, ceil_div(ceil_div(tokens, block_tokens), self.blocks_per_split))


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def power_of_two(value: int) -> int:
    """The least power of two that is not below `value`."""
    return 1 << max(0, value - 1).bit_length()


def split_bounds(tokens: int, split: int, *, block_tokens: int, schedule: Schedule) -> tuple[int, int]:
    """First token of a split and the one after its last, as the kernels compute them."""
    first = split * schedule.blocks_per_split * block_tokens
    return min(first, tokens), min(first + schedule.blocks_per_split * block_tokens, tokens)


def fixed_schedule(seq_lens: Sequence[int], *, block_tokens: int, splits: int) -> Schedule:
    """The schedule that cuts the longest sequence into about `splits` splits (never more)."""
    most = max(1, ceil_div(max(seq_lens), block_tokens))
    blocks = ceil_div(most, max(1, splits))
    return Schedule(blocks_per_split=blocks, max_splits=ceil_div(most, blocks))


def plan(
    seq_lens: Sequence[int],
    *,
    programs_per_split: int,
    slots: int,
    tile: Tile,
    partial_bytes: int,
    bytes_per_token: int,
) -> Schedule:
    """The schedule with the least modelled time.

    seq_lens            tokens of each sequence
    programs_per_split  row blocks x KV heads: programs that one split of one sequence takes
    slots               programs that run at once on the whole device
    partial_bytes       fp32 partial output that a program writes where its sequence is split; it is read once more
    bytes_per_token     cache bytes of one token that a program reads
    """
    if slots < 1 or programs_per_split < 1:
        raise ValueError(f"slots {slots} and programs_per_split {programs_per_split} must be 1 or more")
    blocks = [max(1, ceil_div(tokens, tile.tokens)) for tokens in seq_lens]
    most = max(blocks)
    start = START_TOKENS / tile.tokens
    partial = 2 * partial_bytes / (bytes_per_token * tile.tokens)
    best, best_cost, best_waves = Schedule(blocks_per_split=most, max_splits=1), float("inf"), 0
    tried = 0
    for splits in range(1, min(most, MAX_SPLITS) + 1):
        per_split = ceil_div(most, splits)
        if per_split == tried:
            continue
        tried = per_split
        counts = [ceil_div(count, per_split) for count in blocks]
        waves = ceil_div(sum(counts) * programs_per_split, slots)
        cost = waves * (per_split + start)
        if per_split < most:
            cost += waves * partial + (LAUNCH_TOKENS + COMBINE_TOKENS * max(counts)) / tile.tokens
        if cost < best_cost * (WORTH_A_WAVE if waves > best_waves else 1):
            best = Schedule(blocks_per_split=per_split, max_splits=max(counts))
            best_cost, best_waves = cost, waves
    return best


def partial_output_bytes(
    seq_lens: Sequence[int], *, schedule: Schedule, block_tokens: int, rows: int, width: int
) -> int:
    """fp32 partial outputs and log-sum-exps, written once and read once; 0 where nothing is split."""
    if schedule.max_splits == 1:
        return 0
    splits = sum(schedule.splits(tokens, block_tokens=block_tokens) for tokens in seq_lens)
    return 2 * 4 * rows * (width + 1) * splits
