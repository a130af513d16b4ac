"""What the README shows is made here: `python tests/docs.py` rewrites it, `--check` only tells where it is out of date.

A block is a comment line, a fence and a closing comment:

    <!-- run: kvcalc list kinds -->          the command's output, run in the folder of the repository
    <!-- models -->                          the table of packaged models
    <!-- end -->
"""

import argparse
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGES = (ROOT / "README.md",)
BLOCK = re.compile(r"(<!-- (run: [^\n]*|models) -->\n)(.*?)(<!-- end -->)", re.DOTALL)


def generated(page: str) -> str:
    """The page with every block made anew."""
    return BLOCK.sub(lambda match: match[1] + _content(match[2]) + match[4], page)


def _content(what: str) -> str:
    return _models() if what == "models" else _run(what.removeprefix("run: "))


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
    sys.path.insert(0, str(ROOT))
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 where a page is out of date")
    check = parser.parse_args().check
    stale = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        fresh = generated(text)
        if fresh != text:
            stale.append(page.name)
            if not check:
                page.write_text(fresh, encoding="utf-8")
    if check and stale:
        sys.exit(f"out of date: {', '.join(stale)}; run: python tests/docs.py")


if __name__ == "__main__":
    main()
