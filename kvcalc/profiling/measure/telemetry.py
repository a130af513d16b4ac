"""The card's conditions while it was measured, from NVML: clocks, power, temperature, what slowed it, who shared it.

Everything is optional: NVML may be absent, forbid a query, or know nothing of a MIG slice. What nobody tells is None in
JSON and `N/A` for people, and flows through; it is never an error and never a guess.
"""

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib import import_module
from typing import Any, TypeVar

NA = "N/A"
SAMPLE_INTERVAL_S = 0.02
SLOWED_BY = {
    0x0000000000000004: "power cap",
    0x0000000000000008: "hardware slowdown",
    0x0000000000000010: "sync boost",
    0x0000000000000020: "software thermal slowdown",
    0x0000000000000040: "hardware thermal slowdown",
    0x0000000000000080: "hardware power brake",
}
"""NVML's clock event reasons that slow a busy card down; idle clocks and clocks that a user set are none of them."""

Value = TypeVar("Value")


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """The card at one moment. None: not known."""

    sm_clock_hz: int | None = None
    memory_clock_hz: int | None = None
    power_w: float | None = None
    temperature_c: int | None = None
    throttle_reasons: tuple[str, ...] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Conditions:
    """The card before, during and after one measurement.

    during                  readings of a sampling thread
    energy_j, wall_s        what the card's energy counter went up by, and in how long
    other_processes         processes on the card besides this one; None: not known
    """

    before: Reading = Reading()
    during: tuple[Reading, ...] = ()
    after: Reading = Reading()
    energy_j: float | None = None
    wall_s: float = 0.0
    other_processes: int | None = None

    @property
    def throttle_reasons(self) -> tuple[str, ...]:
        """Reasons seen while it was measured."""
        found = dict.fromkeys(reason for reading in self.during for reason in reading.throttle_reasons or ())
        return tuple(found)

    @property
    def power_w(self) -> float | None:
        """Mean power: from the energy counter, else from the readings."""
        if self.energy_j is not None and self.wall_s > 0:
            return self.energy_j / self.wall_s
        return mean([reading.power_w for reading in self.during])

    @property
    def warnings(self) -> list[str]:
        found = []
        if self.throttle_reasons:
            found.append(f"the card was slowed down ({', '.join(self.throttle_reasons)})")
        if self.other_processes:
            who = "another process" if self.other_processes == 1 else f"{self.other_processes} other processes"
            found.append(f"{who} had the card too")
        return found

    def to_json(self) -> dict[str, Any]:
        during = self.during
        return {
            "before": asdict(self.before),
            "during": {
                "readings": len(during),
                "sm_clock_hz": span([reading.sm_clock_hz for reading in during]),
                "memory_clock_hz": span([reading.memory_clock_hz for reading in during]),
                "power_w": span([reading.power_w for reading in during]),
                "temperature_c": span([reading.temperature_c for reading in during]),
                "throttle_reasons": list(self.throttle_reasons) if during else None,
            },
            "after": asdict(self.after),
            "mean_power_w": self.power_w,
            "other_processes": self.other_processes,
        }


def mean(values: list[float | None]) -> float | None:
    """The mean of what is known; None where nothing is."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def span(values: list[Any]) -> dict[str, Any] | None:
    """Least, mean and most of what is known; None where nothing is."""
    known = [value for value in values if value is not None]
    return {"least": min(known), "mean": sum(known) / len(known), "most": max(known)} if known else None


def shown(value: object, unit: str = "") -> str:
    """A value for people, `N/A` where it is not known."""
    return NA if value is None else f"{value}{unit}"


@dataclass(kw_only=True)
class Monitor:
    """Reads one device. Without a handle it knows nothing, and `reason` says why.

    nvml    the module pynvml, or what stands in for it
    handle  NVML's handle of the device, or of the MIG slice; `card` of the whole card, whose clocks and power they are
    """

    nvml: Any = None
    handle: Any = None
    card: Any = None
    mig: bool = False
    reason: str | None = None
    _own_pid: int = field(default_factory=os.getpid)

    def read(self) -> Reading:
        nvml = self.nvml
        if nvml is None:
            return Reading()
        mhz = 1_000_000
        power_mw = self._ask(lambda: nvml.nvmlDeviceGetPowerUsage(self.card))
        reasons = self._ask(lambda: _throttle_mask(nvml, self.card))
        sm = self._ask(lambda: nvml.nvmlDeviceGetClockInfo(self.card, nvml.NVML_CLOCK_SM))
        memory = self._ask(lambda: nvml.nvmlDeviceGetClockInfo(self.card, nvml.NVML_CLOCK_MEM))
        return Reading(
            sm_clock_hz=None if sm is None else sm * mhz,
            memory_clock_hz=None if memory is None else memory * mhz,
            power_w=None if power_mw is None else power_mw / 1000,
            temperature_c=self._ask(lambda: nvml.nvmlDeviceGetTemperature(self.card, nvml.NVML_TEMPERATURE_GPU)),
            throttle_reasons=None
            if reasons is None
            else tuple(name for bit, name in SLOWED_BY.items() if reasons & bit),
        )

    def energy_j(self) -> float | None:
        """The card's energy counter; a MIG slice has none of its own."""
        if self.nvml is None or self.mig:
            return None
        energy_mj = self._ask(lambda: self.nvml.nvmlDeviceGetTotalEnergyConsumption(self.card))
        return None if energy_mj is None else energy_mj / 1000

    def other_processes(self) -> int | None:
        """Processes besides this one; where ids are of another name space, one of those listed is taken as ours."""
        if self.nvml is None:
            return None
        processes = self._ask(lambda: self.nvml.nvmlDeviceGetComputeRunningProcesses(self.handle))
        if processes is None:
            return None
        others = [process for process in processes if process.pid != self._own_pid]
        return len(others) if len(others) < len(processes) else max(0, len(processes) - 1)

    def static(self) -> dict[str, Any]:
        """What does not change during a run."""
        nvml = self.nvml
        if nvml is None:
            return {"available": False, "reason": self.reason}
        limit_mw = self._ask(lambda: nvml.nvmlDeviceGetEnforcedPowerLimit(self.card))
        most_mhz = self._ask(lambda: nvml.nvmlDeviceGetMaxClockInfo(self.card, nvml.NVML_CLOCK_SM))
        return {
            "available": True,
            "reason": None,
            "driver": self._ask(lambda: _text(nvml.nvmlSystemGetDriverVersion())),
            "power_limit_w": None if limit_mw is None else limit_mw / 1000,
            "max_sm_clock_hz": None if most_mhz is None else most_mhz * 1_000_000,
            "mig": self.mig,
            "other_processes": self.other_processes(),
        }

    def _ask(self, query: Callable[[], Value]) -> Value | None:
        """One query; None where NVML doesn't know, doesn't say, or is too old to be asked."""
        try:
            return query()
        except (self.nvml.NVMLError, AttributeError):
            return None

    @contextmanager
    def watching(self) -> Iterator["Watch"]:
        """Readings before, during and after the block; the result is in the watch afterwards."""
        watch = Watch(self)
        watch.start()
        try:
            yield watch
        finally:
            watch.stop()


class Watch:
    """A sampling thread and what it read."""

    def __init__(self, monitor: Monitor) -> None:
        self.conditions = Conditions()
        self._monitor = monitor
        self._during: list[Reading] = []
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def start(self) -> None:
        if self._monitor.nvml is None:
            return
        self._before, self._energy_j = self._monitor.read(), self._monitor.energy_j()
        self._started_s = time.perf_counter()
        self._thread.start()

    def stop(self) -> None:
        monitor = self._monitor
        if monitor.nvml is None:
            return
        self._stopped.set()
        self._thread.join()
        wall_s, energy_j = time.perf_counter() - self._started_s, monitor.energy_j()
        known = energy_j is not None and self._energy_j is not None
        self.conditions = Conditions(
            before=self._before,
            during=tuple(self._during),
            after=monitor.read(),
            energy_j=energy_j - self._energy_j if known else None,  # type: ignore[operator]
            wall_s=wall_s,
            other_processes=monitor.other_processes(),
        )

    def _sample(self) -> None:
        while True:
            self._during.append(self._monitor.read())
            if self._stopped.wait(SAMPLE_INTERVAL_S):
                return


def open_monitor(*, index: int, uuid: str | None = None, nvml: Any = None) -> Monitor:
    """The monitor of CUDA device `index`, found by its UUID where that is known: NVML counts cards by itself.

    nvml  stands in for the module pynvml in tests
    """
    if nvml is None:
        try:
            nvml = import_module("pynvml")
        except ImportError:
            return Monitor(reason="NVML is not read: nvidia-ml-py is not installed")
    try:
        nvml.nvmlInit()
        handle = _handle(nvml, index, uuid)
    except nvml.NVMLError as error:
        return Monitor(reason=f"NVML is not read: {error}")
    mig, card = False, handle
    try:
        mig = bool(nvml.nvmlDeviceIsMigDeviceHandle(handle))
        card = nvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(handle) if mig else handle
    except (nvml.NVMLError, AttributeError):
        pass
    return Monitor(nvml=nvml, handle=handle, card=card, mig=mig)


def _handle(nvml: Any, index: int, uuid: str | None) -> Any:
    if uuid is not None:
        for name in (uuid, f"GPU-{uuid}", f"MIG-{uuid}"):
            try:
                return nvml.nvmlDeviceGetHandleByUUID(name)
            except nvml.NVMLError:
                continue
    return nvml.nvmlDeviceGetHandleByIndex(index)


def _throttle_mask(nvml: Any, card: Any) -> int:
    """The reasons as a mask, under the name that NVML 12 gave the query or the one that it had before."""
    query = getattr(nvml, "nvmlDeviceGetCurrentClocksEventReasons", None)
    return int((query or nvml.nvmlDeviceGetCurrentClocksThrottleReasons)(card))


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
