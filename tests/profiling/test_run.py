"""The run: what goes wrong in the middle costs that case only; what was finished is saved, and the rest is named."""

import json
import os
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="needs torch: pip install 'kvcalc[profile]'")

from kvcalc.api import load_model  # noqa: E402
from kvcalc.commands.result_schemas import result_schema  # noqa: E402
from kvcalc.errors import NoDeviceError, UsageError  # noqa: E402
from kvcalc.profiling import session  # noqa: E402
from kvcalc.profiling.findings import findings  # noqa: E402
from kvcalc.profiling.measure import machine  # noqa: E402
from kvcalc.profiling.repeat import merged, run_repeated  # noqa: E402
from kvcalc.profiling.run import run  # noqa: E402
from kvcalc.profiling.sweep import Request, plan  # noqa: E402
from tests.profiling.faults import (  # noqa: E402
    QUICK,
    Faulty,
    Sound,
    SteadyProbes,
    Travelling,
    die,
    not_a_number,
    raise_,
)
from tests.schemas import faults  # noqa: E402

MODEL = "deepseek-v2-lite"
CASE_KEYS = {
    *("kernel", "attention", "phase", "n_heads", "batch", "context_tokens", "query_tokens", "dtype", "kv_dtype"),
    *("bytes", "flop", "samples_s", "median_s", "p20_s", "p80_s", "bandwidth_fraction", "flop_fraction", "bound"),
    *("predicted", "error", "correctness"),
}


@pytest.fixture(autouse=True)
def small_machine(monkeypatch):
    """A last-level cache that is quickly read five times over, ceilings at once, and few samples."""
    monkeypatch.setattr(machine, "last_level_cache_bytes", lambda: 1 << 16)
    monkeypatch.setattr(session, "TorchProbes", SteadyProbes)
    monkeypatch.setitem(session.QUICK_RULES, "cpu", QUICK)


def request(**options):
    chosen = {"contexts": (32, 64, 96), "batches": (1,), "tp": 16, "what_if": "none", "quick": True, "limit_s": 600}
    return Request(**{**chosen, **options})


def profile(*kernels, save=lambda results: None, **options):
    return run(
        load_model(MODEL),
        request(**options),
        spec=MODEL,
        device="cpu",
        kernels={each.name: each for each in kernels},
        save=save,
    )


def contexts(results):
    return [each["context_tokens"] for each in results.to_json()["cases"]]


def test_json_has_the_keys_of_the_schema():
    found = json.loads(json.dumps(profile(Sound(), contexts=(32,), what_if="gqa:8,mha").to_json(), allow_nan=False))
    assert faults(found, result_schema("profile")) == []
    assert (found["schema"], found["state"]) == ("kvcalc.profile/1", "complete")
    assert found["model"]["name"] == MODEL
    assert found["environment"]["device"]["kind"] == "cpu"
    assert set(found["ceilings"]) >= {
        *("read_bandwidth_bytes_per_s", "copy_bandwidth_bytes_per_s", "matmul_flop_per_s", "launch_s"),
    }
    assert [each["attention"] for each in found["cases"]] == ["mla", "mha"]  # one head a rank: GQA-8 is MHA here
    for case in found["cases"]:
        assert set(case) >= CASE_KEYS
        assert len(case["samples_s"]) == len(case["samples_process"]) > 0
        assert case["p20_s"] <= case["median_s"] <= case["p80_s"]
        assert case["predicted"]["expected_s"] >= case["predicted"]["roofline_s"] > 0
        assert case["error"] == pytest.approx(case["median_s"] / case["predicted"]["expected_s"] - 1)
        assert case["correctness"]["passed"] is True
        assert isinstance(case["bytes"], int)
        assert isinstance(case["flop"], int)
        assert case["id"] in case["reproduce"]


def test_running_out_of_memory_in_the_middle_costs_that_case_only():
    results = profile(Faulty(raise_(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB"))))
    assert contexts(results) == [32, 96]
    (skipped,) = results.skipped
    assert skipped.reason.startswith("out of memory: CUDA out of memory")
    assert "n64" in skipped.case
    assert not skipped.failed


def test_a_kernel_that_raises_is_named_with_its_error_and_is_a_failure():
    results = profile(Faulty(raise_(ValueError("bad tile\nlong tail"))), Sound())
    assert contexts(results) == [32, 96, 32, 64, 96]  # every case once, then each with the other kernel
    (failed,) = results.failed
    assert failed.reason == "raised ValueError: bad tile"


def test_a_wrong_kernel_is_reported_and_never_timed():
    results = profile(Faulty(not_a_number))
    wrong = next(each for each in results.to_json()["cases"] if each["context_tokens"] == 64)
    assert wrong["correctness"]["passed"] is False
    assert (wrong["median_s"], wrong["samples_s"], wrong["error"]) == (None, [], None)
    assert [each.planned.case.context_tokens for each in results.timed] == [32, 96]


def test_an_interrupt_keeps_what_is_done_and_names_the_rest():
    results = profile(Faulty(raise_(KeyboardInterrupt())))
    assert results.state == "interrupted"
    assert contexts(results) == [32]
    assert [each.reason for each in results.skipped] == ["interrupted before it was reached"] * 2


def test_every_save_is_valid_and_names_what_was_not_reached():
    saved = []
    profile(Sound(), save=lambda results: saved.append(json.dumps(results.to_json(), allow_nan=False)))
    counts = [(len(each["cases"]), len(each["skipped"]), each["state"]) for each in map(json.loads, saved)]
    running = [(done, 3 - done, "running") for done in (0, 1, 2, 3)]
    assert counts == [*running, (3, 0, "complete")]


def test_a_killed_process_leaves_a_valid_file(tmp_path):
    target = tmp_path / "results.json"
    script = f"""
        import os, signal
        from pathlib import Path
        from tests.profiling import faults, test_run
        from kvcalc.commands.output import write_file
        from kvcalc.report.data import render_json

        faults.shrink()
        test_run.profile(
            faults.Faulty(lambda call: os.kill(os.getpid(), signal.SIGKILL)),
            save=lambda results: write_file(Path({str(target)!r}), render_json(results.to_json())),
        )
    """
    code = python(script).returncode
    assert code == -signal.SIGKILL
    found = json.loads(target.read_text())
    assert found["state"] == "running"
    assert [each["context_tokens"] for each in found["cases"]] == [32]
    assert len(found["skipped"]) == 2
    assert all("not reached" in each["reason"] for each in found["skipped"])
    assert list(tmp_path.iterdir()) == [target]


def python(script):
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    command = [sys.executable, "-c", textwrap.dedent(script)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)


def test_fresh_processes_put_their_samples_together(monkeypatch):
    saved = []
    results = run_repeated(
        load_model(MODEL),
        request(contexts=(32, 64), repeat_process=2),
        spec=MODEL,
        device="cpu",
        kernels={"travelling": Travelling()},
        save=lambda each: saved.append(len(each.to_json()["cases"])),
    )
    found = results.to_json()
    assert found["processes"] == 2
    assert saved[0] == 2
    for measured, case in zip(results.timed, found["cases"], strict=True):
        assert {sample.process for sample in measured.timing.samples} == {0, 1}
        assert case["samples_process"] == [sample.process for sample in measured.timing.counted]
        assert len(case["samples_process"]) == len(case["samples_s"])
    assert found["skipped"] == []


def test_a_process_with_slow_memory_all_along_is_contended():
    fast, slow = profile(Sound()), profile(Sound())
    fast.ceilings.read_bandwidth_bytes_per_s, slow.ceilings.read_bandwidth_bytes_per_s = 90e9, 50e9
    for each in (*fast.timed, *slow.timed):
        each.timing = replace(each.timing, samples=tuple(replace(s, contended=False) for s in each.timing.samples))
    for whole, part in ((fast, slow), (slow, fast)):
        for each in merged(replace(whole, ceilings=replace(whole.ceilings)), part).timed:
            assert each.timing.contended_samples == len(slow.timed[0].timing.samples)
            assert not each.timing.contended


def test_a_fresh_process_that_is_killed_costs_its_own_rest():
    results = run_repeated(
        load_model(MODEL),
        request(contexts=(32, 64), repeat_process=1),
        spec=MODEL,
        device="cpu",
        kernels={"travelling": Travelling(die)},
    )
    assert contexts(results) == [32]
    (skipped,) = results.skipped
    assert skipped.reason == "not reached: process 1 of 1 was killed by signal 9"
    assert any("killed by signal 9" in each for each in results.warnings)


def test_a_kernel_says_why_it_can_not():
    kernel = Sound()
    kernel.supports = lambda case, device: "needs a GPU"
    results = profile(kernel)
    assert {each.reason for each in results.skipped} == {"needs a GPU"}
    assert results.measured == []


def test_what_does_not_fit_is_skipped_with_the_sizes(monkeypatch):
    monkeypatch.setattr(machine, "free_bytes", lambda device: 400_000_000)
    kernel = Sound()
    kernel.workspace_bytes = lambda case, device: 1 << 40 if case.context_tokens == 96 else 0
    results = profile(kernel)
    assert contexts(results) == [32, 64]
    assert "does not fit: 1,024.00 GiB" in results.skipped[0].reason
    assert "are free" in results.skipped[0].reason


def test_a_run_with_a_limit_stops_in_time():
    results = profile(Sound(), limit_s=1e-6)
    assert results.measured == []
    assert all(each.reason.startswith("no time left") for each in results.skipped)


def test_a_device_that_is_not_there_is_no_device():
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(NoDeviceError, match="no CUDA device"):
        run(load_model(MODEL), request(), spec=MODEL, device="cuda:1", kernels={"sound": Sound()})
    with pytest.raises(UsageError, match="unknown device"):
        run(load_model(MODEL), request(), spec=MODEL, device="tpu", kernels={"sound": Sound()})


def test_the_default_sweep_sets_mla_beside_gqa_and_mha():
    sweep = plan(load_model("deepseek-v3"), Request(), "cpu")
    first = [each for each in sweep.planned if each.case.context_tokens == 4096]
    assert [each.case.attention.label for each in first] == ["MLA 512+64", "GQA-8", "MHA"]
    assert {each.case.dtype for each in sweep.planned} == {"fp32"}
    assert {each.case.dtype for each in plan(load_model("deepseek-v3"), Request(), "cuda").planned} == {"bf16"}


def test_a_rank_of_tp_has_its_share_of_the_heads():
    sweep = plan(load_model("deepseek-v3"), Request(tp=8), "cuda")
    heads = {each.what_if: each.case.attention for each in sweep.planned}
    assert heads[None].n_heads == 16
    assert (heads["gqa:8"].n_heads, heads["gqa:8"].n_kv_heads) == (16, 1)
    assert heads["mha"].n_kv_heads == 16


def test_kinds_without_a_kernel_are_left_out_by_name():
    sweep = plan(load_model("qwen3-next-80b-a3b"), Request(), "cpu")
    assert {each.case.attention_name for each in sweep.planned} == {"gqa"}
    assert sweep.left_out


def test_ids_choose_cases_and_unknown_ones_are_refused():
    sweep = plan(load_model(MODEL), Request(), "cpu")
    wanted = sweep.planned[1].case.id
    assert [each.case.id for each in plan(load_model(MODEL), Request(case_ids=(wanted,)), "cpu").planned] == [wanted]
    with pytest.raises(UsageError, match="no case of this run"):
        plan(load_model(MODEL), Request(case_ids=("mla-1",)), "cpu")


def test_the_findings_are_this_runs_numbers_in_words():
    results = profile(Sound(), contexts=(2048,), tp=1, what_if="gqa:8,mha")
    said = "\n".join(findings(results))
    fastest = {each.planned.name: each.timing.median_s for each in results.timed}
    assert set(fastest) == {"MLA 512+64", "GQA-8", "MHA"}
    assert "MLA 512+64 with 16 heads is bandwidth-bound here" in said  # the steady machine does 100 FLOP for each byte
    assert "the machine 100" in said
    assert "it is bandwidth-bound up to" in said
    for other in ("GQA-8", "MHA"):
        ratio = fastest[other] / fastest["MLA 512+64"]
        assert f"the same model with {other}" in said
        assert f"MLA is {round(max(ratio, 1 / ratio), 2):.4g}x" in said


def test_nothing_timed_says_nothing():
    assert findings(profile(Sound(), limit_s=1e-6)) == []
