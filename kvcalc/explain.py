"""Every number of an estimate as a formula, with the numbers put in, unit and source: what `--explain` shows.

Each term's numbers are those of the calculation itself; the text is made from the same components, records and traffic,
so a formula that does not give its value can't be printed without the value being wrong too.
"""

from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any

from kvcalc.architecture.attention import Component, Role
from kvcalc.architecture.layout import Record, RecordCount
from kvcalc.architecture.slots import Window
from kvcalc.results import Estimate
from kvcalc.timing.step import DECODE
from kvcalc.units import exact, number, seconds


@dataclass(frozen=True, kw_only=True, slots=True)
class Explanation:
    """One number: its name, the formula in symbols, the same with numbers, the value, its unit and where it is from."""

    name: str
    formula: str
    substituted: str
    value: int | float
    unit: str
    source: str


def explain(estimate: Estimate) -> list[Explanation]:
    """The terms of an estimate, from the cache entry to the time of a step."""
    terms: list[Explanation] = []
    for item in estimate.cache.records:
        terms += _record(item, estimate)
    terms += _totals(estimate)
    terms += _decode_attention(estimate)
    terms += _step(estimate)
    terms += _times(estimate)
    return terms


def to_json(terms: list[Explanation]) -> list[dict[str, Any]]:
    return [asdict(term) for term in terms]


def _record(item: RecordCount, estimate: Estimate) -> list[Explanation]:
    record, what = item.record, " + ".join(component.name for component in item.record.components)
    growth = record.slots.per_token
    layers = f"{item.count} layer{'s' if item.count != 1 else ''}"
    entry, entry_symbols = _entry(record)
    if growth:
        every = f" / {growth.denominator} tokens" if growth.denominator != 1 else ""
        name, rate, symbols = "cache.bytes_per_token", every, f"layers x {entry_symbols}{every}"
        value: Fraction | int = item.count * record.growth_bytes
    else:
        held = record.slots.stored(estimate.model.max_context_tokens)
        plural = "tokens" if isinstance(record.slots, Window) else "entries"
        rate = f" x {held:,} {plural}" if held != 1 else ""
        name, symbols = "cache.constant_bytes_per_sequence", f"layers x {entry_symbols} x entries"
        value = item.count * held * record.bytes_per_slot
        if not held:
            return []
    return [
        Explanation(
            name=f"{name}: {item.attention.label}, {what}",
            formula=symbols,
            substituted=f"{layers} x {entry}{rate} = {number(value)} B",
            value=exact(value),
            unit="B",
            source=f"{item.attention.source}; {record.format.name}: {record.format.source}",
        )
    ]


def _entry(record: Record) -> tuple[str, str]:
    """One entry's bytes: elements times bytes where the format is uniform, else the record's parts."""
    packing, parts = record.format.packing, record.components
    if packing.elements == 1 and not packing.scale_bytes and not record.format.by_role:
        elements = " + ".join(f"{_width(component)} {component.name}" for component in parts)
        symbols = " + ".join(_symbol(component) for component in parts)
        return f"({elements}) x {packing.bytes} B", f"({symbols}) x bytes_per_element"
    pieces = []
    for component in parts:
        own = record.format.by_role.get(component.role, packing)
        size = own.bytes_for(heads=component.heads, width=component.width)
        pieces.append(f"{size:,} {component.name}")
    if record.format.padding:
        pieces.append(f"{record.format.padding} padding")
    return f"({' + '.join(pieces)}) B", "record bytes"


def _width(component: Component) -> str:
    return f"{component.width:,}" if component.heads == 1 else f"{component.heads:,} x {component.width:,}"


def _symbol(component: Component) -> str:
    return component.symbol if component.heads == 1 else f"heads x {component.symbol}"


def _totals(estimate: Estimate) -> list[Explanation]:
    cache, workload, ranks = estimate.cache, estimate.workload, estimate.parallelism
    batch, context = f"{workload.batch:,} sequence{'s' if workload.batch != 1 else ''}", workload.context_tokens
    per_sequence, allocated = cache.stored_bytes // workload.batch, cache.allocated_bytes
    terms = [
        Explanation(
            name="cache.stored_bytes",
            formula="batch x (sum over records of layers x entries(context) x record bytes)",
            substituted=f"{batch} x {per_sequence:,} B at {context:,} tokens = {cache.stored_bytes:,} B",
            value=cache.stored_bytes,
            unit="B",
            source="one copy",
        ),
        Explanation(
            name="cache.allocated_bytes",
            formula="batch x the same with each context filled up to whole blocks",
            substituted=f"{batch} x {number(Fraction(allocated, workload.batch))} B = {allocated:,} B",
            value=allocated,
            unit="B",
            source=f"blocks of {estimate.layout.block_tokens} tokens: arXiv 2309.06180 sec. 4.2",
        ),
    ]
    if ranks.gpus > 1:
        on_ranks = cache.replication_factor * cache.stored_bytes
        copies = number(cache.replication_factor)
        terms.append(
            Explanation(
                name="cache.replication_factor",
                formula="stored bytes on all ranks of a replica / one copy",
                substituted=f"{number(on_ranks)} B / {cache.stored_bytes:,} B = {copies} copies",
                value=exact(cache.replication_factor),
                unit="copies",
                source="KV heads are spread over tp / dcp ranks, at least one a rank; MLA has one latent for all heads",
            )
        )
    return terms


def _decode_attention(estimate: Estimate) -> list[Explanation]:
    workload = estimate.workload
    context, query, batch = workload.context_tokens, workload.query_tokens, workload.batch
    terms = []
    for item in estimate.cache.records:
        for component in item.record.components:
            pairs = component.slots.pairs(context, query)
            flop = batch * item.count * component.flop(context, query)
            read = batch * item.count * component.slots.read(context, query)
            if flop:
                name = "decode.indexer.flop" if component.role is Role.INDEX else "decode.attention.flop"
                substituted = (
                    f"{batch:,} x {item.count} layers x {component.query_heads} heads x {pairs:,} pairs x "
                    f"{component.flop_per_pair:,} = {flop:,} FLOP"
                )
                terms.append(
                    Explanation(
                        name=f"{name}: {item.attention.label}, {component.name}",
                        formula="batch x layers x query heads x (query, entry) pairs x FLOP a pair",
                        substituted=substituted,
                        value=flop,
                        unit="FLOP",
                        source=item.attention.source,
                    )
                )
        bytes_read = read * item.record.bytes_per_slot
        terms.append(
            Explanation(
                name=f"decode.attention.read_bytes: {item.attention.label}, {item.record.components[0].record}",
                formula="batch x layers x entries read x record bytes",
                substituted=(
                    f"{batch:,} x {item.count} layers x {item.record.slots.read(context, query):,} entries x "
                    f"{item.record.bytes_per_slot:,} B = {bytes_read:,} B"
                ),
                value=bytes_read,
                unit="B",
                source=item.attention.source,
            )
        )
    return terms


def _step(estimate: Estimate) -> list[Explanation]:
    """FLOPs of each part of the step. Attention's stand above, by component; all else is a product with weights."""
    step, terms = estimate.steps[DECODE], []
    for term in estimate.terms[DECODE]:
        flop = term.traffic.flop
        if term.name in ("attention", "index scores"):
            formula, substituted = "as above", f"{flop:,} FLOP"
        else:
            elements = number(Fraction(flop, 2 * step.tokens))
            formula = "2 x weight elements that a token is multiplied by x tokens"
            substituted = f"2 x {elements} x {step.tokens:,} token{'s' if step.tokens > 1 else ''}"
        terms.append(
            Explanation(
                name=f"decode.step: {term.name}{f', {term.detail}' if term.detail else ''}",
                formula=formula,
                substituted=f"{substituted} = {flop:,} FLOP",
                value=flop,
                unit="FLOP",
                source=term.source,
            )
        )
    reads = [term.traffic.read_bytes for term in estimate.terms[DECODE]]
    terms.append(
        Explanation(
            name="decode.step.read_bytes",
            formula="sum over the parts: each weight and each cache entry once",
            substituted=f"({' + '.join(f'{read:,}' for read in reads)}) B = {sum(reads):,} B",
            value=sum(reads),
            unit="B",
            source="weights in the formats of the spec, or of --weights-dtype",
        )
    )
    return terms


def _times(estimate: Estimate) -> list[Explanation]:
    bound, gpu = estimate.rooflines.get(DECODE), estimate.gpu
    if bound is None or gpu is None:
        return []
    bandwidth = gpu.memory_bandwidth_bytes_per_s
    return [
        Explanation(
            name=f"decode.time: {timed.term.name}{f', {timed.term.detail}' if timed.term.detail else ''}",
            formula="max(bytes moved / bandwidth, FLOP / peak) on one rank",
            substituted=(
                f"max({timed.term.traffic.moved_bytes:,} B / {bandwidth / 1e9:,.0f} GB/s, {timed.term.traffic.flop:,} "
                f"FLOP / {gpu.peak(timed.compute) / 1e12:,.1f} TFLOP/s {timed.compute}) = {seconds(timed.roofline_s)}"
            ),
            value=timed.roofline_s,
            unit="s",
            source=f"{gpu.slug}: {gpu.citation('memory_bandwidth_bytes_per_s')}",
        )
        for timed in bound.terms
    ] + [
        Explanation(
            name=f"decode.expected: {part.name}{f', {part.detail}' if part.detail else ''}",
            formula=part.symbols,
            substituted=f"{part.formula} = {seconds(part.seconds)}",
            value=part.seconds,
            unit="s",
            source=part.source,
        )
        for part in estimate.predictions[DECODE].parts
    ]
