"""From a model spec to the architecture that everything else computes with.

A document is checked first, by pydantic; then it is built from its plain data, and what it leaves out has the
defaults of the architecture's classes.
"""

from collections.abc import Callable, Mapping
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
from kvcalc.specs.reader import Document, PathInDocument

MAX_LAYERS = 10_000

_MODEL_KEYS = (
    "name",
    "title",
    "hidden_size",
    "vocab_size",
    "tied_embeddings",
    "max_context_tokens",
    "norm",
    "final_norm",
    "embedding_size",
    "position_rows",
    "head_bias",
    "weight_formats",
)
"""Keys that are fields of the model as they stand."""

Data = Mapping[str, Any]
Built = TypeVar("Built")

_PLAIN_KINDS: dict[str, type[Any]] = {
    kind.kind: kind
    for kind in (
        CompressedAttention,
        Mamba1,
        Mamba2,
        GatedDeltaNet,
        KimiDeltaAttention,
        LightningAttention,
        ShortConvolution,
    )
}
"""Kinds whose spec has just the fields of their dataclass."""


def build_model(document: Document, *, checked: bool = False) -> Model:
    """The model that a document describes. Raises SpecError with every problem and its place.

    checked  that the document has passed this before; then it is only built, which takes a fraction of the time
    """
    if not checked:
        from kvcalc.specs.schema import ModelSpec
        from kvcalc.specs.validation import validate

        validate(document, ModelSpec)
    return _Builder(document).model(document.data)


class _Builder:
    """Builds part by part; a part that contradicts itself becomes a problem at its place."""

    def __init__(self, document: Document) -> None:
        self.document = document
        self.problems: list[Problem] = []

    def model(self, spec: Data) -> Model:
        count = sum(map(_layer_count, (*spec["layers"], *spec.get("mtp", ()))))
        if count > MAX_LAYERS:
            raise SpecError([self.document.problem(("layers",), f"{count:,} layers: more than {MAX_LAYERS:,}")])
        layers = self._layers(spec["layers"], ("layers",), spec)
        mtp = self._layers(spec.get("mtp", ()), ("mtp",), spec)
        if not self.problems and not any(layer.attentions for layer in layers):
            self.problems.append(self.document.problem(("layers",), "no layer has an attention"))
        if self.problems:
            raise SpecError(list(dict.fromkeys(self.problems)))
        return Model(
            **_given(spec, _MODEL_KEYS),
            source=spec["source"]["cite"],
            source_date=str(spec["source"]["date"]),
            layers=tuple(layers),
            mtp_layers=tuple(mtp),
            native_formats=spec.get("cache_formats", {}),
            other=_weights(spec),
            published=Published(
                **_given(
                    spec.get("published", {}),
                    ("parameters", "active_parameters", "active_convention"),
                )
            ),
        )

    def _layers(self, entries: Any, path: PathInDocument, spec: Data) -> list[Layer]:
        """The layers of a list of entries: single ones, runs and patterns."""
        layers: list[Layer] = []
        for position, entry in enumerate(entries):
            at = (*path, position)
            if "pattern" in entry:
                once = self._layers(entry["pattern"], (*at, "pattern"), spec)
            else:
                once = [self._layer(entry, at, spec)]
            layers += once * entry.get("repeat", 1)
        return layers

    def _layer(self, entry: Data, path: PathInDocument, spec: Data) -> Layer:
        if entry.get("attention") is None and entry.get("feed_forward") is None:
            self.problems.append(
                self.document.problem(path, "a layer without attention and feed_forward", "give it at least one")
            )
        norms = entry["norms"] if entry.get("norms") is not None else spec.get("norms_per_layer")
        return Layer(
            attentions=self._parts(entry.get("attention"), _attention, (*path, "attention")),
            feed_forwards=self._parts(entry.get("feed_forward"), _feed_forward, (*path, "feed_forward")),
            **({} if norms is None else {"norms": norms}),
            other=_weights(entry),
        )

    def _parts(self, specs: Any, build: Callable[[Data], Built], path: PathInDocument) -> tuple[Built, ...]:
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


def _given(data: Data, keys: tuple[str, ...]) -> dict[str, Any]:
    """Those of the keys that say something."""
    return {key: data[key] for key in keys if data.get(key) is not None}


def _without(data: Data, *keys: str) -> dict[str, Any]:
    """All that is said under other keys."""
    return {key: value for key, value in data.items() if key not in keys and value is not None}


def _layer_count(entry: Data) -> int:
    once = sum(layer.get("repeat", 1) for layer in entry["pattern"]) if "pattern" in entry else 1
    repeat: int = entry.get("repeat", 1)
    return repeat * once


def _attention(spec: Data) -> Attention:
    kind = spec["kind"]
    if kind in _PLAIN_KINDS:
        attention: Attention = _PLAIN_KINDS[kind](**_without(spec, "kind"))
        return attention
    base = _latent(spec) if kind == LatentAttention.kind else _grouped(spec)
    selection = spec.get("selection")
    if selection is None:
        return base
    indexer = selection["indexer"]
    return SelectedAttention(
        base=base,
        top_k=selection["top_k"],
        indexer=None if indexer == "shared" else Indexer(**_without(indexer)),
    )


def _biases(spec: Data) -> dict[str, Any]:
    return {f"{name}_bias": True for name in spec.get("bias") or ()}


def _latent(spec: Data) -> LatentAttention:
    return LatentAttention(**_without(spec, "kind", "bias", "selection"), **_biases(spec))


def _grouped(spec: Data) -> GroupedAttention:
    options = {
        "n_kv_heads": {"mha": spec["n_heads"], "mqa": 1}.get(spec["kind"]),
        "v_head_dim": spec["head_dim"],
        **_without(spec, "kind", "bias", "selection"),
    }
    return GroupedAttention(**options, **_biases(spec))


def _feed_forward(spec: Data) -> FeedForward:
    if spec["kind"] == DenseFeedForward.kind:
        return DenseFeedForward(**_without(spec, "kind"))
    options = _without(spec, "kind", "shared_experts")
    shared = spec.get("shared_experts") or 0
    if shared and "shared_intermediate_size" in options:
        raise ValueError("shared_experts and shared_intermediate_size exclude each other: they give the same width")
    return MixtureOfExperts(**{"shared_intermediate_size": shared * spec["intermediate_size"], **options})


def _weights(spec: Data) -> tuple[Weight, ...]:
    return tuple(
        Weight(
            name=each["name"],
            part=Part(each.get("part", Part.OTHER)),
            shape=tuple(each["shape"]),
            use=Use(each.get("use", Use.MATMUL)),
            **_given(each, ("count",)),
        )
        for each in spec.get("other") or ()
    )
