"""The machine's ceilings, measured: nothing that a kernel does here can be faster, so this is what it is set against.

read bandwidth    bytes a second that can be read when nothing is written. Decoding reads nearly all that it moves, so
                  this and not a copy is its denominator; the fastest of several ways of reading counts
copy bandwidth    bytes read and bytes written a second
matmul            FLOP/s of a large dense matrix product, by number format
launch            seconds that the smallest operation takes

A ceiling is the best that was seen: it is measured again between cases on a CPU, whose neighbours come and go, and
where a case comes out above it, and it never sinks.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from kvcalc.profiling.measure.clock import Timing

SUSPECT_FRACTION = 1.05
"""A case above this share of a ceiling was not measured rightly, or the ceiling was not."""
MEASURED_AGAIN = 3

READ, COPY, LAUNCH = "read_bandwidth_bytes_per_s", "copy_bandwidth_bytes_per_s", "launch_s"


class Probes(Protocol):
    """Measures one ceiling of one device."""

    def read(self, method: str | None = None) -> Mapping[str, float]:
        """Bytes a second, by way of reading; of one way alone where it is named."""
        ...

    def copy(self) -> float: ...

    def matmul(self, dtype: str) -> float: ...

    def launch(self) -> float: ...


@dataclass(kw_only=True)
class Ceilings:
    """The best seen of each ceiling.

    widened  formats that a CPU multiplies in fp32 where it has no units for them
    """

    probes: Probes | None
    read_bandwidth_bytes_per_s: float = 0.0
    read_method: str = ""
    copy_bandwidth_bytes_per_s: float = 0.0
    matmul_measured_flop_per_s: dict[str, float] = field(default_factory=dict)
    launch_s: float = float("inf")
    widened: tuple[str, ...] = ()
    measured: dict[str, int] = field(default_factory=dict)

    @property
    def _probes(self) -> Probes:
        """Ceilings that came from another process have no probes and can't be measured again."""
        if self.probes is None:
            raise RuntimeError("these ceilings were measured in another process")
        return self.probes

    def measure(self, dtypes: tuple[str, ...]) -> None:
        """All ceilings, with the matrix products of these formats."""
        self._read(None)
        self._count(COPY)
        self.copy_bandwidth_bytes_per_s = max(self.copy_bandwidth_bytes_per_s, self._probes.copy())
        for dtype in dtypes:
            self.again_matmul(dtype)
        self._count(LAUNCH)
        self.launch_s = min(self.launch_s, self._probes.launch())

    def again_read(self) -> None:
        """In the way that was the fastest."""
        self._read(self.read_method or None)

    def _read(self, wanted: str | None) -> None:
        self._count(READ)
        by_method = self._probes.read(wanted)
        method = max(by_method, key=lambda name: by_method[name])
        if by_method[method] > self.read_bandwidth_bytes_per_s:
            self.read_bandwidth_bytes_per_s, self.read_method = by_method[method], method

    def again_matmul(self, dtype: str) -> None:
        """Of a format, and of fp32 too where the format may be widened to it."""
        for each in {dtype, "fp32"} if dtype in self.widened else {dtype}:
            self._count(f"matmul {each}")
            seen = self.matmul_measured_flop_per_s.get(each, 0.0)
            self.matmul_measured_flop_per_s[each] = max(seen, self._probes.matmul(each))

    def matmul_flop_per_s(self, dtype: str) -> float:
        """The ceiling for products of a format: its own rate, or fp32's where that is the larger one and open to it."""
        own = self.matmul_measured_flop_per_s[dtype]
        return max(own, self.matmul_measured_flop_per_s["fp32"]) if dtype in self.widened else own

    def take_better(self, other: "Ceilings") -> None:
        """The better of both for each ceiling: another process on the same machine measured them too."""
        if other.read_bandwidth_bytes_per_s > self.read_bandwidth_bytes_per_s:
            self.read_bandwidth_bytes_per_s, self.read_method = other.read_bandwidth_bytes_per_s, other.read_method
        self.copy_bandwidth_bytes_per_s = max(self.copy_bandwidth_bytes_per_s, other.copy_bandwidth_bytes_per_s)
        for dtype, rate in other.matmul_measured_flop_per_s.items():
            self.matmul_measured_flop_per_s[dtype] = max(self.matmul_measured_flop_per_s.get(dtype, 0.0), rate)
        self.launch_s = min(self.launch_s, other.launch_s)
        for name, times in other.measured.items():
            self.measured[name] = self.measured.get(name, 0) + times

    def bandwidth_fraction(self, moved_bytes: int, seconds: float) -> float:
        return moved_bytes / seconds / self.read_bandwidth_bytes_per_s

    def flop_fraction(self, flop: int, seconds: float, dtype: str) -> float:
        return flop / seconds / self.matmul_flop_per_s(dtype)

    def recheck(self, *, moved_bytes: int, flop: int, seconds: float, dtype: str) -> None:
        """Measure again the ceilings that a case came out above, so that one bad moment casts no suspicion on it."""
        for _ in range(MEASURED_AGAIN):
            if self.bandwidth_fraction(moved_bytes, seconds) > SUSPECT_FRACTION:
                self.again_read()
            if self.flop_fraction(flop, seconds, dtype) > SUSPECT_FRACTION:
                self.again_matmul(dtype)

    def suspect(self, *, moved_bytes: int, flop: int, seconds: float, dtype: str) -> str | None:
        """Why a case can't be right at the ceilings as they stand, or None where nothing is wrong."""
        for share, name in (
            (self.bandwidth_fraction(moved_bytes, seconds), "read bandwidth"),
            (self.flop_fraction(flop, seconds, dtype), f"{dtype} matmul rate"),
        ):
            if share > SUSPECT_FRACTION:
                return f"{share:.0%} of the measured {name}, measured again: not all that it does was measured"
        return None

    def _count(self, name: str) -> None:
        self.measured[name] = self.measured.get(name, 0) + 1

    def to_json(self) -> dict[str, Any]:
        return {
            READ: self.read_bandwidth_bytes_per_s or None,
            "read_method": self.read_method,
            COPY: self.copy_bandwidth_bytes_per_s or None,
            "matmul_flop_per_s": {dtype: self.matmul_flop_per_s(dtype) for dtype in self.matmul_measured_flop_per_s},
            "matmul_measured_flop_per_s": dict(self.matmul_measured_flop_per_s),
            LAUNCH: self.launch_s if LAUNCH in self.measured else None,
            "measured_times": dict(self.measured),
        }


def rate(amount: float, timing: Timing) -> float:
    """An amount a second, at the faster side of the samples: a ceiling is what the machine can do."""
    return amount / timing.p20_s
