"""Twenty model types through the judge: transformers builds and runs them on the meta device, kvcalc imports them."""

import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
TYPES = (
    "llama",
    "falcon",
    "gpt2",
    "gpt_neo",
    "gpt_bigcode",
    "opt",
    "gemma2",
    "gemma3n_text",
    "gemma4_text",
    "qwen2_moe",
    "gpt_oss",
    "llama4_text",
    "mimo_v2_flash",
    "deepseek_v3",
    "deepseek_v32",
    "deepseek_v4",
    "longcat_flash",
    "qwen3_next",
    "nemotron_h",
    "kimi_linear",
)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def judge() -> Any:
    pytest.importorskip("torch", reason="the judge needs torch")
    pytest.importorskip("transformers", minversion="5.15", reason="the judge needs transformers 5.15 or later")
    sys.path.insert(0, str(BENCHMARKS))
    try:
        import transformers_judge
    finally:
        sys.path.remove(str(BENCHMARKS))
    return transformers_judge


@pytest.mark.parametrize("model_type", TYPES)
def test_kvcalc_reads_what_transformers_builds(judge: Any, model_type: str) -> None:
    record = judge.judge(model_type)
    assert record["verdict"] == "right", record.get("reason")
    assert set(record["variants"]) == {"defaults", "changed-1", "changed-2"}


def test_a_silent_mha_is_caught(judge: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The judge itself, against a planted fault: a table that takes every query head for a KV head."""
    from dataclasses import replace

    from kvcalc.specs.huggingface import families
    from kvcalc.specs.huggingface.rows import Grouped

    mha = replace(families.FAMILIES["llama"], attention=Grouped(kv_heads="num_attention_heads"))
    monkeypatch.setitem(families.FAMILIES, "llama", mha)
    record = judge.judge("llama")
    assert record["verdict"] == "wrong"
    assert "parameters, transformers" in record["reason"]
    assert "keep" in record["reason"]
