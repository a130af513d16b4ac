"""All that is to be measured on a GPU, in one call under ten minutes: `make gpu`.

Checks the kernels (`pytest -m gpu`), then profiles DeepSeek-V3's attention at 16, 64 and 128 heads a rank beside the
same model with GQA-8 and MHA, with an fp8 cache, with two query tokens, in prefill, and Llama-3.1-8B's GQA: our
kernels, torch's, and FlashMLA and FlashInfer where they are installed. Every run is one file of schema
kvcalc.profile/1 in benchmarks/results/<gpu>/, with versions, and summary.json beside them says what they come to. A
kernel that is wrong is named, and the script exits 1.

    python benchmarks/gpu.py                                 on the GPU
    python benchmarks/gpu.py --device cpu --out FOLDER       the same script on tiny shapes: Triton kernels interpreted,
                                                             and compiled ahead of time for sm_90
"""

import argparse
import json
import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LIMIT_S = 560
CHECKS_LIMIT_S = 150
NO_SUCH_TESTS = 5
"""Pytest's exit code where it was asked for tests that there are none of."""
BANDWIDTH_CASES_BYTES = 1_000_000_000
"""Cases with so much cache and more are those that read bandwidth is judged on."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """One run of the profiler. `share` is its part of the time that is left for all."""

    name: str
    spec: str
    share: float
    request: dict = field(default_factory=dict)


DECODE_KERNELS = ("torch-absorbed", "torch-sdpa", "triton-mla", "triton-gqa", "flashmla", "flashinfer")
PAGED_KERNELS = ("triton-mla", "triton-gqa", "flashmla", "flashinfer")
CUDA_PARTS = (
    Part(
        name="decode-16-heads",
        spec="deepseek-v3",
        share=0.34,
        request={"tp": 8, "batches": (1, 8, 32, 128), "contexts": (4096, 32768, 131072)},
    ),
    Part(
        name="decode-64-heads",
        spec="deepseek-v3",
        share=0.10,
        request={
            "tp": 2,
            "batches": (1, 32, 128),
            "contexts": (4096, 32768),
            "kernels": DECODE_KERNELS,
            "what_if": "none",
        },
    ),
    Part(
        name="decode-128-heads",
        spec="deepseek-v3",
        share=0.20,
        request={"tp": 1, "batches": (1, 32, 128), "contexts": (4096, 32768), "kernels": DECODE_KERNELS},
    ),
    Part(
        name="decode-fp8",
        spec="deepseek-v3",
        share=0.12,
        request={
            "tp": 8,
            "batches": (32, 128),
            "contexts": (4096, 32768, 131072),
            "kv_dtype": "fp8_e4m3",
            "kernels": PAGED_KERNELS,
        },
    ),
    Part(
        name="decode-two-query-tokens",
        spec="deepseek-v3",
        share=0.06,
        request={
            "tp": 8,
            "batches": (32,),
            "contexts": (8192, 32768),
            "query_tokens": 2,
            "kernels": PAGED_KERNELS,
            "what_if": "none",
        },
    ),
    Part(
        name="decode-llama-3.1-8b",
        spec="llama-3.1-8b",
        share=0.08,
        request={"batches": (1, 32, 128), "contexts": (4096, 32768), "kernels": DECODE_KERNELS},
    ),
    Part(
        name="prefill-16-heads",
        spec="deepseek-v3",
        share=0.10,
        request={"tp": 8, "phase": "prefill", "batches": (1,), "contexts": (1024, 4096, 16384)},
    ),
)
TINY = {"batches": (1,), "contexts": (48,), "tp": 8, "quick": True}
CPU_PARTS = (
    Part(name="decode", spec="deepseek-v2-lite", share=0.5, request={**TINY, "what_if": "mha"}),
    Part(
        name="decode-fp8",
        spec="deepseek-v2-lite",
        share=0.2,
        request={**TINY, "kv_dtype": "fp8_e4m3", "kernels": ("triton-mla",), "what_if": "none"},
    ),
    Part(
        name="prefill",
        spec="deepseek-v2-lite",
        share=0.3,
        request={**TINY, "phase": "prefill", "kernels": ("torch-expanded", "torch-sdpa"), "what_if": "mha"},
    ),
)


def main() -> int:
    options = _options()
    started_s = time.monotonic()
    on_cpu = options.device == "cpu"
    if on_cpu:
        os.environ["TRITON_INTERPRET"] = "1"  # read when a kernel is defined, so before any is imported
    sys.path.insert(0, str(ROOT))
    from kvcalc.profiling.results import Results  # noqa: F401
    from kvcalc.profiling.session import open_session

    name = open_session(options.device, quick=True).environment()["device"]["name"]
    folder = options.out or ROOT / "benchmarks" / "results" / slug(name)
    folder.mkdir(parents=True, exist_ok=True)
    checked = None if options.no_checks else _checks(on_cpu=on_cpu)
    summary = {"schema": "kvcalc.benchmark/1", "device": name, "checks": checked, "parts": {}, "wrong": []}
    parts = CPU_PARTS if on_cpu else CUDA_PARTS
    shares = sum(part.share for part in parts)
    for part in parts:
        left_s = LIMIT_S - (time.monotonic() - started_s)
        results = _measure(part, options.device, limit_s=left_s * part.share / shares, folder=folder)
        shares -= part.share
        summary["parts"][part.name] = _of_part(results)
        summary["wrong"] += [each.reproduce for each in results.wrong]
        summary["wrong"] += [f"{each.kernel} {each.case}: {each.reason}" for each in results.failed]
        _write(folder / "summary.json", summary)
    _print(summary, time.monotonic() - started_s)
    return 1 if summary["wrong"] or (checked is not None and not checked["passed"]) else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1, or cpu for tiny shapes")
    parser.add_argument("--out", type=Path, help="folder for the results; default benchmarks/results/<gpu>")
    parser.add_argument("--no-checks", action="store_true", help="leave out the tests")
    return parser.parse_args()


def slug(name: str) -> str:
    """`NVIDIA H100 80GB HBM3` as `h100-80gb-hbm3`."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower().removeprefix("nvidia ")).strip("-")


def _checks(*, on_cpu: bool) -> dict:
    """On a GPU the tests that need one; without, our kernels compiled ahead of time, with nothing spilled."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), environment.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "pytest", "-q", "--no-header", "-m", "gpu", "tests/profiling"]
    if on_cpu:
        command = [sys.executable, "benchmarks/triton_resources.py", "--json", "--quick", "--capability", "9.0"]
    started_s = time.monotonic()
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=CHECKS_LIMIT_S, check=False
        )
        code, lines = done.returncode, (done.stdout + done.stderr).strip().splitlines()
    except subprocess.TimeoutExpired:
        code, lines = -1, [f"not done within {CHECKS_LIMIT_S} s"]
    checked = {"passed": code in (0, NO_SUCH_TESTS), "exit_code": code, "seconds": time.monotonic() - started_s}
    if on_cpu and code == 0:
        rows = json.loads(done.stdout)["rows"]
        spilled = [row["label"] for row in rows if row["stack_bytes"]]
        checked["passed"] = not spilled
        lines = [f"compiled ahead of time: {len(rows)} kernels, {len(spilled)} of them spill"]
    print("\n".join(lines[-25:]), flush=True)
    return {**checked, "said": lines[-1] if lines else ""}


def _measure(part: Part, device: str, *, limit_s: float, folder: Path):
    from kvcalc.api import load_model
    from kvcalc.commands.profile import page
    from kvcalc.profiling.run import run
    from kvcalc.profiling.sweep import Request
    from kvcalc.report import text

    path = folder / f"{part.name}.json"
    results = run(
        load_model(part.spec),
        Request(**part.request, limit_s=max(5.0, limit_s)),
        spec=part.spec,
        device=device,
        command=f"benchmarks/gpu.py ({part.name})",
        save=lambda results: _write(path, results.to_json()),
        report=lambda done, total, label: print(f"  {part.name} {done}/{total} {label}", file=sys.stderr, flush=True),
    )
    print(f"\n=== {part.name}\n{text.render(page(results))}", flush=True)
    return results


def _of_part(results) -> dict:
    """The best bandwidth and FLOP rate of each kernel and attention, and how the prediction held."""
    from statistics import median

    kernels: dict[str, dict] = {}
    for each in results.timed:
        key = f"{each.kernel} {each.planned.name}"
        seen = kernels.setdefault(key, {"cases": 0, "bandwidth_fraction": None, "flop_fraction": 0.0, "errors": []})
        seen["cases"] += 1
        seen["errors"].append(results.prediction(each).error(each.timing.median_s))
        seen["flop_fraction"] = max(seen["flop_fraction"], results.flop_fraction(each))
        if each.planned.case.cache_read_bytes >= BANDWIDTH_CASES_BYTES:
            seen["bandwidth_fraction"] = max(seen["bandwidth_fraction"] or 0.0, results.bandwidth_fraction(each))
    for seen in kernels.values():
        seen["median_error"] = median(seen.pop("errors"))
    return {"cases": len(results.timed), "skipped": len(results.skipped), "state": results.state, "kernels": kernels}


def _write(path: Path, data: dict) -> None:
    """Whole or not at all."""
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_text(json.dumps(data, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    temporary.replace(path)


def _print(summary: dict, wall_s: float) -> None:
    cases = sum(part["cases"] for part in summary["parts"].values())
    print(f"\n=== {summary['device']}: {cases} cases in {wall_s:.0f} s")
    for name, part in summary["parts"].items():
        for kernel, seen in part["kernels"].items():
            bandwidth = "" if seen["bandwidth_fraction"] is None else f"{seen['bandwidth_fraction']:.0%} of bandwidth, "
            print(
                f"{name:26} {kernel:34} {seen['cases']:3} cases, {bandwidth}{seen['flop_fraction']:.0%} of matmul rate,"
                f" error {seen['median_error']:+.0%} (median)"
            )
    for line in summary["wrong"]:
        print(f"WRONG: {line}")


if __name__ == "__main__":
    sys.exit(main())
