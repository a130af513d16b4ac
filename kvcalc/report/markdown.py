"""GitHub Markdown. Text from specs is escaped, so that it shows as it was written."""

import re

from kvcalc.report.page import Facts, Lines, Page, Table

_SPECIAL = re.compile(r"([\\`*_{}\[\]<>|#~])")


def render(page: Page) -> str:
    """The page as Markdown."""
    parts = [f"## {escape(page.title)}"]
    for block in page.blocks:
        parts.append("")
        if block.title:
            parts += [f"**{escape(block.title)}**", ""]
        if isinstance(block, Facts):
            parts += _grid(["", "", ""], [list(row) for row in block.rows], frozenset())
        elif isinstance(block, Table):
            parts += _grid(block.columns, block.rows, block.right)
        elif isinstance(block, Lines):
            parts += [f"- {escape(line)}" for line in block.lines]
    return "\n".join(parts) + "\n"


def escape(text: str) -> str:
    """Text with Markdown's and HTML's special characters made literal, on one line."""
    return _SPECIAL.sub(r"\\\1", text).replace("\n", " ").replace("&", "&amp;")


def _grid(columns: list[str], rows: list[list[str]], right: frozenset[str]) -> list[str]:
    rule = "| " + " | ".join("---:" if name in right else "---" for name in columns) + " |"
    head, *body = ["| " + " | ".join(map(escape, cells)) + " |" for cells in [columns, *rows]]
    return [head, rule, *body]
