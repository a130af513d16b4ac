"""The calculator for Python users: what the commands do, as functions that return objects.

>>> from kvcalc import estimate
>>> result = estimate("deepseek-v3", context_tokens=131072, gpu="h100-sxm5-80gb")
>>> result.cache.bytes_per_token
Fraction(70272, 1)
>>> result.to_json()["cache"]["stored_bytes"]
9210691584
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from kvcalc import engines
from kvcalc.architecture.layout import GenericLayout, Layout, precision_for
from kvcalc.architecture.model import Model
from kvcalc.errors import UsageError
from kvcalc.hardware import Gpu
from kvcalc.names import nearest
from kvcalc.results import Comparison, ComparisonRow, Estimate
from kvcalc.sizing import cache_size, fit
from kvcalc.timing.roofline import roofline
from kvcalc.timing.step import DECODE, PREFILL, Step
from kvcalc.workload import Parallelism, Workload

if TYPE_CHECKING:
    from kvcalc.timing.calibrated import Calibration

DEFAULT_CONTEXT_TOKENS = 32_768
DEFAULT_BLOCK_TOKENS = 16
DEFAULT_MEMORY_UTILIZATION = 0.9
ENGINES = engines.NAMES


def load_model(spec: str | Model) -> Model:
    """A model by packaged name, path to a YAML spec or config.json, `hf:org/name`, or `-` for standard input.

    Raises UsageError where there is none, SpecError with every problem where it can't be used.
    """
    if isinstance(spec, Model):
        return spec
    from kvcalc.specs.sources import load_model as load

    return load(spec)


def load_gpu(name: str | Gpu) -> Gpu:
    """A GPU by slug, alias or device name, a path to a hardware YAML, or `auto` for the one in this machine."""
    if isinstance(name, Gpu):
        return name
    from kvcalc.specs.hardware import load_gpu as load

    return load(name)


def load_calibrations(gpu: Gpu, path: str | Path | None = None) -> "Sequence[Calibration]":
    """A calibration file, which must be of this GPU, or those of the GPU that come with kvcalc.

    Raises UsageError or SpecError for a file that can't be used.
    """
    from kvcalc.timing.calibration.store import load, packaged

    if path is None:
        return packaged(gpu.slug)
    own = load(Path(path))
    if own.gpu != gpu.slug:
        raise UsageError(
            f"'{path}' calibrates {own.gpu}, not {gpu.slug}", hint=f"add --gpu {own.gpu}, or calibrate {gpu.slug}"
        )
    return (own,)


def layout_for(
    model: Model,
    *,
    engine: str = engines.GENERIC,
    block_tokens: int | None = None,
    kv_dtype: str | None = None,
    index_dtype: str | None = None,
    state_dtype: str | None = None,
    parallelism: Parallelism | None = None,
    gpu: Gpu | None = None,
    prefix_caching: bool | None = None,
    max_batched_tokens: int | None = None,
    speculative_tokens: int = 0,
) -> Layout:
    """The layout of an engine (`vllm`, `vllm@0.33`, `generic`) for this model; None lets the engine choose.

    Raises UsageError for an engine, version or format that is not known.
    """
    if block_tokens is not None and block_tokens < 1:
        raise UsageError(f"block size is {block_tokens}; it must be 1 token or more")
    if max_batched_tokens is not None and max_batched_tokens < 1:
        raise UsageError(f"tokens in one step are {max_batched_tokens}; they must be 1 or more")
    precision = precision_for(model.native_formats, kv_dtype=kv_dtype, index_dtype=index_dtype, state_dtype=state_dtype)
    if engines.split_name(engine)[0] == engines.GENERIC:
        return GenericLayout(precision=precision, block_tokens=block_tokens or DEFAULT_BLOCK_TOKENS)
    from kvcalc.engines.base import Request

    request = Request(
        model=model,
        parallelism=parallelism or Parallelism(),
        precision=precision,
        kv_dtype=kv_dtype,
        index_dtype=index_dtype,
        state_dtype=state_dtype,
        block_tokens=block_tokens,
        compute_capability=_capability(gpu),
        gpu_memory_bytes=gpu.memory_reported_bytes if gpu else None,
        prefix_caching=prefix_caching,
        max_batched_tokens=max_batched_tokens,
        speculative_tokens=speculative_tokens,
    )
    return engines.engine_layout(engine, request)


def _capability(gpu: Gpu | None) -> tuple[int, int] | None:
    if gpu is None or gpu.compute_capability is None:
        return None
    major, _, minor = gpu.compute_capability.partition(".")
    return int(major), int(minor or 0)


def default_utilization(engine: str) -> float:
    """The share of a GPU's memory that an engine takes unless told otherwise; 0.9 where it has no such constant."""
    return engines.default_memory_utilization(engine) or DEFAULT_MEMORY_UTILIZATION


def estimate(
    model: str | Model,
    *,
    context_tokens: int | None = None,
    batch: int = 1,
    query_tokens: int = 1,
    gpu: str | Gpu | None = None,
    engine: str = engines.GENERIC,
    block_tokens: int | None = None,
    kv_dtype: str | None = None,
    index_dtype: str | None = None,
    state_dtype: str | None = None,
    weights_dtype: str | None = None,
    tp: int = 1,
    pp: int = 1,
    dp: int = 1,
    dcp: int = 1,
    ep: int = 1,
    mtp: bool = False,
    memory_utilization: float | None = None,
    prefix_caching: bool | None = None,
    max_batched_tokens: int | None = None,
    calibration: str | Path | None = None,
    output_tokens: int | None = None,
) -> Estimate:
    """Bytes, FLOPs and, with a GPU, times of a model under a workload.

    context_tokens      tokens that the newest token attends, itself included; by default the smaller of 32,768 and the
                        model's maximum
    batch               sequences over all GPUs
    engine              `generic`, or an engine whose rules are known, with its version: `vllm@0.33`
    block_tokens        tokens of an allocated block; None for the engine's own choice, 16 for generic
    memory_utilization  share of the memory that the driver reports which weights and cache may take; None for the
                        engine's default
    prefix_caching, max_batched_tokens  settings of the engine that its allocation goes by; None for its defaults
    calibration         a file of `kvcalc calibrate` for the GPU; None for those that come with kvcalc
    output_tokens       aggregated serving: requests of so many tokens come and go, and their prompts run among decodes

    Raises UsageError or SpecError, each saying what is wrong and what to write instead.
    """
    loaded = load_model(model)
    memory_utilization = default_utilization(engine) if memory_utilization is None else memory_utilization
    if not 0 < memory_utilization <= 1:
        raise UsageError(f"memory utilization is {memory_utilization}; it must be above 0 and at most 1")
    check_weights_dtype(weights_dtype)
    workload = Workload(
        batch=batch,
        context_tokens=default_context(loaded) if context_tokens is None else context_tokens,
        query_tokens=query_tokens,
    )
    parallelism = Parallelism(tp=tp, pp=pp, dp=dp, dcp=dcp, ep=ep)
    found = load_gpu(gpu) if gpu is not None else None
    layout = layout_for(
        loaded,
        engine=engine,
        block_tokens=block_tokens,
        kv_dtype=kv_dtype,
        index_dtype=index_dtype,
        state_dtype=state_dtype,
        parallelism=parallelism,
        gpu=found,
        prefix_caching=prefix_caching,
        max_batched_tokens=max_batched_tokens,
        speculative_tokens=query_tokens - 1,
    )
    steps = {
        phase: Step(model=loaded, layout=layout, workload=workload, phase=phase, weights_dtype=weights_dtype, mtp=mtp)
        for phase in (DECODE, PREFILL)
    }
    result = Estimate(
        model=loaded,
        workload=workload,
        parallelism=parallelism,
        layout=layout,
        weights_dtype=weights_dtype,
        mtp=mtp,
        cache=cache_size(loaded, layout, workload, parallelism, mtp=mtp),
        steps=steps,
        gpu=found,
        memory_utilization=memory_utilization,
        output_tokens=output_tokens,
    )
    if found is None:
        return result
    return replace(
        result,
        calibrations=load_calibrations(found, calibration),
        rooflines={
            phase: roofline(replace(step, parallelism=parallelism).terms(), found) for phase, step in steps.items()
        },
        memory=fit(
            loaded,
            layout,
            workload,
            parallelism,
            usable_bytes=int(found.memory_reported_bytes * memory_utilization),
            weights_dtype=weights_dtype,
            mtp=mtp,
        ),
    )


def compare(
    models: Sequence[str | Model], *, what_if: str | None = None, context_tokens: int | None = None, **options: object
) -> Comparison:
    """Several models in one table, or one model beside itself with its attention replaced.

    what_if  `mha,gqa:8,mqa,mla` or `mla:RANK+ROPE`: K and V as wide as the model's value heads. One model only.
    options  as for `estimate`. All rows are at the same context: by default the smallest of the models' defaults.
    """
    loaded = [load_model(model) for model in models]
    if not loaded:
        raise UsageError("nothing to compare: name at least one model")
    if what_if is not None:
        if len(loaded) != 1:
            raise UsageError("--what-if replaces the attention of one model; several are named")
        from kvcalc.what_if import alternatives

        loaded += alternatives(loaded[0], what_if)
    if context_tokens is None:
        context_tokens = min(default_context(model) for model in loaded)
    estimates = [estimate(model, context_tokens=context_tokens, **options) for model in loaded]  # type: ignore[arg-type]
    return Comparison(rows=tuple(ComparisonRow(estimate=each, first=estimates[0]) for each in estimates))


def default_context(model: Model) -> int:
    """The smaller of 32,768 tokens and the model's maximum."""
    return min(DEFAULT_CONTEXT_TOKENS, model.max_context_tokens)


def check_weights_dtype(name: str | None) -> None:
    """Raise UsageError for a weight format that is not known."""
    from kvcalc.architecture.formats import WEIGHT_FORMATS

    if name is not None and name not in WEIGHT_FORMATS:
        raise UsageError(f"unknown weight format '{name}'", hint=nearest(name, WEIGHT_FORMATS))
