"""How accurate is the whole decode step? Served points of dense models, aggregated, against `--serving aggregated`.

    python benchmarks/served.py        report into benchmarks/results/served.json and .md

Needs the extras `[predict,validate]`. aiconfigurator-core 0.12.0 carries measured TTFT and TPOT of served models
(silicon_sample.csv). Here: Llama-3.1-8B and 70B and Qwen3-32B on B200, H100 and H200, aggregated. A row's context is
its prompt and half of its output; weights are in the format that the row states, bf16 where it states none; the cache
is bf16, since no row states it. Of the model's constants one was set with these rows in view: 10 us of host work a
sequence, for which their error above batch 128 spoke; all others were set before the first comparison.
"""

import importlib.util
import json
import time
from pathlib import Path

import numpy as np
from measured_tables import PACKAGE

from kvcalc.api import estimate
from kvcalc.commands.output import write_file

RESULTS = Path(__file__).parent / "results"
GPUS = {"h100_sxm": "h100-sxm5-80gb", "h200_sxm": "h200-sxm-141gb", "b200_sxm": "b200-sxm-180gb"}
MODELS = {"Llama-3.1-8B": "llama-3.1-8b", "Llama-3.1-70B": "llama-3.1-70b", "Qwen3-32B": "qwen3-32b"}
FORMATS = {"fp8": "fp8", "fp8_block": "fp8_block", "nvfp4": "nvfp4", "fp4": "nvfp4"}


def served_rows():
    """The rows, as dicts of what `estimate` takes and what was measured."""
    import pandas

    found = importlib.util.find_spec("aiconfigurator_core")
    if found is None or not found.submodule_search_locations:
        raise SystemExit("this needs the public measurements: pip install 'kvcalc[validate]'")
    data = pandas.read_csv(Path(found.submodule_search_locations[0]) / "systems" / "silicon_sample.csv")
    data = data[(data["mode"] == "agg") & data.system.isin(GPUS)]
    for row in data.itertuples():
        model = next((name for part, name in MODELS.items() if part in row.model_path), None)
        if model is None:
            continue
        stated = isinstance(row.gemm_quant_mode, str)
        yield {
            "model": model,
            "gpu": GPUS[row.system],
            "backend": row.backend,
            "weights": FORMATS.get(row.gemm_quant_mode, "bf16") if stated else "bf16",
            "weights_stated": stated,
            "isl": int(row.isl),
            "osl": int(row.osl),
            "batch": int(row.batch_size),
            "tp": int(row.tp_size),
            "measured_s": row.silicon_tpot_ms * 1e-3,
        }


def judged(row: dict) -> dict:
    result = estimate(
        row["model"],
        gpu=row["gpu"],
        tp=row["tp"],
        batch=row["batch"],
        context_tokens=row["isl"] + row["osl"] // 2,
        weights_dtype=row["weights"],
        output_tokens=row["osl"],
    )
    expected = result.predictions["decode"]
    low, high = expected.interval_s
    return {
        **row,
        "roofline_s": result.rooflines["decode"].roofline_s,
        "expected_s": expected.expected_s,
        "covered": low <= row["measured_s"] <= high,
        "parts": {part.name: part.seconds for part in expected.parts},
    }


def summary(rows: list[dict]) -> dict:
    measured, expected, bound = (
        np.array([row[key] for row in rows]) for key in ("measured_s", "expected_s", "roofline_s")
    )
    error = expected / measured - 1
    return {
        "rows": len(rows),
        "mean": float(np.mean(np.abs(error))),
        "median": float(np.median(np.abs(error))),
        "p90": float(np.quantile(np.abs(error), 0.9)),
        "bias": float(np.median(error)),
        "roofline_mean": float(np.mean(np.abs(bound / measured - 1))),
        "measured_over_roofline": float(np.median(measured / bound)),
        "coverage": float(np.mean([row["covered"] for row in rows])),
    }


def main() -> None:
    rows = [judged(row) for row in served_rows()]
    stated = [row for row in rows if row["weights_stated"]]
    groups = {"weights' format stated": stated, "all": rows}
    for key in ("model", "gpu", "backend", "weights", "tp"):
        for value in sorted({row[key] for row in stated}):
            groups[f"stated, {key} {value}"] = [row for row in stated if row[key] == value]
    for low, high in ((1, 8), (9, 32), (33, 128), (129, 100_000)):
        chosen = [row for row in stated if low <= row["batch"] <= high]
        groups[f"stated, batch {low} to {high}" if high < 100_000 else "stated, batch above 128"] = chosen
    found = {name: summary(chosen) for name, chosen in groups.items() if chosen}
    result = {"schema": "kvcalc.served/1", "measurements": PACKAGE, "date": time.strftime("%Y-%m-%d"), "groups": found}
    write_file(RESULTS / "served.json", json.dumps(result, indent=1) + "\n")
    write_file(RESULTS / "served.md", page(result))


def page(result: dict) -> str:
    lines = [
        "# Accuracy of a served decode step",
        "",
        f"Made by `python benchmarks/served.py` on {result['date']} from {result['measurements']}: TPOT of dense",
        "models, aggregated serving, absolute error relative to the measurement. Nothing was fitted to these rows but",
        "one constant of the host's work for a sequence.",
        "",
        "| rows | number | mean | median | p90 | bias | in the interval | roofline alone | measured / roofline |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, row in result["groups"].items():
        shares = " | ".join(
            f"{100 * row[key]:.1f} %" for key in ("mean", "median", "p90", "bias", "coverage", "roofline_mean")
        )
        lines.append(f"| {name} | {row['rows']:,} | {shares} | {row['measured_over_roofline']:.2f} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
