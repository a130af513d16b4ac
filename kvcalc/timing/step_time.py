"""Expected time of a whole step on one rank: calibrated attention, and all around it by shape and message size.

    attention     the calibrated call of each attention, once a layer (kvcalc.timing.attention_time); what a selection
                  of tokens adds to it (kvcalc.timing.selection)
    products      projections, feed-forward, experts, head: by shape (kvcalc.timing.products, kvcalc.timing.gemm); the
                  pass that quantises their rows is taken to be fused with what comes before, as engines do
    element-wise  norms, rotary embedding, activation, residuals: small kernels in a CUDA graph, a fixed time a layer
    exchanges     all-reduces under tensor parallelism; dispatch and combine of experts' tokens under data parallel
                  attention; queries and outputs under decode context parallelism (kvcalc.timing.exchange)
    sampling      what the host and the sampler add to a step, and for each of its sequences
    prefills      aggregated serving: kvcalc.timing.serving

A prediction of the sum says how wide it may be off: attention's interval, EXPERTS, EXCHANGES, and REST for the rest.
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
from kvcalc.architecture.slots import Window
from kvcalc.errors import UsageError
from kvcalc.hardware import Gpu
from kvcalc.sizing import attention_counts
from kvcalc.timing import exchange, gemm, selection
from kvcalc.timing.attention_time import AttentionCase
from kvcalc.timing.calibrated import UNSEEN_SCALE, CalibratedKernel, Calibration, choose
from kvcalc.timing.parts import LAUNCH_S, REST, TimedPart, other_part, sum_each, sum_of, us
from kvcalc.timing.products import INPUT_BYTES, products
from kvcalc.timing.roofline import compute_format
from kvcalc.timing.step import ACTIVATION_BYTES, DECODE, Step, Term

BANDWIDTH_FRACTION = 0.80
ELEMENTWISE_LAYER_S = 8e-6
SUM_BYTES = 4
SAMPLING_S = 0.6e-3
SEQUENCE_S = 10e-6
PREFILL_ATTENTION_FRACTION = 0.55
EXPERTS, EXCHANGES = (0.57, 2.1), (0.7, 1.5)
"""Ends of the 90 % interval as shares of what is expected: of the MoE tables, where engines' kernels differ most; of
the tables of exchanges."""

OTHER_LAUNCHES = {"embedding": 1}
"""Kernels of a part in one layer beside its products: a lookup."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StepTime:
    """The expected time of a step.

    unknown  why there is none, where an attention is not calibrated
    of       which sequences it is of, where not of all that were asked for
    """

    parts: tuple[TimedPart, ...] = ()
    unknown: str | None = None
    of: str | None = None

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
) -> StepTime:
    """The expected time of a step of one rank, of which `terms` are the rank's terms."""
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
            parts.append(_not_below(_products(term, step, gpu), bounds))
    parts += _around(step, terms, sum(count for _, count in layers), gpu)
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
    part = replace(part, low=max(part.low, bound / seconds))
    if seconds == part.seconds:
        return part
    symbols = f"held at the roofline, above the {part.seconds * 1e6:.6f} us of {part.symbols}"
    return replace(part, seconds=seconds, symbols=symbols, formula=f"{seconds:.9g}")


def _not_modelled(attention: Attention) -> str | None:
    """Why there is no time of an attention, or None where there is a model of its kernels."""
    base = attention.base if isinstance(attention, SelectedAttention) else attention
    entries = all(c.role.is_cache_entry or c.role is Role.INDEX for c in attention.components())
    if isinstance(base, LatentAttention | GroupedAttention) and entries:
        return None
    return f"no kernel of {attention.label} is modelled"


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
            engine=step.layout.engine,
        )
    except UsageError as error:  # the calibrated family has no kernel of this kind
        yield error.message
        return
    if not kernel.fitted:
        width = "8-bit" if case.eight_bit else "16-bit"
        yield f"no calibration of {gpu.slug} has the kernel of {attention.label} with a {width} cache"
        return
    selected = isinstance(attention, SelectedAttention)
    if selected and kind == "mla":
        kernel = replace(kernel, values=selection.gathered(kernel.values), origin=f"{kernel.origin}; tokens gathered")
    usual = not selected and step.query_tokens == 1 and entries[0].slots.spans_context
    yield _call("attention", attention, case, kernel, count, 1.0 if usual else UNSEEN_SCALE)
    if isinstance(attention, SelectedAttention) and index:
        scores = attention_case(step, attention, index)
        yield from selection.parts(attention, scores, kernel.machine, count, gpu)


def attention_case(step: Step, attention: Attention, components: tuple[Component, ...]) -> AttentionCase:
    """The call of one layer on the busiest rank, against these components of an attention."""
    parallelism, first = step.parallelism, components[0]
    shards = parallelism.kv_shards
    kv_heads = first.heads_on_rank(shards)
    names = {component.name for component in components}  # an engine may keep more tokens of them than they need
    found = step.layout.records(attention, shards=shards)
    records = [record for record in found if record.components[0].name in names] or list(found)
    share = tokens_on_rank(records[0], step.workload.context_tokens, parallelism.dcp)
    windowed = isinstance(records[0].slots, Window)
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
        history_tokens=share if windowed else 0,
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
    """A term's products by shape, with the kernels beside them; what has none streams its bytes."""
    compute = compute_format(term.compute, gpu)
    peak, launched = gpu.peak(compute), list(products(term, step, compute))
    shapes = [each.product.shape for each in launched]
    is_grouped = term.network is not None and bool(launched)
    kernels: list[tuple[int, float]] = []  # how many, and seconds of each
    if is_grouped:
        rates = gemm.gemm_rates(gpu, launched[0].weights)
        kernels.append((term.layers, gemm.grouped_s([each.product for each in launched], gpu, rates, peak)))
    for each in launched if not is_grouped else ():
        rates = gemm.gemm_rates(gpu, each.weights)
        seconds = gemm.gemm_s(each.product, gpu, rates, peak) + gemm.quantise_s(each.product, gpu, rates, fused=True)
        kernels.append((each.layers, seconds))
    if others := term.layers * OTHER_LAUNCHES.get(term.name, 0):
        kernels.append((others, LAUNCH_S))
    if not shapes:
        kernels.append((1, term.traffic.moved_bytes / (BANDWIDTH_FRACTION * gpu.memory_bandwidth_bytes_per_s)))
    source = gemm.GROUPED_SOURCE if is_grouped else gemm.SOURCE
    return other_part(
        term.name,
        term.detail,
        sum(count * seconds for count, seconds in kernels),
        f"sum of layers x kernel: {'; '.join(shapes)}" if shapes else "launches + bytes streamed",
        sum_of(kernels),
        source if shapes else "a lookup and vectors",
        EXPERTS if is_grouped else REST,
    )


def _prefill_attention(term: Term, gpu: Gpu) -> TimedPart:
    rate = PREFILL_ATTENTION_FRACTION * gpu.peak(compute_format(term.compute, gpu))
    memory_s = term.traffic.moved_bytes / (BANDWIDTH_FRACTION * gpu.memory_bandwidth_bytes_per_s)
    work_s = max(memory_s, term.traffic.flop / rate)
    return other_part(
        term.name,
        term.detail,
        term.layers * LAUNCH_S + work_s,
        f"launches + the larger of bytes and FLOPs at {PREFILL_ATTENTION_FRACTION:g} of the peak",
        f"{term.layers} launches x {us(LAUNCH_S)} + {us(work_s)}",
        "achieved rate of flash attention",
    )


def _around(step: Step, terms: Sequence[Term], layers: int, gpu: Gpu) -> Iterator[TimedPart]:
    moved = 10 * step.tokens * step.model.hidden_size * ACTIVATION_BYTES
    stream_s = moved / (BANDWIDTH_FRACTION * gpu.memory_bandwidth_bytes_per_s)
    yield other_part(
        "element-wise",
        "norms, rotary, activation",
        layers * (ELEMENTWISE_LAYER_S + stream_s),
        "layers x (launches + hidden states moved ten times)",
        sum_each(layers, ELEMENTWISE_LAYER_S, stream_s),
        "small kernels in a CUDA graph",
    )
    yield from _exchanges(step, terms, layers, gpu)
    yield other_part(
        "sampling",
        "host and sampler",
        SAMPLING_S + step.sequences * SEQUENCE_S,
        "a time a step + a time a sequence",
        f"{us(SAMPLING_S)} + {step.sequences} sequences x {us(SEQUENCE_S)}",
        "served points of aiconfigurator-core 0.12.0, silicon_sample.csv",
    )


def _exchanges(step: Step, terms: Sequence[Term], layers: int, gpu: Gpu) -> Iterator[TimedPart]:
    """What the ranks of a stage send each other: sums of hidden states, and experts' tokens to and fro."""
    mix, hidden = step.parallelism, step.model.hidden_size
    dense = sum(term.layers for term in terms if term.name == "feed forward" and term.detail == "dense")
    experts = [term for term in terms if term.network is not None]
    spread = mix.dp > 1  # else all ranks have all tokens, and what experts give is summed with the rest
    reduces = layers + dense + (0 if spread else sum(term.layers for term in experts))
    message = step.tokens * hidden * ACTIVATION_BYTES
    if mix.tp > 1:
        yield from _exchange(
            "all-reduce",
            mix.tp,
            [(reduces, exchange.all_reduce_s(message, mix.tp, gpu))],
            f"sums of {message:,} B of hidden states, after attention and feed-forward",
            gpu,
        )
    if mix.dcp > 1 and step.phase == DECODE:
        for term in terms:
            if term.of is not None and _is_shared(term.of, step):
                yield from _context_exchange(term, term.of, step, gpu)
    for term in experts if spread else ():
        yield from _expert_exchange(term, step, gpu)


def _is_shared(attention: Attention, step: Step) -> bool:
    """Whether ranks hold different tokens of a sequence under decode context parallelism; of a window, all hold all."""
    mix, tokens = step.parallelism, step.workload.context_tokens
    records = step.layout.records(attention, shards=mix.kv_shards)
    return any(tokens_on_rank(record, tokens, mix.dcp) < tokens for record in records)


def _context_exchange(term: Term, attention: Attention, step: Step, gpu: Gpu) -> Iterator[TimedPart]:
    """Ranks that share a sequence's tokens: each needs the others' queries, and their partial outputs are summed.

    As vLLM does it: queries are all-gathered, then the log-sum-exps, and outputs are corrected and reduce-scattered
    (vllm/attention/ops/common.py, cp_lse_ag_out_rs).
    """
    mix = step.parallelism
    elements = step.tokens * attention.query_output_elements * mix.dcp // mix.tp
    sums = step.tokens * attention.components()[0].query_heads * mix.dcp // mix.tp
    each = exchange.all_gather_s(elements * ACTIVATION_BYTES / 2, mix.dcp, gpu)
    scales = exchange.all_gather_s(sums * SUM_BYTES, mix.dcp, gpu)
    yield from _exchange(
        "dcp exchange",
        mix.dcp,
        [(term.layers, each), (term.layers, scales), (term.layers, each)],
        f"layers x (all-gather of queries and of log-sum-exps + reduce-scatter of outputs, {elements:,} elements)",
        gpu,
        of=f"{attention.label}, ",
    )


def _expert_exchange(term: Term, step: Step, gpu: Gpu) -> Iterator[TimedPart]:
    """Tokens of data parallel replicas on their way to the experts and back."""
    mix, network = step.parallelism, term.network
    ranks = mix.tp * mix.dp
    width = (network.latent_size if network is not None else None) or step.model.hidden_size
    sent = INPUT_BYTES.get(compute_format(term.compute, gpu), ACTIVATION_BYTES)
    if mix.ep == 1 or network is None:
        tokens = step.workload.batch * step.query_tokens
        there = exchange.all_gather_s(tokens * width * sent, ranks, gpu)
        back = exchange.all_gather_s(tokens * width * ACTIVATION_BYTES, ranks, gpu)
        symbols = f"layers x (all-gather of {tokens:,} tokens x {width:,} + reduce-scatter of what experts give)"
        yield from _exchange("all-gather", ranks, [(term.layers, there), (term.layers, back)], symbols, gpu)
        return
    active = float(network.active_experts)
    copies = active if step.phase == DECODE else exchange.ranks_reached(mix.ep, active)
    tokens = -(-step.tokens // mix.tp)
    there = exchange.all_to_all_s(tokens * copies * width * sent, mix.ep, gpu)
    back = exchange.all_to_all_s(tokens * copies * width * ACTIVATION_BYTES, mix.ep, gpu)
    symbols = f"layers x (dispatch + combine of {tokens:,} tokens x {copies:.2f} copies x {width:,})"
    yield from _exchange("all-to-all", mix.ep, [(term.layers, there), (term.layers, back)], symbols, gpu)


def _exchange(
    name: str, ranks: int, each: Sequence[tuple[int, float | None]], symbols: str, gpu: Gpu, *, of: str = ""
) -> Iterator[TimedPart]:
    """Exchanges of one kind, each with how many there are; none where a GPU states no link."""
    times = [(count, seconds) for count, seconds in each if seconds is not None]
    if not times:
        return
    yield other_part(
        name,
        f"{of}{ranks} ranks",
        sum(count * seconds for count, seconds in times),
        symbols,
        sum_of(times),
        f"{exchange.link_name(gpu, ranks)}; {exchange.SOURCE}",
        EXCHANGES,
    )
