"""What a report is made of: sections of facts, grids that can be sorted, figures and commands."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from kvcalc.report.figures import Bars, Chart
from kvcalc.report.page import Facts, Lines, Page, Table


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """A cell's text, and the number that it is sorted by where it stands for one."""

    text: str
    value: float | None = None


def cell(text: str, value: float | None = None) -> Cell:
    return Cell(text=text, value=value)


@dataclass(frozen=True, kw_only=True, slots=True)
class Grid:
    """A table whose rows can be sorted."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]

    @property
    def numeric(self) -> list[bool]:
        """Which columns hold numbers: some have a value, and none has a text without one."""
        return [
            any(each.value is not None for each in column)
            and all(each.value is not None or each.text in ("", "-") for each in column)
            for column in ([row[index] for row in self.rows] for index in range(len(self.columns)))
        ]

    def table(self) -> Table:
        """The same for renderers that don't sort."""
        right = frozenset(name for name, numeric in zip(self.columns, self.numeric, strict=True) if numeric)
        rows = [[each.text for each in row] for row in self.rows]
        return Table(title=self.title, columns=list(self.columns), rows=rows, right=right)


@dataclass(frozen=True, kw_only=True, slots=True)
class Command:
    """A command line to copy."""

    text: str


Block = Facts | Lines | Grid | Chart | Bars | Command


@dataclass(frozen=True, kw_only=True, slots=True)
class Section:
    """A heading and what stands under it."""

    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True, kw_only=True, slots=True)
class Story:
    """A whole report."""

    title: str
    made_by: str
    sections: Sequence[Section] = field(default_factory=list)

    @property
    def figures(self) -> list[Chart | Bars]:
        return [block for section in self.sections for block in section.blocks if isinstance(block, Chart | Bars)]

    def page(self) -> Page:
        """The report without its figures, whose numbers the tables have."""
        blocks: list[Facts | Lines | Table] = []
        for section in self.sections:
            blocks.append(Lines(title=section.title, lines=[]))
            for block in section.blocks:
                if isinstance(block, Chart | Bars):
                    continue
                if isinstance(block, Grid):
                    blocks.append(block.table())
                elif isinstance(block, Command):
                    blocks.append(Lines(title="", lines=[block.text]))
                else:
                    blocks.append(block)
        blocks.append(Lines(title="", lines=[self.made_by]))
        return Page(title=self.title, blocks=list(blocks))
