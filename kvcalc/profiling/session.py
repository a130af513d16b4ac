"""One device, ready to be measured on: its clock, its ceilings, its telemetry, and the memory that is free on it."""

import gc
from dataclasses import dataclass
from typing import Any

import torch

from kvcalc.errors import NoDeviceError, UsageError
from kvcalc.hardware import Gpu
from kvcalc.profiling.case import Case
from kvcalc.profiling.measure import machine
from kvcalc.profiling.measure.ceilings import Ceilings
from kvcalc.profiling.measure.clock import Call, CpuClock, Rule, Timing, measure
from kvcalc.profiling.measure.cold import Cooler
from kvcalc.profiling.measure.probes import TorchProbes
from kvcalc.profiling.measure.telemetry import Monitor, open_monitor
from kvcalc.profiling.predict import Work

RULES = {"cpu": Rule(longest_s=2.0), "cuda": Rule(samples=100, least_samples=10)}
QUICK_RULES = {
    "cpu": Rule(least_samples=5, longest_warm_up_s=0.3, longest_s=0.5, retaken=0.3),
    "cuda": Rule(samples=30, least_samples=10),
}
MEMORY_SHARE = 0.9
"""A case may take so much of the free memory; allocators round up."""


@dataclass(kw_only=True)
class Session:
    """Everything that is bound to the device."""

    device: torch.device
    monitor: Monitor
    cooler: Cooler
    probes: TorchProbes
    ceilings: Ceilings
    threads: int
    rule: Rule

    @property
    def kind(self) -> str:
        return str(self.device.type)

    def environment(self) -> dict[str, Any]:
        return machine.environment(self.device, self.monitor.static())

    def free_bytes(self) -> int:
        return int(machine.free_bytes(self.device) * MEMORY_SHARE)

    def flush_bytes(self, case: Case) -> int:
        """What keeping the caches cold, and on a CPU watching its memory, takes for a case."""
        evicts_itself = self.kind == "cuda" and case.cache_read_bytes >= self.cooler.enough_bytes
        return 0 if evicts_itself else self.cooler.enough_bytes

    def time(self, call: Call, *, working_set_bytes: int, rule: Rule) -> tuple[Timing, str | None]:
        """Time a call with cold caches; with a note where it could not be timed in the best way."""
        cold = self.cooler.for_working_set(working_set_bytes)
        if self.kind == "cuda":
            from kvcalc.profiling.measure.cuda_clock import measure_on_cuda

            return measure_on_cuda(call, flush=cold.flush, cold_cache=cold.words, rule=rule)
        clock = CpuClock(
            threads=self.threads, flush=cold.flush, cold_cache=cold.words, memory_share=self.cooler.memory_share
        )
        return measure(call, clock=clock, rule=rule), None

    def measure_ceilings(self, dtype: str) -> None:
        """All of them; a format's matrix products with fp32 beside it where it may be widened to it."""
        self.ceilings.measure((dtype,))
        self.probes.release()
        if self.kind == "cpu":
            self.cooler.memory_share()

    def between_cases(self, dtype: str) -> None:
        """A CPU's neighbours come and go, and its ceilings with them."""
        if self.kind == "cpu":
            self.ceilings.again_read()
            self.ceilings.again_matmul(dtype)

    def recheck(self, work: Work, median_s: float) -> None:
        """Measure the ceilings again that a case came out above, where there is room beside it."""
        try:
            self.ceilings.recheck(moved_bytes=work.bytes, flop=work.flop, seconds=median_s, dtype=work.dtype)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise

    def release(self) -> None:
        """Give back what the last case left."""
        self.probes.release()
        gc.collect()
        if self.kind == "cuda":
            torch.cuda.empty_cache()

    def is_alive(self) -> bool:
        """Whether the device still answers: an illegal access ends a CUDA context for good."""
        if self.kind != "cuda":
            return True
        try:
            torch.cuda.synchronize(self.device)
        except RuntimeError:
            return False
        return True


def open_session(name: str, *, quick: bool = False) -> Session:
    """The session of `auto`, `cpu`, `cuda` or `cuda:1`. Raises NoDeviceError where there is no such device."""
    device = _device(name)
    is_cuda = device.type == "cuda"
    if is_cuda:
        torch.cuda.set_device(device)
        properties = torch.cuda.get_device_properties(device)
        cache_bytes, threads = int(properties.L2_cache_size), 1
        monitor = open_monitor(index=device.index, uuid=str(getattr(properties, "uuid", "")) or None)
    else:
        threads = machine.physical_cores()
        torch.set_num_threads(threads)
        cache_bytes = machine.last_level_cache_bytes()
        monitor = Monitor(reason="no GPU is measured")
    probes = TorchProbes(
        device,
        last_level_cache_bytes=cache_bytes,
        free_bytes=machine.free_bytes(device),
        threads=threads,
        small=quick,
    )
    return Session(
        device=device,
        monitor=monitor,
        cooler=Cooler(device, cache_bytes),
        probes=probes,
        ceilings=Ceilings(probes=probes, widened=() if is_cuda else ("bf16", "fp16")),
        threads=threads,
        rule=(QUICK_RULES if quick else RULES)[device.type],
    )


def _device(name: str) -> torch.device:
    available = torch.cuda.is_available()
    if name == "auto":
        return torch.device("cuda", torch.cuda.current_device()) if available else torch.device("cpu")
    kind, _, index = name.partition(":")
    if kind not in ("cpu", "cuda") or (index and not index.isdigit()) or (kind == "cpu" and index not in ("", "0")):
        raise UsageError(f"unknown device '{name}'", hint="write auto, cpu, cuda or cuda:1")
    if kind == "cpu":
        return torch.device("cpu")
    if not available:
        raise NoDeviceError("torch finds no CUDA device on this machine", hint="write --device cpu to measure the CPU")
    count = torch.cuda.device_count()
    if index and int(index) >= count:
        devices = ", ".join(f"cuda:{each}" for each in range(count))
        raise NoDeviceError(f"there is no device {name} on this machine", hint=f"there is {devices}")
    return torch.device("cuda", int(index) if index else torch.cuda.current_device())


def is_out_of_memory(error: Exception) -> bool:
    """CUDA's, the CPU allocator's and Python's own."""
    if isinstance(error, MemoryError | torch.cuda.OutOfMemoryError):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and ("out of memory" in text or "can't allocate memory" in text)


def datasheet_of(session: Session) -> Gpu | None:
    """What kvcalc knows of the card; None for a CPU and for a card that it has no data on."""
    if session.kind != "cuda":
        return None
    from kvcalc.hardware import find_gpu
    from kvcalc.specs.hardware import load_gpus

    try:
        return find_gpu(torch.cuda.get_device_name(session.device), load_gpus())
    except UsageError:
        return None
