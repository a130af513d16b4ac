"""Selection: a base kind that attends only the `top_k` tokens that an indexer scores highest.

DeepSeek Sparse Attention is this over MLA (DeepSeek-V3.2 report sec. 2.1), MiniMax-M3's block selection over GQA, and
GLM-5.2 lets several layers use one layer's selection. Everything is kept, since any token can be selected later; a step
reads `top_k` entries and every index key:
    index score of query t for token s = sum over h of w_h ReLU(q_h . k_s)     [index_heads x index_head_dim], one key a
    token
"""

from dataclasses import dataclass, replace
from typing import ClassVar

from kvcalc.architecture.attention.base import Component, Form, Role
from kvcalc.architecture.attention.grouped import GroupedAttention
from kvcalc.architecture.attention.latent import LatentAttention
from kvcalc.architecture.slots import EveryToken, Selected
from kvcalc.architecture.weights import Part, Weight, matrix, vector


@dataclass(frozen=True, kw_only=True, slots=True)
class Indexer:
    """The small scorer that picks tokens.

    heads, head_dim   index heads and their width; there is one index key a token, shared by all heads
    q_lora_rank       width that index queries are projected from; None: from the hidden state
    norms             gains of the norms: `layer` one LayerNorm on the key (DSA), `rms` one RMSNorm on q and one on k
    head_weights      whether a learned weight a head, projected from the hidden state, mixes the heads' scores
    """

    heads: int
    head_dim: int
    q_lora_rank: int | None = None
    norms: str = "layer"
    head_weights: bool = True

    def component(self) -> Component:
        return Component(
            name="index key",
            role=Role.INDEX,
            width=self.head_dim,
            symbol="index_head_dim",
            slots=EveryToken(),
            record="index",
            query_heads=self.heads,
            flop_per_pair=2 * self.head_dim,
        )

    def weights(self, hidden_size: int) -> tuple[Weight, ...]:
        part = Part.INDEXER
        weights = [
            matrix("index_q", self.q_lora_rank or hidden_size, self.heads * self.head_dim, part=part),
            matrix("index_k", hidden_size, self.head_dim, part=part),
            vector("index_norm", 2 * self.head_dim, part=part),
        ]
        if self.head_weights:
            weights.append(matrix("index_head_weights", hidden_size, self.heads, part=part))
        return tuple(weights)


@dataclass(frozen=True, kw_only=True, slots=True)
class SelectedAttention:
    """A base kind behind a selection of `top_k` tokens; `indexer` is None where another layer's selection is used."""

    kind: ClassVar[str] = "selection"
    source: ClassVar[str] = "DeepSeek-V3.2-Exp report sec. 2.1 (DeepSeek Sparse Attention)"

    base: GroupedAttention | LatentAttention
    top_k: int
    indexer: Indexer | None

    def __post_init__(self) -> None:
        if not all(isinstance(component.slots, EveryToken) for component in self.base.components()):
            raise ValueError("selection needs a base that attends every token: no window, no borrowed cache")

    @property
    def label(self) -> str:
        return f"{self.base.label} + top-{self.top_k:,}" + ("" if self.indexer else " (shared index)")

    def components(self) -> tuple[Component, ...]:
        slots = Selected(EveryToken(), self.top_k)
        attended = tuple(replace(component, slots=slots) for component in self.base.components())
        return attended if self.indexer is None else (*attended, self.indexer.component())

    @property
    def query_output_elements(self) -> int:
        return self.base.query_output_elements

    def weights(self, hidden_size: int) -> tuple[Weight, ...]:
        own = () if self.indexer is None else self.indexer.weights(hidden_size)
        return self.base.weights(hidden_size) + own

    def expanded(self) -> Form | None:
        form = self.base.expanded()
        return form and replace(form, slots=Selected(EveryToken(), self.top_k), serves_prefill=False)
