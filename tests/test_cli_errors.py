"""Option values that make no sense: exit code 2, an error and a hint, nothing on stdout, nothing half-written."""

import os
import sys
import threading
from pathlib import Path

import pytest

from kvcalc.commands.output import write_file
from tests.command_line import call, kvcalc

E = ("estimate", "deepseek-v3")
C = ("compare", "deepseek-v3")
S = (*E, "--gpu", "h200-sxm-141gb", "--serving", "aggregated")
P = ("plan", "llama-3.1-8b", "--gpu", "h200-sxm-141gb")

WRONG = [
    # (arguments, message, hint)
    ((*E, "--context", "0"), "context '0' is not a whole number above 0", "write 32768, 32k or 1m"),
    ((*E, "--context", "12x"), "context '12x' is not a whole number above 0", "write 32768, 32k or 1m"),
    ((*E, "--context", "-5"), "context '-5' is not a whole number above 0", None),
    ((*E, "--context", "1.5"), "context '1.5' is not a whole number above 0", None),
    ((*E, "--context", ""), "context '' is not a whole number above 0", None),
    ((*E, "--context", "k"), "context 'k' is not a whole number above 0", None),
    ((*E, "--context", "nan"), "context 'nan' is not a whole number above 0", None),
    ((*E, "--context", "1e5"), "context '1e5' is not a whole number above 0", None),
    ((*E, "--context", "1/1"), "context '1/1' is not a whole number above 0", None),
    ((*E, "--context", "9" * 400), "context", None),
    ((*E, "--context", "1", "--query-tokens", "9" * 20), "query", None),
    ((*E, "--batch", "9" * 400), "batch", None),
    ((*E, "--batch", "0"), "batch '0' is not a whole number above 0", None),
    (
        (*E, "--context", "4", "--query-tokens", "5"),
        "query_tokens 5 is more than context_tokens 4",
        "counts the new tokens too",
    ),
    ((*E, "--tp", "3"), "tp 3 does not divide the 128 heads", "must divide the number of query heads"),
    ((*E, "--tp", "0"), "tp is 0; it must be 1", None),
    ((*E, "--tp", "-8"), "tp is -8; it must be 1", None),
    ((*E, "--tp", "8", "--dcp", "3"), "dcp 3 does not divide tp 8", "reuses the tp ranks"),
    ((*E, "--dcp", "2"), "dcp 2 does not divide tp 1", "reuses the tp ranks"),
    ((*E, "--engine", "vllm", "--max-batched-tokens", "-5"), "in one step are -5; they must be 1 or more", None),
    ((*E, "--max-batched-tokens", "0"), "in one step are 0; they must be 1 or more", None),
    ((*E, "--output-tokens", "5"), "--output-tokens is of aggregated serving", "add --serving aggregated"),
    ((*E, "--serving", "aggregated"), "--serving aggregated needs a GPU", "add --gpu"),
    ((*S, "--output-tokens", "1,2"), "output tokens '1,2' is not a whole number above 0", None),
    ((*P, "--weights-bytes", "0"), "weights of 0 bytes are none", "leave the size out"),
    ((*P, "--price", "nan"), "the price of a GPU-hour is nan", None),
    ((*P, "--price=-3"), "the price of a GPU-hour is -3", None),
    ((*E, "--tp", "8", "--ep", "3"), "ep 3 does not divide tp x dp = 8", "reuses the tp and dp ranks"),
    ((*E, "--pp", "62"), "pp 62 is more than the model's 61 layers", None),
    ((*E, "--block-size", "0"), "block size is 0; it must be 1 token or more", None),
    (
        (*E, "--gpu", "h100"),
        "GPU 'h100' is ambiguous: it may be h100-nvl-94gb, h100-pcie-80gb, h100-sxm5-80gb",
        "name one of them",
    ),
    ((*E, "--gpu", "h100-smx5-80gb"), "unknown GPU 'h100-smx5-80gb'", "did you mean 'h100-sxm5-80gb'"),
    ((*E, "--gpu", ""), "unknown GPU ''", "known: "),
    ((*E, "--gpu", "./none.yaml"), "none.yaml", None),
    ((*E, "--gpu", "h20-96gb", "--memory-utilization", "0"), "memory utilization is 0", None),
    ((*E, "--gpu", "h20-96gb", "--memory-utilization", "1.1"), "memory utilization is 1.1", None),
    ((*E, "--gpu", "h20-96gb", "--memory-utilization", "nan"), "memory utilization is nan", None),
    ((*E, "--fail-if-oom"), "--fail-if-oom needs a GPU", "add --gpu"),
    ((*E, "--kv-dtype", "fp9"), "unknown cache format 'fp9'", "did you mean 'fp8'"),
    ((*E, "--kv-dtype", "fp8_index"), "it has no place for 'latent'", "kvcalc list formats"),
    ((*E, "--weights-dtype", "fp7"), "unknown weight format 'fp7'", "'fp8'"),
    ((*E, "--index-dtype", "nope"), "unknown cache format 'nope'", None),
    ((*E, "--state-dtype", "nope"), "unknown cache format 'nope'", None),
    ((*E, "--engine", "nope"), "'nope'", "generic"),
    ((*E, "--format", "jsonn"), "unknown format 'jsonn'", "did you mean 'json'"),
    ((*E, "--json", "--format", "csv"), "--json and --format csv contradict each other", None),
    (("estimate", "deepseek-v33"), "unknown model 'deepseek-v33'", "did you mean 'deepseek-v3'"),
    (("estimate", "./none.yaml"), "no such file: './none.yaml'", "hf:org/name"),
    ((*C, "--what-if", "gqa:7"), "gqa:7: the model's 128 heads can't be put into 7 groups", None),
    ((*C, "--what-if", "gqa"), "--what-if can't read 'gqa'", "gqa:8"),
    ((*C, "--what-if", "gqa:0"), "--what-if can't read 'gqa:0'", "gqa:8"),
    ((*C, "--what-if", "gqa:-8"), "--what-if can't read 'gqa:-8'", "gqa:8"),
    ((*C, "--what-if", "gqa:" + "9" * 5000), "gqa:", None),
    ((*C, "--what-if", "mha:3"), "--what-if can't read 'mha:3'", "mha"),
    ((*C, "--what-if", "mla:512+"), "--what-if can't read 'mla:512+'", "mla:RANK+ROPE"),
    ((*C, "--what-if", "mla:0+64"), "--what-if can't read 'mla:0+64'", "mla:RANK+ROPE"),
    ((*C, "--what-if", "mla:" + "9" * 30), "mla:", None),
    ((*C, "--what-if", "mlq"), "--what-if can't read 'mlq'", "mla"),
    ((*C, "--what-if", ""), "--what-if can't read ''", "mha"),
    ((*C, "--what-if", "mha,,mqa"), "--what-if can't read ''", None),
    ((*C, "llama-3.1-8b", "--what-if", "mha"), "replaces the attention of one model; several are named", None),
    ((*C, "nope-model"), "unknown model 'nope-model'", None),
    (("list", "nothing"), "can't list 'nothing'", "models"),
    (("list", "model"), "can't list 'model'", "did you mean 'models'"),
    (("schema", "nothing"), "there is no schema of 'nothing'", "estimate"),
    (("import", "./none.json"), "no such file: './none.json'", None),
]


@pytest.mark.parametrize(("args", "message", "hint"), WRONG, ids=[" ".join(row[0][2:] or row[0])[:40] for row in WRONG])
def test_a_wrong_value_is_refused_in_a_line(capsys, args, message, hint):
    result = call(capsys, *args)
    assert result.code == 2, result.err
    assert result.out == ""
    assert "Traceback" not in result.err
    first, *rest = result.err.rstrip("\n").split("\n")
    assert first.startswith("error: ")
    assert message in first
    if hint is not None:
        assert len(rest) == 1
        assert rest[0].startswith("hint: ")
        assert hint in rest[0]


USAGE = [
    (("estimate",), "Missing argument"),
    (("estimate", "deepseek-v3", "--tp", "x"), "--tp"),
    (("estimate", "deepseek-v3", "--tp", "1.5"), "--tp"),
    (("estimate", "deepseek-v3", "--memory-utilization", "half"), "--memory-utilization"),
    (("estimate", "deepseek-v3", "--nope"), "--nope"),
    (("estimate", "deepseek-v3", "--context"), "--context"),
    (("estimate", "deepseek-v3", "llama-3.1-8b"), "llama-3.1-8b"),
    (("compare",), "Missing argument"),
    (("nope",), "nope"),
    (("--nope",), "--nope"),
]


@pytest.mark.parametrize(("args", "message"), USAGE, ids=[" ".join(row[0]) for row in USAGE])
def test_wrong_usage_is_told_on_stderr_with_exit_code_2(capsys, args, message):
    result = call(capsys, *args)
    assert result.code == 2
    assert result.out == ""
    assert message in result.err
    assert "Traceback" not in result.err


def test_a_context_above_the_maximum_is_a_warning(capsys):
    result = call(capsys, *E, "--context", "1m", "--json")
    assert result.code == 0
    assert result.err == "warning: context 1,048,576 is above the model's maximum 163,840\n"
    assert result.json()["workload"]["context_tokens"] == 1_048_576
    assert result.json()["warnings"] == ["context 1,048,576 is above the model's maximum 163,840"]


def test_a_context_at_the_maximum_is_none(capsys):
    assert call(capsys, *E, "--context", "163840", "--json").err == ""


def test_compare_warns_with_the_models_name(capsys):
    result = call(capsys, "compare", "deepseek-v3", "llama-2-7b", "--context", "8k", "--json")
    assert result.code == 0
    assert result.err == "warning: llama-2-7b: context 8,192 is above the model's maximum 4,096\n"


# --- files that can't be written --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    ["nowhere/out.json", "a-file/out.json", "a-folder", ".", "", "/", "a-folder/", "x" * 250, "x" * 300],
    ids=[
        "no-folder",
        "below-a-file",
        "folder",
        "dot",
        "empty",
        "root",
        "folder-slash",
        "250-characters",
        "300-characters",
    ],
)
def test_an_output_that_can_not_be_written_is_an_error_and_leaves_nothing(capsys, tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    Path("a-file").write_text("kept")
    Path("a-folder").mkdir()
    before = sorted(tmp_path.rglob("*"))
    result = call(capsys, *E, "--json", "--output", path)
    long_but_possible = path == "x" * 250 and result.code == 0
    if long_but_possible:
        assert Path(path).read_text().startswith("{")
        Path(path).unlink()
    else:
        assert result.code == 2, result.err
        assert result.out == ""
        assert result.err.startswith("error: ")
        assert "Traceback" not in result.err
    assert sorted(tmp_path.rglob("*")) == before
    assert Path("a-file").read_text() == "kept"


def test_a_failed_run_leaves_an_older_file_as_it_was(capsys, tmp_path):
    path = tmp_path / "out.json"
    path.write_text("older")
    assert call(capsys, *E, "--tp", "3", "--json", "--output", str(path)).code == 2
    assert path.read_text() == "older"
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_write_leaves_an_older_file_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "out.json"
    path.write_text("older")

    def fail(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(Exception, match="No space left on device"):
        write_file(path, "newer")
    assert path.read_text() == "older"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(sys.platform == "win32", reason="no FIFOs")
def test_what_is_no_regular_file_is_written_to_and_not_replaced(tmp_path):
    """`-o /dev/null` must leave /dev/null a device; a FIFO stands in for it here."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        write_file(path, "data")
        assert path.is_fifo()
        assert os.read(reader, 100) == b"data"
    finally:
        os.close(reader)
    assert threading.active_count() >= 1


def test_a_link_is_written_through(tmp_path):
    target, link = tmp_path / "target.json", tmp_path / "link.json"
    target.write_text("older")
    link.symlink_to(target)
    write_file(link, "newer")
    assert link.is_symlink()
    assert target.read_text() == "newer"


# --- standard input ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "<stdin>:1:1: error: the document is empty"),
        (b"\xff\xfe\x00", "not UTF-8"),
        (b"[1]", "<stdin>:1:1: error: a spec is a mapping of keys"),
        (b'{"model_type": "lama"}', "<stdin>:1:16: error: model_type 'lama' is not known"),
    ],
    ids=["empty", "binary", "list", "unknown-type"],
)
@pytest.mark.parametrize("utf8", ["0", "1"])
def test_bad_standard_input(content, message, utf8):
    result = kvcalc("estimate", "-", stdin=content, PYTHONUTF8=utf8, LC_ALL="C.UTF-8")
    assert result.code == 2, result.err
    assert message in result.err
    assert "Traceback" not in result.err
    assert result.out == ""
