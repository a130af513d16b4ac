"""Many estimates at once: rows of a sweep, streamed as CSV, JSON lines, a table or Markdown."""

import json as json_module
import os
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import IO

from kvcalc import api
from kvcalc.commands.output import choose_format, emit, warn
from kvcalc.commands.progress import Progress
from kvcalc.errors import UsageError
from kvcalc.report.page import Page, Table
from kvcalc.sweep import Row, Space, Sweep
from kvcalc.units import memory, seconds
from kvcalc.workload import Parallelism

BATCH_ROWS = 5_000
"""Rows that are made and written at a time."""
MOST_SHOWN = 10_000
"""Rows of a table for people; a longer sweep is for a machine."""


def run(
    spec: str,
    *,
    batches: list[int],
    contexts: list[int] | None,
    query_tokens: list[int],
    gpu: str | None,
    engine: str,
    block_tokens: int | None,
    kv_dtype: str | None,
    index_dtype: str | None,
    state_dtype: str | None,
    weights_dtype: str | None,
    tp: int,
    pp: int,
    dp: int,
    dcp: int,
    ep: int,
    mtp: bool,
    memory_utilization: float | None,
    prefix_caching: bool | None,
    max_batched_tokens: int | None,
    fail_if_oom: bool,
    as_bytes: bool,
    format: str | None,
    json: bool,
    output: Path | None,
) -> int:
    """Write the rows; the exit code is 1 where all must fit and one does not."""
    model = api.load_model(spec)
    api.check_weights_dtype(weights_dtype)
    mix = Parallelism(tp=tp, pp=pp, dp=dp, dcp=dcp, ep=ep)
    device = api.load_gpu(gpu) if gpu else None
    utilization = api.default_utilization(engine) if memory_utilization is None else memory_utilization
    if not 0 < utilization <= 1:
        raise UsageError(f"memory utilization is {utilization}; it must be above 0 and at most 1")
    space = Space(batches=batches, contexts=contexts or [api.default_context(model)], query_tokens=query_tokens)
    sweep = Sweep(
        model=model,
        layout_for=lambda query: api.layout_for(
            model,
            engine=engine,
            block_tokens=block_tokens,
            kv_dtype=kv_dtype,
            index_dtype=index_dtype,
            state_dtype=state_dtype,
            parallelism=mix,
            gpu=device,
            prefix_caching=prefix_caching,
            max_batched_tokens=max_batched_tokens,
            speculative_tokens=query - 1,
        ),
        parallelism=mix,
        space=space,
        gpu=device,
        usable_bytes=int(device.memory_reported_bytes * utilization) if device else 0,
        weights_dtype=weights_dtype,
        mtp=mtp,
    )
    above = [context for context in space.contexts if context > model.max_context_tokens]
    if above:
        warn([f"{len(above):,} contexts are above the model's maximum {model.max_context_tokens:,}"])
    fits = write(sweep, format=format, json=json, output=output, as_bytes=as_bytes)
    return 1 if fail_if_oom and not fits else 0


def write(sweep: Sweep, *, format: str | None, json: bool, output: Path | None, as_bytes: bool) -> bool:
    """Write all rows; whether every one fits."""
    chosen = choose_format(format, json=json, output=output)
    if format is None and chosen == "text":  # a pipe: rows are for a machine
        chosen = "csv"
    if chosen not in ("csv", "json"):
        return _write_page(sweep, format=chosen, output=output, as_bytes=as_bytes)
    if output is None:
        return _stream(sweep, sys.stdout, chosen)
    temporary = output.with_name(f".{output.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8", newline="") as out:
            fits = _stream(sweep, out, chosen)
        os.replace(temporary, output)
    except OSError as error:
        raise UsageError(f"can't write '{output}': {error.strerror}") from error
    finally:
        temporary.unlink(missing_ok=True)
    return fits


def _stream(sweep: Sweep, out: IO[str], format: str) -> bool:
    """Rows as they are made, some thousands at a time."""
    columns, total, done, fits = sweep.columns, sweep.space.rows, 0, True
    place = columns.index("fits") if "fits" in columns else None
    if format == "csv":
        out.write(",".join(columns) + "\n")
    with Progress() as progress:
        for rows in _parts(sweep.rows()):
            if format == "csv":
                out.write("".join(",".join(map(str, row)) + "\n" for row in rows))
            else:
                out.write("".join(json_module.dumps(dict(zip(columns, row, strict=True))) + "\n" for row in rows))
            fits = fits and (place is None or all(row[place] for row in rows))
            done += len(rows)
            if total > BATCH_ROWS:
                progress.show(done, total, "rows")
    out.flush()
    return fits


def _parts(rows: Iterator[Row]) -> Iterator[list[Row]]:
    while part := list(islice(rows, BATCH_ROWS)):
        yield part


def _write_page(sweep: Sweep, *, format: str, output: Path | None, as_bytes: bool) -> bool:
    if sweep.space.rows > MOST_SHOWN:
        raise UsageError(
            f"{sweep.space.rows:,} rows are too many for a {format}", hint="add --format csv, or --format json"
        )
    rows = list(sweep.rows())
    columns = list(sweep.columns)
    table = Table(
        title="",
        columns=[name.removesuffix("_bytes").removesuffix("_s").replace("_", " ") for name in columns],
        right=frozenset(name.removesuffix("_bytes").removesuffix("_s").replace("_", " ") for name in columns)
        - {"bound"},
        rows=[[_cell(name, value, as_bytes) for name, value in zip(columns, row, strict=True)] for row in rows],
    )
    where = f" on {sweep.gpu.name}" if sweep.gpu else ""
    page = Page(title=f"{sweep.model.title}{where}: {len(rows):,} workloads", blocks=[table])
    emit(dict, lambda: page, format=format, output=output)
    place = columns.index("fits") if "fits" in columns else None
    return place is None or all(row[place] for row in rows)


def _cell(name: str, value: int | float | str | bool, as_bytes: bool) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if name.endswith("_bytes"):
        return memory(int(value), as_bytes=as_bytes)
    if name == "roofline_s":
        return seconds(float(value))
    return f"{value:,}" if isinstance(value, int | float) else value
