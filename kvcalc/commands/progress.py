"""A progress bar on standard error, with the time left; only where that is a terminal."""

import shutil
import sys
import time
from types import TracebackType


class Progress:
    """Shows how many are done and what comes next; gone without a trace when it ends."""

    def __init__(self) -> None:
        self._shown = sys.stderr.isatty()
        self._started_s = time.monotonic()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._shown:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)

    def show(self, done: int, total: int, label: str) -> None:
        if not self._shown:
            return
        elapsed_s = time.monotonic() - self._started_s
        left = f", {elapsed_s / done * (total - done):.0f} s left" if done else ""
        filled = 20 * done // max(1, total)
        line = f"[{'#' * filled}{'.' * (20 - filled)}] {done}/{total}{left}: {label}"
        width = shutil.get_terminal_size((100, 24)).columns
        print(f"\r\x1b[K{line[: width - 1]}", end="", file=sys.stderr, flush=True)
