"""Files from elsewhere: what is not plainly a result is refused in a line, and nothing in it is executed."""

import json
import os
import time

import pytest

from kvcalc.check.documents import MAX_FILE_BYTES, load
from kvcalc.check.results import rows_of
from kvcalc.errors import KvcalcError
from tests.check.made import case, profile, write
from tests.command_line import call

GOOD = json.dumps(profile())
REFUSED = {
    # name: (content, exit code, message)
    "empty": ("", 2, ":1:1: not JSON"),
    "truncated": (GOOD[:-20], 2, "not JSON"),
    "truncated-in-a-text": (GOOD[:300], 2, "not JSON"),
    "trailing": (GOOD + "x", 2, "not JSON"),
    "nan": (GOOD.replace("4200000000000.0", "NaN"), 2, "NaN is not a number"),
    "infinity": (GOOD.replace("4200000000000.0", "-Infinity"), 2, "-Infinity is not a number"),
    "overflow": (GOOD.replace("4200000000000.0", "1e999"), 2, "out of range"),
    "endless-number": (GOOD.replace("4200000000000.0", "9" * 10_000), 2, "10,000 digits"),
    "duplicate-key": (GOOD.replace('"tp": 8', '"tp": 8, "tp": 8'), 2, "the key 'tp' stands twice"),
    "duplicate-case": (json.dumps(profile(case(), case())), 2, "stands twice"),
    "deep": ("[" * 200_000, 2, "nested too deeply"),
    "list": ("[1]", 2, "a result is a JSON object, not a list"),
    "no-schema": ("{}", 2, "it has no schema"),
    "other-program": ('{"schema": "pytest/1"}', 2, "not a result"),
    "other-document": ('{"schema": "kvcalc.calibration/1"}', 2, "not a result"),
    "schema-no-text": ('{"schema": ["kvcalc.profile/1"]}', 2, "not a result"),
    "schema-version": (GOOD.replace("kvcalc.profile/1", "kvcalc.profile/2"), 3, "schema version 2 of profile"),
    "schema-words": (GOOD.replace("kvcalc.profile/1", "kvcalc.profile/one"), 2, "not a result"),
    "cases-no-list": (json.dumps(profile() | {"cases": "none"}), 2, "cases is 'none' and not a list"),
    "case-no-object": (json.dumps(profile() | {"cases": ["x"]}), 2, "cases[0] is 'x' and not an object"),
    "samples-text": (json.dumps(profile(case(samples_s=["1"] * 30))), 2, "samples_s[0] is '1' and not a number"),
    "samples-negative": (json.dumps(profile(case(samples_s=[-1.0] * 30))), 2, "not a number above 0"),
    "samples-zero": (json.dumps(profile(case(samples_s=[0] * 30))), 2, "not a number above 0"),
    "processes-short": (json.dumps(profile(case(samples_process=[0]))), 2, "as long as samples_s"),
    "processes-huge": (json.dumps(profile(case(samples_process=[1e300] * 30))), 3, None),
    "name-no-text": (json.dumps(profile() | {"model": {"name": 3}}), 2, "model.name is 3 and not a text"),
    "model-missing": (json.dumps(profile() | {"model": None}), 2, "model.name is None and not a text"),
    "environment-list": (json.dumps(profile() | {"environment": []}), 2, "environment is a list and not an object"),
    "baseline-no-rows": ('{"schema": "kvcalc.baseline/1"}', 2, "rows is None and not an object"),
    "baseline-no-metrics": ('{"schema": "kvcalc.baseline/1", "rows": {"a": {"key": {"x": "a"}}}}', 2, "not an object"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_bad_file_is_refused_in_a_line(capsys, tmp_path, name):
    content, code, message = REFUSED[name]
    path = tmp_path / "result.json"
    path.write_text(content)
    result = call(capsys, "check", str(path), write(tmp_path / "good.json", profile(case(seed=2, count=19))))
    if message is None:  # odd, but nothing that is not a result
        assert result.code == 0
        return
    assert result.code == code, result.err
    assert result.out == ""
    assert "Traceback" not in result.err
    assert result.err.startswith("error: ")
    assert message in result.err.splitlines()[0]
    assert "result.json" in result.err or name == "duplicate-case"


def test_what_is_no_text_is_refused(capsys, tmp_path):
    path = tmp_path / "result.json"
    path.write_bytes(b'{"schema": "\xff"}')
    result = call(capsys, "check", str(path), str(path))
    assert (result.code, result.err) == (2, f"error: '{path}' is not UTF-8 text (byte 12)\n")


def test_a_file_of_100_mb_is_refused_without_reading_it(capsys, tmp_path, monkeypatch):
    path = tmp_path / "large.json"
    with path.open("wb") as file:
        file.truncate(100_000_000)
    read = []
    monkeypatch.setattr("kvcalc.check.documents.parse", lambda *args, **kwargs: read.append(args))
    start = time.process_time()
    result = call(capsys, "check", str(path), str(path))
    assert time.process_time() - start < 0.5
    assert result.code == 2
    assert result.err == f"error: '{path}' is larger than {MAX_FILE_BYTES >> 20} MiB, which no result is\n"
    assert not read


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs")
def test_a_file_that_grows_while_it_is_read_is_refused_too(tmp_path, monkeypatch):
    monkeypatch.setattr("kvcalc.check.documents.MAX_FILE_BYTES", 10)
    path = tmp_path / "pipe.json"
    os.mkfifo(path)
    writer = os.open(path, os.O_RDWR)
    os.write(writer, b"x" * 100)
    with pytest.raises(KvcalcError, match="is larger than"):
        load(path)
    os.close(writer)


def test_a_missing_file_and_an_empty_folder(capsys, tmp_path):
    good = write(tmp_path / "good.json", profile())
    result = call(capsys, "check", str(tmp_path / "none.json"), good)
    assert (result.code, result.err.splitlines()[0]) == (2, f"error: no such file: '{tmp_path / 'none.json'}'")
    (tmp_path / "folder").mkdir()
    result = call(capsys, "check", str(tmp_path / "folder"), good)
    assert result.code == 2
    assert "no result in" in result.err


def test_a_folder_is_all_its_results(tmp_path):
    (tmp_path / "inner").mkdir()
    write(tmp_path / "b.json", profile(case(kernel="one")))
    write(tmp_path / "inner" / "a.json", profile(case(kernel="two")))
    (tmp_path / "notes.txt").write_text("not a result")
    assert sorted(row.key["kernel"] for row in rows_of(load(tmp_path))) == ["one", "two"]


def test_the_same_row_in_two_files_names_both(tmp_path):
    for name in ("a", "b"):
        write(tmp_path / f"{name}.json", profile())
    with pytest.raises(KvcalcError, match=r"a\.json' and '.*b\.json"):
        rows_of(load(tmp_path))


def test_the_csv_of_predict(tmp_path):
    path = tmp_path / "predicted.csv"
    head = "attention,n_heads,batch,context_tokens,roofline_us,expected_us,low_us,high_us,bound\n"
    path.write_text(f"{head}mla,16,8,4096,8.5,10.25,9,12,memory\nmla,16,8,8192,17,,,,memory\n")
    first, second = rows_of(load(path))
    assert first.id == "predict/attention-mla/n_heads-16/batch-8/context_tokens-4096"
    assert first.metrics == {"roofline_us": 8.5, "expected_us": 10.25, "low_us": 9, "high_us": 12}
    assert second.metrics == {"roofline_us": 17}
    path.write_text("a,b\n1,2\n")
    with pytest.raises(KvcalcError, match="not a CSV of kvcalc predict"):
        load(path)


def test_hostile_names_are_shown_and_do_nothing(capsys, tmp_path):
    name = "<script>alert(1)</script>\x1b[31m\n::error::%0A `|` $(touch x) ../../etc"
    before, now = (profile(model={"name": name}), profile(case(median_s=1.3e-4, seed=2), model={"name": name}))
    paths = [write(tmp_path / "a.json", before), write(tmp_path / "b.json", now)]
    for format in ("text", "table", "markdown", "csv", "json", "junit", "github"):
        result = call(capsys, "check", *paths, "--format", format)
        assert result.code == 1, result.err
        assert "\x1b[31m" not in result.out
        assert "\n::error::" not in result.out
        assert "<script>" not in result.out or format in ("text", "table", "csv", "json", "github")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "b.json"]
