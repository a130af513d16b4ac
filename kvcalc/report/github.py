"""GitHub Actions: annotations as workflow commands, and a job summary that stays below GitHub's size limit.

Escaping follows the runner's own: in a message `%`, carriage return and line feed, in a property `:` and `,` too.
Source: actions/toolkit, packages/core/src/command.ts, and GitHub's docs on workflow commands (job summaries: 1 MiB a
step; annotations: 10 of a level a step).
"""

from collections.abc import Mapping, Sequence
from typing import Any

from kvcalc.errors import printable
from kvcalc.report.junit import failures, message_of
from kvcalc.report.markdown import escape

SUMMARY_BYTES = 1_000_000
MOST_ANNOTATIONS = 10
LONGEST_CELL = 300
_ORDER = ("regressed", "gone", "not comparable", "new", None, "improved", "within noise", "same")
_COLUMNS = ("verdict", "row", "metric", "baseline", "current", "ratio", "% of ceiling", "note")


def annotations(data: Mapping[str, Any]) -> str:
    """Workflow commands for the worst rows of a `kvcalc.check/1` result, and the verdict as the last line."""
    errors = (*failures(data), "not comparable")
    warnings = ("gone",)
    lines: list[str] = []
    for level, verdicts in (("error", errors), ("warning", [each for each in warnings if each not in errors])):
        found = [row for row in worst_first(data["rows"]) if row["verdict"] in verdicts]
        lines += [_annotation(level, row) for row in found[: MOST_ANNOTATIONS - 1]]
        rest = len(found) - (MOST_ANNOTATIONS - 1)
        if rest > 0:
            lines.append(_command(level, "kvcalc check", f"and {rest:,} more; the job summary has them"))
    if data["exit_code"] and not any(line.startswith("::error") for line in lines):
        lines.insert(0, _command("error", "kvcalc check", str(data["sentence"])))
    lines.append(plain(str(data["sentence"])))
    return "\n".join(lines) + "\n"


def worst_first(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """By verdict, then the largest change first."""
    return sorted(rows, key=lambda row: (_ORDER.index(row["verdict"]), -abs((row["ratio"] or 1) - 1)))


def _annotation(level: str, row: Mapping[str, Any]) -> str:
    metric = "" if row["metric"] == "*" else f" {row['metric']}"
    return _command(level, f"{row['verdict']}: {row['id']}{metric}", message_of(row))


def _command(level: str, title: str, message: str) -> str:
    return f"::{level} title={escape_property(title)}::{escape_message(message)}"


def escape_message(text: str) -> str:
    """For the part after the second `::`."""
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def escape_property(text: str) -> str:
    """For a property's value."""
    return escape_message(text).replace(":", "%3A").replace(",", "%2C")


def plain(text: str) -> str:
    """A line of the log in which the runner finds no command: none at its start, nor the older form anywhere."""
    return printable(text.replace("\n", " ")).replace("##[", "# #[").lstrip(": ")


def summary(data: Mapping[str, Any], *, room_bytes: int = SUMMARY_BYTES) -> str:
    """Markdown with all rows that are not exact and the same, worst first, as many as there is room for."""
    head = f"## kvcalc check: {escape(str(data['verdict']))}\n\n{escape(printable(str(data['sentence'])))}\n"
    rows = [row for row in worst_first(data["rows"]) if row["verdict"] != "same" or row["metric"] == "median_s"]
    if not rows:
        return head if len(head.encode()) <= room_bytes else ""
    rule = ["---", "---", "---", "---:", "---:", "---:", "---:", "---"]
    head += f"\n| {' | '.join(_COLUMNS)} |\n| {' | '.join(rule)} |\n"
    left = room_bytes - len(head.encode()) - 100
    if left < 0:
        return ""
    lines: list[str] = []
    for index, row in enumerate(rows):
        line = "| " + " | ".join(escape(_short(cell)) for cell in _cells(row)) + " |\n"
        left -= len(line.encode())
        if left < 0:
            return head + "".join(lines) + f"\n{len(rows) - index:,} more rows: no room for them here.\n"
        lines.append(line)
    return head + "".join(lines)


def _cells(row: Mapping[str, Any]) -> list[str]:
    shares = [row.get(name) for name in ("baseline_fraction", "current_fraction")]
    return [
        row["verdict"] or "no verdict",
        row["id"],
        "" if row["metric"] == "*" else row["metric"],
        _value(row["baseline"]),
        _value(row["current"]),
        "" if row["ratio"] is None else f"{row['ratio']:.4f}",
        "" if None in shares else " → ".join(f"{share:.1%}" for share in shares if share is not None),
        row["note"] or "",
    ]


def _value(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else f"{value:,}" if not isinstance(value, bool) else str(value)


def _short(text: str) -> str:
    line = printable(text.replace("\n", " "))
    return line if len(line) <= LONGEST_CELL else line[: LONGEST_CELL - 1] + "…"
