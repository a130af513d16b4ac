"""`kvcalc plan` as a user runs it: rows, notes on what is copied, exit codes, and what it refuses."""

import csv
from io import StringIO

import pytest

from tests.command_line import call, kvcalc

DEEPSEEK = ("plan", "deepseek-v3", "--gpu", "h200-sxm-141gb", "--gpus", "8", "--context", "32k")
LLAMA = ("plan", "llama-3.1-8b", "--gpu", "h100-sxm5-80gb")


def test_mixes_side_by_side_with_what_they_copy():
    done = kvcalc(*DEEPSEEK)
    assert done.code == 0, done.err
    for text in ("tp 8 ep 8", "dp 8 ep 8", "pp 8", "What is kept more than once", "not 8x"):
        assert text in done.out


def test_without_a_calibration_times_are_the_rooflines(capsys):
    done = call(capsys, "plan", "llama-3.1-8b", "--gpu", "h20-96gb")
    assert "roofline" in done.out
    assert "expect less" in done.out


def test_csv_has_a_line_for_every_mix(capsys):
    rows = list(csv.DictReader(StringIO(call(capsys, *DEEPSEEK, "--format", "csv").out)))
    assert {(row["parallel.tp"], row["parallel.dp"]) for row in rows} >= {("8", "1"), ("1", "8")}
    assert all(row["fits"] == "True" for row in rows)


def test_one_mix(capsys):
    document = call(capsys, *DEEPSEEK, "--tp", "8", "--dcp", "4", "--json").json()
    (row,) = document["rows"]
    assert row["parallel"] == {"tp": 8, "pp": 1, "dp": 1, "dcp": 4, "ep": 1}
    assert row["replication_factor"] == 2


def test_a_search_marks_its_front(capsys):
    document = call(capsys, *DEEPSEEK, "--search", "--json").json()
    assert len(document["rows"]) > 50
    assert any(row["pareto"] for row in document["rows"])
    assert not all(row["pareto"] for row in document["rows"])


@pytest.mark.parametrize(("gpus", "code"), [("1", 1), ("8", 0)])
def test_fail_if_oom(capsys, gpus, code):
    command = ("plan", "deepseek-v3", "--gpu", "h200-sxm-141gb", "--gpus", gpus, "--fail-if-oom")
    assert call(capsys, *command).code == code


def test_engine_rules_change_the_plan(capsys):
    command = ("plan", "gpt-oss-120b", "--gpu", "h100-sxm5-80gb", "--gpus", "2", "--json")
    generic, vllm = (call(capsys, *command, *more).json() for more in ((), ("--engine", "vllm@0.33")))
    assert vllm["engine"]["name"] == "vllm 0.33"
    assert vllm["memory_utilization"] == 0.92
    assert vllm["rows"][0]["max_batch"] < generic["rows"][0]["max_batch"]


def test_what_the_engine_refuses_is_left_out_with_the_reason(capsys):
    done = call(capsys, "plan", "gpt-oss-120b", "--gpu", "h100-sxm5-80gb", "--gpus", "16", "--engine", "vllm", "--json")
    assert any("windows" in each["reason"] for each in done.json()["left_out"])
    assert "is left out" in done.err


def test_measured_weights_and_reserve(capsys):
    document = call(capsys, *LLAMA, "--weights-bytes", "8GiB", "--reserve", "6GiB", "--json").json()
    (row,) = document["rows"]
    assert row["weights_bytes_per_gpu"] == 8 << 30
    assert row["reserve_bytes_per_gpu"] == 6 << 30
    assert row["activation_bytes_per_gpu"] is None


def test_weight_formats_by_part(capsys):
    command = (
        "plan",
        "deepseek-v3",
        "--gpu",
        "h200-sxm-141gb",
        "--gpus",
        "8",
        "--tp",
        "8",
        "--json",
        "--weights-dtype",
    )
    sizes = {}
    for formats in ("bf16", "fp8", "default=bf16,experts=nvfp4", "attention=fp8,experts=nvfp4"):
        (row,) = call(capsys, *command, formats).json()["rows"]
        sizes[formats] = row["weights_bytes_per_gpu"]
    mixed, less = sizes["default=bf16,experts=nvfp4"], sizes["attention=fp8,experts=nvfp4"]
    assert less < mixed < sizes["fp8"] < sizes["bf16"]


def test_target_time_price_link_and_speculation(capsys):
    options = ("--target-tpot", "20ms", "--price", "2", "--link", "50GB/s", "--draft", "llama-3.1-8b")
    document = call(capsys, *LLAMA, *options, "--draft-tokens", "2", "--acceptance", "0.5", "--json").json()
    (row,) = document["rows"]
    assert row["meets_target"]
    assert row["tpot_s"] <= 0.02
    assert document["workload"]["tokens_per_step"] == 1.75
    assert row["transfer_s"] == row["transfer_bytes_per_gpu"] / 50e9
    assert row["cost_per_million_tokens"] > 0


def test_lengths_from_a_file(capsys, tmp_path):
    trace = tmp_path / "trace.csv"
    trace.write_text("input_tokens,output_tokens\n1000,200\n9000,1000\n")
    document = call(capsys, *LLAMA, "--lengths", str(trace), "--json").json()
    assert document["workload"]["lengths"] == {
        "source": str(trace),
        "requests": 2,
        "mean_tokens": 5600,
        "longest_tokens": 10000,
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--tp", "3"), "does not divide"),
        (("--gpus", "4", "--tp", "2"), "--gpus 4"),
        (("--reserve", "much"), "number of bytes"),
        (("--target-tpot", "50"), "not a time"),
        (("--link", "fast"), "not a rate"),
        (("--lengths", "nowhere.csv"), "nowhere.csv"),
        (("--draft-tokens", "2"), "who drafts"),
        (("--shared-prefix", "64k"), "leaves nothing"),
        (("--memory-utilization", "1.5"), "memory utilization"),
        (("--engine", "vllm@9"), "not known"),
        (("--weights-dtype", "fp7"), "fp7"),
        (("--weights-dtype", "attention=fp7"), "fp7"),
        (("--weights-dtype", "heads=fp8"), "no part 'heads'"),
    ],
)
def test_what_is_refused(capsys, options, message):
    done = call(capsys, *LLAMA, *options)
    assert done.code == 2
    assert message in done.err
