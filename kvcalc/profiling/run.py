"""The run: ceilings first, then each kernel on each case: can it, does it fit, is it right, how long does it take.

A kernel is proved right before it is timed; one that is wrong is reported and never timed. Whatever goes wrong on the
way (no memory, a kernel that raises, Ctrl-C) costs that case and no other: after every case the results as they stand
are handed to `save`, those not reached named with the reason, so that what is on disk is valid even if the process is
killed.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from kvcalc.architecture.model import Model
from kvcalc.profiling import kernels as table
from kvcalc.profiling.budget import Budget
from kvcalc.profiling.case import Case
from kvcalc.profiling.correctness import CHUNK_TOKENS, HEADS, check
from kvcalc.profiling.inputs import Inputs, input_bytes, make_inputs
from kvcalc.profiling.kernels.base import Kernel
from kvcalc.profiling.predict import Work, predict
from kvcalc.profiling.reproduce import reproduce_line
from kvcalc.profiling.results import COMPLETE, INTERRUPTED, Measured, Results, Skipped
from kvcalc.profiling.session import Session, datasheet_of, is_out_of_memory, open_session
from kvcalc.profiling.sweep import Planned, Request, plan
from kvcalc.units import memory

Save = Callable[[Results], None]
Report = Callable[[int, int, str], None]
"""Called with how many are done, of how many, and what comes next."""


def run(
    model: Model,
    request: Request,
    *,
    spec: str,
    device: str = "auto",
    command: str = "",
    kernels: Mapping[str, Kernel] | None = None,
    save: Save = lambda results: None,
    report: Report = lambda done, total, label: None,
    process: int = 0,
) -> Results:
    """Measure a model's attention on a device.

    spec     what the model is called by, for the lines that reproduce a case
    kernels  instead of those in the table
    process  which of the fresh processes of a repeated run this is; each begins with another case

    Raises UsageError and NoDeviceError before anything is measured.
    """
    session = open_session(device, quick=request.quick)
    sweep = plan(model, request, session.kind)
    chosen = dict(kernels) if kernels is not None else {}
    for name in request.kernels or (() if chosen else tuple(table.KERNELS)):
        chosen.setdefault(name, table.load(name))
    dtype = request.dtype_on(session.kind)
    budget = Budget(limit_s=request.budget_s(session.kind), rule=session.rule, device_kind=session.kind)
    results = Results(
        model=model,
        tp=request.tp,
        device_kind=session.kind,
        environment=session.environment(),
        ceilings=session.ceilings,
        command=command,
        gpu=datasheet_of(session),
        seed=request.seed,
        warnings=list(sweep.warnings),
        skipped=[Skipped(kernel="*", case=what, reason=reason) for what, reason in sweep.left_out],
    )
    results.environment["kernels"] = {name: kernel.version() for name, kernel in chosen.items()}
    first = process * len(sweep.planned) // max(1, request.repeat_process)
    planned = (*sweep.planned[first:], *sweep.planned[:first])
    results.pending = [(name, each.case.id) for each in planned for name in chosen]
    _Runner(
        session=session,
        results=results,
        budget=budget,
        kernels=chosen,
        request=request,
        spec=spec,
        device=str(session.device),
        dtype=dtype,
        save=save,
        report=report,
    ).go(planned)
    return results


@dataclass(kw_only=True)
class _Runner:
    """The loop over cases and kernels, and what it needs."""

    session: Session
    results: Results
    budget: Budget
    kernels: dict[str, Kernel]
    request: Request
    spec: str
    device: str
    dtype: str
    save: Save
    report: Report
    total: int = 0
    _works: dict[tuple[str, str], Work] = field(default_factory=dict)

    def go(self, planned: tuple[Planned, ...]) -> None:
        for each in planned:
            self._skip_unsupported(each.case)
        self.total = len(self.results.pending)
        try:
            self._tell("ceilings")
            self.session.measure_ceilings(self.dtype)
            self.save(self.results)
            for each, first_only in [(each, first_only) for first_only in (True, False) for each in planned]:
                self._case(each, first_only=first_only)
                if not self.session.is_alive():
                    self._skip_rest("the device no longer answers after an earlier case")
                    break
            self.results.state = COMPLETE
        except KeyboardInterrupt:
            self.results.state = INTERRUPTED
            self._skip_rest("interrupted before it was reached")
        self.save(self.results)

    def _case(self, planned: Planned, *, first_only: bool) -> None:
        """Kernels on one case, over the same inputs.

        With `first_only` one of them: when time is short, every case is met once before any is met again.
        """
        case = planned.case
        runnable = [name for name in self.kernels if (name, case.id) in self.results.pending]
        runnable = [name for name in runnable if self._fits(name, case)][: 1 if first_only else None]
        if not runnable:
            return
        inputs: Inputs | None = None
        for name in runnable:
            reason = self._no_time(name, case, with_inputs=inputs is None)
            if reason:
                self._skip(name, case, reason)
                continue
            self._tell(f"{name} {case.id}")
            try:
                if inputs is None:
                    inputs = make_inputs(case, self.session.device, seed=self.request.seed)
                measured = self._measure(name, planned, inputs)
            except Exception as error:
                self._skip(name, case, _fault(error), failed=not is_out_of_memory(error))
            else:
                self.results.measured.append(measured)
                self._done(name, case)
            self.session.release()
            self.save(self.results)
            if not self.session.is_alive():
                return
        del inputs
        self.session.release()

    def _skip_unsupported(self, case: Case) -> None:
        for name, kernel in self.kernels.items():
            reason = kernel.supports(case, self.session.device)
            if reason is not None:
                self._skip(name, case, reason)

    def _fits(self, name: str, case: Case) -> bool:
        """Whether the memory for it is there; it is skipped where not."""
        workspace = self.kernels[name].workspace_bytes(case, self.session.device)
        held, free = input_bytes(case), self.session.free_bytes()
        extra = max(workspace + self.session.flush_bytes(case), _reference_bytes(case))
        if held + extra > free:
            reason = (
                f"does not fit: {memory(held + extra)} ({memory(held)} of inputs, {memory(extra)} to work in), "
                f"{memory(free)} are free"
            )
            self._skip(name, case, reason)
        return held + extra <= free

    def _no_time(self, name: str, case: Case, *, with_inputs: bool) -> str | None:
        """Why there is no time for it. The first may take all of it: a run that measures nothing is of no use."""
        prediction = predict(self._work(name, case), self.session.ceilings)
        estimate_s = self.budget.kernel_s(name, prediction)
        estimate_s += self.budget.set_up_s(case) if with_inputs else 0.0
        return self.budget.reason_against(estimate_s, is_first=not self.results.measured)

    def _measure(self, name: str, planned: Planned, inputs: Inputs) -> Measured:
        case, kernel, session = planned.case, self.kernels[name], self.session
        work = self._work(name, case)
        call = kernel.prepare(case, inputs)
        measured = Measured(
            planned=planned,
            kernel=name,
            version=kernel.version(),
            form=kernel.form(case),
            work=work,
            correctness=check(case, inputs, call(), form=kernel.form(case)),
            reproduce=reproduce_line(
                self.spec, case, kernel=name, device=self.device, request=self.request, what_if=planned.what_if
            ),
        )
        if not measured.passed:
            return measured
        rule = self.budget.rule_for(len(self.results.pending))
        with session.monitor.watching() as watch:
            measured.timing, measured.note = session.time(call, working_set_bytes=case.cache_read_bytes, rule=rule)
        measured.conditions = watch.conditions
        median_s = measured.timing.median_s
        session.between_cases(self.dtype)
        session.recheck(work, median_s)
        if not measured.timing.contended:
            self.budget.learn(name, predict(work, session.ceilings), median_s)
        self._warn_of(measured)
        return measured

    def _warn_of(self, measured: Measured) -> None:
        for warning in measured.conditions.warnings:
            self.results.warn(f"{warning}: see telemetry of the cases")
        if measured.timing is not None and measured.timing.contended:
            self.results.warn("others used the CPU or its memory all along: some medians are of contended samples")

    def _work(self, name: str, case: Case) -> Work:
        key = (name, case.id)
        if key not in self._works:
            kernel, device = self.kernels[name], self.session.device
            self._works[key] = Work(
                bytes=case.bytes,
                flop=case.flop(kernel.form(case)),
                extra_bytes=kernel.kernel_extra_bytes(case, device),
                extra_flop=kernel.kernel_extra_flop(case, device),
                dtype=case.dtype,
            )
        return self._works[key]

    def _skip(self, name: str, case: Case, reason: str, *, failed: bool = False) -> None:
        self.results.skipped.append(Skipped(kernel=name, case=case.id, reason=reason, failed=failed))
        self._done(name, case)

    def _skip_rest(self, reason: str) -> None:
        self.results.skipped += [Skipped(kernel=name, case=case, reason=reason) for name, case in self.results.pending]
        self.results.pending = []

    def _done(self, name: str, case: Case) -> None:
        self.results.pending.remove((name, case.id))

    def _tell(self, label: str) -> None:
        self.report(self.total - len(self.results.pending), self.total, label)


def _reference_bytes(case: Case) -> int:
    """What the float64 reference takes at a time: a piece of the context for each sampled head."""
    width = case.cache_bytes_per_token // (case.element_bytes if case.kv_dtype == case.dtype else 1)
    heads = HEADS if case.is_latent else 1
    return 8 * heads * width * min(case.context_tokens, CHUNK_TOKENS)


def _fault(error: Exception) -> str:
    """One line on what a case died of."""
    if is_out_of_memory(error):
        return f"out of memory: {_first_line(error)}"
    return f"raised {type(error).__name__}: {_first_line(error)}"


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else "no message"
