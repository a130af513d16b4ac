"""Plain text: aligned columns, no colour, nothing cut off."""

from kvcalc.report.page import Facts, Lines, Page, Table


def render(page: Page) -> str:
    """The page as lines for a pipe, a log or a small terminal."""
    parts = [page.title]
    for block in page.blocks:
        parts.append("")
        if block.title:
            parts.append(block.title)
        if isinstance(block, Facts):
            parts += _facts(block)
        elif isinstance(block, Table):
            parts += _table(block)
        elif isinstance(block, Lines):
            parts += [f"  {line}" for line in block.lines]
    return "\n".join(parts) + "\n"


def _facts(block: Facts) -> list[str]:
    label_width = max((len(label) for label, _, _ in block.rows), default=0)
    value_width = max((len(value) for _, value, note in block.rows if note), default=0)
    return [
        f"  {label.ljust(label_width)}  {value.ljust(value_width) if note else value}  {note}".rstrip()
        for label, value, note in block.rows
    ]


def _table(block: Table) -> list[str]:
    grid = [block.columns, *block.rows]
    widths = [max(len(row[column]) for row in grid) for column in range(len(block.columns))]
    lines = []
    for row in grid:
        cells = [
            cell.rjust(width) if name in block.right else cell.ljust(width)
            for cell, width, name in zip(row, widths, block.columns, strict=True)
        ]
        lines.append("  " + "  ".join(cells).rstrip())
    return lines
