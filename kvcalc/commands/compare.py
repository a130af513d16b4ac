"""`kvcalc compare`: several models, or one with its attention replaced, in one table."""

from pathlib import Path
from typing import Any

from kvcalc import api
from kvcalc.commands.output import ascii_only, emit, warn
from kvcalc.report.page import Lines, Page, Table, bar
from kvcalc.results import Comparison, ComparisonRow
from kvcalc.timing.step import DECODE
from kvcalc.units import flop, memory, number, ratio, seconds


def run(
    specs: list[str], *, format: str | None, json: bool, output: Path | None, as_bytes: bool, **options: Any
) -> int:
    """Print the comparison."""
    result = api.compare(specs, **options)
    warn(result.warnings)
    emit(result.to_json, lambda: page(result, as_bytes=as_bytes), format=format, json=json, output=output)
    return 0


def page(result: Comparison, *, as_bytes: bool = False) -> Page:
    """What the comparison says to a person."""
    first = result.rows[0].estimate
    timed = first.gpu is not None
    columns = ["model", "attention", "elements", "bytes/token", "ratio", "stored", "decode attention"]
    columns += ["decode roofline", "max batch"] if timed else []
    columns.append("stored, to scale")
    most = max(row.estimate.cache.stored_bytes for row in result.rows)
    rows = [_row(row, most=most, timed=timed, as_bytes=as_bytes) for row in result.rows]
    table = Table(title="", columns=columns, rows=rows, right=frozenset(columns[2:-1]))
    workload = first.workload
    where = f" on {first.gpu.name}" if first.gpu else ""
    note = (
        f"batch {workload.batch:,}, context {workload.context_tokens:,} tokens{where}; elements and bytes are what one "
        "more token adds; decode attention is for one token"
    )
    return Page(title="KV cache compared", blocks=[table, Lines(title="", lines=[note])])


def _row(row: ComparisonRow, *, most: int, timed: bool, as_bytes: bool) -> list[str]:
    estimate = row.estimate
    cells = [
        estimate.model.name,
        ", ".join(estimate.model.attention_labels),
        number(estimate.cache.elements_per_token),
        f"{number(estimate.cache.bytes_per_token)} B",
        "-" if row.ratio is None else ratio(float(row.ratio)),
        memory(estimate.cache.stored_bytes, as_bytes=as_bytes),
        flop(row.decode_attention_flop_per_token) + _index(row),
    ]
    if timed:
        bound = estimate.rooflines[DECODE]
        fit = estimate.memory
        cells += [f"{seconds(bound.roofline_s)} {bound.bound}", f"{fit.max_batch:,}" if fit else "-"]
    return [*cells, bar(estimate.cache.stored_bytes / most if most else 0, ascii_only=ascii_only())]


def _index(row: ComparisonRow) -> str:
    scores = row.decode_index_flop_per_token
    return f" + {flop(scores)} index" if scores else ""
