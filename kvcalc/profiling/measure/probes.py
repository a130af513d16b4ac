"""The calls that the ceilings are measured with: reads, a copy, matrix products and an operation that does nothing."""

from collections.abc import Callable, Mapping
from functools import partial

import torch

from kvcalc.profiling.kernels.products import has_onednn_linear, times_transposed
from kvcalc.profiling.measure.ceilings import rate
from kvcalc.profiling.measure.clock import Call, CpuClock, Rule, Timing, measure
from kvcalc.profiling.measure.cold import TIMES_CACHE

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
CPU_BUFFER_BYTES = 256 << 20
CUDA_BUFFER_BYTES = 2 << 30
CPU_RULE = Rule(
    samples=8, seconds=0.06, least_samples=4, warm_up_s=0.0, longest_warm_up_s=0.1, longest_s=0.5, retaken=1.0
)
CUDA_RULE = Rule(samples=30, seconds=0.3, least_samples=15, warm_up_s=0.1)
CPU_MATMUL_SIZES = (256, 512, 1024, 1536)
CPU_MATMUL_LEAST_S = 0.03
"""A product that takes so long is large enough, and longer than another process keeps a core from it."""
CPU_SIZE_TRIES = 4
CUDA_MATMUL_SIZES = {"fp32": 4096, "fp16": 8192, "bf16": 8192}
GEMV_COLUMNS = 4096


class TorchProbes:
    """Ceilings through torch's own operators and, on CUDA where triton is there, a read kernel of our own.

    buffer_bytes  what is read and copied: at least five times the last-level cache, and no more than an eighth of the
                  free memory
    """

    def __init__(
        self,
        device: torch.device,
        *,
        last_level_cache_bytes: int,
        free_bytes: int,
        threads: int = 1,
        small: bool = False,
        timed: Callable[[Call], Timing] | None = None,
    ) -> None:
        self.device = device
        self.is_cuda = device.type == "cuda"
        self.threads = threads
        self.small = small
        wanted = TIMES_CACHE * last_level_cache_bytes
        if not small:
            wanted = max(wanted, CUDA_BUFFER_BYTES if self.is_cuda else CPU_BUFFER_BYTES)
        self.buffer_bytes = max(1 << 20, min(wanted, free_bytes // 8))
        self._timed = timed or (self._on_cuda if self.is_cuda else self._on_cpu)
        self._buffer: torch.Tensor | None = None
        self._sizes: dict[str, int] = {}

    def read(self, method: str | None = None) -> Mapping[str, float]:
        buffer = self._source()
        calls: dict[str, Call] = {"torch sum": buffer.sum}
        if self.is_cuda:
            calls |= self._own_read(buffer)
        else:
            matrix = buffer.view(-1, GEMV_COLUMNS)
            vector = torch.ones(GEMV_COLUMNS, device=self.device)
            calls |= {"torch max": buffer.max, "torch gemv": lambda: matrix @ vector}
        moved_bytes = buffer.numel() * buffer.element_size()
        chosen = calls if method is None else {method: calls[method]}
        return {name: rate(moved_bytes, self._timed(call)) for name, call in chosen.items()}

    def copy(self) -> float:
        buffer = self._source()
        half = buffer.numel() // 2
        source, target = buffer[:half], buffer[half : 2 * half]
        return rate(2 * half * buffer.element_size(), self._timed(lambda: target.copy_(source)))

    def matmul(self, dtype: str) -> float:
        size = self._size(dtype)
        left, right = self._square(size, dtype), self._square(size, dtype)
        routes: list[Call] = [lambda: left @ right]
        if has_onednn_linear(self.device):
            routes.append(lambda: times_transposed(left, right))
        return max(rate(2 * size**3, self._timed(route)) for route in routes)

    def launch(self) -> float:
        one = torch.zeros(1, device=self.device)
        return self._timed(lambda: one.add_(1.0)).median_s

    def release(self) -> None:
        """Give the buffer back before a case is set up."""
        self._buffer = None

    def _source(self) -> torch.Tensor:
        if self._buffer is None:
            rows = max(2, self.buffer_bytes // 4 // GEMV_COLUMNS)
            self._buffer = torch.ones(rows * GEMV_COLUMNS, dtype=torch.float32, device=self.device)
        return self._buffer

    def _own_read(self, buffer: torch.Tensor) -> dict[str, Call]:
        try:
            from kvcalc.profiling.measure.read_kernel import programs_for, read_sums
        except ImportError:
            return {}
        sums = torch.empty(programs_for(self.device), dtype=torch.float32, device=self.device)
        return {"triton read": lambda: read_sums(buffer, sums)}

    def _square(self, size: int, dtype: str) -> torch.Tensor:
        generator = torch.Generator(self.device).manual_seed(0)
        return torch.randn(size, size, device=self.device, generator=generator).to(DTYPES[dtype])

    def _size(self, dtype: str) -> int:
        """Large enough to run at full rate; on a CPU, where a format may be a thousand times slower, no larger."""
        if self.is_cuda:
            return CUDA_MATMUL_SIZES[dtype] if not self.small else 1024
        clock = CpuClock(threads=self.threads, busy_s=lambda: None)
        size = self._sizes.get(dtype, 0)  # large enough once is large enough
        for size in [each for each in CPU_MATMUL_SIZES[: 3 if self.small else None] if each >= size]:
            left, right = self._square(size, dtype), self._square(size, dtype)
            with clock.ready(partial(torch.matmul, left, right)) as take:
                if min(take(CPU_SIZE_TRIES).seconds) >= CPU_MATMUL_LEAST_S:
                    break
        self._sizes[dtype] = size
        return size

    def _on_cpu(self, call: Call) -> Timing:
        clock = CpuClock(threads=self.threads)
        return measure(call, clock=clock, rule=CPU_RULE)

    def _on_cuda(self, call: Call) -> Timing:
        from kvcalc.profiling.measure.cuda_clock import measure_on_cuda

        timing, _ = measure_on_cuda(call, flush=None, cold_cache="buffer far above the L2 cache", rule=CUDA_RULE)
        return timing
