"""Where results go: the format that is asked for or that fits, to standard output or whole into a file."""

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from kvcalc.errors import UsageError
from kvcalc.names import nearest
from kvcalc.report.page import Page

FORMATS = ("table", "text", "json", "csv", "markdown")
_BY_ENDING = {".json": "json", ".csv": "csv", ".md": "markdown", ".txt": "text"}


def choose_format(format: str | None, *, json: bool, output: Path | None) -> str:
    """The format: as asked for, else by the file's ending, else a table on a terminal and text in a pipe."""
    if json and format not in (None, "json"):
        raise UsageError(f"--json and --format {format} contradict each other")
    if json:
        return "json"
    if format is not None:
        if format not in FORMATS:
            raise UsageError(f"unknown format '{format}'", hint=nearest(format, FORMATS))
        return format
    if output is not None:
        return _BY_ENDING.get(output.suffix.lower(), "text")
    return "table" if sys.stdout.isatty() else "text"


def emit(
    data: Callable[[], dict[str, Any]],
    page: Callable[[], Page],
    *,
    format: str | None,
    json: bool = False,
    output: Path | None = None,
) -> None:
    """Render a result, whose JSON object and page are made when they are needed, and put it where it belongs."""
    chosen = choose_format(format, json=json, output=output)
    if chosen in ("json", "csv"):
        from kvcalc.report.data import render_csv, render_json

        text = (
            render_json(data(), ascii_only=output is None and ascii_only()) if chosen == "json" else render_csv(data())
        )
    elif chosen == "markdown":
        from kvcalc.report import markdown

        text = markdown.render(page().cleaned())
    elif chosen == "table":
        text = _table(page().cleaned(), output)
    else:
        from kvcalc.report import text as plain

        text = plain.render(page().cleaned())
    if output is None:
        write_out(text)
    else:
        write_file(output, text)


def _table(page: Page, output: Path | None) -> str:
    import shutil

    from kvcalc.report import table

    color = output is None and sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    return table.render(page, width=shutil.get_terminal_size((100, 24)).columns, color=color, ascii_only=ascii_only())


def ascii_only() -> bool:
    """Whether standard output can't show more than ASCII."""
    try:
        "█▏".encode(sys.stdout.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return True
    return False


def write_out(text: str) -> None:
    """To standard output; characters that its encoding lacks are replaced, not fatal."""
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(text.encode(encoding, errors="replace").decode(encoding))
    sys.stdout.flush()


def write_file(path: Path, text: str) -> None:
    """Whole or not at all: to a temporary name beside it, then renamed; a device or pipe is written to as it is.

    Raises UsageError where that can't be done.
    """
    import tempfile

    temporary: str | None = None
    try:
        path = path.resolve()
        if path.is_dir():
            raise UsageError(f"can't write '{path}': it is a folder", hint="name a file in it")
        if path.exists() and not path.is_file():
            path.write_text(text, encoding="utf-8")
            return
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".kvcalc-")
        with open(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except OSError as error:
        if temporary is not None:
            with suppress(OSError):
                os.unlink(temporary)
        raise UsageError(f"can't write '{path}': {error.strerror}") from error


def _umask() -> int:
    """The permissions that new files do not get; asking for them means setting them twice."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def warn(messages: list[str]) -> None:
    """Warnings, on standard error."""
    for message in messages:
        print(f"warning: {message}", file=sys.stderr)
