"""The words of a verdict, what counts as worse, and one finding: a metric of a row on both sides."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from kvcalc.check.results import TIME, Value

IMPROVED, SAME, REGRESSED, WITHIN_NOISE = "improved", "same", "regressed", "within noise"
NEW, GONE, NOT_COMPARABLE = "new", "gone", "not comparable"


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """What counts as worse.

    threshold       share by which a measured time may be longer
    alpha           chance of any false alarm among all cases of a run where nothing changed
    max_regression  share by which a metric may get worse, by its name or pattern; before the threshold, and before 0
                    for exact metrics
    strict          rows that vanished, or that a lock does not know, fail
    locked          exact values may move in no direction
    """

    threshold: float = 0.03
    alpha: float = 0.002
    max_regression: Mapping[str, float] = field(default_factory=dict)
    strict: bool = False
    allow_different_gpu: bool = False
    locked: bool = False

    def allowed(self, metric: str) -> float:
        """The share by which a metric may get worse; the first pattern that fits counts."""
        for pattern, share in self.max_regression.items():
            if fnmatchcase(metric, pattern):
                return share
        return self.threshold if metric == TIME else 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One metric of one row. `verdict` is None where there are too few samples, or bad ones, to give one."""

    id: str
    metric: str
    baseline: Value | None = None
    current: Value | None = None
    verdict: str | None
    note: str = ""
    baseline_fraction: float | None = None
    current_fraction: float | None = None
    fraction_ratio: float | None = None
    p_value: float | None = None
    samples: tuple[int, int] | None = None

    @property
    def ratio(self) -> float | None:
        """Current over baseline; None where one is missing or the baseline is 0."""
        if self.baseline is None or self.current is None or isinstance(self.baseline, bool) or self.baseline == 0:
            return None
        return self.current / self.baseline

    @property
    def measured(self) -> bool:
        return self.metric == TIME

    def to_json(self) -> dict[str, Any]:
        """A row of schema `kvcalc.check/1`."""
        plain = {
            "id": self.id,
            "metric": self.metric,
            "baseline": self.baseline,
            "current": self.current,
            "ratio": self.ratio,
            "verdict": self.verdict,
            "note": self.note or None,
        }
        if self.metric != TIME:
            return plain
        return plain | {
            "baseline_fraction": self.baseline_fraction,
            "current_fraction": self.current_fraction,
            "fraction_ratio": self.fraction_ratio,
            "p_value": self.p_value,
            "samples": list(self.samples) if self.samples else None,
        }
