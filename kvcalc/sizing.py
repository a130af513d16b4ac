"""How many bytes: model x layout x workload x parallelism.

Three sizes are three functions of the same records: stored (what the tokens need), allocated (with the last block
filled up) and read (what one step moves). All are exact integers; growth a token is an exact fraction, since a
compressed cache adds an entry only every n tokens.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from math import lcm

from kvcalc.architecture.attention import Attention, Role
from kvcalc.architecture.feed_forward import MixtureOfExperts
from kvcalc.architecture.formats import WEIGHT_FORMATS, Packing
from kvcalc.architecture.layout import Allocation, Layout, Record, RecordCount, tokens_on_rank
from kvcalc.architecture.model import Layer, Model
from kvcalc.architecture.weights import Part, Weight
from kvcalc.errors import UsageError
from kvcalc.workload import Parallelism, Workload

LayerCounts = tuple[tuple[Layer, int], ...]
"""Different layers, each with how many there are of it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RankCache:
    """The cache on the rank that holds most."""

    bytes_per_token: Fraction
    stored_bytes: int
    allocated_bytes: int
    stage: int


@dataclass(frozen=True, kw_only=True, slots=True)
class CacheSize:
    """A cache's size: one copy of the whole batch, and what its ranks hold.

    elements_per_token           attention entries that one more token adds
    index_elements_per_token     index keys that one more token adds
    bytes_per_token              what one more token adds at long context, index included
    period_tokens                tokens after which growth repeats: 1 unless entries are compressed
    constant_bytes_per_sequence  what does not grow: states, and windows when full
    replication_factor           stored bytes on all ranks over one copy
    """

    elements_per_token: Fraction
    index_elements_per_token: Fraction
    bytes_per_token: Fraction
    period_tokens: int
    constant_bytes_per_sequence: int
    stored_bytes: int
    allocated_bytes: int
    per_rank: RankCache
    replication_factor: Fraction
    records: tuple[RecordCount, ...]

    @property
    def bytes_per_period(self) -> int:
        return int(self.bytes_per_token * self.period_tokens)


def cache_size(
    model: Model, layout: Layout, workload: Workload, parallelism: Parallelism, *, mtp: bool = False
) -> CacheSize:
    """The size of a model's cache in a layout. Raises UsageError where the heads can't be spread as asked."""
    check_parallelism(model, parallelism)
    layers = model.distinct_layers + (model.distinct_mtp_layers if mtp else ())
    copy = list(_record_counts(layers, layout, Parallelism()))
    context, batch = workload.context_tokens, workload.batch
    growth = sum((item.count * item.record.growth_bytes for item in copy), Fraction(0))
    stored = batch * sum(item.count * item.record.stored_bytes(context) for item in copy)
    allocation = layout.allocation(tuple(copy), whole=tuple(copy), dcp=1)
    on_stages = stage_allocations(model, layout, parallelism, mtp=mtp)
    ranks = [
        _rank_cache(stage, stage_layers, on_stages[stage], layout, workload, parallelism)
        for stage, stage_layers in enumerate(stages(model, parallelism.pp, mtp=mtp))
    ]
    on_ranks = batch * sum(
        item.count * item.record.stored_bytes(context) * holders(item.record, parallelism)
        for item in rank_records(layers, layout, parallelism)
    )
    return CacheSize(
        elements_per_token=_elements(copy, index=False),
        index_elements_per_token=_elements(copy, index=True),
        bytes_per_token=growth,
        period_tokens=lcm(*(item.record.slots.per_token.denominator for item in copy)),
        constant_bytes_per_sequence=sum(
            item.count * item.record.stored_bytes(model.max_context_tokens)
            for item in copy
            if not item.record.slots.per_token
        ),
        stored_bytes=stored,
        allocated_bytes=allocation.fixed_bytes + batch * allocation.sequence_bytes(context),
        per_rank=max(ranks, key=lambda cache: cache.stored_bytes),
        replication_factor=Fraction(on_ranks, stored) if stored else Fraction(1),
        records=tuple(copy),
    )


def _elements(records: list[RecordCount], *, index: bool) -> Fraction:
    total = Fraction(0)
    for item in records:
        for component in item.record.components:
            if (component.role is Role.INDEX) if index else component.role.is_cache_entry:
                total += item.count * component.elements_per_slot * component.slots.per_token
    return total


def _record_counts(layers: LayerCounts, layout: Layout, parallelism: Parallelism) -> Iterator[RecordCount]:
    for attention, count in attention_counts(layers).items():
        for record in layout.records(attention, shards=head_shards(attention, parallelism)):
            yield RecordCount(attention=attention, record=record, count=count)


def head_shards(attention: Attention, parallelism: Parallelism) -> int:
    """Ranks that an attention's heads are spread over: a recurrent state has no tokens for dcp ranks to share."""
    recurrent = all(component.role.is_state for component in attention.components())
    return parallelism.tp if recurrent else parallelism.kv_shards


def attention_counts(layers: LayerCounts) -> Counter[Attention]:
    """How many of each attention the layers have, in order of first appearance."""
    counts: Counter[Attention] = Counter()
    for layer, count in layers:
        for attention in layer.attentions:
            counts[attention] += count
    return counts


def rank_records(layers: LayerCounts, layout: Layout, parallelism: Parallelism) -> tuple[RecordCount, ...]:
    """Records of the given layers on the rank that holds most."""
    return tuple(_record_counts(layers, layout, parallelism))


def holders(record: Record, parallelism: Parallelism) -> int:
    """Tensor-parallel ranks that hold an entry of the record, or their share of its heads."""
    return parallelism.kv_shards if record.slots.spans_context else parallelism.tp


def stage_allocations(model: Model, layout: Layout, parallelism: Parallelism, *, mtp: bool = False) -> list[Allocation]:
    """What each pipeline stage's layers take together, on the rank that holds most."""
    whole = rank_records(model.distinct_layers + (model.distinct_mtp_layers if mtp else ()), layout, parallelism)
    return [
        layout.allocation(rank_records(layers, layout, parallelism), whole=whole, dcp=parallelism.dcp)
        for layers in stages(model, parallelism.pp, mtp=mtp)
    ]


def _rank_cache(
    stage: int,
    layers: LayerCounts,
    allocation: Allocation,
    layout: Layout,
    workload: Workload,
    parallelism: Parallelism,
) -> RankCache:
    records, dcp = rank_records(layers, layout, parallelism), parallelism.dcp
    batch, context = parallelism.batch_on_rank(workload.batch), workload.context_tokens
    return RankCache(
        bytes_per_token=sum(
            (
                item.count * item.record.growth_bytes / (dcp if item.record.slots.spans_context else 1)
                for item in records
            ),
            Fraction(0),
        ),
        stored_bytes=batch
        * sum(item.count * item.record.stored_bytes(tokens_on_rank(item.record, context, dcp)) for item in records),
        allocated_bytes=allocation.fixed_bytes + batch * allocation.sequence_bytes(context),
        stage=stage,
    )


def stages(model: Model, pp: int, *, mtp: bool = False) -> list[LayerCounts]:
    """Layers of each pipeline stage, as pairs of layer and count.

    Layers are split evenly; a remainder goes one each to the stages before the last, from the back
    (vLLM distributed/utils.py, get_pp_indices). MTP layers sit on the last stage.
    """
    extra = model.distinct_mtp_layers if mtp else ()
    if pp == 1:
        return [model.distinct_layers + extra]
    total = len(model.layers)
    if pp > total:
        raise UsageError(f"pp {pp} is more than the model's {total} layers")
    sizes = [total // pp] * pp
    for offset in range(total % pp):
        sizes[pp - 2 - offset % max(1, pp - 1)] += 1
    parts, start = [], 0
    for size in sizes:
        counts: dict[Layer, int] = {}
        for layer in model.layers[start : start + size]:
            counts[layer] = counts.get(layer, 0) + 1
        parts.append(tuple(counts.items()))
        start += size
    parts[-1] += extra
    return parts


def check_parallelism(model: Model, parallelism: Parallelism) -> None:
    """Raise UsageError unless the heads of every layer can be spread over the ranks without a remainder."""
    tp, shards = parallelism.tp, parallelism.kv_shards
    if parallelism.gpus == 1:
        return
    for layer, _ in model.distinct_layers:
        for attention in layer.attentions:
            for component in attention.components():
                if component.role is not Role.INDEX and component.flop_per_pair and component.query_heads % tp:
                    raise UsageError(
                        f"tp {tp} does not divide the {component.query_heads} heads of {attention.label}",
                        hint="tp must divide the number of query heads",
                    )
                if component.heads % shards and shards % component.heads:
                    raise UsageError(
                        f"the {component.heads} KV heads of {attention.label} can't be spread over {shards} ranks",
                        hint="the number of ranks (tp / dcp) must divide the KV heads, or be a multiple of them",
                    )
        for feed_forward in layer.feed_forwards:
            if isinstance(feed_forward, MixtureOfExperts) and feed_forward.experts % parallelism.ep:
                raise UsageError(f"ep {parallelism.ep} does not divide the {feed_forward.experts} experts")


# --- weights ----------------------------------------------------------------------------------------------------------


def weight_packing(model: Model, part: Part, weights_dtype: str | None = None) -> Packing:
    """How the weights of a part are stored: as asked for, else as published."""
    return WEIGHT_FORMATS[weight_format(model, part, weights_dtype)]


def weight_format(model: Model, part: Part, weights_dtype: str | None = None) -> str:
    """Name of the format that a part's weights are stored in."""
    return weights_dtype or model.weight_formats.get(part.value) or model.weight_formats["default"]


def packed_bytes(elements: int, packing: Packing) -> int:
    """Bytes of so many elements, whole blocks."""
    return -(-elements * packing.bytes // packing.elements)


def weight_elements_on_rank(weight: Weight, parallelism: Parallelism) -> int:
    """Elements on the rank that holds most: experts are spread over all tp x dp ranks, all else over tp."""
    ranks = parallelism.tp * parallelism.dp
    if weight.part is Part.EXPERTS:
        return -(-weight.elements // ranks)
    return weight.elements_on_rank(parallelism.tp)


def weights_bytes_per_gpu(
    model: Model,
    parallelism: Parallelism,
    *,
    weights_dtype: str | None = None,
    mtp: bool = False,
    layout: Layout | None = None,
) -> int:
    """Weights on the GPU that holds most; with a layout, the copies that its engine keeps are counted."""
    sizes = stage_weights_bytes(model, parallelism, weights_dtype=weights_dtype, mtp=mtp)
    if layout is None:
        return max(sizes)
    copies = stage_weight_copies_bytes(model, layout, parallelism, weights_dtype=weights_dtype, mtp=mtp)
    return max(map(sum, zip(sizes, copies, strict=True)))


def stage_weights_bytes(
    model: Model, parallelism: Parallelism, *, weights_dtype: str | None = None, mtp: bool = False
) -> list[int]:
    """Weights on a GPU of each pipeline stage. The first stage has the embedding, the last one the head."""

    def size(weights: tuple[Weight, ...]) -> int:
        return sum(
            packed_bytes(
                weight_elements_on_rank(weight, parallelism), weight_packing(model, weight.part, weights_dtype)
            )
            for weight in weights
        )

    parts = stages(model, parallelism.pp, mtp=mtp)
    sizes = [sum(count * size(model.layer_weights(layer)) for layer, count in layers) for layers in parts]
    sizes[0] += size(model.embedding_weights)
    tied_elsewhere = model.tied_embeddings and parallelism.pp > 1  # the last stage needs its own copy
    sizes[-1] += size(model.head_weights if tied_elsewhere else model.own_head_weights) + size(model.other_weights)
    return sizes


def stage_weight_copies_bytes(
    model: Model, layout: Layout, parallelism: Parallelism, *, weights_dtype: str | None = None, mtp: bool = False
) -> list[int]:
    """Weights that an engine keeps a second time, on a GPU of each pipeline stage."""
    stored, tp = weight_format(model, Part.ATTENTION, weights_dtype), parallelism.tp
    return [
        sum(
            count * layout.copied_weight_bytes(attention, weights=stored, tp=tp)
            for attention, count in attention_counts(layers).items()
        )
        for layers in stages(model, parallelism.pp, mtp=mtp)
    ]


# --- fitting ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryFit:
    """What fits on each GPU. max_batch is over all GPUs, at the workload's context; max_context_tokens at its batch.

    weights_bytes_per_gpu  with the copies that the engine keeps, `weight_copies_bytes_per_gpu` at most
    """

    usable_bytes: int
    weights_bytes_per_gpu: int
    weight_copies_bytes_per_gpu: int
    cache_bytes_per_gpu: int
    fits: bool
    max_batch: int
    max_context_tokens: int


def fit(
    model: Model,
    layout: Layout,
    workload: Workload,
    parallelism: Parallelism,
    *,
    usable_bytes: int,
    weights_dtype: str | None = None,
    mtp: bool = False,
) -> MemoryFit:
    """What fits into `usable_bytes` a GPU beside the weights; activations and a runtime's reserve are not counted."""
    weights = weights_bytes_per_gpu(model, parallelism, weights_dtype=weights_dtype, mtp=mtp, layout=layout)
    copies = stage_weight_copies_bytes(model, layout, parallelism, weights_dtype=weights_dtype, mtp=mtp)
    on_stages = stage_allocations(model, layout, parallelism, mtp=mtp)
    free = usable_bytes - weights
    replica_batch = parallelism.batch_on_rank(workload.batch)

    def cache_bytes(context_tokens: int) -> int:
        return max(each.fixed_bytes + replica_batch * each.sequence_bytes(context_tokens) for each in on_stages)

    sequences = [
        (free - each.fixed_bytes) // one for each in on_stages if (one := each.sequence_bytes(workload.context_tokens))
    ]
    cache = cache_bytes(workload.context_tokens)
    return MemoryFit(
        usable_bytes=usable_bytes,
        weights_bytes_per_gpu=weights,
        weight_copies_bytes_per_gpu=max(copies),
        cache_bytes_per_gpu=cache,
        fits=weights + cache <= usable_bytes,
        max_batch=max(0, min(sequences, default=0)) * parallelism.dp,
        max_context_tokens=largest(model.max_context_tokens, lambda tokens: cache_bytes(tokens) <= free),
    )


def largest(limit: int, fits: Callable[[int], bool]) -> int:
    """The largest number up to `limit` for which a monotone predicate holds; 0 where it never does."""
    if fits(limit):
        return limit
    low, high = 0, limit
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
