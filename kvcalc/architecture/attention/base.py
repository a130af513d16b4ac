"""The attention kind: what every kind of token mixing tells about itself, and the components it is told in.

A kind is a frozen dataclass of its dimensions. It knows no engine, no number format and no byte: it names its
components (what it keeps, how wide, at which rate, and what one query head computes against one entry) and its weights.
Bytes come from a layout, time from a roofline, both through the components alone, so a new kind needs no change
elsewhere.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import ClassVar, Protocol

from kvcalc.architecture.slots import Slots
from kvcalc.architecture.weights import Weight


class Role(str, Enum):
    """What a component is to attention. Number formats are chosen by role."""

    KEY = "key"
    VALUE = "value"
    LATENT = "latent"  # MLA's compressed K and V, or an entry that is both K and V
    ROPE = "rope"  # the decoupled part of a key that carries the rotary position
    INDEX = "index"  # keys that only an indexer reads, to select which tokens are attended
    STATE = "state"  # recurrent state
    CONVOLUTION = "convolution"  # the last inputs of a short convolution
    COMPRESSOR = "compressor"  # tokens on their way into a compressed entry

    @property
    def is_cache_entry(self) -> bool:
        """Whether it belongs to the attention entries proper, as against index keys and states."""
        return self in _ENTRY_ROLES

    @property
    def is_state(self) -> bool:
        """Whether it is updated in place instead of appended to."""
        return self in _STATE_ROLES


_ENTRY_ROLES = frozenset({Role.KEY, Role.VALUE, Role.LATENT, Role.ROPE})
_STATE_ROLES = frozenset({Role.STATE, Role.CONVOLUTION, Role.COMPRESSOR})


@dataclass(frozen=True, kw_only=True, slots=True)
class Component:
    """One thing that a kind keeps.

    name           what it is called in a breakdown
    width          elements of one head in one entry; `symbol` is the dimension's name in the literature
    heads          KV heads, which tensor parallelism can spread over ranks; 1 where every rank needs all of it
    slots          how many entries there are
    record         components with the same record name lie together in one cache entry
    query_heads    heads that compute against it
    flop_per_pair  FLOPs (2 a multiply-add) of one query head against one entry
    """

    name: str
    role: Role
    width: int
    symbol: str
    slots: Slots
    record: str
    heads: int = 1
    query_heads: int
    flop_per_pair: int

    @property
    def elements_per_slot(self) -> int:
        return self.heads * self.width

    def heads_on_rank(self, shards: int) -> int:
        """KV heads on the rank that holds most; never fewer than one, so more ranks than heads means copies."""
        return max(1, -(-self.heads // shards))

    def flop(self, context_tokens: int, query_tokens: int, *, shards: int = 1) -> int:
        """FLOPs of a step of one sequence against this component, on the busiest of `shards` ranks."""
        heads = -(-self.query_heads // shards)
        return self.slots.pairs(context_tokens, query_tokens) * heads * self.flop_per_pair


@dataclass(frozen=True, kw_only=True, slots=True)
class Form:
    """Another way to compute the same attention, with the FLOPs that it takes instead.

    flop_per_pair              FLOPs of all query heads against one entry
    decompress_flop_per_entry  FLOPs to rebuild one entry before it can be attended
    elements_per_token         elements that a cache of this form would keep for a token
    query_output_elements      elements of queries and outputs for one query token
    serves_prefill             whether prefill is computed in this form
    """

    name: str
    flop_per_pair: int
    decompress_flop_per_entry: int
    elements_per_token: int
    query_output_elements: int
    slots: Slots
    query_heads: int
    serves_prefill: bool = True

    def flop(self, context_tokens: int, query_tokens: int, *, shards: int = 1) -> int:
        per_head = self.flop_per_pair // self.query_heads
        return self.slots.pairs(context_tokens, query_tokens) * per_head * -(-self.query_heads // shards)

    def decompress_flop(self, context_tokens: int, query_tokens: int) -> int:
        """FLOPs to rebuild the entries that a step reads."""
        return self.slots.read(context_tokens, query_tokens) * self.decompress_flop_per_entry


class Attention(Protocol):
    """A kind of token mixing; see `kvcalc.architecture.attention.KINDS` for all of them."""

    kind: ClassVar[str]
    """The name that a spec calls it by."""
    source: ClassVar[str]
    """Where its formulas are from: arXiv id and section."""

    @property
    def label(self) -> str:
        """A short name for tables: `MLA`, `GQA-8`, `window 128`."""
        ...

    def components(self) -> tuple[Component, ...]:
        """What is kept, in the form that decoding uses."""
        ...

    @property
    def query_output_elements(self) -> int:
        """Elements that go in and out for one query token, the cache aside: queries (or inputs) and outputs."""
        ...

    def weights(self, hidden_size: int) -> tuple[Weight, ...]:
        """Its parameters."""
        ...

    def expanded(self) -> Form | None:
        """The form with full keys and values, for kinds that keep something smaller; None for the others."""
        ...


def flop(
    components: tuple[Component, ...], *, context_tokens: int, query_tokens: int, shards: int = 1, index: bool = False
) -> int:
    """FLOPs of one sequence's step: of attention proper and state updates, or with `index` of the indexer alone.

    Every rank scores all tokens with the whole indexer, so that is not divided by `shards`.
    """
    return sum(
        component.flop(context_tokens, query_tokens, shards=1 if index else shards)
        for component in components
        if (component.role is Role.INDEX) is index
    )


def by_record(components: tuple[Component, ...]) -> Iterator[tuple[Component, ...]]:
    """Components grouped by the cache entry that they share."""
    groups: dict[str, list[Component]] = {}
    for component in components:
        groups.setdefault(component.record, []).append(component)
    for group in groups.values():
        yield tuple(group)
