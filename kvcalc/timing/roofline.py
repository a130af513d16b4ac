"""The roofline: the time below which no machine with the stated bandwidth and peaks can finish.

    t(term) = max(bytes moved / bandwidth, FLOPs / peak of the term's number format)        (Williams et al. 2009, sec.
    3) t(step) = sum over terms, since each term's kernels run after one another

Everything here is from the datasheet: no launch, no latency, no communication, no derating. It is a bound, not a
prediction; a prediction with an interval needs a calibration.
"""

from dataclasses import dataclass

from kvcalc.hardware import Gpu
from kvcalc.timing.step import Term

MEMORY, COMPUTE = "memory", "compute"


@dataclass(frozen=True, kw_only=True, slots=True)
class TimedTerm:
    """A term with its bound on a GPU. `compute` is the number format whose peak was used."""

    term: Term
    memory_s: float
    compute_s: float
    compute: str
    ridge_flop_per_byte: float

    @property
    def roofline_s(self) -> float:
        return max(self.memory_s, self.compute_s)

    @property
    def bound(self) -> str:
        return MEMORY if self.memory_s >= self.compute_s else COMPUTE


@dataclass(frozen=True, kw_only=True, slots=True)
class Roofline:
    """The bound of a whole step, and which resource most of it waits for."""

    terms: tuple[TimedTerm, ...]

    @property
    def roofline_s(self) -> float:
        return sum(term.roofline_s for term in self.terms)

    @property
    def bound(self) -> str:
        waiting = sum(term.roofline_s for term in self.terms if term.bound == MEMORY)
        return MEMORY if 2 * waiting >= self.roofline_s else COMPUTE


def roofline(terms: tuple[Term, ...], gpu: Gpu) -> Roofline:
    """The roofline of a step's terms. Raises MissingPeakError where the GPU has no stated peak for a needed format."""
    return Roofline(terms=tuple(_timed(term, gpu) for term in terms))


def _timed(term: Term, gpu: Gpu) -> TimedTerm:
    compute = compute_format(term.compute, gpu)
    peak = gpu.peak(compute)
    return TimedTerm(
        term=term,
        memory_s=term.traffic.moved_bytes / gpu.memory_bandwidth_bytes_per_s,
        compute_s=term.traffic.flop / peak,
        compute=compute,
        ridge_flop_per_byte=gpu.ridge_flop_per_byte(compute),
    )


def compute_format(wanted: str, gpu: Gpu) -> str:
    """The format that products run in: narrow weights are widened to bf16 on a GPU without such units."""
    return "bf16" if wanted in ("fp8", "int8", "fp4") and wanted not in gpu.peak_flop_per_s else wanted
