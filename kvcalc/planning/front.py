"""The Pareto front: rows that no other row beats in throughput a GPU and in time a token at once."""

from collections.abc import Iterable
from typing import Protocol


class Rated(Protocol):
    """What is compared."""

    @property
    def tokens_per_s_per_gpu(self) -> float | None: ...

    @property
    def tpot_s(self) -> float | None: ...


def is_on_front(row: Rated, rows: Iterable[Rated]) -> bool:
    """Whether no other row is at least as good in both and better in one."""
    if row.tokens_per_s_per_gpu is None or row.tpot_s is None:
        return False
    for other in rows:
        if other.tokens_per_s_per_gpu is None or other.tpot_s is None:
            continue
        no_worse = other.tokens_per_s_per_gpu >= row.tokens_per_s_per_gpu and other.tpot_s <= row.tpot_s
        better = other.tokens_per_s_per_gpu > row.tokens_per_s_per_gpu or other.tpot_s < row.tpot_s
        if no_worse and better:
            return False
    return True
