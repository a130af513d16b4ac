"""`kvcalc estimate`: one model's cache, step and, with a GPU, time and memory."""

from pathlib import Path
from typing import Any

from kvcalc import api
from kvcalc.commands.output import emit, warn
from kvcalc.errors import UsageError
from kvcalc.report.page import Page
from kvcalc.results import Estimate


def run(
    spec: str,
    *,
    format: str | None,
    json: bool,
    output: Path | None,
    explained: bool,
    as_bytes: bool,
    fail_if_oom: bool,
    batch: list[int],
    context_tokens: list[int] | None,
    query_tokens: list[int],
    **options: Any,
) -> int:
    """Print the estimate, or a row for each combination of several values; 1 where it must fit and does not."""
    if fail_if_oom and not options.get("gpu"):
        raise UsageError("--fail-if-oom needs a GPU to fit into", hint="add --gpu, such as --gpu h100-sxm5-80gb")
    calibrated = {name: options.pop(name, None) for name in ("calibration", "output_tokens")}
    if calibrated["calibration"] is not None and not options.get("gpu"):
        raise UsageError("--calibration is of a GPU", hint="add --gpu with the one that it calibrates")
    if calibrated["output_tokens"] is not None and not options.get("gpu"):
        raise UsageError("--serving aggregated needs a GPU to serve on", hint="add --gpu, such as --gpu h100-sxm5-80gb")
    if len(batch) * len(context_tokens or [0]) * len(query_tokens) > 1:
        if any(value is not None for value in calibrated.values()):
            raise UsageError(
                "--calibration and --serving are for one estimate: rows of many workloads hold rooflines",
                hint="give one batch, context and query token count",
            )
        if explained:
            raise UsageError("--explain explains one estimate", hint="give one batch, context and query token count")
        from kvcalc.commands import sweep

        return sweep.run(
            spec,
            batches=batch,
            contexts=context_tokens,
            query_tokens=query_tokens,
            fail_if_oom=fail_if_oom,
            as_bytes=as_bytes,
            format=format,
            json=json,
            output=output,
            **options,
        )
    result = api.estimate(
        spec,
        batch=batch[0],
        context_tokens=context_tokens[0] if context_tokens else None,
        query_tokens=query_tokens[0],
        **calibrated,
        **options,
    )
    warn(result.warnings)
    emit(
        lambda: _data(result, explained),
        lambda: _page(result, explained=explained, as_bytes=as_bytes),
        format=format,
        json=json,
        output=output,
    )
    return 1 if fail_if_oom and result.memory is not None and not result.memory.fits else 0


def _data(result: Estimate, explained: bool) -> dict[str, Any]:
    if not explained:
        return result.to_json()
    from kvcalc.explain import explain, to_json

    return {**result.to_json(), "terms": to_json(explain(result))}


def _page(result: Estimate, *, explained: bool, as_bytes: bool) -> Page:
    from kvcalc.commands.estimate_page import page

    return page(result, explained=explained, as_bytes=as_bytes)
