"""Startup logs and published figures: the structure is derived by the rules, the numbers must come out as printed."""

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import yaml

from kvcalc import api
from kvcalc.architecture.attention import Role
from kvcalc.architecture.formats import BF16, NVFP4, Format
from kvcalc.architecture.layout import GenericLayout
from kvcalc.engines.vllm_packed import PackedPool
from kvcalc.sizing import cache_size, stage_allocations
from kvcalc.workload import Parallelism, Workload

ROOT = Path(__file__).resolve().parents[2]
CASES = yaml.safe_load((ROOT / "tests/data/engine_log_cases.yaml").read_text(encoding="utf-8"))
GIB = 1 << 30


@dataclass(frozen=True, kw_only=True)
class Case:
    """A case with the layout that its engine's rules make."""

    fields: dict[str, Any]

    def __getitem__(self, name: str) -> Any:
        return self.fields.get(name)

    @cached_property
    def model(self) -> Any:
        spec = self["model"]
        return api.load_model(str(ROOT / spec) if "/" in spec else spec)

    @cached_property
    def parallelism(self) -> Parallelism:
        return Parallelism(tp=self["tp"] or 1)

    @cached_property
    def layout(self) -> Any:
        return api.layout_for(
            self.model,
            engine=self["engine"],
            kv_dtype=self["kv_dtype"],
            parallelism=self.parallelism,
            gpu=api.load_gpu(self["gpu"]) if self["gpu"] else None,
            prefix_caching=self["prefix_caching"],
            max_batched_tokens=self["max_batched_tokens"],
        )

    @cached_property
    def pool(self) -> Any:
        return stage_allocations(self.model, self.layout, self.parallelism, mtp=bool(self["mtp"]))[0]

    def tokens(self, available_bytes: int) -> int:
        blocks = self.pool.blocks(available_bytes)
        return self.layout.stated_tokens(self.pool, blocks, max_model_len=self["max_model_len"] or 1)


def cases(kind: str, *outcomes: str) -> list[Any]:
    chosen = [each for each in CASES if each["kind"] == kind and each["outcome"] in outcomes]
    return [pytest.param(Case(fields=each), id=each["id"]) for each in chosen]


def rounded_range(gib: float) -> tuple[int, int]:
    """Bytes that are printed as so many GiB with two decimals."""
    return round((gib - 0.005) * GIB), round((gib + 0.005) * GIB)


def test_every_case_is_tested_and_has_a_source():
    tested = [
        param.id
        for kind in ("tokens", "needed", "pool", "copy", "per_token")
        for param in cases(kind, "exact", "inexact")
    ]
    assert sorted(tested) == sorted(each["id"] for each in CASES)
    assert all(each["source"] for each in CASES)


@pytest.mark.parametrize("case", cases("tokens", "exact"))
def test_stated_tokens_lie_in_the_range_of_the_printed_memory(case):
    low, high = (case.tokens(available) for available in rounded_range(case["available_gib"]))
    assert [low, high] == case["range"]
    assert low <= case["tokens"] <= high


@pytest.mark.parametrize("case", cases("tokens", "inexact"))
def test_inexact_case_is_off_by_as_much_as_is_said(case):
    low, high = (case.tokens(available) for available in rounded_range(case["available_gib"]))
    assert [low, high] == case["range"]
    assert not low <= case["tokens"] <= high
    middle = case.tokens(round(case["available_gib"] * GIB))
    assert 100 * (case["tokens"] / middle - 1) == pytest.approx(case["residual_percent"], abs=0.001)


@pytest.mark.parametrize(
    "case", [*cases("tokens", "exact", "inexact"), *cases("needed", "exact"), *cases("pool", "exact")]
)
def test_structure_is_derived(case):
    derived = case["derived"] or {}
    found = {"block_tokens": case.layout.block_tokens}
    if isinstance(case.pool, PackedPool):
        found |= {
            "groups": case.pool.group_count,
            "block_bytes": case.pool.block_bytes,
            "blocks_per_request": case.pool.sequence_blocks(case["max_model_len"]),
        }
    elif hasattr(case.pool, "groups"):
        pages = {group.page.page_bytes for group in case.pool.groups}
        found |= {
            "groups": case.pool.group_count,
            "group_layers": case.pool.group_size,
            "dead_layers": case.pool.dead_layers,
            "page_bytes": max(pages),
            "blocks_per_request": case.pool.sequence_blocks(case["max_model_len"] or 1),
        }
    assert {name: found[name] for name in derived} == derived


@pytest.mark.parametrize("case", [each for each in cases("tokens", "exact") if each.values[0]["concurrency"]])
def test_concurrency_is_as_printed(case):
    low, high = (
        case.pool.blocks(available) / case.pool.stated_sequence_blocks(case["max_model_len"])
        for available in rounded_range(case["available_gib"])
    )
    assert low - 0.005 <= case["concurrency"] <= high + 0.005


@pytest.mark.parametrize("case", cases("needed", "exact"))
def test_needed_memory(case):
    needed = case.pool.sequence_bytes(case["max_model_len"])
    assert round(needed / GIB, 2) == case["needed_gib"]


@pytest.mark.parametrize("case", [each for each in cases("needed", "exact") if each.values[0]["estimated_max_len"]])
def test_estimated_maximum_length(case):
    low, high = rounded_range(case["available_gib"])
    length = case["estimated_max_len"]
    assert case.pool.sequence_bytes(length) <= high
    assert case.pool.sequence_bytes(length + 1) > low
    assert length % (case["estimate_step"] or case.layout.block_tokens) == 0


@pytest.mark.parametrize("case", cases("pool", "exact"))
def test_pool_size(case):
    assert round(case.pool.pool_bytes(case["tokens"]) / GIB, 2) == case["size_gib"]


@pytest.mark.parametrize("case", cases("copy", "exact"))
def test_size_of_the_latents_second_copy(case):
    records = cache_size(case.model, case.layout, Workload(context_tokens=1024), Parallelism()).records
    copies = [item for item in records if item.record.components[0].role is Role.VALUE]
    size = sum(item.count * item.record.stored_bytes(case["tokens"]) for item in copies)
    assert size / (1 << 20) == case["size_mib"]


@pytest.mark.parametrize("case", cases("per_token", "exact"))
def test_published_bytes_a_token(case):
    layout = case.layout
    if case["record_bytes"]:
        record = Format(
            name="fork",
            packing=NVFP4,
            by_role={Role.LATENT: NVFP4, Role.ROPE: BF16},
            padding=case["record_bytes"] - 512 // 16 * 9 - 64 * 2,
            description="the fork's record",
            source=case["source"],
        )
        layout = GenericLayout(precision=replace(layout.precision, kv=record))
    size = cache_size(case.model, layout, Workload(context_tokens=1024), Parallelism(), mtp=bool(case["mtp"]))
    assert size.bytes_per_token == case["bytes_per_token"]


def test_the_number_in_the_log_changed_at_0_20_1():
    """gpt-oss-120b: the same blocks, stated as if all layers were full before, as whole requests after."""
    model = api.load_model("gpt-oss-120b")
    stated = {}
    for version in ("0.20.0", "0.20.1"):
        layout = api.layout_for(model, engine=f"vllm@{version}")
        pool = stage_allocations(model, layout, Parallelism())[0]
        stated[version] = layout.stated_tokens(pool, 10_000, max_model_len=131_072)
    assert stated["0.20.0"] == 10_000 // 2 * 16
    assert stated["0.20.1"] == int(10_000 / (131_072 // 16 + -(-(127 + 8192) // 16) + 1) * 131_072)
