"""Startup logs: published ones explained to the printed digit, broken ones read without a crash, in little memory."""

import contextlib
import json
import random
import tracemalloc
from io import StringIO
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from kvcalc.commands.reconcile import make
from kvcalc.engines.logs import MAX_LINE_CHARACTERS, Stated, log_lines, read_log
from kvcalc.errors import KvcalcError, UsageError
from kvcalc.reconcile import EXPLAINED, OFF, UNEXPLAINED
from tests.command_line import kvcalc

ROOT = Path(__file__).resolve().parents[1]
CASES = {each["id"]: each for each in yaml.safe_load((ROOT / "tests/data/engine_log_cases.yaml").read_text("utf-8"))}

CONFIG = (
    "(EngineCore_DP0 pid=7) INFO 11-06 10:00:10 [core.py:93] Initializing a V1 LLM engine (v{version}) with config: "
    "model='org/{name}', speculative_config={drafter}, dtype=torch.bfloat16, max_seq_len={length}, "
    "tensor_parallel_size={tp}, pipeline_parallel_size=1, data_parallel_size=1, kv_cache_dtype={dtype}, "
    "enable_prefix_caching={prefix}"
)


def vllm_log(case):
    """A log with what was published."""
    length = case.get("max_model_len") or 131_072
    lines = [
        CONFIG.format(
            version=case["engine"].partition("@")[2],
            name=case["id"],
            length=length,
            tp=case["tp"],
            dtype=case.get("kv_dtype") or "auto",
            prefix=case.get("prefix_caching") or False,
            drafter="SpeculativeConfig(method='mtp', model='org/x', num_spec_tokens=1)" if case.get("mtp") else None,
        ),
        f"(Worker_TP0 pid=8) INFO [gpu_worker.py:349] Available KV cache memory: {case['available_gib']:.2f} GiB",
        f"(EngineCore_DP0 pid=7) INFO [kv_cache_utils.py:1229] GPU KV cache size: {case['tokens']:,} tokens",
    ]
    if case.get("concurrency"):
        lines.append(f"Maximum concurrency for {length:,} tokens per request: {case['concurrency']}x")
    if case.get("max_batched_tokens"):
        lines.append(f"Chunked prefill is enabled with max_num_batched_tokens={case['max_batched_tokens']}.")
    return [line + "\n" for line in lines]


def account(lines, **options):
    names = ("model", "engine", "gpu", "kv_dtype", "block_tokens", "prefix_caching", "max_batched_tokens")
    defaults = dict.fromkeys(names)
    return make(read_log(lines), **{**defaults, "ranks": {"tp": None, "pp": None, "dcp": None}, **options})[0]


def model_of(case):
    return str(ROOT / case["model"]) if "/" in case["model"] else case["model"]


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case["kind"] == "tokens"])
def test_published_vllm_logs(name):
    case = CASES[name]
    result = account(vllm_log(case), model=model_of(case), gpu=case.get("gpu"))
    expected = {"exact": EXPLAINED, "inexact": OFF}[case["outcome"]]
    assert result.verdict == expected
    document = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert document["stated"]["tokens"] == case["tokens"]
    assert document["stated"]["available_bytes"] == round(case["available_gib"] * (1 << 30))
    assert document["computed"]["tokens_range"] == case["range"]
    total = sum(item["bytes"] for item in document["items"]) + document["unexplained_bytes"]
    assert total == document["computed"]["total_bytes"]


def test_what_the_rules_do_not_know_is_said_and_not_guessed():
    lines = ["Available KV cache memory: 4.00 GiB\n", "GPU KV cache size: 100,000 tokens\n"]
    result = account(lines, model="nemotron-h-8b", engine="vllm@0.24", prefix_caching=True)
    assert result.verdict == UNEXPLAINED
    document = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert "kernel_chunk_tokens" in document["refused"]
    assert document["computed"]["tokens"] is None
    assert document["unexplained_bytes"] is None


def test_what_is_off_is_what_the_case_says():
    case = CASES["qwen3-235b-fp8-tp4"]
    document = account(vllm_log(case), model=case["model"], gpu=case["gpu"]).to_json()
    assert document["unexplained_bytes"] / document["computed"]["total_bytes"] == pytest.approx(0.0107, abs=0.0005)


def test_a_request_that_does_not_fit():
    case = CASES["need-mistral-small-4"]
    line = (
        f"ValueError: To serve at least one request with the models's max seq len ({case['max_model_len']}), "
        f"({case['needed_gib']:.2f} GiB KV cache is needed, which is larger than the available KV cache memory "
        f"({case['available_gib']} GiB). Based on the available memory, the estimated maximum model length is "
        f"{case['estimated_max_len']}.\n"
    )
    result = account(
        [line], model=case["model"], gpu=case["gpu"], engine=case["engine"], ranks={"tp": 2, "pp": 1, "dcp": 1}
    )
    assert result.verdict == EXPLAINED
    low, high = result.tokens_range
    assert low <= case["estimated_max_len"] <= high


def test_sglang_pool():
    case = CASES["sgl-dsv32-fp8-with-index"]
    sizes = f"#tokens: {case['tokens']}, KV size: {case['size_gib']} GB"
    line = f"[2025-10-08 12:00:00 DP0 TP0] KV Cache is allocated. {sizes}\n"
    result = account([line], model=case["model"], engine=case["engine"], kv_dtype="fp8")
    assert result.verdict == EXPLAINED
    assert result.to_json()["computed"]["bytes_per_token"] == 48_068
    assert {item.name for item in result.items} == {"latent", "index", "padding", "rounding"}


LLAMA = (
    "build: 9400 (abcdef0) with cc for x86_64\n"
    "llama_model_loader: - kv   1: general.name str = DeepSeek V2 Lite\n"
    "llama_kv_cache: size = 1944.00 MiB ( 65536 cells,  27 layers,  1/1 seqs), "
    "K (f16): 1944.00 MiB, V (f16):    0.00 MiB\n"
)


def test_llama_cpp_tensors():
    result = account(LLAMA.splitlines(keepends=True))
    assert result.model.name == "deepseek-v2-lite"
    assert result.verdict == EXPLAINED
    assert result.to_json()["computed"]["bytes_per_token"] == 27 * 576 * 2


def test_llama_cpp_before_it_dropped_the_value_cache():
    old = LLAMA.replace("1944.00 MiB ( 65536", "3672.00 MiB ( 65536").replace("build: 9400", "build: x")
    result = account(old.splitlines(keepends=True), engine="llama-cpp@2025-12-01")
    assert result.verdict == EXPLAINED
    assert {item.name for item in result.items} >= {"latent", "latent again as V"}


def test_llama_cpp_windows_have_tensors_of_their_own():
    """gemma-3-27b at 8,192 tokens: 10 layers of full attention, 52 windows of 1,024 and a batch of 512."""
    lines = [
        "build: 9400 (abcdef0)\n",
        "llama_model_loader: - kv   1: general.name str = gemma-3-27b-it\n",
        "llama_kv_cache: size =  640.00 MiB (  8192 cells,  10 layers,  1/1 seqs), K (f16): 320.00 MiB\n",
        "llama_kv_cache: size =  624.00 MiB (  1536 cells,  52 layers,  1/1 seqs), K (f16): 312.00 MiB\n",
    ]
    result = account(lines)
    assert result.model.name == "gemma-3-27b"
    assert result.verdict == EXPLAINED
    sizes = {item.name: item.bytes >> 20 for item in result.items}
    assert sizes == {"keys and values": 640, "windows": 624, "rounding": 0}


def test_sglang_states_keys_and_values_apart():
    line = "[2026-01-01 TP1] KV Cache is allocated. #tokens: 8191, K size: 0.50 GB, V size: 0.50 GB\n"
    result = account([line], model="llama-3.1-8b", engine="sglang")
    assert result.stated.pool_bytes == 1 << 30
    assert result.verdict == EXPLAINED


def test_settings_of_sglangs_arguments():
    line = (
        "server_args=ServerArgs(model_path='deepseek-ai/DeepSeek-V3', tp_size=8, dp_size=8, enable_dp_attention=True, "
        "kv_cache_dtype='fp8_e4m3', page_size=64, mem_fraction_static=0.85)\n"
    )
    stated = read_log([line, "max_total_num_tokens=1000, context_len=163840\n"])
    assert (stated.tp, stated.dp, stated.dp_attention) == (8, 8, True)
    assert (stated.kv_dtype, stated.block_tokens, stated.memory_utilization) == ("fp8_e4m3", 64, 0.85)
    assert (stated.tokens, stated.max_model_len) == (1000, 163_840)


def test_older_lines_of_llama_cpp():
    stated = read_log(
        ["llama_init_from_model: KV self size  = 1728.00 MiB, K (f16):  864.00 MiB, V (f16):  864.00 MiB\n"]
    )
    assert stated.engine == "llama-cpp"
    assert stated.pool_bytes == 1728 << 20
    assert stated.kv_dtype == "fp16"


def test_the_engine_before_v1():
    lines = [
        "INFO 11-14 vLLM API server version 0.6.4\n",
        "the rest of the memory reserved for KV Cache is 3.81GiB.\n",
        "INFO # GPU blocks: 1952, # CPU blocks: 2048\n",
    ]
    result = account(lines, model="llama-3.1-8b")
    assert result.verdict == EXPLAINED
    assert result.stated.blocks == 1952


# --- broken and large logs --------------------------------------------------------------------------------------------

GOOD = vllm_log(CASES["kimi-k2-thinking-tp8"])


def colored(line):
    return "\x1b[36m" + line.replace("INFO", "\x1b[32mINFO\x1b[0m").rstrip("\n") + "\x1b[0m\r\n"


def test_colour_and_interleaved_ranks_change_nothing():
    noise = [f"(Worker_TP{rank} pid={rank}) INFO Loading weights took {rank}.5 seconds\n" for rank in range(8)]
    ranks = [GOOD[1].replace("TP0", f"TP{rank}") for rank in range(8)]
    mixed = [GOOD[0], *ranks, GOOD[2], *noise]
    random.Random(3).shuffle(mixed)
    plain, found = (account(lines, model="kimi-k2", gpu="h200-sxm-141gb") for lines in (GOOD, map(colored, mixed)))
    assert found.tokens == plain.tokens
    assert found.items == plain.items
    assert found.stated.available_bytes.times == 8


def test_the_least_memory_of_the_ranks_counts():
    ranks = [GOOD[1], GOOD[1].replace("46.80", "46.10")]
    stated = read_log([GOOD[0], *ranks, GOOD[2]])
    assert round(stated.available_bytes.low / (1 << 30), 2) == 46.10
    assert round(stated.available_bytes.high / (1 << 30), 2) == 46.80


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_cut_and_garbled_logs_give_an_account_or_an_error(data):
    """Any prefix, any order, any replaced bytes: an account, or a message; never another exception."""
    text = "".join(data.draw(st.permutations([*GOOD, *LLAMA.splitlines(keepends=True)])))
    text = text[: data.draw(st.integers(0, len(text)))]
    for _ in range(data.draw(st.integers(0, 6))):
        at = data.draw(st.integers(0, len(text)))
        text = text[:at] + data.draw(st.text(max_size=12)) + text[at + data.draw(st.integers(0, 12)) :]
    try:
        result = account(log_lines(StringIO(text)), model="kimi-k2")
    except KvcalcError:
        return
    json.dumps(result.to_json(), allow_nan=False)


@settings(max_examples=100, deadline=None)
@given(lines=st.lists(st.text(max_size=200), max_size=20))
def test_any_text_is_read(lines):
    assert isinstance(read_log(lines), Stated)


@pytest.mark.parametrize("number", ["", ",", "1,2,3", "9" * 400, "46.8.0", "0"])
def test_absurd_numbers_do_no_harm(number):
    lines = [line.replace("46.80", number).replace("715,072", number) for line in GOOD]
    with contextlib.suppress(UsageError):
        json.dumps(account(lines, model="kimi-k2").to_json(), allow_nan=False)


class Endless:
    """A stream of so many characters, made as it is read."""

    def __init__(self, characters, line):
        self.left, self.line = characters, line

    def readline(self, limit):
        part = self.line[: min(limit, self.left)]
        self.left -= len(part)
        return part


@pytest.mark.parametrize(
    "line", ["INFO Loading safetensors checkpoint shards: 12% " * 40 + "\n", "x" * MAX_LINE_CHARACTERS]
)
def test_a_log_of_200_mb_is_read_in_bounded_memory(line):
    tracemalloc.start()
    try:
        stated = read_log(GOOD)
        more = read_log(log_lines(Endless(200_000_000, line)))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert stated.tokens == 715_072
    assert not more.says_something
    assert peak < 4_000_000


def test_a_log_that_says_nothing_is_an_error(tmp_path):
    log = tmp_path / "server.log"
    log.write_text("GET / 200\n")
    done = kvcalc("reconcile", str(log))
    assert done.code == 2
    assert "says nothing about a cache" in done.err


def test_the_command_reads_standard_input():
    options = ("--model", "kimi-k2", "--gpu", "h200-sxm-141gb", "--json")
    done = kvcalc("reconcile", "-", *options, stdin="".join(GOOD).encode())
    assert done.code == 0, done.err
    document = done.json()
    assert document["schema"] == "kvcalc.reconcile/1"
    assert document["computed"]["tokens"] == document["stated"]["tokens"] == 715_072
    assert document["unexplained_bytes"] == 0


@pytest.mark.parametrize(
    ("name", "taken"),
    [
        ("moonshotai/Kimi-K2-Thinking", "kimi-k2"),
        ("deepseek-ai/DeepSeek-V3", "deepseek-v3"),
        ("Qwen/Qwen3-8B-FP8", "qwen3-8b"),
    ],
)
def test_model_names_of_logs(name, taken):
    lines = [line.replace("org/kimi-k2-thinking-tp8", name) for line in GOOD]
    assert account(lines).model.name == taken


def test_an_unknown_model_must_be_named():
    with pytest.raises(UsageError, match="no packaged model"):
        account([line.replace("org/kimi-k2-thinking-tp8", "org/secret") for line in GOOD])
