"""A kernel family: a kernel lineage's shapes, and where a fit of its parameters starts and how far it may go.

The values are round numbers in the middle of what a family reaches on the GPUs that it runs on, and `spread` is how far
a GPU may lie from them. A calibration on a GPU moves the values; they alone give a prediction with a wide interval.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from kvcalc.errors import UsageError
from kvcalc.timing.attention_time import PARAMETERS, KernelShape

MLA, GQA, MHA = "mla", "gqa", "mha"
"""Kinds that have kernels of their own: MQA is a value of gqa; one query head a KV head leaves no rows to share."""

US = 1e-6


@dataclass(frozen=True, kw_only=True, slots=True)
class Kernel:
    """One kernel of a family: its shape, where its parameters start, and their spread in a fit.

    spread           standard deviations: of the logarithm for logarithmic parameters, else a share of the range
    eight_bit_values  what is different with a cache of a byte an element
    """

    shape: KernelShape
    values: Mapping[str, float]
    spread: Mapping[str, float]
    eight_bit_values: Mapping[str, float] = field(default_factory=dict)

    def start(self, *, eight_bit: bool) -> Mapping[str, float]:
        """The values that a fit starts from."""
        return {**self.values, **self.eight_bit_values} if eight_bit else self.values


@dataclass(frozen=True, kw_only=True, slots=True)
class Family:
    """A kernel lineage, by attention kind.

    max_group  query heads a KV head from which the engine has no fused kernel, and the family says nothing
    """

    name: str
    description: str
    source: str
    kernels: Mapping[str, Kernel]
    max_group: int | None = None

    def kernel(self, kind: str) -> Kernel:
        """Raises UsageError for a kind that the family has no kernel of."""
        if kind not in self.kernels:
            raise UsageError(f"family {self.name} has no {kind} kernel", hint=f"it has {', '.join(self.kernels)}")
        return self.kernels[kind]


_SPREAD = {
    "launch_s": 0.3,
    "batch_doubling_s": 0.06,
    "bandwidth_fraction": 0.08,
    "l2_speedup": 0.3,
    "l2_usable_fraction": 0.15,
    "matrix_fraction": 0.3,
    "wide_fraction": 0.3,
    "pairs_per_s": 0.5,
    "block_bytes_per_s": 0.5,
    "item_s": 0.4,
    "elements_per_s": 0.5,
    "overhead_tiles": 0.15,
    "combine_s": 0.03,
    "combine_split_s": 0.06,
    "partial_passes": 0.4,
    "query_output_passes": 0.7,
    "tile_overlap": 0.3,
    "item_overlap": 0.25,
    "cold_s": 0.1,
    "tail_fraction": 0.15,
    "reread_fraction": 0.12,
    "throttle": 0.12,
}
_COMMON = {
    "batch_doubling_s": 0.0,
    "wide_fraction": 1.0,
    "elements_per_s": 3e10,
    "pairs_per_s": 25e9,
    "l2_usable_fraction": 0.85,
    "tail_fraction": 0.2,
    "reread_fraction": 0.4,
    "throttle": 0.02,
}


def kernel(
    shape: KernelShape, *, wide: float = 1.0, eight_bit: Mapping[str, float] | None = None, **values: float
) -> Kernel:
    """A kernel, with what is common to all where nothing else is said."""
    complete = {**_COMMON, **values}
    return Kernel(
        shape=shape,
        eight_bit_values=eight_bit or {},
        values={name: complete[name] for name in PARAMETERS},
        spread={name: wide * _SPREAD[name] for name in PARAMETERS},
    )
