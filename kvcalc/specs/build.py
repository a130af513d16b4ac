"""From a checked model spec to the architecture that everything else computes with."""

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from kvcalc.architecture.attention import (
    Attention,
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
from kvcalc.architecture.feed_forward import DenseFeedForward, FeedForward, MixtureOfExperts
from kvcalc.architecture.model import Layer, Model, Published
from kvcalc.architecture.weights import Part, Use, Weight
from kvcalc.errors import Problem, SpecError
from kvcalc.specs import schema
from kvcalc.specs.reader import Document, PathInDocument
from kvcalc.specs.validation import Spec, validate

MAX_LAYERS = 10_000

_PLAIN_KINDS: dict[type[Spec], type[Any]] = {
    schema.CompressedSpec: CompressedAttention,
    schema.Mamba1Spec: Mamba1,
    schema.Mamba2Spec: Mamba2,
    schema.GatedDeltaNetSpec: GatedDeltaNet,
    schema.KdaSpec: KimiDeltaAttention,
    schema.LightningSpec: LightningAttention,
    schema.ShortConvSpec: ShortConvolution,
}
"""Kinds whose spec has just the fields of their dataclass."""

Built = TypeVar("Built")


def build_model(document: Document) -> Model:
    """The model that a document describes. Raises SpecError with every problem and its place."""
    return _Builder(document).model(validate(document, schema.ModelSpec))


class _Builder:
    """Builds part by part; a part that contradicts itself becomes a problem at its place."""

    def __init__(self, document: Document) -> None:
        self.document = document
        self.problems: list[Problem] = []
        self._built: dict[Any, Any] = {}

    def model(self, spec: schema.ModelSpec) -> Model:
        count = sum(map(_layer_count, (*spec.layers, *spec.mtp)))
        if count > MAX_LAYERS:
            raise SpecError([self.document.problem(("layers",), f"{count:,} layers: more than {MAX_LAYERS:,}")])
        layers = [
            layer
            for position, entry in enumerate(spec.layers)
            for layer in self._entry(entry, spec, ("layers", position))
        ]
        mtp = [
            layer for position, entry in enumerate(spec.mtp) for layer in self._layers(entry, spec, ("mtp", position))
        ]
        if not self.problems and not any(layer.attentions for layer in layers):
            self.problems.append(self.document.problem(("layers",), "no layer has an attention"))
        if self.problems:
            raise SpecError(list(dict.fromkeys(self.problems)))
        published = spec.published.model_dump(exclude={"rounded_name"})
        return Model(
            name=spec.name,
            title=spec.title,
            source=spec.source.cite,
            source_date=spec.source.date.isoformat(),
            hidden_size=spec.hidden_size,
            vocab_size=spec.vocab_size,
            tied_embeddings=spec.tied_embeddings,
            max_context_tokens=spec.max_context_tokens,
            layers=tuple(layers),
            mtp_layers=tuple(mtp),
            norm=spec.norm,
            final_norm=spec.final_norm,
            embedding_size=spec.embedding_size,
            position_rows=spec.position_rows or 0,
            head_bias=spec.head_bias,
            native_formats=spec.cache_formats.model_dump(exclude_none=True),
            weight_formats=spec.weight_formats.model_dump(exclude_none=True),
            other=tuple(_weight(weight) for weight in spec.other),
            published=Published(**published),
        )

    def _entry(
        self, entry: schema.LayerSpec | schema.PatternSpec, spec: schema.ModelSpec, path: PathInDocument
    ) -> Iterator[Layer]:
        if isinstance(entry, schema.LayerSpec):
            yield from self._layers(entry, spec, path)
            return
        occurrence = [
            layer
            for position, layer_spec in enumerate(entry.pattern)
            for layer in self._layers(layer_spec, spec, (*path, "pattern", position))
        ]
        yield from occurrence * entry.repeat

    def _layers(self, entry: schema.LayerSpec, spec: schema.ModelSpec, path: PathInDocument) -> list[Layer]:
        if entry.attention is None and entry.feed_forward is None:
            self.problems.append(
                self.document.problem(path, "a layer without attention and feed_forward", "give it at least one")
            )
        layer = Layer(
            attentions=self._parts(entry.attention, _attention, (*path, "attention")),
            feed_forwards=self._parts(entry.feed_forward, _feed_forward, (*path, "feed_forward")),
            norms=spec.norms_per_layer if entry.norms is None else entry.norms,
            other=tuple(_weight(weight) for weight in entry.other),
        )
        return [layer] * entry.repeat

    def _parts(self, specs: Any, build: Callable[[Any], Built], path: PathInDocument) -> tuple[Built, ...]:
        if specs is None:
            return ()
        several = isinstance(specs, list)
        parts = []
        for position, spec in enumerate(specs if several else [specs]):
            try:
                parts.append(build(spec))
            except ValueError as error:
                where = (*path, position) if several else path
                self.problems.append(self.document.problem(where, str(error), of_value=True))
        return tuple(parts)


def _layer_count(entry: schema.LayerSpec | schema.PatternSpec) -> int:
    once = 1 if isinstance(entry, schema.LayerSpec) else sum(layer.repeat for layer in entry.pattern)
    return entry.repeat * once


def _attention(spec: Any) -> Attention:
    plain = _PLAIN_KINDS.get(type(spec))
    if plain is not None:
        attention: Attention = plain(**spec.model_dump(exclude={"kind"}))
        return attention
    base = _latent(spec) if isinstance(spec, schema.MlaSpec) else _grouped(spec)
    if spec.selection is None:
        return base
    indexer = spec.selection.indexer
    return SelectedAttention(
        base=base,
        top_k=spec.selection.top_k,
        indexer=None if indexer == "shared" else Indexer(**indexer.model_dump()),
    )


def _latent(spec: schema.MlaSpec) -> LatentAttention:
    dimensions = spec.model_dump(exclude={"kind", "bias", "selection"})
    return LatentAttention(
        **dimensions, q_a_bias="q_a" in spec.bias, kv_a_bias="kv_a" in spec.bias, o_bias="o" in spec.bias
    )


def _grouped(spec: schema.MhaSpec | schema.GqaSpec | schema.MqaSpec) -> GroupedAttention:
    options: dict[str, Any] = spec.model_dump(exclude={"kind", "bias", "selection", "n_kv_heads", "v_head_dim"})
    options |= {f"{name}_bias": name in spec.bias for name in ("q", "k", "v", "o")}
    if isinstance(spec, schema.GqaSpec):
        n_kv_heads = spec.n_kv_heads
    else:
        n_kv_heads = 1 if isinstance(spec, schema.MqaSpec) else spec.n_heads
    return GroupedAttention(**options, n_kv_heads=n_kv_heads, v_head_dim=spec.v_head_dim or spec.head_dim)


def _feed_forward(spec: schema.DenseSpec | schema.MoeSpec) -> FeedForward:
    if isinstance(spec, schema.DenseSpec):
        return DenseFeedForward(**spec.model_dump(exclude={"kind"}))
    if spec.shared_experts and spec.shared_intermediate_size:
        raise ValueError("shared_experts and shared_intermediate_size exclude each other: they give the same width")
    shared = spec.shared_intermediate_size or spec.shared_experts * spec.intermediate_size
    options = spec.model_dump(exclude={"kind", "shared_experts", "shared_intermediate_size"})
    return MixtureOfExperts(**options, shared_intermediate_size=shared)


def _weight(spec: schema.WeightSpec) -> Weight:
    return Weight(name=spec.name, part=Part(spec.part), shape=tuple(spec.shape), use=Use(spec.use), count=spec.count)
