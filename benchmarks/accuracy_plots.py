"""The accuracy report's pictures: predicted over measured against measured, a few hundred unseen rows of each kind.

One figure a kind, one panel a width of cache elements, one colour a GPU; the band is the median of the rows' own 90 %
intervals along the measured time. Same rows, same bytes: rows are drawn by a fixed seed, and the files carry no date.
"""

import io
from pathlib import Path

import numpy as np
from accuracy_judge import Judged, interval_of

from kvcalc.commands.output import write_file
from kvcalc.timing.calibrated import BOUNDARIES_BYTES, COVERAGE, Interval

DOCS = Path(__file__).parents[1] / "docs" / "accuracy"
ROWS = 400
"""Points of a panel, shared evenly by its tables."""
BINS = 14
RATIO = (0.5, 2.0)
COLOURS = {
    "a100-sxm4-80gb": "#7f7f7f",
    "h100-sxm5-80gb": "#1f77b4",
    "h200-sxm-141gb": "#17becf",
    "b200-sxm-180gb": "#2ca02c",
    "b300-sxm-270gb": "#98b600",
    "gb200-186gb": "#ff7f0e",
    "gb300-279gb": "#d62728",
    "l40s": "#9467bd",
    "rtx-pro-6000-blackwell-server": "#e377c2",
}
FIGURES = {"mla": ("MLA", ("mla",)), "grouped": ("GQA and MHA", ("gqa", "mha"))}


def write_plots(judged: list[tuple[Judged, Interval]], folder: Path = DOCS) -> list[Path]:
    """Draw the figures of the kinds that there are. None, and a word of it, without matplotlib."""
    try:
        import matplotlib
    except ImportError:
        print("no plots: matplotlib is not installed (pip install 'kvcalc[plot]')")
        return []
    matplotlib.use("Agg")
    written = []
    for name, (title, kernels) in FIGURES.items():
        members = [each for each in judged if each[0].table.kernel in kernels]
        if members:
            folder.mkdir(parents=True, exist_ok=True)
            write_file(folder / f"{name}.svg", _figure(title, members))
            written.append(folder / f"{name}.svg")
    return written


def _figure(title: str, members: list[tuple[Judged, Interval]]) -> str:
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"svg.hashsalt": "kvcalc", "svg.fonttype": "none", "font.size": 9}):
        figure = Figure(figsize=(9.6, 4.4), layout="constrained")
        panels = figure.subplots(1, 2, sharey=True)
        for panel, eight_bit in zip(panels, (False, True), strict=True):
            _panel(panel, [each for each in members if each[0].table.eight_bit is eight_bit])
            panel.set_title(f"{title}, {'fp8' if eight_bit else 'bf16'} cache")
            panel.set_xlabel("measured, us")
        panels[0].set_ylabel(f"predicted / measured, within {RATIO[0]:g} and {RATIO[1]:g}")
        shown: dict = {}
        for panel in panels:
            handles, gpus = panel.get_legend_handles_labels()
            shown = dict(zip(gpus, handles, strict=True)) | shown
        figure.legend(shown.values(), shown.keys(), loc="outside lower center", ncols=5, frameon=False, markerscale=2.5)
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"


def _panel(panel, members: list[tuple[Judged, Interval]]) -> None:
    if not members:
        panel.set_axis_off()
        return
    by_gpu: dict[str, list[np.ndarray]] = {}
    for number, (each, shape) in enumerate(members):
        by_gpu.setdefault(each.table.gpu.slug, []).append(_rows(each, shape, ROWS // len(members), number))
    for gpu, parts in by_gpu.items():
        seconds, ratio, _, _ = np.concatenate(parts, axis=1)
        panel.plot(
            seconds * 1e6,
            np.clip(ratio, *RATIO),
            ".",
            markersize=4,
            alpha=0.6,
            markeredgewidth=0,
            color=COLOURS.get(gpu, "black"),
            label=gpu,
        )
    seconds, _, low, high = np.concatenate([part for parts in by_gpu.values() for part in parts], axis=1)
    edges = np.quantile(seconds, np.linspace(0, 1, BINS + 1))
    place = np.clip(np.searchsorted(edges, seconds, side="right") - 1, 0, BINS - 1)
    middle = [np.median(seconds[place == number]) * 1e6 for number in range(BINS)]
    middle[0], middle[-1] = np.min(seconds) * 1e6, np.max(seconds) * 1e6
    ends = [[np.median(side[place == number]) for number in range(BINS)] for side in (low, high)]
    panel.fill_between(
        middle, *ends, color="black", alpha=0.08, linewidth=0, label=f"{COVERAGE:.0%} interval, median of rows"
    )
    panel.axhline(1, color="black", linewidth=0.6)
    panel.set_xscale("log")
    panel.set_yscale("log")
    panel.set_ylim(*RATIO)
    ticks = (0.5, 0.7, 0.9, 1.0, 1.1, 1.4, 2.0)
    panel.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    panel.set_yticks([], minor=True)


def _rows(judged: Judged, shape: Interval, count: int, seed: int) -> np.ndarray:
    """Measured seconds, predicted over measured, and the ends of the interval on it, of some unseen rows."""
    unseen = np.flatnonzero(judged.unseen[0])
    some = np.sort(np.random.default_rng(seed).choice(unseen, min(count, len(unseen)), replace=False))
    interval = interval_of(judged, 0, shape)
    regime = np.searchsorted(BOUNDARIES_BYTES, judged.cache_bytes[some], side="right")
    ratio = np.exp(-judged.log_errors(judged.fits[0].values)[some])
    ends = 1 / np.array(interval.high)[regime], 1 / np.array(interval.low)[regime]
    return np.stack([judged.table.seconds[some], ratio, *ends])
