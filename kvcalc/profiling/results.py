"""What a run found: cases with their samples, what was skipped and why, and the JSON of schema `kvcalc.profile/1`.

Fractions and predictions are computed when they are asked for, from the ceilings as they stand then: a ceiling that was
measured again later in the run counts for all cases alike.
"""

from dataclasses import dataclass, field
from typing import Any

from kvcalc.architecture.model import Model
from kvcalc.hardware import Gpu
from kvcalc.profiling.correctness import Correctness
from kvcalc.profiling.measure.ceilings import Ceilings
from kvcalc.profiling.measure.clock import Timing
from kvcalc.profiling.measure.telemetry import Conditions
from kvcalc.profiling.predict import EXPECTED_IS, Prediction, Work, predict
from kvcalc.profiling.sweep import Planned

SCHEMA = "kvcalc.profile/1"
RUNNING, COMPLETE, INTERRUPTED = "running", "complete", "interrupted"
NOT_REACHED = "not reached: the run was still going, or its process died, when this was written"


@dataclass(kw_only=True)
class Measured:
    """One kernel on one case. Without `timing` it was found wrong: a wrong result has no time."""

    planned: Planned
    kernel: str
    version: str | None
    form: str
    work: Work
    correctness: Correctness
    timing: Timing | None = None
    conditions: Conditions = field(default_factory=Conditions)
    note: str | None = None
    reproduce: str = ""

    @property
    def key(self) -> tuple[str, str]:
        return self.kernel, self.planned.case.id

    @property
    def passed(self) -> bool:
        return self.correctness.passed

    @property
    def tokens(self) -> int:
        """Tokens that the call computes."""
        return self.planned.case.batch * self.planned.case.query_tokens

    @property
    def energy_j(self) -> float | None:
        """Of one call: the card's mean power while it was sampled, times the median time."""
        power_w = self.conditions.power_w
        return None if power_w is None or self.timing is None else power_w * self.timing.median_s


@dataclass(frozen=True, kw_only=True, slots=True)
class Skipped:
    """A kernel that was not measured on a case. `failed`: it raised or died, which is a fault of it and not a limit."""

    kernel: str
    case: str
    reason: str
    failed: bool = False

    def to_json(self) -> dict[str, Any]:
        return {"kernel": self.kernel, "case": self.case, "reason": self.reason, "failed": self.failed}


@dataclass(kw_only=True)
class Results:
    """A run, finished or not. `state` is running until the last case is done."""

    model: Model
    tp: int
    device_kind: str
    environment: dict[str, Any]
    ceilings: Ceilings
    command: str
    gpu: Gpu | None = None
    state: str = RUNNING
    processes: int = 1
    seed: int = 0
    measured: list[Measured] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    pending: list[tuple[str, str]] = field(default_factory=list)
    """Kernel and case id of what has not been reached yet."""

    @property
    def timed(self) -> list[Measured]:
        """Right and timed."""
        return [each for each in self.measured if each.timing is not None]

    @property
    def wrong(self) -> list[Measured]:
        return [each for each in self.measured if not each.passed]

    @property
    def failed(self) -> list[Skipped]:
        return [each for each in self.skipped if each.failed]

    def warn(self, message: str) -> None:
        if message not in self.warnings:
            self.warnings.append(message)

    def prediction(self, measured: Measured) -> Prediction:
        return predict(measured.work, self.ceilings)

    def bandwidth_fraction(self, measured: Measured) -> float | None:
        """Of the measured read bandwidth; None where the case has no time."""
        timing = measured.timing
        return None if timing is None else self.ceilings.bandwidth_fraction(measured.work.bytes, timing.median_s)

    def flop_fraction(self, measured: Measured) -> float | None:
        timing = measured.timing
        if timing is None:
            return None
        return self.ceilings.flop_fraction(measured.work.flop, timing.median_s, measured.work.dtype)

    def suspect(self, measured: Measured) -> str | None:
        """Why a case can't be right, where it is above a ceiling that was measured again."""
        timing, work = measured.timing, measured.work
        if timing is None:
            return None
        return self.ceilings.suspect(moved_bytes=work.bytes, flop=work.flop, seconds=timing.median_s, dtype=work.dtype)

    def datasheet_fraction(self, measured: Measured) -> float | None:
        """Of the bandwidth that the card's datasheet states; None without a card that kvcalc has data on."""
        if self.gpu is None or measured.timing is None:
            return None
        return measured.work.bytes / measured.timing.median_s / self.gpu.memory_bandwidth_bytes_per_s

    def to_json(self) -> dict[str, Any]:
        """The object of schema `kvcalc.profile/1`."""
        return {
            "schema": SCHEMA,
            "state": self.state,
            "command": self.command,
            "model": {
                "name": self.model.name,
                "title": self.model.title,
                "attention": list(self.model.attention_labels),
            },
            "parallel": {"tp": self.tp},
            "processes": self.processes,
            "seed": self.seed,
            "environment": self.environment,
            "datasheet": self._datasheet(),
            "ceilings": self.ceilings.to_json(),
            "expected_is": EXPECTED_IS,
            "cases": [self._case(each) for each in self.measured],
            "skipped": [each.to_json() for each in (*self.skipped, *self._not_reached())],
            "warnings": list(self.warnings),
        }

    def _not_reached(self) -> list[Skipped]:
        """What a reader of an unfinished run's file should know of the rest."""
        return [Skipped(kernel=kernel, case=case, reason=NOT_REACHED) for kernel, case in self.pending]

    def _datasheet(self) -> dict[str, Any] | None:
        if self.gpu is None:
            return None
        return {
            "slug": self.gpu.slug,
            "memory_bandwidth_bytes_per_s": self.gpu.memory_bandwidth_bytes_per_s,
            "peak_flop_per_s": dict(self.gpu.peak_flop_per_s),
        }

    def _case(self, measured: Measured) -> dict[str, Any]:
        timing, work, case = measured.timing, measured.work, measured.planned.case
        prediction = self.prediction(measured)
        counted = timing.counted if timing else ()
        others = [sample for sample in timing.samples if sample.contended] if timing and timing.clean else []
        energy_j = measured.energy_j
        return {
            **case.as_json(kernel=measured.kernel, form=measured.form),
            "kernel_version": measured.version,
            "what_if": measured.planned.what_if,
            "kernel_extra_bytes": work.extra_bytes,
            "kernel_extra_flop": work.extra_flop,
            "samples_s": [sample.seconds for sample in counted],
            "samples_process": [sample.process for sample in counted],
            "contended": timing.contended if timing else None,
            "contended_samples_s": [sample.seconds for sample in others],
            "contended_samples": timing.contended_samples if timing else None,
            "clock": timing.clock if timing else None,
            "cold_cache": timing.cold_cache if timing else None,
            "warm_up_calls": timing.warm_up_calls if timing else None,
            "warm_up_stable": timing.stable if timing else None,
            "median_s": timing.median_s if timing else None,
            "least_s": timing.least_s if timing else None,
            "p20_s": timing.p20_s if timing else None,
            "p80_s": timing.p80_s if timing else None,
            "bandwidth_fraction": self.bandwidth_fraction(measured),
            "flop_fraction": self.flop_fraction(measured),
            "datasheet_bandwidth_fraction": self.datasheet_fraction(measured),
            "bound": prediction.bound,
            "predicted": prediction.to_json(),
            "error": prediction.error(timing.median_s) if timing else None,
            "correctness": measured.correctness.as_json(),
            "suspect": self.suspect(measured),
            "note": measured.note,
            "telemetry": measured.conditions.to_json(),
            "energy_j_per_call": energy_j,
            "energy_j_per_token": None if energy_j is None else energy_j / measured.tokens,
            "reproduce": measured.reproduce,
        }
