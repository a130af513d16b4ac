"""The script of `make gpu` runs whole on the CPU: kernels interpreted and compiled, tiny shapes, valid files."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="needs torch: pip install 'kvcalc[profile]'")
pytest.importorskip("triton", reason="needs triton, which has no wheel for this platform")

ROOT = Path(__file__).resolve().parents[2]


def test_the_gpu_script_runs_whole_on_the_cpu(tmp_path):
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), "--device", "cpu", "--out", str(tmp_path / "results")],
        env={**os.environ, "TRITON_CACHE_DIR": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    summary = json.loads((tmp_path / "results" / "summary.json").read_text())
    assert summary["checks"]["passed"]
    assert summary["wrong"] == []
    kernels = set()
    for name in summary["parts"]:
        found = json.loads((tmp_path / "results" / f"{name}.json").read_text())
        assert found["schema"] == "kvcalc.profile/1"
        assert found["environment"]["packages"]["torch"]
        kernels |= {case["kernel"] for case in found["cases"] if case["correctness"]["passed"]}
    assert kernels >= {"torch-absorbed", "torch-expanded", "torch-sdpa", "triton-mla", "triton-gqa"}
