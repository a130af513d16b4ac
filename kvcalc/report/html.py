"""One page in one file: no network, no font, no library; light and dark, narrow and printed, with sortable tables.

A content security policy forbids all requests, and all scripts but the page's own, which it names by its hash: what
stands in a result can't run even where escaping failed. Text is escaped all the same, everywhere.
"""

from base64 import b64encode
from collections.abc import Iterator
from hashlib import sha256
from html import escape

from kvcalc.errors import printable
from kvcalc.report import svg
from kvcalc.report.content import Command, Grid, Section, Story
from kvcalc.report.figures import Bars, Chart
from kvcalc.report.page import Facts, Lines

_STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #57606a; --rule: #d8dee4; --paper: #ffffff; --panel: #f6f8fa;
  --link: #0057a8; --bad: #b3003c; --good: #00664f;
  --c0: #0067a5; --c1: #c24e00; --c2: #00735a; --c3: #8f3a7e;
  --c4: #7a5c00; --c5: #b3003c; --c6: #4a5568; --c7: #3f5fd1 }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --soft: #9da7b3; --rule: #30363d; --paper: #0d1117;
  --panel: #161b22; --link: #79b8ff; --bad: #ff7a9c; --good: #3ecfa6;
  --c0: #58b4f0; --c1: #ff9d5c; --c2: #3ecfa6; --c3: #e48fd0;
  --c4: #e3c04f; --c5: #ff7a9c; --c6: #b8c2d0; --c7: #9db8ff } }
* { box-sizing: border-box }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.5 system-ui, sans-serif }
main, header, footer { max-width: 64rem; margin: 0 auto; padding: 0 1.25rem }
header { padding-top: 2rem } footer { padding-bottom: 3rem; color: var(--soft); font-size: .875rem }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0 0 .5rem } h2 { font-size: 1.25rem; margin: 2.5rem 0 .75rem;
  padding-bottom: .25rem; border-bottom: 1px solid var(--rule) } h3 { font-size: 1rem; margin: 1.5rem 0 .5rem }
h1, h2, h3, td, dd, figcaption { overflow-wrap: anywhere }
nav ul { list-style: none; display: flex; flex-wrap: wrap; gap: .25rem 1rem; margin: 0; padding: 0 }
a { color: var(--link) } .skip { position: absolute; left: -100vw } .skip:focus { left: 1rem; top: .5rem }
:focus-visible { outline: 3px solid var(--link); outline-offset: 2px }
dl { display: grid; grid-template-columns: minmax(7rem, max-content) 1fr; gap: .25rem 1.25rem; margin: 0 }
dt { color: var(--soft) } dd { margin: 0 } dd small { color: var(--soft); margin-left: .75rem; font-size: .875rem }
.scroll { overflow-x: auto; border: 1px solid var(--rule); border-radius: 6px }
table { border-collapse: collapse; width: 100%; font-size: .875rem; font-variant-numeric: tabular-nums }
caption { text-align: left; padding: .5rem .75rem; color: var(--soft) }
th, td { padding: .375rem .5rem; text-align: left; border-bottom: 1px solid var(--rule); vertical-align: top }
td { min-width: 6.5rem } td.n { min-width: 0 } td.n, th.n { text-align: right; white-space: nowrap }
tbody tr:nth-child(even) { background: var(--panel) }
th { background: var(--panel); white-space: nowrap } th button { font: inherit; font-weight: 600; color: inherit;
  background: none; border: 0; padding: 0; cursor: pointer } th button::after { content: " ↕"; color: var(--soft) }
th[aria-sort=ascending] button::after { content: " ↑" } th[aria-sort=descending] button::after { content: " ↓" }
figure { margin: 1rem 0; overflow-x: auto } figcaption { color: var(--soft); font-size: .875rem; margin-top: .5rem }
svg { width: 100%; min-width: 31rem; max-width: 44rem; height: auto; display: block; font: 13px system-ui, sans-serif }
pre { background: var(--panel); border: 1px solid var(--rule); border-radius: 6px; padding: .75rem; overflow-x: auto;
  white-space: pre-wrap; overflow-wrap: anywhere; font-size: .875rem }
.bad { color: var(--bad); font-weight: 600 } .good { color: var(--good); font-weight: 600 }
@media (max-width: 40rem) { dl { grid-template-columns: minmax(5.5rem, 38%) 1fr } dt { overflow-wrap: anywhere }
  dd small { display: block; margin: 0 } h1 { font-size: 1.375rem } }
@media print { nav, .skip, th button::after { display: none } body { font-size: 11pt }
  .scroll, figure { overflow: visible }
  figure, tr { break-inside: avoid } h2, h3 { break-after: avoid } svg { min-width: 0 } a { color: inherit } }
"""
_SCRIPT = """
for (const button of document.querySelectorAll('th button')) button.addEventListener('click', () => {
  const head = button.closest('th'), table = button.closest('table'), body = table.tBodies[0];
  const column = [...head.parentNode.children].indexOf(head), down = head.getAttribute('aria-sort') === 'ascending';
  for (const other of head.parentNode.children) other.removeAttribute('aria-sort');
  head.setAttribute('aria-sort', down ? 'descending' : 'ascending');
  const keyed = [...body.rows].map(row => [row.cells[column].dataset.v, row.cells[column].textContent, row]);
  const one = (a, b) => a[0] !== undefined && b[0] !== undefined ? a[0] - b[0]
    : a[0] === undefined && b[0] === undefined ? (a[1] < b[1] ? -1 : a[1] > b[1] ? 1 : 0) : a[0] === undefined ? 1 : -1;
  keyed.sort((a, b) => down ? one(b, a) : one(a, b));
  body.append(...keyed.map(each => each[2]));
});
"""
_TONES = {"regressed": "bad", "gone": "bad", "not comparable": "bad", "WRONG": "bad", "improved": "good"}


def render(story: Story) -> str:
    """The whole page."""
    script = f"sha256-{b64encode(sha256(_SCRIPT.encode()).digest()).decode()}"
    policy = (
        f"default-src 'none'; style-src 'unsafe-inline'; script-src '{script}'; base-uri 'none'; form-action 'none'"
    )
    links = "".join(
        f'<li><a href="#s{index}">{_text(each.title)}</a></li>' for index, each in enumerate(story.sections)
    )
    body = "".join(part for index, each in enumerate(story.sections) for part in _section(each, index))
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        f"<title>{_text(story.title)}</title>\n<style>{_STYLE}{svg.RULES}</style>\n</head>\n<body>\n"
        f'<a class="skip" href="#main">Skip to the content</a>\n<header><h1>{_text(story.title)}</h1>\n'
        f'<nav aria-label="Sections"><ul>{links}</ul></nav></header>\n<main id="main">\n{body}</main>\n'
        f"<footer><p>{_text(story.made_by)}</p></footer>\n<script>{_SCRIPT}</script>\n</body>\n</html>\n"
    )


def _section(section: Section, index: int) -> Iterator[str]:
    yield f'<section id="s{index}" aria-labelledby="h{index}">\n<h2 id="h{index}">{_text(section.title)}</h2>\n'
    for number, block in enumerate(section.blocks):
        if isinstance(block, Chart | Bars):
            yield f'<figure tabindex="0"><h3>{_text(block.title)}</h3>{svg.draw(block, id=f"f{index}-{number}")}'
            yield f"<figcaption>{_text(block.caption)}</figcaption></figure>\n"
        elif isinstance(block, Grid):
            yield from _grid(block)
        elif isinstance(block, Command):
            yield f"<pre><code>{_text(block.text)}</code></pre>\n"
        elif isinstance(block, Facts):
            yield from _facts(block)
        elif isinstance(block, Lines):
            yield f"<h3>{_text(block.title)}</h3>" if block.title else ""
            yield "<ul>" + "".join(f"<li>{_text(line)}</li>" for line in block.lines) + "</ul>\n"
    yield "</section>\n"


def _facts(block: Facts) -> Iterator[str]:
    yield f"<h3>{_text(block.title)}</h3>" if block.title else ""
    yield "<dl>\n"
    for label, value, note in block.rows:
        small = f"<small>{_text(note)}</small>" if note else ""
        yield f"<dt>{_text(label)}</dt><dd>{_text(value)}{small}</dd>\n"
    yield "</dl>\n"


def _grid(grid: Grid) -> Iterator[str]:
    numeric = grid.numeric
    yield f'<div class="scroll" tabindex="0" role="region" aria-label="{_text(grid.title)}"><table>'
    yield f"<caption>{_text(grid.title)}</caption><thead><tr>"
    for name, right in zip(grid.columns, numeric, strict=True):
        kind = ' class="n"' if right else ""
        yield f'<th scope="col"{kind}><button type="button">{_text(name)}</button></th>'
    yield "</tr></thead><tbody>\n"
    for row in grid.rows:
        cells = []
        for cell, right in zip(row, numeric, strict=True):
            value = f' data-v="{cell.value!r}"' if cell.value is not None else ""
            tone = _TONES.get(cell.text, "n" if right else "")
            kind = f' class="{tone}"' if tone else ""
            cells.append(f"<td{kind}{value}>{_text(cell.text)}</td>")
        yield f"<tr>{''.join(cells)}</tr>\n"
    yield "</tbody></table></div>\n"


def _text(text: str) -> str:
    return escape(printable(text.replace("\n", " ")))
