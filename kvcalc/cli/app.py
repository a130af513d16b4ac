"""The application: what all commands share, exit codes, and the entry point."""

import os
import sys
import warnings
from collections.abc import Callable
from typing import Annotated

import typer

import kvcalc
from kvcalc.errors import KvcalcError, SpecError, printable

app = typer.Typer(
    name="kvcalc",
    help="KV-cache memory and speed of LLM inference: how many bytes, how long, and is it true here.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

BUG_EXIT_CODE, INTERRUPTED_EXIT_CODE = 70, 130


def _show_version(asked: bool) -> None:
    if asked:
        print(f"kvcalc {kvcalc.__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """The options before a command; the help above them is the app's."""


def run(body: Callable[[], int]) -> None:
    """Run a command's body; what it raises becomes an exit code, and only a bug a traceback."""
    try:
        code = body()
    except KvcalcError as error:
        _show(error)
        code = error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = INTERRUPTED_EXIT_CODE
    except BrokenPipeError:  # the reader has what it wants; nothing more can be said on this stream
        sys.stdout = None
        code = 0
    except Exception:
        import traceback

        traceback.print_exc()
        print("this is a bug in kvcalc; please report it with the lines above", file=sys.stderr)
        code = BUG_EXIT_CODE
    raise SystemExit(code)


def _show(error: KvcalcError) -> None:
    print(error.message if isinstance(error, SpecError) else printable(f"error: {error.message}"), file=sys.stderr)
    if error.hint:
        print(printable(f"hint: {error.hint}"), file=sys.stderr)


def _warn(message: Warning | str, *_: object, **__: object) -> None:
    """Warnings of the rooms below, in the words of the command line."""
    print(printable(f"warning: {message}"), file=sys.stderr)


def main() -> None:
    """The entry point of the `kvcalc` script."""
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")  # none is wanted, and looking for some takes time
    warnings.showwarning = _warn
    try:
        app()
    except SystemExit as stop:
        # where help meets a closed pipe, typer wraps standard output and stops with 1
        closed = type(sys.stdout).__name__ == "PacifyFlushWrapper"
        _flush()
        raise SystemExit(0 if closed else stop.code) from None


def _flush() -> None:
    """Hand out what was printed; a reader that has closed its end has what it wants, and changes no exit code."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:
        sys.stdout = None
