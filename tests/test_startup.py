"""What a command loads: the budget of the design, held by a subprocess's modules. CPU time: benchmarks/startup.py."""

import json
import subprocess
import sys
from functools import cache

import pytest

from tests.command_line import environment

HEAVY = ("yaml", "rich", "pydantic", "numpy", "torch", "pynvml")
OPTIONAL = ("rich", "numpy", "torch", "pynvml", "matplotlib", "huggingface_hub", "triton", "scipy")
LIST_MODULES = """\
import atexit, json, sys
atexit.register(lambda: print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})), file=sys.stderr))
"""
KVCALC = """\
from kvcalc.cli import main
main()
"""
TYPER_ALONE = """\
from pathlib import Path
from typing import Annotated
import typer
app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False)
Tp = Annotated[int, typer.Option(help="x")]
@app.command()
def estimate(spec: str, tp: Tp = 1, gpu: str | None = None, o: Path | None = None) -> None:
    pass
@app.command()
def compare(specs: list[str]) -> None:
    pass
@app.callback()
def options(version: bool = False) -> None:
    pass
app()
"""


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory):
    """Empty packages by the names that may not be installed here, so that a guarded import of one would show."""
    folder = tmp_path_factory.mktemp("stand-ins")
    for name in {*HEAVY, *OPTIONAL} - {"yaml", "rich", "pydantic"}:
        (folder / f"{name}.py").write_text("")
    return str(folder)


@cache
def modules(folder: str, program: str, *args: str, **env: str) -> frozenset[str]:
    """Top-level names of all modules that a run has loaded at its end."""
    base = environment()
    done = subprocess.run(
        [sys.executable, "-c", f"{LIST_MODULES}sys.argv = {['kvcalc', *args]}\n{program}"],
        capture_output=True,
        text=True,
        env={**base, "PYTHONPATH": f"{base['PYTHONPATH']}:{folder}", **env},
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return frozenset(json.loads(done.stderr.splitlines()[-1]))


@pytest.mark.parametrize(
    "args", [("--help",), ("--version",), ("estimate", "--help"), ("compare", "--help")], ids=" ".join
)
def test_help_and_version_load_nothing_heavy(stand_ins, args):
    by_typer_itself = modules(stand_ins, TYPER_ALONE, *args) if args != ("--version",) else frozenset()
    assert set(HEAVY) & (modules(stand_ins, KVCALC, *args) - by_typer_itself) == set()


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("kvcalc estimate deepseek-v", "deepseek-v3"),
        ("kvcalc estimate x --gpu h100-s", "h100-sxm5-80gb"),
        ("kvcalc est", "estimate"),
    ],
)
def test_completion_loads_nothing_heavy_and_completes(stand_ins, words, found):
    env = {"_KVCALC_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    by_typer_itself = modules(stand_ins, TYPER_ALONE, **env)
    assert set(HEAVY) & (modules(stand_ins, KVCALC, **env) - by_typer_itself) == set()
    base = environment()
    done = subprocess.run(
        [sys.executable, "-c", "import sys; sys.argv = ['kvcalc']; from kvcalc.cli import main; main()"],
        capture_output=True,
        text=True,
        env={**base, **env},
        timeout=60,
    )
    assert found in done.stdout.split()


@pytest.mark.parametrize("format", ["json", "text", "csv", "markdown"])
@pytest.mark.parametrize(
    "args",
    [
        ("estimate", "deepseek-v3", "--gpu", "h200-sxm-141gb"),
        ("compare", "deepseek-v3", "--what-if", "mha,mla"),
    ],
    ids=["estimate", "compare"],
)
def test_estimate_and_compare_load_no_optional_package(stand_ins, args, format):
    loaded = modules(stand_ins, KVCALC, *args, "--format", format)
    assert not set(OPTIONAL) & loaded
    assert "yaml" in loaded, "the listing works"


def test_a_table_loads_rich_and_the_test_would_see_it(stand_ins):
    assert "rich" in modules(stand_ins, KVCALC, "estimate", "deepseek-v3", "--format", "table")


def test_a_stand_in_would_be_seen(stand_ins):
    base = environment()
    code = "import sys\ntry:\n    import torch\nexcept ImportError:\n    pass\nprint('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**base, "PYTHONPATH": f"{base['PYTHONPATH']}:{stand_ins}"},
        timeout=60,
    )
    assert done.stdout == "True\n"


@pytest.mark.parametrize("module", ["kvcalc", "kvcalc.api", "kvcalc.sizing", "kvcalc.timing.roofline"])
def test_the_core_is_imported_without_any_package(module):
    heavy = ("yaml", "rich", "pydantic", "typer", "click", "numpy", "torch")
    code = f"import sys, {module}; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment(), timeout=60)
    assert (done.stdout, done.stderr) == ("[]\n", "")
