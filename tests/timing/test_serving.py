"""Aggregated serving: which sequences decode, and what other requests' prompts add."""

import pytest

from kvcalc import estimate
from kvcalc.timing.serving import decoding_sequences
from kvcalc.timing.step import DECODE


def served(batch, engine="generic", output_tokens=1024, context_tokens=1536, **options):
    return estimate(
        "llama-3.1-70b",
        gpu="h200-sxm-141gb",
        weights_dtype="fp8",
        kv_dtype="fp8",
        batch=batch,
        context_tokens=context_tokens,
        output_tokens=output_tokens,
        engine=engine,
        memory_utilization=0.9,
        **options,
    ).predictions[DECODE]


def test_prompts_are_a_term_of_their_own_and_the_rest_is_the_step_alone():
    alone = estimate(
        "llama-3.1-70b", gpu="h200-sxm-141gb", weights_dtype="fp8", kv_dtype="fp8", batch=8, context_tokens=1536
    ).predictions[DECODE]
    among = served(8)
    assert among.parts[:-1] == alone.parts
    assert among.parts[-1].name == "other prefills"
    assert among.expected_s == pytest.approx(alone.expected_s + among.parts[-1].seconds)


def test_few_prompts_among_many_outputs_leave_all_decoding():
    assert decoding_sequences(8, 0.02, 0.05, 100_000) == pytest.approx(8, rel=1e-3)
    assert decoding_sequences(8, 0.02, 0.0, 100) == 8


def test_long_prompts_and_short_outputs_keep_sequences_from_decoding():
    """16 clients, prompts of 0.1 s and 100 tokens: a tenth of the time and more is spent on the first token."""
    found = decoding_sequences(16, 0.004, 0.1, 100)
    assert 10 < found < 14
    counts = [decoding_sequences(16, 0.004, prompt, 100) for prompt in (0.001, 0.01, 0.1, 0.5)]
    assert counts == sorted(counts, reverse=True) and counts[-1] > 0


def test_what_memory_does_not_hold_waits_and_adds_no_time():
    """As measured on one H200 (TensorRT-LLM, 1k in, 8k out): 30.5 ms for 64 clients and 30.4 ms for 128."""
    few, many = served(64, "trtllm", 7373, 4608), served(128, "trtllm", 7373, 4608)
    assert many.expected_s == pytest.approx(few.expected_s, rel=0.01)
    assert "of 128 sequences wait for memory" in many.parts[-1].detail
    assert many.of is not None and many.of in many.parts[-1].detail


def test_an_engine_that_reserves_all_tokens_runs_fewer_sequences():
    assert served(128, "trtllm", 7373, 4608).expected_s < served(128, "vllm", 7373, 4608).expected_s


def test_a_model_that_does_not_fit_is_timed_with_one_sequence():
    result = estimate("llama-3.1-70b", gpu="h100-sxm5-80gb", batch=4, context_tokens=2048, output_tokens=512)
    assert result.memory.max_batch == 0
    assert result.predictions[DECODE].expected_s > 0


def test_no_calibration_is_still_told():
    result = estimate("llama-3.1-8b", gpu="mi300x", context_tokens=2048, output_tokens=512)
    assert result.predictions[DECODE].unknown
