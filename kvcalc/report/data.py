"""JSON and CSV: the same object that the Python interface returns."""

import csv
import json
from io import StringIO
from typing import Any


def render_json(data: dict[str, Any], *, ascii_only: bool = False) -> str:
    """Indented JSON; null and never NaN. With `ascii_only` other characters are written as escapes."""
    return json.dumps(data, indent=2, ensure_ascii=ascii_only, allow_nan=False) + "\n"


def render_csv(data: dict[str, Any]) -> str:
    """One line a row where the result has rows, else one line of all its values; dotted names for nested ones.

    Lists inside a row are left out: they are tables of their own, and JSON has them.
    """
    rows = [flatten(row) for row in data["rows"]] if "rows" in data else [flatten(data)]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    out = StringIO()
    writer = csv.DictWriter(out, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def flatten(data: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, keys joined by dots; lists of plain values joined by `; `."""
    flat: dict[str, Any] = {}
    for key, value in data.items():
        name = prefix + key
        if isinstance(value, dict):
            flat.update(flatten(value, f"{name}."))
        elif isinstance(value, list):
            if all(not isinstance(each, dict | list) for each in value):
                flat[name] = "; ".join(map(str, value))
        else:
            flat[name] = value
    return flat
