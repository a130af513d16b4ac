"""What the reports on single terms of a step share: errors of pandas rows, tables of them, and the files."""

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from measured_tables import PACKAGE

from kvcalc.commands.output import write_file

RESULTS = Path(__file__).parent / "results"


def errors(rows) -> dict:
    """Of `expected` against `seconds`: the mean and median size of the error, and its median; None of no rows."""
    error = rows.expected / rows.seconds - 1
    found = {"mean": error.abs().mean(), "median": error.abs().median(), "bias": error.median()}
    return {"rows": len(rows)} | {name: _share(value) for name, value in found.items()}


def bound_error(rows) -> float | None:
    """The mean size of the error of `roofline`."""
    return _share((rows.roofline / rows.seconds - 1).abs().mean())


def _share(value) -> float | None:
    return None if value != value else float(value)


def table(title: str, rows: Mapping[str, dict], columns: Mapping[str, str], text: tuple[str, ...] = ()) -> list[str]:
    """A section of a page; `columns` is a heading and a key of a row for each, counts as they are and else shares."""
    lines = ["", f"## {title}", "", *((*text, "") if text else ())]
    lines += [f"| rows | {' | '.join(columns)} |", "|" + "---|" * (len(columns) + 1)]
    for name, row in rows.items():
        lines.append(f"| {name} | {' | '.join(_cell(row[key]) for key in columns.values())} |")
    return lines


def _cell(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,}" if isinstance(value, int) else f"{100 * value:.1f} %"


def publish(name: str, result: dict, page: Callable[[dict], str]) -> None:
    """Write a result with where and when it is from, and its page."""
    head = {"schema": f"kvcalc.{name}/1", "measurements": PACKAGE, "date": time.strftime("%Y-%m-%d")}
    result = {**head, **result}
    write_file(RESULTS / f"{name}.json", json.dumps(result, indent=1) + "\n")
    write_file(RESULTS / f"{name}.md", page(result))
