"""Grouped attention: MHA, GQA and MQA are three values of it, with or without a window, sinks, or a borrowed cache.

Shapes: q [H, d_k], K [T, G, d_k], V [T, G, d_v]; H = n_heads, G = n_kv_heads, d_k = head_dim, d_v = v_head_dim.
A token keeps G (d_k + d_v) elements; one query against one entry costs 2 H d_k (QK) + 2 H d_v (PV) FLOPs.
"""

from dataclasses import dataclass, field
from typing import ClassVar

from kvcalc.architecture.attention.base import Component, Form, Role
from kvcalc.architecture.slots import Borrowed, EveryToken, Slots, Window
from kvcalc.architecture.weights import Part, Weight, matrix, vector


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupedAttention:
    """Multi-head attention whose query heads share KV heads in groups.

    n_heads, n_kv_heads   query and KV heads; MHA has as many of both, MQA one KV head
    head_dim, v_head_dim  width of a K and of a V head
    window_tokens         a token attends at most so many, itself included; None for all
    chunk_tokens          a token attends its own chunk of so many
    sink_tokens           first tokens that a window never drops (arXiv 2309.17453)
    sink_logits           one learned logit a head that takes part in the softmax; a parameter, it keeps nothing
    borrows_cache         the layer attends another layer's K and V: no cache and no K and V projection of its own
    one_projection        V is computed from the K projection: one matrix less, both are still kept
    qk_norm               a norm's gain on q and k: `head` over a head's width, `full` over all heads
    output_gate           q's projection carries a gate of its own width beside it
    head_gate             one gate a head, projected from the hidden state
    """

    kind: ClassVar[str] = "gqa"
    source: ClassVar[str] = "arXiv 2305.13245 sec. 2; MHA: arXiv 1706.03762 sec. 3.2.2; MQA: arXiv 1911.02150 sec. 3"

    n_heads: int
    n_kv_heads: int
    head_dim: int
    v_head_dim: int
    window_tokens: int | None = None
    chunk_tokens: int | None = None
    sink_tokens: int = 0
    sink_logits: bool = False
    borrows_cache: bool = False
    one_projection: bool = False
    qk_norm: str | None = None
    q_bias: bool = False
    k_bias: bool = False
    v_bias: bool = False
    o_bias: bool = False
    output_gate: bool = False
    head_gate: bool = False
    slots: Slots = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.n_heads % self.n_kv_heads:
            raise ValueError(f"n_heads {self.n_heads} is not a multiple of n_kv_heads {self.n_kv_heads}")
        if self.window_tokens and self.chunk_tokens:
            raise ValueError("window_tokens and chunk_tokens exclude each other")
        if self.sink_tokens and not self.window_tokens:
            raise ValueError("sink_tokens means something beside window_tokens only")
        span = self.window_tokens or self.chunk_tokens
        slots: Slots = Window(span, self.sink_tokens) if span else EveryToken()
        object.__setattr__(self, "slots", Borrowed(slots) if self.borrows_cache else slots)

    @property
    def label(self) -> str:
        if self.n_kv_heads == self.n_heads:
            name = "MHA"
        elif self.n_kv_heads == 1:
            name = "MQA"
        else:
            name = f"GQA-{self.n_kv_heads}"
        if self.window_tokens:
            name += f" window {self.window_tokens:,}"
        if self.chunk_tokens:
            name += f" chunk {self.chunk_tokens:,}"
        return name + (" (borrowed cache)" if self.borrows_cache else "")

    def components(self) -> tuple[Component, ...]:
        return tuple(
            Component(
                name=role.value,
                role=role,
                width=width,
                symbol=symbol,
                heads=self.n_kv_heads,
                slots=self.slots,
                record="kv",
                query_heads=self.n_heads,
                flop_per_pair=2 * width,
            )
            for role, width, symbol in (
                (Role.KEY, self.head_dim, "head_dim"),
                (Role.VALUE, self.v_head_dim, "v_head_dim"),
            )
        )

    @property
    def query_output_elements(self) -> int:
        return self.n_heads * (self.head_dim + self.v_head_dim)

    def weights(self, hidden_size: int) -> tuple[Weight, ...]:
        part, heads, kv_heads = Part.ATTENTION, self.n_heads, self.n_kv_heads
        q_width, k_width, v_width = heads * self.head_dim, kv_heads * self.head_dim, kv_heads * self.v_head_dim
        o_width = heads * self.v_head_dim
        weights = [
            matrix("q_proj", hidden_size, q_width, part=part, shards=heads),
            matrix("o_proj", o_width, hidden_size, part=part, shards=heads),
        ]
        if self.output_gate:
            weights.append(matrix("q_gate", hidden_size, o_width, part=part, shards=heads))
        if self.head_gate:
            weights.append(matrix("head_gate", hidden_size, heads, part=part, shards=heads))
        if not self.borrows_cache:
            weights.append(matrix("k_proj", hidden_size, k_width, part=part, shards=kv_heads))
            if not self.one_projection:
                weights.append(matrix("v_proj", hidden_size, v_width, part=part, shards=kv_heads))
        biases = [
            ("q_bias", self.q_bias, q_width, heads),
            ("k_bias", self.k_bias and not self.borrows_cache, k_width, kv_heads),
            ("v_bias", self.v_bias and not self.borrows_cache, v_width, kv_heads),
            ("o_bias", self.o_bias, hidden_size, 1),
            ("sink_logits", self.sink_logits, heads, heads),
        ]
        weights += [vector(name, width, part=part, shards=shards) for name, there, width, shards in biases if there]
        if self.qk_norm:
            q_norm, k_norm = (q_width, k_width) if self.qk_norm == "full" else (self.head_dim, self.head_dim)
            weights.append(vector("q_norm", q_norm, part=Part.NORM))
            if not self.borrows_cache:
                weights.append(vector("k_norm", k_norm, part=Part.NORM))
        return tuple(weights)

    def expanded(self) -> Form | None:
        return None
