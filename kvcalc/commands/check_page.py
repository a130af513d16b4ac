"""What a check says to a person: the times, what moved among the exact values, and the verdict as the last line."""

from kvcalc.check.findings import NOT_COMPARABLE, SAME, Finding
from kvcalc.check.results import Value
from kvcalc.check.verdicts import Check
from kvcalc.report.page import Block, Facts, Lines, Page, Table
from kvcalc.units import seconds


def page(result: Check, *, baseline: str, current: str) -> Page:
    """The page; rows that are the same are counted, not listed."""
    times = [finding for finding in result.findings if finding.measured]
    others = [finding for finding in result.findings if not finding.measured and finding.verdict != SAME]
    same = sum(not finding.measured and finding.verdict == SAME for finding in result.findings)
    limits = ", ".join(f"{name} {share * 100:g}%" for name, share in result.settings.max_regression.items())
    rows = [("baseline", baseline, ""), ("current", current, "")]
    if times:
        evidence = f"with at most {result.settings.alpha:.1%} false alarms a run"
        rows.append(("threshold", f"{result.settings.threshold * 100:g}%", evidence))
    if limits:
        rows.append(("allowed", limits, ""))
    blocks: list[Block] = [Facts(title="", rows=rows)]
    if times:
        blocks.append(_times(times))
        if any(finding.verdict is None for finding in times):
            blocks.append(Lines(title="", lines=["* a ratio and no verdict: the note says why"]))
    if others:
        blocks.append(_values(others))
    if same:
        blocks.append(Lines(title="", lines=[f"{same:,} exact values are the same"]))
    return Page(title="Check", blocks=[*blocks, Lines(title="", lines=[result.sentence()])])


def _times(found: list[Finding]) -> Table:
    columns = ["verdict", "row", "baseline", "current", "ratio", "% of ceiling", "p", "samples", "note"]
    return Table(
        title="measured times",
        columns=columns,
        rows=[
            [
                finding.verdict or "no verdict",
                finding.id,
                _time(finding.baseline),
                _time(finding.current),
                _ratio(finding) + ("*" if finding.verdict is None else ""),
                f"{_share(finding.baseline_fraction)} -> {_share(finding.current_fraction)}",
                "-" if finding.p_value is None else f"{finding.p_value:.2g}",
                "-" if finding.samples is None else f"{finding.samples[0]}, {finding.samples[1]}",
                finding.note,
            ]
            for finding in found
        ],
        right=frozenset({"baseline", "current", "ratio", "% of ceiling", "p", "samples"}),
    )


def _values(found: list[Finding]) -> Table:
    return Table(
        title="what moved, and what can't be set side by side",
        columns=["verdict", "row", "metric", "baseline", "current", "change", "note"],
        rows=[
            [
                finding.verdict or "no verdict",
                finding.id,
                "" if finding.metric == "*" else finding.metric,
                _value(finding.baseline),
                _value(finding.current),
                _ratio(finding) if finding.verdict != NOT_COMPARABLE else "-",
                finding.note,
            ]
            for finding in found
        ],
        right=frozenset({"baseline", "current", "change"}),
    )


def _time(value: Value | None) -> str:
    return "-" if value is None else seconds(float(value))


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def _value(value: Value | None) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else f"{value:.6g}"


def _ratio(finding: Finding) -> str:
    """`+4.2%`; small changes of exact values with all the digits that they need."""
    ratio = finding.ratio
    if ratio is None:
        return "-"
    change = ratio - 1
    return f"{change:+.1%}" if abs(change) >= 0.0005 or finding.measured else f"{change:+.2g}"
