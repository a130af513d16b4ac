"""How accurate is the decode attention model? Every public table, judged on rows that no fit has seen.

    python benchmarks/accuracy.py                       report into benchmarks/results/accuracy.json and .md, pictures
                                                        into docs/accuracy where matplotlib is installed
    python benchmarks/accuracy.py --write-calibrations  and the packaged calibrations, from 24 points of each table

Needs the extras `[predict,validate]`. For each table (GPU, engine, kernel, width of cache elements):

    roofline    max(bytes / stated bandwidth, FLOPs / stated peak)
    anchor      aiconfigurator-core itself: the bound of its SOL mode, which reads no table; its constants for what it
                has no table of; and its HYBRID mode with the first draw's 24 points as its table (accuracy_anchor.py)
    family      the kernel family's middle values, no measurement of this GPU
    fitted      24 points drawn by strata of cache size, ten draws; the error is on all other rows, the median of ten
    shipped     the packaged calibration of the GPU and family: its own table's unseen rows, or another engine's all
    transfer    fitted on 24 points of another GPU: H100 for H200, B200 for B300
    coverage    share of unseen rows in the 90 % interval, whose shape is from other tables, scaled by the 24 points

What no fit is made on (windows, several query tokens, sparse attention) is judged apart (accuracy_kinds.py).

The model's form and the families' middle values were worked out on H100, H200 and B200 tables with all rows of them in
view, so their figures are of a model that was made there; how many 8-bit blocks an SM of Ada holds, with L40S's. No row
of B300, GB200 and GB300 was looked at; their scores were seen while the form, and how points are drawn, were chosen. A
fit sees its 24 points and nothing else of a table.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
from accuracy_anchor import bound_errors, constants_errors, points_errors
from accuracy_judge import Judged, covered, interval_of, judge, middle, relative, shape_for, summary
from accuracy_kinds import NOT_JUDGED, kinds
from accuracy_page import page
from accuracy_plots import DOCS, write_plots
from accuracy_targets import TRANSFERS, targets
from measured_tables import PACKAGE, ROW_RULES, TABLE_RULES, MeasuredTable, load_tables

from kvcalc.commands.output import write_file
from kvcalc.timing.attention_time import machine, roofline_s
from kvcalc.timing.calibrated import BOUNDARIES_BYTES, EIGHT_BIT, SIXTEEN_BIT, Calibration, Fit, Interval
from kvcalc.timing.calibration.arrays import NUMPY
from kvcalc.timing.calibration.fit import POINTS, predict_s
from kvcalc.timing.calibration.interval import residual_interval
from kvcalc.timing.calibration.store import DATA, packaged, regime_errors, to_yaml

RESULTS = Path(__file__).parent / "results"
SEEDS = 10
SHIPPED = {
    "flashmla": ("trtllm 1.3.0rc20",),
    "fa3": ("sglang 0.5.14",),
    "fa3-vllm": ("vllm 0.24.0",),
    "trtllm-xqa": ("trtllm 1.3.0rc20",),
    "trtllm-gen": ("trtllm 1.3.0rc20",),
    "flashinfer": ("sglang 0.5.14", "sglang 0.5.10"),
    "triton": ("sglang 0.5.14",),
}
"""The engine whose table a family's packaged calibration is fitted on."""
MAX_SHIPPED_ERROR = 0.25
"""Mean held-out error above which a fit is not shipped."""


def report(judged: Judged, everything: list[Judged], shape: Interval, origin: str) -> dict:
    table, sizes = judged.table, judged.cache_bytes
    device = machine(table.gpu)
    start = judged.kernel.start(eight_bit=table.eight_bit)
    bound = np.log(table.seconds) - np.log(roofline_s(table.case, device, NUMPY))
    seeds, coverage = [], []
    for draw, (fitted, unseen) in enumerate(zip(judged.fits, judged.unseen, strict=True)):
        errors = judged.log_errors(fitted.values)
        seeds.append(summary(errors[unseen], sizes[unseen]))
        coverage.append(covered(errors[unseen], sizes[unseen], interval_of(judged, draw, shape)))
    found = {
        **describe(table),
        "rows": len(table.seconds),
        "left_out": table.left_out,
        "roofline": summary(bound, sizes),
        "anchor": anchor(judged),
        "family_alone": summary(judged.log_errors(start), sizes),
        "fitted": middle(seeds),
        "fitted_by_seed": [{"mean": row["mean"], "mean_above_200_mb": row["mean_above_200_mb"]} for row in seeds],
        "interval": {**middle(coverage), "shape_from": origin},
        "shipped": shipped_errors(judged),
        "transfer": transfer(judged, everything),
        "with_rows_left_out": with_left_out(judged),
    }
    return found


def anchor(judged: Judged) -> dict:
    """aiconfigurator-core on the rows: its bound, its constants, and what it makes of the first draw's points."""
    table, sizes = judged.table, judged.cache_bytes
    points = points_errors(table, judged.points[0])
    answered = judged.unseen[0] & np.isfinite(points)
    return {
        "bound": summary(bound_errors(table), sizes),
        "constants": summary(constants_errors(table), sizes),
        "points": summary(points[answered], sizes[answered]) if np.any(answered) else None,
        "points_refused": int(np.sum(judged.unseen[0] & ~answered)),
    }


def describe(table: MeasuredTable) -> dict:
    return {
        "gpu": table.gpu.slug,
        "engine": table.engine,
        "kernel_source": table.source,
        "family": table.family,
        "kernel": table.kernel,
        "cache": "fp8" if table.eight_bit else "bf16",
    }


def shipped_errors(judged: Judged) -> dict | None:
    """The packaged calibration on this table: without the first draw's points where it was fitted on them."""
    table = judged.table
    for calibration in packaged(table.gpu.slug):
        found = calibration.fit(table.kernel, eight_bit=table.eight_bit)
        if calibration.family == table.family and found is not None:
            own = calibration.engine == table.engine
            rows = judged.unseen[0] if own else np.ones(len(table.seconds), bool)
            errors, sizes = judged.log_errors(found.values)[rows], judged.cache_bytes[rows]
            return {"of_this_engine": own, **summary(errors, sizes), **covered(errors, sizes, found.interval)}
    return None


def transfer(judged: Judged, everything: list[Judged]) -> dict | None:
    table = judged.table
    for other in everything:
        source = other.table
        same = (source.engine, source.source, source.kernel, source.eight_bit) == (
            table.engine,
            table.source,
            table.kernel,
            table.eight_bit,
        )
        if same and source.gpu.slug == TRANSFERS.get(table.gpu.slug):
            rows = [summary(judged.log_errors(fitted.values), judged.cache_bytes) for fitted in other.fits]
            return {"from": source.gpu.slug, **middle(rows)}
    return None


def with_left_out(judged: Judged) -> dict | None:
    out = judged.table.rows_left_out
    if out is None:
        return None
    values = judged.fits[0].values
    errors = np.log(out.seconds) - np.log(predict_s(out.case, machine(out.gpu), judged.kernel, values))
    sizes = np.asarray(out.case.cache_bytes)
    unseen = judged.unseen[0]
    both = np.concatenate([judged.log_errors(values)[unseen], errors])
    return summary(both, np.concatenate([judged.cache_bytes[unseen], sizes]))


def calibrations(everything: list[Judged], date: str) -> list[Calibration]:
    """What is packaged: the first draw's fit of each GPU and family, with its errors on all other rows."""
    groups: dict[tuple[str, str], list[Judged]] = {}
    for judged in everything:
        table = judged.table
        if table.engine in SHIPPED.get(table.family, ()):
            groups.setdefault((table.gpu.slug, table.family), []).append(judged)
    made = []
    for (gpu, family), members in groups.items():
        fits = [shipped_fit(each) for each in members]
        kept = [each for each in fits if each is not None]
        if kept:
            engine = members[0].table.engine
            made.append(
                Calibration(
                    gpu=gpu,
                    family=family,
                    engine=engine,
                    source=f"PyPI {PACKAGE} (Apache-2.0), systems/data, {engine}: decode attention tables",
                    date=date,
                    fits=tuple(kept),
                )
            )
    return made


def shipped_fit(judged: Judged) -> Fit | None:
    table, unseen = judged.table, judged.unseen[0]
    errors, sizes = judged.log_errors(judged.fits[0].values)[unseen], judged.cache_bytes[unseen]
    if np.mean(relative(errors)) > MAX_SHIPPED_ERROR:
        return None
    regime = np.searchsorted(BOUNDARIES_BYTES, sizes, side="right")
    return Fit(
        kernel=table.kernel,
        cache=EIGHT_BIT if table.eight_bit else SIXTEEN_BIT,
        points=POINTS,
        values=judged.fits[0].values,
        held_out=regime_errors(relative(errors), regime),
        interval=residual_interval(errors, sizes),
        interval_from=f"the {len(errors):,} rows of the table that the fit has not seen",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write-calibrations", action="store_true")
    parser.add_argument("--only", default="", help="tables whose name contains this")
    parser.add_argument("--into", type=Path, help="write the report and its pictures into this folder instead")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--date", default=time.strftime("%Y-%m-%d"))
    options = parser.parse_args()
    tables = [table for table in load_tables() if options.only in table.name]
    used = [table for table in tables if table.table_rule is None]
    everything, refused = [], []
    for table in used:
        started = time.perf_counter()
        try:
            everything.append(judge(table, options.seeds))
        except Exception as error:
            refused.append({**describe(table), "why": str(error)})
        print(f"{table.name}: {time.perf_counter() - started:.1f} s", flush=True)
    if options.write_calibrations:
        for calibration in calibrations(everything, options.date):
            write_file(DATA / f"{calibration.gpu}-{calibration.family}.yaml", to_yaml(calibration))
        packaged.cache_clear()
    shapes = [shape_for(judged, everything) for judged in everything]
    rows = [report(each, everything, *shape) for each, shape in zip(everything, shapes, strict=True)]
    shaped = [(each, shape) for each, (shape, _) in zip(everything, shapes, strict=True)]
    result = {
        "schema": "kvcalc.accuracy/1",
        "measurements": PACKAGE,
        "date": options.date,
        "points": POINTS,
        "seeds": options.seeds,
        "targets": targets(rows),
        "row_rules": ROW_RULES,
        "table_rules": TABLE_RULES,
        "tables": rows,
        "kinds": kinds(shaped),
        "kinds_not_judged": NOT_JUDGED,
        "tables_left_out": [left_out_table(table) for table in tables if table.table_rule is not None],
        "refused": refused,
    }
    if options.only and options.into is None:
        print(json.dumps(rows, indent=1))
        return
    folder = options.into or RESULTS
    folder.mkdir(parents=True, exist_ok=True)
    write_file(folder / "accuracy.json", json.dumps(result, indent=1) + "\n")
    write_file(folder / "accuracy.md", page(result))
    write_plots(shaped, options.into or DOCS)


def left_out_table(table: MeasuredTable) -> dict:
    """A table that a rule leaves out, with what a fit on 24 points of it would have given all the same."""
    found = {**describe(table), "rows": len(table.seconds), "rule": table.table_rule}
    if table.table_rule != "small":
        try:
            judged = judge(table, 1)
            errors = judged.log_errors(judged.fits[0].values)[judged.unseen[0]]
            found["fitted"] = summary(errors, judged.cache_bytes[judged.unseen[0]])
        except Exception as error:
            found["fitted"] = None
            found["refused"] = str(error)
    return found


if __name__ == "__main__":
    main()
