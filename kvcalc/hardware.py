"""A GPU as its vendor and its driver state it: peaks, bandwidth, capacity, and who says so.

Every number here is stated, never measured and never scaled; calibration and measurement are other types. Peaks are
dense and take the accumulation that frameworks use (FP32 for FP16, BF16 and FP8). A number that nobody states is None,
and where a computation needs it, an error.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from kvcalc.errors import MissingPeakError, UsageError
from kvcalc.names import nearest

COMPUTE_DTYPES = ("fp32", "tf32", "bf16", "fp16", "fp8", "fp6", "fp4", "int8", "int4")


@dataclass(frozen=True, kw_only=True, slots=True)
class Quantity:
    """A stated number with its ground: the citation, the ISO date on which it was collected, and how it was derived."""

    value: int
    source: str
    date: str
    note: str | None = None

    def __str__(self) -> str:
        return f"{self.source} ({self.date})" + (f"; {self.note}" if self.note else "")


@dataclass(frozen=True, kw_only=True, slots=True)
class Link:
    """The GPU-to-GPU link: bytes a second that one GPU sends, while it receives as many. PCIe is not one."""

    type: str
    bytes_per_s_per_direction: int
    gpus_per_node: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Gpu:
    """One device as software sees it: a die where a module shows itself as two devices (MI250X).

    memory_reported_bytes is what the driver reports, not the capacity on the box. num_sms counts compute units on AMD.
    `stated` maps the dotted name of each number ("peak_flop_per_s.bf16", "link.gpus_per_node") to its ground.
    """

    slug: str
    name: str
    vendor: str
    architecture: str
    memory_reported_bytes: int
    memory_bandwidth_bytes_per_s: int
    peak_flop_per_s: Mapping[str, int] = field(hash=False)
    device_names: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    l2_cache_bytes: int | None = None
    last_level_cache_bytes: int | None = None
    num_sms: int | None = None
    shared_memory_per_block_bytes: int | None = None
    boost_clock_hz: int | None = None
    tdp_watts: int | None = None
    compute_capability: str | None = None
    gfx_arch: str | None = None
    link: Link | None = None
    pcie_bytes_per_s_per_direction: int | None = None
    stated: Mapping[str, Quantity] = field(default_factory=dict, hash=False, repr=False)

    def peak(self, dtype: str) -> int:
        """Dense FLOP/s (integer operations for int8 and int4) in `dtype`, one of COMPUTE_DTYPES.

        Raises MissingPeakError where the GPU has no stated peak for it.
        """
        try:
            return self.peak_flop_per_s[dtype]
        except KeyError:
            raise MissingPeakError(
                f"{self.slug} has no stated {dtype} peak",
                hint=f"it has {', '.join(self.peak_flop_per_s)}; kvcalc does not guess the others",
            ) from None

    def ridge_flop_per_byte(self, dtype: str) -> float:
        """The arithmetic intensity, in FLOP/byte, from which compute and no longer bandwidth is the stated bound."""
        return self.peak(dtype) / self.memory_bandwidth_bytes_per_s

    def citation(self, quantity: str) -> Quantity:
        """The ground of one number by its dotted name. Raises KeyError where nothing is stated under that name."""
        try:
            return self.stated[quantity]
        except KeyError:
            raise KeyError(f"{self.slug} states no {quantity}; it states {', '.join(self.stated)}") from None

    @property
    def names(self) -> tuple[str, ...]:
        """All that the GPU may be called by: its slug, its aliases and the names that drivers print."""
        return (self.slug, *self.aliases, *self.device_names)


def find_gpu(name: str, gpus: Sequence[Gpu]) -> Gpu:
    """The one GPU whose slug, alias or device name is exactly `name`, letter case aside.

    A part of a name never matches: `H20` is a prefix of `H200`, and `h100` is three cards of different speed. Raises
    UsageError that lists what `name` may have meant.
    """
    wanted = _key(name)
    matches = [gpu for gpu in gpus if wanted in map(_key, gpu.names)]
    if len(matches) == 1:
        return matches[0]
    meant = matches or _containing(name, gpus)
    if len(meant) > 1:
        slugs = ", ".join(sorted(gpu.slug for gpu in meant))
        raise UsageError(f"GPU {name!r} is ambiguous: it may be {slugs}", hint="name one of them")
    hint = f"did you mean '{meant[0].slug}'?" if meant else nearest(name, [gpu.slug for gpu in gpus])
    raise UsageError(f"unknown GPU {name!r}", hint=hint)


def _key(name: str) -> str:
    return " ".join(name.split()).casefold()


def _containing(name: str, gpus: Sequence[Gpu]) -> list[Gpu]:
    """The GPUs with a name in which `name` starts a word, so that `h200` finds the H200s and not the GH200."""
    part = _words(name)
    return [gpu for gpu in gpus if part.strip() and any(part in _words(known) for known in gpu.names)]


def _words(name: str) -> str:
    return " " + _key(name.replace("-", " ").replace("_", " "))
