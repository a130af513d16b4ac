"""The parts of a report that come from measurements: the machine, the roofline, times against predictions, verdicts."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from kvcalc.report.content import Block, Cell, Command, Grid, Section, cell
from kvcalc.report.figures import FLOP_RATE, INTENSITY, SECONDS, Axis, Chart, Point, Series
from kvcalc.report.page import Facts, Lines
from kvcalc.report.read import Json, get, items, number, positive, text
from kvcalc.units import memory, seconds

MOST_FACTS = 60
US = 1e-6


def profile(document: Json) -> Section:
    """A run on a machine: its points, its times, its conditions and how to repeat it."""
    device, model = text(document, "environment.device.name", "a machine"), text(document, "model.name", "model")
    cases = items(document, "cases")
    blocks: list[Block] = [Facts(title="Measured ceilings", rows=_ceilings(document))]
    blocks += [*roofline(document), *against_prediction(cases, str(get(document, "expected_is") or ""))]
    if cases:
        blocks.append(_cases(cases))
    wrong = [each for each in cases if get(each, "correctness.passed") is False]
    if wrong:
        lines = [f"{text(each, 'kernel')} on {text(each, 'id')}: {text(each, 'correctness.reason')}" for each in wrong]
        blocks.append(Lines(title="WRONG RESULTS (not timed)", lines=lines))
    skipped = items(document, "skipped")
    if skipped:
        blocks.append(_skipped(skipped))
    warnings = get(document, "warnings")
    if isinstance(warnings, list) and warnings:
        blocks.append(Lines(title="Warnings", lines=[str(each) for each in warnings]))
    blocks.append(Facts(title="Machine and versions", rows=list(_environment(get(document, "environment")))))
    if text(document, "command"):
        blocks.append(Command(text=text(document, "command")))
    return Section(title=f"{model} measured on {device}", blocks=blocks)


def _ceilings(document: Json) -> list[tuple[str, str, str]]:
    ceilings = get(document, "ceilings")
    rows = []
    for label, key, note in (
        ("read bandwidth", "read_bandwidth_bytes_per_s", text(ceilings, "read_method")),
        ("copy bandwidth", "copy_bandwidth_bytes_per_s", "read and written"),
    ):
        rate = number(ceilings, key)
        if rate is not None:
            rows.append((label, f"{rate / 1e9:,.1f} GB/s", note))
    rates = get(ceilings, "matmul_flop_per_s")
    for dtype in rates if isinstance(rates, Mapping) else ():
        rate = positive(rates, str(dtype))
        if rate is not None:
            rows.append((f"{dtype} matmul", f"{rate / 1e12:,.3g} TFLOP/s", ""))
    launch = number(ceilings, "launch_s")
    if launch is not None:
        rows.append(("launch", seconds(launch), ""))
    return rows


def roofline(document: Json) -> list[Block]:
    """Measured points under the lines that the same run measured."""
    groups: dict[str, list[Point]] = {}
    for each in items(document, "cases"):
        work, moved, time = positive(each, "flop"), positive(each, "bytes"), positive(each, "median_s")
        if work and moved and time:
            name = f"{text(each, 'kernel')}, {text(each, 'attention')}"
            speed = f"{work / time / 1e12:.3g} TFLOP/s, {moved / time / 1e9:,.0f} GB/s"
            label = f"{text(each, 'kernel')}, {text(each, 'id')}: {speed}"
            groups.setdefault(name, []).append(Point(x=work / moved, y=work / time, label=label))
    if not groups:
        return []
    series = [Series(name=name, points=points) for name, points in groups.items()]
    least = min(point.x for each in series for point in each.points)
    most = max(point.x for each in series for point in each.points)
    return [
        Chart(
            title="Roofline",
            caption=(
                "FLOP a second against FLOP a byte, each point one kernel on one case; the lines are the read "
                "bandwidth and the matrix product rates that the same run measured. The nearer to a line, the better."
            ),
            x=Axis(label="arithmetic intensity (FLOP/byte)", unit=INTENSITY),
            y=Axis(label="FLOP/s", unit=FLOP_RATE),
            series=[*_limits(document, least, most), *series],
        )
    ]


def _limits(document: Json, least: float, most: float) -> Iterator[Series]:
    bandwidth, rates = (
        positive(document, "ceilings.read_bandwidth_bytes_per_s"),
        get(document, "ceilings.matmul_flop_per_s"),
    )
    if bandwidth is None or not isinstance(rates, Mapping):
        return
    used = {text(each, "dtype") for each in items(document, "cases")}
    for dtype in rates:
        peak = positive(rates, str(dtype))
        if peak is None or str(dtype) not in used:
            continue
        ridge = peak / bandwidth
        ends = [min(least, ridge) / 3, ridge, max(most, ridge) * 3]
        points = [Point(x=x, y=min(x * bandwidth, peak)) for x in ends]
        yield Series(name=f"measured {dtype} roofline", points=points, reference=True)


def against_prediction(cases: Sequence[Json], expected_is: str) -> list[Block]:
    """Measured times against expected ones; on the line they agree."""
    groups: dict[str, list[Point]] = {}
    errors = []
    for each in cases:
        expected, measured = positive(each, "predicted.expected_s"), positive(each, "median_s")
        if expected is None or measured is None:
            continue
        errors.append(measured / expected - 1)
        label = (
            f"{text(each, 'kernel')}, {text(each, 'id')}: expected {seconds(expected)}, measured {seconds(measured)}"
        )
        point = Point(x=expected, y=measured, low=positive(each, "p20_s"), high=positive(each, "p80_s"), label=label)
        groups.setdefault(f"{text(each, 'kernel')}, {text(each, 'attention')}", []).append(point)
    within = f"Half of the cases are within {_middle(errors):.0%} of it. " if errors else ""
    bars = "Bars up and down: the 20th to the 80th percentile of the samples."
    return _agreement(groups, f"{within}{bars} Expected: {expected_is}." if expected_is else f"{within}{bars}")


def _agreement(groups: Mapping[str, list[Point]], caption: str) -> list[Block]:
    if not groups:
        return []
    values = [value for points in groups.values() for point in points for value in (point.x, point.y)]
    ends = [Point(x=value, y=value) for value in (min(values) / 2, max(values) * 2)]
    return [
        Chart(
            title="Predicted against measured",
            caption=caption,
            x=Axis(label="expected", unit=SECONDS),
            y=Axis(label="measured", unit=SECONDS),
            series=[
                Series(name="measured = expected", points=ends, reference=True),
                *(Series(name=name, points=points) for name, points in groups.items()),
            ],
        )
    ]


def _middle(errors: Sequence[float]) -> float:
    ordered = sorted(abs(each) for each in errors)
    return ordered[(len(ordered) - 1) // 2]


def _cases(cases: Sequence[Json]) -> Grid:
    columns = [
        "kernel",
        "attention",
        "batch",
        "context",
        "time",
        "GB/s",
        "of ceiling",
        "bound",
        "expected",
        "error",
        "result",
    ]
    return Grid(title="Measured cases", columns=columns, rows=[_case(each) for each in cases])


def _case(each: Json) -> list[Cell]:
    time, moved = positive(each, "median_s"), positive(each, "bytes")
    bandwidth, compute = number(each, "bandwidth_fraction"), number(each, "flop_fraction")
    share = max((value for value in (bandwidth, compute) if value is not None), default=None)
    expected, error = positive(each, "predicted.expected_s"), number(each, "error")
    rate = moved / time / 1e9 if moved and time else None
    batch, context = number(each, "batch"), number(each, "context_tokens")
    return [
        cell(text(each, "kernel")),
        cell(f"{text(each, 'attention')} x{text(each, 'n_heads')}"),
        cell("" if batch is None else f"{batch:,}", batch),
        cell("" if context is None else f"{context:,}", context),
        cell("-" if time is None else seconds(time), time),
        cell("-" if rate is None else f"{rate:,.1f}", rate),
        cell("-" if share is None else f"{share:.1%}", share),
        cell(text(each, "bound")),
        cell("-" if expected is None else seconds(expected), expected),
        cell("-" if error is None else f"{error:+.0%}", error),
        cell("WRONG" if get(each, "correctness.passed") is False else "right"),
    ]


def _skipped(skipped: Sequence[Json]) -> Grid:
    counts: dict[tuple[str, str], int] = {}
    for each in skipped:
        key = (text(each, "kernel"), text(each, "reason"))
        counts[key] = counts.get(key, 0) + 1
    rows = [[cell(kernel), cell(f"{count:,}", count), cell(reason)] for (kernel, reason), count in counts.items()]
    return Grid(title="Skipped", columns=["kernel", "cases", "reason"], rows=rows)


def _environment(data: Any) -> Iterator[tuple[str, str, str]]:
    """All plain values of the environment, by their dotted names."""
    for count, (name, value) in enumerate(_plain(data, "", 0)):
        if count >= MOST_FACTS:
            return
        shown = memory(value) if name.endswith("_bytes") and isinstance(value, int) and value >= 0 else str(value)
        yield name.replace("_bytes", "").replace("_", " "), shown, ""


def _plain(data: Any, prefix: str, depth: int) -> Iterator[tuple[str, Any]]:
    for key, value in data.items() if isinstance(data, Mapping) and depth < 4 else ():
        if isinstance(value, Mapping):
            yield from _plain(value, f"{prefix}{key}.", depth + 1)
        elif value is not None and not isinstance(value, list | bool) and value != "":
            yield f"{prefix}{key}", value


def predictions(document: Json) -> Section:
    """Rows of `kvcalc predict`, against what was measured where the table has that."""
    rows = items(document, "rows")
    inputs = [name for name in dict.fromkeys(key for row in rows for key in row) if not name.endswith("_us")]
    columns = [*inputs, "roofline", "expected", "low", "high", "measured"]
    grid = Grid(
        title="Predicted times",
        columns=columns,
        rows=[
            [cell(text(row, name), number(row, name)) for name in inputs]
            + [_us(positive(row, f"{name}_us")) for name in ("roofline", "expected", "low", "high", "latency")]
            for row in rows
        ],
    )
    groups: dict[str, list[Point]] = {}
    inside = timed = 0
    for row in rows:
        expected, measured = positive(row, "expected_us"), positive(row, "latency_us")
        low, high = positive(row, "low_us"), positive(row, "high_us")
        if expected is None or measured is None:
            continue
        timed += 1
        inside += low is not None and high is not None and low <= measured <= high
        left, right = (None if each is None else each * US for each in (low, high))
        point = Point(x=expected * US, y=measured * US, left=left, right=right)
        groups.setdefault(text(row, "attention", "all"), []).append(point)
    caption = f"Bars along: the predicted interval; {inside:,} of {timed:,} measured times are inside theirs."
    return Section(title="Predictions", blocks=[*_agreement(groups, caption), grid])


def _us(value_us: float | None) -> Cell:
    return cell("-") if value_us is None else cell(seconds(value_us * US), value_us)


def check(document: Json) -> Section:
    """A check's verdict and the rows that it is made of."""
    rows = items(document, "rows")
    shown = [row for row in rows if text(row, "verdict") != "same" or text(row, "metric") == "median_s"]
    said = text(document, "sentence") or f"verdict: {text(document, 'verdict')}"
    blocks: list[Block] = [Lines(title="", lines=[said])]
    if shown:
        columns = ["verdict", "row", "metric", "baseline", "current", "ratio", "note"]
        blocks.append(
            Grid(title="Rows that are not exact and the same", columns=columns, rows=[_checked(each) for each in shown])
        )
    if len(rows) > len(shown):
        blocks.append(Lines(title="", lines=[f"{len(rows) - len(shown):,} exact values are the same"]))
    return Section(title="Check", blocks=blocks)


def _checked(row: Json) -> list[Cell]:
    ratio = number(row, "ratio")
    timed = text(row, "metric") == "median_s"
    values = [number(row, name) for name in ("baseline", "current")]
    return [
        cell(text(row, "verdict", "no verdict")),
        cell(text(row, "id")),
        cell("" if text(row, "metric") == "*" else text(row, "metric")),
        *(cell("-") if each is None else cell(seconds(each) if timed else f"{each:,}", each) for each in values),
        cell("-" if ratio is None else f"{ratio:.4f}", ratio),
        cell(text(row, "note")),
    ]
