"""The YAML model spec, as pydantic checks it and as an editor completes it.

The docstring below a field is what an editor shows and what the JSON Schema says.
"""

import datetime
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, Tag

from kvcalc.specs.kinds import AttentionSpec, Count, FeedForwardSpec, Size, Tokens
from kvcalc.specs.validation import Spec, json_schema

Total = Annotated[int, Field(ge=1, le=1 << 60)]
Text = Annotated[str, Field(min_length=1, max_length=4000)]

FormatName = Literal["fp32", "bf16", "fp16", "fp8", "fp8_block", "int8", "mxfp8", "mxfp4", "nvfp4", "int4"]


class Source(Spec):
    """Where the numbers of a spec are from."""

    cite: Text
    """The config file, paper or page, exact enough to find it again."""
    date: Annotated[datetime.date, Field(strict=False)]
    """The day on which the numbers were read there."""


class PublishedSpec(Spec):
    """The publisher's own totals. They are compared with what is computed, never used."""

    parameters: Total | None = None
    """Total parameters as published."""
    active_parameters: Total | None = None
    """Parameters used by a token, as published."""
    active_convention: Literal["with_embeddings", "without_embedding", "without_embeddings"] | None = None
    """Whether the published active count has the embedding tables in it: both, only the head, or neither."""
    rounded_name: bool = False
    """The published total is a rounded product name, not a count."""


def _one_or_several(value: Any) -> str:
    return "several" if isinstance(value, list) else "one"


class WeightSpec(Spec):
    """A weight that no kind explains, with its shape."""

    name: Text
    shape: Annotated[list[Size], Field(min_length=1, max_length=4)]
    """Its dimensions; for a product the first is the input's width."""
    use: Literal["matmul", "vector", "lookup"] = "matmul"
    """What a token does with it: multiplies by all of it, applies it elementwise, or picks one row."""
    count: Count = 1
    """How many there are alike."""
    part: Literal["attention", "feed_forward", "norm", "other"] = "other"
    """The part of the model whose weight format it has."""


class LayerSpec(Spec):
    """One layer, or `repeat` alike."""

    TAG: ClassVar[str] = "layer"

    repeat: Count = 1
    """How many such layers follow each other."""
    attention: (
        Annotated[
            Annotated[AttentionSpec, Tag("one")] | Annotated[list[AttentionSpec], Tag("several")],
            Discriminator(_one_or_several),
        ]
        | None
    ) = None
    """Its token mixing; a list where there are several; left out where there is none."""
    feed_forward: (
        Annotated[
            Annotated[FeedForwardSpec, Tag("one")] | Annotated[list[FeedForwardSpec], Tag("several")],
            Discriminator(_one_or_several),
        ]
        | None
    ) = None
    """Its feed-forward network; a list where there are several; left out where there is none."""
    norms: Annotated[int, Field(ge=0, le=64)] | None = None
    """Norms of the hidden size in the layer, where it is not the model's norms_per_layer."""
    other: list[WeightSpec] = []
    """Weights that no kind explains."""


class PatternSpec(Spec):
    """A run of layers that repeats."""

    TAG: ClassVar[str] = "pattern"

    repeat: Count = 1
    """How often the pattern occurs."""
    pattern: Annotated[list[LayerSpec], Field(min_length=1)]
    """The layers of one occurrence, in order."""


def _layer_or_pattern(value: Any) -> str:
    return "pattern" if isinstance(value, dict) and "pattern" in value else "layer"


class WeightFormatsSpec(Spec):
    """Number formats of the published weights, by part."""

    default: FormatName
    """For every part that is not named."""
    embedding: FormatName | None = None
    head: FormatName | None = None
    attention: FormatName | None = None
    indexer: FormatName | None = None
    feed_forward: FormatName | None = None
    shared_experts: FormatName | None = None
    experts: FormatName | None = None
    router: FormatName | None = None
    norm: FormatName | None = None
    other: FormatName | None = None


class CacheFormatsSpec(Spec):
    """Cache formats that the model itself defines; left out: bf16."""

    kv: Literal["fp8_ds_v4"] | None = None
    """The record of an attention entry."""
    index: Literal["bf16", "fp8_index", "mxfp4_index"] | None = None
    """The record of an index key."""
    state: Literal["fp32", "bf16"] | None = None
    """Recurrent states."""


class ModelSpec(Spec):
    """A model's text decoder. Bytes and totals are never written here: they are computed."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]*$", max_length=100)]
    """Lower case; what `kvcalc estimate NAME` calls it."""
    title: Text
    """The publisher's spelling."""
    source: Source
    notes: Text | None = None
    """What a reader should know: traps, what was left out."""
    published: PublishedSpec = PublishedSpec()
    hidden_size: Size
    """Width of the hidden state."""
    vocab_size: Size
    """Rows of the embedding table."""
    tied_embeddings: bool
    """Whether the output head is the embedding table."""
    max_context_tokens: Tokens
    """The longest context that the publisher states."""
    norm: Literal["rms", "layer", "none"] = "rms"
    """Norms with a gain, with a gain and a bias, or without parameters."""
    norms_per_layer: Annotated[int, Field(ge=0, le=64)] = 2
    """Norms of the hidden size in a layer."""
    final_norm: bool = True
    """A norm before the head."""
    embedding_size: Size | None = None
    """Width of the embedding, where a projection leads to the hidden size."""
    position_rows: Size | None = None
    """Rows of a learned position table."""
    head_bias: bool = False
    weight_formats: WeightFormatsSpec
    cache_formats: CacheFormatsSpec = CacheFormatsSpec()
    layers: Annotated[
        list[
            Annotated[
                Annotated[LayerSpec, Tag("layer")] | Annotated[PatternSpec, Tag("pattern")],
                Discriminator(_layer_or_pattern),
            ]
        ],
        Field(min_length=1),
    ]
    """The layers in order: single ones, runs (`repeat`) and repeating patterns (`repeat` and `pattern`)."""
    mtp: list[LayerSpec] = []
    """Multi-token prediction layers; they count with `--mtp` only."""
    other: list[WeightSpec] = []
    """Weights outside the layers that no key explains."""


def model_schema() -> dict[str, Any]:
    """The JSON Schema of a model spec."""
    return json_schema(ModelSpec, "kvcalc model spec")
