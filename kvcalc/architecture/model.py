"""A model: layers of attention and feed-forward networks between an embedding and a head."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property

from kvcalc.architecture.attention import Attention
from kvcalc.architecture.feed_forward import FeedForward, MixtureOfExperts
from kvcalc.architecture.weights import Part, Use, Weight, matrix, total_elements, vector

NORM_VECTORS = {"rms": 1, "layer": 2, "none": 0}
"""Vectors of the hidden size in a norm: a gain, a gain and a bias, nothing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Layer:
    """One decoder layer.

    attentions     usually one; two in LongCat's shortcut layers, none in a layer that is only feed-forward
    feed_forwards  usually one; none in a layer that is only attention
    norms          norms of the hidden size in it
    other          weights that no part above explains, with their shapes
    """

    attentions: tuple[Attention, ...]
    feed_forwards: tuple[FeedForward, ...]
    norms: int = 2
    other: tuple[Weight, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Published:
    """The publisher's own totals: compared with what is computed, never used."""

    parameters: int | None = None
    active_parameters: int | None = None
    active_convention: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Parameters:
    """Parameter counts.

    total                       every parameter of the text decoder, tied ones once, without MTP layers
    active                      used by one token, embedding tables included
    active_without_embedding    ... less the input embedding
    active_without_embeddings   ... less the output head as well
    mtp                         of the MTP layers
    """

    total: int
    active: int
    active_without_embedding: int
    active_without_embeddings: int
    mtp: int


@dataclass(frozen=True, kw_only=True)
class Model:
    """The text decoder of a model.

    layers          in order, from the embedding to the head
    mtp_layers      multi-token prediction layers behind them; they count only where they are asked for
    norm            kind of the norms: rms, layer, none
    embedding_size  width of the embedding where it is not the hidden size
    position_rows   rows of a learned position table
    native_formats  cache formats that the model itself defines, by `kv`, `index`, `state`
    weight_formats  formats of the published weights by part; `default` for the others
    """

    name: str
    title: str
    source: str
    source_date: str
    hidden_size: int
    vocab_size: int
    tied_embeddings: bool
    max_context_tokens: int
    layers: tuple[Layer, ...]
    mtp_layers: tuple[Layer, ...] = ()
    norm: str = "rms"
    final_norm: bool = True
    embedding_size: int | None = None
    position_rows: int = 0
    head_bias: bool = False
    native_formats: Mapping[str, str] = field(default_factory=dict)
    weight_formats: Mapping[str, str] = field(default_factory=lambda: {"default": "bf16"})
    other: tuple[Weight, ...] = ()
    published: Published = Published()

    @cached_property
    def distinct_layers(self) -> tuple[tuple[Layer, int], ...]:
        """Each different layer with how many there are of it, in order of first appearance."""
        return tuple(Counter(self.layers).items())

    @cached_property
    def distinct_mtp_layers(self) -> tuple[tuple[Layer, int], ...]:
        return tuple(Counter(self.mtp_layers).items())

    @property
    def attention_labels(self) -> tuple[str, ...]:
        """`58 x MLA 512+64`, one for each different attention."""
        counts: Counter[str] = Counter()
        for layer, count in self.distinct_layers:
            for attention in layer.attentions:
                counts[attention.label] += count
        return tuple(f"{count} x {label}" for label, count in counts.items())

    def norm_weight(self, name: str, count: int = 1) -> Weight:
        return vector(name, count * NORM_VECTORS[self.norm] * self.hidden_size, part=Part.NORM)

    def layer_weights(self, layer: Layer) -> tuple[Weight, ...]:
        """All weights of a layer."""
        weights: list[Weight] = []
        for attention in layer.attentions:
            weights += attention.weights(self.hidden_size)
        for feed_forward in layer.feed_forwards:
            weights += feed_forward.weights(self.hidden_size)
        if layer.norms:
            weights.append(self.norm_weight("norms", layer.norms))
        return (*weights, *layer.other)

    @cached_property
    def embedding_weights(self) -> tuple[Weight, ...]:
        """Input tables: one row of each is read for a token."""
        width = self.embedding_size or self.hidden_size
        tables = [
            Weight(
                name="embedding",
                part=Part.EMBEDDING,
                shape=(self.vocab_size, width),
                shards=self.vocab_size,
                use=Use.LOOKUP,
            )
        ]
        if self.position_rows:
            tables.append(
                Weight(
                    name="positions", part=Part.EMBEDDING, shape=(self.position_rows, self.hidden_size), use=Use.LOOKUP
                )
            )
        return tuple(tables)

    @cached_property
    def head_weights(self) -> tuple[Weight, ...]:
        """The output product; with tied embeddings its matrix is the embedding's, and no parameter of its own."""
        width = self.embedding_size or self.hidden_size
        weights = [matrix("head", width, self.vocab_size, part=Part.HEAD, shards=self.vocab_size)]
        if self.head_bias:
            weights.append(vector("head_bias", self.vocab_size, part=Part.HEAD, shards=self.vocab_size))
        return tuple(weights)

    @property
    def own_head_weights(self) -> tuple[Weight, ...]:
        """Those of the head's weights that are parameters of their own."""
        return self.head_weights[1:] if self.tied_embeddings else self.head_weights

    @cached_property
    def other_weights(self) -> tuple[Weight, ...]:
        """Weights outside the layers, embeddings and head aside."""
        projections: tuple[Weight, ...] = ()
        if self.embedding_size and self.embedding_size != self.hidden_size:
            projections = (
                matrix("embedding_in", self.embedding_size, self.hidden_size, part=Part.OTHER),
                matrix("embedding_out", self.hidden_size, self.embedding_size, part=Part.OTHER),
            )
        norm = (self.norm_weight("final_norm"),) if self.final_norm and NORM_VECTORS[self.norm] else ()
        return (*projections, *norm, *self.other)

    def weights(self, *, mtp: bool = False) -> Iterator[tuple[Weight, int]]:
        """Every parameter tensor with how many there are of it."""
        for layer, count in self.distinct_layers + (self.distinct_mtp_layers if mtp else ()):
            for weight in self.layer_weights(layer):
                yield weight, count
        for weight in (*self.embedding_weights, *self.own_head_weights, *self.other_weights):
            yield weight, 1

    @cached_property
    def parameters(self) -> Parameters:
        """Counts of parameters, by the conventions named in `Parameters`."""
        total = sum(weight.elements * count for weight, count in self.weights())
        inactive = Fraction(0)
        for layer, count in self.distinct_layers:
            for feed_forward in layer.feed_forwards:
                if isinstance(feed_forward, MixtureOfExperts):
                    share = 1 - feed_forward.active_experts / feed_forward.experts
                    inactive += count * share * total_elements(feed_forward.expert_weights(self.hidden_size))
        active = total - round(inactive)
        embedding, head = total_elements(self.embedding_weights), total_elements(self.own_head_weights)
        mtp = sum(count * total_elements(self.layer_weights(layer)) for layer, count in self.distinct_mtp_layers)
        return Parameters(
            total=total,
            active=active,
            active_without_embedding=active - embedding,
            active_without_embeddings=active - embedding - head,
            mtp=mtp,
        )
