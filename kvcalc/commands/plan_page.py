"""What a plan says to a person: memory, speed at best, and what is kept more than once."""

from kvcalc.planning import Plan, PlanRow
from kvcalc.report.page import Block, Facts, Lines, Page, Table
from kvcalc.units import memory, ratio, seconds
from kvcalc.workload import Parallelism

MOST_ROWS = 40
"""Rows of a search that are shown to a person; JSON and CSV have all."""


def page(result: Plan, *, as_bytes: bool = False) -> Page:
    """What the plan says to a person."""
    blocks: list[Block] = [_head(result, as_bytes), _memory(result, as_bytes), _rates(result)]
    lines = list(_explained(result, as_bytes))
    if lines:
        blocks.append(Lines(title="What is kept more than once", lines=lines))
    return Page(title=f"Plan for {result.model.title} on {result.budget.gpu.name}", blocks=blocks)


def _head(result: Plan, as_bytes: bool) -> Facts:
    budget, demand, lengths = result.budget, result.demand, result.demand.lengths
    reported = memory(budget.gpu.memory_reported_bytes, as_bytes=as_bytes)
    rows = [
        (
            "memory",
            memory(budget.usable_bytes, as_bytes=as_bytes),
            f"a GPU: {budget.memory_utilization:.0%} of {reported} that the driver reports",
        )
    ]
    if lengths:
        text = f"{lengths.requests:,} requests, mean {lengths.mean_tokens:,} tokens, longest {lengths.longest_tokens:,}"
        rows.append(("lengths", lengths.source, text))
    else:
        rows.append(("context", f"{demand.context_tokens:,} tokens", ""))
    if demand.shared_prefix_tokens:
        read = "read once a step" if result.goals.cascade else "read by every sequence"
        rows.append(("shared prefix", f"{demand.shared_prefix_tokens:,} tokens", f"kept once a replica, {read}"))
    rows.append(("layout", result.layout_name, ""))
    rows += [("", "", note) for note in result.notes]
    copies = max((row.memory.weight_copies_bytes for row in result.rows), default=0)
    if copies:
        text = "in weights, at most: kv_b_proj again as W_UK and W_UV, for absorbed decode"
        rows.append(("weight copies", memory(copies, as_bytes=as_bytes), text))
    if budget.reserve_bytes is not None:
        rows.append(
            ("reserve", memory(budget.reserve_bytes, as_bytes=as_bytes), "as asked: for all but weights, cache")
        )
    elif result.rows:
        most = max(result.rows, key=lambda row: row.memory.step_bytes).memory
        rows += [
            ("assumed", f"{budget.step_tokens:,} tokens", "a prefill step: activations of its widest layer"),
            ("", memory(most.activation_bytes, as_bytes=as_bytes), "activations, at most"),
            (
                "",
                memory(most.workspace_bytes, as_bytes=as_bytes),
                "K and V that prefill rebuilds from latents, at most",
            ),
            ("", memory(most.logit_bytes_per_sequence, as_bytes=as_bytes), "logits a sequence, fp32"),
            ("", memory(budget.runtime_bytes, as_bytes=as_bytes), "runtime, from what utilization leaves free"),
        ]
    speculation = result.goals.speculation
    if speculation.draft_tokens:
        text = f"{speculation.tokens_per_step:.2f} tokens a step at acceptance {speculation.acceptance:g}"
        rows.append(("speculation", f"{speculation.draft_tokens} draft tokens", text))
    return Facts(title="", rows=rows)


def _shown(result: Plan) -> list[PlanRow]:
    """All rows, or of a long search its front, the fastest for each GPU first."""
    if len(result.rows) <= MOST_ROWS:
        return list(result.rows)
    front = [row for row in result.rows if row.pareto]
    return sorted(front, key=lambda row: row.tpot_s or 0.0)[:MOST_ROWS]


def _memory(result: Plan, as_bytes: bool) -> Table:
    shown, total = _shown(result), len(result.rows)
    title = "Memory on the fullest GPU"
    if len(shown) < total:
        title += f": the front, {len(shown)} of {total} rows"
    columns = ["parallel", "batch", "weights", "cache", "other", "fits", "max batch", "max context"]
    columns += ["cache kept", "weights kept"]
    return Table(
        title=title,
        columns=columns,
        right=frozenset(columns[1:]),
        rows=[
            [
                mix_name(row.mix),
                f"{row.batch:,}",
                memory(row.memory.weights_bytes, as_bytes=as_bytes),
                memory(row.memory.cache_bytes(row.demand, row.mix.batch_on_rank(row.batch)), as_bytes=as_bytes),
                memory(_other(row), as_bytes=as_bytes),
                "yes" if row.fits else "no",
                f"{row.max_batch:,}",
                f"{row.max_context_tokens:,}",
                ratio(float(row.replication_factor)),
                ratio(round(row.weights_replication_factor, 2)),
            ]
            for row in shown
        ],
    )


def _other(row: PlanRow) -> int:
    sequences = row.mix.batch_on_rank(row.batch)
    needed = row.memory.needed_bytes(row.demand, sequences)
    return needed - row.memory.weights_bytes - row.memory.cache_bytes(row.demand, sequences)


def _rates(result: Plan) -> Table:
    goals = result.goals
    columns = ["parallel", "batch", "TPOT", "bound", "tokens/s/GPU", "tokens/GPU-hour"]
    columns += ["TPOT, longest"] if result.demand.lengths else []
    columns += ["cost/M tokens"] if goals.price_per_gpu_hour is not None else []
    columns += ["meets target"] if goals.target_tpot_s is not None else []
    columns += ["a GPU sends", "in"] if goals.link_bytes_per_s else []
    columns.append("front")
    title = "Speed at best: the datasheet's roofline, without launches and communication; expect less"
    if any(row.interval_tpot_s for row in result.rows):
        columns[3:4] = ["90 % interval"]
        title = "Speed as the GPU's calibration expects it"
    return Table(
        title=title,
        columns=columns,
        right=frozenset(columns) - {"parallel", "bound", "90 % interval", "front"},
        rows=[_rate_cells(row, result) for row in _shown(result)],
    )


def _rate_cells(row: PlanRow, result: Plan) -> list[str]:
    def amount(value: float | None, digits: int = 0) -> str:
        return "-" if value is None else f"{value:,.{digits}f}"

    goals = result.goals
    between = row.timed.bound if row.timed else "-"
    if row.interval_tpot_s is not None:
        between = " to ".join(seconds(end) for end in row.interval_tpot_s)
    cells = [
        mix_name(row.mix),
        f"{row.batch:,}",
        "-" if row.tpot_s is None else seconds(row.tpot_s),
        between,
        amount(row.tokens_per_s_per_gpu),
        amount(row.tokens_per_gpu_hour),
    ]
    if result.demand.lengths:
        cells.append("-" if row.tpot_longest_s is None else seconds(row.tpot_longest_s))
    if goals.price_per_gpu_hour is not None:
        cells.append(amount(row.cost_per_million_tokens, 3))
    if goals.target_tpot_s is not None:
        cells.append("-" if row.meets_target is None else "yes" if row.meets_target else "no")
    if goals.link_bytes_per_s:
        cells += [memory(row.sequence_rank_bytes), "-" if row.transfer_s is None else seconds(row.transfer_s)]
    return [*cells, "*" if row.pareto else ""]


def _explained(result: Plan, as_bytes: bool) -> list[str]:
    """What tensor and data parallelism copy, and why one holds not as many times more sequences as it has ranks."""
    flat = [row for row in result.rows if row.mix.pp == 1]
    tensor = next((row for row in flat if row.mix.dp == 1 and row.mix.dcp == 1 and row.mix.tp > 1), None)
    data = next((row for row in flat if row.mix.tp == 1 and row.mix.dp > 1), None)
    if tensor is None or data is None or tensor.mix.tp != data.mix.dp:
        return []
    ranks, copies = tensor.mix.tp, float(tensor.replication_factor)
    more = memory(max(0, data.memory.weights_bytes - tensor.memory.weights_bytes), as_bytes=as_bytes)
    kept = [ratio(round(row.weights_replication_factor, 2)) for row in (tensor, data)]
    lines = [
        f"tp {ranks}: a sequence's cache is kept {ratio(copies)} on {ranks} ranks, weights {kept[0]}",
        f"dp {ranks}: a sequence's cache is kept once, weights {kept[1]}: attention and all else but experts is on "
        f"every GPU, {more} a GPU more",
    ]
    if not tensor.max_batch:
        return lines
    times = data.max_batch / tensor.max_batch
    why = f": not {ratio(copies)}, since those weights and wider activations come first" if 1 < times < copies else ""
    lines.append(f"dp {ranks} holds {data.max_batch:,} sequences, tp {ranks} {tensor.max_batch:,}: {times:.2f}x{why}")
    for row in {row.mix: row for row in flat}.values():
        if row.mix.dcp > 1 and row.mix.tp == ranks:
            lines.append(
                f"tp {ranks} dcp {row.mix.dcp} holds {row.max_batch:,}, {row.max_batch / tensor.max_batch:.2f}x: ranks "
                f"share a sequence's tokens, its cache is kept {ratio(float(row.replication_factor))}"
            )
    return lines


def mix_name(mix: Parallelism) -> str:
    parts = [f"{name} {getattr(mix, name)}" for name in ("tp", "pp", "dp", "dcp", "ep") if getattr(mix, name) > 1]
    return " ".join(parts) or "1 GPU"
