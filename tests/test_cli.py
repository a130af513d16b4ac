"""The command line in subprocesses: streams, exit codes, formats, terminals and files."""

import csv
import json
import os
import re
import subprocess
import sys
from collections import Counter
from functools import cache
from io import StringIO

import pytest

import kvcalc as package
from kvcalc.commands import estimate as estimate_command
from kvcalc.commands.schema import WHAT
from tests.command_line import ROOT, Result, call, environment, kvcalc

SPEC = """\
name: my-model
title: %s
source: {cite: a test, date: 2026-11-24}
hidden_size: 64
vocab_size: 100
tied_embeddings: false
max_context_tokens: 8192
weight_formats: {default: bf16}
layers:
  - attention: {kind: mha, n_heads: 4, head_dim: 16}
"""
NUMBER, WHOLE, TEXT, LIST, ANYTHING = (int, float), int, str, list, object


@cache
def run(*args: str) -> Result:
    """One subprocess for all tests that look at the same command."""
    return kvcalc(*args)


ESTIMATE = ("estimate", "deepseek-v3", "--context", "128k", "--gpu", "h200-sxm-141gb", "--tp", "8", "--json")
COMPARE = ("compare", "deepseek-v3", "--what-if", "mha,gqa:8,mqa,mla", "--context", "32k", "--json")


def at(data: object, path: str) -> object:
    for step in path.split("."):
        assert isinstance(data, dict), path
        assert step in data, path
        data = data[step]
    return data


def is_a(value: object, kind: object) -> bool:
    """Whether a JSON value is of a kind; true and false are no numbers."""
    return isinstance(value, kind) and not (kind in (WHOLE, NUMBER) and isinstance(value, bool))


# --- streams and exit codes -------------------------------------------------------------------------------------------


def test_data_goes_to_stdout_and_nothing_else_does():
    result = run(*ESTIMATE)
    assert (result.code, result.err) == (0, "")
    assert result.json()["schema"] == "kvcalc.estimate/1"


def test_warnings_go_to_stderr():
    result = run("estimate", "llama-2-7b", "--context", "8k", "--json")
    assert result.code == 0
    assert result.err.startswith("warning: context 8,192 is above")
    assert result.json()["workload"]["context_tokens"] == 8192


def test_errors_go_to_stderr_with_exit_code_2():
    result = run("estimate", "deepseek-v3", "--tp", "3")
    assert (result.code, result.out) == (2, "")
    assert result.err == (
        "error: tp 3 does not divide the 128 heads of MLA 512+64\nhint: tp must divide the number of query heads\n"
    )


def test_a_spec_error_is_printed_as_it_is(tmp_path):
    path = tmp_path / "my.yaml"
    path.write_text(SPEC.replace("n_heads: 4", "n_heads: '4'") % "x")
    result = kvcalc("estimate", str(path))
    assert (result.code, result.out) == (2, "")
    assert result.err == (
        f"{path}:10:28: error: 'n_heads' must be a whole number, not the text '4'\n"
        "10 |   - attention: {kind: mha, n_heads: '4', head_dim: 16}\n"
        "                                ^\n"
        "hint: write it as a plain number, without quotes or exponent: 128000\n"
    )


def test_what_does_not_fit_is_exit_code_1_only_where_it_is_asked_for(capsys):
    args = ("estimate", "deepseek-v3", "--gpu", "l4", "--json")
    assert call(capsys, *args).code == 0
    result = call(capsys, *args, "--fail-if-oom")
    assert result.code == 1
    assert result.json()["memory"]["fits"] is False
    assert call(capsys, "estimate", "llama-3.1-8b", "--gpu", "l4", "--context", "1k", "--fail-if-oom").code == 0


def test_a_bug_is_exit_code_70_with_its_traceback(capsys, monkeypatch):
    def fail(*args: object, **kwargs: object) -> int:
        raise RuntimeError("planted")

    monkeypatch.setattr(estimate_command, "run", fail)
    result = call(capsys, "estimate", "deepseek-v3")
    assert result.code == 70
    assert result.out == ""
    assert "Traceback" in result.err
    assert "RuntimeError: planted" in result.err
    assert result.err.endswith("this is a bug in kvcalc; please report it with the lines above\n")


def test_an_interrupt_is_exit_code_130_without_a_traceback(capsys, monkeypatch):
    def interrupt(*args: object, **kwargs: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(estimate_command, "run", interrupt)
    result = call(capsys, "estimate", "deepseek-v3")
    assert (result.code, result.out, result.err) == (130, "", "interrupted\n")


@pytest.mark.parametrize("args", [("--help",), ("-h",), ("estimate", "--help"), ("compare", "-h")], ids=" ".join)
def test_help(args):
    result = run(*args)
    assert (result.code, result.err) == (0, "")
    assert "Usage" in result.out


def test_version():
    assert run("--version") == Result(0, f"kvcalc {package.__version__}\n", "")


@pytest.mark.parametrize(
    "args",
    [
        ("estimate", "deepseek-v3", "--explain"),
        ("list", "models"),
        ("schema", "model"),
        ("--help",),
        ("--version",),
        ("estimate", "--help"),
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("unbuffered", [None, "1"], ids=["buffered", "unbuffered"])
def test_a_closed_pipe_is_no_error(args, unbuffered):
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "kvcalc", *args],
            stdout=writer,
            stderr=subprocess.PIPE,
            env=environment(PYTHONUNBUFFERED=unbuffered),
            timeout=60,
        )
    finally:
        os.close(writer)
    assert b"Traceback" not in done.stderr
    assert b"Exception ignored" not in done.stderr
    assert done.returncode == 0


def test_head_takes_one_line():
    done = subprocess.run(
        f"{sys.executable} -m kvcalc estimate deepseek-v3 --explain | head -1",
        shell=True,
        capture_output=True,
        text=True,
        env=environment(),
        timeout=60,
    )
    assert (done.stdout, done.stderr) == ("DeepSeek-V3 (deepseek-v3)\n", "")


# --- JSON, by the keys of the design ----------------------------------------------------------------------------------


ESTIMATE_KEYS = {
    "schema": TEXT,
    "model.name": TEXT,
    "model.attention": LIST,
    "model.layers": WHOLE,
    "model.parameters.total": WHOLE,
    "model.parameters.active": WHOLE,
    "workload.batch": WHOLE,
    "workload.context_tokens": WHOLE,
    "workload.query_tokens": WHOLE,
    "precision.kv": TEXT,
    "precision.weights": TEXT,
    "parallel.tp": WHOLE,
    "parallel.pp": WHOLE,
    "parallel.dp": WHOLE,
    "parallel.dcp": WHOLE,
    "parallel.ep": WHOLE,
    "cache.elements_per_token": WHOLE,
    "cache.index_elements_per_token": WHOLE,
    "cache.bytes_per_token": WHOLE,
    "cache.bytes_per_period": WHOLE,
    "cache.period_tokens": WHOLE,
    "cache.constant_bytes_per_sequence": WHOLE,
    "cache.stored_bytes": WHOLE,
    "cache.allocated_bytes": WHOLE,
    "cache.per_rank.bytes_per_token": WHOLE,
    "cache.per_rank.stored_bytes": WHOLE,
    "cache.per_rank.allocated_bytes": WHOLE,
    "cache.replication_factor": NUMBER,
    "cache.components": LIST,
    **{
        f"{phase}.{key}": kind
        for phase in ("decode", "prefill")
        for key, kind in {
            "attention.flop": WHOLE,
            "attention.read_bytes": WHOLE,
            "attention.query_output_bytes": WHOLE,
            "attention.flop_per_byte": NUMBER,
            "attention.expanded.flop": WHOLE,
            "step.flop": WHOLE,
            "step.read_bytes": WHOLE,
            "time.roofline_s": NUMBER,
            "time.expected_s": ANYTHING,
            "time.interval_s": ANYTHING,
            "time.bound": TEXT,
            "time.terms": LIST,
        }.items()
    },
    "memory.weights_bytes_per_gpu": WHOLE,
    "memory.cache_bytes_per_gpu": WHOLE,
    "memory.fits": bool,
    "memory.max_batch": WHOLE,
    "memory.max_context_tokens": WHOLE,
}
COMPARE_KEYS = {
    "model": TEXT,
    "attention": TEXT,
    "elements_per_token": WHOLE,
    "bytes_per_token": WHOLE,
    "ratio": NUMBER,
    "decode_attention_flop_per_token": WHOLE,
}


@pytest.mark.parametrize(("path", "kind"), ESTIMATE_KEYS.items(), ids=ESTIMATE_KEYS.keys())
def test_estimate_has_the_designs_keys_with_their_types(path, kind):
    assert is_a(at(run(*ESTIMATE).json(), path), kind)


@pytest.mark.parametrize(("key", "kind"), COMPARE_KEYS.items(), ids=COMPARE_KEYS.keys())
def test_compare_has_the_designs_keys_with_their_types(key, kind):
    rows = run(*COMPARE).json()["rows"]
    assert len(rows) == 5
    for row in rows:
        assert is_a(row[key], kind)


def test_values_of_the_estimate():
    data = run(*ESTIMATE).json()
    assert data["cache"]["bytes_per_token"] == 70_272
    assert data["cache"]["stored_bytes"] == 9_210_691_584
    assert data["cache"]["replication_factor"] == 8
    assert data["workload"] == {"batch": 1, "context_tokens": 131_072, "query_tokens": 1, "mtp": False}
    assert data["decode"]["time"]["bound"] in ("memory", "compute")


def test_the_json_is_the_python_interfaces_object():
    result = package.estimate("deepseek-v3", context_tokens=131_072, gpu="h200-sxm-141gb", tp=8)
    assert json.loads(json.dumps(result.to_json())) == run(*ESTIMATE).json()


def test_values_of_the_comparison():
    rows = run(*COMPARE).json()["rows"]
    assert [row["elements_per_token"] // 61 for row in rows] == [576, 32_768, 2048, 256, 576]
    assert rows[0]["ratio"] == rows[4]["ratio"] == 1


@pytest.mark.parametrize("key", ["memory", "decode.time", "prefill.time", "gpu"])
def test_without_a_gpu_time_and_memory_are_null(capsys, key):
    assert at(call(capsys, "estimate", "deepseek-v3", "--json").json(), key) is None


def test_terms_only_with_explain(capsys):
    assert "terms" not in run(*ESTIMATE).json()
    terms = call(capsys, "estimate", "deepseek-v3", "--json", "--explain").json()["terms"]
    assert {"name", "formula", "substituted", "value", "unit", "source"} <= set(terms[0])


def test_growth_is_an_exact_decimal_where_it_is_not_whole(capsys):
    result = call(capsys, "estimate", "deepseek-v4-flash", "--json")
    assert '"bytes_per_token": 3850.25' in result.out
    assert result.json()["cache"]["bytes_per_period"] == 492_832


def test_a_cache_that_does_not_grow_has_no_ratio(capsys):
    rows = call(capsys, "compare", "phi-3-mini-4k", "llama-2-7b", "--context", "4k", "--json").json()["rows"]
    assert [row["bytes_per_token"] for row in rows] == [0, 524_288]
    assert [row["ratio"] for row in rows] == [None, None]


def test_compare_has_times_where_a_gpu_is_named(capsys):
    rows = call(capsys, "compare", "deepseek-v3", "llama-3.1-8b", "--gpu", "h200-sxm-141gb", "--json").json()["rows"]
    assert all(is_a(row["decode_roofline_s"], NUMBER) and row["decode_bound"] == "memory" for row in rows)
    assert all(row["decode_roofline_s"] is None for row in run(*COMPARE).json()["rows"])


@pytest.mark.parametrize("name", ["models", "gpus", "kinds", "formats", "engines"])
def test_list_has_rows_with_names(capsys, name):
    data = call(capsys, "list", name, "--json").json()
    names = [row["name"] for row in data["rows"]]
    assert data["schema"] == "kvcalc.list/1"
    assert names
    assert all(names)
    assert len(set(names)) == len(names) or name == "engines", "engines have a row a version and backend"


@pytest.mark.parametrize("what", WHAT)
def test_schema_prints_a_json_schema(capsys, what):
    data = call(capsys, "schema", what).json()
    assert data["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert data["properties"]


def test_results_have_the_keys_that_their_schema_requires(capsys):
    for args, what in ((ESTIMATE, "estimate"), (COMPARE, "compare")):
        schema, data = call(capsys, "schema", what).json(), run(*args).json()
        assert set(schema["required"]) <= set(data)
        assert schema["properties"]["schema"]["const"] == data["schema"]


# --- the other formats ------------------------------------------------------------------------------------------------


def test_csv_of_one_estimate_is_a_row_with_dotted_names(capsys):
    result = call(capsys, "estimate", "deepseek-v3", "--format", "csv")
    (row,) = csv.DictReader(StringIO(result.out))
    assert row["cache.bytes_per_token"] == "70272"
    assert row["model.attention"] == "61 x MLA 512+64"
    assert row["memory"] == ""


def test_csv_of_a_comparison_has_a_line_a_row(capsys):
    result = call(capsys, *COMPARE[:-1], "--format", "csv")
    rows = list(csv.DictReader(StringIO(result.out)))
    assert [row["bytes_per_token"] for row in rows] == ["70272", "3997696", "249856", "31232", "70272"]
    assert None not in rows[0]


@pytest.fixture
def odd_spec(tmp_path):
    """A spec whose title has all that a renderer could trip over."""

    def write(title: str) -> str:
        path = tmp_path / "odd.yaml"
        path.write_text(SPEC % json.dumps(title), encoding="utf-8")
        return str(path)

    return write


def test_markdown_escapes_what_a_title_brings(capsys, odd_spec):
    title = "a|b <script>alert(1)</script> *x* [l](u) & `c`"
    out = call(capsys, "compare", odd_spec(title), "--format", "markdown").out
    estimate = call(capsys, "estimate", odd_spec(title), "--format", "markdown").out
    heading = estimate.partition("\n")[0]
    assert heading.startswith("## a\\|b \\<script\\>")
    assert "&amp;" in heading
    assert "\\*x\\* \\[l\\]" in heading
    for text in (out, estimate):
        assert "<script>" not in text.replace("\\<script\\>", "")


def test_markdown_tables_have_as_many_cells_in_every_row(capsys):
    out = call(capsys, *COMPARE[:-1], "--format", "markdown").out
    rows = [line for line in out.splitlines() if line.startswith("|")]
    assert len(rows) == 7
    assert len({len(re.findall(r"(?<!\\)\|", row)) for row in rows}) == 1


@pytest.mark.parametrize("format", ["table", "text", "csv", "json"])
def test_brackets_print_literally(capsys, odd_spec, format):
    out = call(
        capsys, "estimate", odd_spec("keys [num_heads, head_dim] and [bold]x[/bold] :smile:"), "--format", format
    ).out
    assert "[num_heads, head_dim] and [bold]x[/bold] :smile:" in out


@pytest.mark.parametrize("format", ["table", "text", "markdown"])
@pytest.mark.parametrize(
    "title",
    ["red \x1b[31m title", "two\nlines", "back\rspace\x08", "right\u202eleft"],
    ids=["escape", "newline", "return", "bidi"],
)
def test_a_titles_control_characters_are_not_printed(capsys, odd_spec, format, title):
    out = call(capsys, "estimate", odd_spec(title), "--format", format).out
    first_line = out.partition("\n")[0]
    assert "(my" in first_line
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", out)


def test_text_is_the_default_in_a_pipe_and_cuts_nothing_off():
    result = run("compare", "deepseek-v4-pro", "gpt-oss-120b", "llama-3.1-8b", "--gpu", "h200-sxm-141gb")
    assert "\x1b" not in result.out
    assert "…" not in result.out
    for label in package.load_model("deepseek-v4-pro").attention_labels:
        assert label in result.out


@pytest.mark.parametrize(
    ("ending", "start"),
    [(".json", "{"), (".csv", "schema,"), (".md", "## "), (".txt", "DeepSeek-V3"), (".log", "DeepSeek-V3")],
)
def test_a_files_ending_names_its_format(capsys, tmp_path, ending, start):
    path = tmp_path / f"out{ending}"
    result = call(capsys, "estimate", "deepseek-v3", "-o", str(path))
    assert (result.code, result.out, result.err) == (0, "", "")
    assert path.read_text().startswith(start)
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


def test_exact_bytes_on_request(capsys):
    args = ("estimate", "deepseek-v3", "--context", "128k", "--format", "text")
    assert "8.58 GiB" in call(capsys, *args).out
    assert "9,210,691,584 B" in call(capsys, *args, "--bytes").out
    assert "GiB" not in call(capsys, *args, "--bytes", "--gpu", "h200-sxm-141gb").out.replace(
        "GiB that the driver reports", ""
    )


def test_defaults_that_mattered_are_printed(capsys):
    out = call(capsys, "estimate", "llama-2-7b", "--format", "text").out
    for default in ("batch 1", "context 4,096 tokens", "bf16", "blocks of 16 tokens", "generic", "as published"):
        assert default in out


def test_the_resolved_context_is_echoed(capsys):
    assert (
        "context 131,072 tokens" in call(capsys, "estimate", "deepseek-v3", "--context", "128k", "--format", "text").out
    )


# --- standard input ---------------------------------------------------------------------------------------------------


def test_a_spec_from_standard_input():
    result = kvcalc("estimate", "-", "--json", stdin=(SPEC % "From a pipe").encode())
    assert result.json()["model"]["title"] == "From a pipe"


def test_a_config_from_standard_input():
    config = {
        "model_type": "llama",
        "hidden_size": 4096,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "intermediate_size": 14336,
        "vocab_size": 128256,
        "max_position_embeddings": 131072,
    }
    result = kvcalc("estimate", "-", "--json", stdin=json.dumps(config).encode())
    assert result.json()["cache"]["bytes_per_token"] == 131_072
    assert result.json()["model"]["parameters"]["total"] == 8_030_261_248


# --- terminals --------------------------------------------------------------------------------------------------------


def on_a_terminal(*args: str, **env: str | None) -> str:
    """What the command prints on a pseudo-terminal."""
    import pty

    parent, child = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "kvcalc", *args],
        stdin=child,
        stdout=child,
        stderr=child,
        env=environment(**{"TERM": "xterm-256color", **env}),
    )
    os.close(child)
    chunks = []
    while True:
        try:
            chunk = os.read(parent, 65536)
        except OSError:  # Linux says so where the other end is closed
            break
        if not chunk:
            break
        chunks.append(chunk)
    os.close(parent)
    assert process.wait(timeout=60) == 0
    return b"".join(chunks).decode().replace("\r\n", "\n")


@pytest.mark.skipif(sys.platform == "win32", reason="no pseudo-terminals")
class TestTerminal:
    """A table and colour on a terminal, and neither where they do harm."""

    def test_a_terminal_gets_a_coloured_table(self):
        out = on_a_terminal("estimate", "deepseek-v3", COLUMNS="120")
        assert "\x1b[1m" in out
        assert "───" in out

    def test_no_color_is_honoured(self):
        out = on_a_terminal("estimate", "deepseek-v3", COLUMNS="120", NO_COLOR="1")
        assert "───" in out
        assert not re.search(r"\x1b\[[0-9;]*m", out)

    def test_a_narrow_terminal_wraps_and_loses_nothing(self):
        args = ("compare", "deepseek-v4-pro", "llama-3.1-8b")
        narrow, wide = (on_a_terminal(*args, COLUMNS=columns, NO_COLOR="1") for columns in ("70", "400"))
        assert "…" not in narrow
        assert max(map(len, narrow.split("\n"))) <= 70
        assert Counter(filter(str.isalnum, narrow)) == Counter(filter(str.isalnum, wide))

    def test_an_error_has_no_colour_to_be_read_by(self):
        result = kvcalc("estimate", "deepseek-v3", "--tp", "3", TERM="xterm-256color")
        assert "\x1b" not in result.err


class TestAscii:
    """An output that can't show more than ASCII."""

    def test_bars_are_drawn_in_ascii(self):
        result = kvcalc(*COMPARE[:-1], PYTHONIOENCODING="ascii", PYTHONUTF8="0")
        assert (result.code, result.err) == (0, "")
        assert result.out.isascii()
        assert "####" in result.out
        assert "?" not in result.out

    def test_a_table_is_drawn_in_ascii(self):
        result = kvcalc("estimate", "deepseek-v3", "--format", "table", PYTHONIOENCODING="ascii", PYTHONUTF8="0")
        assert (result.code, result.err) == (0, "")
        assert result.out.isascii()
        assert "?" not in result.out

    def test_a_title_that_has_no_ascii_is_replaced_and_not_fatal(self, odd_spec):
        result = kvcalc("estimate", odd_spec("Modèle 模型"), PYTHONIOENCODING="ascii", PYTHONUTF8="0")
        assert (result.code, result.err) == (0, "")
        assert result.out.isascii()

    def test_json_keeps_every_character(self, odd_spec):
        result = kvcalc("estimate", odd_spec("Modèle 模型"), "--json", PYTHONIOENCODING="ascii", PYTHONUTF8="0")
        assert result.json()["model"]["title"] == "Modèle 模型"


# --- where things are found -------------------------------------------------------------------------------------------


def test_packaged_models_are_found_from_any_folder(tmp_path):
    result = kvcalc("estimate", "deepseek-v3", "--json", cwd=tmp_path)
    assert result.json()["cache"]["bytes_per_token"] == 70_272
    assert ROOT.is_dir()


def test_a_name_never_opens_a_file_of_that_name(tmp_path):
    (tmp_path / "deepseek-v3").write_text("not a spec")
    assert kvcalc("estimate", "deepseek-v3", "--json", cwd=tmp_path).code == 0
