"""Many workloads at once: every batch with every context and number of query tokens, a row each.

What a row needs falls into parts that are computed once and only multiplied for a row:

    per sequence, by context and query tokens     cache bytes, attention's FLOPs, reads and time
    per step, by sequences and query tokens       time of weights and experts
    row                                           sequences x the first + the second

A time is the roofline, as of `estimate`: attention's terms are proportional to the sequences, so that this is no
approximation but for the order of floating-point additions.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from kvcalc.architecture import attention as kinds
from kvcalc.architecture.layout import Layout, Record
from kvcalc.architecture.model import Model
from kvcalc.errors import UsageError
from kvcalc.hardware import Gpu
from kvcalc.sizing import attention_counts, head_shards, rank_records, stage_allocations, weights_bytes_per_gpu
from kvcalc.timing.roofline import COMPUTE, MEMORY, compute_format, roofline
from kvcalc.timing.step import DECODE, Step
from kvcalc.workload import Parallelism, Workload

SIZES = (
    "batch",
    "context_tokens",
    "query_tokens",
    "stored_bytes",
    "allocated_bytes",
    "per_rank_allocated_bytes",
    "attention_flop",
    "attention_read_bytes",
)
TIMES = ("roofline_s", "bound", "fits", "max_batch")

Row = tuple[int | float | str | bool, ...]


@dataclass(frozen=True, kw_only=True)
class Space:
    """The values that are combined. Rows go through batches first, then contexts, then query tokens."""

    batches: Sequence[int]
    contexts: Sequence[int]
    query_tokens: Sequence[int]

    def __post_init__(self) -> None:
        if max(self.query_tokens) > min(self.contexts):
            raise UsageError(
                f"query_tokens {max(self.query_tokens):,} is more than context_tokens {min(self.contexts):,}",
                hint="context_tokens counts the new tokens too",
            )

    @property
    def rows(self) -> int:
        return len(self.batches) * len(self.contexts) * len(self.query_tokens)


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """Rows of a model on one mix of parallelism.

    layout_for    the layout for a number of query tokens, since speculation takes state blocks in some engines
    usable_bytes  memory of a GPU that weights and cache may take; with `gpu` only
    """

    model: Model
    layout_for: Callable[[int], Layout]
    parallelism: Parallelism
    space: Space
    gpu: Gpu | None = None
    usable_bytes: int = 0
    weights_dtype: str | None = None
    mtp: bool = False

    @property
    def columns(self) -> tuple[str, ...]:
        return SIZES + TIMES if self.gpu else SIZES

    def rows(self) -> Iterator[Row]:
        """All rows, made as they are asked for."""
        for query in self.space.query_tokens:
            curve = _Curve(sweep=self, layout=self.layout_for(query), query=query)
            steps = [(batch, self._rest(curve, batch)) for batch in self.space.batches]
            for context in self.space.contexts:
                yield from self._rows_at(curve, context, steps)

    def _rest(self, curve: "_Curve", batch: int) -> tuple[int, float, float]:
        """Sequences of a rank, and seconds (all, and memory-bound) of a step's terms other than attention."""
        sequences = self.parallelism.batch_on_rank(batch)
        if self.gpu is None:
            return sequences, 0.0, 0.0
        step = Step(
            model=self.model,
            layout=curve.layout,
            workload=Workload(batch=batch, context_tokens=max(self.space.contexts), query_tokens=curve.query),
            phase=DECODE,
            parallelism=self.parallelism,
            weights_dtype=self.weights_dtype,
            mtp=self.mtp,
        )
        rest = roofline(
            tuple(term for term in step.terms() if term.name not in ("attention", "index scores")), self.gpu
        )
        return sequences, rest.roofline_s, sum(term.roofline_s for term in rest.terms if term.bound == MEMORY)

    def _rows_at(
        self, curve: "_Curve", context: int, steps: list[tuple[int, tuple[int, float, float]]]
    ) -> Iterator[Row]:
        query, one = curve.query, curve.at(context)
        copy_fixed, rank_fixed, free = curve.copy_fixed, curve.rank_fixed, curve.free
        stored, copy, ranks, most = one.stored, one.allocated, one.on_ranks, one.max_sequences
        flop, read, seconds, waiting = one.flop, one.read, one.attention_s, one.waiting_s
        single = len(ranks) == 1
        timed, dp = self.gpu is not None, self.parallelism.dp
        for batch, (sequences, rest_s, rest_waiting_s) in steps:
            rank = rank_fixed[0] + sequences * ranks[0]
            if not single:
                rank = max(fixed + sequences * size for fixed, size in zip(rank_fixed, ranks, strict=True))
            sizes = (batch, context, query, batch * stored, copy_fixed + batch * copy, rank, batch * flop, batch * read)
            if not timed:
                yield sizes
                continue
            total = rest_s + sequences * seconds
            bound = MEMORY if 2 * (rest_waiting_s + sequences * waiting) >= total else COMPUTE
            yield (*sizes, total, bound, rank <= free, most * dp)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Point:
    """One sequence at one context: a copy's bytes, a rank's, attention's work on a copy and its time on a rank."""

    stored: int
    allocated: int
    on_ranks: tuple[int, ...]
    max_sequences: int
    flop: int
    read: int
    attention_s: float
    waiting_s: float


class _Curve:
    """What one sequence takes as a function of its context, with everything else worked out once."""

    def __init__(self, *, sweep: Sweep, layout: Layout, query: int) -> None:
        self.sweep, self.layout, self.query = sweep, layout, query
        model, mix = sweep.model, sweep.parallelism
        layers = model.distinct_layers + (model.distinct_mtp_layers if sweep.mtp else ())
        copy = rank_records(layers, layout, Parallelism())
        self._copy = layout.allocation(copy, whole=copy, dcp=1)
        self._ranks = stage_allocations(model, layout, mix, mtp=sweep.mtp)
        self.copy_fixed = self._copy.fixed_bytes
        self.rank_fixed = tuple(each.fixed_bytes for each in self._ranks)
        weights = weights_bytes_per_gpu(model, mix, weights_dtype=sweep.weights_dtype, mtp=sweep.mtp, layout=layout)
        self.free = sweep.usable_bytes - weights
        self._records = [(item.record, item.count) for item in copy]
        counts = attention_counts(layers)
        self._components = [(attention.components(), count) for attention, count in counts.items()]
        self._attentions = [
            _RankAttention(attention, count, layout, mix, query, sweep.gpu) for attention, count in counts.items()
        ]

    def at(self, context: int) -> _Point:
        query = self.query
        on_ranks = tuple(each.sequence_bytes(context) for each in self._ranks)
        fits = [(self.free - fixed) // size for fixed, size in zip(self.rank_fixed, on_ranks, strict=True) if size]
        seconds = waiting = 0.0
        if self.sweep.gpu is not None:
            for attention in self._attentions:
                for memory_s, compute_s in attention.seconds(context):
                    bound_s = max(memory_s, compute_s)
                    seconds += bound_s
                    waiting += bound_s if memory_s >= compute_s else 0.0
        return _Point(
            stored=sum(count * record.stored_bytes(context) for record, count in self._records),
            allocated=self._copy.sequence_bytes(context),
            on_ranks=on_ranks,
            max_sequences=max(0, min(fits, default=0)),
            flop=sum(
                count * kinds.flop(components, context_tokens=context, query_tokens=query)
                for components, count in self._components
            ),
            read=sum(count * record.read_bytes(context, query) for record, count in self._records),
            attention_s=seconds,
            waiting_s=waiting,
        )


class _RankAttention:
    """One attention of a rank: its terms' times for one sequence (timing/step.py, Step._attention_terms)."""

    def __init__(
        self, attention: kinds.Attention, count: int, layout: Layout, mix: Parallelism, query: int, gpu: Gpu | None
    ) -> None:
        self.components, self.count, self.query, self.tp, self.dcp = (
            attention.components(),
            count,
            query,
            mix.tp,
            mix.dcp,
        )
        records = layout.records(attention, shards=head_shards(attention, mix))
        self.cache = [record for record in records if not _is_index(record)]
        self.index = [record for record in records if _is_index(record)]
        queries_outputs = -(-attention.query_output_elements * 2 * query // mix.tp)
        self.written = sum(record.write_bytes(query) for record in records) + queries_outputs
        if gpu is not None:
            self.bandwidth = gpu.memory_bandwidth_bytes_per_s
            self.peak = gpu.peak(compute_format(layout.compute, gpu))

    def seconds(self, context: int) -> Iterator[tuple[float, float]]:
        """(memory, compute) of attention, and of the index scores where there are any."""
        query, count = self.query, self.count
        flop = kinds.flop(self.components, context_tokens=context, query_tokens=query, shards=self.tp)
        moved = self._read(self.cache, context) + self.written
        yield count * moved / self.bandwidth, count * flop / self.peak
        if self.index:
            flop = kinds.flop(self.components, context_tokens=context, query_tokens=query, index=True)
            yield count * self._read(self.index, context) / self.bandwidth, count * flop / self.peak

    def _read(self, records: list[Record], context: int) -> int:
        total = 0
        for record in records:
            share = -(-context // self.dcp) if self.dcp > 1 and record.slots.spans_context else context
            total += record.read_bytes(share, min(share, self.query))
        return total


def _is_index(record: Record) -> bool:
    return record.components[0].role is kinds.Role.INDEX
