"""JSON Schemas of results, made from a result itself, so that they can't tell of keys that are not there.

Every key of a sample is required and typed; what may be null or missing is named here.
"""

from typing import Any

from kvcalc.commands.result_samples import SAMPLES

_NULLABLE = {
    "estimate": {
        "decode.attention.flop_per_byte",
        "decode.indexer",
        "decode.time",
        "decode.time.expected_s",
        "decode.time.interval_s",
        "prefill.attention.flop_per_byte",
        "prefill.indexer",
        "prefill.time",
        "prefill.time.expected_s",
        "prefill.time.interval_s",
        "gpu",
        "memory",
    },
    "compare": {
        "gpu",
        "rows[].ratio",
        "rows[].decode_roofline_s",
        "rows[].decode_bound",
        "rows[].decode_expected_s",
        "rows[].decode_interval_s",
        "rows[].prefill_roofline_s",
        "rows[].max_batch",
    },
    "profile": {
        "environment.device.index",
        "environment.device.memory_bytes",
        "environment.cpu.capability",
        "environment.cpu.governor",
        "environment.memory_bytes",
        "environment.cuda",
        "datasheet",
        "ceilings.read_bandwidth_bytes_per_s",
        "ceilings.copy_bandwidth_bytes_per_s",
        "ceilings.launch_s",
        *(
            f"cases[].{key}"
            for key in (
                *("kernel_version", "what_if", "contended", "contended_samples", "clock", "cold_cache"),
                *("warm_up_calls", "warm_up_stable", "median_s", "least_s", "p20_s", "p80_s", "bandwidth_fraction"),
                *("flop_fraction", "datasheet_bandwidth_fraction", "error", "suspect", "note", "energy_j_per_call"),
                *("energy_j_per_token", "telemetry.mean_power_w", "telemetry.other_processes"),
                *(f"correctness.{name}" for name in ("max_abs_error", "max_rel_error", "cosine_distance", "reason")),
                *(
                    f"telemetry.{moment}.{name}"
                    for moment in ("before", "during", "after")
                    for name in ("sm_clock_hz", "memory_clock_hz", "power_w", "temperature_c", "throttle_reasons")
                ),
            )
        ),
    },
    "check": {
        *(f"rows[].{key}" for key in ("baseline", "current", "ratio", "verdict", "note", "p_value", "samples")),
        *(f"rows[].{key}" for key in ("baseline_fraction", "current_fraction", "fraction_ratio")),
    },
    "plan": {
        "workload.lengths",
        *(
            f"rows[].{key}"
            for key in (
                *(f"{part}_bytes_per_gpu" for part in ("activation", "workspace", "logits", "runtime", "reserve")),
                *("tpot_s", "interval_tpot_s", "tpot_longest_s", "roofline_tpot_s", "bound", "time_from"),
                *("tokens_per_s_per_gpu", "tokens_per_gpu_hour", "cost_per_million_tokens", "transfer_s"),
                "meets_target",
            )
        ),
    },
    "reconcile": {
        *(
            f"stated.{key}"
            for key in (
                *("engine", "version", "model", "kv_dtype", "tokens", "available_bytes", "available_bytes_most"),
                *("blocks", "block_tokens", "max_model_len", "max_concurrency", "needed_bytes", "pool_bytes"),
            )
        ),
        *(
            f"computed.{key}"
            for key in (
                *("engine", "tokens", "tokens_range", "bytes_per_token", "block_tokens"),
                *("needed_bytes", "total_bytes"),
            )
        ),
        "unexplained_bytes",
        "refused",
    },
}
_INSTEAD_OF_NULL = {
    **dict.fromkeys(("blocks", "block_tokens", "needed_bytes", "pool_bytes", "reserve_bytes_per_gpu"), 0),
    **dict.fromkeys(("expected_s", "baseline_fraction", "current_fraction", "fraction_ratio", "p_value"), 0.5),
    **{name: [0.5] for name in ("interval_s", "interval_tpot_s")},
}
"""What a sample that has null would have, by the last part of the key; a text where nothing is said."""

_OPTIONAL = {
    "estimate": {
        *(f"{phase}.attention.{key}" for phase in ("decode", "prefill") for key in ("form", "absorbed", "expanded")),
        "terms",
    },
    "profile": {
        *(f"cases[].{key}" for key in ("n_kv_heads", "head_dim", "kv_lora_rank", "qk_nope_head_dim")),
        "cases[].qk_rope_head_dim",
        *(f"environment.device.{key}" for key in ("threads", "compute_capability", "multiprocessors", "nvml")),
    },
    "check": {
        *(f"rows[].{key}" for key in ("baseline_fraction", "current_fraction", "fraction_ratio", "p_value", "samples")),
    },
}
_EXACT_DECIMALS = {
    *("elements_per_token", "index_elements_per_token", "bytes_per_token", "replication_factor"),
    "tokens_per_step",
}
"""Integers where whole, decimals otherwise."""

_ANY_VALUE = {"rows[].baseline", "rows[].current"}
"""Metrics: counts, times, shares, and whether something fits."""

_MAPPINGS = {
    "precision.weights_by_part",
    "gpu.peak_flop_per_s",
    "environment.device.nvml",
    "environment.cpu.caches",
    "environment.packages",
    "environment.kernels",
    "datasheet.peak_flop_per_s",
    "ceilings.matmul_flop_per_s",
    "ceilings.matmul_measured_flop_per_s",
    "ceilings.measured_times",
    "settings.max_regression",
}
"""Objects whose keys differ from result to result."""


def result_schema(command: str) -> dict[str, Any]:
    """The schema of a command's results."""
    schema = _of(SAMPLES[command](), "", _NULLABLE[command], _OPTIONAL.get(command, set()))
    schema["properties"]["schema"] = {"const": f"kvcalc.{command}/1"}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"kvcalc {command} result",
        "description": "Bytes and FLOPs are integers, times are seconds, nothing is ever NaN.",
        **schema,
    }


def _of(value: Any, path: str, nullable: set[str], optional: set[str]) -> dict[str, Any]:
    name = path.rpartition(".")[2]
    if value is None:
        value = _INSTEAD_OF_NULL.get(name, "")
    if path in _ANY_VALUE:
        kind: dict[str, Any] = {"type": ["number", "boolean"]}
    elif isinstance(value, dict) and path in _MAPPINGS:
        kind = {"type": "object"}
    elif isinstance(value, dict):
        inner = {key: _of(each, f"{path}.{key}".lstrip("."), nullable, optional) for key, each in value.items()}
        required = [key for key in value if f"{path}.{key}".lstrip(".") not in optional]
        kind = {"type": "object", "properties": inner, "required": required}
    elif isinstance(value, list):
        kind = {"type": "array"}
        if value:
            kind["items"] = _of(value[0], f"{path}[]", nullable, optional)
    elif isinstance(value, bool):
        kind = {"type": "boolean"}
    elif isinstance(value, int) and name not in _EXACT_DECIMALS and name != "value":
        kind = {"type": "integer"}
    elif isinstance(value, int | float):
        kind = {"type": "number"}
    else:
        kind = {"type": "string"}
    return {"anyOf": [kind, {"type": "null"}]} if path in nullable else kind
