"""Cold caches: a decode step finds its cache in memory, so a timed call must not find it in the last-level cache.

A working set of at least five times the last-level cache evicts itself. A smaller one is evicted before each sample by
reading a buffer that large; reading, since written lines would have to go back to memory while the clock runs. On a CPU
the cores read it that run the kernels next, and not torch's own threads: those would spin for some milliseconds after.
"""

import time
from dataclasses import dataclass

import torch

from kvcalc.profiling.kernels import workers
from kvcalc.profiling.measure.clock import Call

TIMES_CACHE = 5
READ_TIMES = 3
"""The fastest of so many reads tells what memory gives."""


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
        self._fastest_read_s = float("inf")

    @property
    def enough_bytes(self) -> int:
        return TIMES_CACHE * self.last_level_cache_bytes

    def for_working_set(self, working_set_bytes: int) -> Cold:
        cache = f"last-level cache of {self.last_level_cache_bytes / 2**20:,.0f} MiB"
        if working_set_bytes >= self.enough_bytes:
            return Cold(flush=None, words=f"working set of {TIMES_CACHE} times the {cache} or more")
        return Cold(flush=self.read, words=f"{TIMES_CACHE} times the {cache} read before each sample")

    def read(self) -> None:
        """Read the whole buffer."""
        buffer = self._flush_buffer()
        if buffer.device.type != "cpu":
            buffer.sum()
            return
        threads = torch.get_num_threads()
        parts = buffer.tensor_split(threads)
        workers.side_by_side(lambda worker: parts[worker].sum(), threads)

    def memory_share(self) -> float:
        """What a CPU's memory gives at this moment, as a share of the most that it gave here so far."""
        seconds = []
        for _ in range(READ_TIMES):
            start_s = time.perf_counter()
            self.read()
            seconds.append(time.perf_counter() - start_s)
        self._fastest_read_s = min(self._fastest_read_s, *seconds)
        return self._fastest_read_s / min(seconds)

    def release(self) -> None:
        self._buffer = None

    def _flush_buffer(self) -> torch.Tensor:
        if self._buffer is None:
            self._buffer = torch.ones(max(1, self.enough_bytes // 4), dtype=torch.float32, device=self.device)
        return self._buffer
