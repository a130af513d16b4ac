"""Runs kvcalc as a user does: in a subprocess, or in this process where a test needs many runs or a planted fault."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from kvcalc import cli

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Result:
    """Exit code and both streams."""

    code: int
    out: str
    err: str

    def json(self) -> dict[str, Any]:
        return json.loads(self.out, parse_constant=lambda name: pytest.fail(f"{name} in JSON"))


def environment(**changes: str | None) -> dict[str, str]:
    """A plain environment with the checkout on the path; None removes a variable."""
    base = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUTF8": "1"}
    for name in ("NO_COLOR", "COLUMNS", "PYTHONIOENCODING", "PYTHONUNBUFFERED", "FORCE_COLOR", "TERM"):
        base.pop(name, None)
    return {name: value for name, value in (base | changes).items() if value is not None}


def kvcalc(*args: str, stdin: bytes = b"", cwd: Path | None = None, **env: str | None) -> Result:
    """`python -m kvcalc ARGS` in a subprocess."""
    done = subprocess.run(
        [sys.executable, "-m", "kvcalc", *args],
        input=stdin,
        capture_output=True,
        cwd=cwd,
        env=environment(**env),
        timeout=60,
    )
    return Result(done.returncode, done.stdout.decode(), done.stderr.decode())


def call(capsys: pytest.CaptureFixture[str], *args: str) -> Result:
    """The same in this process: quicker, and faults can be planted."""
    capsys.readouterr()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["kvcalc", *args])
        with pytest.raises(SystemExit) as left:
            cli.main()
    code = left.value.code
    streams = capsys.readouterr()
    return Result(code if isinstance(code, int) else (0 if code is None else 1), streams.out, streams.err)
