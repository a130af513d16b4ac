"""What can go wrong, each with the exit code that says so and a hint that says what to do instead."""

from dataclasses import dataclass

LONGEST_LINE = 160


def printable(text: str) -> str:
    """Text without control characters, which could move a terminal's cursor or colour it; line breaks stay."""
    return "".join(c if c == "\n" or c.isprintable() else f"\\x{ord(c):02x}" for c in text)


class KvcalcError(Exception):
    """An error that a user can act on, shown as `error: ...` and perhaps `hint: ...`; never as a traceback."""

    exit_code = 2

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(KvcalcError):
    """An option or argument that makes no sense, alone or for this model."""


class MissingPeakError(UsageError):
    """A GPU has no stated peak for the number format that a computation needs. It is never guessed."""


class NotComparableError(KvcalcError):
    """Two results that must not be set against each other."""

    exit_code = 3


class NoDeviceError(KvcalcError):
    """The device that was asked for is not on this machine."""

    exit_code = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """Where in a source text something stands; line and column count from 1."""

    source: str
    line: int
    column: int
    source_line: str = ""

    def __str__(self) -> str:
        return f"{self.source}:{self.line}:{self.column}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """One thing that is wrong with a spec."""

    message: str
    place: Place | None = None
    hint: str | None = None

    def render(self) -> str:
        """Lines as a compiler prints them: place and message, the source line, a caret, the hint."""
        if self.place is None:
            lines = [f"error: {self.message}"]
        else:
            gutter, start = f"{self.place.line} | ", max(0, self.place.column - LONGEST_LINE // 2)
            line = self.place.source_line[start : start + LONGEST_LINE].replace("\t", " ")
            before = printable(line[: self.place.column - 1 - start])
            lines = [
                f"{self.place}: error: {self.message}",
                f"{gutter}{printable(line)}",
                " " * len(gutter + before) + "^",
            ]
        if self.hint:
            lines.append(f"hint: {self.hint}")
        return printable("\n".join(lines))


class SpecError(KvcalcError):
    """A model or hardware spec that can't be used; it carries all the problems that were found, not only the first."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("\n".join(problem.render() for problem in problems))
        self.problems = problems
