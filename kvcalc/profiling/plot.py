"""Two pictures of a run: its points under the measured roofline, and time against context."""

from pathlib import Path

from kvcalc.errors import UsageError
from kvcalc.profiling.results import Measured, Results

ENDINGS = (".png", ".svg", ".pdf")
MARKS = "os^Dv<>pPX*h"


def check_plot(path: Path) -> None:
    """Raise UsageError where the picture could not be drawn: better before a run than after it."""
    if path.suffix.lower() not in ENDINGS:
        raise UsageError(f"can't draw '{path}'", hint=f"name a file that ends in {', '.join(ENDINGS)}")
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise UsageError("--plot needs matplotlib, which is not installed", hint="pip install 'kvcalc[plot]'") from None


def draw(results: Results, path: Path) -> None:
    """Draw both pictures side by side into a file, whole or not at all. Raises UsageError where it can't be written."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 5.5), layout="constrained")
    roofline, times = figure.subplots(1, 2)
    _roofline(roofline, results)
    _times(times, results)
    figure.suptitle(f"{results.model.title}: attention of one layer on {results.environment['device']['name']}")
    temporary = path.with_name(f".kvcalc-{path.name}")
    try:
        figure.savefig(temporary, format=path.suffix[1:].lower(), dpi=150)
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise UsageError(f"can't write '{path}': {error.strerror}") from error


def _series(results: Results) -> dict[str, list[Measured]]:
    """The timed cases by kernel and attention."""
    found: dict[str, list[Measured]] = {}
    for each in results.timed:
        found.setdefault(f"{each.kernel}, {each.planned.name}", []).append(each)
    return found


def _roofline(axes, results: Results) -> None:  # type: ignore[no-untyped-def]  # noqa: ANN001
    ceilings = results.ceilings
    intensities = [each.work.flop / each.work.bytes for each in results.timed] or [1.0]
    for dtype in sorted({each.work.dtype for each in results.timed}):
        peak, bandwidth = ceilings.matmul_flop_per_s(dtype), ceilings.read_bandwidth_bytes_per_s
        ridge = peak / bandwidth
        corners = [min(*intensities, ridge) / 3, ridge, max(*intensities, ridge) * 3]
        axes.plot(corners, [min(each * bandwidth, peak) / 1e12 for each in corners], color="0.4", lw=1.2)
        axes.annotate(f"measured {dtype} roofline", (ridge, peak / 1e12), fontsize=8, ha="right", va="bottom")
    for mark, (name, group) in zip(MARKS * 9, _series(results).items(), strict=False):
        points = [
            (each.work.flop / each.work.bytes, each.work.flop / each.timing.median_s / 1e12)
            for each in group
            if each.timing
        ]
        axes.scatter(*zip(*points, strict=True), marker=mark, s=30, label=name, alpha=0.8)
    axes.set(xscale="log", yscale="log", xlabel="FLOP/byte", ylabel="TFLOP/s", title="roofline")
    axes.grid(visible=True, which="both", lw=0.3)
    axes.legend(fontsize=7)


def _times(axes, results: Results) -> None:  # type: ignore[no-untyped-def]  # noqa: ANN001
    batch = max((each.planned.case.batch for each in results.timed), default=1)
    for mark, (name, group) in zip(MARKS * 9, _series(results).items(), strict=False):
        points = sorted(
            (each.planned.case.context_tokens, each.timing.median_s * 1e6)
            for each in group
            if each.timing and each.planned.case.batch == batch
        )
        if points:
            axes.plot(*zip(*points, strict=True), marker=mark, ms=5, lw=1, label=name)
    axes.set(xscale="log", yscale="log", xlabel="context tokens", ylabel="us", title=f"time, batch {batch}")
    axes.grid(visible=True, which="both", lw=0.3)
    axes.legend(fontsize=7)
