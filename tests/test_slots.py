"""Slots against a simulation that keeps the entries one token after another."""

from collections.abc import Callable
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvcalc.architecture.slots import Borrowed, Constant, EveryNTokens, EveryToken, Selected, Slots, Window

quick = settings(derandomize=True, max_examples=60, deadline=None, database=None)

small = st.integers(1, 12)
windows = st.builds(Window, small, st.integers(0, 4))
selections = st.builds(Selected, st.one_of(st.just(EveryToken()), st.builds(EveryNTokens, st.integers(1, 5))), small)
growing = st.one_of(st.just(EveryToken()), st.builds(EveryNTokens, small), selections)
kept = st.one_of(growing, windows)
steps = st.integers(1, 60).flatmap(lambda context: st.tuples(st.just(context), st.integers(1, context)))


def entries(slots: Slots, position: int) -> set[int]:
    """The entries that there are after the token at `position`, each named by the position that made it."""
    if isinstance(slots, EveryToken):
        return set(range(1, position + 1))
    if isinstance(slots, Window):
        recent = set(range(max(1, position - slots.tokens + 1), position + 1))
        return recent | set(range(1, min(slots.sink_tokens, position) + 1))
    if isinstance(slots, EveryNTokens):
        return {end for end in range(1, position + 1) if end % slots.tokens == 0}
    assert isinstance(slots, Selected)
    return entries(slots.of, position)


def attended(slots: Slots, position: int) -> int:
    """How many of them the token at `position` attends."""
    there = len(entries(slots, position))
    return min(there, slots.top_k) if isinstance(slots, Selected) else there


def most_kept(slots: Slots, context: int) -> int:
    """The most entries that were there at any time so far: a window is never given back."""
    return max(len(entries(slots, position)) for position in range(1, context + 1))


@quick
@given(slots=kept, step=steps)
def test_stored_is_what_a_token_by_token_cache_holds(slots, step):
    context, _ = step
    assert slots.stored(context) == most_kept(slots, context)


@quick
@given(slots=kept, step=steps)
def test_pairs_are_the_sum_over_the_steps_queries(slots, step):
    context, queries = step
    positions = range(context - queries + 1, context + 1)
    assert slots.pairs(context, queries) == sum(attended(slots, position) for position in positions)


@quick
@given(slots=st.one_of(st.just(EveryToken()), st.builds(EveryNTokens, small), windows), step=steps)
def test_read_is_the_union_of_what_the_queries_attend(slots, step):
    context, queries = step
    union = set().union(*(entries(slots, position) for position in range(context - queries + 1, context + 1)))
    assert slots.read(context, queries) == len(union)


@quick
@given(slots=selections, step=steps)
def test_a_selection_reads_disjoint_choices_and_no_more_than_there_is(slots, step):
    context, queries = step
    there = len(entries(slots, context))
    assert slots.read(context, queries) == min(there, queries * slots.top_k)
    assert slots.read(context, 1) == attended(slots, context)


@quick
@given(slots=kept, context=st.integers(1, 60))
def test_prefill_pairs_are_the_sum_of_all_decode_steps(slots, context):
    assert slots.pairs(context, context) == sum(slots.pairs(position, 1) for position in range(1, context + 1))


@quick
@given(slots=kept, step=steps)
def test_a_step_of_several_queries_is_several_steps(slots, step):
    context, queries = step
    singles = sum(slots.pairs(position, 1) for position in range(context - queries + 1, context + 1))
    assert slots.pairs(context, queries) == singles


@quick
@given(slots=kept, context=st.integers(1, 60))
def test_stored_never_falls_with_context(slots, context):
    assert slots.stored(context) <= slots.stored(context + 1) <= slots.stored(context) + 1


@quick
@given(slots=kept, context=st.integers(1, 60))
def test_nothing_is_above_full_attention(slots, context):
    full = EveryToken()
    assert slots.stored(context) <= full.stored(context)
    assert slots.read(context, 1) <= full.read(context, 1)
    assert slots.pairs(context, context) <= full.pairs(context, context)


@quick
@given(slots=kept, step=steps)
def test_a_step_reads_no_more_than_is_stored_beside_its_own_tokens(slots, step):
    context, queries = step
    assert slots.read(context, queries) <= slots.stored(context) + queries - 1


@quick
@given(slots=growing, periods=st.integers(1, 6))
def test_growth_a_token_is_the_slope_over_whole_periods(slots, periods):
    period = slots.per_token.denominator
    grown = slots.stored((periods + 3) * period) - slots.stored(3 * period)
    assert slots.per_token == Fraction(grown, periods * period)


@quick
@given(slots=windows)
def test_a_window_stops_growing(slots):
    full = slots.tokens + slots.sink_tokens
    assert slots.per_token == 0
    assert slots.stored(full) == slots.stored(10 * full) == full
    assert not slots.spans_context


def test_a_window_as_large_as_the_context_is_full_attention():
    wide, full = Window(64), EveryToken()
    for context in range(1, 65):
        assert wide.stored(context) == full.stored(context)
        assert wide.pairs(context, context) == full.pairs(context, context)


def test_sinks_stay_beside_the_window():
    # arXiv 2309.17453: 4 sinks and a window of 1,020 make a cache of 1,024
    slots = Window(1020, sink_tokens=4)
    assert (slots.stored(1023), slots.stored(1024), slots.stored(100_000)) == (1023, 1024, 1024)
    assert slots.pairs(100_000, 1) == 1024


@pytest.mark.parametrize(
    ("slots", "stored", "read", "pairs"),
    [
        (EveryToken(), 131_072, 131_072, 131_072),
        (Window(128), 128, 128, 128),
        (EveryNTokens(128), 1024, 1024, 1024),
        (Selected(EveryToken(), 2048), 131_072, 2048, 2048),
        (Selected(EveryNTokens(4), 512), 32_768, 512, 512),
        (Constant(), 1, 1, 1),
        (Constant(8, read_per_token=2), 8, 2, 1),
        (Borrowed(EveryToken()), 0, 131_072, 131_072),
        (Borrowed(Window(128)), 0, 128, 128),
    ],
    ids=str,
)
def test_one_decode_step_at_131072_tokens(slots, stored, read, pairs):
    assert (slots.stored(131_072), slots.read(131_072, 1), slots.pairs(131_072, 1)) == (stored, read, pairs)


@quick
@given(inner=kept, step=steps)
def test_a_borrowed_cache_is_read_like_its_owners_and_never_stored(inner, step):
    context, queries = step
    borrowed = Borrowed(inner)
    assert borrowed.stored(context) == 0
    assert borrowed.per_token == 0
    assert borrowed.read(context, queries) == inner.read(context, queries)
    assert borrowed.pairs(context, queries) == inner.pairs(context, queries)


@quick
@given(inner=kept)
def test_a_borrowed_cache_is_split_over_dcp_ranks_as_its_owners(inner):
    assert Borrowed(inner).spans_context == inner.spans_context


@quick
@given(entries=small, per_token=st.one_of(st.none(), small), step=steps)
def test_a_state_is_constant(entries, per_token, step):
    context, queries = step
    slots = Constant(entries, read_per_token=per_token)
    assert slots.stored(context) == slots.stored(1) == entries
    assert slots.read(context, queries) <= entries
    assert slots.pairs(context, queries) == queries


@pytest.mark.parametrize(
    "slots",
    [EveryToken(), Window(128, 4), EveryNTokens(128), Selected(EveryNTokens(4), 512), Constant(8), Borrowed(Window(7))],
    ids=str,
)
def test_the_printed_formula_gives_what_is_stored(slots):
    functions: dict[str, Callable[..., object]] = {"min": min, "floor": int}
    for context in (1, 127, 128, 131, 5000):
        formula = slots.formula("context_tokens").replace(",", "").replace("context_tokens ", "context_tokens, ")
        formula = formula.replace("context_tokens, /", "context_tokens /")
        value = eval(formula, {"__builtins__": {}}, {**functions, "context_tokens": context})
        assert int(value) == slots.stored(context)
