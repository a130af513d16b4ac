"""What `kvcalc schema` says of a result, held against results as the commands write them."""

import json
from pathlib import Path

import pytest
import yaml

from kvcalc.commands.result_schemas import result_schema
from kvcalc.commands.schema import RESULTS
from tests.check.made import case, profile, write
from tests.command_line import call
from tests.schemas import faults

ROOT = Path(__file__).resolve().parents[1]
LOGS = yaml.safe_load((ROOT / "tests/data/engine_log_cases.yaml").read_text(encoding="utf-8"))
PROFILES = sorted((ROOT / "benchmarks/results/cpu").glob("*.json"))

COMMANDS = {
    "estimate": ("estimate", "deepseek-v3"),
    "estimate on GPUs": ("estimate", "deepseek-v3.2", "--gpu", "h200-sxm-141gb", "--tp", "8", "--engine", "vllm"),
    "estimate of states": ("estimate", "nemotron-h-8b", "--gpu", "h100-sxm5-80gb", "--explain"),
    "estimate of compression": ("estimate", "deepseek-v4-flash", "--gpu", "h100-sxm5-80gb", "--tp", "4", "--mtp"),
    "compare": ("compare", "deepseek-v3", "--what-if", "mha,gqa:8,mqa,mla"),
    "compare on a GPU": ("compare", "deepseek-v3", "nemotron-h-8b", "--gpu", "h100-sxm5-80gb"),
    "plan": ("plan", "deepseek-v3", "--gpu", "h200-sxm-141gb", "--gpus", "8"),
    "plan of one": ("plan", "llama-3.1-8b", "--gpu", "h100-sxm5-80gb", "--reserve", "6GiB"),
    "plan without peaks": ("plan", "gpt-oss-120b", "--gpu", "h20-96gb", "--gpus", "16", "--engine", "vllm"),
    "plan that does not fit": ("plan", "deepseek-v3", "--gpu", "h100-sxm5-80gb", "--lengths", "uniform:1k:32k"),
    "plan with everything": (
        *("plan", "llama-3.1-8b", "--gpu", "h100-sxm5-80gb", "--gpus", "4", "--search", "--target-tpot", "20ms"),
        *("--price", "2", "--link", "50GB/s", "--draft", "llama-3.1-8b", "--draft-tokens", "2", "--acceptance", "0.5"),
        *("--lengths", "lognormal:4k:32k", "--shared-prefix", "1k", "--cascade"),
    ),
}


@pytest.fixture(scope="module")
def schemas():
    return {command: result_schema(command) for command in RESULTS}


@pytest.mark.parametrize("name", COMMANDS)
def test_calculations(capsys, schemas, name):
    words = COMMANDS[name]
    assert faults(call(capsys, *words, "--json").json(), schemas[words[0]]) == []


@pytest.mark.parametrize("name", [each["id"] for each in LOGS if each["kind"] == "tokens"])
def test_accounts_of_logs(capsys, schemas, tmp_path, name):
    (log,) = (each for each in LOGS if each["id"] == name)
    path = tmp_path / "log.txt"
    path.write_text(
        f"Available KV cache memory: {log['available_gib']} GiB\nGPU KV cache size: {log['tokens']:,} tokens\n"
    )
    model = str(ROOT / log["model"]) if "/" in log["model"] else log["model"]
    words = ("reconcile", str(path), "--model", model, "--engine", log["engine"], "--tp", str(log["tp"]), "--json")
    assert faults(call(capsys, *words).json(), schemas["reconcile"]) == []


@pytest.mark.parametrize(
    "text",
    [
        "[2025-10-08 12:00:00 DP0 TP0] KV Cache is allocated. #tokens: 975424, KV size: 43.67 GB\n",
        "ValueError: max seq len (131072), (9.15 GiB KV cache is needed, available KV cache memory (4.00 GiB)\n",
    ],
)
def test_accounts_of_other_logs(capsys, schemas, tmp_path, text):
    path = tmp_path / "log.txt"
    path.write_text(text)
    engine = "sglang@0.5.6" if "TP0" in text else "vllm@0.33"
    words = ("reconcile", str(path), "--model", "deepseek-v3.2", "--engine", engine, "--json")
    assert faults(call(capsys, *words).json(), schemas["reconcile"]) == []


def test_checks(capsys, schemas, tmp_path):
    before = write(tmp_path / "before.json", profile(case(median_s=1e-4), case("b-bf16"), case("gone-bf16")))
    now = write(
        tmp_path / "now.json", profile(case(median_s=1.2e-4, seed=2), case("b-bf16", passed=False), case("new-bf16"))
    )
    found = call(capsys, "check", before, now, "--json", "--max-regression", "median_s=5%").json()
    assert {row["verdict"] for row in found["rows"]} >= {"regressed", "gone", "new"}
    assert faults(found, schemas["check"]) == []
    estimates = []
    for tokens in ("4k", "8k"):
        command = ("estimate", "llama-3.1-8b", "--gpu", "h100-sxm5-80gb", "--context", tokens, "--json")
        estimates.append(write(tmp_path / f"{tokens}.json", call(capsys, *command).json()))
    assert faults(call(capsys, "check", estimates[0], estimates[0], "--json").json(), schemas["check"]) == []
    assert faults(call(capsys, "check", *estimates, "--json").json(), schemas["check"]) == []


@pytest.mark.parametrize("path", PROFILES, ids=lambda path: path.stem)
def test_profiles_that_were_run(schemas, path):
    assert faults(json.loads(path.read_text(encoding="utf-8")), schemas["profile"]) == []


def test_a_broken_result_is_told_by_its_schema(capsys, schemas):
    document = call(capsys, *COMMANDS["plan"], "--json").json()
    document["rows"][0]["batch"] = "many"
    del document["rows"][1]["fits"]
    document["rows"][2]["new"] = 1
    assert [fault.partition(": ")[2] for fault in faults(document, schemas["plan"])] == [
        "'many' is no integer",
        "'fits' is missing",
        "'new' is not in the schema",
    ]
