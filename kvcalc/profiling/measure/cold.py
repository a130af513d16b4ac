"""Cold caches: a decode step finds its cache in memory, so a timed call must not find it in the last-level cache.

A working set of at least five times the last-level cache evicts itself. A smaller one is evicted before each sample by
reading a buffer that large; reading, since written lines would have to go back to memory while the clock runs.
"""

from dataclasses import dataclass

import torch

from kvcalc.profiling.measure.clock import Call

TIMES_CACHE = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class Cold:
    """How the caches are kept cold for one case.

    flush  a call to make before each sample; None where none is needed
    words  the same for people
    """

    flush: Call | None
    words: str


class Cooler:
    """Keeps one buffer of five times the last-level cache, made when it is first needed."""

    def __init__(self, device: torch.device, last_level_cache_bytes: int) -> None:
        self.device = device
        self.last_level_cache_bytes = last_level_cache_bytes
        self._buffer: torch.Tensor | None = None

    @property
    def enough_bytes(self) -> int:
        return TIMES_CACHE * self.last_level_cache_bytes

    def for_working_set(self, working_set_bytes: int) -> Cold:
        cache = f"last-level cache of {self.last_level_cache_bytes / 2**20:,.0f} MiB"
        if working_set_bytes >= self.enough_bytes:
            return Cold(flush=None, words=f"working set of {TIMES_CACHE} times the {cache} or more")
        buffer = self._flush_buffer()
        return Cold(flush=buffer.sum, words=f"{TIMES_CACHE} times the {cache} read before each sample")

    def release(self) -> None:
        self._buffer = None

    def _flush_buffer(self) -> torch.Tensor:
        if self._buffer is None:
            self._buffer = torch.ones(max(1, self.enough_bytes // 4), dtype=torch.float32, device=self.device)
        return self._buffer
