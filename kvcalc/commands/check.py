"""`kvcalc check`: results against a baseline; exit code 1 where something got worse, 3 where they can't be compared."""

import shlex
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from kvcalc.check import baseline as baseline_file
from kvcalc.check import lock
from kvcalc.check.documents import load
from kvcalc.check.findings import Settings
from kvcalc.check.results import Row, rows_of
from kvcalc.check.verdicts import Check, compare
from kvcalc.commands.check_page import page
from kvcalc.commands.check_settings import settings
from kvcalc.commands.output import choose_format, emit, warn, write_file, write_out
from kvcalc.errors import KvcalcError, NotComparableError, UsageError, printable
from kvcalc.names import nearest

PRODUCERS = ("estimate", "compare", "predict", "profile")
FORMATS = ("table", "text", "json", "csv", "markdown", "junit", "github")


class RunFailedError(KvcalcError):
    """A result could not be produced: a fault of what was run, and no verdict on it."""

    exit_code = 70


def run(
    paths: Sequence[Path],
    *,
    runs: Sequence[str],
    specs: Path | None,
    update: bool,
    threshold: str | None,
    max_regression: Sequence[str],
    strict: bool | None,
    allow_different_gpu: bool | None,
    format: str | None,
    json: bool,
    output: Path | None,
) -> int:
    """Print what changed; the verdict is the last line."""
    chosen = _choose_format(format, json=json, output=output)
    wanted = settings(
        threshold=threshold,
        max_regression=max_regression,
        strict=strict,
        allow_different_gpu=allow_different_gpu,
        locked=specs is not None,
        folder=Path.cwd(),
    )
    sides = [str(path) for path in paths] + [f"kvcalc {text.removeprefix('kvcalc ')}" for text in runs]
    if specs is not None:
        sides.append(str(specs))
    if len(sides) != 2 or (specs is not None and runs):
        raise UsageError(
            f"check takes two sides, a baseline and a current one; {len(sides)} named",
            hint="check BASELINE CURRENT, check BASELINE --run 'profile MODEL', or check --specs FOLDER BASELINE",
        )
    if update and not paths:
        raise UsageError("--update needs a baseline file to write", hint="check BASELINE CURRENT --update")
    new = update and not paths[0].exists()
    if update and paths[0].is_dir():
        raise UsageError(f"--update can't rewrite '{paths[0]}': it is a folder", hint="name a file in it")
    if paths and not new and not paths[0].exists():
        raise UsageError(f"no such file: '{paths[0]}'", hint="--update writes a baseline")
    before = [] if new else rows_of(load(paths[0])) if paths else _produced(runs[0])
    after = _current(paths[1:], runs if paths else runs[1:], specs)
    text = baseline_file.render(after) if update else ""
    result = compare(before, after, wanted, first=new)
    _check_names(wanted, result)
    _show(result, sides, chosen, output=output)
    if update:
        write_file(paths[0], text)
        print(printable(f"wrote {len(after):,} rows to {paths[0]}"), file=sys.stderr)
        return 0
    return result.exit_code


def _choose_format(format: str | None, *, json: bool, output: Path | None) -> str:
    if format is not None and format not in FORMATS:
        raise UsageError(f"unknown format '{format}'", hint=nearest(format, FORMATS))
    if format in ("junit", "github"):
        if json:
            raise UsageError(f"--json and --format {format} contradict each other")
        return format
    if format is None and not json and output is not None and output.suffix.lower() == ".xml":
        return "junit"
    return choose_format(format, json=json, output=output)


def _current(paths: Sequence[Path], runs: Sequence[str], specs: Path | None) -> list[Row]:
    if specs is not None:
        return _specs(specs)
    return _produced(runs[0]) if runs else rows_of(load(paths[0]))


def _specs(folder: Path) -> list[Row]:
    """A row for each spec. Raises SpecError for the first that can't be used."""
    from kvcalc import api

    if not folder.exists():
        raise UsageError(f"no such folder: '{folder}'")
    rows = []
    for name, path in lock.spec_files(folder).items():
        result = api.estimate(str(path.resolve()), context_tokens=lock.CONTEXT_TOKENS)
        rows.append(lock.row(name, result.to_json()))
    return rows


def _produced(text: str) -> list[Row]:
    """The rows of a kvcalc command that is run now, in a process of its own."""
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise UsageError(f"--run can't read '{text}': {error}") from error
    words = words[1:] if words[:1] == ["kvcalc"] else words
    if not words or words[0] not in PRODUCERS:
        name = words[0] if words else ""
        raise UsageError(f"--run can't produce a result with '{name}'", hint=f"one of {', '.join(PRODUCERS)}")
    with tempfile.TemporaryDirectory(prefix="kvcalc-") as folder:
        table = words[0] == "predict"  # a table in, a table out
        path = Path(folder) / ("current.csv" if table else "current.json")
        command = [sys.executable, "-m", "kvcalc", *words, *([] if table else ["--json"]), "--output", str(path)]
        done = subprocess.run(command, stdout=sys.stderr.fileno() if _has_fileno() else None, check=False)
        _raise_for(done.returncode, text, wrote=path.exists())
        return rows_of(load(path, commands=PRODUCERS))


def _has_fileno() -> bool:
    try:
        sys.stderr.fileno()
    except (OSError, AttributeError, ValueError):
        return False
    return True


def _raise_for(code: int, text: str, *, wrote: bool) -> None:
    """An error for a run that failed. After a wrong result (exit code 1) there is a file, and check says what it is."""
    if code == 0 or (code == 1 and wrote):
        if code:
            warn([f"'{text}' ended with exit code 1; its result is compared all the same"])
        return
    if code in (130, -2):
        raise KeyboardInterrupt
    message = f"'{text}' ended with exit code {code}" if code > 0 else f"'{text}' was killed by signal {-code}"
    if code == 2:
        raise UsageError(message)
    if code == 3:
        raise NotComparableError(message)
    raise RunFailedError(f"{message}: there is nothing to compare")


def _check_names(wanted: Settings, result: Check) -> None:
    """Warn of limits that no metric falls under: a misspelt one would guard nothing."""
    from fnmatch import fnmatchcase

    names = sorted({finding.metric for finding in result.findings} - {"*"})
    for pattern in wanted.max_regression:
        if names and not any(fnmatchcase(name, pattern) for name in names):
            warn([f"no metric here is called '{pattern}'; {nearest(pattern, names)}"])


def _show(result: Check, sides: Sequence[str], format: str, *, output: Path | None) -> None:
    if format in ("junit", "github"):
        text = _junit(result) if format == "junit" else _github(result)
        if output is None:
            write_out(text)
        else:
            write_file(output, text)
    else:
        emit(result.to_json, lambda: page(result, baseline=sides[0], current=sides[1]), format=format, output=output)
    if output is not None or format in ("json", "csv", "junit"):
        print(printable(result.sentence()), file=sys.stderr)


def _junit(result: Check) -> str:
    from datetime import UTC, datetime

    from kvcalc.report import junit

    return junit.render(result.to_json(), timestamp=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S"))


def _github(result: Check) -> str:
    """Annotations on standard output; the job summary goes where GitHub reads it."""
    import os

    from kvcalc.report import github

    data = result.to_json()
    summary = os.environ.get("GITHUB_STEP_SUMMARY")
    if summary:
        _append_summary(Path(summary), data)
    return github.annotations(data)


def _append_summary(path: Path, data: dict[str, object]) -> None:
    from kvcalc.report import github

    try:
        used = path.stat().st_size if path.exists() else 0
        with path.open("a", encoding="utf-8") as file:
            file.write(github.summary(data, room_bytes=github.SUMMARY_BYTES - used))
    except OSError as error:
        warn([f"can't write the job summary '{path}': {error.strerror}"])
