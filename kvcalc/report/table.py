"""Tables for a terminal, drawn by rich. Markup is off: data is shown as it is."""

from io import StringIO

from rich.box import ASCII2, SIMPLE_HEAD
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from kvcalc.report.page import Facts, Lines, Page, Table


def render(page: Page, *, width: int, color: bool, ascii_only: bool) -> str:
    """The page for a terminal of `width` columns; long cells wrap, none is cut off."""
    out = StringIO()
    console = Console(
        file=out, width=width, force_terminal=color, no_color=not color, markup=False, highlight=False, emoji=False
    )
    console.print(Text(page.title, style="bold"))
    for block in page.blocks:
        console.print()
        if block.title:
            console.print(Text(block.title, style="bold cyan"))
        if isinstance(block, Facts):
            console.print(_facts(block))
        elif isinstance(block, Table):
            console.print(_table(block, ascii_only=ascii_only))
        elif isinstance(block, Lines):
            for line in block.lines:
                console.print(Text(f"  {line}"))
    return out.getvalue()


def _facts(block: Facts) -> RichTable:
    grid = RichTable.grid(padding=(0, 2))
    grid.add_column(min_width=2)
    grid.add_column(overflow="fold")
    grid.add_column(overflow="fold")
    grid.add_column(style="dim", overflow="fold")
    for label, value, note in block.rows:
        grid.add_row("", Text(label), Text(value), Text(note))
    return grid


def _table(block: Table, *, ascii_only: bool) -> RichTable:
    table = RichTable(box=ASCII2 if ascii_only else SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for name in block.columns:
        table.add_column(Text(name), justify="right" if name in block.right else "left", overflow="fold")
    for row in block.rows:
        table.add_row(*(Text(cell) for cell in row))
    return table
