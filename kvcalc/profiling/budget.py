"""Time that a default run may take: a case starts only where what it should take still fits.

Before a kernel has been timed it is taken to be `UNKNOWN_SLOWDOWN` times slower than its roofline; afterwards as much
slower as it turned out.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from kvcalc.profiling.case import Case
from kvcalc.profiling.measure.clock import Rule
from kvcalc.profiling.predict import Prediction

UNKNOWN_SLOWDOWN = 3.0
TIMING_SHARE, WARM_UP_SHARE = 0.5, 0.15
"""Of a kernel's share of the time; the rest goes to inputs, reference and ceilings."""
FILLED_ELEMENTS_PER_S = {"cpu": 1.5e8, "cuda": 1e10}
"""Random numbers a second, roughly: what setting a case up takes."""


@dataclass(kw_only=True)
class Budget:
    """What is left of `limit_s` (None: no limit), counted from when this was made."""

    limit_s: float | None
    rule: Rule
    device_kind: str
    now: Callable[[], float] = time.monotonic
    _slowdown: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._started_s = self.now()

    @property
    def elapsed_s(self) -> float:
        return self.now() - self._started_s

    def set_up_s(self, case: Case) -> float:
        """To make a case's inputs."""
        elements = sum(case.seq_lens) * case.cache_bytes_per_token / case.element_bytes
        return elements / FILLED_ELEMENTS_PER_S[self.device_kind]

    def kernel_s(self, kernel: str, prediction: Prediction) -> float:
        """To prove a kernel right and to time it."""
        call_s = prediction.expected_s * self._slowdown.get(kernel, UNKNOWN_SLOWDOWN)
        return call_s * (3 + self.rule.least_samples) + self.rule.seconds

    def learn(self, kernel: str, prediction: Prediction, measured_s: float) -> None:
        self._slowdown[kernel] = measured_s / prediction.expected_s

    def rule_for(self, pending: int) -> Rule:
        """The rule for the next kernel: with a limit, no longer than its share of what is left for all pending ones."""
        if self.limit_s is None:
            return self.rule
        share_s = max(0.0, self.limit_s - self.elapsed_s) / max(1, pending)
        return replace(
            self.rule,
            longest_s=min(self.rule.longest_s, TIMING_SHARE * share_s),
            longest_warm_up_s=min(self.rule.longest_warm_up_s, WARM_UP_SHARE * share_s),
        )

    def reason_against(self, estimate_s: float, *, is_first: bool = False) -> str | None:
        """Why there is no time for something that should take so long; None where there is.

        The first thing may take as long as the whole run may, whatever ceilings and imports took.
        """
        if self.limit_s is None or self.elapsed_s + estimate_s <= self.limit_s:
            return None
        if is_first and estimate_s <= self.limit_s:
            return None
        return f"no time left for it in a run of {self.limit_s:.0f} s; name --batch and --context to measure it"
