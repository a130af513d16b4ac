"""Where the memory of a GPU goes: weights, cache, and what a step needs beside them.

What a step needs is an assumption each, stated with its value; `--reserve` replaces them all by one number:
    activations   tokens of a prefill step x the widest layer's vectors on a rank x 2 bytes
    workspace     K and V that MLA rebuilds for the context of a prefill step, heads of the rank, 2 bytes
    logits        sequences x vocabulary x 4 bytes, whole on each rank
    runtime       context, libraries, communication buffers and graphs: taken from what utilization leaves free first
"""

from dataclasses import dataclass, replace
from fractions import Fraction
from math import ceil

from kvcalc.architecture.attention import LatentAttention, SelectedAttention
from kvcalc.architecture.feed_forward import FeedForward, MixtureOfExperts
from kvcalc.architecture.layout import Allocation, Layout
from kvcalc.architecture.model import Model
from kvcalc.errors import UsageError
from kvcalc.hardware import Gpu
from kvcalc.planning.lengths import Lengths
from kvcalc.sizing import largest, stage_allocations, stage_weight_copies_bytes, stage_weights_bytes
from kvcalc.workload import Parallelism

STEP_TOKENS = 8_192
WORKSPACE_TOKENS = 65_536
RUNTIME_BYTES = 2 << 30
MAX_SEQUENCES = 1 << 24
_ACTIVATION_BYTES, _LOGIT_BYTES = 2, 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Budget:
    """What may be used of a GPU, and what is assumed of a step.

    weights_bytes   the measured size of all weights, in one copy; None for what the formats give
    reserve_bytes   instead of the assumed activations, workspace, logits and runtime
    step_tokens     tokens of a prefill step
    """

    gpu: Gpu
    memory_utilization: float
    weights_bytes: int | None = None
    reserve_bytes: int | None = None
    step_tokens: int = STEP_TOKENS
    runtime_bytes: int = RUNTIME_BYTES

    def __post_init__(self) -> None:
        if self.weights_bytes is not None and self.weights_bytes < 1:
            raise UsageError(f"weights of {self.weights_bytes} bytes are none", hint="leave the size out to compute it")

    @property
    def usable_bytes(self) -> int:
        return int(self.gpu.memory_reported_bytes * self.memory_utilization)

    @property
    def runtime_inside_bytes(self) -> int:
        """What the runtime takes beyond the share that utilization leaves free."""
        if self.reserve_bytes is not None:
            return 0
        return max(0, self.runtime_bytes - (self.gpu.memory_reported_bytes - self.usable_bytes))


@dataclass(frozen=True, kw_only=True)
class Demand:
    """What sequences ask for: one context, or lengths; a prefix that all share is kept once a replica."""

    context_tokens: int
    lengths: Lengths | None = None
    shared_prefix_tokens: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Together:
    """Caches side by side: a model's and its draft's."""

    parts: tuple[Allocation, ...]

    @property
    def fixed_bytes(self) -> int:
        return sum(part.fixed_bytes for part in self.parts)

    def sequence_bytes(self, context_tokens: int) -> int:
        return sum(part.sequence_bytes(context_tokens) for part in self.parts)


@dataclass(frozen=True, kw_only=True)
class GpuMemory:
    """The memory of the fullest GPU of a mix, as functions of sequences on a replica.

    weights_bytes        on that GPU, copies and a draft model's included
    weight_copies_bytes  the part of them that the engine keeps a second time
    all_weights_bytes    of the model on all GPUs together, without such copies
    """

    budget: Budget
    mix: Parallelism
    weights_bytes: int
    weight_copies_bytes: int
    all_weights_bytes: int
    activation_bytes: int
    workspace_bytes: int
    logit_bytes_per_sequence: int
    allocations: tuple[Allocation, ...]
    growth_bytes_per_token: Fraction
    block_tokens: int

    @property
    def step_bytes(self) -> int:
        """What a step needs beside weights and cache, logits aside."""
        if self.budget.reserve_bytes is not None:
            return self.budget.reserve_bytes
        return self.activation_bytes + self.workspace_bytes + self.budget.runtime_inside_bytes

    def shared_bytes(self, prefix_tokens: int) -> int:
        """What sequences with a common prefix share: its whole blocks, in everything that grows."""
        whole = prefix_tokens // self.block_tokens * self.block_tokens
        return int(self.growth_bytes_per_token * whole)

    def sequence_bytes(self, demand: Demand, allocation: Allocation) -> Fraction:
        """One sequence's own cache; with lengths, the mean of their peaks."""
        shared = self.shared_bytes(demand.shared_prefix_tokens)
        if demand.lengths is None:
            return Fraction(allocation.sequence_bytes(demand.context_tokens) - shared)
        total = sum(count * allocation.sequence_bytes(tokens) for tokens, count in demand.lengths.counts)
        return Fraction(total, demand.lengths.requests) - shared

    def cache_bytes(self, demand: Demand, sequences: int) -> int:
        """Cache of so many sequences on the fullest GPU."""
        shared = self.shared_bytes(demand.shared_prefix_tokens)
        return max(
            each.fixed_bytes + shared + ceil(sequences * self.sequence_bytes(demand, each)) for each in self.allocations
        )

    def needed_bytes(self, demand: Demand, sequences: int) -> int:
        logits = 0 if self.budget.reserve_bytes is not None else sequences * self.logit_bytes_per_sequence
        return self.weights_bytes + self.step_bytes + logits + self.cache_bytes(demand, sequences)

    def fits(self, demand: Demand, sequences: int) -> bool:
        return self.needed_bytes(demand, sequences) <= self.budget.usable_bytes

    def max_sequences(self, demand: Demand) -> int:
        """The most sequences of a replica that fit."""
        if not self.fits(demand, 1):
            return 0
        limit = 2
        while limit < MAX_SEQUENCES and self.fits(demand, limit):
            limit *= 2
        return largest(limit, lambda sequences: self.fits(demand, sequences))

    def max_context(self, demand: Demand, sequences: int, limit: int) -> int:
        """The longest context, up to `limit`, at which so many sequences of a replica fit."""

        def fits(context_tokens: int) -> bool:
            prefix = min(demand.shared_prefix_tokens, context_tokens)
            return self.fits(Demand(context_tokens=context_tokens, shared_prefix_tokens=prefix), sequences)

        return largest(limit, fits)


def gpu_memory(
    model: Model,
    layout: Layout,
    mix: Parallelism,
    budget: Budget,
    *,
    context_tokens: int,
    weights_dtype: str | None = None,
    mtp: bool = False,
) -> GpuMemory:
    """The memory of a mix's GPUs."""
    stages = stage_weights_bytes(model, mix, weights_dtype=weights_dtype, mtp=mtp)
    one_copy = sum(stage_weights_bytes(model, Parallelism(), weights_dtype=weights_dtype, mtp=mtp))
    scale = budget.weights_bytes / one_copy if budget.weights_bytes is not None else 1.0
    copies = stage_weight_copies_bytes(model, layout, mix, weights_dtype=weights_dtype, mtp=mtp)
    weights, copied = max((ceil(size * scale) + copy, copy) for size, copy in zip(stages, copies, strict=True))
    allocations = tuple(stage_allocations(model, layout, mix, mtp=mtp))
    far = model.max_context_tokens // layout.block_tokens * layout.block_tokens or layout.block_tokens
    growth = min(Fraction(each.sequence_bytes(2 * far) - each.sequence_bytes(far), far) for each in allocations)
    return GpuMemory(
        budget=budget,
        mix=mix,
        weights_bytes=weights,
        weight_copies_bytes=copied,
        all_weights_bytes=ceil(sum(stages) * mix.tp * mix.dp * scale),
        activation_bytes=activation_bytes(model, mix, tokens=budget.step_tokens),
        workspace_bytes=workspace_bytes(model, mix, context_tokens=context_tokens),
        logit_bytes_per_sequence=model.vocab_size * _LOGIT_BYTES,
        allocations=allocations,
        growth_bytes_per_token=growth,
        block_tokens=layout.block_tokens,
    )


def with_draft(memory: GpuMemory, draft: GpuMemory) -> GpuMemory:
    """The model's memory with a draft model on every GPU beside it."""
    whole = Together(parts=draft.allocations)
    return replace(
        memory,
        weights_bytes=memory.weights_bytes + draft.weights_bytes,
        weight_copies_bytes=memory.weight_copies_bytes + draft.weight_copies_bytes,
        allocations=tuple(Together(parts=(each, whole)) for each in memory.allocations),
        growth_bytes_per_token=memory.growth_bytes_per_token + draft.growth_bytes_per_token,
    )


def activation_bytes(model: Model, mix: Parallelism, *, tokens: int) -> int:
    """Vectors of `tokens` tokens alive at once in the widest layer: twice the hidden state, and what it computes."""
    widest = 0
    for layer, _ in model.distinct_layers:
        for attention in layer.attentions:
            width = (attention.expanded() or attention).query_output_elements
            widest = max(widest, ceil(width / mix.tp))
        for network in layer.feed_forwards:
            widest = max(widest, _network_width(model, network, mix))
    return tokens * (2 * model.hidden_size + widest) * _ACTIVATION_BYTES


def _network_width(model: Model, network: FeedForward, mix: Parallelism) -> int:
    """Elements a token of the rank: up, gate and product, and the copies that experts get."""
    if isinstance(network, MixtureOfExperts):
        inputs = network.latent_size or model.hidden_size
        width = float(network.active_experts) * (inputs + 3 * network.intermediate_size)
        return ceil(width / mix.tp) + ceil(3 * network.shared_intermediate_size / mix.tp)
    return ceil(3 * network.intermediate_size / mix.tp)


def workspace_bytes(model: Model, mix: Parallelism, *, context_tokens: int) -> int:
    """K and V of one attention that MLA's prefill rebuilds, at most `WORKSPACE_TOKENS` tokens at a time."""
    widest = 0
    for layer, _ in model.distinct_layers:
        for attention in layer.attentions:
            base = attention.base if isinstance(attention, SelectedAttention) else attention
            if isinstance(base, LatentAttention):
                widest = max(widest, ceil(base.expanded().elements_per_token / mix.tp))
    return min(context_tokens, WORKSPACE_TOKENS) * widest * _ACTIVATION_BYTES
