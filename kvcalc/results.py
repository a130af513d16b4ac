"""The results of estimate and compare: plain objects, and the JSON that is made of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import cached_property
from typing import TYPE_CHECKING, Any

from kvcalc.architecture import attention as kinds
from kvcalc.architecture.attention import Attention, Form
from kvcalc.architecture.layout import Layout
from kvcalc.architecture.model import Model
from kvcalc.hardware import Gpu
from kvcalc.sizing import CacheSize, MemoryFit, attention_counts, fit
from kvcalc.timing.roofline import Roofline
from kvcalc.timing.step import DECODE, PREFILL, Step, Term, total
from kvcalc.units import exact
from kvcalc.workload import Parallelism, Workload

if TYPE_CHECKING:
    from kvcalc.timing.calibrated import Calibration
    from kvcalc.timing.step_time import StepTime

Json = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a model's cache and steps take. `steps` are one full copy; `rooflines` are one rank of the parallel mix."""

    model: Model
    workload: Workload
    parallelism: Parallelism
    layout: Layout
    weights_dtype: str | None
    mtp: bool
    cache: CacheSize
    steps: Mapping[str, Step]
    gpu: Gpu | None = None
    memory_utilization: float
    rooflines: Mapping[str, Roofline] = field(default_factory=dict)
    memory: MemoryFit | None = None
    calibrations: "Sequence[Calibration]" = ()
    output_tokens: int | None = None

    @cached_property
    def predictions(self) -> "Mapping[str, StepTime]":
        """The expected time of each phase's step on one rank; with `output_tokens`, decode among others' prefills."""
        if self.gpu is None:
            return {}
        from kvcalc.timing.step_time import step_time

        steps = {phase: replace(step, parallelism=self.parallelism) for phase, step in self.steps.items()}
        terms = {phase: tuple(timed.term for timed in bound.terms) for phase, bound in self.rooflines.items()}
        return {
            PREFILL: step_time(steps[PREFILL], terms[PREFILL], self.gpu, self.calibrations),
            DECODE: step_time(steps[DECODE], terms[DECODE], self.gpu, self.calibrations)
            if self.output_tokens is None
            else self._aggregated(steps, self.gpu, self.output_tokens),
        }

    def _aggregated(self, steps: Mapping[str, Step], gpu: Gpu, output_tokens: int) -> "StepTime":
        """The decode step among other requests' prompts, one a replica at once, of the sequences that memory holds."""
        from kvcalc.timing.serving import aggregated
        from kvcalc.timing.step_time import step_time

        prompt_tokens = max(1, self.workload.context_tokens - output_tokens // 2)
        one = replace(self.workload, batch=self.parallelism.dp, context_tokens=prompt_tokens, query_tokens=1)
        prompt = replace(steps[PREFILL], workload=one)
        fits = self.memory.max_batch if self.memory is not None else self.workload.batch
        if self.memory is not None and self.layout.reserves_requests:
            fits = fit(
                self.model,
                self.layout,
                replace(self.workload, context_tokens=prompt_tokens + output_tokens),
                self.parallelism,
                usable_bytes=self.memory.usable_bytes,
                weights_dtype=self.weights_dtype,
                mtp=self.mtp,
            ).max_batch
        return aggregated(
            steps[DECODE],
            gpu,
            self.calibrations,
            prefill=step_time(prompt, prompt.terms(), gpu, self.calibrations),
            output_tokens=output_tokens,
            fits=fits,
        )

    @cached_property
    def terms(self) -> Mapping[str, tuple[Term, ...]]:
        """Terms of each phase for one full copy."""
        return {phase: step.terms() for phase, step in self.steps.items()}

    @property
    def warnings(self) -> list[str]:
        """What a reader should know before using the numbers."""
        found = []
        if self.workload.context_tokens > self.model.max_context_tokens:
            found.append(
                f"context {self.workload.context_tokens:,} is above the model's maximum "
                f"{self.model.max_context_tokens:,}"
            )
        return found

    @property
    def weights_name(self) -> str:
        return self.weights_dtype or self.model.weight_formats["default"]

    def attention(self, phase: str) -> "AttentionWork":
        """The attention of all cached layers in one step of the whole batch."""
        step = self.steps[phase]
        flop = sum(term.traffic.flop for term in self.terms[phase] if term.name == "attention")
        read = self.workload.batch * sum(
            item.count * item.record.read_bytes(self.workload.context_tokens, step.query_tokens)
            for item in self.cache.records
        )
        index = sum(term.traffic.flop for term in self.terms[phase] if term.name == "index scores")
        return AttentionWork(
            flop=flop,
            read_bytes=read,
            query_output_bytes=self.workload.batch
            * sum(count * step.query_output_bytes(each) for each, count in self._attentions),
            index_flop=index,
            form="expanded" if phase == PREFILL and self._has_prefill_form else "absorbed",
            alternatives=self._forms(step),
        )

    @cached_property
    def _attentions(self) -> list[tuple[Attention, int]]:
        layers = self.model.distinct_layers + (self.model.distinct_mtp_layers if self.mtp else ())
        return list(attention_counts(layers).items())

    @property
    def _has_prefill_form(self) -> bool:
        return any(form.serves_prefill for form in self._all_forms)

    @property
    def _all_forms(self) -> list[Form]:
        return [form for attention, _ in self._attentions if (form := attention.expanded()) is not None]

    def _forms(self, step: Step) -> "Forms | None":
        """Both forms of MLA, side by side; None for a model without it."""
        if not self._all_forms:
            return None
        batch, context, query = self.workload.batch, self.workload.context_tokens, step.query_tokens
        absorbed = expanded = decompress = elements = 0
        for attention, count in self._attentions:
            form = attention.expanded()
            if form is None:
                continue
            sequences = count * batch
            absorbed += sequences * kinds.flop(attention.components(), context_tokens=context, query_tokens=query)
            expanded += sequences * form.flop(context, query)
            decompress += sequences * form.decompress_flop(context, query)
            elements += count * form.elements_per_token
        return Forms(
            absorbed_flop=absorbed,
            expanded_flop=expanded,
            decompress_flop=decompress,
            expanded_elements_per_token=elements,
        )

    def to_json(self) -> Json:
        """The object of schema `kvcalc.estimate/1`."""
        parameters = self.model.parameters
        precision = self.layout.precision
        return {
            "schema": "kvcalc.estimate/1",
            "model": {
                "name": self.model.name,
                "title": self.model.title,
                "attention": list(self.model.attention_labels),
                "layers": len(self.model.layers),
                "max_context_tokens": self.model.max_context_tokens,
                "parameters": {
                    "total": parameters.total,
                    "active": parameters.active,
                    "active_without_embedding": parameters.active_without_embedding,
                    "active_without_embeddings": parameters.active_without_embeddings,
                    "mtp": parameters.mtp,
                },
                "source": {"cite": self.model.source, "date": self.model.source_date},
            },
            "workload": {
                "batch": self.workload.batch,
                "context_tokens": self.workload.context_tokens,
                "query_tokens": self.workload.query_tokens,
                "mtp": self.mtp,
            },
            "precision": {
                "kv": precision.kv.name,
                "index": precision.index.name,
                "state": precision.state.name,
                "weights": self.weights_name,
                "weights_by_part": {} if self.weights_dtype else dict(self.model.weight_formats),
            },
            "engine": {
                "name": self.layout.name,
                "block_tokens": self.layout.block_tokens,
                "notes": list(self.layout.notes),
            },
            "parallel": {name: getattr(self.parallelism, name) for name in ("tp", "pp", "dp", "dcp", "ep")},
            "cache": self._cache_json(),
            "decode": self._phase_json(DECODE),
            "prefill": self._phase_json(PREFILL),
            "gpu": self.gpu_json(),
            "memory": self._memory_json(),
            "warnings": self.warnings,
        }

    def _cache_json(self) -> Json:
        cache = self.cache
        return {
            "elements_per_token": exact(cache.elements_per_token),
            "index_elements_per_token": exact(cache.index_elements_per_token),
            "bytes_per_token": exact(cache.bytes_per_token),
            "bytes_per_period": cache.bytes_per_period,
            "period_tokens": cache.period_tokens,
            "constant_bytes_per_sequence": cache.constant_bytes_per_sequence,
            "stored_bytes": cache.stored_bytes,
            "allocated_bytes": cache.allocated_bytes,
            "per_rank": {
                "bytes_per_token": exact(cache.per_rank.bytes_per_token),
                "stored_bytes": cache.per_rank.stored_bytes,
                "allocated_bytes": cache.per_rank.allocated_bytes,
                "stage": cache.per_rank.stage,
            },
            "replication_factor": exact(cache.replication_factor),
            "components": [
                {
                    "name": component.name,
                    "role": component.role.value,
                    "attention": item.attention.label,
                    "layers": item.count,
                    "heads": component.heads,
                    "width": component.width,
                    "format": item.record.format.name,
                    "slots": component.slots.stored(self.workload.context_tokens),
                    "record_bytes": item.record.bytes_per_slot,
                }
                for item in cache.records
                for component in item.record.components
            ],
        }

    def _phase_json(self, phase: str) -> Json:
        work, traffic = self.attention(phase), total(self.terms[phase])
        attention: Json = {
            "flop": work.flop,
            "read_bytes": work.read_bytes,
            "query_output_bytes": work.query_output_bytes,
            "flop_per_byte": work.flop / work.read_bytes if work.read_bytes else None,
        }
        if work.alternatives is not None:
            attention["form"] = work.form
            attention["absorbed"] = {"flop": work.alternatives.absorbed_flop}
            attention["expanded"] = {
                "flop": work.alternatives.expanded_flop,
                "decompress_flop": work.alternatives.decompress_flop,
                "elements_per_token": work.alternatives.expanded_elements_per_token,
            }
        return {
            "attention": attention,
            "indexer": {"flop": work.index_flop} if self.cache.index_elements_per_token else None,
            "step": {"flop": traffic.flop, "read_bytes": traffic.read_bytes, "write_bytes": traffic.write_bytes},
            "time": self._time_json(phase),
        }

    def _time_json(self, phase: str) -> Json | None:
        bound = self.rooflines.get(phase)
        if bound is None:
            return None
        expected = self.predictions[phase]
        interval = expected.interval_s
        return {
            "roofline_s": bound.roofline_s,
            "expected_s": expected.expected_s,
            "interval_s": None if interval is None else list(interval),
            "expected_note": expected.unknown or expected.of or "",
            "calibrations": [
                {"family": kernel.family.name, "origin": kernel.origin, "parameters": dict(kernel.values)}
                for kernel in expected.kernels
            ],
            "expected_terms": [
                {
                    "name": part.name,
                    "detail": part.detail,
                    "expected_s": part.seconds,
                    "interval_s": [part.seconds * part.low, part.seconds * part.high],
                }
                for part in expected.parts
            ],
            "bound": bound.bound,
            "terms": [
                {
                    "name": timed.term.name,
                    "detail": timed.term.detail,
                    "layers": timed.term.layers,
                    "flop": timed.term.traffic.flop,
                    "read_bytes": timed.term.traffic.read_bytes,
                    "write_bytes": timed.term.traffic.write_bytes,
                    "memory_s": timed.memory_s,
                    "compute_s": timed.compute_s,
                    "compute_dtype": timed.compute,
                    "ridge_flop_per_byte": timed.ridge_flop_per_byte,
                    "bound": timed.bound,
                }
                for timed in bound.terms
            ],
        }

    def gpu_json(self) -> Json | None:
        """The GPU as its datasheet states it; None without one."""
        if self.gpu is None:
            return None
        return {
            "slug": self.gpu.slug,
            "name": self.gpu.name,
            "memory_reported_bytes": self.gpu.memory_reported_bytes,
            "memory_bandwidth_bytes_per_s": self.gpu.memory_bandwidth_bytes_per_s,
            "peak_flop_per_s": dict(self.gpu.peak_flop_per_s),
        }

    def _memory_json(self) -> Json | None:
        if self.memory is None:
            return None
        return {
            "usable_bytes_per_gpu": self.memory.usable_bytes,
            "memory_utilization": self.memory_utilization,
            "weights_bytes_per_gpu": self.memory.weights_bytes_per_gpu,
            "weight_copies_bytes_per_gpu": self.memory.weight_copies_bytes_per_gpu,
            "cache_bytes_per_gpu": self.memory.cache_bytes_per_gpu,
            "fits": self.memory.fits,
            "max_batch": self.memory.max_batch,
            "max_context_tokens": self.memory.max_context_tokens,
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class AttentionWork:
    """One step's attention, all cached layers, whole batch, one full copy.

    flop        QK and PV and state updates in the phase's form; no softmax, projections, absorption or index scores
    read_bytes  each cache entry that the step needs, once
    """

    flop: int
    read_bytes: int
    query_output_bytes: int
    index_flop: int
    form: str
    alternatives: "Forms | None"


@dataclass(frozen=True, kw_only=True, slots=True)
class Forms:
    """MLA's two forms: what each computes, and what the expanded one would keep."""

    absorbed_flop: int
    expanded_flop: int
    decompress_flop: int
    expanded_elements_per_token: int


@dataclass(frozen=True, kw_only=True, slots=True)
class ComparisonRow:
    """One model of a comparison, with the first one to measure it against."""

    estimate: Estimate
    first: Estimate

    @property
    def ratio(self) -> Fraction | None:
        """Bytes a token over the first row's; None where the first row's cache does not grow."""
        base = self.first.cache.bytes_per_token
        return self.estimate.cache.bytes_per_token / base if base else None

    @property
    def decode_attention_flop_per_token(self) -> int:
        """Attention FLOPs of one decoded token at the row's context."""
        workload = self.estimate.workload
        return self.estimate.attention(DECODE).flop // (workload.batch * workload.query_tokens)

    @property
    def decode_index_flop_per_token(self) -> int:
        """FLOPs of its index scores."""
        workload = self.estimate.workload
        return self.estimate.attention(DECODE).index_flop // (workload.batch * workload.query_tokens)

    def to_json(self) -> Json:
        estimate, decode = self.estimate, self.estimate.rooflines.get(DECODE)
        prefill, expected = estimate.rooflines.get(PREFILL), estimate.predictions.get(DECODE)
        interval = expected.interval_s if expected else None
        return {
            "model": estimate.model.name,
            "attention": ", ".join(estimate.model.attention_labels),
            "elements_per_token": exact(estimate.cache.elements_per_token),
            "bytes_per_token": exact(estimate.cache.bytes_per_token),
            "ratio": None if self.ratio is None else float(self.ratio),
            "constant_bytes_per_sequence": estimate.cache.constant_bytes_per_sequence,
            "stored_bytes": estimate.cache.stored_bytes,
            "context_tokens": estimate.workload.context_tokens,
            "batch": estimate.workload.batch,
            "kv": estimate.layout.precision.kv.name,
            "decode_attention_flop_per_token": self.decode_attention_flop_per_token,
            "decode_index_flop_per_token": self.decode_index_flop_per_token,
            "parameters": estimate.model.parameters.total,
            "decode_roofline_s": decode.roofline_s if decode else None,
            "decode_expected_s": expected.expected_s if expected else None,
            "decode_interval_s": None if interval is None else list(interval),
            "decode_bound": decode.bound if decode else None,
            "prefill_roofline_s": prefill.roofline_s if prefill else None,
            "max_batch": estimate.memory.max_batch if estimate.memory else None,
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """Models side by side."""

    rows: tuple[ComparisonRow, ...]

    @property
    def warnings(self) -> list[str]:
        return [f"{row.estimate.model.name}: {text}" for row in self.rows for text in row.estimate.warnings]

    def to_json(self) -> Json:
        """The object of schema `kvcalc.compare/1`."""
        return {
            "schema": "kvcalc.compare/1",
            "gpu": self.rows[0].estimate.gpu_json(),
            "rows": [row.to_json() for row in self.rows],
            "warnings": self.warnings,
        }
