"""`kvcalc plan`: what fits on how many GPUs, for mixes of parallelism side by side."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from kvcalc import api
from kvcalc.architecture.model import Model
from kvcalc.architecture.weights import Part
from kvcalc.commands.output import emit, warn
from kvcalc.commands.plan_page import mix_name, page
from kvcalc.errors import UsageError
from kvcalc.hardware import Gpu
from kvcalc.names import nearest
from kvcalc.planning import (
    STEP_TOKENS,
    Budget,
    Demand,
    Goals,
    Lengths,
    Plan,
    Speculation,
    all_mixes,
    distribution,
    plan,
    read_lengths,
    usual_mixes,
    why_not,
)
from kvcalc.units import parse_bytes, parse_rate, parse_seconds
from kvcalc.workload import Parallelism


def run(
    spec: str,
    *,
    gpu: str,
    gpus: int | None,
    ranks: dict[str, int | None],
    context_tokens: int | None,
    batch: int | None,
    search: bool,
    fail_if_oom: bool,
    format: str | None,
    json: bool,
    output: Path | None,
    as_bytes: bool,
    **options: Any,
) -> int:
    """Print the plan; the exit code is 1 where something must fit and nothing does."""
    result = make(
        spec,
        gpu=gpu,
        gpus=gpus,
        ranks=ranks,
        context_tokens=context_tokens,
        batch=batch,
        search=search,
        **options,
    )
    warn(_warnings(result))
    emit(result.to_json, lambda: page(result, as_bytes=as_bytes), format=format, json=json, output=output)
    return 1 if fail_if_oom and not result.fits else 0


def make(
    spec: str,
    *,
    gpu: str,
    gpus: int | None,
    ranks: dict[str, int | None],
    context_tokens: int | None,
    batch: int | None,
    search: bool,
    engine: str,
    block_tokens: int | None,
    kv_dtype: str | None,
    index_dtype: str | None,
    state_dtype: str | None,
    weights_dtype: str | None,
    weights_bytes: str | None,
    memory_utilization: float | None,
    reserve: str | None,
    prefix_caching: bool | None,
    max_batched_tokens: int | None,
    mtp: bool,
    lengths: str | None,
    shared_prefix_tokens: int,
    cascade: bool,
    draft: str | None,
    draft_tokens: int,
    acceptance: float,
    target_tpot: str | None,
    price: float | None,
    link: str | None,
    calibration: Path | None,
) -> Plan:
    """The plan that the options ask for."""
    model, device = api.load_model(spec), api.load_gpu(gpu)
    if weights_dtype is not None and "=" in weights_dtype:
        model, weights_dtype = replace(model, weight_formats=_formats(model, weights_dtype)), None
    api.check_weights_dtype(weights_dtype)
    utilization = api.default_utilization(engine) if memory_utilization is None else memory_utilization
    if not 0 < utilization <= 1:
        raise UsageError(f"memory utilization is {utilization}; it must be above 0 and at most 1")

    def layout_for(mix: Parallelism, of: Any = model) -> Any:
        return api.layout_for(
            of,
            engine=engine,
            block_tokens=block_tokens,
            kv_dtype=kv_dtype,
            index_dtype=index_dtype,
            state_dtype=state_dtype,
            parallelism=mix,
            gpu=device,
            prefix_caching=prefix_caching,
            max_batched_tokens=max_batched_tokens,
            speculative_tokens=draft_tokens,
        )

    found = _lengths(lengths)
    context = context_tokens or (found.longest_tokens if found else api.default_context(model))
    if shared_prefix_tokens >= context:
        raise UsageError(f"the shared prefix of {shared_prefix_tokens:,} tokens leaves nothing of {context:,}")
    mixes = _mixes(model, gpus, ranks, search=search)
    budget = Budget(
        gpu=device,
        memory_utilization=utilization,
        weights_bytes=None if weights_bytes is None else parse_bytes(weights_bytes, name="weights"),
        reserve_bytes=None if reserve is None else parse_bytes(reserve, name="reserve"),
        step_tokens=max_batched_tokens or STEP_TOKENS,
    )
    drafter = api.load_model(draft) if draft else None
    goals = Goals(
        batch=batch,
        target_tpot_s=None if target_tpot is None else parse_seconds(target_tpot, name="target TPOT"),
        price_per_gpu_hour=price,
        link_bytes_per_s=_link(link, device),
        speculation=_speculation(
            model, drafter, drafter and layout_for(Parallelism(), drafter), draft_tokens, acceptance, mtp
        ),
        cascade=cascade,
        batches=search and batch is None and target_tpot is None,
    )
    return plan(
        model,
        layout_for,
        mixes,
        budget=budget,
        demand=Demand(context_tokens=context, lengths=found, shared_prefix_tokens=shared_prefix_tokens),
        goals=goals,
        weights_dtype=weights_dtype,
        mtp=mtp,
        calibrations=api.load_calibrations(device, calibration),
    )


def _formats(model: Model, text: str) -> dict[str, str]:
    """A model's weight formats with those of `attention=fp8,experts=nvfp4` instead."""
    formats, parts = dict(model.weight_formats), ["default", *(part.value for part in Part)]
    for pair in text.split(","):
        part, _, format = (each.strip() for each in pair.partition("="))
        if part not in parts:
            raise UsageError(f"weights have no part '{part}'", hint=nearest(part, parts))
        api.check_weights_dtype(format)
        formats[part] = format
    return formats


def _mixes(model: Model, gpus: int | None, ranks: dict[str, int | None], *, search: bool) -> list[Parallelism]:
    """One mix where ranks are named, else the usual ones, or all with `search`."""
    named = {name: value for name, value in ranks.items() if value is not None}
    if named:
        mix = Parallelism(**named)
        if gpus is not None and mix.gpus != gpus:
            raise UsageError(f"tp x dp x pp is {mix.gpus}, and --gpus {gpus} was asked for")
        reason = why_not(model, mix)
        if reason:
            raise UsageError(reason)
        return [mix]
    mixes = list((all_mixes if search else usual_mixes)(model, gpus or 1))
    if not mixes:
        raise UsageError(f"no mix of parallelism on {gpus} GPUs divides {model.name}")
    return mixes


def _lengths(text: str | None) -> Lengths | None:
    if text is None:
        return None
    found = distribution(text)
    if found is not None:
        return found
    try:
        with Path(text).open(encoding="utf-8-sig", newline="") as lines:
            return read_lengths(lines, source=text)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise UsageError(
            f"can't read lengths from '{text}': {reason}", hint="a CSV, or uniform:1k:32k, or lognormal:4k:32k"
        ) from error


def _link(text: str | None, gpu: Gpu) -> float | None:
    """A link's bytes a second: its rate, or `gpu` for the GPU's own link, or `pcie`."""
    if text is None:
        return None
    stated = {
        "gpu": gpu.link.bytes_per_s_per_direction if gpu.link else None,
        "pcie": gpu.pcie_bytes_per_s_per_direction,
    }
    if text not in stated:
        return parse_rate(text, name="link")
    rate = stated[text]
    if rate is None:
        raise UsageError(f"{gpu.slug} states no {text} link", hint="give its rate, such as --link 50GB/s")
    return float(rate)


def _speculation(model: Any, drafter: Any, layout: Any, draft_tokens: int, acceptance: float, mtp: bool) -> Speculation:
    if draft_tokens < 0 or not 0 <= acceptance <= 1:
        raise UsageError("draft tokens must be 0 or more, and acceptance between 0 and 1")
    if draft_tokens and drafter is None and not (mtp and model.mtp_layers):
        raise UsageError("who drafts the tokens?", hint="name --draft SPEC, or --mtp for a model with MTP layers")
    if drafter is not None and not draft_tokens:
        raise UsageError("--draft needs --draft-tokens", hint="such as --draft-tokens 3 --acceptance 0.7")
    return Speculation(draft_tokens=draft_tokens, acceptance=acceptance, model=drafter, layout=layout)


def _warnings(result: Plan) -> list[str]:
    found = []
    context = result.demand.lengths.longest_tokens if result.demand.lengths else result.demand.context_tokens
    if context > result.model.max_context_tokens:
        found.append(f"context {context:,} is above the model's maximum {result.model.max_context_tokens:,}")
    for mix, reason in result.left_out:
        found.append(f"{mix_name(mix)} is left out: {reason}")
    if any(row.tpot_s is None for row in result.rows):
        found.append(f"{result.budget.gpu.slug} states no peak for a format of the weights: there are no times")
    return found
