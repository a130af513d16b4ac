"""Cache sizes, weights and what fits: properties of every kind, and the sizes counted rank by rank."""

from dataclasses import replace
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvcalc import load_model
from kvcalc.architecture.attention import (
    CompressedAttention,
    GatedDeltaNet,
    GroupedAttention,
    LatentAttention,
    Mamba1,
    Mamba2,
    ShortConvolution,
)
from kvcalc.architecture.formats import WEIGHT_FORMATS, Packing
from kvcalc.architecture.model import Layer
from kvcalc.errors import UsageError
from kvcalc.sizing import cache_size, fit, packed_bytes, stages, weights_bytes_per_gpu
from kvcalc.workload import Parallelism, Workload
from tests.drawn_models import (
    MAX_CONTEXT,
    attentions,
    contexts,
    grouped,
    latent,
    layout,
    layouts,
    models,
    quick,
    recurrent,
)

ONE = Parallelism()
LATENT = LatentAttention(n_heads=16, kv_lora_rank=512, qk_nope_head_dim=128, qk_rope_head_dim=64, v_head_dim=128)


def size(model, context_tokens, *, batch=1, in_layout=None, mtp=False, **parallel):
    workload = Workload(batch=batch, context_tokens=context_tokens)
    return cache_size(model, in_layout or layout(), workload, Parallelism(**parallel), mtp=mtp)


def with_attention(model, *kinds):
    return replace(model, layers=(Layer(attentions=kinds, feed_forwards=()),), mtp_layers=())


ANY = load_model("llama-3.1-8b")


@quick
@given(model=models(), in_layout=layouts, context=contexts, batch=st.integers(1, 7))
def test_stored_and_allocated_are_linear_in_batch(model, in_layout, context, batch):
    one, many = (size(model, context, batch=each, in_layout=in_layout) for each in (1, batch))
    assert many.stored_bytes == batch * one.stored_bytes
    assert many.allocated_bytes == batch * one.allocated_bytes
    assert many.bytes_per_token == one.bytes_per_token


@quick
@given(model=models(), in_layout=layouts, context=contexts, more=st.integers(0, 300))
def test_sizes_never_fall_with_context(model, in_layout, context, more):
    near, far = size(model, context, in_layout=in_layout), size(model, context + more, in_layout=in_layout)
    assert near.stored_bytes <= far.stored_bytes
    assert near.allocated_bytes <= far.allocated_bytes


@quick
@given(model=models(), in_layout=layouts, context=contexts)
def test_allocated_is_stored_and_the_rest_of_the_last_block(model, in_layout, context):
    cache = size(model, context, in_layout=in_layout)
    whole = -(-context // in_layout.block_tokens) * in_layout.block_tokens
    assert cache.stored_bytes <= cache.allocated_bytes
    assert cache.allocated_bytes >= size(model, whole, in_layout=in_layout).stored_bytes


@quick
@given(model=models(st.one_of(grouped(full=True), latent)), context=contexts, block=st.sampled_from([1, 16, 100]))
def test_full_attention_allocates_whole_blocks_exactly(model, context, block):
    cache = size(model, context, in_layout=layout(block))
    assert cache.allocated_bytes == -(-context // block) * block * cache.bytes_per_token


@pytest.mark.parametrize(
    ("window", "sinks", "context", "entries"),
    [(128, 0, 10_000, 128), (100, 0, 10_000, 112), (100, 0, 90, 96), (100, 5, 10_000, 112), (100, 13, 10_000, 128)],
)
def test_a_window_is_allocated_in_whole_blocks(window, sinks, context, entries):
    kind = GroupedAttention(n_heads=8, n_kv_heads=1, head_dim=4, v_head_dim=4, window_tokens=window, sink_tokens=sinks)
    assert size(with_attention(ANY, kind), context, in_layout=layout(16)).allocated_bytes == entries * 2 * 4 * 2


@quick
@given(model=models(), periods=st.integers(1, 20))
def test_stored_is_growth_and_the_constant_once_windows_are_full(model, periods):
    cache = size(model, 1)
    context = 128 * periods + 256  # beyond every drawn window, and a multiple of every period
    assert context % cache.period_tokens == 0
    expected = cache.bytes_per_token * context + cache.constant_bytes_per_sequence
    assert size(model, context).stored_bytes == expected
    assert cache.bytes_per_period == cache.bytes_per_token * cache.period_tokens


@quick
@given(attention=grouped(), context=contexts)
def test_a_window_is_never_above_full_attention(attention, context):
    full = replace(attention, window_tokens=None, sink_tokens=0, borrows_cache=False)
    windowed = size(with_attention(ANY, attention), context)
    whole = size(with_attention(ANY, full), context)
    assert windowed.stored_bytes <= whole.stored_bytes
    assert windowed.allocated_bytes <= whole.allocated_bytes


@quick
@given(attention=grouped(), context=contexts, batch=st.integers(1, 4))
def test_gqa_with_all_heads_is_mha_and_with_one_is_mqa(attention, context, batch):
    mha = replace(attention, n_kv_heads=attention.n_heads)
    mqa = replace(attention, n_kv_heads=1)
    sizes = [size(with_attention(ANY, kind), context, batch=batch).stored_bytes for kind in (mha, mqa)]
    assert sizes[0] == attention.n_heads * sizes[1]
    assert mha.label.startswith("MHA")
    assert mqa.label.startswith("MQA") or attention.n_heads == 1


@quick
@given(attention=latent, heads=st.sampled_from([8, 128, 640]), context=contexts)
def test_mlas_bytes_do_not_depend_on_its_heads(attention, heads, context):
    other = replace(attention, n_heads=heads)
    assert size(with_attention(ANY, attention), context) == replace(
        size(with_attention(ANY, other), context), records=size(with_attention(ANY, attention), context).records
    )


@quick
@given(model=models(), in_layout=layouts, context=contexts, tp=st.sampled_from([2, 4, 8]))
def test_shards_times_ranks_are_at_least_the_whole(model, in_layout, context, tp):
    cache = size(model, context, in_layout=in_layout, tp=tp)
    assert cache.per_rank.stored_bytes <= cache.stored_bytes
    assert tp * cache.per_rank.stored_bytes >= cache.stored_bytes
    assert tp * cache.per_rank.bytes_per_token >= cache.bytes_per_token
    assert 1 <= cache.replication_factor <= tp


@quick
@given(attention=recurrent, tp=st.sampled_from([2, 4, 8]), dcp=st.sampled_from([1, 2]))
def test_states_divide_by_tp_whatever_dcp_is(attention, tp, dcp):
    """Facts A.6: Mamba, Gated DeltaNet and KDA states divide by tp, and dcp does not shard them."""
    whole, on_rank = (size(with_attention(ANY, attention), 100, **mix) for mix in ({}, {"tp": tp, "dcp": dcp}))
    heads_are_shared = isinstance(attention, Mamba2) and attention.n_groups < tp
    if heads_are_shared:
        assert tp * on_rank.per_rank.stored_bytes >= whole.stored_bytes
    else:
        assert tp * on_rank.per_rank.stored_bytes == whole.stored_bytes


@pytest.mark.parametrize(
    ("attention", "elements"),
    [
        # vLLM mamba_utils.py; facts A.5: conv state, then recurrent state
        (Mamba1(d_inner=8192, d_state=16, conv_kernel=4, dt_rank=256), 8192 * 3 + 8192 * 16),
        (
            Mamba2(n_heads=128, head_dim=64, n_groups=8, d_state=128, conv_kernel=4),
            (128 * 64 + 2 * 8 * 128) * 3 + 128 * 64 * 128,
        ),
        (
            GatedDeltaNet(n_k_heads=16, n_v_heads=32, k_head_dim=128, v_head_dim=128, conv_kernel=4),
            (2 * 16 * 128 + 32 * 128) * 3 + 32 * 128 * 128,
        ),
        (ShortConvolution(channels=2048, conv_kernel=3), 2048 * 2),
    ],
    ids=["mamba-1", "mamba-2", "gated-deltanet", "short-conv"],
)
def test_state_shapes_of_vllm(attention, elements):
    cache = size(with_attention(ANY, attention), 77)
    assert cache.stored_bytes == cache.constant_bytes_per_sequence == 2 * elements
    assert (cache.bytes_per_token, cache.elements_per_token) == (0, 0)


def test_compressors_hold_the_tokens_of_the_entry_being_formed():
    """With overlap an entry draws on two blocks: 2 x 4 tokens, each with a value and a gate in two series, in fp32."""
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
    )
    hca = replace(csa, compress_ratio=128, overlap=False)
    for attention, tokens, series in ((csa, 8, 2), (hca, 128, 1)):
        states = [item.record for item in size(with_attention(ANY, attention), 999).records if item.record.is_state]
        assert sum(record.stored_bytes(999) for record in states) == tokens * series * 2 * 512 * 4
        assert sum(record.read_bytes(999, 1) for record in states) == series * series * 2 * 512 * 4


@quick
@given(model=models(), context=contexts, pp=st.integers(1, 5), batch=st.integers(1, 3))
def test_pipeline_stages_add_up_to_the_whole(model, context, pp, batch):
    pp = min(pp, len(model.layers))
    parts = stages(model, pp, mtp=True)
    counted = [count for part in parts for _, count in part]
    assert len(parts) == pp
    assert sum(counted) == len(model.layers) + len(model.mtp_layers)
    whole = size(model, context, batch=batch, mtp=True)
    held = [
        size(replace(model, layers=_repeated(part), mtp_layers=()), context, batch=batch).stored_bytes for part in parts
    ]
    assert sum(held) == whole.stored_bytes
    spread = size(model, context, batch=batch, mtp=True, pp=pp)
    assert spread.per_rank.stored_bytes == max(held)
    assert spread.replication_factor == 1


def _repeated(part):
    return tuple(layer for layer, count in part for _ in range(count))


@pytest.mark.parametrize(
    ("layers", "pp", "sizes"),
    [
        # vLLM distributed/utils.py get_pp_indices: a remainder goes one each to stages -2, -3, ...
        (61, 4, [15, 15, 16, 15]),
        (61, 8, [7, 7, 8, 8, 8, 8, 8, 7]),
        (80, 8, [10] * 8),
        (5, 2, [3, 2]),
        (7, 4, [2, 2, 2, 1]),
    ],
)
def test_stages_are_vllms(layers, pp, sizes):
    model = replace(ANY, layers=ANY.layers[:1] * layers)
    assert [sum(count for _, count in part) for part in stages(model, pp)] == sizes


def test_more_stages_than_layers_are_refused():
    with pytest.raises(UsageError, match="pp 33 is more than the model's 32 layers"):
        size(ANY, 100, pp=33)


@quick
@given(context=contexts, dcp=st.sampled_from([1, 2, 4, 8]))
def test_dcp_shares_a_sequences_tokens(context, dcp):
    cache = size(with_attention(ANY, LATENT), context, tp=8, dcp=dcp)
    assert cache.per_rank.stored_bytes == -(-context // dcp) * 1152
    assert cache.per_rank.bytes_per_token == Fraction(1152, dcp)


@quick
@given(context=contexts, dcp=st.sampled_from([1, 2, 4, 8]))
def test_the_replication_factor_counts_bytes_that_are_there(context, dcp):
    """8 ranks in groups of dcp hold 8 / dcp copies between them, also where the tokens don't divide by dcp."""
    assert size(with_attention(ANY, LATENT), context, tp=8, dcp=dcp).replication_factor == Fraction(8, dcp)


def test_dcp_does_not_split_a_window():
    windowed = GroupedAttention(n_heads=32, n_kv_heads=1, head_dim=64, v_head_dim=64, window_tokens=128)
    cache = size(with_attention(ANY, windowed), 4096, tp=8, dcp=4)
    assert cache.per_rank.stored_bytes == 128 * 2 * 64 * 2


@quick
@given(batch=st.integers(1, 20), dp=st.integers(1, 8))
def test_the_busiest_replica_has_the_batch_rounded_up(batch, dp):
    cache = size(ANY, 100, batch=batch, dp=dp)
    assert cache.per_rank.stored_bytes == -(-batch // dp) * 100 * 131_072
    assert cache.stored_bytes == batch * 100 * 131_072


@pytest.mark.parametrize(
    ("mix", "message"),
    [
        ({"tp": 3}, "tp 3 does not divide the 32 heads"),
        ({"tp": 64}, "tp 64 does not divide the 32 heads"),
        ({"tp": 4, "dcp": 3}, "dcp 3 does not divide tp 4"),
        ({"tp": 0}, "tp is 0"),
        ({"pp": -1}, "pp is -1"),
        ({"tp": 2, "dp": 2, "ep": 3}, "ep 3 does not divide tp x dp = 4"),
    ],
    ids=str,
)
def test_a_mix_that_can_not_be_is_refused(mix, message):
    with pytest.raises(UsageError, match=message):
        size(ANY, 100, **mix)


def test_kv_heads_that_spread_unevenly_are_refused():
    odd = GroupedAttention(n_heads=24, n_kv_heads=6, head_dim=64, v_head_dim=64)
    with pytest.raises(UsageError, match="the 6 KV heads of GQA-6 can't be spread over 4 ranks"):
        size(with_attention(ANY, odd), 100, tp=4)


# --- weights ----------------------------------------------------------------------------------------------------------


@quick
@given(model=models(), mtp=st.booleans())
def test_on_one_gpu_weights_are_all_parameters(model, mtp):
    parameters = model.parameters
    in_all = parameters.total + (parameters.mtp if mtp else 0)
    assert weights_bytes_per_gpu(model, ONE, weights_dtype="bf16", mtp=mtp) == 2 * in_all


@quick
@given(model=models(), tp=st.sampled_from([2, 4, 8]), dp=st.sampled_from([1, 2]), pp=st.integers(1, 3))
def test_weights_on_all_gpus_are_at_least_the_model(model, tp, dp, pp):
    pp = min(pp, len(model.layers))
    mix = Parallelism(tp=tp, dp=dp, pp=pp)
    each = weights_bytes_per_gpu(model, mix, weights_dtype="bf16")
    assert each <= weights_bytes_per_gpu(model, ONE, weights_dtype="bf16") + 2 * model.vocab_size * model.hidden_size
    assert each * mix.gpus >= 2 * model.parameters.total


@pytest.mark.parametrize(
    ("name", "tp", "replicated"),
    [
        # norms: 2 x 32 + 1 of 4,096; everything else divides
        ("llama-3.1-8b", 8, 65 * 4096),
        ("llama-3.1-70b", 8, 161 * 8192),
        # and with 16 ranks for 8 KV heads: k and v projections are there twice
        ("llama-3.1-70b", 16, 161 * 8192),
    ],
)
def test_llama_on_a_rank_is_its_share_and_the_norms(name, tp, replicated):
    model = load_model(name)
    on_rank = weights_bytes_per_gpu(model, Parallelism(tp=tp), weights_dtype="bf16")
    attention = model.layers[0].attentions[0]
    kv = len(model.layers) * 2 * 8192 * attention.n_kv_heads * attention.head_dim if tp > attention.n_kv_heads else 0
    copies = tp // attention.n_kv_heads if kv else 1
    expected = (model.parameters.total - replicated - kv) // tp + kv * copies // tp + replicated
    assert on_rank == 2 * expected


def test_experts_are_spread_over_all_ranks_and_the_rest_over_tp():
    model = load_model("deepseek-v3")
    four, both = (weights_bytes_per_gpu(model, Parallelism(tp=8, dp=dp), weights_dtype="bf16") for dp in (1, 4))
    experts = 58 * 256 * 3 * 7168 * 2048
    assert four - both == 2 * (experts // 8 - experts // 32)


@quick
@given(elements=st.integers(1, 10**7), name=st.sampled_from(sorted(WEIGHT_FORMATS)))
def test_packed_weights_are_whole_blocks_and_no_more(elements, name):
    packing: Packing = WEIGHT_FORMATS[name]
    exact = elements * packing.bytes_per_element
    assert exact <= packed_bytes(elements, packing) < exact + packing.bytes


# --- what fits --------------------------------------------------------------------------------------------------------


def fitted(model, in_layout, usable, *, batch=1, context=100, **mix):
    workload, parallelism = Workload(batch=batch, context_tokens=context), Parallelism(**mix)
    return fit(model, in_layout, workload, parallelism, usable_bytes=usable, weights_dtype="bf16")


@quick
@given(
    model=models(),
    in_layout=layouts,
    spare=st.integers(0, 400_000),
    batch=st.integers(1, 5),
    context=st.integers(1, 300),
    dp=st.sampled_from([1, 2, 3]),
)
def test_what_fits_fits_and_one_more_does_not(model, in_layout, spare, batch, context, dp):
    weights = weights_bytes_per_gpu(model, Parallelism(dp=dp), weights_dtype="bf16")
    usable = weights + spare

    def fits(batch: int, context: int) -> bool:
        cache = size(model, context, batch=batch, in_layout=in_layout, dp=dp).per_rank.allocated_bytes
        return weights + cache <= usable

    found = fitted(model, in_layout, usable, batch=batch, context=context, dp=dp)
    assert found.fits == fits(batch, context)
    assert found.weights_bytes_per_gpu == weights
    if size(model, context, in_layout=in_layout).allocated_bytes:
        if found.max_batch:
            assert fits(found.max_batch, context)
        assert not fits(found.max_batch + 1, context)
    if found.max_context_tokens:
        assert fits(batch, found.max_context_tokens)
    assert found.max_context_tokens == MAX_CONTEXT or not fits(batch, found.max_context_tokens + 1)


@quick
@given(model=models(), spare=st.integers(0, 30_000))
def test_max_context_is_the_one_that_counting_up_finds(model, spare):
    weights = weights_bytes_per_gpu(model, ONE, weights_dtype="bf16")
    model = replace(model, max_context_tokens=40)
    counted = max((c for c in range(1, 41) if size(model, c, in_layout=layout(1)).allocated_bytes <= spare), default=0)
    assert fitted(model, layout(1), weights + spare).max_context_tokens == counted


def test_nothing_fits_beside_weights_that_do_not():
    found = fitted(ANY, layout(), 1000)
    assert (found.fits, found.max_batch, found.max_context_tokens) == (False, 0, 0)


@quick
@given(attention=attentions)
def test_every_component_is_named_sourced_and_has_a_positive_width(attention):
    components = attention.components()
    assert components
    assert attention.source
    assert attention.label
    assert len({component.name for component in components}) == len(components)
    assert all(component.symbol for component in components)
    assert all(component.width >= 1 or component.role.value == "convolution" for component in components)
