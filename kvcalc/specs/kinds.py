"""Attention and feed-forward kinds as a model spec writes them: one class a kind, told apart by `kind`."""

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from kvcalc.specs.validation import Spec

Count = Annotated[int, Field(ge=1, le=1 << 20)]
Size = Annotated[int, Field(ge=1, le=1 << 24)]
Tokens = Annotated[int, Field(ge=1, le=1 << 40)]


class IndexerSpec(Spec):
    """The scorer that selects tokens."""

    heads: Count
    """Index query heads."""
    head_dim: Count
    """Width of an index key; one key a token is kept."""
    q_lora_rank: Count | None = None
    """Width that index queries are projected from; left out: the hidden state."""
    norms: Literal["layer", "rms"] = "layer"
    """`layer`: one LayerNorm on the key (DSA). `rms`: an RMSNorm on query and key each (MiniMax-M3)."""
    head_weights: bool = True
    """Whether a learned weight a head mixes the heads' scores."""


def _shared_or_own(value: Any) -> str:
    return "shared" if isinstance(value, str) else "own"


class SelectionSpec(Spec):
    """Only the tokens that an indexer selects are attended."""

    top_k: Tokens
    """Tokens that a query attends; for block selection, blocks times the block's tokens."""
    indexer: Annotated[
        Annotated[Literal["shared"], Tag("shared")] | Annotated[IndexerSpec, Tag("own")], Discriminator(_shared_or_own)
    ]
    """The layer's own indexer, or `shared`: an earlier layer's selection is used."""


class _GroupedSpec(Spec):
    n_heads: Count
    """Query heads."""
    head_dim: Count
    """Width of a query and key head."""
    v_head_dim: Count | None = None
    """Width of a value head, where it is not head_dim."""
    window_tokens: Tokens | None = None
    """Sliding window: a token attends at most so many tokens, itself included."""
    chunk_tokens: Tokens | None = None
    """Chunked attention: a token attends its own chunk of so many tokens."""
    sink_tokens: Annotated[int, Field(ge=0, le=1 << 20)] = 0
    """First tokens that the window never drops."""
    sink_logits: bool = False
    """One learned sink logit a head (gpt-oss): a parameter, nothing is kept."""
    borrows_cache: bool = False
    """The layer attends the K and V of an earlier layer and keeps none of its own."""
    one_projection: bool = False
    """V is computed from K's projection: one matrix less; K and V are both kept."""
    qk_norm: Literal["head", "full"] | None = None
    """A norm on q and k: over one head's width, or over all heads together."""
    bias: list[Literal["q", "k", "v", "o"]] = []
    """Projections that have a bias."""
    output_gate: bool = False
    """The output is gated elementwise; q's projection is twice as wide (Qwen3-Next)."""
    head_gate: bool = False
    """The output is gated by one value a head, projected from the hidden state."""
    selection: SelectionSpec | None = None
    """Sparse attention: only selected tokens are attended; all are kept."""


class MhaSpec(_GroupedSpec):
    """Multi-head attention: as many KV heads as query heads."""

    kind: Literal["mha"]


class GqaSpec(_GroupedSpec):
    """Grouped-query attention."""

    kind: Literal["gqa"]
    n_kv_heads: Count
    """KV heads; divides n_heads."""


class MqaSpec(_GroupedSpec):
    """Multi-query attention: one KV head."""

    kind: Literal["mqa"]


class MlaSpec(Spec):
    """Multi-head latent attention: one latent vector a token, shared by all heads."""

    kind: Literal["mla"]
    n_heads: Count
    """Query heads."""
    q_lora_rank: Count | None = None
    """Rank of the query projection; left out: queries are projected in one step."""
    kv_lora_rank: Count
    """Width of the latent vector that is kept."""
    qk_nope_head_dim: Count
    """Width of the part of a key head that is rebuilt from the latent."""
    qk_rope_head_dim: Annotated[int, Field(ge=0, le=1 << 20)]
    """Width of the key part that carries the position, kept beside the latent."""
    v_head_dim: Count
    """Width of a value head."""
    bias: list[Literal["q_a", "kv_a", "o"]] = []
    """Projections that have a bias."""
    lora_norms: bool = True
    """Norms on the two low-rank vectors."""
    output_gate: bool = False
    """The output is gated elementwise by a projection of the hidden state."""
    selection: SelectionSpec | None = None
    """Sparse attention (DSA): only selected tokens are attended; all are kept."""


class CompressedSpec(Spec):
    """DeepSeek-V4's attention: a raw window, and a stream in which several tokens became one entry."""

    kind: Literal["compressed"]
    n_heads: Count
    """Query heads; one vector is K and V for all of them."""
    head_dim: Count
    """Width of that vector."""
    qk_rope_head_dim: Count
    """How much of it carries the position."""
    q_lora_rank: Count
    """Rank of the query projection."""
    o_groups: Count
    """Head groups of the output projection."""
    o_lora_rank: Count
    """Rank of the output projection of a group."""
    window_tokens: Tokens
    """Tokens that are kept raw."""
    compress_ratio: Tokens | None = None
    """Tokens that become one entry; left out: the layer has the window only."""
    overlap: bool = False
    """An entry draws on two blocks of tokens (CSA)."""
    top_k: Tokens | None = None
    """Compressed entries that the indexer selects; left out: all are attended (HCA)."""
    index_heads: Count | None = None
    """Index query heads."""
    index_head_dim: Count | None = None
    """Width of an index key."""


class Mamba1Spec(Spec):
    """Selective state space model."""

    kind: Literal["mamba-1"]
    d_inner: Count
    """Channels."""
    d_state: Count
    """State elements a channel."""
    conv_kernel: Count
    """Tokens that the short convolution spans."""
    dt_rank: Count
    """Rank of the time step's projection."""
    conv_bias: bool = True
    proj_bias: bool = False
    input_norms: bool = False
    """Norms on dt, B and C (Jamba)."""


class Mamba2Spec(Spec):
    """State space duality."""

    kind: Literal["mamba-2"]
    n_heads: Count
    head_dim: Count
    n_groups: Count
    """Groups of heads that share B and C."""
    d_state: Count
    """State elements a channel."""
    conv_kernel: Count
    """Tokens that the short convolution spans."""
    conv_bias: bool = True
    proj_bias: bool = False
    gated_norm: bool = True
    """A gated norm before the output projection."""
    kernel_chunk_tokens: Count | None = None
    """Tokens that its kernel computes together (chunk_size): engines may make their blocks multiples of it."""


class GatedDeltaNetSpec(Spec):
    """Gated DeltaNet."""

    kind: Literal["gated-deltanet"]
    n_k_heads: Count
    n_v_heads: Count
    k_head_dim: Count
    v_head_dim: Count
    conv_kernel: Count
    """Tokens that the short convolution spans."""


class KdaSpec(Spec):
    """Kimi Delta Attention."""

    kind: Literal["kda"]
    n_heads: Count
    head_dim: Count
    conv_kernel: Count
    """Tokens that the short convolution spans."""
    gate_bias: bool = False
    """The output gate's projection has a bias."""
    full_rank_gate: bool = False
    """The output gate is one projection of the hidden state instead of two of low rank (Kimi-K3)."""


class LightningSpec(Spec):
    """Lightning attention: linear attention with a fixed decay."""

    kind: Literal["lightning"]
    n_heads: Count
    head_dim: Count


class ShortConvSpec(Spec):
    """Gated short convolution (LFM2)."""

    kind: Literal["short-conv"]
    channels: Count
    conv_kernel: Count
    """Tokens that the convolution spans."""
    bias: bool = False


AttentionSpec = Annotated[
    MhaSpec
    | GqaSpec
    | MqaSpec
    | MlaSpec
    | CompressedSpec
    | Mamba1Spec
    | Mamba2Spec
    | GatedDeltaNetSpec
    | KdaSpec
    | LightningSpec
    | ShortConvSpec,
    Field(discriminator="kind"),
]


class DenseSpec(Spec):
    """One feed-forward network."""

    kind: Literal["dense"]
    intermediate_size: Size
    """Its inner width."""
    gated: bool = True
    """Three matrices (SwiGLU, GeGLU), or two."""
    bias: bool = False


class MoeSpec(Spec):
    """Mixture of experts."""

    kind: Literal["moe"]
    experts: Count
    """Routed experts."""
    experts_per_token: Count
    """Experts that the router draws for a token."""
    intermediate_size: Size
    """Inner width of an expert."""
    gated: bool = True
    """Three matrices an expert, or two."""
    shared_experts: Annotated[int, Field(ge=0, le=1 << 10)] = 0
    """Experts of that width that every token takes."""
    shared_intermediate_size: Size | None = None
    """Inner width of the shared network, where it is not shared_experts times intermediate_size."""
    shared_gate: bool = False
    """The shared network's output is scaled by a projected gate."""
    zero_experts: Annotated[int, Field(ge=0, le=1 << 20)] = 0
    """Router entries that do nothing (LongCat)."""
    latent_size: Size | None = None
    """Experts work on a projection of the hidden state of this width."""
    latent_norm: bool = False
    """A norm on the experts' output before it is projected back (Kimi-K3)."""
    expert_bias: bool = False
    router_bias: bool = False
    """The router has a trained bias; a balancing correction is none."""


FeedForwardSpec = Annotated[DenseSpec | MoeSpec, Field(discriminator="kind")]
