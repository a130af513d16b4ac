"""Figures as SVG: drawn with classes, so that a page's style sheet colours them in light and in dark.

A figure has a title and a description for those who don't see it, series differ in shape and dash as well as in colour,
and every point says what it is when it is pointed at.
"""

import math
from collections.abc import Iterable, Sequence
from html import escape

from kvcalc.errors import printable
from kvcalc.report.figures import Bars, Chart, Figure, Point, Series, tick_label, ticks

WIDTH, HEIGHT = 600, 400
LEFT, RIGHT, TOP, BOTTOM = 112, 24, 16, 56
ROW, LABEL_WIDTH, TEXT_WIDTH = 30, 222, 128
LEGEND_COLUMNS, LEGEND_ROW, MOST_NAMED = (16, 312), 22, 24
COLOURS = 8
SHAPES = 6
DASHES = ("", "7 4", "2 3", "9 3 2 3")
LONGEST_NAME, LONGEST_LABEL = 34, 30

STYLE = """
svg { font: 13px system-ui, sans-serif; --ink: #1b1f24; --soft: #57606a; --rule: #d8dee4; --paper: #ffffff;
  --c0: #0067a5; --c1: #c24e00; --c2: #00735a; --c3: #8f3a7e;
  --c4: #7a5c00; --c5: #b3003c; --c6: #4a5568; --c7: #3f5fd1 }
@media (prefers-color-scheme: dark) { svg { --ink: #e6edf3; --soft: #9da7b3; --rule: #30363d; --paper: #0d1117;
  --c0: #58b4f0; --c1: #ff9d5c; --c2: #3ecfa6; --c3: #e48fd0; --c4: #e3c04f; --c5: #ff7a9c; --c6: #b8c2d0;
  --c7: #9db8ff } }
"""
RULES = """
svg text { fill: var(--ink) } svg .soft { fill: var(--soft) } svg .end { text-anchor: end }
svg .middle { text-anchor: middle } svg .head { font-weight: 600; font-size: 16px }
svg .grid { stroke: var(--rule); stroke-width: 1 } svg .frame { stroke: var(--soft); fill: none }
svg .reference { stroke: var(--soft); fill: none; stroke-width: 1.5 }
svg .line { fill: none; stroke-width: 2.2 } svg .whisker { stroke-width: 1.2; opacity: .7 }
svg .paper { fill: var(--paper) }
""" + "".join(f"svg .f{i} {{ fill: var(--c{i}) }} svg .s{i} {{ stroke: var(--c{i}) }}\n" for i in range(COLOURS))


def draw(figure: Figure, *, id: str) -> str:
    """An `svg` element for a page; `id` must be unique in it and made by us."""
    inner, width, height = _chart(figure) if isinstance(figure, Chart) else _bars(figure)
    return (
        f'<svg role="img" aria-labelledby="{id}-t {id}-d" viewBox="0 0 {width} {height}">'
        f'<title id="{id}-t">{_text(figure.title)}</title><desc id="{id}-d">{_text(figure.caption)}</desc>{inner}</svg>'
    )


def document(figures: Sequence[Figure], *, title: str) -> str:
    """All figures below each other in one SVG file, with its style in it."""
    parts, y = [f'<text class="head" x="16" y="32">{_text(title)}</text>'], 52
    for figure in figures:
        inner, _, height = _chart(figure) if isinstance(figure, Chart) else _bars(figure)
        parts.append(f'<text x="16" y="{y + 16}" font-weight="600">{_text(figure.title)}</text>')
        parts.append(f'<g transform="translate(0 {y + 28})">{inner}</g>')
        y += height + 52
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" viewBox="0 0 {WIDTH} {y}" width="{WIDTH}" height="{y}">'
        f"<title>{_text(title)}</title><style>{STYLE}{RULES}</style>"
        f'<rect class="paper" width="{WIDTH}" height="{y}"/>{"".join(parts)}</svg>\n'
    )


class _Scale:
    """From a logarithmic range to pixels."""

    def __init__(self, low: float, high: float, start: float, end: float) -> None:
        self.low, self.high, self.start = low, high, start
        self.factor = (end - start) / (math.log(high) - math.log(low))

    def __call__(self, value: float) -> float:
        inside = min(max(value, self.low), self.high)
        return round(self.start + self.factor * (math.log(inside) - math.log(self.low)), 1)


def _chart(chart: Chart) -> tuple[str, int, int]:
    x = _Scale(*chart.range_x(), LEFT, WIDTH - RIGHT)
    y = _Scale(*chart.range_y(), HEIGHT - BOTTOM, TOP)
    parts = [*_axes(chart, x, y)]
    index = 0
    for series in chart.series:
        if series.reference:
            parts.append(f'<path class="reference" d="{_path(series.points, x, y)}"/>')
        else:
            parts += _series(series, index, x, y)
            index += 1
    parts += _legend(chart)
    rows = -(-min(len(chart.series), MOST_NAMED + 1) // len(LEGEND_COLUMNS))
    return "".join(parts), WIDTH, HEIGHT + rows * LEGEND_ROW


def _axes(chart: Chart, x: _Scale, y: _Scale) -> Iterable[str]:
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    for value in ticks(x.low, x.high, chart.x.unit):
        at = x(value)
        yield f'<path class="grid" d="M{at} {TOP}V{bottom}"/>'
        yield f'<text class="soft middle" x="{at}" y="{bottom + 18}">{_text(tick_label(value, chart.x.unit))}</text>'
    for value in ticks(y.low, y.high, chart.y.unit):
        at = y(value)
        yield f'<path class="grid" d="M{LEFT} {at}H{right}"/>'
        yield f'<text class="soft end" x="{LEFT - 8}" y="{at + 4}">{_text(tick_label(value, chart.y.unit))}</text>'
    yield f'<path class="frame" d="M{LEFT} {TOP}V{bottom}H{right}"/>'
    yield f'<text class="middle" x="{(LEFT + right) / 2}" y="{HEIGHT - 10}">{_text(chart.x.label)}</text>'
    middle = (TOP + bottom) / 2
    yield f'<text class="middle" transform="translate(14 {middle}) rotate(-90)">{_text(chart.y.label)}</text>'


def _series(series: Series, index: int, x: _Scale, y: _Scale) -> Iterable[str]:
    colour = index % COLOURS
    if series.line:
        dash = DASHES[index % len(DASHES)]
        dashed = f' stroke-dasharray="{dash}"' if dash else ""
        yield f'<path class="line s{colour}"{dashed} d="{_path(series.points, x, y)}"/>'
    for point in series.points:
        yield from _whiskers(point, colour, x, y)
        title = f"<title>{_text(point.label)}</title>" if point.label else ""
        yield f'<path class="f{colour}" d="{_shape(index, x(point.x), y(point.y))}">{title}</path>'


def _whiskers(point: Point, colour: int, x: _Scale, y: _Scale) -> Iterable[str]:
    if point.low is not None and point.high is not None:
        yield f'<path class="whisker s{colour}" d="M{x(point.x)} {y(point.low)}V{y(point.high)}"/>'
    if point.left is not None and point.right is not None:
        yield f'<path class="whisker s{colour}" d="M{x(point.left)} {y(point.y)}H{x(point.right)}"/>'


def _path(points: Sequence[Point], x: _Scale, y: _Scale) -> str:
    return "M" + "L".join(f"{x(point.x)} {y(point.y)}" for point in points)


def _shape(index: int, x: float, y: float) -> str:
    """A mark of its own for each series: circle, square, triangle, diamond, triangle down, bow tie."""
    return (
        f"M{x - 4} {y}a4 4 0 1 0 8 0a4 4 0 1 0 -8 0z",
        f"M{x - 3.5} {y - 3.5}h7v7h-7z",
        f"M{x} {y - 5}l4.5 8h-9z",
        f"M{x} {y - 5}l5 5l-5 5l-5 -5z",
        f"M{x} {y + 5}l4.5 -8h-9z",
        f"M{x - 4} {y - 4}h8l-8 8h8z",
    )[index % SHAPES]


def _legend(chart: Chart) -> Iterable[str]:
    """Below the chart, where a narrow screen shows it too."""
    index = 0
    for place, series in enumerate(chart.series):
        row, column = divmod(place, len(LEGEND_COLUMNS))
        x, y = LEGEND_COLUMNS[column], HEIGHT + 10 + row * LEGEND_ROW
        if place >= MOST_NAMED:
            yield f'<text class="soft" x="{x}" y="{y + 4}">and {len(chart.series) - place} more</text>'
            return
        if series.reference:
            mark = f'<path class="reference" d="M{x} {y}h22"/>'
        else:
            colour = index % COLOURS
            dash = DASHES[index % len(DASHES)]
            dashed = f' stroke-dasharray="{dash}"' if dash else ""
            line = f'<path class="line s{colour}"{dashed} d="M{x} {y}h22"/>' if series.line else ""
            mark = f'{line}<path class="f{colour}" d="{_shape(index, x + 11, y)}"/>'
            index += 1
        name = f"<title>{_text(series.name)}</title>{_text(_cut(series.name, LONGEST_NAME))}"
        yield f'{mark}<text x="{x + 30}" y="{y + 4}">{name}</text>'


def _bars(figure: Bars) -> tuple[str, int, int]:
    most = max((bar.value for bar in figure.bars), default=0.0) or 1.0
    room = WIDTH - LABEL_WIDTH - TEXT_WIDTH
    kinds = figure.kinds
    parts = []
    for row, bar in enumerate(figure.bars):
        y = TOP + row * ROW
        length = round(max(1.0, room * bar.value / most), 1)
        colour = kinds.index(bar.kind) % COLOURS if bar.kind else 0
        label = f"<title>{_text(bar.label)}</title>{_text(_cut(bar.label, LONGEST_LABEL))}"
        parts.append(f'<text class="end" x="{LABEL_WIDTH - 10}" y="{y + 15}">{label}</text>')
        parts.append(f'<path class="f{colour}" d="M{LABEL_WIDTH} {y}h{length}v20h-{length}z"/>')
        parts.append(f'<text x="{LABEL_WIDTH + length + 8}" y="{y + 15}">{_text(bar.text)}</text>')
    height = TOP + len(figure.bars) * ROW + 10
    x = LABEL_WIDTH
    for index, kind in enumerate(kinds):
        parts.append(f'<path class="f{index % COLOURS}" d="M{x} {height}h12v12h-12z"/>')
        parts.append(f'<text x="{x + 18}" y="{height + 11}">{_text(kind)}</text>')
        x += 40 + 8 * len(kind)
    return "".join(parts), WIDTH, height + (30 if kinds else 0)


def _cut(text: str, longest: int) -> str:
    return text if len(text) <= longest else text[: longest - 1] + "…"


def _text(text: str) -> str:
    return escape(printable(text.replace("\n", " ")))
