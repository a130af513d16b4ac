"""A plan: one row a mix of parallelism, with its memory, the sequences it holds, its speed at best and its cost."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import cached_property
from math import isfinite
from typing import Any

from kvcalc.architecture.layout import Layout
from kvcalc.architecture.model import Model
from kvcalc.errors import UsageError
from kvcalc.planning.front import is_on_front
from kvcalc.planning.memory import Budget, Demand, GpuMemory, gpu_memory, with_draft
from kvcalc.planning.mixes import why_not
from kvcalc.planning.speed import CALIBRATION, ROOFLINE, Decoder, Speculation, TimedStep
from kvcalc.sizing import cache_size, largest
from kvcalc.timing.calibrated import Calibration
from kvcalc.units import exact
from kvcalc.workload import Parallelism, Workload

Json = dict[str, Any]
LayoutFor = Callable[[Parallelism], Layout]


@dataclass(frozen=True, kw_only=True)
class Goals:
    """What is asked of a plan.

    batch               sequences over all GPUs; None: as many as fit, or as the target allows
    target_tpot_s       the batch is the largest whose tokens come at least so fast
    price_per_gpu_hour  in any currency
    link_bytes_per_s    of a link that a sequence's cache is moved over, for each GPU
    cascade             kernels read a shared prefix once for all sequences of a rank
    batches             a row at each power of two of the batch as well, for the front of speed against throughput
    """

    batch: int | None = None
    target_tpot_s: float | None = None
    price_per_gpu_hour: float | None = None
    link_bytes_per_s: float | None = None
    speculation: Speculation = Speculation()
    cascade: bool = False
    batches: bool = False

    def __post_init__(self) -> None:
        price = self.price_per_gpu_hour
        if price is not None and not (isfinite(price) and price >= 0):
            raise UsageError(f"the price of a GPU-hour is {price:g}; it must be a number of 0 or more")


@dataclass(frozen=True, kw_only=True)
class PlanRow:
    """One mix at one batch. Times are of the busiest GPU; None where the GPU states no peak for them.

    time_from  where tpot_s is from: the roofline, or the calibration where it knows every mix of the plan
    """

    mix: Parallelism
    memory: GpuMemory
    demand: Demand
    goals: Goals
    batch: int
    max_batch: int
    max_context_tokens: int
    replication_factor: Fraction
    weights_replication_factor: float
    sequence_rank_bytes: int
    timed: TimedStep | None
    time_from: str
    tpot_longest_s: float | None
    pareto: bool = False

    def _per_token(self, seconds: float | None) -> float | None:
        return None if seconds is None else seconds / self.goals.speculation.tokens_per_step

    @property
    def tpot_s(self) -> float | None:
        return self._per_token(self.timed.seconds(self.time_from)) if self.timed else None

    @property
    def interval_tpot_s(self) -> tuple[float, float] | None:
        """The calibration's 90 % interval; None for a roofline."""
        if self.timed is None or self.timed.interval_s is None or self.time_from != CALIBRATION:
            return None
        low, high = self.timed.interval_s
        return low / self.goals.speculation.tokens_per_step, high / self.goals.speculation.tokens_per_step

    @property
    def fits(self) -> bool:
        return self.memory.fits(self.demand, self.mix.batch_on_rank(self.batch))

    @property
    def meets_target(self) -> bool | None:
        """Whether tokens come as fast as asked; None where nothing is asked or known."""
        if self.goals.target_tpot_s is None or self.tpot_s is None:
            return None
        return self.tpot_s <= self.goals.target_tpot_s

    @property
    def tokens_per_s_per_gpu(self) -> float | None:
        return self.batch / self.tpot_s / self.mix.gpus if self.tpot_s and self.fits else None

    @property
    def tokens_per_gpu_hour(self) -> float | None:
        rate = self.tokens_per_s_per_gpu
        return None if rate is None else rate * 3600

    @property
    def cost_per_million_tokens(self) -> float | None:
        rate, price = self.tokens_per_gpu_hour, self.goals.price_per_gpu_hour
        return price / rate * 1e6 if rate and price is not None else None

    @property
    def transfer_s(self) -> float | None:
        """Seconds to move one sequence's cache when every rank sends its part at once."""
        rate = self.goals.link_bytes_per_s
        return self.sequence_rank_bytes / rate if rate else None

    def to_json(self) -> Json:
        sequences = self.mix.batch_on_rank(self.batch)
        memory, budget = self.memory, self.memory.budget
        assumed = budget.reserve_bytes is None
        return {
            "parallel": {name: getattr(self.mix, name) for name in ("tp", "pp", "dp", "dcp", "ep")},
            "gpus": self.mix.gpus,
            "batch": self.batch,
            "replication_factor": exact(self.replication_factor),
            "weights_replication_factor": self.weights_replication_factor,
            "weights_bytes_per_gpu": memory.weights_bytes,
            "weight_copies_bytes_per_gpu": memory.weight_copies_bytes,
            "cache_bytes_per_gpu": memory.cache_bytes(self.demand, sequences),
            "activation_bytes_per_gpu": memory.activation_bytes if assumed else None,
            "workspace_bytes_per_gpu": memory.workspace_bytes if assumed else None,
            "logits_bytes_per_gpu": sequences * memory.logit_bytes_per_sequence if assumed else None,
            "runtime_bytes_per_gpu": budget.runtime_inside_bytes if assumed else None,
            "reserve_bytes_per_gpu": budget.reserve_bytes,
            "needed_bytes_per_gpu": memory.needed_bytes(self.demand, sequences),
            "usable_bytes_per_gpu": budget.usable_bytes,
            "fits": self.fits,
            "max_batch": self.max_batch,
            "max_context_tokens": self.max_context_tokens,
            "tpot_s": self.tpot_s,
            "interval_tpot_s": None if self.interval_tpot_s is None else list(self.interval_tpot_s),
            "tpot_longest_s": self.tpot_longest_s,
            "roofline_tpot_s": self._per_token(self.timed.roofline_s) if self.timed else None,
            "bound": self.timed.bound if self.timed else None,
            "time_from": self.time_from if self.timed else None,
            "tokens_per_s_per_gpu": self.tokens_per_s_per_gpu,
            "tokens_per_gpu_hour": self.tokens_per_gpu_hour,
            "cost_per_million_tokens": self.cost_per_million_tokens,
            "transfer_bytes_per_gpu": self.sequence_rank_bytes,
            "transfer_s": self.transfer_s,
            "meets_target": self.meets_target,
            "pareto": self.pareto,
        }


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All rows, and the mixes that were asked for but can't be."""

    model: Model
    budget: Budget
    demand: Demand
    goals: Goals
    layout_name: str
    rows: tuple[PlanRow, ...]
    left_out: tuple[tuple[Parallelism, str], ...] = ()
    notes: tuple[str, ...] = field(default=())

    @property
    def fits(self) -> bool:
        return any(row.fits for row in self.rows)

    def to_json(self) -> Json:
        """The object of schema `kvcalc.plan/1`."""
        lengths, speculation = self.demand.lengths, self.goals.speculation
        return {
            "schema": "kvcalc.plan/1",
            "model": {"name": self.model.name, "attention": list(self.model.attention_labels)},
            "gpu": {"slug": self.budget.gpu.slug, "memory_reported_bytes": self.budget.gpu.memory_reported_bytes},
            "engine": {"name": self.layout_name, "notes": list(self.notes)},
            "workload": {
                "context_tokens": self.demand.context_tokens,
                "lengths": lengths
                and {
                    "source": lengths.source,
                    "requests": lengths.requests,
                    "mean_tokens": lengths.mean_tokens,
                    "longest_tokens": lengths.longest_tokens,
                },
                "shared_prefix_tokens": self.demand.shared_prefix_tokens,
                "draft_tokens": speculation.draft_tokens,
                "tokens_per_step": speculation.tokens_per_step,
            },
            "memory_utilization": self.budget.memory_utilization,
            "rows": [row.to_json() for row in self.rows],
            "left_out": [
                {"parallel": {name: getattr(mix, name) for name in ("tp", "pp", "dp", "dcp", "ep")}, "reason": reason}
                for mix, reason in self.left_out
            ],
        }


def plan(
    model: Model,
    layout_for: LayoutFor,
    mixes: Iterable[Parallelism],
    *,
    budget: Budget,
    demand: Demand,
    goals: Goals = Goals(),
    weights_dtype: str | None = None,
    mtp: bool = False,
    calibrations: Sequence[Calibration] = (),
) -> Plan:
    """Rows for the mixes, in their order. A mix that the model or the engine refuses is left out, with the reason.

    Times are the calibrations' where these know every mix, so that rows compare; else all are rooflines.
    """
    rows: list[PlanRow] = []
    planners: list[_Planner] = []
    left_out: list[tuple[Parallelism, str]] = []
    name, notes = "", dict[str, None]()
    for mix in mixes:
        reason = why_not(model, mix)
        if reason is not None:
            left_out.append((mix, reason))
            continue
        try:
            layout = layout_for(mix)
            planner = _Planner(
                model=model,
                layout=layout,
                mix=mix,
                budget=budget,
                demand=demand,
                goals=goals,
                weights_dtype=weights_dtype,
                mtp=mtp,
                calibrations=calibrations,
            )
            planner.check()
        except UsageError as error:
            left_out.append((mix, error.message))
            continue
        planners.append(planner)
        name = layout.name
        notes |= dict.fromkeys(layout.notes)
    known = bool(planners) and all(planner.is_calibrated for planner in planners)
    for planner in planners:
        rows += planner.rows(CALIBRATION if known else ROOFLINE)
    return Plan(
        model=model,
        budget=budget,
        demand=demand,
        goals=goals,
        layout_name=name,
        rows=tuple(replace(row, pareto=is_on_front(row, rows)) for row in rows),
        left_out=tuple(left_out),
        notes=tuple(notes),
    )


@dataclass(frozen=True, kw_only=True)
class _Planner:
    """One mix: its memory, and rows of it."""

    model: Model
    layout: Layout
    mix: Parallelism
    budget: Budget
    demand: Demand
    goals: Goals
    weights_dtype: str | None
    mtp: bool
    calibrations: Sequence[Calibration]

    def check(self) -> None:
        """Raise UsageError where the engine or the draft model refuses the mix."""
        self._memory.max_sequences(self.demand)

    @property
    def is_calibrated(self) -> bool:
        timed = self._decoder.step(batch=self.mix.dp, context_tokens=self._mean)
        return timed is None or timed.expected_s is not None

    def rows(self, source: str) -> Iterator[PlanRow]:
        """Rows with times from the roofline or the calibration."""
        most = self._memory.max_sequences(self.demand) * self.mix.dp
        for batch in self._batches(most, source):
            yield self._row(batch=batch, most=most, source=source)

    @cached_property
    def _memory(self) -> GpuMemory:
        memory = gpu_memory(
            self.model,
            self.layout,
            self.mix,
            self.budget,
            context_tokens=self._longest,
            weights_dtype=self.weights_dtype,
            mtp=self.mtp,
        )
        draft, layout = self.goals.speculation.model, self.goals.speculation.layout
        if draft is None or layout is None:
            return memory
        mix = replace(self.mix, pp=1, ep=1)
        reason = why_not(draft, mix)
        if reason is not None:
            raise UsageError(f"draft {draft.name}: {reason}")
        beside = gpu_memory(draft, layout, mix, replace(self.budget, weights_bytes=None), context_tokens=self._longest)
        return with_draft(memory, beside)

    @property
    def _longest(self) -> int:
        return self.demand.lengths.longest_tokens if self.demand.lengths else self.demand.context_tokens

    @property
    def _mean(self) -> int:
        return self.demand.lengths.mean_tokens if self.demand.lengths else self.demand.context_tokens

    def _batches(self, most: int, source: str) -> Iterable[int]:
        """Batches to make rows of; one sequence a replica where none fits, so that the row says by how much."""
        if self.goals.batch is not None:
            return (self.goals.batch,)
        if not most:
            return (self.mix.dp,)
        if self.goals.target_tpot_s is not None:
            return (self._fast_enough(most, self.goals.target_tpot_s, source),)
        if not self.goals.batches:
            return (most,)
        return sorted({most, *(self.mix.dp << power for power in range(32) if self.mix.dp << power < most)})

    def _fast_enough(self, most: int, target_s: float, source: str) -> int:
        """The largest batch that meets the target, in whole sequences a replica; one a replica where none does."""

        def meets(sequences: int) -> bool:
            tpot = self._decoder.tpot_s(source, batch=sequences * self.mix.dp, context_tokens=self._mean)
            return tpot is None or tpot <= target_s

        return max(1, largest(most // self.mix.dp, meets)) * self.mix.dp

    @property
    def _decoder(self) -> Decoder:
        return Decoder(
            model=self.model,
            layout=self.layout,
            mix=self.mix,
            gpu=self.budget.gpu,
            speculation=self.goals.speculation,
            weights_dtype=self.weights_dtype,
            mtp=self.mtp,
            cascade_tokens=self.demand.shared_prefix_tokens if self.goals.cascade else 0,
            calibrations=self.calibrations,
        )

    def _row(self, *, batch: int, most: int, source: str) -> PlanRow:
        memory = self._memory
        size = cache_size(
            self.model,
            self.layout,
            Workload(batch=1, context_tokens=self._mean),
            replace(self.mix, dp=1, ep=1),
            mtp=self.mtp,
        )
        one_copy = gpu_memory(
            self.model,
            self.layout,
            Parallelism(),
            self.budget,
            context_tokens=1,
            weights_dtype=self.weights_dtype,
            mtp=self.mtp,
        ).all_weights_bytes
        return PlanRow(
            mix=self.mix,
            memory=memory,
            demand=self.demand,
            goals=self.goals,
            batch=batch,
            max_batch=most,
            max_context_tokens=memory.max_context(
                self.demand, self.mix.batch_on_rank(self.goals.batch or self.mix.dp), self.model.max_context_tokens
            ),
            replication_factor=size.replication_factor,
            weights_replication_factor=round(memory.all_weights_bytes / one_copy, 4),
            sequence_rank_bytes=size.per_rank.stored_bytes,
            timed=self._decoder.step(batch=batch, context_tokens=self._mean),
            time_from=source,
            tpot_longest_s=self._decoder.tpot_s(source, batch=batch, context_tokens=self._longest),
        )
