"""`kvcalc profile`: real attention kernels on this machine, proved right, timed, and set beside the prediction."""

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvcalc import api
from kvcalc.commands.output import ascii_only, choose_format, emit, warn
from kvcalc.commands.predict import require_numpy
from kvcalc.commands.progress import Progress
from kvcalc.profiling.requirements import need_torch
from kvcalc.report.page import Block, Facts, Lines, Page, Table, bar
from kvcalc.units import memory, parse_list, seconds

if TYPE_CHECKING:
    from kvcalc.profiling.results import Measured, Results

COLUMNS = [
    "kernel",
    "attention",
    "batch",
    "context",
    "KV bytes",
    "time [p20, p80]",
    "GB/s",
    "% of measured",
    "% of datasheet",
    "TFLOP/s",
    "bound",
    "predicted",
    "error",
    "speed, of predicted",
]
BAR_WIDTH = 12
WRONG_EXIT_CODE, NOTHING_EXIT_CODE, INTERRUPTED_EXIT_CODE = 1, 3, 130


def run(
    spec: str,
    *,
    batch: str | None,
    context: str | None,
    tp: int,
    query_tokens: int | None,
    dtype: str | None,
    kv_dtype: str | None,
    kernels: list[str],
    device: str,
    phase: str,
    what_if: str,
    case_ids: list[str],
    quick: bool,
    repeat_process: int,
    seed: int,
    plot: Path | None,
    format: str | None,
    json: bool,
    output: Path | None,
    save_calibration: Path | None = None,
) -> int:
    """Measure and print; the exit code is 1 where a kernel was wrong or died, 3 where nothing could be measured."""
    model = api.load_model(spec)
    chosen = choose_format(format, json=json, output=output)
    need_torch()
    from kvcalc.profiling import plot as picture
    from kvcalc.profiling.repeat import run_repeated
    from kvcalc.profiling.run import run as run_once
    from kvcalc.profiling.sweep import Request

    if plot is not None:
        picture.check_plot(plot)
    if save_calibration is not None:
        require_numpy(fitting=True)
    request = Request(
        phase=phase,
        batches=None if batch is None else tuple(parse_list(batch, name="batch")),
        contexts=None if context is None else tuple(parse_list(context, name="context")),
        query_tokens=query_tokens,
        tp=tp,
        dtype=dtype,
        kv_dtype=kv_dtype,
        kernels=tuple(name for each in kernels for name in each.split(",")) or None,
        what_if=what_if,
        case_ids=tuple(case_ids),
        quick=quick,
        repeat_process=repeat_process,
        seed=seed,
    )

    def show(results: "Results", where: Path | None) -> None:
        emit(
            lambda: _rows(results) if chosen == "csv" else results.to_json(),
            lambda: page(results),
            format=format,
            json=json,
            output=where,
        )

    def save(results: "Results") -> None:
        if output is not None:
            show(results, output)

    measure = run_repeated if repeat_process > 1 else run_once
    with Progress() as progress:
        results = measure(
            model,
            request,
            spec=spec,
            device=device,
            command=shlex.join(["kvcalc", *sys.argv[1:]]),
            save=save,
            report=progress.show,
        )
    warn([*results.warnings, *_suspects(results)])
    if output is None:
        show(results, None)
    if plot is not None and results.timed:
        picture.draw(results, plot)
    if save_calibration is not None:
        from datetime import date

        from kvcalc.commands.save_calibration import save_calibration as save_fit

        save_fit(results, save_calibration, date=date.today().isoformat())
    return exit_code(results)


def _rows(results: "Results") -> dict[str, Any]:
    """For CSV: a row a case."""
    return {"rows": results.to_json()["cases"]}


def _suspects(results: "Results") -> list[str]:
    found = ((each, results.suspect(each)) for each in results.timed)
    return [f"suspect: {each.kernel} {each.planned.case.id}: {reason}" for each, reason in found if reason]


def exit_code(results: "Results") -> int:
    """0 fine, 1 a kernel was wrong or died, 3 every case was skipped, 130 interrupted."""
    if results.state == "interrupted":
        return INTERRUPTED_EXIT_CODE
    if results.wrong or results.failed:
        return WRONG_EXIT_CODE
    return 0 if results.measured else NOTHING_EXIT_CODE


def page(results: "Results") -> Page:
    """What the run says to a person."""
    from kvcalc.profiling.findings import findings

    device = results.environment["device"]
    rank = f", one rank of tp {results.tp}" if results.tp > 1 else ""
    title = f"{results.model.title}: attention of one layer, one call{rank}, on {device['name']}"
    blocks: list[Block] = [_ceilings(results)]
    if results.timed:
        blocks += [_table(results), *_marks(results)]
    if results.wrong:
        blocks.append(Lines(title="WRONG RESULTS (not timed)", lines=[_wrong(each) for each in results.wrong]))
    said = findings(results)
    if said:
        blocks.append(Lines(title="what it means", lines=said))
    if results.skipped:
        blocks.append(Lines(title="skipped", lines=_skipped(results)))
    if results.timed:
        blocks.append(Lines(title="to measure a case again", lines=_lines(results)))
    return Page(title=title, blocks=blocks)


def _ceilings(results: "Results") -> Facts:
    ceilings, device = results.ceilings, results.environment["device"]
    rows = [("read bandwidth", f"{ceilings.read_bandwidth_bytes_per_s / 1e9:,.1f} GB/s", ceilings.read_method)]
    rows.append(("copy bandwidth", f"{ceilings.copy_bandwidth_bytes_per_s / 1e9:,.1f} GB/s", "read and written"))
    for dtype, own in ceilings.matmul_measured_flop_per_s.items():
        rate = ceilings.matmul_flop_per_s(dtype)
        note = "" if rate == own else f"fp32's: its own products run at {own / 1e12:.3g} TFLOP/s"
        rows.append((f"{dtype} matmul", f"{rate / 1e12:,.3g} TFLOP/s", note))
    rows.append(("launch", seconds(ceilings.launch_s), ""))
    cache = memory(device["last_level_cache_bytes"])
    if device["kind"] == "cpu":
        capability = results.environment["cpu"]["capability"]
        rows.append(("CPU", f"{device['threads']} threads", f"one a core; {capability}, last-level cache {cache}"))
    else:
        packages = results.environment["packages"]
        note = f"CUDA {results.environment['cuda']}, torch {packages['torch']}, triton {packages['triton'] or 'N/A'}"
        rows.append(("GPU", f"L2 {cache}", f"driver {device['nvml'].get('driver') or 'N/A'}, {note}"))
    return Facts(title="measured ceilings", rows=rows)


def _table(results: "Results") -> Table:
    columns = [name for name in COLUMNS if name != "% of datasheet" or results.gpu is not None]
    rows = [_row(results, each) for each in results.timed]
    return Table(title="measured", columns=columns, rows=rows, right=frozenset(columns[2:-1]) - {"bound"})


def _row(results: "Results", measured: "Measured") -> list[str]:
    case, work, timing = measured.planned.case, measured.work, measured.timing
    assert timing is not None
    prediction = results.prediction(measured)
    marks = ("*" if results.suspect(measured) else "") + ("~" if timing.contended else "")
    cells = [
        measured.kernel,
        f"{measured.planned.name} x{case.n_heads}" + (f" q{case.query_tokens}" if case.query_tokens > 1 else ""),
        f"{case.batch:,}",
        f"{case.context_tokens:,}",
        memory(case.cache_read_bytes),
        f"{_us(timing.median_s)} us [{_us(timing.p20_s)}, {_us(timing.p80_s)}]{marks}",
        f"{work.bytes / timing.median_s / 1e9:,.1f}",
        f"{results.bandwidth_fraction(measured) or 0:.0%}",
    ]
    if results.gpu is not None:
        cells.append(f"{results.datasheet_fraction(measured) or 0:.0%}")
    return [
        *cells,
        f"{work.flop / timing.median_s / 1e12:.3g}",
        prediction.bound,
        f"{_us(prediction.expected_s)} us",
        f"{prediction.error(timing.median_s):+.0%}",
        bar(prediction.expected_s / timing.median_s, width=BAR_WIDTH, ascii_only=ascii_only()),
    ]


def _marks(results: "Results") -> list[Block]:
    """What the marks behind a time mean, where there are any."""
    lines = []
    if any(results.suspect(each) for each in results.timed):
        lines.append("* above a measured ceiling: not to be believed")
    if any(each.timing is not None and each.timing.contended for each in results.timed):
        lines.append("~ others used the CPU or its memory all along: slower than it is")
    return [Lines(title="", lines=lines)] if lines else []


def _us(value_s: float) -> str:
    value = value_s * 1e6
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def _wrong(measured: "Measured") -> str:
    return (
        f"{measured.kernel} on {measured.planned.case.describe()}: {measured.correctness.reason}; "
        f"again: {measured.reproduce}"
    )


def _skipped(results: "Results") -> list[str]:
    """One line a kernel and reason, with how many cases it was."""
    counts: dict[tuple[str, str, bool], list[str]] = {}
    for each in results.skipped:
        counts.setdefault((each.kernel, each.reason, each.failed), []).append(each.case)
    return [
        ("FAILED " if failed else "")
        + (f"{kernel}, " if kernel != "*" else "")
        + (cases[0] if len(cases) == 1 else f"{len(cases)} cases")
        + f": {reason}"
        for (kernel, reason, failed), cases in counts.items()
    ]


def _lines(results: "Results") -> list[str]:
    """One line; JSON has one for each case."""
    return [results.timed[0].reproduce, "JSON has such a line for every case, and all samples"]
