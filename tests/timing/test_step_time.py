"""The expected time of a whole step: never below its roofline, and none where a kernel is not modelled."""

import pytest

from kvcalc import estimate
from kvcalc.timing.parts import other_part
from kvcalc.timing.step import DECODE
from kvcalc.timing.step_time import _not_below


@pytest.mark.parametrize("model", ["deepseek-v3", "deepseek-v3.2", "minicpm3-4b", "llama-3.1-70b", "gpt-oss-120b"])
@pytest.mark.parametrize("query_tokens", [1, 4, 64, 256, 4096])
@pytest.mark.parametrize("gpu", ["h200-sxm-141gb", "b200-sxm-180gb"])
def test_no_expected_time_is_below_the_roofline(model, query_tokens, gpu):
    """However far from the calibrated points: many query tokens are more row blocks than run at once."""
    for context, batch in ((8192, 1), (131_072, 8)):
        result = estimate(model, gpu=gpu, context_tokens=context, batch=batch, query_tokens=query_tokens)
        for phase in ("decode", "prefill"):
            time = result.to_json()[phase]["time"]
            if time["expected_s"] is not None:
                assert time["roofline_s"] <= time["interval_s"][0] <= time["expected_s"] <= time["interval_s"][1]


def test_a_model_with_an_attention_that_no_kernel_is_modelled_of_has_no_expected_time():
    result = estimate("qwen3-next-80b-a3b", gpu="h200-sxm-141gb").to_json()
    for phase in ("decode", "prefill"):
        assert result[phase]["time"]["expected_s"] is None
        assert "Gated DeltaNet" in result[phase]["time"]["expected_note"]


def test_a_part_held_at_its_roofline_says_so():
    part = other_part("attention", "MLA", 2e-3, "layers x launch", "1 x 2 ms", "a source")
    held = _not_below(part, {("attention", "MLA"): 3e-3})
    assert (held.seconds, held.low) == (3e-3, 1.0)
    assert held.symbols == "held at the roofline, above the 2000.000000 us of layers x launch"
    assert held.formula == "0.003"
    assert _not_below(part, {("attention", "MLA"): 1e-3}) == part


def test_only_layers_whose_tokens_are_shared_exchange_under_dcp():
    """gpt-oss-120b: windows of 128 tokens are whole on every rank, every other layer is cut."""
    parts = estimate("gpt-oss-120b", gpu="h200-sxm-141gb", tp=2, dcp=2, context_tokens=32_768).predictions[DECODE].parts
    assert [part.detail for part in parts if part.name == "dcp exchange"] == ["GQA-8, 2 ranks"]
