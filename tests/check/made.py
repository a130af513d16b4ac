"""Results as commands write them, made for tests: profiles with drawn samples, and files of them."""

import json
import random
from pathlib import Path
from typing import Any

GPU, OTHER_GPU = "NVIDIA H200", "NVIDIA H100 80GB HBM3"


def samples(median_s: float, *, spread: float = 0.005, count: int = 30, seed: int = 1) -> list[float]:
    """Lognormal times around a median."""
    rng = random.Random(seed)
    return [median_s * rng.lognormvariate(0, spread) for _ in range(count)]


def case(
    id: str = "mla-512+64-h16-decode-b8-n4096-q1-bf16",
    *,
    kernel: str = "triton-mla",
    median_s: float = 1e-4,
    spread: float = 0.005,
    count: int = 30,
    seed: int = 1,
    processes: int = 1,
    passed: bool = True,
    **changes: Any,
) -> dict[str, Any]:
    """One of a profile's `cases[]`, with the keys that a comparison reads."""
    drawn = samples(median_s, spread=spread, count=count, seed=seed) if passed else []
    found = {
        "id": id,
        "kernel": kernel,
        "attention": "mla",
        "phase": "decode",
        "n_heads": 16,
        "batch": 8,
        "context_tokens": 4096,
        "query_tokens": 1,
        "dtype": "bf16",
        "kv_dtype": "bf16",
        "bytes": 38_000_000,
        "flop": 1_140_850_688,
        "samples_s": drawn,
        "samples_process": [index * processes // count for index in range(len(drawn))],
        "contended": False,
        "clock": "cuda graph",
        "median_s": sorted(drawn)[len(drawn) // 2] if drawn else None,
        "p20_s": sorted(drawn)[len(drawn) // 5] if drawn else None,
        "p80_s": sorted(drawn)[4 * len(drawn) // 5] if drawn else None,
        "bandwidth_fraction": 0.8 if drawn else None,
        "flop_fraction": 0.1 if drawn else None,
        "bound": "memory",
        "predicted": {"expected_s": 9e-5, "roofline_s": 8.7e-5},
        "error": 0.11,
        "correctness": {"passed": passed, "reason": None if passed else "cosine distance 0.3"},
        "suspect": None,
    }
    return found | changes


def profile(*cases: dict[str, Any], gpu: str = GPU, bandwidth: float = 4.2e12, **changes: Any) -> dict[str, Any]:
    """A profile of these cases; one case where none is given."""
    found = {
        "schema": "kvcalc.profile/1",
        "state": "complete",
        "command": "kvcalc profile deepseek-v3 --tp 8",
        "model": {"name": "deepseek-v3", "title": "DeepSeek-V3", "attention": ["61 x MLA 512+64"]},
        "parallel": {"tp": 8},
        "processes": 1,
        "environment": {"device": {"kind": "cuda", "name": gpu}, "packages": {"torch": "2.13.0"}},
        "ceilings": {
            "read_bandwidth_bytes_per_s": bandwidth,
            "copy_bandwidth_bytes_per_s": 3.9e12,
            "matmul_flop_per_s": {"bf16": 7.5e14},
            "launch_s": 3e-6,
        },
        "cases": list(cases) or [case()],
        "skipped": [],
        "warnings": [],
    }
    return found | changes


def write(path: Path, document: dict[str, Any]) -> str:
    path.write_text(json.dumps(document), encoding="utf-8")
    return str(path)
