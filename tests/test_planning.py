"""Plans: what they say fits, fits by estimate; more does not; nothing indivisible; the search finds all there is."""

import itertools
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvcalc import api
from kvcalc.errors import UsageError
from kvcalc.planning import (
    Budget,
    Demand,
    Goals,
    Speculation,
    all_mixes,
    distribution,
    of_lengths,
    plan,
    read_lengths,
    shares_copies,
    usual_mixes,
    why_not,
)
from kvcalc.planning.front import is_on_front
from kvcalc.sizing import check_parallelism
from kvcalc.timing.calibrated import SIXTEEN_BIT, UNKNOWN, Calibration, Fit
from kvcalc.timing.families import FAMILIES, GQA, MLA
from kvcalc.workload import Parallelism

MODELS = ("deepseek-v3", "llama-3.1-8b", "gpt-oss-120b", "qwen3-30b-a3b", "gemma-3-27b", "kimi-linear-48b-a3b")
ENGINES = ("generic", "vllm", "sglang")
GPU = api.load_gpu("h200-sxm-141gb")


def planned(name, mixes, *, engine="generic", context=32_768, reserve=0, utilization=0.9, **goals):
    model = api.load_model(name)

    def layout_for(mix):
        return api.layout_for(model, engine=engine, parallelism=mix, gpu=GPU)

    return plan(
        model,
        layout_for,
        mixes(model) if callable(mixes) else mixes,
        budget=Budget(gpu=GPU, memory_utilization=utilization, reserve_bytes=reserve),
        demand=Demand(context_tokens=context),
        goals=Goals(**goals),
    )


@settings(max_examples=40, deadline=None)
@given(
    name=st.sampled_from(MODELS),
    engine=st.sampled_from(ENGINES),
    gpus=st.sampled_from([1, 2, 4, 8]),
    context=st.sampled_from([1_000, 8_192, 32_768, 100_000]),
)
def test_what_fits_fits_by_estimate_and_one_more_does_not(name, engine, gpus, context):
    result = planned(name, lambda model: usual_mixes(model, gpus), engine=engine, context=context)
    for row in result.rows:
        mix = row.mix
        options = {"tp": mix.tp, "pp": mix.pp, "dp": mix.dp, "dcp": mix.dcp, "ep": mix.ep}
        options |= {"context_tokens": context, "gpu": GPU, "engine": engine, "memory_utilization": 0.9}
        if row.max_batch:
            assert api.estimate(name, batch=row.max_batch, **options).memory.fits
        more = api.estimate(name, batch=row.max_batch + 1, **options).memory
        assert not more.fits
        assert more.max_batch == row.max_batch


@pytest.mark.parametrize("name", MODELS)
def test_assumptions_only_take_memory_away(name):
    bare = planned(name, lambda model: usual_mixes(model, 8))
    counted = planned(name, lambda model: usual_mixes(model, 8), reserve=None)
    for without, with_assumptions in zip(bare.rows, counted.rows, strict=True):
        assert with_assumptions.max_batch <= without.max_batch


@settings(max_examples=30, deadline=None)
@given(name=st.sampled_from(MODELS), gpus=st.sampled_from([1, 4, 8]), step=st.integers(0, 5))
def test_monotone_in_context_and_memory(name, gpus, step):
    contexts = [4_096 << step, 8_192 << step]
    shorter, longer = (planned(name, lambda model: usual_mixes(model, gpus), context=each) for each in contexts)
    for row, other in zip(shorter.rows, longer.rows, strict=True):
        assert row.max_batch >= other.max_batch
    less, more = (planned(name, lambda model: usual_mixes(model, gpus), utilization=each) for each in (0.7, 0.9))
    for row, other in zip(less.rows, more.rows, strict=True):
        assert row.max_batch <= other.max_batch
        assert row.max_context_tokens <= other.max_context_tokens


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("gpus", [1, 2, 6, 8, 12, 16])
def test_search_equals_brute_force(name, gpus):
    model = api.load_model(name)
    found = {(mix.tp, mix.pp, mix.dp, mix.dcp) for mix in all_mixes(model, gpus)}
    numbers = range(1, gpus + 1)
    brute = set()
    for tp, pp, dp, dcp in itertools.product(numbers, repeat=4):
        if tp * pp * dp != gpus or tp % dcp or not shares_copies(model, Parallelism(tp=tp, dcp=dcp)):
            continue
        experts = [
            ep
            for ep in numbers
            if (tp * dp) % ep == 0 and why_not(model, Parallelism(tp=tp, pp=pp, dp=dp, dcp=dcp, ep=ep)) is None
        ]
        if experts:
            brute.add((tp, pp, dp, dcp))
    assert found == brute


@pytest.mark.parametrize(
    ("name", "gpus", "shared"),
    [
        ("llama-3.1-8b", 8, {1}),  # 8 KV heads on 8 ranks: there are no copies to share
        ("llama-3.1-8b", 32, {1, 2, 4}),
        ("qwen3-30b-a3b", 16, {1, 2, 4}),  # 4 KV heads
        ("deepseek-v3", 8, {1, 2, 4, 8}),
        ("minimax-m3", 16, {1, 2, 4, 8, 16}),  # index keys are whole on every rank, whatever its 4 KV heads
    ],
)
def test_proposals_share_copies_over_dcp_and_nothing_else(name, gpus, shared):
    model = api.load_model(name)
    for mixes in (all_mixes(model, gpus), usual_mixes(model, gpus)):
        assert {mix.dcp for mix in mixes if mix.tp == gpus} == shared


@pytest.mark.parametrize("name", MODELS)
def test_every_proposed_dcp_keeps_less_than_the_one_before(name):
    model = api.load_model(name)
    for tp, proposed in itertools.groupby(all_mixes(model, 32), key=lambda mix: mix.tp if mix.pp * mix.dp == 1 else 0):
        if tp != 1 and tp:
            rows = planned(name, list(proposed)).rows
            factors = [row.replication_factor for row in sorted(rows, key=lambda row: row.mix.dcp)]
            assert factors == sorted(set(factors), reverse=True)


def test_a_mix_that_is_asked_for_is_planned_all_the_same():
    (row,) = planned("llama-3.1-8b", [Parallelism(tp=8, dcp=2)]).rows
    assert row.replication_factor == 1


@pytest.mark.parametrize("name", MODELS)
def test_no_mix_is_indivisible(name):
    model = api.load_model(name)
    for mix in itertools.chain(all_mixes(model, 16), usual_mixes(model, 16)):
        assert mix.gpus == 16
        check_parallelism(model, mix)
        for layer, _ in model.distinct_layers:
            for network in layer.feed_forwards:
                assert not hasattr(network, "experts") or network.experts % mix.ep == 0


def test_the_best_of_a_search_is_the_best_of_all_rows():
    result = planned("qwen3-30b-a3b", lambda model: all_mixes(model, 4), batches=True)
    timed = [row for row in result.rows if row.fits and row.tpot_s]
    front = [row for row in result.rows if row.pareto]
    assert front
    assert max(row.tokens_per_s_per_gpu for row in timed) == max(row.tokens_per_s_per_gpu for row in front)
    assert min(row.tpot_s for row in timed) == min(row.tpot_s for row in front)
    for row in result.rows:
        assert row.pareto == is_on_front(row, result.rows)


def test_target_time_finds_the_largest_batch():
    target = 0.02
    (row,) = planned("llama-3.1-8b", [Parallelism()], target_tpot_s=target).rows
    (more,) = planned("llama-3.1-8b", [Parallelism()], batch=row.batch + 1).rows
    assert row.meets_target
    assert row.tpot_s <= target
    assert more.tpot_s > target or not more.fits


def test_tensor_against_data_parallel_deepseek_v3():
    """tp 8 keeps each latent 8 times; dp 8 keeps it once but copies attention weights, so it holds not 8 times more."""
    mixes = [Parallelism(tp=8, ep=8), Parallelism(dp=8, ep=8), Parallelism(tp=8, dcp=8, ep=8)]
    tensor, data, context = planned("deepseek-v3", mixes, reserve=None).rows
    assert (tensor.replication_factor, data.replication_factor, context.replication_factor) == (8, 1, 1)
    assert data.weights_replication_factor > 1.15 > 1.05 > tensor.weights_replication_factor
    assert data.memory.weights_bytes - tensor.memory.weights_bytes > 10 << 30
    assert 4 < data.max_batch / tensor.max_batch < 6
    assert context.max_batch >= 8 * tensor.max_batch


def test_what_does_not_fit_is_a_row():
    (row,) = planned("deepseek-v3", [Parallelism()]).rows
    assert not row.fits
    assert row.max_batch == 0
    assert row.to_json()["tokens_per_s_per_gpu"] is None


def test_json_has_the_promised_keys():
    result = planned("deepseek-v3", lambda model: usual_mixes(model, 8), reserve=None, price_per_gpu_hour=2.0)
    document = json.loads(json.dumps(result.to_json(), allow_nan=False))
    promised = "replication_factor weights_bytes_per_gpu cache_bytes_per_gpu fits max_batch max_context_tokens tpot_s"
    for row in document["rows"]:
        assert set(promised.split()) <= set(row)
        assert set(row["parallel"]) == {"tp", "pp", "dp", "dcp", "ep"}
        parts = ("weights", "cache", "activation", "workspace", "logits", "runtime")
        assert sum(row[f"{part}_bytes_per_gpu"] for part in parts) == row["needed_bytes_per_gpu"]
        rate = row["tokens_per_s_per_gpu"]
        assert row["cost_per_million_tokens"] == pytest.approx(2.0 / (rate * 3600) * 1e6)


# --- requests as they come --------------------------------------------------------------------------------------------


def demanded(**demand):
    model = api.load_model("llama-3.1-8b")
    (row,) = plan(
        model,
        lambda mix: api.layout_for(model, parallelism=mix),
        [Parallelism()],
        budget=Budget(gpu=GPU, memory_utilization=0.9),
        demand=Demand(**demand),
    ).rows
    return row


def test_lengths_lie_between_their_mean_and_their_longest():
    lengths = of_lengths([1_000, 2_000, 16_000], source="test")
    mixed = demanded(context_tokens=16_000, lengths=lengths)
    mean = demanded(context_tokens=lengths.mean_tokens)
    longest = demanded(context_tokens=lengths.longest_tokens)
    assert longest.max_batch < mixed.max_batch <= mean.max_batch + 1
    assert mixed.tpot_longest_s > mixed.tpot_s


def test_equal_lengths_are_one_context():
    same = demanded(context_tokens=4_000, lengths=of_lengths([4_000] * 5, source="test"))
    assert same.max_batch == demanded(context_tokens=4_000).max_batch


def test_a_shared_prefix_is_kept_once():
    alone, shared = demanded(context_tokens=8_192), demanded(context_tokens=8_192, shared_prefix_tokens=4_096)
    token = 131_072
    assert shared.memory.shared_bytes(4_096) == 4_096 * token
    sequences = 10
    apart = alone.memory.cache_bytes(alone.demand, sequences)
    assert apart - shared.memory.cache_bytes(shared.demand, sequences) == (sequences - 1) * 4_096 * token
    assert shared.max_batch > 1.9 * alone.max_batch


@pytest.mark.parametrize("text", ["uniform:1k:32k", "lognormal:4k:32k"])
def test_distributions_are_the_same_each_time(text):
    found = distribution(text)
    assert found == distribution(text)
    assert found.requests == 64
    assert found.mean_tokens < found.longest_tokens


@pytest.mark.parametrize(
    ("lines", "counts"),
    [
        ("context_tokens\n5\n7\n5\n", ((5, 2), (7, 1))),
        ("id,input_tokens,output_tokens\na,3,4\nb,10,1\n\n", ((7, 1), (11, 1))),
        ("8\n9\n", ((8, 1), (9, 1))),
    ],
)
def test_files_of_lengths(lines, counts):
    assert read_lengths(lines.splitlines(keepends=True), source="trace.csv").counts == counts


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("", "no column"),
        ("context_tokens\n", "no requests"),
        ("context_tokens\nmany\n", "trace.csv:2"),
        ("input_tokens,output_tokens\n3\n", "trace.csv:2"),
        ("context_tokens\n0\n", "makes no sense"),
    ],
)
def test_broken_files_of_lengths(lines, message):
    with pytest.raises(UsageError, match=message):
        read_lengths(lines.splitlines(keepends=True), source="trace.csv")


@given(draft=st.integers(0, 8), acceptance=st.floats(0, 1))
def test_speculation_yields_between_one_and_all_tokens(draft, acceptance):
    tokens = Speculation(draft_tokens=draft, acceptance=acceptance).tokens_per_step
    assert 1 <= tokens <= draft + 1 + 1e-9


def test_a_draft_model_costs_memory_and_time():
    (plain,) = planned("llama-3.1-8b", [Parallelism()], context=8_192, batch=1).rows
    model = api.load_model("llama-3.1-8b")
    drafter = Speculation(draft_tokens=2, acceptance=0.0, model=model, layout=api.layout_for(model))
    (row,) = planned("llama-3.1-8b", [Parallelism()], context=8_192, batch=1, speculation=drafter).rows
    assert row.memory.weights_bytes == 2 * plain.memory.weights_bytes
    assert row.tpot_s > 2.9 * plain.tpot_s
    assert row.weights_replication_factor == 1.0


# --- calibrated times -------------------------------------------------------------------------------------------------


def middle(family, kernel):
    """A calibration that says what the family says of itself, so that no measured file is needed."""
    fit = Fit(
        kernel=kernel,
        cache=SIXTEEN_BIT,
        points=0,
        values=FAMILIES[family].kernels[kernel].values,
        held_out=(),
        interval=UNKNOWN,
        interval_from="as if nothing was measured",
    )
    return Calibration(gpu=GPU.slug, family=family, engine=None, source="its family", date="2026-11-24", fits=(fit,))


def calibrated(name, mixes, **options):
    model = api.load_model(name)
    return plan(
        model,
        lambda mix: api.layout_for(model, parallelism=mix, gpu=GPU),
        mixes,
        budget=Budget(gpu=GPU, memory_utilization=0.9),
        demand=Demand(context_tokens=16_384, **options),
        goals=Goals(batch=8, cascade=bool(options)),
        calibrations=(middle("flashmla", MLA), middle("fa3", GQA)),
    )


def test_calibrated_times_are_above_the_roofline_and_inside_their_interval():
    for row in calibrated("deepseek-v3", [Parallelism(tp=8, ep=8), Parallelism(dp=8, ep=8)]).rows:
        found = row.to_json()
        low, high = found["interval_tpot_s"]
        assert found["time_from"] == "calibration"
        assert found["roofline_tpot_s"] < found["tpot_s"]
        assert low < found["tpot_s"] < high


def test_where_one_mix_is_not_calibrated_all_times_are_rooflines():
    for name, options in (("kimi-linear-48b-a3b", {}), ("llama-3.1-8b", {"shared_prefix_tokens": 4096})):
        (row,) = calibrated(name, [Parallelism()], **options).rows
        assert row.time_from == "roofline"
        assert row.interval_tpot_s is None
        assert row.tpot_s == row.timed.roofline_s


# --- weights that an engine keeps a second time -----------------------------------------------------------------------

W_UK_AND_W_UV = 128 * 512 * (128 + 128) * 61
"""Elements of DeepSeek-V3's W_UK and W_UV: heads x latent x (K + V width) x layers."""


@pytest.mark.parametrize(
    ("name", "engine", "tp", "copies"),
    [
        ("deepseek-v3", "vllm", 1, 2 * W_UK_AND_W_UV),
        ("deepseek-v3", "vllm", 8, 2 * W_UK_AND_W_UV // 8),
        ("deepseek-v3", "vllm@0.13", 4, 2 * W_UK_AND_W_UV // 4),
        ("deepseek-v3.2", "vllm", 8, 2 * W_UK_AND_W_UV // 8),
        ("deepseek-v3", "generic", 8, 0),
        ("glm-5", "vllm", 8, 0),  # its kv_b_proj is in bf16: W_UK and W_UV are views of it
        ("llama-3.1-8b", "vllm", 1, 0),
        # TensorRT-LLM: W_UK again in fp8 with a scale for each 128 x 128 elements, W_UV is a view
        ("deepseek-v3", "trtllm", 8, W_UK_AND_W_UV // 2 // 8 * (128 * 128 + 4) // (128 * 128)),
        ("glm-5", "trtllm", 8, 2 * 64 * 512 * 192 * 78 // 8),
        ("deepseek-v3", "sglang", 8, 2 * W_UK_AND_W_UV // 8),
        ("glm-5", "sglang", 8, 2 * 64 * 512 * (192 + 256) * 78 // 8),  # copied in bf16 too
    ],
)
def test_copies_of_kv_b_proj_are_counted_in_weights(name, engine, tp, copies):
    mix = [Parallelism(tp=tp)]
    (plain,), (row,) = planned(name, mix).rows, planned(name, mix, engine=engine).rows
    assert row.memory.weight_copies_bytes == copies
    assert row.memory.weights_bytes == plain.memory.weights_bytes + copies
    assert row.weights_replication_factor == plain.weights_replication_factor
    document = row.to_json()
    assert document["weight_copies_bytes_per_gpu"] == copies
    assert document["weights_bytes_per_gpu"] == plain.memory.weights_bytes + copies
    fit = api.estimate(name, engine=engine, tp=tp, gpu=GPU).memory
    assert (fit.weight_copies_bytes_per_gpu, fit.weights_bytes_per_gpu) == (copies, row.memory.weights_bytes)


def test_stages_have_the_copies_of_their_own_layers():
    (row,) = planned("deepseek-v3", [Parallelism(pp=61)], engine="vllm").rows
    assert row.memory.weight_copies_bytes == 2 * W_UK_AND_W_UV // 61


def test_tensorrt_llm_keeps_both_in_sixteen_bits_on_blackwell():
    model = api.load_model("deepseek-v3")
    attention = model.layers[0].attentions[0]
    layout = api.layout_for(model, engine="trtllm", gpu=api.load_gpu("b200-sxm-180gb"))
    half = W_UK_AND_W_UV // 61 // 2
    scaled = half + half // (128 * 128) * 4
    assert layout.copied_weight_bytes(attention, weights="fp8_block", tp=1) == scaled + 2 * 2 * half
