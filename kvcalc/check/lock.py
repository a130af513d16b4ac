"""The specs lock: bytes, FLOPs and parameters of every spec of a folder, so that no number moves unseen.

A lock is a baseline whose rows are specs. All its numbers are exact, and none of them may move in either direction:
what a change of a spec or a formula does to a model is for a person to see, in the diff of the file.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kvcalc.check.results import Row, Value
from kvcalc.errors import UsageError

CONTEXT_TOKENS = 32_768
"""The same for every spec, whatever its maximum, so that only what the model is can move its numbers."""
METRICS = (
    "model.parameters.total",
    "model.parameters.active",
    "model.parameters.mtp",
    "cache.elements_per_token",
    "cache.index_elements_per_token",
    "cache.bytes_per_token",
    "cache.constant_bytes_per_sequence",
    "cache.stored_bytes",
    "decode.attention.flop",
    "decode.attention.read_bytes",
    "decode.step.flop",
    "decode.step.read_bytes",
    "prefill.attention.flop",
    "prefill.step.flop",
)


def spec_files(folder: Path) -> dict[str, Path]:
    """The specs of a folder by their names in it: YAML files, and config.json files by their folder's name.

    Raises UsageError where there are none.
    """
    if folder.is_file():
        return {folder.stem: folder}
    found = {
        path.relative_to(folder).with_suffix("").as_posix(): path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and (path.suffix in (".yaml", ".yml") or path.name == "config.json")
    }
    if not found:
        raise UsageError(f"no spec in '{folder}'", hint="specs are .yaml files and config.json files")
    return found


def row(name: str, estimate: Mapping[str, Any]) -> Row:
    """The lock's row of a spec, from the JSON of its estimate at `CONTEXT_TOKENS`, batch 1."""
    return Row(key={"command": "specs", "spec": name}, metrics={metric: _value(estimate, metric) for metric in METRICS})


def _value(estimate: Mapping[str, Any], metric: str) -> Value:
    value: Any = estimate
    for key in metric.split("."):
        value = value[key]
    assert isinstance(value, int | float)
    return value
