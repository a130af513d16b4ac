"""What is made from the code is made here: `python tests/docs.py` writes it, `--check` tells what is out of date.

That is the schemas, the checksums of the packaged specs, and blocks of the README: a comment line, a fence and a
closing comment.

    <!-- run: kvcalc list kinds -->          the command's output, run in the folder of the repository
    <!-- models -->                          the table of packaged models
    <!-- accuracy -->                        and others: figures from benchmarks/results (tests/figures.py)
    <!-- end -->
"""

import argparse
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BLOCK = re.compile(r"(<!-- (run: [^\n]*|\w+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)


def generated(page: str) -> str:
    """The page with every block made anew."""
    return BLOCK.sub(lambda match: match[1] + _content(match[2]) + match[4], page)


def _content(what: str) -> str:
    from tests import figures

    if what.startswith("run: "):
        return _run(what.removeprefix("run: "))
    return {"models": _models, **figures.BLOCKS}[what]()


def _run(command: str) -> str:
    program, *arguments = shlex.split(command)
    assert program == "kvcalc", f"only kvcalc is run here, not {program}"
    done = subprocess.run(
        [sys.executable, "-m", "kvcalc", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        encoding="utf-8",
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8", "NO_COLOR": "1"},
        check=False,
    )
    output = (done.stderr + done.stdout).rstrip("\n")
    return f"```console\n$ {command}\n{output}\n```\n"


def _models() -> str:
    from kvcalc import estimate
    from kvcalc.specs.sources import model_names
    from kvcalc.units import memory, number

    lines = [
        "| model | attention | parameters | B/token | constant | maximum context |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for name in model_names():
        result = estimate(name)
        model, constant = result.model, result.cache.constant_bytes_per_sequence
        cells = [
            f"`{name}`",
            ", ".join(model.attention_labels),
            f"{model.parameters.total / 1e9:,.1f} B",
            number(result.cache.bytes_per_token),
            memory(constant) if constant else "",
            f"{model.max_context_tokens:,}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _schema(what: str) -> str:
    from kvcalc.commands.schema import schema
    from kvcalc.report.data import render_json

    return render_json(schema(what))


def _checked() -> str:
    """Checksums of the packaged specs, each of which is checked here first."""
    from kvcalc.specs.build import build_model
    from kvcalc.specs.reader import read_bytes
    from kvcalc.specs.sources import checksum, model_names, model_specs_folder

    sums = {}
    for name in model_names():
        content = (model_specs_folder() / f"{name}.yaml").read_bytes()
        build_model(read_bytes(name, content))
        sums[name] = checksum(content)
    return json.dumps(sums, indent=2) + "\n"


MADE: dict[Path, Callable[[str], str]] = {
    ROOT / "model_specs" / "model.schema.json": lambda _: _schema("model"),
    ROOT / "model_specs" / "checked.json": lambda _: _checked(),
    ROOT / "kvcalc" / "data" / "hardware.schema.json": lambda _: _schema("hardware"),
    ROOT / "README.md": generated,
}
"""Each file that is made, wholly or in parts, and how it follows from what it was."""


def stale() -> dict[Path, str]:
    """The files that are not what they should be, with what they should be."""
    sys.path.insert(0, str(ROOT))
    found = {}
    for path, make in MADE.items():
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        if (fresh := make(text)) != text:
            found[path] = fresh
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 where a file is out of date")
    check = parser.parse_args().check
    found = stale()
    for path, text in found.items():
        print(path.relative_to(ROOT))
        if not check:
            path.write_text(text, encoding="utf-8")
    if check and found:
        sys.exit("out of date; run: python tests/docs.py")


if __name__ == "__main__":
    main()
