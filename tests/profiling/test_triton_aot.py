"""Our Triton kernels compiled ahead of time for four GPU generations: nothing spilled, everything fits, wgmma used.

In a process of its own, with a cache of its own, and without TRITON_INTERPRET: see benchmarks/triton_resources.py.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kvcalc.profiling.kernels.triton_schedule import SHARED_MEMORY_BYTES

pytest.importorskip("triton", reason="triton is not installed here (it has no wheel for this platform)")

ROOT = Path(__file__).parents[2]
CAPABILITIES = [(8, 0), (8, 9), (9, 0), (10, 0)]


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path_factory.mktemp("triton-cache"))
    command = [sys.executable, str(ROOT / "benchmarks" / "triton_resources.py"), "--json", "--quick"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)["rows"]


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_nothing_spilled_and_everything_fits(rows, capability):
    compiled = [row for row in rows if tuple(row["capability"]) == capability]
    assert len(compiled) == 7
    for row in compiled:
        assert row["stack_bytes"] == 0, row
        assert row["shared_bytes"] <= SHARED_MEMORY_BYTES[capability], row
        assert row["programs_per_sm"] >= 1, row


def test_tiles_of_64_rows_use_wgmma_on_hopper(rows):
    large = [row for row in rows if row["capability"] == [9, 0] and row["tile"][0] == 64]
    assert len(large) == 3
    for row in large:
        assert row["instructions"].get("wgmma", 0) > 0, row
        assert "mma.sync" not in row["instructions"], row


def test_scores_of_64_heads_are_computed_once_on_hopper(rows):
    """32 for 512 latent columns, 4 for 64 rope columns, 4 for the output: see triton_mla.py."""
    (row,) = [
        row
        for row in rows
        if row["capability"] == [9, 0] and row["label"].startswith("MLA 512+64, 128 heads, bf16, page")
    ]
    assert row["instructions"]["wgmma"] == 40


def test_small_tiles_share_a_hopper_sm(rows):
    (row,) = [
        row for row in rows if row["capability"] == [9, 0] and row["label"] == "MLA 512+64, 16 heads, bf16, page 64"
    ]
    assert row["programs_per_sm"] >= row["assumed_programs_per_sm"] == 2
