"""The command line that measures one case again."""

import shlex

from kvcalc.profiling.case import Case
from kvcalc.profiling.sweep import DEFAULT_WHAT_IF, Request


def reproduce_line(spec: str, case: Case, *, kernel: str, device: str, request: Request, what_if: str | None) -> str:
    """`kvcalc profile SPEC ...` with every choice named, for one kernel on one case."""
    words = ["kvcalc", "profile", spec, "--kernel", kernel, "--device", device, "--phase", case.phase]
    words += ["--batch", str(case.batch), "--context", str(case.context_tokens)]
    words += ["--query-tokens", str(case.query_tokens), "--dtype", case.dtype, "--kv-dtype", case.kv_dtype]
    if request.tp != 1:
        words += ["--tp", str(request.tp)]
    if what_if is not None and request.what_if != DEFAULT_WHAT_IF:
        words += ["--what-if", what_if]
    if request.seed:
        words += ["--seed", str(request.seed)]
    return shlex.join([*words, "--case", case.id])
