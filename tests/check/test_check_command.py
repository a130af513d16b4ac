"""`kvcalc check` as a user runs it: exit codes, the two sides, --run, --update, the settings of pyproject.toml."""

import json
import subprocess
import sys
from types import SimpleNamespace

import pytest

import kvcalc.commands.check as command
from tests.check.made import OTHER_GPU, case, profile, write
from tests.command_line import call, environment, kvcalc

E = ("estimate", "deepseek-v3", "--context", "4k")


@pytest.fixture
def files(tmp_path, monkeypatch):
    """A baseline, and currents of each kind; the folder has no pyproject.toml above it that counts."""
    monkeypatch.chdir(tmp_path)
    other = case("mla-512+64-h16-decode-b8-n8192-q1-bf16")
    found = {
        "baseline": profile(case(), other),
        "same": profile(case(seed=2), case(other["id"], seed=3)),
        "slower": profile(case(median_s=1.2e-4, seed=2), case(other["id"], seed=3)),
        "wide": profile(case(median_s=1.2e-4, spread=0.6, seed=2), case(other["id"], seed=3)),
        "faster": profile(case(median_s=0.8e-4, seed=2), case(other["id"], seed=3)),
        "missing": profile(case(seed=2)),
        "other-gpu": profile(case(seed=2), case(other["id"], seed=3), gpu=OTHER_GPU),
    }
    return {name: write(tmp_path / f"{name}.json", document) for name, document in found.items()}


@pytest.mark.parametrize(
    ("current", "options", "code", "verdict"),
    [
        ("same", (), 0, "same"),
        ("slower", (), 1, "regressed"),
        ("wide", (), 0, "within noise"),
        ("faster", (), 0, "improved"),
        ("missing", (), 0, "same"),
        ("missing", ("--strict",), 1, "gone"),
        ("other-gpu", (), 3, "not comparable"),
        ("other-gpu", ("--allow-different-gpu",), 0, "same"),
        ("slower", ("--threshold", "25%"), 0, "within noise"),
        ("slower", ("--max-regression", "median_s=30%"), 0, "within noise"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else str(value),
)
def test_exit_codes_and_the_last_line(capsys, files, current, options, code, verdict):
    result = call(capsys, "check", files["baseline"], files[current], *options)
    assert result.code == code, result.out
    last = result.out.rstrip("\n").splitlines()[-1].strip()
    assert last.startswith("verdict: ")
    if verdict != "within noise":
        assert last.startswith(f"verdict: {verdict} (")
    data = call(capsys, "check", files["baseline"], files[current], *options, "--json").json()
    assert data["schema"] == "kvcalc.check/1"
    assert data["exit_code"] == code
    assert {"id", "metric", "baseline", "current", "ratio", "verdict"} <= set(data["rows"][0])


@pytest.mark.parametrize("format", ["text", "table", "markdown", "github"])
def test_the_verdict_is_the_last_line_in_every_format_for_people(capsys, files, format):
    result = call(capsys, "check", files["baseline"], files["slower"], "--format", format)
    assert result.code == 1
    assert "verdict: regressed (1 regressed" in result.out.rstrip("\n").splitlines()[-1]


def test_in_a_subprocess(files):
    assert kvcalc("check", files["baseline"], files["slower"]).code == 1
    assert kvcalc("check", files["baseline"], files["same"]).code == 0
    assert kvcalc("check", files["baseline"], files["other-gpu"]).code == 3
    assert kvcalc("check", files["baseline"]).code == 2


WRONG = [
    ((), "two sides"),
    (("a.json",), "two sides"),
    (("a.json", "b.json", "c.json"), "two sides"),
    (("a.json", "b.json", "--run", "estimate deepseek-v3"), "two sides"),
    (("--specs", "x"), "two sides"),
    (("a.json", "b.json", "--format", "junitt"), "unknown format 'junitt'"),
    (("a.json", "b.json", "--format", "junit", "--json"), "contradict"),
    (("a.json", "b.json", "--threshold", "3"), "is not a share"),
    (("a.json", "b.json", "--threshold", "-3%"), "is not a share"),
    (("a.json", "b.json", "--threshold", "nan%"), "is not a share"),
    (("a.json", "b.json", "--max-regression", "x"), "can't read 'x'"),
    (("a.json", "b.json", "--max-regression", "x=y"), "is not a share"),
    (("baseline.json", "--run", "rm -rf x"), "can't produce a result with 'rm'"),
    (("baseline.json", "--run", "kvcalc check a b"), "can't produce a result with 'check'"),
    (("baseline.json", "--run", ""), "can't produce a result with ''"),
    (("baseline.json", "--run", "estimate 'x"), "can't read"),
    ((".", "same.json", "--update"), "it is a folder"),
    (("--run", "estimate deepseek-v3", "--run", "estimate deepseek-v3", "--update"), "needs a baseline file"),
    (("baseline.json", "--specs", "nowhere"), "no such folder"),
    (("baseline.json", "--specs", "."), "no spec in"),
]


@pytest.mark.parametrize(("args", "message"), WRONG, ids=[" ".join(row[0]) for row in WRONG])
def test_wrong_usage_is_exit_code_2(capsys, files, args, message):
    result = call(capsys, "check", *args)
    assert result.code == 2, result.err
    assert message in result.err
    assert "Traceback" not in result.err


def test_a_bug_is_exit_code_70(capsys, files, monkeypatch):
    def fail(*args: object, **kwargs: object) -> None:
        raise RuntimeError("planted")

    monkeypatch.setattr(command, "compare", fail)
    result = call(capsys, "check", files["baseline"], files["same"])
    assert result.code == 70
    assert "planted" in result.err


def test_an_interrupt_is_exit_code_130(capsys, files, monkeypatch):
    def interrupt(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "compare", interrupt)
    assert call(capsys, "check", files["baseline"], files["same"]).code == 130


# --- produced on the spot ---------------------------------------------------------------------------------------------


def test_run_produces_the_current_side(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert call(capsys, *E, "--json", "-o", "estimate.json").code == 0
    assert kvcalc("check", "estimate.json", "--run", " ".join(E), cwd=tmp_path).code == 0
    assert kvcalc("check", "estimate.json", "--run", "kvcalc " + " ".join(E), cwd=tmp_path).code == 0
    other = kvcalc("check", "estimate.json", "--run", " ".join(E) + " --kv-dtype fp8", cwd=tmp_path)
    assert other.code == 3
    assert "kv bf16 against fp8_e4m3" in other.out
    wrong = kvcalc("check", "estimate.json", "--run", "estimate deepseek-v33", cwd=tmp_path)
    assert wrong.code == 2
    assert "unknown model 'deepseek-v33'" in wrong.err
    assert [path.name for path in tmp_path.iterdir()] == ["estimate.json"]


def test_both_sides_produced(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    both = kvcalc("check", "--run", " ".join(E), "--run", " ".join(E), cwd=tmp_path)
    assert (both.code, both.err) == (0, "")


@pytest.mark.parametrize(
    ("child", "code"),
    [(70, 70), (-11, 70), (-9, 70), (1, 70), (2, 2), (3, 3), (130, 130), (-2, 130)],
    ids=str,
)
def test_a_run_that_fails_is_never_a_regression(capsys, files, monkeypatch, child, code):
    """Exit code 1 without a result, a crash and a kill among them."""
    monkeypatch.setattr(subprocess, "run", lambda *args, **kwargs: SimpleNamespace(returncode=child))
    result = call(capsys, "check", files["baseline"], "--run", "profile deepseek-v3 --quick")
    assert result.code == code
    assert result.out == ""
    assert "Traceback" not in result.err


# --- baselines --------------------------------------------------------------------------------------------------------


def test_update_writes_shows_and_then_agrees(capsys, files, tmp_path):
    first = call(capsys, "check", "new.json", files["baseline"], "--update")
    assert first.code == 0
    assert "verdict: new (2 new)" in first.out
    assert json.loads((tmp_path / "new.json").read_text())["schema"] == "kvcalc.baseline/1"
    assert call(capsys, "check", "new.json", files["same"]).code == 0
    assert call(capsys, "check", "new.json", files["slower"]).code == 1
    update = call(capsys, "check", "new.json", files["slower"], "--update")
    assert update.code == 0
    assert "regressed" in update.out
    assert call(capsys, "check", "new.json", files["slower"]).code == 0
    assert call(capsys, "check", "new.json", files["same"]).out.rstrip().splitlines()[-1].count("improved") >= 1


def test_an_update_that_fails_leaves_the_baseline(capsys, files, tmp_path):
    before = (tmp_path / "baseline.json").read_text()
    wrong = write(tmp_path / "wrong.json", profile(case(passed=False)))
    result = call(capsys, "check", files["baseline"], wrong, "--update")
    assert result.code == 2
    assert "wrong result" in result.err
    assert (tmp_path / "baseline.json").read_text() == before


def test_a_baseline_is_small(capsys, files, tmp_path):
    call(capsys, "check", "new.json", files["baseline"], "--update")
    assert (tmp_path / "new.json").stat().st_size < (tmp_path / "baseline.json").stat().st_size


@pytest.mark.parametrize("format", ["text", "json", "junit", "github", "markdown"])
def test_check_loads_nothing_heavy(files, format):
    heavy = ("yaml", "rich", "numpy", "torch", "triton", "pynvml", "matplotlib", "scipy")
    program = (
        f"import sys, atexit; sys.argv = {['kvcalc', 'check', files['baseline'], files['same'], '--format', format]}\n"
        f"atexit.register(lambda: print([name for name in {heavy} if name in sys.modules], file=sys.stderr))\n"
        "from kvcalc.cli import main\nmain()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment(), timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[-1] == "[]"


def test_the_room_is_pure():
    heavy = ("yaml", "rich", "pydantic", "typer", "click", "numpy", "torch")
    code = (
        "import sys, kvcalc.check.verdicts, kvcalc.check.lock, kvcalc.check.baseline, kvcalc.check.documents\n"
        f"print([name for name in {heavy} if name in sys.modules])\n"
        "ours = [name for name in sys.modules if name.startswith('kvcalc.')]\n"
        "print([name for name in ours if not name.startswith('kvcalc.check')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment(), timeout=60)
    assert done.stdout.splitlines() == ["[]", "['kvcalc.errors']"]


# --- settings ---------------------------------------------------------------------------------------------------------


def test_settings_of_pyproject(capsys, files, tmp_path):
    toml = tmp_path / "pyproject.toml"
    run = ("check", files["baseline"], files["slower"])
    toml.write_text('[tool.kvcalc.check]\nthreshold = "30%"\n')
    assert call(capsys, *run).code == 0
    assert call(capsys, *run, "--threshold", "3%").code == 1
    toml.write_text('[tool.kvcalc.check.max-regression]\nmedian_s = "30%"\n')
    assert call(capsys, *run).code == 0
    assert call(capsys, *run, "--max-regression", "median_s=3%").code == 1
    toml.write_text("[tool.kvcalc.check]\nstrict = true\nallow-different-gpu = true\n")
    assert call(capsys, "check", files["baseline"], files["missing"]).code == 1
    assert call(capsys, "check", files["baseline"], files["missing"], "--no-strict").code == 0
    assert call(capsys, "check", files["baseline"], files["other-gpu"]).code == 0
    toml.write_text("[tool.other]\nx = 1\n")
    assert call(capsys, *run).code == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[tool.kvcalc.check]\nstrickt = true\n", "unknown key 'strickt'"),
        ("[tool.kvcalc.check]\nstrict = 1\n", "strict is 1 and not true or false"),
        ("[tool.kvcalc.check]\nthreshold = 3\n", "threshold 3 is not a share"),
        ("[tool.kvcalc.check]\nmax-regression = 3\n", "no table"),
        ("[tool.kvcalc]\ncheck = 3\n", "is no table"),
        ("[tool.kvcalc.check\n", "can't read"),
    ],
)
def test_wrong_settings_are_named(capsys, files, tmp_path, content, message):
    (tmp_path / "pyproject.toml").write_text(content)
    result = call(capsys, "check", files["baseline"], files["same"])
    assert result.code == 2
    assert message in result.err


def test_a_limit_on_a_metric_that_is_not_there_is_warned_of(capsys, files):
    result = call(capsys, "check", files["baseline"], files["same"], "--max-regression", "medain_s=3%")
    assert result.code == 0
    assert "no metric here is called 'medain_s'; did you mean 'median_s'?" in result.err
