"""A family: how a model type's fields become layers. All that differs between families is data in `families/`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from kvcalc.errors import Problem
from kvcalc.specs.huggingface.config import ALIASES, Config, Reference
from kvcalc.specs.huggingface.rows import Part, Row
from kvcalc.specs.huggingface.rules import LayerRule, constant, unknown_kind

Rows = Row | tuple[Row, ...] | None
PerLayer = Callable[[Config, int], Any]


@dataclass(frozen=True, kw_only=True)
class Family:
    """One row of the tables.

    attention      the token mixing of every layer, or by layer type; a tuple where a layer has several
    feed_forward   the same for the feed-forward network
    layer_types    the type of each layer, for `attention`
    mlp_types      the type of each layer, for `feed_forward`
    norms          norms of the hidden size in a layer
    norm           their kind: rms (a gain), layer (gain and bias), none
    other          weights of a layer that no kind explains; model_other: outside the layers
    note           what a reader of the spec should know
    mtp            how a multi-token prediction layer follows from the layers
    cache_formats  formats that the model itself defines for what it keeps
    modelled       field -> the values that kvcalc has a model for; any other value is refused
    unread         fields that change nothing that kvcalc computes
    """

    attention: Rows | Mapping[str, Rows]
    feed_forward: Rows | Mapping[str, Rows]
    layer_types: LayerRule = constant("full_attention")
    mlp_types: LayerRule = constant("dense")
    norms: int | PerLayer = 2
    norm: str | Callable[[Config], str] = "rms"
    tied: Reference = "tie_word_embeddings"
    final_norm: Reference = True
    head_bias: Reference = False
    position_rows: Reference = None
    embedding_size: Reference = None
    other: PerLayer | None = None
    model_other: Callable[[Config], list[Part]] | None = None
    mtp: Callable[[Config, list[Part]], Part] | None = None
    cache_formats: Mapping[str, str] = field(default_factory=dict)
    note: str | None = None
    modelled: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    unread: tuple[str, ...] = ()

    def layers(self, config: Config) -> list[Part]:
        """Every layer as a part of a spec, `norms` included."""
        kinds, mlp_kinds = self.layer_types(config), self.mlp_types(config)
        stated = config.get("num_hidden_layers")
        for name, count in (("layer_types", len(kinds)), ("mlp_layer_types", len(mlp_kinds))):
            if stated is not None and count != stated:
                config.refuse(name, f"'{name}' has {count} entries for {stated} layers")
        return [self._layer(config, index, kinds[index], mlp_kinds[index]) for index in range(len(kinds))]

    def _layer(self, config: Config, index: int, kind: str, mlp_kind: str) -> Part:
        layer: Part = {}
        for key, rows, name, source in (
            ("attention", self.attention, kind, "layer_types"),
            ("feed_forward", self.feed_forward, mlp_kind, "mlp_layer_types"),
        ):
            if isinstance(rows, Mapping):
                if name not in rows:
                    unknown_kind(config, source, name, list(rows))
                rows = rows[name]
            if isinstance(rows, tuple):
                layer[key] = [row.spec(config, index) for row in rows]
            elif rows is not None:
                layer[key] = rows.spec(config, index)
        layer["norms"] = self.norms(config, index) if callable(self.norms) else self.norms
        other = self.other(config, index) if self.other else []
        if other:
            layer["other"] = other
        return layer


def unmodelled(config: Config, family: Family) -> list[Problem]:
    """All values that the family has no model for."""
    for name in family.unread:
        config.read.update((name, *ALIASES.get(name, ())))
    found = (config.unmodelled(name, allowed, allowed[0]) for name, allowed in family.modelled.items())
    return [problem for problem in found if problem is not None]
