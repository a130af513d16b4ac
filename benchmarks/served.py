"""How accurate is the whole decode step? Served points, aggregated, against `--serving aggregated`.

    python benchmarks/served.py        report into benchmarks/results/served.json and .md

Needs the extras `[predict,validate]`. aiconfigurator-core 0.12.0 carries measured TTFT and TPOT of served models
(silicon_sample.csv). Dense: Llama-3.1-8B and 70B and Qwen3-32B on B200, H100 and H200. Mixtures of experts: all rows of
`EXPERTS` with a stated format of weights, in the mix of tp, attention dp and ep that they state. A row's context is its
prompt and half of its output; weights are in the format that the row states, bf16 where it states none.

What a row does not state is taken from what is public of its source:

    lengths  of InferenceMAX (Llama-3.1-70B, and what its database gave): the client draws prompts and outputs from 0.8
             to 1.0 of the stated lengths (--random-range-ratio 0.8, README; github.com/kimbochen/bench_serving
             benchmark_serving.py 406abc3), so their mean is `RANGE` of them
    cache    fp8 beside per-tensor fp8 and nvfp4 weights: InferenceMAX's scripts keep it so (github.com/SemiAnalysisAI/
             InferenceX, benchmarks/70b_*.sh, 73ef922 and 409e9a4), and the ModelOpt checkpoints with such weights state
             it (kv_cache_quant_algo in hf_quant_config.json); bf16, engines' default, beside all others. Qwen3-32B on
             TensorRT-LLM bears it out: TTFT shows that requests wait for memory just where an fp8 cache is full

Prompts of Llama-3.1-8B on vLLM look repeated: at the stated concurrency their FLOPs alone would take up to 90 % of the
time at the whole peak, where no other row's take 40 %, and vLLM keeps prefixes by default. No row says so, so no term
does; those 21 rows are in all totals, and one line is without them.

Of the model's constants one was set with the dense rows in view: 10 us of host work a sequence, for which their error
above batch 128 spoke; all others are of kernel tables or were set before the first comparison. That memory bounds what
decodes, that an engine may reserve, and that rows are quantised in a pass of their own bytes was seen in the dense rows
too. No constant was set with rows of mixtures of experts in view.
"""

import json
import re
import time
from pathlib import Path

import numpy as np
from measured_tables import PACKAGE, package_root

from kvcalc.api import estimate
from kvcalc.commands.output import write_file
from kvcalc.errors import UsageError
from kvcalc.results import Estimate

RESULTS = Path(__file__).parent / "results"
GPUS = {"h100_sxm": "h100-sxm5-80gb", "h200_sxm": "h200-sxm-141gb", "b200_sxm": "b200-sxm-180gb"}
MODELS = {"Llama-3.1-8B": "llama-3.1-8b", "Llama-3.1-70B": "llama-3.1-70b", "Qwen3-32B": "qwen3-32b"}
EXPERTS = {
    "DeepSeek-V3": "deepseek-v3",
    "DeepSeek-R1": "deepseek-v3",
    "Kimi-K2.5": "kimi-k2",
    "MiniMax-M2.5": "minimax-m2",
    "Qwen3-235B-A22B": "qwen3-235b-a22b",
    "gpt-oss-120b": "gpt-oss-120b",
}
MORE_GPUS = {"b300_sxm": "b300-sxm-270gb", "gb200": "gb200-186gb", "gb300": "gb300-279gb"}
DRAWN = ("model=Llama-3.1-70B", "db-dump/")
RANGE = 0.9
FORMATS = {"fp8": "fp8", "fp8_block": "fp8_block", "nvfp4": "nvfp4", "fp4": "nvfp4"}


def silicon_sample():
    import pandas

    data = pandas.read_csv(package_root() / "silicon_sample.csv")
    return data[data["mode"] == "agg"]


def served_rows(models: dict[str, str], gpus: dict[str, str]):
    """The rows, as dicts of what `estimate` takes and what was measured."""
    data = silicon_sample()
    for row in data[data.system.isin(gpus)].itertuples():
        model = next((name for part, name in models.items() if part in row.model_path), None)
        if model is None:
            continue
        stated = isinstance(row.gemm_quant_mode, str)
        drawn = any(source in row.silicon_data_source for source in DRAWN)
        asked = re.search(r"silicon_concurrency=(\d+)", row.silicon_data_source)
        dp, ep = (int(each) if each > 0 else 1 for each in (row.attention_dp_size, row.moe_ep_size))
        ranks = max(int(row.moe_tp_size * row.moe_ep_size), 1) if row.moe_tp_size > 0 else int(row.tp_size)
        if models is EXPERTS and (not stated or row.gemm_quant_mode not in FORMATS or ranks % dp or ranks % ep):
            continue
        yield {
            "model": model,
            "gpu": gpus[row.system],
            "backend": row.backend,
            "weights": FORMATS.get(row.gemm_quant_mode, "bf16") if stated else "bf16",
            "weights_stated": stated,
            "kv": "fp8" if stated and row.gemm_quant_mode in ("fp8", "nvfp4") else "bf16",
            "isl": int(row.isl),
            "osl": int(row.osl),
            "prompt_tokens": round(row.isl * (RANGE if drawn else 1)),
            "output_tokens": round(row.osl * (RANGE if drawn else 1)),
            "batch": int(asked[1]) if asked and models is EXPERTS else int(row.batch_size),
            "tp": ranks // dp if models is EXPERTS else int(row.tp_size),
            "dp": dp if models is EXPERTS else 1,
            "ep": ep if models is EXPERTS else 1,
            "measured_s": row.silicon_tpot_ms * 1e-3,
        }


def judged(row: dict) -> dict | None:
    """The row with what is expected; None where its mix does not divide the model."""
    try:
        result = predicted(row)
    except UsageError:
        return None
    expected = result.predictions["decode"]
    low, high = expected.interval_s
    return {
        **row,
        "roofline_s": result.rooflines["decode"].roofline_s,
        "expected_s": expected.expected_s,
        "covered": low <= row["measured_s"] <= high,
        "parts": {part.name: part.seconds for part in expected.parts},
    }


def predicted(row: dict) -> Estimate:
    return estimate(
        row["model"],
        gpu=row["gpu"],
        tp=row["tp"],
        dp=row["dp"],
        ep=row["ep"],
        batch=row["batch"],
        context_tokens=row["prompt_tokens"] + row["output_tokens"] // 2,
        weights_dtype=row["weights"],
        kv_dtype=row["kv"],
        output_tokens=row["output_tokens"],
        engine=row["backend"],
        memory_utilization=0.9,
    )


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
    rows = [judged(row) for row in served_rows(MODELS, GPUS)]
    mixed = [each for row in served_rows(EXPERTS, GPUS | MORE_GPUS) if (each := judged(row)) is not None]
    stated = [row for row in rows if row["weights_stated"]]
    repeated = [row for row in stated if row["model"] == "llama-3.1-8b" and row["backend"] == "vllm"]
    groups = {
        "weights' format stated": stated,
        "all": rows,
        "stated, without Llama-3.1-8B on vLLM": [row for row in stated if row not in repeated],
    }
    for key in ("model", "gpu", "backend", "weights", "tp"):
        for value in sorted({row[key] for row in stated}):
            groups[f"stated, {key} {value}"] = [row for row in stated if row[key] == value]
    for low, high in ((1, 8), (9, 32), (33, 128), (129, 100_000)):
        chosen = [row for row in stated if low <= row["batch"] <= high]
        groups[f"stated, batch {low} to {high}" if high < 100_000 else "stated, batch above 128"] = chosen
    groups["experts"] = mixed
    for key in ("model", "gpu", "backend", "weights"):
        for value in sorted({row[key] for row in mixed}):
            groups[f"experts, {key} {value}"] = [row for row in mixed if row[key] == value]
    groups["experts, ep 1"] = [row for row in mixed if row["ep"] == 1]
    groups["experts, ep above 1, dp 1"] = [row for row in mixed if row["ep"] > 1 and row["dp"] == 1]
    groups["experts, ep above 1, dp above 1"] = [row for row in mixed if row["ep"] > 1 and row["dp"] > 1]
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
        "one constant of the host's work for a sequence. Llama-3.1-8B's prompts on vLLM look repeated (the script says",
        "why); those rows are in every total but one. Mixtures of experts stand below, apart: no constant was",
        "set with them in view.",
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
