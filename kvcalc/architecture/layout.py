"""A layout turns a kind's components into records of bytes on a rank. Sizing consumes a layout and asks nothing else.

The generic layout stores just the components, each in the format of its role. Engines have layouts of their own:
copies, padded pages, other records. None needs a change to a kind. Where layers share blocks, so that no layer's bytes
stand alone, a layout also says what the layers of a rank take together: its allocation.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from math import ceil
from typing import Protocol

from kvcalc.architecture.attention import Attention, Component, Role, by_record
from kvcalc.architecture.formats import CACHE_FORMATS, Format, cache_format
from kvcalc.architecture.slots import Slots


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """One kind of cache entry of one layer on one rank.

    bytes_per_slot  what an entry takes on the rank that holds most
    block_tokens    entries are allocated in blocks of so many tokens; 1 for none
    """

    components: tuple[Component, ...]
    bytes_per_slot: int
    format: Format
    block_tokens: int

    @property
    def slots(self) -> Slots:
        return self.components[0].slots

    @property
    def is_state(self) -> bool:
        return self.components[0].role.is_state

    def stored_bytes(self, context_tokens: int) -> int:
        """What the tokens need."""
        return self.slots.stored(context_tokens) * self.bytes_per_slot

    def allocated_bytes(self, context_tokens: int) -> int:
        """With the last block filled up."""
        if self.is_state:
            return self.stored_bytes(context_tokens)
        blocks = -(-context_tokens // self.block_tokens)
        whole = self.slots.stored(blocks * self.block_tokens)
        if not self.slots.spans_context:  # a window's blocks: the cap itself may end inside a block
            whole = -(-whole // self.block_tokens) * self.block_tokens
        return whole * self.bytes_per_slot

    def read_bytes(self, context_tokens: int, query_tokens: int) -> int:
        """What one step moves in."""
        return self.slots.read(context_tokens, query_tokens) * self.bytes_per_slot

    def write_bytes(self, query_tokens: int) -> int:
        """What one step adds, or for a state updates."""
        if self.is_state:
            return self.slots.read(1, query_tokens) * self.bytes_per_slot
        growth = self.slots.per_token or self.slots.stored(1)  # a full window overwrites; a borrower writes nothing
        return int(growth * query_tokens * self.bytes_per_slot)

    @property
    def growth_bytes(self) -> Fraction:
        """Bytes that one more token adds at long context."""
        return self.slots.per_token * self.bytes_per_slot


@dataclass(frozen=True, kw_only=True, slots=True)
class RecordCount:
    """A record, the attention that keeps it, and how many layers (or attentions in a layer) do."""

    attention: Attention
    record: Record
    count: int


def tokens_on_rank(record: Record, context_tokens: int, dcp: int) -> int:
    """Tokens of a sequence whose entries a rank holds: its share where decode context parallelism splits them."""
    return ceil(context_tokens / dcp) if dcp > 1 and record.slots.spans_context else context_tokens


class Allocation(Protocol):
    """What the layers of one rank take together."""

    @property
    def fixed_bytes(self) -> int:
        """Taken once, however many sequences there are."""
        ...

    def sequence_bytes(self, context_tokens: int) -> int:
        """Taken by one sequence of so many tokens."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class RecordByRecord:
    """Every record in blocks of its own: what one layer takes does not depend on the others."""

    records: tuple[RecordCount, ...]
    dcp: int = 1
    fixed_bytes: int = 0

    def sequence_bytes(self, context_tokens: int) -> int:
        return sum(
            item.count * item.record.allocated_bytes(tokens_on_rank(item.record, context_tokens, self.dcp))
            for item in self.records
        )


@dataclass(frozen=True, kw_only=True)
class Precision:
    """Formats by role: attention entries, index keys, recurrent states, convolution states."""

    kv: Format
    index: Format
    state: Format
    convolution: Format
    compressor: Format

    @cached_property
    def by_role(self) -> Mapping[Role, Format]:
        return {
            Role.INDEX: self.index,
            Role.STATE: self.state,
            Role.CONVOLUTION: self.convolution,
            Role.COMPRESSOR: self.compressor,
        }

    def of(self, role: Role) -> Format:
        return self.by_role.get(role, self.kv)


class Layout(Protocol):
    """How an engine lays components out."""

    @property
    def name(self) -> str: ...

    @property
    def engine(self) -> str:
        """The engine's name without its version; `generic` where it is none's."""
        ...

    @property
    def block_tokens(self) -> int: ...

    @property
    def precision(self) -> Precision: ...

    @property
    def compute(self) -> str:
        """The number format that attention multiplies in."""
        ...

    @property
    def notes(self) -> tuple[str, ...]:
        """What it takes as given and what it does not know, a sentence each."""
        ...

    @property
    def reserves_requests(self) -> bool:
        """Whether a request starts only once all of its tokens have room; else it may be put back later."""
        ...

    def records(self, attention: Attention, *, shards: int) -> tuple[Record, ...]:
        """The records of one attention on the rank that holds most, when KV heads are spread over `shards` ranks."""
        ...

    def copied_weight_bytes(self, attention: Attention, *, weights: str, tp: int) -> int:
        """Bytes of an attention's weights that a rank keeps beside the model's own, which are stored as `weights`."""
        ...

    def allocation(self, records: tuple[RecordCount, ...], *, whole: tuple[RecordCount, ...], dcp: int) -> Allocation:
        """What a rank's records take together.

        records  of the layers on the rank; `whole` of all layers of the model, which differs under pipeline parallelism
        dcp      ranks that share a sequence's tokens
        """
        ...


@dataclass(frozen=True, kw_only=True)
class GenericLayout:
    """Just the components, in blocks of `block_tokens` tokens."""

    precision: Precision
    block_tokens: int = 16
    name: str = "generic"
    engine: str = "generic"
    notes: tuple[str, ...] = ()
    reserves_requests: bool = False

    @property
    def compute(self) -> str:
        return self.precision.kv.compute

    def records(self, attention: Attention, *, shards: int) -> tuple[Record, ...]:
        records = []
        for group in by_record(attention.components()):
            format = self.precision.of(group[0].role)
            bytes_per_slot = format.record_bytes(group, shards=shards)
            records.append(
                Record(
                    components=group,
                    bytes_per_slot=bytes_per_slot,
                    format=format,
                    block_tokens=self.block_tokens,
                )
            )
        return tuple(records)

    def copied_weight_bytes(self, attention: Attention, *, weights: str, tp: int) -> int:
        return 0

    def allocation(self, records: tuple[RecordCount, ...], *, whole: tuple[RecordCount, ...], dcp: int) -> Allocation:
        return RecordByRecord(records=records, dcp=dcp)


def precision_for(
    native: Mapping[str, str],
    *,
    kv_dtype: str | None = None,
    index_dtype: str | None = None,
    state_dtype: str | None = None,
) -> Precision:
    """The formats in force: what is asked for, else what the model defines, else bf16.

    native  formats that the model itself defines by `kv`, `index`, `state`. A native kv record stays as it is when bf16
            or fp8 entries are asked for: those are the modes that engines run it in.
    """
    kv = native.get("kv") if kv_dtype in (None, "bf16", "fp8", "fp8_e4m3") else None
    return Precision(
        kv=cache_format(kv or kv_dtype or "bf16"),
        index=cache_format(index_dtype or native.get("index") or "bf16"),
        state=cache_format(state_dtype or native.get("state") or "bf16"),
        convolution=CACHE_FORMATS["fp32" if kv_dtype == "fp32" else "bf16"],
        compressor=CACHE_FORMATS["fp32"],
    )
