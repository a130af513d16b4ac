"""How accurate is the decode attention model? Every public table, judged on rows that no fit has seen.

    python benchmarks/accuracy.py                       report into benchmarks/results/accuracy.json and .md
    python benchmarks/accuracy.py --write-calibrations  and the packaged calibrations, from 24 points of each table

Needs the extras `[predict,validate]`. For each table (GPU, engine, kernel, width of cache elements):

    roofline    max(bytes / stated bandwidth, FLOPs / stated peak)
    anchor      what aiconfigurator states for lack of a table: 0.8 of the bandwidth and 3 us
    family      the kernel family's middle values, no measurement of this GPU
    fitted      24 points drawn by strata of cache size, ten draws; the error is on all other rows, the median of ten
    shipped     the packaged calibration of the GPU and family: its own table's unseen rows, or another engine's all
    transfer    fitted on 24 points of another GPU: H100 for H200, B200 for B300
    coverage    share of unseen rows in the 90 % interval, whose shape is from other tables, scaled by the 24 points

The model's form and the families' middle values were worked out on H100, H200 and B200 tables with all rows of them in
view, so their figures are of a model that was made there. No row of B300, GB200 and GB300 was looked at; their scores
were seen while the form, and how points are drawn, were chosen. A fit sees its 24 points and nothing else of a table.
"""

import argparse
import json
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from accuracy_targets import TRANSFERS, median, targets
from measured_tables import PACKAGE, ROW_RULES, TABLE_RULES, MeasuredTable, load_tables

from kvcalc.commands.output import write_file
from kvcalc.timing.attention_time import machine, roofline_s
from kvcalc.timing.calibrated import (
    BOUNDARIES_BYTES,
    EIGHT_BIT,
    REGIMES,
    SIXTEEN_BIT,
    UNKNOWN,
    Calibration,
    Fit,
    Interval,
)
from kvcalc.timing.calibration.arrays import NUMPY, take
from kvcalc.timing.calibration.fit import POINTS, Fitted, choose_points, fit, leave_one_out, predict_s
from kvcalc.timing.calibration.interval import residual_interval, scale_to
from kvcalc.timing.calibration.store import DATA, packaged, regime_errors, to_yaml
from kvcalc.timing.families import FAMILIES

RESULTS = Path(__file__).parent / "results"
SEEDS = 10
ANCHOR_BANDWIDTH, ANCHOR_LATENCY_S = 0.8, 3e-6
"""mem_bw_empirical_scaling_factor and mem_empirical_constant_latency of aiconfigurator-core's systems/*.yaml."""
LARGE_BYTES = 200e6
SHIPPED = {
    "flashmla": ("trtllm 1.3.0rc20",),
    "fa3": ("sglang 0.5.14",),
    "trtllm-xqa": ("trtllm 1.3.0rc20",),
    "trtllm-gen": ("trtllm 1.3.0rc20",),
    "flashinfer": ("sglang 0.5.14", "sglang 0.5.10"),
    "triton": ("sglang 0.5.14",),
}
"""The engine whose table a family's packaged calibration is fitted on."""
MAX_SHIPPED_ERROR = 0.25
"""Mean held-out error above which a fit is not shipped."""


@dataclass(kw_only=True)
class Judged:
    """A table's fits by seed, with the rows that each has not seen."""

    table: MeasuredTable
    fits: list[Fitted] = field(default_factory=list)
    points: list[np.ndarray] = field(default_factory=list)
    unseen: list[np.ndarray] = field(default_factory=list)
    loo: list[np.ndarray] = field(default_factory=list)

    @property
    def kernel(self):
        return FAMILIES[self.table.family].kernels[self.table.kernel]

    def log_errors(self, values) -> np.ndarray:
        table = self.table
        return np.log(table.seconds) - np.log(predict_s(table.case, machine(table.gpu), self.kernel, values))

    @property
    def cache_bytes(self) -> np.ndarray:
        return np.asarray(self.table.case.cache_bytes)


def judge(table: MeasuredTable, seeds: int) -> Judged:
    judged = Judged(table=table)
    for seed in range(seeds):
        points = choose_points(table.case, POINTS, seed=seed)
        case, seconds = take(table.case, points), table.seconds[points]
        device = machine(table.gpu)
        judged.fits.append(fit(case, seconds, device, judged.kernel))
        judged.loo.append(leave_one_out(case, seconds, device, judged.kernel))
        unseen = np.ones(len(table.seconds), bool)
        unseen[points] = False
        judged.points.append(points)
        judged.unseen.append(unseen)
    return judged


def relative(log_errors: np.ndarray) -> np.ndarray:
    """|expected / measured - 1| from log(measured / expected)."""
    return np.abs(np.expm1(-log_errors))


def summary(log_errors: np.ndarray, cache_bytes: np.ndarray) -> dict[str, float | None]:
    errors, large = relative(log_errors), cache_bytes > LARGE_BYTES
    numbers = {
        "mean": float(np.mean(errors)),
        "median": float(np.median(errors)),
        "p90": float(np.quantile(errors, 0.9)),
        "mean_above_200_mb": float(np.mean(errors[large])) if np.any(large) else None,
        "median_above_200_mb": float(np.median(errors[large])) if np.any(large) else None,
    }
    regime = np.searchsorted(BOUNDARIES_BYTES, cache_bytes, side="right")
    numbers["by_regime"] = {
        name: float(np.mean(errors[regime == number])) if np.any(regime == number) else None
        for number, name in enumerate(REGIMES)
    }
    return numbers


def middle(rows: list[dict]) -> dict:
    """The median over seeds of each number."""
    keys = [key for key in rows[0] if key != "by_regime"]
    found = {key: median([row[key] for row in rows]) for key in keys}
    if "by_regime" in rows[0]:
        found["by_regime"] = {name: median([row["by_regime"][name] for row in rows]) for name in REGIMES}
    return found


def shape_for(judged: Judged, others: list[Judged]) -> tuple[Interval, str]:
    """The interval's shape from other GPUs' tables: the nearest kin that there are; their first draw's unseen rows."""
    table = judged.table
    elsewhere = [each for each in others if each.table.gpu.slug != table.gpu.slug]
    kin = [
        (
            "family, kernel and cache",
            lambda t: (t.family, t.kernel, t.eight_bit) == (table.family, table.kernel, table.eight_bit),
        ),
        ("family and kernel", lambda t: (t.family, t.kernel) == (table.family, table.kernel)),
        ("kernel and cache", lambda t: (t.kernel, t.eight_bit) == (table.kernel, table.eight_bit)),
        ("kernel", lambda t: t.kernel == table.kernel),
    ]
    for name, same in kin:
        chosen = [each for each in elsewhere if same(each.table)]
        if chosen:
            return pooled_interval(chosen), f"{len(chosen)} tables of other GPUs with the same {name}"
    return UNKNOWN, "nothing like it was measured"


def pooled_interval(chosen: list[Judged]) -> Interval:
    """Quantiles over tables, each with as many rows as the smallest."""
    random = np.random.default_rng(0)
    errors, sizes = [], []
    for each in chosen:
        unseen = np.flatnonzero(each.unseen[0])
        unseen = random.choice(unseen, min(len(unseen), 1400), replace=False)
        errors.append(each.log_errors(each.fits[0].values)[unseen])
        sizes.append(each.cache_bytes[unseen])
    return residual_interval(np.concatenate(errors), np.concatenate(sizes))


def covered(log_errors: np.ndarray, cache_bytes: np.ndarray, interval: Interval) -> dict[str, float | None]:
    regime = np.searchsorted(BOUNDARIES_BYTES, cache_bytes, side="right")
    low, high = np.array(interval.low)[regime], np.array(interval.high)[regime]
    ratio = np.exp(log_errors)
    inside, large = (low <= ratio) & (ratio <= high), cache_bytes > LARGE_BYTES
    return {
        "coverage": float(np.mean(inside)),
        "coverage_above_200_mb": float(np.mean(inside[large])) if np.any(large) else None,
        "half_width": float(np.median((high - low) / 2)),
        "half_width_above_200_mb": float(np.median(((high - low) / 2)[large])) if np.any(large) else None,
    }


def report(judged: Judged, everything: list[Judged]) -> dict:
    table, sizes = judged.table, judged.cache_bytes
    device = machine(table.gpu)
    start = judged.kernel.start(eight_bit=table.eight_bit)
    bound = np.log(table.seconds) - np.log(roofline_s(table.case, device, NUMPY))
    shape, origin = shape_for(judged, everything)
    seeds, coverage = [], []
    for fitted, points, unseen, loo in zip(judged.fits, judged.points, judged.unseen, judged.loo, strict=True):
        errors = judged.log_errors(fitted.values)
        seeds.append(summary(errors[unseen], sizes[unseen]))
        interval = scale_to(shape, loo.tolist(), sizes[points].tolist())
        coverage.append(covered(errors[unseen], sizes[unseen], interval))
    found = {
        **describe(table),
        "rows": len(table.seconds),
        "left_out": table.left_out,
        "roofline": summary(bound, sizes),
        "anchor_constants": summary(anchor_errors(table), sizes),
        "family_alone": summary(judged.log_errors(start), sizes),
        "fitted": middle(seeds),
        "fitted_by_seed": [{"mean": row["mean"], "mean_above_200_mb": row["mean_above_200_mb"]} for row in seeds],
        "interval": {**middle(coverage), "shape_from": origin},
        "shipped": shipped_errors(judged),
        "transfer": transfer(judged, everything),
        "with_rows_left_out": with_left_out(judged),
    }
    return found


def anchor_errors(table: MeasuredTable) -> np.ndarray:
    """Log errors of the constants that aiconfigurator's system files state for what it has no table of.

    bytes / (0.8 bandwidth) + 3 us, or FLOPs / peak where that is more. Its no-table mode itself is not called: it is
    compiled, takes its utilisations from the same tables, and has no entry for a single attention call.
    """
    device, case = machine(table.gpu), table.case
    moved = (case.cache_bytes + case.query_output_bytes) / (ANCHOR_BANDWIDTH * device.bandwidth_bytes_per_s)
    bound = np.maximum(moved + ANCHOR_LATENCY_S, case.flop / device.matrix_flop_per_s)
    return np.log(table.seconds) - np.log(bound)


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
    rows = [report(judged, everything) for judged in everything]
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
        "tables_left_out": [left_out_table(table) for table in tables if table.table_rule is not None],
        "refused": refused,
    }
    if not options.only:
        from accuracy_page import page

        write_file(RESULTS / "accuracy.json", json.dumps(result, indent=1) + "\n")
        write_file(RESULTS / "accuracy.md", page(result))
    else:
        print(json.dumps(rows, indent=1))


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
