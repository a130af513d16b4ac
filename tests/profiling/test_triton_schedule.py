"""The split schedule: every token in exactly one split, on block boundaries, and never worse than not splitting."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvcalc.profiling.kernels.triton_schedule import (
    MAX_SPLITS,
    Schedule,
    Tile,
    ceil_div,
    fixed_schedule,
    partial_output_bytes,
    plan,
    power_of_two,
    split_bounds,
)

TILE = Tile(rows=16, tokens=32, stages=3, warps=8, programs_per_sm=2)
lengths = st.lists(st.integers(0, 40_000), min_size=1, max_size=6)


def planned(seq_lens, *, programs=1, slots=264, partial_bytes=32_768, bytes_per_token=1_152, tile=TILE):
    return plan(
        seq_lens,
        programs_per_split=programs,
        slots=slots,
        tile=tile,
        partial_bytes=partial_bytes,
        bytes_per_token=bytes_per_token,
    )


def waves(seq_lens, schedule, *, programs, slots):
    counts = sum(schedule.splits(tokens, block_tokens=TILE.tokens) for tokens in seq_lens)
    return ceil_div(counts * programs, slots)


@given(lengths, st.integers(1, 8), st.integers(1, 600))
@settings(derandomize=True, max_examples=150, deadline=None)
def test_splits_cover_every_token_once_on_block_boundaries(seq_lens, programs, slots):
    schedule = planned(seq_lens, programs=programs, slots=slots)
    for tokens in seq_lens:
        splits = schedule.splits(tokens, block_tokens=TILE.tokens)
        assert 1 <= splits <= schedule.max_splits <= MAX_SPLITS
        assert splits <= max(1, ceil_div(tokens, TILE.tokens))
        end = 0
        for split in range(splits):
            first, last = split_bounds(tokens, split, block_tokens=TILE.tokens, schedule=schedule)
            assert first == end
            assert first % TILE.tokens == 0
            assert last > first or tokens == 0
            end = last
        assert end == tokens


@given(lengths, st.integers(1, 8), st.integers(1, 600))
@settings(derandomize=True, max_examples=100, deadline=None)
def test_the_longest_sequence_has_as_many_splits_as_the_grid(seq_lens, programs, slots):
    schedule = planned(seq_lens, programs=programs, slots=slots)
    assert schedule.splits(max(seq_lens), block_tokens=TILE.tokens) == schedule.max_splits


@given(lengths, st.integers(1, 8), st.integers(1, 600))
@settings(derandomize=True, max_examples=100, deadline=None)
def test_the_busiest_slot_never_has_more_blocks_than_without_splits(seq_lens, programs, slots):
    schedule = planned(seq_lens, programs=programs, slots=slots)
    whole = fixed_schedule(seq_lens, block_tokens=TILE.tokens, splits=1)
    busiest = waves(seq_lens, schedule, programs=programs, slots=slots) * schedule.blocks_per_split
    assert busiest <= waves(seq_lens, whole, programs=programs, slots=slots) * whole.blocks_per_split


@given(st.integers(1, 4), st.integers(64, 40_000))
@settings(derandomize=True, max_examples=60, deadline=None)
def test_more_slots_never_mean_longer_splits(batch, tokens):
    found = [planned([tokens] * batch, slots=slots).blocks_per_split for slots in (8, 32, 132, 264)]
    assert found == sorted(found, reverse=True)


def test_one_long_sequence_fills_one_wave():
    schedule = planned([131_072], slots=132)
    assert waves([131_072], schedule, programs=1, slots=132) == 1
    assert schedule.max_splits > 0.9 * 132


def test_a_batch_that_fills_the_device_is_not_split():
    assert planned([4_096] * 264, slots=264) == Schedule(blocks_per_split=128, max_splits=1)


def test_a_tail_of_a_second_wave_is_split_away():
    """300 sequences on 264 slots: two waves of whole sequences would leave most slots idle in the second."""
    seq_lens = [65_536] * 300
    schedule = planned(seq_lens)
    blocks = 65_536 // TILE.tokens
    assert waves(seq_lens, schedule, programs=1, slots=264) * schedule.blocks_per_split < 1.5 * blocks


def test_costly_partial_outputs_mean_fewer_splits():
    cheap, dear = (planned([4_096] * 150, partial_bytes=size).max_splits for size in (0, 1 << 24))
    assert dear == 1 < cheap


def test_a_short_context_is_not_cut_into_single_blocks():
    """The combine reads the splits of a row in turn: 256 splits of one block would cost more there than they save."""
    schedule = planned([8_192])
    assert 16 <= schedule.max_splits <= 128


@given(lengths, st.integers(1, 40))
@settings(derandomize=True, max_examples=60, deadline=None)
def test_a_fixed_schedule_has_no_more_splits_than_asked_for(seq_lens, splits):
    schedule = fixed_schedule(seq_lens, block_tokens=64, splits=splits)
    assert 1 <= schedule.max_splits <= splits
    assert schedule.splits(max(seq_lens), block_tokens=64) == schedule.max_splits


def test_partial_outputs_are_counted_written_and_read():
    whole = Schedule(blocks_per_split=4, max_splits=1)
    split = Schedule(blocks_per_split=2, max_splits=2)
    count = {"block_tokens": 64, "rows": 16, "width": 512}
    assert partial_output_bytes([256, 100], schedule=whole, **count) == 0
    assert partial_output_bytes([256, 100], schedule=split, **count) == 2 * 4 * 16 * 513 * (2 + 1)


def test_an_empty_batch_of_tokens_has_one_split():
    schedule = planned([0, 0])
    assert schedule.max_splits == 1
    assert split_bounds(0, 0, block_tokens=32, schedule=schedule) == (0, 0)


def test_nonsense_is_refused():
    with pytest.raises(ValueError, match="slots 0"):
        planned([64], slots=0)


@pytest.mark.parametrize(("value", "expected"), [(1, 1), (2, 2), (3, 4), (64, 64), (65, 128)])
def test_power_of_two(value, expected):
    assert power_of_two(value) == expected
