"""The packaged models: every spec loads, is sourced, and comes to the numbers that others count for it."""

import datetime
import json
import re
from fractions import Fraction
from functools import cache
from pathlib import Path

import pytest
import yaml

from kvcalc import estimate, load_model
from kvcalc.architecture.attention import KINDS, GroupedAttention, SelectedAttention
from kvcalc.architecture.model import Model
from kvcalc.sizing import weights_bytes_per_gpu
from kvcalc.specs.schema import model_schema
from kvcalc.specs.sources import model_names, model_specs_folder
from kvcalc.workload import Parallelism

SPECS = model_specs_folder()
EXPECTED_FILES = [Path(__file__).parent / "data" / f"expected_models_{half}.yaml" for half in "ab"]
FORBIDDEN_KEY = re.compile(r"(^|_)bytes(_|$)|(^|_)total(_|$)|elements_per|_flop(_|$)")
PUBLISHED_TOLERANCE = 0.012
ROUNDED_NAMES = {"falcon-40b", "kimi-k2", "kimi-linear-48b-a3b", "minicpm3-4b", "deepseek-v4-pro"}
"""Facts D.4: what the publisher calls them is a rounded name."""


@cache
def expected() -> dict[str, dict]:
    """What the models must come to, from sources other than kvcalc."""
    entries = [
        entry
        for path in EXPECTED_FILES
        if path.is_file()
        for entry in yaml.safe_load(path.read_text(encoding="utf-8"))["models"]
    ]
    return {entry["name"]: entry for entry in entries}


@cache
def raw(name: str) -> dict:
    return yaml.safe_load((SPECS / f"{name}.yaml").read_text(encoding="utf-8"))


each_model = pytest.mark.parametrize("name", model_names())
each_expected = pytest.mark.parametrize("name", sorted(expected()))


@pytest.fixture
def model(name: str) -> Model:
    return load_model(name)


def stored_points(entry: dict) -> list[tuple[int, int]]:
    """Contexts and bytes: a mapping of them, or a list of points."""
    stored = entry.get("stored", {})
    if isinstance(stored, dict):
        return list(stored.items())
    return [(point["context_tokens"], point["bytes"]) for point in stored]


def keys(value: object) -> list[str]:
    if isinstance(value, dict):
        return [key for each, part in value.items() for key in (each, *keys(part))]
    return [key for part in value for key in keys(part)] if isinstance(value, list) else []


@pytest.mark.parametrize("path", EXPECTED_FILES, ids=lambda path: path.stem)
def test_the_expected_numbers_are_there(path):
    assert path.is_file()


def test_every_model_has_expected_numbers_and_the_other_way_round():
    assert set(expected()) == set(model_names())


def test_sixty_models_and_transmla_are_packaged():
    assert len(model_names()) >= 61
    assert "transmla-llama-2-7b" in model_names()


@each_model
def test_a_spec_is_named_sourced_and_starts_with_its_schema(name, model):
    first_line = (SPECS / f"{name}.yaml").read_text(encoding="utf-8").partition("\n")[0]
    assert first_line == "# yaml-language-server: $schema=model.schema.json"
    assert model.name == name
    assert len(model.source) >= 15, "a source that can be found again"
    assert datetime.date(2026, 1, 1) <= datetime.date.fromisoformat(model.source_date)
    assert model.layers


@each_model
def test_a_spec_has_no_bytes_and_no_totals(name):
    data = {key: value for key, value in raw(name).items() if key != "published"}
    assert [key for key in keys(data) if FORBIDDEN_KEY.search(key)] == []
    assert set(raw(name).get("published", {})) <= {
        "parameters",
        "active_parameters",
        "active_convention",
        "rounded_name",
    }


@each_model
def test_published_totals_are_within_1_2_percent_but_for_rounded_names(name, model):
    published = raw(name).get("published", {})
    stated, computed = published.get("parameters"), model.parameters.total
    if stated is None:
        pytest.skip("the publisher states no total")
    off = abs(computed / stated - 1)
    assert off <= (0.04 if published.get("rounded_name") else PUBLISHED_TOLERANCE)


def test_the_rounded_names_are_the_five_of_the_facts():
    rounded = {name for name in model_names() if raw(name).get("published", {}).get("rounded_name")}
    assert rounded == ROUNDED_NAMES & set(model_names())


@each_model
def test_published_totals_are_compared_and_never_used(name, model, tmp_path):
    """The same spec with another total comes to the same numbers."""
    text = (SPECS / f"{name}.yaml").read_text(encoding="utf-8")
    without = {key: value for key, value in raw(name).items() if key != "published"}
    path = tmp_path / f"{name}.yaml"
    path.write_text(yaml.safe_dump({**without, "published": {"parameters": 1}}))
    assert "published" in text or name not in ROUNDED_NAMES
    assert load_model(str(path)).parameters == model.parameters


@each_expected
def test_total_parameters_are_exact(name, model):
    assert model.parameters.total == expected()[name]["total"]


@each_expected
def test_active_parameters_are_exact(name, model):
    if "active" in expected()[name]:
        assert model.parameters.active == expected()[name]["active"]


@each_expected
def test_mtp_parameters_are_exact(name, model):
    assert model.parameters.mtp == expected()[name].get("mtp", 0)


@each_expected
def test_a_token_adds_what_others_count(name):
    entry, cache = expected()[name], estimate(name).cache
    assert cache.elements_per_token == entry["elements_per_token"]
    assert cache.index_elements_per_token == entry.get("index_elements_per_token", 0)
    if "bytes_per_token" in entry:
        assert cache.bytes_per_token == Fraction(entry["bytes_per_token"])


@each_expected
def test_stored_bytes_at_a_context_inside_and_beyond_the_window(name):
    for context_tokens, stored_bytes in stored_points(expected()[name]):
        records = estimate(name, context_tokens=context_tokens).cache.records
        entries = sum(
            item.count * item.record.stored_bytes(context_tokens)
            for item in records
            if item.record.components[0].role.is_cache_entry
        )
        assert entries == stored_bytes


@each_expected
def test_a_token_in_deepseeks_fp8_record(name):
    entry = expected()[name]
    if "bytes_per_token_fp8_ds_mla" not in entry:
        pytest.skip("no such record is expected")
    assert estimate(name, kv_dtype="fp8_ds_mla").cache.bytes_per_token == entry["bytes_per_token_fp8_ds_mla"]


@each_expected
def test_the_hubs_count_is_ours_and_what_only_checkpoints_hold(name, model):
    """Copies of embedding and head in the MTP layer, router biases and block scales: no less, no more."""
    entry = expected()[name]
    if "checkpoint_parameters" not in entry:
        pytest.skip("the hub's count is not among the expected numbers")
    more = entry["checkpoint_parameters"] - model.parameters.total - model.parameters.mtp
    copies = 2 * model.vocab_size * model.hidden_size * len(model.mtp_layers)
    assert 0 <= more <= copies + 2e-4 * model.parameters.total


@each_expected
def test_the_checkpoints_size_is_ours_to_a_quarter_percent(name, model):
    """In the published formats; what a checkpoint holds beside the parameters is the difference."""
    entry = expected()[name]
    if "checkpoint_bytes" not in entry:
        pytest.skip("the checkpoint's size is not among the expected numbers")
    ours = weights_bytes_per_gpu(model, Parallelism(), mtp=True)
    assert 0.9975 <= ours / entry["checkpoint_bytes"] <= 1


@each_expected
def test_states_are_as_large_as_others_make_them(name):
    constant = expected()[name].get("constant")
    states = [item for item in estimate(name).cache.records if item.record.is_state]
    if constant is None:
        pytest.skip("no recurrent state is expected")
    elements = {"state": 0, "convolution": 0}
    for item in states:
        for component in item.record.components:
            held = item.count * component.elements_per_slot * component.slots.stored(1)
            elements[component.role.value] = elements.get(component.role.value, 0) + held
    assert elements["state"] == constant.get("state_elements", elements["state"])
    assert elements["convolution"] == constant.get("convolution_elements", elements["convolution"])
    if "bytes" in constant:
        assert sum(item.count * item.record.stored_bytes(1) for item in states) == constant["bytes"]


@each_expected
def test_no_state_is_kept_that_nobody_expects(name):
    kept = any(
        component.role.value == "state" for item in estimate(name).cache.records for component in item.record.components
    )
    assert kept == bool(expected()[name].get("constant", {}).get("state_elements"))


def test_every_kind_is_used_by_a_packaged_model_or_a_test():
    """short-conv (LFM2) is in no packaged model: tests/test_sizing.py has it."""
    used = set()
    for name in model_names():
        for layer in load_model(name).layers:
            for attention in layer.attentions:
                used.add(type(attention))
                if isinstance(attention, SelectedAttention):
                    used.add(type(attention.base))
    in_tests = "".join(path.read_text() for path in Path(__file__).parent.glob("test_s*.py"))
    missing = [kind for kind in KINDS if kind not in used and f"{kind.__name__}(" not in in_tests]
    assert missing == []
    assert GroupedAttention in used


def test_the_committed_schema_is_what_the_command_prints():
    committed = (SPECS / "model.schema.json").read_text(encoding="utf-8")
    assert committed == json.dumps(model_schema(), indent=2, ensure_ascii=False) + "\n"


def test_the_schema_explains_what_a_person_has_to_fill_in():
    definitions = model_schema()["$defs"]
    for name in ("GqaSpec", "MlaSpec", "MoeSpec"):
        for key in definitions[name]["required"]:
            if key != "kind":
                assert definitions[name]["properties"][key]["description"], f"{name}.{key}"


def test_names_are_found_in_any_letter_case_but_not_in_part():
    assert load_model("DeepSeek-V3") == load_model("deepseek-v3")
    with pytest.raises(Exception, match="unknown model 'deepseek'"):
        load_model("deepseek")
