"""Compressed attention (DeepSeek-V4): a raw window beside a stream in which several tokens became one entry.

Every layer keeps the last `window_tokens` tokens as they are. A layer with a `compress_ratio` n also keeps one entry
for each n tokens: all of them are attended (HCA, heavily compressed, n = 128), or the `top_k` that an indexer over
compressed index keys selects (CSA, compressed sparse, n = 4). One vector of head_dim elements is both K and V for all
heads, its last qk_rope_head_dim elements carry the position. The compressor holds the tokens of the entry being formed;
with `overlap` an entry draws on two blocks of n tokens, in two series of its own width each.
"""

from dataclasses import dataclass
from typing import ClassVar

from kvcalc.architecture.attention.base import Component, Form, Role
from kvcalc.architecture.slots import Constant, EveryNTokens, Selected, Slots, Window
from kvcalc.architecture.weights import Part, Weight, matrix, vector


@dataclass(frozen=True, kw_only=True, slots=True)
class CompressedAttention:
    """Window, compressed stream and indexer of one layer; without `compress_ratio` the window is all there is."""

    kind: ClassVar[str] = "compressed"
    source: ClassVar[str] = "DeepSeek-V4 report sec. 2.3.1 (CSA) and 2.3.2 (HCA)"

    n_heads: int
    head_dim: int
    qk_rope_head_dim: int
    q_lora_rank: int
    o_groups: int
    o_lora_rank: int
    window_tokens: int
    compress_ratio: int | None = None
    overlap: bool = False
    top_k: int | None = None
    index_heads: int | None = None
    index_head_dim: int | None = None

    def __post_init__(self) -> None:
        index = (self.top_k, self.index_heads, self.index_head_dim)
        if any(index) and not all(index):
            raise ValueError("an indexer needs top_k, index_heads and index_head_dim together")
        if any(index) and not self.compress_ratio:
            raise ValueError("an indexer selects compressed entries: compress_ratio is missing")
        if self.n_heads % self.o_groups:
            raise ValueError(f"n_heads {self.n_heads} is not a multiple of o_groups {self.o_groups}")

    @property
    def label(self) -> str:
        if not self.compress_ratio:
            return f"window {self.window_tokens:,}"
        return f"{'CSA' if self.top_k else 'HCA'} 1/{self.compress_ratio}"

    def components(self) -> tuple[Component, ...]:
        components = self._entry("window", Window(self.window_tokens))
        if self.compress_ratio:
            every = EveryNTokens(self.compress_ratio)
            components += self._entry("compressed", Selected(every, self.top_k) if self.top_k else every)
            components += (self._compressor("compressor state", self.head_dim),)
            if self.top_k:
                components += (self._index_key(every), self._compressor("index compressor state", self.index_head_dim))
        return components

    def _entry(self, record: str, slots: Slots) -> tuple[Component, ...]:
        """A vector that is K and V: QK and PV each cost 2 FLOPs an element."""
        return tuple(
            Component(
                name=f"{record} {name}",
                role=role,
                width=width,
                symbol=symbol,
                slots=slots,
                record=record,
                query_heads=self.n_heads,
                flop_per_pair=4 * width,
            )
            for name, role, width, symbol in (
                ("kv", Role.LATENT, self.head_dim - self.qk_rope_head_dim, "head_dim - qk_rope_head_dim"),
                ("rope", Role.ROPE, self.qk_rope_head_dim, "qk_rope_head_dim"),
            )
        )

    def _index_key(self, slots: Slots) -> Component:
        assert self.index_heads is not None
        assert self.index_head_dim is not None
        return Component(
            name="index key",
            role=Role.INDEX,
            width=self.index_head_dim,
            symbol="index_head_dim",
            slots=slots,
            record="index",
            query_heads=self.index_heads,
            flop_per_pair=2 * self.index_head_dim,
        )

    def _compressor(self, name: str, width: int | None) -> Component:
        """Values and gates of the tokens not yet compressed. Forming an entry reads all of it, once every n tokens."""
        assert width is not None
        assert self.compress_ratio is not None
        series = 2 if self.overlap else 1
        return Component(
            name=name,
            role=Role.COMPRESSOR,
            width=2 * series * width,
            symbol=f"2 x {series} x head_dim",
            slots=Constant(series * self.compress_ratio, read_per_token=series),
            record=name,
            query_heads=1,
            flop_per_pair=0,
        )

    @property
    def query_output_elements(self) -> int:
        return 2 * self.n_heads * self.head_dim

    def weights(self, hidden_size: int) -> tuple[Weight, ...]:
        part, heads = Part.ATTENTION, self.n_heads
        o_in = heads * self.head_dim
        weights = [
            matrix("q_a_proj", hidden_size, self.q_lora_rank, part=part),
            matrix("q_b_proj", self.q_lora_rank, o_in, part=part, shards=heads),
            matrix("kv_proj", hidden_size, self.head_dim, part=part),
            matrix("o_a_proj", o_in, self.o_lora_rank, part=part, shards=self.o_groups),
            matrix("o_b_proj", self.o_groups * self.o_lora_rank, hidden_size, part=part, shards=self.o_groups),
            vector("sink_logits", heads, part=part, shards=heads),
            vector("q_a_norm", self.q_lora_rank, part=Part.NORM),
            vector("kv_norm", self.head_dim, part=Part.NORM),
        ]
        if self.compress_ratio:
            weights += self._compressor_weights("compressor", hidden_size, self.head_dim, part)
        if self.top_k:
            assert self.index_heads is not None
            assert self.index_head_dim is not None
            weights += self._compressor_weights("index_compressor", hidden_size, self.index_head_dim, Part.INDEXER)
            weights += [
                matrix("index_q", self.q_lora_rank, self.index_heads * self.index_head_dim, part=Part.INDEXER),
                matrix("index_head_weights", hidden_size, self.index_heads, part=Part.INDEXER),
            ]
        return tuple(weights)

    def _compressor_weights(self, name: str, hidden_size: int, width: int, part: Part) -> list[Weight]:
        assert self.compress_ratio
        columns = width * (2 if self.overlap else 1)
        return [
            matrix(f"{name}_kv", hidden_size, columns, part=part),
            matrix(f"{name}_gate", hidden_size, columns, part=part),
            vector(f"{name}_position_bias", self.compress_ratio * columns, part=part),
            vector(f"{name}_norm", width, part=Part.NORM),
        ]

    def expanded(self) -> Form | None:
        return None
