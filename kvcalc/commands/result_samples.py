"""A result of each command with every key filled, for its JSON Schema: made by the command's own code where it can be.

`profile` needs a device and torch, so its sample is written out; the tests hold real runs against it.
"""

from collections.abc import Callable
from typing import Any

Json = dict[str, Any]
MODEL, GPU = "deepseek-v3.2", "h200-sxm-141gb"
"""An MLA model with an indexer: it has a value for every key."""


def estimate() -> Json:
    from kvcalc import api
    from kvcalc.explain import explain, to_json

    result = api.estimate(MODEL, gpu=GPU, tp=8)
    return {**result.to_json(), "terms": to_json(explain(result))}


def compare() -> Json:
    from kvcalc import api

    return api.compare([MODEL], gpu=GPU, tp=8).to_json()


def plan() -> Json:
    from kvcalc import api
    from kvcalc.planning import Budget, Demand, Goals, of_lengths, plan
    from kvcalc.workload import Parallelism

    model = api.load_model(MODEL)
    return plan(
        model,
        lambda mix: api.layout_for(model, engine="vllm", parallelism=mix),
        [Parallelism(tp=8), Parallelism(tp=3)],
        budget=Budget(gpu=api.load_gpu(GPU), memory_utilization=0.9),
        demand=Demand(context_tokens=8192, lengths=of_lengths([4096, 8192], source="lengths.csv")),
        goals=Goals(target_tpot_s=0.05, price_per_gpu_hour=2.0, link_bytes_per_s=5e10),
    ).to_json()


def reconcile() -> Json:
    from kvcalc import api
    from kvcalc.engines.logs import read_log
    from kvcalc.reconcile import reconcile
    from kvcalc.workload import Parallelism

    model = api.load_model(MODEL)
    stated = read_log(
        [
            "LLM engine (v0.33.0) with config: model='deepseek-v3.2', tensor_parallel_size=8, kv_cache_dtype=fp8\n",
            "Available KV cache memory: 40.00 GiB\n",
            "GPU KV cache size: 893,504 tokens\n",
            "Maximum concurrency for 131,072 tokens per request: 6.82x\n",
        ]
    )
    layout = api.layout_for(model, engine="vllm@0.33", kv_dtype="fp8", parallelism=Parallelism(tp=8))
    return reconcile(stated, model, layout, Parallelism(tp=8)).to_json()


def check() -> Json:
    from kvcalc.check.findings import Settings
    from kvcalc.check.results import Row, Samples
    from kvcalc.check.verdicts import compare

    def side(median_s: float) -> list[Row]:
        times = Samples(seconds=(median_s,) * 30, median_s=median_s, bound="memory", ceiling=4e12, fraction=0.8)
        return [Row(key={"name": "a case"}, samples=times)]

    return compare(side(1.0e-4), side(1.1e-4), Settings()).to_json()


_READING = {"sm_clock_hz": 1, "memory_clock_hz": 1, "power_w": 1.0, "temperature_c": 1, "throttle_reasons": [""]}
_SPAN = {"least": 1.0, "mean": 1.0, "most": 1.0}
_CASE = {
    **dict.fromkeys(("id", "kernel", "form", "attention", "phase"), ""),
    "n_heads": 16,
    **{"n_kv_heads": 1, "head_dim": 1},  # of grouped attention
    **{"kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64},  # of MLA
    **{"v_head_dim": 128, "batch": 8, "context_tokens": 4096, "query_tokens": 1, "dtype": "bf16", "kv_dtype": "bf16"},
    **{"page_tokens": 64, "bytes": 1, "cache_read_bytes": 1, "flop": 1, "kernel_version": "", "what_if": ""},
    **{"kernel_extra_bytes": 0, "kernel_extra_flop": 0, "samples_s": [1e-4], "samples_process": [0]},
    **{"contended": False, "contended_samples_s": [1e-4], "contended_samples": 0, "clock": "", "cold_cache": ""},
    **{"warm_up_calls": 3, "warm_up_stable": True},
    **dict.fromkeys(("median_s", "least_s", "p20_s", "p80_s"), 1e-4),
    **dict.fromkeys(("bandwidth_fraction", "flop_fraction", "datasheet_bandwidth_fraction"), 0.5),
    "bound": "memory",
    "predicted": {
        **dict.fromkeys(("roofline_s", "expected_s", "memory_s", "compute_s", "launch_s"), 1e-4),
        "expected_is": "",
    },
    "error": 0.1,
    "correctness": {
        **dict.fromkeys(("max_abs_error", "max_rel_error", "cosine_distance"), 1e-9),
        **{"passed": True, "reason": "", "rows": 6},
    },
    **{"suspect": "", "note": ""},
    "telemetry": {
        "before": _READING,
        "during": {
            "readings": 1,
            **dict.fromkeys(("sm_clock_hz", "memory_clock_hz", "power_w", "temperature_c"), _SPAN),
            "throttle_reasons": [""],
        },
        "after": _READING,
        **{"mean_power_w": 1.0, "other_processes": 0},
    },
    **{"energy_j_per_call": 1.0, "energy_j_per_token": 1.0, "reproduce": ""},
}
_RATES = ("read_bandwidth_bytes_per_s", "copy_bandwidth_bytes_per_s")
_PROFILE: Json = {
    **{"schema": "kvcalc.profile/1", "state": "complete", "command": ""},
    "model": {"name": "", "title": "", "attention": [""]},
    **{"parallel": {"tp": 8}, "processes": 1, "seed": 0},
    "environment": {
        "device": {
            **{"kind": "cuda", "name": "", "index": 0, "last_level_cache_bytes": 1, "memory_bytes": 1},
            "threads": 1,  # of a CPU
            **{"compute_capability": "9.0", "multiprocessors": 1, "nvml": {"available": True}},  # of a GPU
        },
        "cpu": {
            **{"model": "", "logical_cpus": 1, "physical_cores": 1, "capability": "", "governor": ""},
            "caches": {"L2": 1},
        },
        **{"memory_bytes": 1, "os": "", "python": "", "packages": {"torch": ""}, "cuda": "", "kernels": {"": ""}},
    },
    "datasheet": {"slug": "", "memory_bandwidth_bytes_per_s": 1, "peak_flop_per_s": {"bf16": 1}},
    "ceilings": {
        **dict.fromkeys(_RATES, 1.0),
        **{"read_method": "", "matmul_flop_per_s": {"bf16": 1.0}, "matmul_measured_flop_per_s": {"bf16": 1.0}},
        **{"launch_s": 1e-6, "measured_times": {"launch_s": 1}},
    },
    "expected_is": "",
    "cases": [_CASE],
    "skipped": [{"kernel": "", "case": "", "reason": "", "failed": False}],
    "warnings": [""],
}


def profile() -> Json:
    return _PROFILE


SAMPLES: dict[str, Callable[[], Json]] = {
    "estimate": estimate,
    "compare": compare,
    "profile": profile,
    "check": check,
    "plan": plan,
    "reconcile": reconcile,
}
