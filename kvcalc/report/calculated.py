"""The parts of a report that come from estimates and comparisons: the model, its cache, its growth, a step's time."""

import shlex
from collections.abc import Iterator, Mapping, Sequence

from kvcalc.report.content import Block, Cell, Grid, Section, cell
from kvcalc.report.figures import BYTES, TOKENS, Axis, Bar, Bars, Chart, Point, Series
from kvcalc.report.page import Facts, Lines
from kvcalc.report.read import Json, get, items, number, text, texts
from kvcalc.units import flop, memory, seconds
from kvcalc.units import number as shown_number

_ENTRY = {"latent": "latent", "rope": "rope", "k": "K", "v": "V"}
MOST_TERMS = 12


def model_card(estimate: Json) -> Section:
    """What the model is, what a token costs, and how that comes about."""
    name, title = text(estimate, "model.name", "model"), text(estimate, "model.title")
    parameters, active = number(estimate, "model.parameters.total"), number(estimate, "model.parameters.active")
    rows = [("attention", ", ".join(texts(estimate, "model.attention")), "")]
    if parameters is not None:
        note = f"{active / 1e9:,.2f} B active" if active is not None else ""
        rows.append(("parameters", f"{parameters / 1e9:,.2f} B", note))
    rows.append(("workload", _workload(estimate), ""))
    rows.append(
        ("formats", f"cache {text(estimate, 'precision.kv')}, weights {text(estimate, 'precision.weights')}", "")
    )
    rows.append(("layout", text(estimate, "engine.name", "generic"), _mix(estimate)))
    if text(estimate, "gpu.name"):
        rows.append(("GPU", text(estimate, "gpu.name"), ""))
    source = text(estimate, "model.source.cite")
    if source:
        rows.append(("source", source, f"read {text(estimate, 'model.source.date')}"))
    blocks: list[Block] = [
        Facts(title="", rows=rows),
        Facts(title="KV cache", rows=_cache(estimate)),
        Lines(title="Bytes a token, written out", lines=formula(estimate)),
    ]
    blocks += _memory(estimate)
    return Section(title=f"{title} ({name})" if title else name, blocks=blocks)


def _workload(estimate: Json) -> str:
    batch, context = number(estimate, "workload.batch"), number(estimate, "workload.context_tokens")
    return f"batch {batch or 0:,}, context {context or 0:,} tokens"


def _mix(estimate: Json) -> str:
    ranks = [(name, number(estimate, f"parallel.{name}")) for name in ("tp", "pp", "dp", "dcp", "ep")]
    return ", ".join(f"{name} {count:g}" for name, count in ranks if count is not None and count > 1)


def _cache(estimate: Json) -> list[tuple[str, str, str]]:
    per_token, elements = number(estimate, "cache.bytes_per_token"), number(estimate, "cache.elements_per_token")
    rows = []
    if per_token is not None:
        note = f"{shown_number(elements)} elements" if elements is not None else ""
        rows.append(("per token", f"{shown_number(per_token)} B", note))
    for label, key in (
        ("constant", "constant_bytes_per_sequence"),
        ("stored", "stored_bytes"),
        ("allocated", "allocated_bytes"),
        ("per rank", "per_rank.allocated_bytes"),
    ):
        value = number(estimate, f"cache.{key}")
        if value:
            rows.append((label, memory(value), f"{value:,} B"))
    copies = number(estimate, "cache.replication_factor")
    if copies is not None and copies != 1:
        rows.append(("copies", f"{copies:g}", "bytes on all ranks over one copy"))
    return rows


def formula(estimate: Json) -> list[str]:
    """`61 layers x (512 latent + 64 rope) in bf16, 1,152 B an entry: 70,272 B a token`, a line a kind of layer."""
    groups: dict[tuple[str, float, float], list[Json]] = {}
    for part in items(estimate, "cache.components"):
        key = (text(part, "attention"), number(part, "layers") or 0, number(part, "record_bytes") or 0)
        groups.setdefault(key, []).append(part)
    lines = []
    for (attention, layers, record_bytes), parts in groups.items():
        entry = " + ".join(_component(part) for part in parts)
        formats = " and ".join(dict.fromkeys(text(part, "format") for part in parts))
        slots = number(parts[0], "slots") or 0
        every = slots == number(estimate, "workload.context_tokens")
        total = (
            f"{layers * record_bytes:,} B a token" if every else f"{layers * record_bytes:,} B for each of {slots:,}"
        )
        size = f"{record_bytes:,} B an entry"
        lines.append(f"{attention}: {layers:,} layers x ({entry}) in {formats}, {size}: {total}")
    return lines


def _component(part: Json) -> str:
    heads, width = number(part, "heads") or 0, number(part, "width") or 0
    name = _ENTRY.get(text(part, "name"), text(part, "name"))
    return f"{width:,} {name}" if heads == 1 else f"{heads:,} x {width:,} {name}"


def explained(estimate: Json) -> list[Block]:
    """Every number as a formula, where the estimate was made with --explain."""
    rows = []
    for term in items(estimate, "terms"):
        value, unit = number(term, "value"), text(term, "unit")
        shown = "" if value is None else seconds(value) if unit == "s" else f"{value:,} {unit}"
        words = [cell(text(term, name)) for name in ("name", "formula", "substituted")]
        rows.append([*words, cell(shown, value)])
    columns = ["name", "formula", "with numbers", "value"]
    return [Grid(title="Every number as a formula", columns=columns, rows=rows)] if rows else []


def _memory(estimate: Json) -> Iterator[Block]:
    if number(estimate, "memory.weights_bytes_per_gpu") is None:
        return
    rows = [
        (label, memory(value), f"{value:,} B")
        for label, key in (
            ("weights", "weights_bytes_per_gpu"),
            ("cache", "cache_bytes_per_gpu"),
            ("usable", "usable_bytes_per_gpu"),
        )
        if (value := number(estimate, f"memory.{key}")) is not None
    ]
    fits = get(estimate, "memory.fits")
    rows.append(
        ("fits", "yes" if fits is True else "no", f"at most batch {number(estimate, 'memory.max_batch') or 0:,}")
    )
    yield Facts(title="Memory of a GPU", rows=rows)


def command(estimate: Json) -> str:
    """The command line that gives this estimate again."""
    words = ["kvcalc", "estimate", text(estimate, "model.name", "MODEL")]
    for option, key, default in (
        ("--context", "workload.context_tokens", ""),
        ("--batch", "workload.batch", "1"),
        ("--query-tokens", "workload.query_tokens", "1"),
        ("--gpu", "gpu.slug", ""),
        ("--kv-dtype", "precision.kv", "bf16"),
        ("--engine", "engine.name", "generic"),
        *((f"--{name}", f"parallel.{name}", "1") for name in ("tp", "pp", "dp", "dcp", "ep")),
    ):
        value = text(estimate, key)
        if value and value != default:
            words += [option, value]
    if get(estimate, "workload.mtp") is True:
        words.append("--mtp")
    return shlex.join(words)


def step_time(estimate: Json) -> list[Block]:
    """Where a decode step's time goes: a bar a part of the step, by what bounds it.

    Expected times where there are any, else the roofline's.
    """
    terms, parts = items(estimate, "decode.time.terms"), items(estimate, "decode.time.expected_terms")
    bounds = {_label(term): f"{text(term, 'bound', 'memory')} bound" for term in terms}
    sums: dict[str, float] = {}
    for part in parts or terms:
        value = number(part, "expected_s") or max(number(part, "memory_s") or 0.0, number(part, "compute_s") or 0.0)
        sums[_label(part)] = sums.get(_label(part), 0.0) + value
    whole = sum(sums.values())
    if whole <= 0:
        return []
    bars = [
        Bar(label=label, value=value, text=f"{seconds(value)}, {value / whole:.1%}", kind=bounds.get(label, "other"))
        for label, value in sorted(sums.items(), key=lambda item: -item[1])[:MOST_TERMS]
    ]
    what = "expected times" if parts else "each part at the datasheet's limits"
    caption = (
        f"One decode step of {text(estimate, 'model.name')} on one rank of {text(estimate, 'gpu.name', 'the GPU')}, "
        f"{_workload(estimate)}: {what}. {_times(estimate)}"
    )
    return [Bars(title="Where a decode step's time goes", caption=caption, bars=bars)]


def _label(term: Json) -> str:
    return ", ".join(each for each in (text(term, "name"), text(term, "detail")) if each)


def _times(estimate: Json) -> str:
    roofline, expected = number(estimate, "decode.time.roofline_s"), number(estimate, "decode.time.expected_s")
    said = [] if roofline is None else [f"Roofline {seconds(roofline)}"]
    if expected is not None:
        ends = get(estimate, "decode.time.interval_s")
        both = isinstance(ends, list) and len(ends) == 2 and all(isinstance(each, int | float) for each in ends)
        between = f" ({seconds(ends[0])} to {seconds(ends[1])})" if both else ""
        said.append(f"expected {seconds(expected)}{between}")
    return "; ".join(said) + "." if said else ""


def comparison(document: Json) -> Section:
    """The rows of a comparison as a table that can be sorted."""
    columns = [
        "model",
        "attention",
        "elements",
        "bytes a token",
        "ratio",
        "stored",
        "decode attention",
        "decode roofline",
    ]
    rows = [_compared(row) for row in items(document, "rows")]
    return Section(title="Compared", blocks=[Grid(title="KV cache of each model", columns=columns, rows=rows)])


def _compared(row: Json) -> list[Cell]:
    elements, per_token = number(row, "elements_per_token"), number(row, "bytes_per_token")
    ratio, stored = number(row, "ratio"), number(row, "stored_bytes")
    work, roofline = number(row, "decode_attention_flop_per_token"), number(row, "decode_roofline_s")
    return [
        cell(text(row, "model")),
        cell(text(row, "attention")),
        cell("-" if elements is None else shown_number(elements), elements),
        cell("-" if per_token is None else f"{shown_number(per_token)} B", per_token),
        cell("-" if ratio is None else f"{ratio:.3g}x", ratio),
        cell("-" if stored is None else memory(stored), stored),
        cell("-" if work is None else flop(work), work),
        cell("-" if roofline is None else seconds(roofline), roofline),
    ]


def growth(documents: Sequence[Json], *, exact: bool) -> list[Block]:
    """The cache against the context, a line a row of comparisons.

    exact  the comparisons are the same rows at several contexts; else the lines are drawn from one row's bytes a token
    """
    lines: dict[str, list[Point]] = {}
    for document in documents:
        for row in items(document, "rows"):
            name = f"{text(row, 'attention')}" if exact else text(row, "model")
            lines.setdefault(name, []).extend([_stored(row)] if exact else _grown(row))
    series = [
        Series(name=name, points=sorted((each for each in points if each.y > 0), key=lambda each: each.x), line=True)
        for name, points in lines.items()
    ]
    series = [each for each in series if len(each.points) > 1]
    if not series:
        return []
    batch = max((number(row, "batch") or 1 for document in documents for row in items(document, "rows")), default=1)
    how = "Each point is computed exactly." if exact else "From the bytes a token and the constant part of each row."
    return [
        Chart(
            title="KV cache against context",
            caption=f"Bytes stored for batch {batch:,}, one copy, on logarithmic axes; lower is better. {how}",
            x=Axis(label="context (tokens)", unit=TOKENS),
            y=Axis(label="KV cache", unit=BYTES),
            series=sorted(series, key=lambda each: -each.points[-1].y),
        )
    ]


def _stored(row: Json) -> Point:
    context, stored = number(row, "context_tokens") or 1, number(row, "stored_bytes") or 0
    return Point(x=context, y=stored, label=f"{text(row, 'attention')}, {context:,} tokens: {memory(stored)}")


def _grown(row: Json) -> list[Point]:
    per_token, constant = number(row, "bytes_per_token") or 0, number(row, "constant_bytes_per_sequence") or 0
    batch, most = number(row, "batch") or 1, max(number(row, "context_tokens") or 0, 131_072)
    points, context = [], 1024
    while context <= most:
        stored = batch * (per_token * context + constant)
        points.append(Point(x=context, y=stored, label=f"{text(row, 'model')}, {context:,} tokens: {memory(stored)}"))
        context *= 2
    return points


def what_if_growth(curves: Mapping[str, Sequence[Json]]) -> list[Section]:
    """The picture that explains MLA: a model's cache beside what other attention would keep for it."""
    sections = []
    for model, documents in curves.items():
        blocks = growth(documents, exact=True)
        if blocks:
            sections.append(Section(title=f"{model}: its cache, and with other attention", blocks=blocks))
    return sections
