"""How kernels cut their work: numbers that the engines' sources give by hand."""

import pytest

from kvcalc.timing.attention_time import AttentionCase
from kvcalc.timing.families import FAMILIES, GQA, MHA, MLA
from kvcalc.timing.schedule import SCALAR, Cut, cut

SMS = 132


def cut_of(family: str, kind: str, *, batch: int, kv_heads: int, context: int, group: int = 1, **more) -> Cut:
    width, element = more.get("width", 128), more.get("element", 2)
    case = AttentionCase(
        batch=batch,
        n_heads=kv_heads * group,
        n_kv_heads=kv_heads,
        context_tokens=context,
        query_tokens=more.get("query", 1),
        entry_bytes=2 * width * element,
        flop_per_pair=4 * width,
        value_elements=width,
        query_output_elements=2 * width,
        eight_bit=element == 1,
        history_tokens=more.get("history", 0),
    )
    return cut(case, SMS, FAMILIES[family].kernels[kind].shape, overhead=1.0, tail=1.0, ops=SCALAR)


@pytest.mark.parametrize(
    ("units", "context", "per_sm", "splits", "full", "last"),
    [
        (8, 131_072, 1, 17, 1, 1),  # ceil(132 / 8) = 17 splits: 136 blocks, four of them in a wave of their own
        (12, 131_072, 1, 11, 1, 0),  # 132 blocks
        (128, 256, 1, 1, 1, 0),  # 257 tokens are one pass of 1024 threads
        (128, 1024, 1, 2, 1, 1),
        (160, 1024, 1, 1, 1, 1),  # still 1024 threads, so 28 blocks wait
        (192, 1024, 2, 1, 1, 0),  # 512 threads: one wave again
        (640, 1024, 4, 1, 1, 1),  # 256 threads: 528 at a time
        (192, 32_768, 1, 1, 1, 1),  # scores of 32,768 tokens leave room for one block an SM
    ],
)
def test_masked_attention_rounds_splits_up(
    units: int, context: int, per_sm: int, splits: int, full: int, last: int
) -> None:
    found = cut_of("trtllm-xqa", MHA, batch=units // 4, kv_heads=4, context=context)
    assert (found.blocks_per_sm, found.splits) == (per_sm, splits)
    assert (found.items.full, found.items.last) == (full, last)


@pytest.mark.parametrize(
    ("context", "splits"),
    [(128, 1), (256, 2), (1024, 8), (2048, 11), (4096, 16), (65_536, 16)],
)
def test_xqa_splits_by_history_and_at_most_eight_waves(context: int, splits: int) -> None:
    found = cut_of("trtllm-xqa", GQA, batch=8, kv_heads=8, group=8, context=context)
    assert found.splits == splits
    assert found.items.full + found.items.last <= 8


def test_xqa_leaves_small_calls_to_masked_attention() -> None:
    """4 x units x max(1, floor(context / 128)) < SMs: a block for each of the query heads."""
    small, enough = (cut_of("trtllm-xqa", GQA, batch=4, kv_heads=8, group=8, context=size) for size in (128, 256))
    assert (small.partials, small.padded_rows) == (256, 1)
    assert (enough.partials, enough.padded_rows) == (64, 16)
    several = cut_of("trtllm-xqa", GQA, batch=4, kv_heads=8, group=8, context=128, query=2)
    assert several.padded_rows == 16
    eight_bit = cut_of("trtllm-xqa", GQA, batch=4, kv_heads=8, group=8, context=128, element=1)
    assert (eight_bit.padded_rows, eight_bit.tile_tokens, eight_bit.blocks_per_sm) == (8, 64, 3)


def test_flash_attention_splits_for_a_tenth_more_work() -> None:
    """prepare_varlen_num_blocks: 128 tiles of 48 units, ceil(1.1 x 48 x 128 / 132) = 52 tiles a split."""
    found = cut_of("fa3", GQA, batch=2, kv_heads=24, context=16_384)
    assert (found.splits, found.tiles.full + found.tiles.last) == (3, 2 * 43)
    assert cut_of("fa3", GQA, batch=1, kv_heads=1, context=512).splits == 1  # four tiles: never split
    assert cut_of("fa3-vllm", GQA, batch=1, kv_heads=1, context=512).splits == 4
    assert cut_of("fa3-vllm", GQA, batch=1, kv_heads=1, context=131_072).splits == 32
    assert cut_of("fa3", GQA, batch=128, kv_heads=1, context=131_072).splits == 1


def test_outputs_pass_through_the_combine_where_the_kernel_was_built_for_splits() -> None:
    """FlashAttention-3 decides for the split kernel by the tiles of a request, and then combines unsplit ones too."""
    short, long_ = (cut_of("fa3", MLA, batch=256, kv_heads=1, context=tiles * 64, width=512) for tiles in (4, 5))
    assert (short.splits, long_.splits) == (1, 1)
    assert (bool(short.split), bool(long_.split)) == (False, True)


def test_splits_of_vllms_flash_attention_are_counted_by_the_whole_context() -> None:
    """block.h: a window of 128 is one tile of 128, from its first token on; 32 splits are launched for the 131,072."""
    found = cut_of("fa3-vllm", GQA, batch=1, kv_heads=1, context=128, history=131_072)
    assert (found.splits, found.partials, found.tiles_each, found.items.full) == (32, 1, 1, 1)
    assert (found.tile_rows, found.padded_rows) == (128, 96)  # two warp groups, which work side by side
    narrow = cut_of("fa3-vllm", GQA, batch=1, kv_heads=1, context=128, history=131_072, width=64)
    assert (narrow.tile_rows, narrow.tile_tokens) == (192, 160)
    assert cut_of("fa3-vllm", GQA, batch=1, kv_heads=1, context=128).splits == 1


def test_sglang_hands_its_flash_attention_the_window_alone() -> None:
    alone, windowed = (cut_of("fa3", GQA, batch=8, kv_heads=8, context=8192, history=size) for size in (0, 131_072))
    assert alone == windowed


def test_flash_attention_takes_more_rows_than_a_warp_groups_for_several_queries() -> None:
    """use_one_mma_wg: up to 64 rows without a window. Plain decode is as it was fitted."""
    for family in ("fa3", "fa3-vllm"):
        rows = {query: cut_of(family, GQA, batch=1, kv_heads=1, group=8, context=512, query=query) for query in (8, 16)}
        assert [(found.tile_rows, found.row_blocks) for found in rows.values()] == [(64, 1), (128, 1)]
        plain = cut_of(family, GQA, batch=1, kv_heads=1, group=128, context=512)
        assert (plain.tile_rows, plain.row_blocks) == (64, 2)


def test_idle_blocks_of_xqa_do_all_but_their_tiles() -> None:
    """mha.cu: 8 splits by 1,024 tokens of history, 1,024 blocks on 132 SMs, of which 128 have a tile."""
    found = cut_of("trtllm-xqa", GQA, batch=16, kv_heads=8, group=8, context=128, history=1024, width=64)
    assert (found.splits, found.partials) == (8, 128)
    assert found.items.full == pytest.approx(1 + 0.7 * (1024 / 132 - 1))
    assert found.tiles.full == 1
    plain = cut_of("trtllm-xqa", GQA, batch=16, kv_heads=8, group=8, context=128, width=64)
    assert (plain.splits, plain.items.full) == (1, 1)


@pytest.mark.parametrize(("history", "tiles"), [(1024, 2), (1000, 3), (960, 2)])
def test_a_window_of_hoppers_xqa_begins_at_a_whole_tile(history: int, tiles: int) -> None:
    """mha_sm90.cu: nbTilesInUse = ceil(1000 / 64) - floor(872 / 64) = 16 - 13; other blocks return at once."""
    found = cut_of("trtllm-xqa", GQA, batch=1, kv_heads=8, group=8, context=128, history=history, element=1)
    assert (found.tiles_each, found.splits, found.partials) == (tiles, tiles, 8 * tiles)


def test_masked_attention_splits_a_window_as_it_would_the_context() -> None:
    """multi_block_grid_setup: 33 splits of four heads by 131,072 tokens, of four tokens of the window each."""
    found = cut_of("trtllm-xqa", MHA, batch=1, kv_heads=4, context=128, history=131_072)
    assert (found.splits, found.partials) == (33, 132)
    assert found.tiles.full == pytest.approx(1 / 33)


@pytest.mark.parametrize("name", ["fa3", "fa3-vllm", "trtllm-gen", "trtllm-xqa", "flashinfer", "triton"])
@pytest.mark.parametrize("element", [1, 2])
def test_a_history_of_the_attended_tokens_alone_changes_nothing(name: str, element: int) -> None:
    for batch, context in ((1, 100), (16, 5000), (300, 70_000)):
        size = {"batch": batch, "kv_heads": 8, "group": 4, "context": context, "element": element}
        assert cut_of(name, GQA, **size) == cut_of(name, GQA, **size, history=context)
