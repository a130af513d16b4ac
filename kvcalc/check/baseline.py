"""The baseline file, schema `kvcalc.baseline/1`: rows and nothing else, made to be kept in a repository and diffed.

Rows are sorted by their id, each metric stands on a line of its own, and times keep four significant digits: far below
what a machine repeats. What a row does not need for a comparison (telemetry, commands, dates) is not in it.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from kvcalc.check.documents import Document, Part
from kvcalc.check.results import TIME, Row, Samples, Value
from kvcalc.errors import UsageError

SCHEMA = "kvcalc.baseline/1"


def render(rows: Iterable[Row]) -> str:
    """The file's text. Raises UsageError for a row that must not become the measure of others."""
    entries = [_entry(row) for row in sorted(rows, key=lambda row: row.id)]
    if not entries:
        raise UsageError("there is no row to make a baseline of")
    body = ",\n".join(entries)
    return f'{{\n  "schema": "{SCHEMA}",\n  "rows": {{\n{body}\n  }}\n}}\n'


def _entry(row: Row) -> str:
    if row.lost is not None:
        raise UsageError(f"{row.id} has no result ({row.lost}): it can't go into a baseline")
    if row.metrics.get("correctness.passed") is False:
        raise UsageError(f"{row.id} computed a wrong result: it can't go into a baseline")
    lines = [f'"key": {_json(dict(row.key))}']
    if row.about:
        lines.append(f'"about": {_json(dict(row.about))}')
    metrics = [f"        {_json(name)}: {_json(row.metrics[name])}" for name in sorted(row.metrics)]
    lines.append('"metrics": {\n' + ",\n".join(metrics) + "\n      }")
    if row.samples is not None:
        lines.append(f'"{TIME}": {_json(_samples(row.samples))}')
    inner = ",\n".join(f"      {line}" for line in lines)
    return f"    {_json(row.id)}: {{\n{inner}\n    }}"


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def _samples(samples: Samples) -> dict[str, Any]:
    found: dict[str, Any] = {"median_s": _short(samples.median_s), "bound": samples.bound}
    for name in ("ceiling", "fraction", "clock_hz"):
        value = getattr(samples, name)
        if value is not None:
            found[name] = _short(value)
    if samples.unusable:
        found["unusable"] = samples.unusable
    found["samples_s"] = [_short(value) for value in samples.seconds]
    if samples.process_count > 1:
        found["processes"] = list(samples.processes)
    return found


def _short(value: float) -> float:
    return float(f"{value:.4g}")


def read_rows(document: Document) -> Iterator[Row]:
    """The rows of a baseline document."""
    rows = Part.of(document).get("rows")
    if not isinstance(rows.value, Mapping):
        raise rows.wrong("an object")
    for id in rows.value:
        part = rows.get(id)
        yield Row(
            key=_texts(part.get("key")),
            about=_texts(part.get("about")),
            metrics=_values(part.get("metrics")),
            samples=_read_samples(part.get(TIME)) if part.get(TIME).value is not None else None,
            source=document.source,
        )


def _texts(part: Part) -> dict[str, str]:
    if part.value is None:
        return {}
    if not isinstance(part.value, Mapping):
        raise part.wrong("an object")
    return {name: part.get(name).text() for name in part.value}


def _values(part: Part) -> dict[str, Value]:
    if not isinstance(part.value, Mapping):
        raise part.wrong("an object")
    found: dict[str, Value] = {}
    for name, value in part.value.items():
        found[name] = value if isinstance(value, bool) else part.get(name).number()
    return found


def _read_samples(part: Part) -> Samples:
    values = tuple(each.positive() for each in part.get("samples_s").items())
    processes = tuple(int(each.number()) for each in part.get("processes").items())
    if not values or (processes and len(processes) != len(values)):
        raise part.wrong("samples, with a process for each or for none")
    return Samples(
        seconds=values,
        processes=processes,
        median_s=part.get("median_s").positive(),
        bound=part.get("bound").shown(),
        ceiling=part.get("ceiling").optional_positive(),
        fraction=part.get("fraction").optional_positive(),
        clock_hz=part.get("clock_hz").optional_positive(),
        unusable=part.get("unusable").shown() or None,
    )
