"""Ceilings: the best seen counts, cases above one are measured again and marked, predictions follow from them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="needs torch: pip install 'kvcalc[profile]'")

from kvcalc.profiling.measure import cold, machine  # noqa: E402
from kvcalc.profiling.measure.ceilings import Ceilings  # noqa: E402
from kvcalc.profiling.measure.cold import Cooler  # noqa: E402
from kvcalc.profiling.measure.probes import TorchProbes  # noqa: E402
from kvcalc.profiling.predict import COMPUTE, LATENCY, MEMORY, Prediction, Work, predict  # noqa: E402


class FakeProbes:
    """Gives the rates of a script, the last one for ever."""

    def __init__(self, *, reads=(100.0,), rates=None, launch=0.5):
        self.reads, self.rates, self.launch_s = list(reads), rates or {"fp32": 1000.0, "bf16": 4.0}, launch
        self.asked = []

    def _next(self, script):
        return script.pop(0) if len(script) > 1 else script[0]

    def read(self, method=None):
        self.asked.append("read")
        found = {"sum": self._next(self.reads), "slow way": 1.0}
        return found if method is None else {method: found[method]}

    def copy(self):
        return 80.0

    def matmul(self, dtype):
        self.asked.append(dtype)
        rate = self.rates[dtype]
        return self._next(rate) if isinstance(rate, list) else rate

    def launch(self):
        return self.launch_s


def measured(dtypes=("fp32",), widened=(), **script):
    ceilings = Ceilings(probes=FakeProbes(**script), widened=widened)
    ceilings.measure(dtypes)
    ceilings.probes.asked.clear()
    return ceilings


def test_the_fastest_way_to_read_counts_and_is_named():
    ceilings = measured()
    assert (ceilings.read_bandwidth_bytes_per_s, ceilings.read_method) == (100.0, "sum")
    assert ceilings.copy_bandwidth_bytes_per_s == 80.0


def test_a_ceiling_never_sinks():
    ceilings = measured(reads=[100.0, 60.0, 120.0, 90.0])
    for expected in (100.0, 120.0, 120.0):
        ceilings.again_read()
        assert ceilings.read_bandwidth_bytes_per_s == expected


def test_bf16_on_a_cpu_without_units_for_it_has_the_ceiling_of_fp32():
    ceilings = measured(("bf16",), widened=("bf16", "fp16"))
    assert ceilings.matmul_flop_per_s("bf16") == 1000.0
    found = ceilings.to_json()
    assert found["matmul_flop_per_s"]["bf16"] == 1000.0
    assert found["matmul_measured_flop_per_s"]["bf16"] == 4.0


def test_bf16_where_it_is_the_faster_has_its_own():
    assert measured(("bf16",), ("bf16",), rates={"fp32": 1.0, "bf16": 5.0}).matmul_flop_per_s("bf16") == 5.0


def test_a_gpu_does_not_widen():
    assert measured(("bf16",)).matmul_flop_per_s("bf16") == 4.0


def test_a_case_below_its_ceilings_asks_for_nothing():
    ceilings = measured()
    ceilings.recheck(moved_bytes=100, flop=1000, seconds=1.0, dtype="fp32")
    assert ceilings.probes.asked == []


def test_a_case_above_a_ceiling_has_it_measured_again_and_may_be_cleared():
    ceilings, case = measured(reads=[100.0, 200.0]), {"moved_bytes": 150, "flop": 1, "seconds": 1.0, "dtype": "fp32"}
    assert ceilings.suspect(**case)
    ceilings.recheck(**case)
    assert ceilings.suspect(**case) is None
    assert ceilings.probes.asked == ["read"]  # once, since it came out below at once


def test_a_case_that_stays_above_is_suspect():
    ceilings = measured()
    ceilings.recheck(moved_bytes=150, flop=1, seconds=1.0, dtype="fp32")
    assert ceilings.probes.asked == ["read"] * 3
    assert "read bandwidth" in ceilings.suspect(moved_bytes=150, flop=1, seconds=1.0, dtype="fp32")
    assert "fp32 matmul rate" in ceilings.suspect(moved_bytes=1, flop=2000, seconds=1.0, dtype="fp32")


def test_ceilings_of_two_processes_are_the_better_of_both():
    one, other = measured(reads=[100.0], launch=0.2), measured(reads=[150.0], launch=0.5, rates={"fp32": 900.0})
    one.take_better(other)
    assert (one.read_bandwidth_bytes_per_s, one.launch_s, one.matmul_flop_per_s("fp32")) == (150.0, 0.2, 1000.0)


def test_unmeasured_ceilings_are_null_in_json():
    found = Ceilings(probes=None).to_json()
    assert (found["read_bandwidth_bytes_per_s"], found["launch_s"]) == (None, None)
    json.dumps(found, allow_nan=False)


def test_the_prediction_is_the_larger_term_with_the_kernels_extras():
    ceilings = measured()
    work = Work(bytes=100, flop=500, extra_bytes=50, dtype="fp32")
    assert predict(work, ceilings) == Prediction(memory_s=1.5, compute_s=0.5, launch_s=0.5)
    assert predict(work, ceilings).roofline_s == 1.5
    assert predict(work, ceilings).expected_s == 2.0
    assert predict(work, ceilings).error(3.0) == 0.5


@pytest.mark.parametrize(
    ("memory_s", "compute_s", "launch_s", "bound"), [(2, 1, 1, MEMORY), (1, 2, 1, COMPUTE), (1, 2, 3, LATENCY)]
)
def test_the_bound_is_the_largest_term(memory_s, compute_s, launch_s, bound):
    assert Prediction(memory_s=memory_s, compute_s=compute_s, launch_s=launch_s).bound == bound


def test_the_probes_of_this_cpu_measure_something():
    probes = TorchProbes(torch.device("cpu"), last_level_cache_bytes=1 << 20, free_bytes=1 << 30, small=True)
    ceilings = Ceilings(probes=probes, widened=("bf16",))
    ceilings.measure(("bf16",))
    assert ceilings.read_bandwidth_bytes_per_s > 0
    assert ceilings.copy_bandwidth_bytes_per_s > 0
    assert 0 < ceilings.launch_s < 1
    assert set(ceilings.matmul_measured_flop_per_s) == {"fp32", "bf16"}


READ_ALL = """
import torch
from kvcalc.profiling.measure.read_kernel import read_sums

values = torch.arange(10_001, dtype=torch.float32) % 7
assert float(read_sums(values, torch.zeros(2)).sum()) == float(values.sum())
"""
COMPILE = """
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from kvcalc.profiling.measure.read_kernel import read_kernel

signature = {"source": "*fp32", "sums": "*fp32", "elements": "i32", "BLOCK": "constexpr"}
aligned = {(place,): [["tt.divisibility", 16]] for place in range(3)}
source = ASTSource(fn=read_kernel, signature=signature, constexprs={"BLOCK": 4096}, attrs=aligned)
built = compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 8})
assert "ld.global.v4" in built.asm["ptx"]
"""


@pytest.mark.parametrize(("script", "interpret"), [(READ_ALL, "1"), (COMPILE, "0")])
def test_the_read_kernel_reads_everything_in_wide_loads(script, interpret, tmp_path):
    pytest.importorskip("triton", reason="needs triton, which has no wheel for this platform")
    root = str(Path(__file__).resolve().parents[2])
    chosen = {"PYTHONPATH": root, "TRITON_INTERPRET": interpret, "TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, **chosen},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_caches_are_cold_by_size_or_by_reading_a_buffer(monkeypatch):
    cooler = Cooler(torch.device("cpu"), 1 << 16)
    assert cooler.for_working_set(5 << 16).flush is None
    flushed, read = cooler.for_working_set((5 << 16) - 1), []
    monkeypatch.setattr(torch.Tensor, "sum", lambda tensor: read.append(tensor.numel()))
    flushed.flush()
    assert sum(read) == (5 << 16) // 4
    assert "read before each sample" in flushed.words


def test_memory_share_is_of_the_fastest_read_so_far(monkeypatch):
    cooler, now_s = Cooler(torch.device("cpu"), 1 << 16), [0.0]
    took_s = iter((2, 3, 3, 1, 4, 4, 4, 3, 2))
    monkeypatch.setattr(cooler, "read", lambda: now_s.__setitem__(0, now_s[0] + next(took_s)))
    monkeypatch.setattr(cold.time, "perf_counter", lambda: now_s[0])
    assert [cooler.memory_share() for _ in range(3)] == [1.0, 1.0, 0.5]


def test_threads_of_one_core_count_once(tmp_path):
    for cpu, core in ((0, 0), (1, 1), (2, 0), (3, 1)):
        folder = tmp_path / f"cpu{cpu}" / "topology"
        folder.mkdir(parents=True)
        (folder / "physical_package_id").write_text("0\n")
        (folder / "core_id").write_text(f"{core}\n")
    assert machine.physical_cores(tmp_path, cpus=[0]) == 1
    assert machine.physical_cores(tmp_path, cpus=[0, 2]) == 1


def test_all_last_level_caches_of_the_usable_cpus_count(tmp_path):
    for cpu, shared in ((0, "0-1"), (1, "0-1"), (2, "2-3")):
        for index, (level, size) in enumerate([("1", "48K"), ("3", "32M")]):
            folder = tmp_path / f"cpu{cpu}" / "cache" / f"index{index}"
            folder.mkdir(parents=True)
            (folder / "level").write_text(level)
            (folder / "size").write_text(size)
            (folder / "shared_cpu_list").write_text(shared if level == "3" else str(cpu))
            (folder / "type").write_text("Unified")
    assert machine.last_level_cache_bytes(tmp_path, cpus=[0, 1, 2]) == 64 << 20
    assert machine.last_level_cache_bytes(tmp_path, cpus=[1]) == 32 << 20
    assert machine.last_level_cache_bytes(tmp_path / "absent", cpus=[1]) == machine.FALLBACK_CACHE_BYTES
    assert machine.caches(tmp_path) == {"L1": 48 << 10, "L3": 32 << 20}


def test_the_environment_names_the_machine_but_not_the_host():
    import platform

    found = json.dumps(machine.environment(torch.device("cpu"), {}), allow_nan=False)
    assert json.loads(found)["device"]["kind"] == "cpu"
    assert json.loads(found)["packages"]["torch"] == torch.__version__
    assert len(platform.node()) < 4 or platform.node() not in found
