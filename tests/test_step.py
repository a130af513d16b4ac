"""The work of a step: its terms add up, nothing is left out or read twice, and the roofline is their bound."""

import math
from dataclasses import replace
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvcalc import estimate, load_gpu, load_model
from kvcalc.architecture.attention import (
    CompressedAttention,
    GatedDeltaNet,
    GroupedAttention,
    Indexer,
    KimiDeltaAttention,
    LatentAttention,
    LightningAttention,
    Mamba1,
    Mamba2,
    SelectedAttention,
    ShortConvolution,
)
from kvcalc.architecture.feed_forward import MixtureOfExperts
from kvcalc.architecture.model import Layer
from kvcalc.architecture.traffic import Traffic
from kvcalc.architecture.weights import Part, Use, Weight
from kvcalc.errors import MissingPeakError
from kvcalc.specs.sources import model_names
from kvcalc.timing.roofline import compute_format, roofline
from kvcalc.timing.step import DECODE, PREFILL, Step, total
from kvcalc.workload import Parallelism, Workload
from tests.drawn_models import contexts, grouped, latent, layout, layouts, mixtures, models, quick

H100 = load_gpu("h100-sxm5-80gb")
LLAMA = load_model("llama-3.1-8b")
WEIGHTS = {"embedding", "attention", "index scores", "experts"}
"""Terms that read something else than all of their weights once."""


def step(model, context_tokens, *, phase=DECODE, batch=1, query_tokens=1, in_layout=None, mtp=False, **parallel):
    return Step(
        model=model,
        layout=in_layout or layout(),
        workload=Workload(batch=batch, context_tokens=context_tokens, query_tokens=query_tokens),
        phase=phase,
        parallelism=Parallelism(**parallel),
        weights_dtype="bf16",
        mtp=mtp,
    )


def named(terms, name: str) -> Traffic:
    return total(tuple(term for term in terms if term.name == name))


def only(model, *attentions):
    return replace(model, layers=(Layer(attentions=attentions, feed_forwards=()),), mtp_layers=())


@quick
@given(
    model=models(),
    in_layout=layouts,
    context=contexts,
    batch=st.integers(1, 9),
    phase=st.sampled_from([DECODE, PREFILL]),
)
def test_terms_add_up_to_the_step(model, in_layout, context, batch, phase):
    terms = step(model, context, batch=batch, phase=phase, in_layout=in_layout).terms()
    whole = total(terms)
    assert whole.flop == sum(term.traffic.flop for term in terms)
    assert whole.read_bytes == sum(term.traffic.read_bytes for term in terms)
    assert whole.write_bytes == sum(term.traffic.write_bytes for term in terms)
    assert whole.moved_bytes == whole.read_bytes + whole.write_bytes
    assert all(min(term.traffic.flop, term.traffic.read_bytes, term.traffic.write_bytes) >= 0 for term in terms)


@pytest.mark.parametrize("phase", [DECODE, PREFILL])
@pytest.mark.parametrize("name", ["deepseek-v3.2", "gemma-3-27b", "qwen3-next-80b-a3b", "deepseek-v4-flash"])
def test_the_json_is_the_sum_of_its_terms(name, phase):
    result = estimate(name, context_tokens=4096, batch=3, gpu=H100)
    as_json = result.to_json()[phase]
    assert as_json["step"]["flop"] == sum(term["flop"] for term in as_json["time"]["terms"])
    assert as_json["step"]["read_bytes"] == sum(term["read_bytes"] for term in as_json["time"]["terms"])
    assert as_json["time"]["roofline_s"] == pytest.approx(
        sum(max(term["memory_s"], term["compute_s"]) for term in as_json["time"]["terms"])
    )


@pytest.mark.parametrize("name", model_names())
def test_a_step_reads_every_weight_once(name):
    """All parameters but tables that are looked up and experts that no token takes; a tied table once, for the head."""
    model = load_model(name)
    terms = step(model, 1024).terms()
    read = sum(term.traffic.read_bytes for term in terms if term.name not in WEIGHTS)
    expected = model.parameters.total
    for weight, count in model.weights():
        if weight.part is Part.EXPERTS or (weight.use is Use.LOOKUP and weight.part is Part.EMBEDDING):
            expected -= weight.elements * count
        elif weight.use is Use.LOOKUP:
            expected -= (weight.elements - weight.elements // weight.shape[0]) * count
    if model.tied_embeddings:
        expected += model.vocab_size * (model.embedding_size or model.hidden_size)
    assert read == 2 * expected


@quick
@given(model=models(), context=st.integers(1, 200))
def test_a_step_reads_every_weight_of_a_drawn_model_once(model, context):
    terms = step(model, context).terms()
    read = sum(term.traffic.read_bytes for term in terms if term.name not in WEIGHTS)
    experts = sum(weight.elements * count for weight, count in model.weights() if weight.part is Part.EXPERTS)
    expected = model.parameters.total - experts
    if not model.tied_embeddings:
        expected -= model.vocab_size * model.hidden_size
    assert read == 2 * expected


def test_two_equal_weights_are_read_twice():
    """`other` may list the same weight twice: parameters count both, and so must a step."""
    twin = Weight(name="twin", part=Part.OTHER, shape=(4096, 4096))
    base = replace(LLAMA, layers=LLAMA.layers[:1])
    models = [replace(base, layers=(replace(base.layers[0], other=(twin,) * count),)) for count in (1, 2)]
    one, two = (total(step(model, 100).terms()) for model in models)
    assert models[1].parameters.total - models[0].parameters.total == 4096 * 4096
    assert two.read_bytes - one.read_bytes == 2 * 4096 * 4096
    assert two.flop - one.flop == 2 * 4096 * 4096


@quick
@given(model=models(), in_layout=layouts, context=contexts, batch=st.integers(1, 9))
def test_attention_is_linear_in_batch(model, in_layout, context, batch):
    for phase in (DECODE, PREFILL):
        one, many = (step(model, context, batch=b, phase=phase, in_layout=in_layout).terms() for b in (1, batch))
        for name in ("attention", "index scores"):
            assert named(many, name) == named(one, name) * batch


@quick
@given(model=models(), context=contexts, more=st.integers(0, 500))
def test_a_step_never_gets_cheaper_with_context(model, context, more):
    near, far = (total(step(model, each).terms()) for each in (context, context + more))
    assert near.flop <= far.flop
    assert near.read_bytes <= far.read_bytes
    assert near.write_bytes == far.write_bytes


@quick
@given(attention=grouped(), context=st.integers(1, 40))
def test_prefill_attention_is_all_decode_steps_together(attention, context):
    model = only(LLAMA, attention)
    prefill = named(step(model, context, phase=PREFILL).terms(), "attention").flop
    assert prefill == sum(named(step(model, each).terms(), "attention").flop for each in range(1, context + 1))


@quick
@given(attention=latent, context=st.integers(1, 40))
def test_mla_prefills_expanded_and_decodes_absorbed(attention, context):
    model = only(LLAMA, attention)
    pairs = context * (context + 1) // 2
    qk = attention.qk_nope_head_dim + attention.qk_rope_head_dim
    absorbed = 2 * (2 * attention.kv_lora_rank + attention.qk_rope_head_dim)
    prefill = named(step(model, context, phase=PREFILL).terms(), "attention").flop
    decode = named(step(model, context).terms(), "attention").flop
    assert prefill == pairs * attention.n_heads * 2 * (qk + attention.v_head_dim)
    assert decode == context * attention.n_heads * absorbed


@quick
@given(model=models(), context=contexts, tp=st.sampled_from([2, 4, 8]))
def test_ranks_together_do_at_least_the_whole(model, context, tp):
    whole, on_rank = (total(step(model, context, tp=each).terms()) for each in (1, tp))
    assert on_rank.flop <= whole.flop
    assert tp * on_rank.flop + tp * len(model.layers) >= whole.flop  # experts are rounded to the FLOP
    assert on_rank.read_bytes <= whole.read_bytes
    assert tp * on_rank.read_bytes + tp * len(model.layers) >= whole.read_bytes


def test_tp_does_not_make_mlas_cache_cheaper_to_read():
    model = load_model("deepseek-v3")
    one, eight = (named(step(model, 8192, tp=tp).terms(), "attention") for tp in (1, 8))
    assert one.read_bytes == eight.read_bytes == 8192 * 70_272
    assert one.flop == 8 * eight.flop


def test_gqa_with_all_heads_computes_as_mha_does_and_mqa_reads_less():
    mha = GroupedAttention(n_heads=32, n_kv_heads=32, head_dim=128, v_head_dim=128)
    mqa = replace(mha, n_kv_heads=1)
    full, one = (named(step(only(LLAMA, each), 1000).terms(), "attention") for each in (mha, mqa))
    assert full.flop == one.flop == 1000 * 32 * 4 * 128
    assert full.read_bytes == 32 * one.read_bytes == 1000 * 32 * 2 * 128 * 2


def test_what_a_step_writes_is_its_new_entries_and_outputs():
    mla = LatentAttention(n_heads=16, kv_lora_rank=512, qk_nope_head_dim=128, qk_rope_head_dim=64, v_head_dim=128)
    written = named(step(only(LLAMA, mla), 1000, batch=3, query_tokens=2).terms(), "attention").write_bytes
    queries_and_outputs = 16 * (512 + 64 + 512) * 2
    assert written == 3 * 2 * (576 * 2 + queries_and_outputs)


@pytest.mark.parametrize(
    ("attention", "query_tokens", "entries"),
    [
        (GroupedAttention(n_heads=8, n_kv_heads=1, head_dim=4, v_head_dim=4), 5, 1000),
        (GroupedAttention(n_heads=8, n_kv_heads=1, head_dim=4, v_head_dim=4, window_tokens=100), 1, 100),
        (GroupedAttention(n_heads=8, n_kv_heads=1, head_dim=4, v_head_dim=4, window_tokens=100), 5, 104),
        (GroupedAttention(n_heads=8, n_kv_heads=1, head_dim=4, v_head_dim=4, window_tokens=100), 1000, 1000),
    ],
    ids=["full", "window", "window-5-queries", "window-prefill"],
)
def test_several_query_tokens_read_the_union_of_their_windows(attention, query_tokens, entries):
    read = named(step(only(LLAMA, attention), 1000, query_tokens=query_tokens).terms(), "attention").read_bytes
    assert read == entries * 2 * 4 * 2


def test_several_query_tokens_read_a_selection_each():
    base = GroupedAttention(n_heads=8, n_kv_heads=1, head_dim=4, v_head_dim=4)
    selected = SelectedAttention(base=base, top_k=64, indexer=Indexer(heads=8, head_dim=16))
    for query_tokens, entries in ((1, 64), (3, 192), (100, 1000)):
        terms = step(only(LLAMA, selected), 1000, query_tokens=query_tokens).terms()
        assert named(terms, "attention").read_bytes == entries * 2 * 4 * 2
        assert named(terms, "index scores").read_bytes == 1000 * 16 * 2
        pairs = sum(range(1000 - query_tokens + 1, 1001))
        assert named(terms, "index scores").flop == pairs * 8 * 2 * 16


def test_projections_and_head_work_on_every_query_token_of_a_decode_step():
    one, four = (step(LLAMA, 1000, query_tokens=each).terms() for each in (1, 4))
    for name in ("projections", "feed forward", "head"):
        assert named(four, name).flop == 4 * named(one, name).flop
        assert named(four, name).read_bytes == named(one, name).read_bytes


def test_prefill_needs_one_position_a_sequence_of_the_head():
    terms = step(LLAMA, 1000, batch=3, phase=PREFILL).terms()
    assert named(terms, "head").flop == 3 * 2 * 4096 * 128_256
    assert named(terms, "projections").flop == 3000 * named(step(LLAMA, 1000).terms(), "projections").flop


def test_an_embedding_is_a_row_a_token_and_no_more_rows_than_there_are():
    assert named(step(LLAMA, 1000, batch=3).terms(), "embedding").read_bytes == 3 * 4096 * 2
    all_rows = named(step(LLAMA, 1000, batch=1000, phase=PREFILL).terms(), "embedding").read_bytes
    assert all_rows == 128_256 * 4096 * 2


@pytest.mark.parametrize(
    ("attention", "flop"),
    [
        # a multiply-add is 2: decay 1, outer product 2, read-out 2; the delta rule reads the old value too, 2 more
        (LightningAttention(n_heads=64, head_dim=128), 5 * 64 * 128 * 128),
        (Mamba1(d_inner=8192, d_state=16, conv_kernel=4, dt_rank=256), 5 * 8192 * 16),
        (Mamba2(n_heads=128, head_dim=64, n_groups=8, d_state=128, conv_kernel=4), 5 * 128 * 64 * 128),
        (
            GatedDeltaNet(n_k_heads=16, n_v_heads=32, k_head_dim=128, v_head_dim=64, conv_kernel=4),
            7 * 32 * 128 * 64,
        ),
        (KimiDeltaAttention(n_heads=32, head_dim=128, conv_kernel=4), 7 * 32 * 128 * 128),
        (ShortConvolution(channels=2048, conv_kernel=3), 0),
    ],
    ids=lambda value: getattr(value, "kind", ""),
)
def test_a_recurrent_state_costs_the_same_at_any_context(attention, flop):
    for context in (1, 1000, 8192):
        assert named(step(only(LLAMA, attention), context).terms(), "attention").flop == flop
    prefill = named(step(only(LLAMA, attention), 1000, phase=PREFILL, batch=2).terms(), "attention")
    assert prefill.flop == 2000 * flop


def test_deepseek_v4_attends_its_window_and_the_selected_entries():
    """One vector is K and V: 4 FLOPs an element and pair; 128 raw tokens and 512 of the 2,048 compressed entries."""
    csa = CompressedAttention(
        n_heads=64,
        head_dim=512,
        qk_rope_head_dim=64,
        q_lora_rank=1024,
        o_groups=8,
        o_lora_rank=1024,
        window_tokens=128,
        compress_ratio=4,
        overlap=True,
        top_k=512,
        index_heads=64,
        index_head_dim=128,
    )
    terms = step(only(LLAMA, csa), 8192).terms()
    assert named(terms, "attention").flop == (128 + 512) * 64 * 4 * 512
    assert named(terms, "index scores").flop == 2048 * 64 * 2 * 128
    assert named(terms, "index scores").read_bytes == 2048 * 128 * 2


# --- mixture of experts -----------------------------------------------------------------------------------------------


@quick
@given(network=mixtures, tokens=st.integers(1, 3000))
def test_distinct_experts_lie_between_one_tokens_and_all(network, tokens):
    distinct = network.distinct_experts(tokens)
    assert float(network.active_experts) <= distinct + 1e-9
    assert distinct <= network.experts
    assert distinct <= float(network.active_experts) * tokens + 1e-9
    assert distinct <= network.distinct_experts(tokens + 1) + 1e-12


@quick
@given(network=mixtures)
def test_one_token_takes_its_own_experts_and_very_many_take_all(network):
    assert network.distinct_experts(1) == pytest.approx(float(network.active_experts))
    assert network.distinct_experts(1_000_000) == pytest.approx(network.experts)
    assert network.active_experts == Fraction(
        network.experts_per_token * network.experts, network.experts + network.zero_experts
    )


def test_distinct_experts_of_deepseek_v3():
    # 256 experts, 8 a token: 256 (1 - (1 - 8/256)^n), a coupon count
    network = next(
        each
        for layer in load_model("deepseek-v3").layers
        for each in layer.feed_forwards
        if isinstance(each, MixtureOfExperts)
    )
    assert [round(network.distinct_experts(n), 1) for n in (1, 2, 64, 256)] == [8.0, 15.8, 222.4, 255.9]


def test_experts_are_read_once_however_many_tokens_take_them():
    model = load_model("mixtral-8x7b")
    experts = 2 * sum(weight.elements * count for weight, count in model.weights() if weight.part is Part.EXPERTS)
    one, many = (named(step(model, 100, batch=batch).terms(), "experts") for batch in (1, 4096))
    assert one.read_bytes == experts * 2 // 8
    assert many.read_bytes == pytest.approx(experts, rel=1e-6)
    assert many.flop == 4096 * one.flop
    four_queries = named(step(model, 100, batch=2, query_tokens=4).terms(), "experts")
    assert four_queries == named(step(model, 100, batch=8).terms(), "experts")


# --- roofline ---------------------------------------------------------------------------------------------------------


@quick
@given(model=models(), context=contexts, batch=st.integers(1, 500))
def test_the_roofline_is_the_larger_of_bytes_and_flop_term_by_term(model, context, batch):
    terms = step(model, context, batch=batch).terms()
    bound = roofline(terms, H100)
    for timed, term in zip(bound.terms, terms, strict=True):
        assert timed.memory_s == term.traffic.moved_bytes / 3_352_000_000_000
        assert timed.compute_s == term.traffic.flop / H100.peak(timed.compute)
        assert timed.roofline_s == max(timed.memory_s, timed.compute_s)
        assert timed.bound == ("memory" if timed.memory_s >= timed.compute_s else "compute")
    assert bound.roofline_s == pytest.approx(math.fsum(timed.roofline_s for timed in bound.terms))
    assert bound.roofline_s >= total(terms).moved_bytes / 3_352_000_000_000 * (1 - 1e-12)


def test_decode_of_one_sequence_waits_for_memory_and_prefill_for_compute():
    result = estimate("llama-3.1-8b", context_tokens=8192, gpu=H100)
    assert result.rooflines[DECODE].bound == "memory"
    assert result.rooflines[PREFILL].bound == "compute"


def test_a_term_above_the_ridge_is_compute_bound():
    for timed in estimate("llama-3.1-8b", context_tokens=8192, batch=600, gpu=H100).rooflines[DECODE].terms:
        intensity = timed.term.traffic.flop / timed.term.traffic.moved_bytes
        assert (timed.bound == "compute") == (intensity > timed.ridge_flop_per_byte)


def test_eight_bit_weights_are_widened_where_the_gpu_has_no_such_units():
    a100 = load_gpu("a100-sxm4-80gb")
    assert compute_format("fp8", a100) == "bf16"
    assert compute_format("fp8", H100) == "fp8"
    assert compute_format("int8", a100) == "int8"
    assert compute_format("int8", replace(a100, peak_flop_per_s={"bf16": 1})) == "bf16"
    assert compute_format("fp16", replace(a100, peak_flop_per_s={"bf16": 1})) == "fp16"


def test_a_missing_peak_is_an_error_and_never_a_guess():
    bare = replace(H100, peak_flop_per_s={"fp8": 1})
    with pytest.raises(MissingPeakError, match="has no stated bf16 peak"):
        roofline(step(LLAMA, 100).terms(), bare)


def test_mtp_layers_count_only_where_they_are_asked_for():
    model = load_model("deepseek-v3")
    without, with_mtp = (named(step(model, 1024, mtp=mtp).terms(), "attention").flop for mtp in (False, True))
    assert Fraction(with_mtp, without) == Fraction(62, 61)
