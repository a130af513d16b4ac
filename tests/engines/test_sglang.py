"""SGLang's pools: which there are, what is counted for them, what is allocated; and those that its own code judged."""

import json
from fractions import Fraction
from pathlib import Path

import pytest

from kvcalc import api, engines
from kvcalc.errors import UsageError
from kvcalc.sizing import cache_size, stage_allocations
from kvcalc.workload import Parallelism, Workload

ONE = Parallelism()
JUDGED = json.loads((Path(__file__).resolve().parents[2] / "benchmarks/results/engine_judge_sglang.json").read_text())
CASES = {
    "tp1": (ONE, None),
    "tp2": (Parallelism(tp=2), None),
    "tp8": (Parallelism(tp=8), None),
    "tp2 pp2": (Parallelism(tp=2, pp=2), None),
    "tp8 dcp2": (Parallelism(tp=8, dcp=2), None),
    "page 64": (ONE, 64),
}
"""The judge's names for them."""
AVAILABLE_BYTES = 40 << 40


def pools_of(name, version, *, mix=ONE, **options):
    model = api.load_model(name)
    layout = api.layout_for(model, engine=f"sglang@{version}", parallelism=mix, **options)
    return stage_allocations(model, layout, mix)


def bytes_a_token(name, version, **options):
    model = api.load_model(name)
    layout = api.layout_for(model, engine=f"sglang@{version}", **options)
    return cache_size(model, layout, Workload(context_tokens=4096), ONE).bytes_per_token


def test_windows_have_a_pool_of_their_own():
    """gpt-oss-120b: 18 layers of full attention, 18 windows of 128 with 0.8 rows for each full one."""
    (pool,), layer = pools_of("gpt-oss-120b", "0.5.23"), 8 * 64 * 2 * 2
    assert pool.cell_bytes == layer * (18 + 18 * Fraction(4, 5))
    assert pool.tokens(100_000) == 100_000
    assert pool.tokens(150) == 160  # the window's 128 rows take 160 of the full pool's
    assert pool.pool_bytes(1001) == layer * 18 * (1001 + 1) + layer * 18 * (800 + 1)


@pytest.mark.parametrize(
    ("name", "version", "layers"),
    [
        ("gemma-3-27b", "0.5.23", 62),
        ("gemma-4-31b", "0.5.11", 10),
        ("gpt-oss-120b", "0.5.7", 36),
        ("gpt-oss-120b", "0.5.8", 18),
        ("llama-4-scout", "0.5.7", 48),
        ("llama-4-scout", "0.5.8", 12),
        ("mistral-7b-v0.1", "0.5.23", 32),
    ],
)
def test_windows_without_a_pool_keep_every_token(name, version, layers):
    (pool,) = pools_of(name, version)
    full = sum(item.count for item in pool.records if item.record.growth_bytes and item.record.components)
    assert full == layers
    notes = api.layout_for(api.load_model(name), engine=f"sglang@{version}").notes
    assert any("no window pool" in note for note in notes) is not pool.is_hybrid


def test_rows_of_two_pools_are_split_from_rows_of_all_layers():
    """gpt-oss-20b in pages of 64: both divisions round down, and the share was one of the rows before the page."""
    (first,), (second,), (third,) = (
        pools_of("gpt-oss-20b", version, block_tokens=64) for version in ("0.5.9", "0.5.10", "0.5.11")
    )
    assert first.rows(AVAILABLE_BYTES)[1] - second.rows(AVAILABLE_BYTES)[1] == 64
    assert third.rows(1 << 30)[0] >= second.rows(1 << 30)[0]


@pytest.mark.parametrize(("version", "counted"), [("0.5.6", 576 + 132), ("0.5.16", 576 + 132), ("0.5.17", 656 + 132)])
def test_tokens_of_sparse_mla_were_counted_without_scales(version, counted):
    (pool,) = pools_of("deepseek-v3.2", version, kv_dtype="fp8")
    tokens, _ = pool.rows(AVAILABLE_BYTES)
    assert tokens == AVAILABLE_BYTES // (61 * counted) // 64 * 64
    assert pool.tensor_bytes(tokens, 0) == (tokens + 64) * 61 * (656 + 132)


@pytest.mark.parametrize(("version", "owners"), [("0.5.17", 78), ("0.5.18", 21)])
def test_layers_that_share_a_selection_kept_index_keys(version, owners):
    assert bytes_a_token("glm-5.2", version, kv_dtype="fp8") == 78 * 656 + owners * 132


def test_unread_index_keys_cost_no_time():
    old, new = (api.estimate("glm-5.2", engine=f"sglang@{version}") for version in ("0.5.17", "0.5.18"))
    assert old.attention("decode").flop == new.attention("decode").flop
    assert old.attention("decode").read_bytes == new.attention("decode").read_bytes


def test_states_are_fp32_unless_the_config_or_the_user_says_otherwise():
    elements = 36 * 32 * 128 * 128
    sizes = [
        sum(
            item.count * item.record.stored_bytes(1)
            for item in pools_of("qwen3-next-80b-a3b", "0.5.23", **options)[0].records
            if item.record.is_state
        )
        for options in ({}, {"state_dtype": "bf16"})
    ]
    assert sizes[0] - sizes[1] == 2 * elements


def test_pipeline_stages_had_the_states_of_all_layers():
    mix = Parallelism(pp=2)
    old, new = (pools_of("kimi-linear-48b-a3b", version, mix=mix) for version in ("0.5.9", "0.5.10"))
    states = [[sum(i.count for i in pool.records if i.record.is_state) for pool in pools] for pools in (old, new)]
    assert states[0] == [40, 40]
    assert sum(states[1]) == 40
    assert [pool.rows(1 << 40) for pool in old] == [pool.rows(1 << 40) for pool in new]


@pytest.mark.parametrize(
    ("name", "version", "options"),
    [
        ("llama-3.1-8b", "0.5.15", {"kv_dtype": "mxfp8"}),
        ("deepseek-v3", "0.5.23", {"kv_dtype": "mxfp8"}),
        ("deepseek-v3.2", "0.5.23", {"kv_dtype": "nvfp4"}),
        ("gpt-oss-20b", "0.5.23", {"kv_dtype": "nvfp4"}),
        ("nemotron-h-8b", "0.5.15", {"kv_dtype": "nvfp4"}),
        ("gpt-oss-20b", "0.5.23", {"mix": Parallelism(tp=8, dcp=2)}),
        ("minimax-m3", "0.5.23", {"mix": Parallelism(tp=8, dcp=2)}),
    ],
)
def test_pools_that_sglang_does_not_have_are_refused(name, version, options):
    with pytest.raises(UsageError):
        pools_of(name, version, **options)


# --- SGLang's own code ------------------------------------------------------------------------------------------------


def test_sglang_itself_found_nothing_different():
    assert JUDGED["verdicts"]["different"] == 0
    assert all(row["different"] == 0 for row in JUDGED["rows"])
    assert set(JUDGED["verdicts"]) == {"equal", "different", "kvcalc refuses", "not comparable"}
    assert all(row["reason"] for row in JUDGED["others"])


def test_every_version_with_a_rule_of_its_own_was_judged():
    engine = engines.load_engine("sglang")
    named = {known.since for rule in engine.rules for known in rule.history} | {
        end for span in engine.covers for end in span
    }
    assert named <= {row["version"] for row in JUDGED["rows"]}


@pytest.mark.parametrize("kv", ["bf16", "fp8", "nvfp4", "mxfp8"])
def test_pools_that_sglangs_own_code_judged_stay_as_they_are(kv):
    rows = [row for row in JUDGED["numbers"] if row["kv"] == kv]
    assert len(rows) > 30
    for row in rows[::2]:
        for version in (row["versions"][0], row["versions"][-1]):
            for case, stages in row["cases"].items():
                mix, page = CASES[case]
                pools = pools_of(row["model"], version, kv_dtype=kv, mix=mix, block_tokens=page)
                assert [numbers(pool) for pool in pools] == stages, (row["model"], version, case)


def numbers(pool):
    """As the judge writes them: tokens, bytes of the tensors, and what else there is."""
    tokens, window = pool.rows(AVAILABLE_BYTES)
    states = sum(item.count * item.record.stored_bytes(1) for item in pool.records if item.record.is_state)
    return [tokens, pool.tensor_bytes(tokens, window), *([window] if window else []), *([states] if states else [])]
