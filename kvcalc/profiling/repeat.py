"""The same run in several fresh processes, because the samples of one process are not independent.

One process has one memory layout, one set of clocks, one moment; what differs from process to process shows only
across them. The processes go one after another, each through all cases and each beginning with another one, so that
the samples of a case lie apart in time. A process that dies costs its own rest: what it had finished is kept.
"""

import multiprocessing
import pickle
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from kvcalc.architecture.model import Model
from kvcalc.errors import KvcalcError
from kvcalc.profiling.kernels.base import Kernel
from kvcalc.profiling.measure.clock import LEAST_MEMORY_SHARE, Timing
from kvcalc.profiling.results import COMPLETE, INTERRUPTED, Measured, Results, Skipped
from kvcalc.profiling.run import Report, Save, run
from kvcalc.profiling.sweep import Request

INTERRUPT_WAIT_S = 10.0


def run_repeated(
    model: Model,
    request: Request,
    *,
    spec: str,
    device: str = "auto",
    command: str = "",
    kernels: Mapping[str, Kernel] | None = None,
    save: Save = lambda results: None,
    report: Report = lambda done, total, label: None,
) -> Results:
    """`run` in `request.repeat_process` fresh processes, their samples put together; each sample keeps its process.

    Raises what `run` raises, and ChildProcessError where not one process left anything behind.
    """
    whole: Results | None = None
    deaths: list[str] = []
    with tempfile.TemporaryDirectory(prefix="kvcalc-") as folder:
        for process in range(request.repeat_process):
            report(process, request.repeat_process, f"process {process + 1}")
            path = Path(folder) / f"{process}.pickle"
            options = {"spec": spec, "device": device, "command": command, "kernels": kernels, "process": process}
            death, interrupted = _in_fresh_process(path, model, request, options)
            part = _read(path)
            if isinstance(part, KvcalcError):
                raise part
            if death is not None:
                deaths.append(f"process {process + 1} of {request.repeat_process} {death}")
            if part is not None:
                _name_rest(part, deaths[-1] if death is not None else None)
                whole = part if whole is None else merged(whole, part)
                whole.processes = process + 1
                save(whole)
            if interrupted or (part is not None and part.state == INTERRUPTED):
                break
    if whole is None:
        raise ChildProcessError("; ".join(deaths) or "no process left a result")
    for death in deaths:
        whole.warn(death)
    save(whole)
    return whole


def merged(whole: Results, part: Results) -> Results:
    """Both as one: samples side by side, the better of the ceilings, and a case is wrong where either says so.

    The samples of a process whose memory never gave two thirds of what it gave to the other are contended.
    """
    best = max(whole.ceilings.read_bandwidth_bytes_per_s, part.ceilings.read_bandwidth_bytes_per_s)
    found = {each.key: each for each in _slow_is_contended(whole, best)}
    for each in _slow_is_contended(part, best):
        found[each.key] = _joined(found[each.key], each) if each.key in found else each
    skipped = {(each.kernel, each.case): each for each in (*whole.skipped, *part.skipped)}
    whole.ceilings.take_better(part.ceilings)
    result = replace(
        whole,
        measured=list(found.values()),
        skipped=[each for key, each in skipped.items() if key not in found or each.failed],
        state=part.state,
    )
    for warning in part.warnings:
        result.warn(warning)
    return result


def _slow_is_contended(results: Results, best_bytes_per_s: float) -> list[Measured]:
    """What was measured, contended where memory was slow all along: as a block's samples are in one process."""
    if results.ceilings.read_bandwidth_bytes_per_s >= LEAST_MEMORY_SHARE * best_bytes_per_s:
        return results.measured
    return [
        replace(
            each, timing=replace(each.timing, samples=tuple(replace(s, contended=True) for s in each.timing.samples))
        )
        if each.timing is not None
        else each
        for each in results.measured
    ]


def _joined(one: Measured, other: Measured) -> Measured:
    if not other.passed:
        return other
    if not one.passed or other.timing is None or one.timing is None:
        return one
    return replace(
        one,
        timing=_joined_timing(one.timing, other.timing),
        note=one.note or other.note,
    )


def _joined_timing(one: Timing, other: Timing) -> Timing:
    return replace(
        one,
        samples=(*one.samples, *other.samples),
        warm_up_calls=one.warm_up_calls + other.warm_up_calls,
        stable=one.stable and other.stable,
    )


def _name_rest(part: Results, death: str | None) -> None:
    """Give what a dead process had not reached its reason."""
    if death is None:
        return
    part.skipped += [Skipped(kernel=kernel, case=case, reason=f"not reached: {death}") for kernel, case in part.pending]
    part.pending, part.state = [], COMPLETE


def _in_fresh_process(path: Path, model: Model, request: Request, options: dict[str, Any]) -> tuple[str | None, bool]:
    """Run once in a new interpreter; how it died, if it did, and whether the user interrupted."""
    process = multiprocessing.get_context("spawn").Process(target=_child, args=(path, model, request, options))
    process.start()
    interrupted = False
    try:
        process.join()
    except KeyboardInterrupt:  # the terminal sends it to the child too, which then saves what it has
        interrupted = True
        process.join(INTERRUPT_WAIT_S)
        if process.is_alive():
            process.terminate()
            process.join()
    code = process.exitcode or 0
    if code < 0:
        return f"was killed by signal {-code}", interrupted
    return (f"ended with exit code {code}" if code else None), interrupted


def _child(path: Path, model: Model, request: Request, options: dict[str, Any]) -> None:
    process = options["process"]
    try:
        run(model, request, save=lambda results: _write(path, _of_process(results, process)), **options)
    except KvcalcError as error:
        _write(path, error)


def _of_process(results: Results, process: int) -> Results:
    """A copy that can be pickled, its samples marked with the process."""
    measured = [
        replace(each, timing=_marked(each.timing, process)) if each.timing is not None else each
        for each in results.measured
    ]
    return replace(results, measured=measured, ceilings=replace(results.ceilings, probes=None))


def _marked(timing: Timing, process: int) -> Timing:
    return replace(timing, samples=tuple(replace(sample, process=process) for sample in timing.samples))


def _write(path: Path, data: Results | KvcalcError) -> None:
    """Whole or not at all."""
    temporary = path.with_suffix(".new")
    temporary.write_bytes(pickle.dumps(data))
    temporary.replace(path)


def _read(path: Path) -> Any:
    """What a child of ours wrote; None where it wrote nothing."""
    return pickle.loads(path.read_bytes()) if path.exists() else None
