"""llama.cpp's caches as its own code logs them (benchmarks/llama_cpp_judge.py), and its logs reconciled."""

import json
from pathlib import Path

import pytest

from benchmarks.llama_cpp_judge import MODELS, RELEASED, Setting, kvcalc_says, reconciled
from kvcalc import api
from kvcalc.commands.reconcile import make
from kvcalc.engines.logs import read_log
from kvcalc.errors import UsageError
from kvcalc.reconcile import EXPLAINED, OFF
from kvcalc.sizing import cache_size, stage_allocations
from kvcalc.specs.build import build_model
from kvcalc.specs.reader import Document
from kvcalc.workload import Parallelism, Workload

ROOT = Path(__file__).resolve().parents[2]
JUDGED = json.loads((ROOT / "benchmarks/results/engine_judge_llama_cpp.json").read_text())
LOGS = ROOT / "tests/data/logs"
TINY = {tiny.title: build_model(Document("tiny.yaml", "", tiny.spec())) for tiny in MODELS}
NOTHING = dict.fromkeys(("gpu", "kv_dtype", "block_tokens", "prefix_caching", "max_batched_tokens"))


def sequence_bytes(name, engine="llama-cpp", *, context=8192, **options):
    model = api.load_model(name)
    layout = api.layout_for(model, engine=engine, **options)
    return stage_allocations(model, layout, Parallelism())[0].sequence_bytes(context)


def account(log, model, version):
    lines = (LOGS / f"{log}.log").read_text().splitlines(keepends=True)
    return lines, make(
        read_log(lines),
        model=TINY[model],
        engine=f"llama-cpp@{RELEASED[version][0]}",
        ranks=dict.fromkeys(("tp", "pp", "dcp")),
        **NOTHING,
    )[0]


def test_llama_cpps_own_code_finds_nothing_different():
    assert set(JUDGED["verdicts"]) == {"equal", "llama.cpp refuses", "not there"}
    assert JUDGED["verdicts"]["equal"] > 1400
    assert set(JUDGED["versions"]) == set(RELEASED)
    assert {row["model"] for row in JUDGED["rows"] if row["version"] == "0.3.36" and "both" in row} == set(TINY)
    assert all(row["reconcile"] == EXPLAINED for row in JUDGED["rows"] if row["verdict"] == "equal")


@pytest.mark.parametrize("version", RELEASED)
def test_caches_that_llama_cpps_own_code_judged_stay_as_they_are(version):
    rows = [row for row in JUDGED["rows"] if row["version"] == version and row["verdict"] == "equal"]
    for row in rows[::3]:
        rollbacks = max(pool.get("rollbacks", 0) for pool in row["both"])
        found = kvcalc_says(TINY[row["model"]], version, Setting(**row["setting"]), rollbacks)
        assert found == (row["both"], row["bytes"]), row


def test_what_llama_cpp_refuses_is_mla_with_two_types():
    refused = [row for row in JUDGED["rows"] if row["verdict"] == "llama.cpp refuses"]
    assert {row["model"] for row in refused} == {"deepseek2", "deepseek32", "glm-dsa", "kimi-linear"}
    assert all(row["setting"]["type_k"] != row["setting"].get("type_v", "f16") for row in refused)


@pytest.mark.parametrize(
    ("log", "model", "version", "sizes"),
    [
        ("llama_cpp_0_3_36_unified_windows", "gemma3", "0.3.36", {"keys and values": 18_176, "windows": 6 * 2_560}),
        (
            "llama_cpp_0_3_16_windows_padded_to_32",
            "gemma2",
            "0.3.16",
            {"keys and values": 13 * 5_024, "windows": 13 * 1_120},
        ),
        ("llama_cpp_0_3_9_whole_windows", "gemma3", "0.3.9", {"keys and values": 7 * 8_192}),
    ],
)
def test_cells_of_logs(log, model, version, sizes):
    lines, found = account(log, model, version)
    assert found.verdict == EXPLAINED
    cell = 64 * 34 // 32 + 64 * 18 // 32 if "q4_0" in "".join(lines) else 2 * 64 * 2
    assert {item.name: item.bytes / cell for item in found.items if item.name != "rounding"} == sizes


def test_a_log_of_streams_and_of_states_with_rollbacks():
    """4 streams of 4,608 cells; of each of 4 sequences its state and two before."""
    lines, found = account("llama_cpp_0_3_36_streams_states", "nemotron_h", "0.3.36")
    assert found.verdict == EXPLAINED
    assert found.stated.tokens == 4 * 4_608
    low, high = found.tokens_range
    assert low <= 4 * 4_608 <= high
    state = (8 * 32 * 64 + 3 * (256 + 2 * 2 * 64)) * 4
    sizes = {item.name: item.bytes for item in found.items}
    assert (sizes["keys and values"], sizes["states"]) == (4 * 4_608 * 2 * 64 * 2, 2 * 4 * 3 * state)
    assert reconciled(TINY["jamba"], "0.3.36", lines) == OFF


def test_windows_of_every_layer_are_kept_whole():
    """Of Mistral's and Phi-3's sliding windows llama.cpp makes no use."""
    assert sequence_bytes("mistral-7b-v0.1", context=16_384) == 16_384 * 32 * 8 * 128 * 2 * 2
    assert sequence_bytes("phi-3-mini-4k", context=4_096) == 4_096 * 32 * 32 * 96 * 2 * 2


def test_windows_were_whole_before_they_had_a_cache_of_their_own():
    layer = 16 * 128 * 2 * 2
    assert sequence_bytes("gemma-3-27b", "llama-cpp@2025-05-01") == 62 * layer * 8192
    assert sequence_bytes("gemma-3-27b", "llama-cpp@2025-06-01") == layer * (10 * 8192 + 52 * 1536)


def test_windows_were_f16_for_two_days():
    quantised, whole, window = 34 * 16 * 128 * 2 // 32, 10 * 8192, 52 * 1536
    assert sequence_bytes("gemma-3-27b", kv_dtype="q8_0") == quantised * (whole + window)
    assert (
        sequence_bytes("gemma-3-27b", "llama-cpp@2026-04-03", kv_dtype="q8_0")
        == quantised * whole + 16 * 128 * 2 * 2 * window
    )


@pytest.mark.parametrize(
    ("date", "kv_dtype", "tokens"),
    [
        ("2025-05-01", None, 928),
        ("2025-05-01", "q8_0", 1024),
        ("2025-09-01", None, 1024),
        ("2026-01-01", None, 1024),
    ],
)
def test_contexts_were_padded_to_32_without_flash_attention(date, kv_dtype, tokens):
    size = sequence_bytes("llama-3.1-8b", f"llama-cpp@{date}", context=900, kv_dtype=kv_dtype)
    assert size == tokens * 32 * 8 * 128 * 2 * (34 if kv_dtype else 64) // 32


@pytest.mark.parametrize("date", ["2025-05-25", "2025-11-01"])
def test_days_between_two_paddings_are_not_known(date):
    with pytest.raises(UsageError, match="not known"):
        sequence_bytes("llama-3.1-8b", f"llama-cpp@{date}")


def test_index_keys_came_with_sparse_attention():
    model = api.load_model("glm-5.2")

    def growth(date):
        layout = api.layout_for(model, engine=f"llama-cpp@{date}", kv_dtype="fp16")
        return cache_size(model, layout, Workload(context_tokens=4096), Parallelism()).bytes_per_token

    assert (growth("2026-05-01"), growth("2026-06-01")) == (78 * 576 * 2, 78 * 576 * 2 + 21 * 128 * 2)


def test_minicpm3_has_keys_and_values_of_every_head():
    assert sequence_bytes("minicpm3-4b", context=256) == 256 * 62 * 40 * (64 + 32 + 64) * 2
