"""`kvcalc profile` in a subprocess: a real tiny run on the CPU, streams, exit codes, and a machine without torch."""

import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="needs torch: pip install 'kvcalc[profile]'")

from kvcalc.cli import app  # noqa: E402
from kvcalc.profiling import session  # noqa: E402
from tests.profiling.faults import SteadyProbes  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent.parent
TINY = ["profile", "deepseek-v2-lite", "--device", "cpu", "--tp", "16", "--context", "64", "--quick", "--batch", "2"]
ONE = [*TINY, "--kernel", "torch-absorbed", "--what-if", "none"]
PATCHED = """
import sys

from tests.profiling import faults
from kvcalc.profiling import kernels

{patch}
sys.argv = ["kvcalc", *sys.argv[1:]]
from kvcalc.cli import main

main()
"""


def kvcalc(*arguments, patch=None):
    """Run the command; `patch` is code that runs before it, with `faults` and the kernel table at hand."""
    code = ["-m", "kvcalc"] if patch is None else ["-c", PATCHED.format(patch=patch)]
    return subprocess.run(
        [sys.executable, *code, *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=170,
        check=False,
    )


def faulty(fault):
    """A patch that puts one kernel, which ends in `fault`, in the place of the table."""
    return f"kernels.load = lambda name: faults.Faulty({fault}); faults.shrink()"


def test_a_tiny_run_is_real_and_its_json_valid():
    done = kvcalc(*TINY, "--kernel", "torch-absorbed,torch-expanded", "--json", "--repeat-process", "1")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["schema"] == "kvcalc.profile/1"
    assert found["cases"]
    assert {each["kernel"] for each in found["cases"] + found["skipped"]} == {"torch-absorbed", "torch-expanded"}
    for case in found["cases"]:
        assert case["correctness"]["passed"]
        assert case["median_s"] > 0
        assert case["clock"] == "cpu"


def test_as_text_it_says_what_it_means_and_how_to_repeat_it(tmp_path):
    picture = tmp_path / "out.svg"
    pytest.importorskip("matplotlib", reason="needs matplotlib: pip install 'kvcalc[plot]'")
    done = kvcalc(*ONE, "--plot", str(picture))
    assert done.returncode == 0, done.stderr
    for part in (
        "measured ceilings",
        "what it means",
        "FLOP for each byte",
        "kvcalc profile deepseek-v2-lite --kernel",
    ):
        assert part in done.stdout
    assert "<svg" in picture.read_text()
    assert list(tmp_path.iterdir()) == [picture]


def test_as_csv_it_is_a_row_a_case(tmp_path):
    target = tmp_path / "cases.csv"
    done = kvcalc(*ONE, "-o", str(target), patch="faults.shrink()")
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    (row,) = csv.DictReader(io.StringIO(target.read_text()))
    assert row["kernel"] == "torch-absorbed"
    assert float(row["median_s"]) > 0


def test_a_wrong_kernel_ends_with_1_and_its_time_is_not_shown():
    done = kvcalc(*ONE, "--json", patch=faulty("faults.not_a_number"))
    assert done.returncode == 1, done.stderr
    (case,) = json.loads(done.stdout)["cases"]
    assert case["median_s"] is None
    assert "not finite" in case["correctness"]["reason"]


def test_a_kernel_that_raises_ends_with_1():
    done = kvcalc(*ONE, patch=faulty("faults.raise_(ValueError('bad tile'))"))
    assert done.returncode == 1, done.stderr
    assert "FAILED" in done.stdout
    assert "raised ValueError: bad tile" in done.stdout


def test_an_interrupt_ends_with_130_and_leaves_a_valid_file(tmp_path):
    target = tmp_path / "results.json"
    contexts = ["--context", "32,64,96"]
    done = kvcalc(*ONE, *contexts, "-o", str(target), patch=faulty("faults.raise_(KeyboardInterrupt())"))
    assert done.returncode == 130, done.stderr
    found = json.loads(target.read_text())
    assert found["state"] == "interrupted"
    assert [each["context_tokens"] for each in found["cases"]] == [32]
    assert len(found["skipped"]) == 2


@pytest.fixture
def small_machine(monkeypatch):
    """Ceilings at once; see faults."""
    monkeypatch.setattr(session, "TorchProbes", SteadyProbes)


@pytest.mark.usefixtures("small_machine")
@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--kernel", "triton-gqa", "--what-if", "none"], 3, ""),
        (["--device", "cuda:7"], 3, "device"),
        (["--repeat-process", "0"], 2, "it must be 1 or more"),
        (["--device", "tpu"], 2, "unknown device 'tpu'"),
        (["--phase", "training"], 2, "unknown phase 'training'"),
        (["--kernel", "cutlass"], 2, "unknown kernel 'cutlass'"),
        (["--tp", "3"], 2, "tp 3 does not divide"),
        (["--plot", "out.bmp"], 2, "can't draw"),
        (["--case", "mla-1"], 2, "no case of this run"),
    ],
)
def test_exit_codes(arguments, code, said, capsys):
    with pytest.raises(SystemExit) as ended:
        app([*TINY, *arguments])
    assert ended.value.code == code
    assert said in capsys.readouterr().err


def test_without_torch_it_says_in_two_lines_how_to_install_it():
    script = "import sys; sys.modules['torch'] = None; sys.argv = ['kvcalc', 'profile', 'deepseek-v2-lite']; "
    script += "from kvcalc.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 3
    assert done.stdout == ""
    first, second = done.stderr.strip().splitlines()
    assert first.startswith("error: ")
    assert "pip install 'kvcalc[profile]'" in second
