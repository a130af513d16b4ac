"""Figures as a PNG, drawn by matplotlib, which the extra `[plot]` installs."""

from collections.abc import Sequence
from io import BytesIO
from typing import Any

from kvcalc.errors import UsageError, printable
from kvcalc.report.figures import Axis, Bars, Chart, Figure, tick_label, ticks

_MARKS = "os^Dv<>pPX"


def need_matplotlib() -> None:
    """Raise UsageError, with the line that installs it, where there is none."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise UsageError("a .png needs matplotlib, which is not installed", hint="pip install 'kvcalc[plot]'") from None


def render(figures: Sequence[Figure], *, title: str) -> bytes:
    """All figures below each other."""
    need_matplotlib()
    from matplotlib.figure import Figure as Canvas

    heights = [4.6 if isinstance(each, Chart) else 0.9 + 0.35 * len(each.bars) for each in figures]
    canvas = Canvas(figsize=(9, sum(heights) + 0.6), layout="constrained")
    axes = canvas.subplots(len(figures), 1, squeeze=False, gridspec_kw={"height_ratios": heights})
    for figure, row in zip(figures, axes, strict=True):
        if isinstance(figure, Chart):
            _chart(row[0], figure)
        else:
            _bars(row[0], figure)
        row[0].set_title(_text(figure.title), loc="left", fontsize=11)
    canvas.suptitle(_text(title))
    out = BytesIO()
    canvas.savefig(out, format="png", dpi=150)
    return out.getvalue()


def _chart(axes: Any, chart: Chart) -> None:
    axes.set_xscale("log")
    axes.set_yscale("log")
    marks = 0
    for series in chart.series:
        x, y = [point.x for point in series.points], [point.y for point in series.points]
        if series.reference:
            axes.plot(x, y, color="0.5", lw=1.2, label=_text(series.name))
            continue
        line = "-" if series.line else "none"
        (drawn,) = axes.plot(x, y, linestyle=line, marker=_MARKS[marks % len(_MARKS)], ms=5, label=_text(series.name))
        marks += 1
        for point in series.points:
            if point.low is not None and point.high is not None:
                axes.plot([point.x, point.x], [point.low, point.high], color=drawn.get_color(), lw=1)
            if point.left is not None and point.right is not None:
                axes.plot([point.left, point.right], [point.y, point.y], color=drawn.get_color(), lw=1)
    _scale(axes.xaxis, chart.x, chart.range_x())
    _scale(axes.yaxis, chart.y, chart.range_y())
    axes.set_xlim(*chart.range_x())
    axes.set_ylim(*chart.range_y())
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))


def _scale(side: Any, axis: Axis, limits: tuple[float, float]) -> None:
    values = ticks(*limits, axis.unit)
    side.set_ticks(values, [tick_label(value, axis.unit) for value in values])
    side.set_ticks([], minor=True)
    side.set_label_text(axis.label)


def _bars(axes: Any, figure: Bars) -> None:
    kinds = figure.kinds
    colours = [f"C{kinds.index(bar.kind) if bar.kind else 0}" for bar in figure.bars]
    drawn = axes.barh(range(len(figure.bars)), [bar.value for bar in figure.bars], color=colours)
    axes.set_yticks(range(len(figure.bars)), [_text(bar.label) for bar in figure.bars])
    axes.bar_label(drawn, [_text(bar.text) for bar in figure.bars], padding=4, fontsize=8)
    axes.invert_yaxis()
    axes.set_xticks([])
    axes.margins(x=0.25)


def _text(text: str) -> str:
    """On one line, and without the dollar signs that matplotlib would read as formulas."""
    return printable(text.replace("\n", " ")).replace("$", r"\$")
