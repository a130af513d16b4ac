"""How long a decode step takes for a mix: the roofline of its busiest rank, or what a calibration expects of it.

A step of speculative decoding verifies 1 + k tokens and yields 1 + a + a^2 + ... + a^k of them on average, if each
draft token is accepted with probability a (arXiv 2211.17192 eq. 1); a draft model takes k steps of its own before it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from kvcalc.architecture.layout import Layout
from kvcalc.architecture.model import Model
from kvcalc.architecture.slots import EveryToken
from kvcalc.errors import MissingPeakError
from kvcalc.hardware import Gpu
from kvcalc.sizing import attention_counts
from kvcalc.timing.calibrated import Calibration
from kvcalc.timing.roofline import roofline
from kvcalc.timing.step import DECODE, Step, Term
from kvcalc.timing.step_time import StepTime, step_time
from kvcalc.workload import Parallelism, Workload

ROOFLINE, CALIBRATION = "roofline", "calibration"


@dataclass(frozen=True, kw_only=True, slots=True)
class TimedStep:
    """Seconds of one step: the bound, what bounds it, and what a calibration expects, with its interval."""

    roofline_s: float
    bound: str
    expected_s: float | None = None
    interval_s: tuple[float, float] | None = None

    def seconds(self, source: str) -> float | None:
        return self.roofline_s if source == ROOFLINE else self.expected_s


@dataclass(frozen=True, kw_only=True)
class Speculation:
    """Draft tokens a step, and the probability that one is accepted. `model` drafts them; None: the MTP layers do."""

    draft_tokens: int = 0
    acceptance: float = 0.0
    model: Model | None = None
    layout: Layout | None = None

    @property
    def tokens_per_step(self) -> float:
        """Tokens that a step yields on average."""
        return sum(self.acceptance**index for index in range(self.draft_tokens + 1))


@dataclass(frozen=True, kw_only=True)
class Decoder:
    """What decoding a mix is timed with.

    cascade_tokens  of a shared prefix, when kernels read it once for all sequences of a rank
    """

    model: Model
    layout: Layout
    mix: Parallelism
    gpu: Gpu
    speculation: Speculation = Speculation()
    weights_dtype: str | None = None
    mtp: bool = False
    cascade_tokens: int = 0
    calibrations: Sequence[Calibration] = ()

    def step(self, *, batch: int, context_tokens: int) -> TimedStep | None:
        """One step's times; None where the GPU states no peak for a format that is needed.

        Pipeline stages work on different parts of the batch at once, so a step takes a part through all stages.
        """
        query = 1 + self.speculation.draft_tokens
        part = -(-batch // self.mix.pp)
        workload = Workload(batch=part, context_tokens=max(context_tokens, query), query_tokens=query)
        step = Step(
            model=self.model,
            layout=self.layout,
            workload=workload,
            phase=DECODE,
            parallelism=self.mix,
            weights_dtype=self.weights_dtype,
            mtp=self.mtp,
        )
        draft = self._draft_step(workload)
        times = self.speculation.draft_tokens if draft is not None else 0
        try:
            bound = roofline(tuple(self._cascaded(step)), self.gpu)
            draft_s = times * roofline(draft.terms(), self.gpu).roofline_s if draft else 0.0
        except MissingPeakError:
            return None
        timed = TimedStep(roofline_s=bound.roofline_s + draft_s, bound=bound.bound)
        expected = [(self._expected(step), 1)] + ([(self._expected(draft), times)] if draft else [])
        seconds = [part.expected_s for part, _ in expected]
        intervals = [part.interval_s for part, _ in expected]
        if self.cascade_tokens or None in seconds:  # no calibration is of kernels that cascade
            return timed
        return replace(
            timed,
            expected_s=sum(n * (part.expected_s or 0.0) for part, n in expected),
            interval_s=(
                sum(n * (ends[0] if ends else 0.0) for ends, (_, n) in zip(intervals, expected, strict=True)),
                sum(n * (ends[1] if ends else 0.0) for ends, (_, n) in zip(intervals, expected, strict=True)),
            ),
        )

    def tpot_s(self, source: str, *, batch: int, context_tokens: int) -> float | None:
        """Seconds for each token of a sequence, by the roofline or the calibration."""
        timed = self.step(batch=batch, context_tokens=context_tokens)
        seconds = None if timed is None else timed.seconds(source)
        return None if seconds is None else seconds / self.speculation.tokens_per_step

    def _expected(self, step: Step) -> StepTime:
        if not self.calibrations:
            return StepTime(unknown="no calibration")
        return step_time(step, step.terms(), self.gpu, self.calibrations)

    def _cascaded(self, step: Step) -> Iterator[Term]:
        """The step's terms; of a cascaded prefix, only one copy is read."""
        saved = self._prefix_read_bytes() * (step.sequences - 1) if self.cascade_tokens else 0
        for term in step.terms():
            if saved and term.name == "attention":
                cut = min(saved, term.traffic.read_bytes)
                saved -= cut
                term = replace(term, traffic=replace(term.traffic, read_bytes=term.traffic.read_bytes - cut))
            yield term

    def _prefix_read_bytes(self) -> int:
        """What one sequence reads of the prefix: full attention alone, since all else does not read every token."""
        shards, tokens = self.mix.kv_shards, -(-self.cascade_tokens // self.mix.dcp)
        return sum(
            count * tokens * record.bytes_per_slot
            for attention, count in attention_counts(self.model.distinct_layers).items()
            for record in self.layout.records(attention, shards=shards)
            if isinstance(record.slots, EveryToken) and record.components[0].role.is_cache_entry
        )

    def _draft_step(self, workload: Workload) -> Step | None:
        """One step of the draft model; None where there is none."""
        drafter = self.speculation.model
        if drafter is None or self.speculation.layout is None:
            return None
        return Step(
            model=drafter,
            layout=self.speculation.layout,
            workload=replace(workload, query_tokens=1),
            phase=DECODE,
            parallelism=replace(self.mix, pp=1, ep=1),
        )
