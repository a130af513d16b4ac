"""Expected time of a whole step on one rank: calibrated attention, and all around it from achieved rates.

    attention     the calibrated call of each attention, once a layer (kvcalc.timing.attention_time); under a selection
                  the index scores are such a call over all index keys, and picking the top k a pass over the scores
    weights       each product launches, then streams its weights at an achieved share of the bandwidth or multiplies at
                  an achieved share of the peak, rows padded to 64: launch + norm_3(bytes / (f BW), FLOP / (g peak))
    element-wise  norms, rotary embedding, activation, residuals: small kernels in a CUDA graph, a fixed time a layer
    all-reduce    two a layer under tensor parallelism: latency + 2 (n - 1) / n x bytes / (share x link)
    sampling      what the host and the sampler add to a step, and for each of its sequences
    prefills      `aggregated` serving: other requests' prompts run on the same GPUs; with B sequences of
                  `output_tokens` each, B / output_tokens prompts a step

The constants around attention are of an architecture and round: GEMM launch and rates from aiconfigurator-core 0.12.0's
GEMM tables (bf16, TensorRT-LLM: launch 2.6 to 3.3 us, 0.74 to 0.82 of the bandwidth, 0.69 to 0.79 of the peak; the form
is 10 to 14 % off its rows on average), the others from its all-reduce tables and served points. A prediction of the sum
says how wide it may be off: attention's own interval, and REST_LOW to REST_HIGH for all else.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from kvcalc.architecture.attention import (
    Attention,
    Component,
    GroupedAttention,
    LatentAttention,
    Role,
    SelectedAttention,
)
from kvcalc.architecture.layout import tokens_on_rank
from kvcalc.errors import UsageError
from kvcalc.hardware import Gpu
from kvcalc.sizing import attention_counts
from kvcalc.timing.attention_time import AttentionCase
from kvcalc.timing.calibrated import UNSEEN_SCALE, CalibratedKernel, Calibration, choose
from kvcalc.timing.roofline import compute_format
from kvcalc.timing.step import ACTIVATION_BYTES, DECODE, Step, Term

PRODUCT_LAUNCH_S = 3e-6
BANDWIDTH_FRACTION = 0.80
MATRIX_FRACTION = {"Hopper": 0.79, "Ampere": 0.85, "Ada Lovelace": 0.75, "Blackwell": 0.70, "Blackwell Ultra": 0.70}
OTHER_MATRIX_FRACTION = 0.6
PRODUCT_ROWS = 64
ELEMENTWISE_LAYER_S = 8e-6
REDUCE_LATENCY_S = 7e-6
REDUCE_LINK_FRACTION = 0.6
SAMPLING_S = 0.6e-3
SEQUENCE_S = 10e-6
PREFILL_ATTENTION_FRACTION = 0.55
REST_LOW, REST_HIGH = 0.8, 1.35
LAUNCHES = {
    "projections": 2,
    "projections MLA": 6,
    "feed forward": 2,
    "experts": 4,
    "MoE shared experts": 2,
    "MoE router": 2,
    "head": 1,
    "embedding": 1,
    "norms and other": 0,
}
"""Kernels of a part in one layer: fused projections; MLA's absorbed products; grouped experts with their routing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TimedPart:
    """One part of a step: seconds of all its layers, the interval's factors on them, and how it came about.

    symbols, formula  the sum in words, and with its numbers, which give `seconds`
    kernel            what an attention's call was timed with
    """

    name: str
    detail: str
    seconds: float
    low: float
    high: float
    symbols: str
    formula: str
    source: str
    kernel: CalibratedKernel | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class StepTime:
    """The expected time of a step. `unknown` says why there is none, where an attention is not calibrated."""

    parts: tuple[TimedPart, ...] = ()
    unknown: str | None = None

    @property
    def kernels(self) -> tuple[CalibratedKernel, ...]:
        """The calibrated kernels behind the parts, each once."""
        return tuple({part.kernel.origin: part.kernel for part in self.parts if part.kernel is not None}.values())

    @property
    def expected_s(self) -> float | None:
        return None if self.unknown else sum(part.seconds for part in self.parts)

    @property
    def interval_s(self) -> tuple[float, float] | None:
        """Its 90 % interval: the parts' own ends added up, as if all were off to one side."""
        if self.unknown:
            return None
        return sum(part.seconds * part.low for part in self.parts), sum(part.seconds * part.high for part in self.parts)


def step_time(
    step: Step,
    terms: Sequence[Term],
    gpu: Gpu,
    calibrations: Sequence[Calibration],
    *,
    prefill: "StepTime | None" = None,
    output_tokens: int | None = None,
) -> StepTime:
    """The expected time of a step of one rank.

    terms          the rank's terms of the step
    prefill        expected time of one request's prompt, for aggregated serving of `output_tokens` a request
    """
    if gpu.num_sms is None:
        return StepTime(unknown=f"{gpu.slug} states no number of SMs")
    if not calibrations:
        return StepTime(unknown=f"no calibration of {gpu.slug}: `kvcalc calibrate` makes one from measured points")
    parts: list[TimedPart] = []
    layers = step.model.distinct_layers + (step.model.distinct_mtp_layers if step.mtp else ())
    bounds = {(term.name, term.detail): _roofline_s(term, gpu) for term in terms}
    for attention, count in attention_counts(layers).items():
        if (unknown := _not_modelled(attention)) is not None:
            return StepTime(unknown=unknown)
        if step.phase != DECODE:
            continue
        found = list(_attention(step, attention, count, gpu, calibrations))
        unknown = next((each for each in found if isinstance(each, str)), None)
        if unknown is not None:
            return StepTime(unknown=unknown)
        parts += [_not_below(each, bounds) for each in found if isinstance(each, TimedPart)]
    for term in terms:
        if term.name in ("attention", "index scores"):
            if step.phase != DECODE:
                parts.append(_prefill_attention(term, gpu))
        else:
            parts.append(_products(term, step, gpu))
    parts += _around(step, sum(count for _, count in layers), gpu)
    if prefill is not None and output_tokens is not None and prefill.expected_s is not None:
        share = step.sequences / output_tokens
        parts.append(
            _part(
                "other prefills",
                f"{share:.3g} prompts a step",
                share * prefill.expected_s,
                "sequences / output tokens x time of a prompt",
                f"{step.sequences} sequences / {output_tokens} output tokens x {_us(prefill.expected_s)}",
                "aggregated serving: prompts run on the GPUs that decode",
            )
        )
    return StepTime(parts=tuple(parts))


def _roofline_s(term: Term, gpu: Gpu) -> float:
    """What no kernel can be faster than: the datasheet's bound of a term."""
    peak = gpu.peak(compute_format(term.compute, gpu))
    return max(term.traffic.moved_bytes / gpu.memory_bandwidth_bytes_per_s, term.traffic.flop / peak)


def _not_below(part: TimedPart, bounds: Mapping[tuple[str, str], float]) -> TimedPart:
    """A part and its interval held above its roofline: a fit knows no datasheet far from its points."""
    bound = bounds.get((part.name, part.detail), 0.0)
    seconds = max(part.seconds, bound)
    if not seconds:
        return part
    formula = part.formula if seconds == part.seconds else f"{seconds:.9g}"
    return replace(part, seconds=seconds, low=max(part.low, bound / seconds), formula=formula)


def _not_modelled(attention: Attention) -> str | None:
    """Why there is no time of an attention, or None where there is a model of its kernels."""
    base = attention.base if isinstance(attention, SelectedAttention) else attention
    entries = all(c.role.is_cache_entry or c.role is Role.INDEX for c in attention.components())
    if isinstance(base, LatentAttention | GroupedAttention) and entries:
        return None
    return f"no kernel of {attention.label} is modelled"


def _part(name: str, detail: str, seconds: float, symbols: str, formula: str, source: str) -> TimedPart:
    return TimedPart(
        name=name,
        detail=detail,
        seconds=seconds,
        low=REST_LOW,
        high=REST_HIGH,
        symbols=symbols,
        formula=formula,
        source=source,
    )


def _us(seconds: float) -> str:
    return f"{seconds * 1e6:.6f} us / 1,000,000"


def _attention(
    step: Step, attention: Attention, count: int, gpu: Gpu, calibrations: Sequence[Calibration]
) -> Iterator[TimedPart | str]:
    """The calibrated calls of one attention of all its layers, or the reason why there is no time."""
    base = attention.base if isinstance(attention, SelectedAttention) else attention
    kind = "mla" if isinstance(base, LatentAttention) else base.kind
    components = attention.components()
    entries = tuple(component for component in components if component.role.is_cache_entry)
    index = tuple(component for component in components if component.role is Role.INDEX)
    case = attention_case(step, attention, entries)
    try:
        kernel = choose(
            kind,
            shared_heads=case.n_heads > case.n_kv_heads,
            eight_bit=bool(case.eight_bit),
            gpu=gpu,
            calibrations=calibrations,
        )
    except UsageError as error:  # the calibrated family has no kernel of this kind
        yield error.message
        return
    if not kernel.fitted:
        width = "8-bit" if case.eight_bit else "16-bit"
        yield f"no calibration of {gpu.slug} has the kernel of {attention.label} with a {width} cache"
        return
    usual = not index and step.query_tokens == 1 and entries[0].slots.spans_context
    yield _call("attention", attention, case, kernel, count, 1.0 if usual else UNSEEN_SCALE)
    if index:
        scores = attention_case(step, attention, index)
        yield _call("index scores", attention, scores, kernel, count, UNSEEN_SCALE)
        passes = 8 * scores.batch * scores.query_tokens * scores.context_tokens
        stream_s = passes / (BANDWIDTH_FRACTION * gpu.memory_bandwidth_bytes_per_s)
        yield _part(
            "top k",
            attention.label,
            count * (PRODUCT_LAUNCH_S + stream_s),
            "layers x (launch + scores written and read)",
            _sum(count, PRODUCT_LAUNCH_S, stream_s),
            attention.source,
        )


def _sum(count: int, *each_s: float) -> str:
    """`61 x (3 us + 0.7 us) / 1,000,000`."""
    return f"{count} x ({' + '.join(f'{seconds * 1e6:.6f} us' for seconds in each_s)}) / 1,000,000"


def attention_case(step: Step, attention: Attention, components: tuple[Component, ...]) -> AttentionCase:
    """The call of one layer on the busiest rank, against these components of an attention."""
    parallelism, first = step.parallelism, components[0]
    shards = parallelism.kv_shards
    kv_heads = first.heads_on_rank(shards)
    records = [record for record in step.layout.records(attention, shards=shards) if record.components[0] in components]
    share = tokens_on_rank(records[0], step.workload.context_tokens, parallelism.dcp)
    read = records[0].slots.read(share, min(share, step.query_tokens))
    size = sum(record.bytes_per_slot for record in records)
    index = first.role is Role.INDEX
    heads = first.query_heads if index else -(-first.query_heads // shards)
    elements = sum(component.heads_on_rank(shards) * component.width for component in components)
    return AttentionCase(
        batch=step.sequences,
        n_heads=max(heads, kv_heads),
        n_kv_heads=kv_heads,
        context_tokens=read,
        query_tokens=step.query_tokens,
        entry_bytes=size / kv_heads,
        flop_per_pair=sum(component.flop_per_pair for component in components),
        value_elements=1 if index else components[-1].width if first.role is Role.KEY else first.width,
        query_output_elements=first.width if index else attention.query_output_elements / first.query_heads,
        eight_bit=size < 1.5 * elements,
    )


def _call(
    name: str, attention: Attention, case: AttentionCase, kernel: CalibratedKernel, count: int, scale: float
) -> TimedPart:
    time = kernel.time(case)
    low, high = kernel.interval.scaled(scale).factors(case.cache_bytes)
    terms = {
        "launch": time.launch_s,
        "queries": time.queries_s,
        "items and tiles": time.items_s + time.tiles_s + time.overlapped_s,
        "cold": time.cold_s,
        "combine": time.combine_s,
    }
    spelled = " + ".join(f"{seconds * 1e6:.6f} {label}" for label, seconds in terms.items())
    return TimedPart(
        name=name,
        detail=attention.label,
        seconds=count * time.total_s,
        low=low,
        high=high,
        symbols=f"layers x ({' + '.join(terms)})",
        formula=f"{count} layers x ({spelled}) us / 1,000,000",
        source=kernel.origin,
        kernel=kernel,
    )


def _products(term: Term, step: Step, gpu: Gpu) -> TimedPart:
    label = "projections MLA" if term.name == "projections" and "MLA" in term.detail else term.name
    launches = term.layers * LAUNCHES.get(label, 2)
    rows = max(1, step.tokens)
    padded = term.traffic.flop * (-(-rows // PRODUCT_ROWS) * PRODUCT_ROWS / rows)
    peak = gpu.peak(compute_format(term.compute, gpu))
    share = MATRIX_FRACTION.get(gpu.architecture, OTHER_MATRIX_FRACTION)
    memory_s = term.traffic.moved_bytes / (BANDWIDTH_FRACTION * gpu.memory_bandwidth_bytes_per_s)
    matrix_s = padded / (share * peak)
    work_s = (memory_s**3 + matrix_s**3) ** (1 / 3)
    return _part(
        term.name,
        term.detail,
        launches * PRODUCT_LAUNCH_S + work_s,
        f"launches + norm of weights at {BANDWIDTH_FRACTION:g} of the bandwidth and products at {share:g} of the peak",
        f"{launches} launches x {_us(PRODUCT_LAUNCH_S)} + {_us(work_s)}",
        "achieved rates of dense products, aiconfigurator-core 0.12.0 gemm tables",
    )


def _prefill_attention(term: Term, gpu: Gpu) -> TimedPart:
    rate = PREFILL_ATTENTION_FRACTION * gpu.peak(compute_format(term.compute, gpu))
    memory_s = term.traffic.moved_bytes / (BANDWIDTH_FRACTION * gpu.memory_bandwidth_bytes_per_s)
    work_s = max(memory_s, term.traffic.flop / rate)
    return _part(
        term.name,
        term.detail,
        term.layers * PRODUCT_LAUNCH_S + work_s,
        f"launches + the larger of bytes and FLOPs at {PREFILL_ATTENTION_FRACTION:g} of the peak",
        f"{term.layers} launches x {_us(PRODUCT_LAUNCH_S)} + {_us(work_s)}",
        "achieved rate of flash attention",
    )


def _around(step: Step, layers: int, gpu: Gpu) -> Iterator[TimedPart]:
    moved = 10 * step.tokens * step.model.hidden_size * ACTIVATION_BYTES
    stream_s = moved / (BANDWIDTH_FRACTION * gpu.memory_bandwidth_bytes_per_s)
    yield _part(
        "element-wise",
        "norms, rotary, activation",
        layers * (ELEMENTWISE_LAYER_S + stream_s),
        "layers x (launches + hidden states moved ten times)",
        _sum(layers, ELEMENTWISE_LAYER_S, stream_s),
        "small kernels in a CUDA graph",
    )
    ranks = step.parallelism.tp
    if ranks > 1 and gpu.link is not None:
        message = step.tokens * step.model.hidden_size * ACTIVATION_BYTES
        link_s = 2 * (ranks - 1) / ranks * message / (REDUCE_LINK_FRACTION * gpu.link.bytes_per_s_per_direction)
        yield _part(
            "all-reduce",
            f"{ranks} ranks",
            2 * layers * (REDUCE_LATENCY_S + link_s),
            f"2 x layers x (latency + hidden states at {REDUCE_LINK_FRACTION:g} of the link)",
            _sum(2 * layers, REDUCE_LATENCY_S, link_s),
            gpu.link.type,
        )
    yield _part(
        "sampling",
        "host and sampler",
        SAMPLING_S + step.sequences * SEQUENCE_S,
        "a time a step + a time a sequence",
        f"{_us(SAMPLING_S)} + {step.sequences} sequences x {_us(SEQUENCE_S)}",
        "served points of aiconfigurator-core 0.12.0, silicon_sample.csv",
    )
