"""JSON Schemas of results, made from a result itself, so that they can't tell of keys that are not there.

Every key of a sample is required and typed; what may be null is named here, with the keys' meanings.
"""

from typing import Any

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
}
_OPTIONAL = {
    "estimate": {
        *(f"{phase}.attention.{key}" for phase in ("decode", "prefill") for key in ("form", "absorbed", "expanded")),
        "terms",
    },
    "compare": set(),
}
_EXACT_DECIMALS = {"elements_per_token", "index_elements_per_token", "bytes_per_token", "replication_factor"}
"""Integers where whole, decimals otherwise."""

_MAPPINGS = {"precision.weights_by_part", "gpu.peak_flop_per_s"}
"""Objects whose keys differ from result to result."""


def result_schema(command: str) -> dict[str, Any]:
    """The schema of `estimate` or `compare` results."""
    schema = _of(_sample(command), "", _NULLABLE[command], _OPTIONAL[command])
    schema["properties"]["schema"] = {"const": f"kvcalc.{command}/1"}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"kvcalc {command} result",
        "description": "Bytes and FLOPs are integers, times are seconds, nothing is ever NaN.",
        **schema,
    }


def _sample(command: str) -> dict[str, Any]:
    """A result with every key filled: an MLA model with an indexer, on a GPU."""
    from kvcalc import api
    from kvcalc.explain import explain, to_json

    model, gpu = "deepseek-v3.2", "h200-sxm-141gb"
    if command == "compare":
        return api.compare([model], gpu=gpu, tp=8).to_json()
    result = api.estimate(model, gpu=gpu, tp=8)
    return {**result.to_json(), "terms": to_json(explain(result))}


def _of(value: Any, path: str, nullable: set[str], optional: set[str]) -> dict[str, Any]:
    name = path.rpartition(".")[2]
    if name in ("expected_s", "interval_s") and value is None:
        number = {"type": "number"}
        kind: dict[str, Any] = number if name == "expected_s" else {"type": "array", "items": number}
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
