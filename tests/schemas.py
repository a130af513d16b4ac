"""As much of JSON Schema as kvcalc's schemas use, and what a schema does not tell of."""

from collections.abc import Iterator
from typing import Any

_TYPES: dict[str, Any] = {
    "object": dict,
    "array": list,
    "string": str,
    "boolean": bool,
    "number": (int, float),
    "integer": int,
    "null": type(None),
}
_WORDS = {"$schema", "title", "description", "type", "properties", "required", "items", "anyOf", "const"}


def faults(value: Any, schema: dict[str, Any], path: str = "$") -> list[str]:
    """Where a value is not as its schema says, and which of its keys the schema does not name."""
    return list(_faults(value, schema, path))


def _faults(value: Any, schema: dict[str, Any], path: str) -> Iterator[str]:
    assert set(schema) <= _WORDS, set(schema) - _WORDS
    if "const" in schema and value != schema["const"]:
        yield f"{path}: {value!r} is not {schema['const']!r}"
    if "anyOf" in schema:
        tried = [faults(value, option, path) for option in schema["anyOf"]]
        if all(tried):
            yield from min(tried, key=len)
        return
    kinds = schema.get("type", [])
    kinds = [kinds] if isinstance(kinds, str) else kinds
    if kinds and not any(_is(value, kind) for kind in kinds):
        yield f"{path}: {value!r} is no {' or '.join(kinds)}"
        return
    if isinstance(value, dict) and "properties" in schema:
        for name in schema["required"]:
            if name not in value:
                yield f"{path}: '{name}' is missing"
        for name, each in value.items():
            if name not in schema["properties"]:
                yield f"{path}: '{name}' is not in the schema"
            else:
                yield from _faults(each, schema["properties"][name], f"{path}.{name}")
    if isinstance(value, list) and "items" in schema:
        for index, each in enumerate(value):
            yield from _faults(each, schema["items"], f"{path}[{index}]")


def _is(value: Any, kind: str) -> bool:
    return isinstance(value, _TYPES[kind]) and (not isinstance(value, bool) or kind == "boolean")
