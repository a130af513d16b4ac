"""The house stands: one direction of imports, a core of pure Python, torch in profiling alone."""

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import kvcalc

PACKAGE = Path(kvcalc.__file__).parent
ROOT = PACKAGE.parent
FILES = sorted(PACKAGE.rglob("*.py"))
CORE = ("units", "errors", "names", "workload", "hardware", "architecture", "sizing", "what_if", "planning", "check")
"""Rooms of the pure core; timing is one too, its calibration aside."""
HEAVY = {"torch", "triton", "numpy", "rich", "typer", "click", "pydantic", "yaml"}
HOMES = {
    "typer": {"cli"},
    "click": {"cli"},
    "rich": {"report"},
    "pydantic": {"specs"},
    "pydantic_core": {"specs"},
    "yaml": {"specs"},
    "huggingface_hub": {"specs"},
    "torch": {"profiling"},
    "triton": {"profiling"},
}
"""The only room that may import a distribution."""


def imported(path: Path) -> Iterator[str]:
    """Full names of all that a file imports, inside functions too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def is_core(path: Path) -> bool:
    parts = path.relative_to(PACKAGE).parts
    return room(path) in CORE or (parts[0] == "timing" and parts[1] != "calibration")


each_core_file = pytest.mark.parametrize(
    "path", [path for path in FILES if is_core(path)], ids=lambda path: str(path.relative_to(PACKAGE))
)
each_file = pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))


def test_the_house_of_the_design_is_kept():
    linter = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([linter, "--no-cache"], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 kept, 0 broken" in done.stdout


def test_every_room_that_there_is_has_its_line_in_the_house():
    linter = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    layers = " ".join(linter["contracts"][0]["layers"]).replace("|", " ").replace("(", " ").replace(")", " ").split()
    rooms = {f"kvcalc.{room(path)}" for path in FILES} - {"kvcalc.__init__", "kvcalc.__main__"}
    assert rooms <= set(layers)


@each_core_file
def test_the_core_imports_the_standard_library_and_itself(path):
    roots = {name.partition(".")[0] for name in imported(path)}
    assert roots <= set(sys.stdlib_module_names) | {"kvcalc"}
    assert not roots & HEAVY


def test_the_core_is_found_where_the_design_puts_it():
    names = {str(path.relative_to(PACKAGE)) for path in FILES if is_core(path)}
    assert {"units.py", "sizing.py", "timing/roofline.py", "timing/step.py", "architecture/slots.py"} <= names
    assert len(names) >= 20


@each_file
def test_a_distribution_is_imported_in_its_room_alone(path):
    for name in imported(path):
        root = name.partition(".")[0]
        assert room(path) in HOMES.get(root, {room(path)}), f"{name} in {room(path)}"


def test_the_walk_sees_imports_inside_functions(tmp_path):
    file = tmp_path / "planted.py"
    file.write_text("def f():\n    import torch.nn\n    from yaml import compose\n")
    assert set(imported(file)) == {"torch.nn", "yaml.compose"}


@each_file
def test_a_file_says_what_it_is_and_stays_readable(path):
    text = path.read_text(encoding="utf-8")
    assert ast.get_docstring(ast.parse(text)), "no module docstring"
    assert text.count("\n") <= 480, "STYLE.md: some 400 lines at the most"
