"""What an estimate says to a person: the page that text, tables and Markdown are made of."""

from kvcalc.explain import explain
from kvcalc.report.page import Block, Facts, Lines, Page, Table
from kvcalc.results import Estimate
from kvcalc.timing.attention_time import PARAMETERS
from kvcalc.timing.calibrated import CalibratedKernel
from kvcalc.timing.step import DECODE, PREFILL, total
from kvcalc.units import exact, flop, memory, number, ratio, seconds


def page(result: Estimate, *, explained: bool = False, as_bytes: bool = False) -> Page:
    """What the estimate says to a person."""
    blocks: list[Block] = [
        _model(result),
        _cache(result, as_bytes),
        _components(result, as_bytes),
        _work(result, as_bytes),
    ]
    if result.gpu is not None:
        blocks += [_time(result), _terms(result, as_bytes), *_expected(result), _memory(result, as_bytes)]
    if explained:
        blocks += _explanations(result)
    return Page(title=f"{result.model.title} ({result.model.name})", blocks=blocks)


def _model(result: Estimate) -> Facts:
    model, parameters, workload, ranks = result.model, result.model.parameters, result.workload, result.parallelism
    precision = result.layout.precision
    rows = [
        ("attention", ", ".join(model.attention_labels), ""),
        (
            "parameters",
            f"{parameters.total / 1e9:,.2f} B",
            f"{parameters.active / 1e9:,.2f} B active, embeddings included",
        ),
        (
            "workload",
            f"batch {workload.batch:,}, context {workload.context_tokens:,} tokens",
            f"{workload.query_tokens} new token{'s' if workload.query_tokens > 1 else ''} a step",
        ),
        ("cache format", precision.kv.name, precision.kv.description),
    ]
    if result.cache.index_elements_per_token:
        rows.append(("index format", precision.index.name, precision.index.description))
    if any(item.record.is_state for item in result.cache.records):
        rows.append(("state format", precision.state.name, precision.state.description))
    rows.append(("weights", result.weights_name, "" if result.weights_dtype else _published_formats(result)))
    blocks = f"blocks of {result.layout.block_tokens:,} tokens" if result.layout.block_tokens > 1 else "no blocks"
    rows.append(("layout", result.layout.name, blocks))
    rows += [("", "", note) for note in result.layout.notes]
    if ranks.gpus > 1:
        mix = f"tp {ranks.tp}, dp {ranks.dp}, pp {ranks.pp}, dcp {ranks.dcp}, ep {ranks.ep}"
        rows.append(("parallel", f"{ranks.gpus} GPUs", mix))
    if model.mtp_layers:
        included = "included" if result.mtp else "left out; --mtp adds them"
        rows.append(("MTP layers", str(len(model.mtp_layers)), included))
    return Facts(title="", rows=rows)


def _published_formats(result: Estimate) -> str:
    formats = result.model.weight_formats
    others = [f"{part} {name}" for part, name in formats.items() if name != formats["default"]]
    return "as published" + (f"; {', '.join(others)}" if others else "")


def _cache(result: Estimate, as_bytes: bool) -> Facts:
    cache, ranks = result.cache, result.parallelism
    growth = f"{number(cache.elements_per_token)} elements"
    if cache.index_elements_per_token:
        growth += f" and {number(cache.index_elements_per_token)} of index keys"
    rows = [("per token", f"{number(cache.bytes_per_token)} B", growth)]
    if cache.period_tokens > 1:
        rows.append(("per period", f"{cache.bytes_per_period:,} B", f"every {cache.period_tokens} tokens"))
    if cache.constant_bytes_per_sequence:
        rows.append(
            (
                "constant",
                memory(cache.constant_bytes_per_sequence, as_bytes=as_bytes),
                "a sequence: states, full windows",
            )
        )
    rows.append(("stored", memory(cache.stored_bytes, as_bytes=as_bytes), "whole batch, one copy"))
    rows.append(("allocated", memory(cache.allocated_bytes, as_bytes=as_bytes), _allocation_note(result)))
    if ranks.gpus > 1:
        rank = cache.per_rank
        rows.append(("per rank, per token", f"{number(rank.bytes_per_token)} B", "on the rank that holds most"))
        rows.append(("per rank, allocated", memory(rank.allocated_bytes, as_bytes=as_bytes), ""))
        copies = "bytes on all ranks of a replica over one copy"
        rows.append(("replication", ratio(float(cache.replication_factor)), copies))
    return Facts(title="KV cache", rows=rows)


def _allocation_note(result: Estimate) -> str:
    if result.layout.name == "generic":
        return "in whole blocks"
    return f"as {result.layout.name} reserves it for requests of this length"


def _components(result: Estimate, as_bytes: bool) -> Table:
    context = result.workload.context_tokens
    return Table(
        title=f"What is kept, a sequence of {context:,} tokens",
        columns=["component", "attention", "layers", "heads x width", "entries", "entry", "total"],
        right=frozenset({"layers", "heads x width", "entries", "entry", "total"}),
        rows=[
            [
                " + ".join(component.name for component in item.record.components),
                item.attention.label,
                str(item.count),
                " + ".join(f"{component.heads} x {component.width:,}" for component in item.record.components),
                f"{item.record.slots.stored(context):,}",
                f"{item.record.bytes_per_slot:,} B",
                memory(item.count * item.record.stored_bytes(context), as_bytes=as_bytes),
            ]
            for item in result.cache.records
        ],
    )


def _work(result: Estimate, as_bytes: bool) -> Facts:
    rows = []
    for phase in (DECODE, PREFILL):
        work, step = result.attention(phase), total(result.terms[phase])
        per_byte = work.flop / work.read_bytes if work.read_bytes else 0.0
        intensity = f", {per_byte:,.{1 if per_byte < 1000 else 0}f} FLOP/B" if work.read_bytes else ""
        read = f"reads {memory(work.read_bytes, as_bytes=as_bytes)}{intensity}"
        form = f" ({work.form})" if work.alternatives else ""
        rows.append((f"{phase} attention{form}", flop(work.flop), read))
        if work.alternatives:
            other = "expanded" if work.form == "absorbed" else "absorbed"
            forms = {"absorbed": work.alternatives.absorbed_flop, "expanded": work.alternatives.expanded_flop}
            rebuild = f"and {flop(work.alternatives.decompress_flop)} to rebuild K and V" if other == "expanded" else ""
            rows.append((f"  the same {other}", flop(forms[other]), rebuild))
        if work.index_flop:
            rows.append((f"{phase} index scores", flop(work.index_flop), ""))
        rows.append(
            (f"{phase} step", flop(step.flop), f"reads {memory(step.read_bytes, as_bytes=as_bytes)} with weights")
        )
    return Facts(title="Work of one step, whole batch, one full copy", rows=rows)


def _time(result: Estimate) -> Facts:
    gpu = result.gpu
    assert gpu is not None
    rows = [
        (
            "GPU",
            gpu.name,
            f"{gpu.memory_bandwidth_bytes_per_s / 1e9:,.0f} GB/s, {gpu.peak('bf16') / 1e12:,.1f} TFLOP/s bf16",
        )
    ]
    rows.append(("ridge point", f"{gpu.ridge_flop_per_byte('bf16'):,.0f} FLOP/B", "bf16; above it, compute bounds"))
    for phase in (DECODE, PREFILL):
        bound = result.rooflines[phase]
        rows.append((f"{phase} roofline", seconds(bound.roofline_s), f"{bound.bound}-bound"))
        expected = result.predictions[phase]
        if expected.expected_s is None or expected.interval_s is None:
            rows.append((f"{phase} expected", "-", expected.unknown or ""))
        else:
            low, high = expected.interval_s
            ground = "attention calibrated, 90 %" if expected.kernels else "achieved rates, a range, not calibrated"
            between = f"{seconds(low)} to {seconds(high)} ({ground})" + (f"; {expected.of}" if expected.of else "")
            rows.append((f"{phase} expected", seconds(expected.expected_s), between))
    return Facts(title="Time: the roofline is the datasheet's bound, expected is what kernels reach", rows=rows)


def _terms(result: Estimate, as_bytes: bool) -> Table:
    return Table(
        title="A decode step by term, one rank: the roofline",
        columns=["term", "layers", "FLOP", "moved", "memory", "compute", "bound", "FLOP/B", "ridge"],
        right=frozenset({"layers", "FLOP", "moved", "memory", "compute", "FLOP/B", "ridge"}),
        rows=[
            [
                timed.term.name + (f" ({timed.term.detail})" if timed.term.detail else ""),
                str(timed.term.layers),
                flop(timed.term.traffic.flop),
                memory(timed.term.traffic.moved_bytes, as_bytes=as_bytes),
                seconds(timed.memory_s),
                seconds(timed.compute_s),
                timed.bound,
                f"{timed.term.traffic.flop / (timed.term.traffic.moved_bytes or 1):,.1f}",
                f"{timed.ridge_flop_per_byte:,.0f}",
            ]
            for timed in result.rooflines[DECODE].terms
        ],
    )


def _expected(result: Estimate) -> list[Block]:
    parts = result.predictions[DECODE].parts
    if result.predictions[DECODE].expected_s is None:
        return []
    return [
        Table(
            title="Where the expected time of a decode step goes, one rank",
            columns=["part", "expected", "low", "high"],
            right=frozenset({"expected", "low", "high"}),
            rows=[
                [
                    part.name + (f" ({part.detail})" if part.detail else ""),
                    seconds(part.seconds),
                    seconds(part.seconds * part.low),
                    seconds(part.seconds * part.high),
                ]
                for part in parts
            ],
        )
    ]


def _copied_weights(result: Estimate, as_bytes: bool) -> str:
    copies = result.memory.weight_copies_bytes_per_gpu if result.memory else 0
    return f"{memory(copies, as_bytes=as_bytes)} of it kv_b_proj again, for absorbed decode" if copies else ""


def _memory(result: Estimate, as_bytes: bool) -> Facts:
    fit, gpu = result.memory, result.gpu
    assert fit is not None
    assert gpu is not None
    share = f"{result.memory_utilization:.0%} of {memory(gpu.memory_reported_bytes)} that the driver reports"
    context, batch = result.workload.context_tokens, result.workload.batch
    rows = [
        ("usable", memory(fit.usable_bytes, as_bytes=as_bytes), share),
        ("weights", memory(fit.weights_bytes_per_gpu, as_bytes=as_bytes), _copied_weights(result, as_bytes)),
        ("cache", memory(fit.cache_bytes_per_gpu, as_bytes=as_bytes), ""),
        ("fits", "yes" if fit.fits else "no", "activations and the runtime's own memory are not counted"),
        ("largest batch", f"{fit.max_batch:,}", f"at context {context:,}, over all GPUs"),
        ("largest context", f"{fit.max_context_tokens:,}", f"tokens, at batch {batch:,}"),
    ]
    return Facts(title="Memory on each GPU", rows=rows)


def _explanations(result: Estimate) -> list[Block]:
    lines = []
    for term in explain(result):
        lines += [f"{term.name}", f"    {term.formula}", f"    {term.substituted}", f"    [{term.source}]"]
    lines.append(f"bytes per token, all records: {number(exact(result.cache.bytes_per_token))} B")
    found: list[Block] = [Lines(title="How each number comes about", lines=lines)]
    prediction = result.predictions.get(DECODE)
    return found + [_parameters(kernel) for kernel in (prediction.kernels if prediction else ())]


def _parameters(kernel: CalibratedKernel) -> Table:
    return Table(
        title=f"Parameters of the attention's time: {kernel.origin}",
        columns=["parameter", "value", "physical range", "meaning"],
        right=frozenset({"value", "physical range"}),
        rows=[
            [
                name,
                f"{kernel.values[name]:.4g} {limits.unit}".strip(),
                f"{limits.low:.3g} to {limits.high:.3g}",
                limits.meaning,
            ]
            for name, limits in PARAMETERS.items()
        ],
    )
