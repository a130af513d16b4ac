"""What a case should take, from the ceilings measured in the same run.

    memory_s    (bytes + the kernel's extra bytes) / read bandwidth
    compute_s   (FLOPs of the kernel's form + its extra FLOPs) / matrix product rate of the case's number format
    roofline_s  the larger of the two: no kernel of this design can be faster on this machine
    expected_s  roofline_s after one launch: launch_s + roofline_s

`EXPECTED_IS` says in every output what expected_s is made of; a calibrated time model would change that line and
`expected_s`, and nothing else.
"""

from dataclasses import dataclass
from typing import Any

from kvcalc.profiling.measure.ceilings import Ceilings

EXPECTED_IS = "launch latency plus the roofline, both measured in this run; no calibration"
MEMORY, COMPUTE, LATENCY = "memory", "compute", "latency"


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """What a kernel does for a case: the least that any kernel has to, and what its design adds."""

    bytes: int
    flop: int
    extra_bytes: int = 0
    extra_flop: int = 0
    dtype: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Prediction:
    """Seconds that the work takes at each ceiling."""

    memory_s: float
    compute_s: float
    launch_s: float

    @property
    def roofline_s(self) -> float:
        return max(self.memory_s, self.compute_s)

    @property
    def expected_s(self) -> float:
        return self.launch_s + self.roofline_s

    @property
    def bound(self) -> str:
        """What most of the time should go to."""
        if self.launch_s > self.roofline_s:
            return LATENCY
        return MEMORY if self.memory_s >= self.compute_s else COMPUTE

    def error(self, measured_s: float) -> float:
        return measured_s / self.expected_s - 1

    def to_json(self) -> dict[str, Any]:
        return {
            "roofline_s": self.roofline_s,
            "expected_s": self.expected_s,
            "memory_s": self.memory_s,
            "compute_s": self.compute_s,
            "launch_s": self.launch_s,
            "expected_is": EXPECTED_IS,
        }


def predict(work: Work, ceilings: Ceilings) -> Prediction:
    """The prediction for a kernel's work at the ceilings as they stand."""
    return Prediction(
        memory_s=(work.bytes + work.extra_bytes) / ceilings.read_bandwidth_bytes_per_s,
        compute_s=(work.flop + work.extra_flop) / ceilings.matmul_flop_per_s(work.dtype),
        launch_s=ceilings.launch_s,
    )
