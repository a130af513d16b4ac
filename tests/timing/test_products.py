"""The products of a step's terms: their FLOPs and weights are the term's, cut as the ranks cut them."""

import pytest

from kvcalc import estimate
from kvcalc.timing.products import products
from kvcalc.timing.step import DECODE, PREFILL
from kvcalc.timing.step_time import step_time
from kvcalc.workload import Parallelism

MODELS = ["llama-3.1-70b", "qwen3-32b", "deepseek-v3", "deepseek-v3.2", "gpt-oss-120b", "mistral-7b-v0.1"]


def step_of(model, phase=DECODE, **mix):
    from dataclasses import replace

    step = estimate(model, context_tokens=4096, batch=64, gpu="h200-sxm-141gb").steps[phase]
    return replace(step, parallelism=Parallelism(**mix))


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("mix", [{}, {"tp": 4}, {"dp": 4, "ep": 4}, {"tp": 2, "dp": 2, "ep": 2}], ids=str)
@pytest.mark.parametrize("phase", [DECODE, PREFILL])
def test_products_do_the_flop_of_their_term(model, mix, phase):
    step = step_of(model, phase, **mix)
    for term in step.terms():
        if term.weights and term.traffic.flop:
            found = sum(each.layers * each.product.flop for each in products(term, step, term.compute))
            assert found == pytest.approx(term.traffic.flop, rel=0.01), term.name


@pytest.mark.parametrize("model", MODELS)
def test_products_read_the_weights_of_their_term(model):
    step = step_of(model, tp=2)
    for term in step.terms():
        if term.weights and term.traffic.flop:
            weights = sum(
                each.layers
                * each.product.groups
                * each.product.inner
                * each.product.columns
                * each.product.weight_bytes
                for each in products(term, step, term.compute)
            )
            assert weights == pytest.approx(term.traffic.read_bytes, rel=0.02), term.name


def shapes(step, name):
    term = next(term for term in step.terms() if term.name == name)
    return {each.product.name: each.product for each in products(term, step, term.compute)}


def test_what_multiplies_the_same_vector_is_one_product_and_is_cut_once():
    found = shapes(step_of("llama-3.1-70b", tp=8), "projections")
    qkv, output = found["q_proj + k_proj + v_proj"], found["o_proj"]
    assert (qkv.rows, qkv.inner, qkv.columns) == (64, 8192, (64 + 8 + 8) * 128 // 8)
    assert (output.inner, output.columns) == (64 * 128 // 8, 8192)


def test_mla_is_absorbed_when_decoding_and_expanded_in_prefill():
    found = shapes(step_of("deepseek-v3", tp=8), "projections")
    queries, outputs = found["queries to latent, 16 heads"], found["latent to outputs, 16 heads"]
    assert (queries.groups, queries.inner, queries.columns) == (16, 128, 512)
    assert (outputs.groups, outputs.inner, outputs.columns) == (16, 512, 128)
    assert shapes(step_of("deepseek-v3", PREFILL, tp=8), "projections")["kv_b_proj"].columns == 128 * 256 // 8


def test_expert_ranks_hold_whole_experts_and_the_others_cut_them():
    whole = next(iter(shapes(step_of("deepseek-v3", dp=8, ep=8), "experts").values()))
    cut = next(iter(shapes(step_of("deepseek-v3", dp=8, ep=1), "experts").values()))
    assert (whole.columns, cut.columns) == (4096, 512)
    assert whole.groups == pytest.approx(cut.groups / 8) and whole.rows == cut.rows


def part(result, name):
    return next((each for each in result.predictions[DECODE].parts if each.name == name), None)


@pytest.mark.parametrize(
    ("mix", "there", "not_there"),
    [
        ({"tp": 8}, ["all-reduce"], ["all-to-all", "all-gather"]),
        ({"tp": 8, "ep": 8}, ["all-reduce"], ["all-to-all", "all-gather"]),
        ({"dp": 8, "ep": 8}, ["all-to-all"], ["all-reduce", "all-gather"]),
        ({"dp": 8}, ["all-gather"], ["all-reduce", "all-to-all"]),
        ({"tp": 2, "dp": 4, "ep": 8}, ["all-reduce", "all-to-all"], ["all-gather", "dcp exchange"]),
        ({"tp": 8, "dcp": 8}, ["all-reduce", "dcp exchange"], ["all-to-all", "all-gather"]),
    ],
    ids=str,
)
def test_ranks_send_what_their_mix_needs(mix, there, not_there):
    result = estimate("deepseek-v3", gpu="h200-sxm-141gb", context_tokens=4096, batch=64, **mix)
    assert all(part(result, name).seconds > 0 for name in there)
    assert not any(part(result, name) for name in not_there)


def test_expert_parallel_ranks_change_the_time_and_no_byte():
    one, eight = (
        estimate("deepseek-v3", gpu="h200-sxm-141gb", context_tokens=4096, batch=64, dp=8, ep=ep) for ep in (1, 8)
    )
    assert one.predictions[DECODE].expected_s != eight.predictions[DECODE].expected_s
    assert one.rooflines[DECODE].roofline_s == eight.rooflines[DECODE].roofline_s
    assert one.memory == eight.memory


def test_all_reduces_of_a_dense_model_are_two_a_layer():
    result = estimate("llama-3.1-70b", gpu="h200-sxm-141gb", context_tokens=4096, batch=4, tp=8)
    assert part(result, "all-reduce").formula.startswith("(160 x ")


def test_a_step_without_a_stated_link_has_no_exchange():
    from dataclasses import replace

    result = estimate("llama-3.1-8b", gpu="h200-sxm-141gb", context_tokens=4096, batch=4, tp=2)
    gpu = replace(result.gpu, link=None, pcie_bytes_per_s_per_direction=None)
    step = replace(result.steps[DECODE], parallelism=result.parallelism)
    time = step_time(step, step.terms(), gpu, result.calibrations)
    assert "all-reduce" not in {each.name for each in time.parts}
