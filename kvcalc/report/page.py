"""A page: what a result says to a person, before it is rendered as text, table or Markdown.

A page is a title, blocks of facts (label, value, note), tables, and lines of prose. Renderers add no words of their
own.
"""

from dataclasses import dataclass, field, replace

from kvcalc.errors import printable


@dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    """Labelled values, one a line."""

    title: str
    rows: list[tuple[str, str, str]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """Rows under column heads; columns named in `right` hold numbers."""

    title: str
    columns: list[str]
    rows: list[list[str]]
    right: frozenset[str] = frozenset()


@dataclass(frozen=True, kw_only=True, slots=True)
class Lines:
    """Prose or formulas, a line each."""

    title: str
    lines: list[str]


Block = Facts | Table | Lines


@dataclass(frozen=True, kw_only=True, slots=True)
class Page:
    """A title and its blocks."""

    title: str
    blocks: list[Block] = field(default_factory=list)

    def cleaned(self) -> "Page":
        """The page with every text on one line and without control characters, wherever it came from."""
        return Page(title=_clean(self.title), blocks=[_cleaned(block) for block in self.blocks])


def _cleaned(block: Block) -> Block:
    if isinstance(block, Lines):
        return Lines(title=_clean(block.title), lines=[_clean(line) for line in block.lines])
    if isinstance(block, Facts):
        rows = [(_clean(label), _clean(value), _clean(note)) for label, value, note in block.rows]
        return Facts(title=_clean(block.title), rows=rows)
    return replace(block, title=_clean(block.title), rows=[[_clean(cell) for cell in row] for row in block.rows])


def _clean(text: str) -> str:
    return printable(text.replace("\n", " "))


def bar(share: float, *, width: int = 20, ascii_only: bool = False) -> str:
    """A bar of `share` (0 to 1) of the width, never empty where the share is above 0."""
    eighths = round(max(0.0, min(1.0, share)) * width * 8)
    if ascii_only:
        return "#" * max(1 if share > 0 else 0, eighths // 8)
    whole, rest = divmod(max(1 if share > 0 else 0, eighths), 8)
    return "█" * whole + ("", "▏", "▎", "▍", "▌", "▋", "▊", "▉")[rest]
