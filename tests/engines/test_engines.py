"""The table of engines: versions, rules with their sources, and what is not known is refused."""

import sys

import pytest

from kvcalc import api, engines
from kvcalc.engines.base import compare, parse_version, written
from kvcalc.errors import UsageError
from kvcalc.sizing import cache_size, stage_allocations
from kvcalc.specs.sources import model_names
from kvcalc.workload import Parallelism, Workload
from tests.command_line import call, kvcalc

NAMES = tuple(engines.MODULES)
REFUSED = ("deepseek-v4-flash", "deepseek-v4-pro")
"""Models whose caches no engine module knows."""


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("0.33", (0, 33)),
        ("v0.33.0", (0, 33, 0)),
        ("0.11.1rc6.dev3+g12", (0, 11, 1)),
        ("0.8.5.post1", (0, 8, 5)),
        ("2026-01-24", (2026, 1, 24)),
        ("b9318", (9318,)),
    ],
)
def test_versions_are_their_leading_numbers(text, version):
    assert parse_version(text) == version


@pytest.mark.parametrize("text", ["", "latest", "v", "x1"])
def test_what_is_no_version(text):
    with pytest.raises(UsageError):
        parse_version(text)


def test_missing_numbers_of_a_version_are_zeros():
    assert compare((0, 33), (0, 33, 0)) == 0
    assert compare((0, 20), (0, 20, 1)) < 0
    assert written((2026, 1, 24)) == "2026-01-24"


@pytest.mark.parametrize("name", NAMES)
def test_every_rule_has_a_source_for_each_step_and_runs_forward(name):
    engine = engines.load_engine(name)
    assert engine.rules
    for rule in engine.rules:
        versions = [parse_version(known.since) for known in rule.history]
        assert versions == sorted(versions)
        assert len(set(versions)) == len(versions)
        for known in rule.history:
            assert known.says
            assert known.source
            assert engine.version(known.since)


@pytest.mark.parametrize("name", NAMES)
def test_rules_are_known_for_the_newest_version(name):
    engine = engines.load_engine(name)
    assert all(rule.known(engine.version(None)) for rule in engine.rules)


@pytest.mark.parametrize(
    "text",
    [
        "vllm@0.34",
        "vllm@0.9.2",
        "vllm@",
        "sglang@0.5.3",
        "trtllm@1.2",
        "llama-cpp@b7000",
        "transformers@4.40",
        "generic@1",
    ],
)
def test_unread_versions_are_refused(text):
    model = api.load_model("llama-3.1-8b")
    with pytest.raises(UsageError):
        api.layout_for(model, engine=text)


def test_aliases_and_near_misses():
    model = api.load_model("llama-3.1-8b")
    assert api.layout_for(model, engine="llama.cpp").name == api.layout_for(model, engine="llama-cpp").name
    with pytest.raises(UsageError) as error:
        api.layout_for(model, engine="vlm")
    assert "vllm" in error.value.hint


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("model_name", model_names())
def test_every_packaged_model_is_laid_out_or_refused_by_name(name, model_name):
    """Allocated is at least stored; an engine that does not know a kind says so."""
    model = api.load_model(model_name)
    layout = api.layout_for(model, engine=name)
    if (model_name in REFUSED and name != "vllm") or (name, model_name) == ("llama-cpp", "minimax-m3"):
        with pytest.raises(UsageError, match="not known"):
            cache_size(model, layout, Workload(context_tokens=5000), Parallelism())
        return
    size = cache_size(model, layout, Workload(context_tokens=5000), Parallelism())
    assert size.allocated_bytes >= size.stored_bytes > 0
    assert size.bytes_per_token >= 0


@pytest.mark.parametrize("name", NAMES)
def test_allocation_is_monotone_in_context(name):
    for model_name in ("gpt-oss-120b", "deepseek-v3", "kimi-linear-48b-a3b", "gemma-3-27b"):
        model = api.load_model(model_name)
        layout = api.layout_for(model, engine=name)
        (allocation,) = stage_allocations(model, layout, Parallelism())
        sizes = [allocation.sequence_bytes(tokens) for tokens in range(1, 40_000, 377)]
        assert sizes == sorted(sizes)


def test_generic_numbers_do_not_change_with_the_engines():
    result = api.estimate("deepseek-v3", context_tokens=131_072)
    assert result.layout.name == "generic"
    assert result.cache.bytes_per_token == 70_272
    assert result.cache.allocated_bytes == result.cache.stored_bytes == 70_272 * 131_072


def test_only_the_engine_that_is_asked_for_is_imported():
    script = "import sys; import kvcalc.api as api; api.layout_for(api.load_model('llama-3.1-8b'), engine='sglang'); "
    script += "print(*sorted(name.removeprefix('kvcalc.engines.') for name in sys.modules if '.engines.' in name))"
    import subprocess

    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["absorbed", "base", "sglang", "sglang_rules"]


def test_list_shows_engines_with_versions_and_rules(capsys):
    rows = call(capsys, "list", "engines", "--json").json()["rows"]
    assert {row["name"] for row in rows} == set(engines.NAMES)
    stated = [row for row in rows if row["rule"] == "GPU KV cache size"]
    assert [row["since"] for row in stated] == ["0.6.4", "0.11.0", "0.20.1"]
    assert all(row["source"] for row in stated)


def test_estimate_names_the_engine_and_what_it_takes_for_granted():
    done = kvcalc("estimate", "gpt-oss-120b", "--engine", "vllm@0.33", "--json")
    assert done.code == 0, done.err
    engine = done.json()["engine"]
    assert engine["name"] == "vllm 0.33"
    assert any("tokens in flight" in note for note in engine["notes"])


def test_an_engines_default_share_of_memory_is_used():
    for name, share in (("vllm@0.13", 0.90), ("vllm@0.33", 0.92), ("generic", 0.9)):
        assert api.estimate("llama-3.1-8b", engine=name, gpu="h100-sxm5-80gb").memory_utilization == share
