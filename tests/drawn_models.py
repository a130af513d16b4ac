"""Models drawn at random for properties: small numbers, every kind, every way of keeping a cache."""

from hypothesis import settings
from hypothesis import strategies as st

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
from kvcalc.architecture.feed_forward import DenseFeedForward, MixtureOfExperts
from kvcalc.architecture.layout import GenericLayout, precision_for
from kvcalc.architecture.model import Layer, Model

quick = settings(derandomize=True, max_examples=40, deadline=None, database=None)
MAX_CONTEXT = 4096

powers = st.sampled_from([1, 2, 4, 8])
widths = st.integers(1, 24)


@st.composite
def grouped(draw: st.DrawFn, *, full: bool = False) -> GroupedAttention:
    kv_heads, group = draw(powers), draw(powers)
    window = None if full else draw(st.one_of(st.none(), st.integers(1, 100)))
    return GroupedAttention(
        n_heads=8 * kv_heads * group,
        n_kv_heads=kv_heads,
        head_dim=draw(widths),
        v_head_dim=draw(widths),
        window_tokens=window,
        sink_tokens=draw(st.integers(0, 4)) if window else 0,
        borrows_cache=False if full else draw(st.booleans()),
    )


latent = st.builds(
    LatentAttention,
    n_heads=st.sampled_from([8, 16, 64]),
    kv_lora_rank=widths,
    qk_nope_head_dim=widths,
    qk_rope_head_dim=st.integers(0, 8),
    v_head_dim=widths,
    q_lora_rank=st.one_of(st.none(), widths),
)
selected = st.builds(
    SelectedAttention,
    base=st.one_of(grouped(full=True), latent),
    top_k=st.integers(1, 200),
    indexer=st.one_of(st.none(), st.builds(Indexer, heads=powers, head_dim=widths)),
)
compressed = st.builds(
    CompressedAttention,
    n_heads=st.sampled_from([8, 16]),
    head_dim=st.integers(9, 24),
    qk_rope_head_dim=st.integers(1, 8),
    q_lora_rank=widths,
    o_groups=st.sampled_from([1, 8]),
    o_lora_rank=widths,
    window_tokens=st.integers(1, 100),
    compress_ratio=st.sampled_from([None, 4, 128]),
    overlap=st.booleans(),
)
recurrent = st.one_of(
    st.builds(Mamba1, d_inner=st.sampled_from([8, 32]), d_state=widths, conv_kernel=st.integers(1, 4), dt_rank=widths),
    st.builds(
        Mamba2,
        n_heads=st.sampled_from([8, 16]),
        head_dim=widths,
        n_groups=st.sampled_from([1, 8]),
        d_state=widths,
        conv_kernel=st.integers(1, 4),
    ),
    st.builds(
        GatedDeltaNet,
        n_k_heads=st.just(8),
        n_v_heads=st.sampled_from([8, 16]),
        k_head_dim=widths,
        v_head_dim=widths,
        conv_kernel=st.integers(1, 4),
    ),
    st.builds(KimiDeltaAttention, n_heads=st.just(8), head_dim=widths, conv_kernel=st.integers(1, 4)),
    st.builds(LightningAttention, n_heads=st.just(8), head_dim=widths),
    st.builds(ShortConvolution, channels=st.sampled_from([8, 32]), conv_kernel=st.integers(2, 4)),
)
attentions = st.one_of(grouped(), latent, selected, compressed, recurrent)

dense = st.builds(DenseFeedForward, intermediate_size=st.sampled_from([8, 24]), gated=st.booleans(), bias=st.booleans())
mixtures = st.builds(
    MixtureOfExperts,
    experts=st.sampled_from([8, 16]),
    experts_per_token=st.integers(1, 8),
    intermediate_size=st.sampled_from([8, 16]),
    gated=st.booleans(),
    shared_intermediate_size=st.sampled_from([0, 8]),
    zero_experts=st.integers(0, 3),
)


@st.composite
def models(draw: st.DrawFn, attention: st.SearchStrategy = attentions) -> Model:
    """Up to five layers of up to two attentions."""
    layers = st.builds(
        Layer,
        attentions=st.lists(attention, min_size=1, max_size=2).map(tuple),
        feed_forwards=st.lists(st.one_of(dense, mixtures), max_size=1).map(tuple),
        norms=st.integers(0, 3),
    )
    return Model(
        name="drawn",
        title="Drawn",
        source="a test",
        source_date="2026-11-24",
        hidden_size=16,
        vocab_size=draw(st.sampled_from([64, 256])),
        tied_embeddings=draw(st.booleans()),
        max_context_tokens=MAX_CONTEXT,
        layers=tuple(draw(st.lists(layers, min_size=1, max_size=5))),
        mtp_layers=tuple(draw(st.lists(layers, max_size=1))),
    )


def layout(block_tokens: int = 16, kv_dtype: str | None = None) -> GenericLayout:
    return GenericLayout(precision=precision_for({}, kv_dtype=kv_dtype), block_tokens=block_tokens)


layouts = st.builds(layout, st.sampled_from([1, 16, 64]), st.sampled_from([None, "fp8", "int4", "q8_0", "nvfp4"]))
contexts = st.integers(1, MAX_CONTEXT)
