"""What machine this is: device, driver, libraries, CPU, caches, memory. No host name, no user, no path.

A number means something beside the machine that gave it only, so all of this goes into every result. What can't be
found out is None.
"""

import os
import platform
from collections.abc import Collection
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from kvcalc.profiling.measure.clock import usable_cpus

PACKAGES = ("torch", "triton", "numpy", "nvidia-ml-py", "flashinfer-python", "sgl-flash-mla", "nvidia-cudnn-cu13")
SYSTEM_CPUS = Path("/sys/devices/system/cpu")
FALLBACK_CACHE_BYTES = 32 << 20
"""Taken where a CPU does not tell its caches: a usual last-level cache."""

_CACHE_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def environment(device: torch.device, telemetry: dict[str, Any]) -> dict[str, Any]:
    """The `environment` of a result. `telemetry` is what NVML says of the device for good."""
    return {
        "device": _device(device, telemetry),
        "cpu": cpu(),
        "memory_bytes": memory_bytes("MemTotal"),
        "os": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
        "cuda": torch.version.cuda,
    }


def version(package: str) -> str | None:
    """The installed version of a package; None where it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _device(device: torch.device, telemetry: dict[str, Any]) -> dict[str, Any]:
    if device.type != "cuda":
        model = cpu_model()
        return {
            "kind": "cpu",
            "name": model,
            "index": None,
            "threads": torch.get_num_threads(),
            "last_level_cache_bytes": last_level_cache_bytes(),
            "memory_bytes": memory_bytes("MemTotal"),
        }
    properties = torch.cuda.get_device_properties(device)
    return {
        "kind": "cuda",
        "name": properties.name,
        "index": device.index or 0,
        "compute_capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "last_level_cache_bytes": int(properties.L2_cache_size),
        "memory_bytes": int(properties.total_memory),
        "nvml": telemetry,
    }


def cpu() -> dict[str, Any]:
    """The processor and how it runs."""
    return {
        "model": cpu_model(),
        "logical_cpus": len(usable_cpus()),
        "physical_cores": physical_cores(),
        "capability": _capability(),
        "governor": _read(SYSTEM_CPUS / "cpu0/cpufreq/scaling_governor"),
        "caches": caches(),
    }


def cpu_model(info: Path = Path("/proc/cpuinfo")) -> str:
    for line in (_read(info) or "").splitlines():
        name, _, value = line.partition(":")
        if name.strip() in ("model name", "Processor", "cpu model") and value.strip():
            return value.strip()
    return platform.processor() or platform.machine()


def _capability() -> str | None:
    """The vector instructions that torch uses: `AVX2`, `AVX512`, `DEFAULT`."""
    try:
        return str(torch.backends.cpu.get_cpu_capability())
    except AttributeError:
        return None


def physical_cores(system: Path = SYSTEM_CPUS, cpus: Collection[int] | None = None) -> int:
    """Cores that this process may use, two threads of one core counted once; no more than a container's CPU quota."""
    usable = usable_cpus() if cpus is None else cpus
    cores = set()
    for each in usable:
        topology = system / f"cpu{each}/topology"
        package, core = _read(topology / "physical_package_id"), _read(topology / "core_id")
        cores.add((package, core) if core is not None else ("cpu", str(each)))
    return max(1, min(len(cores), _quota_cpus()))


def _quota_cpus(cpu_max: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """Whole CPUs of the control group's quota; as many as there are where there is none."""
    quota, _, period = (_read(cpu_max) or "max").partition(" ")
    if quota.isdigit() and period.isdigit():
        return max(1, int(quota) // int(period))
    return os.cpu_count() or 1


def caches(system: Path = SYSTEM_CPUS) -> dict[str, int]:
    """Bytes of each cache that cpu0 sees: `{"L1 data": 49152, "L2": 1048576, "L3": 33554432}`."""
    found = {}
    for index in sorted((system / "cpu0/cache").glob("index*")):
        level, kind, size = (_read(index / name) for name in ("level", "type", "size"))
        if level is None or size is None or kind == "Instruction":
            continue
        name = f"L{level}" + (" data" if kind == "Data" else "")
        found[name] = int(size[:-1]) * _CACHE_UNITS[size[-1]] if size[-1] in _CACHE_UNITS else int(size)
    return found


def last_level_cache_bytes(system: Path = SYSTEM_CPUS, cpus: Collection[int] | None = None) -> int:
    """All last-level caches that the usable CPUs have together; a usual size where the machine does not tell."""
    usable = usable_cpus() if cpus is None else cpus
    found: dict[tuple[str, str], int] = {}
    last = 0
    for each in usable:
        for index in (system / f"cpu{each}/cache").glob("index*"):
            level, size, shared = (_read(index / name) for name in ("level", "size", "shared_cpu_list"))
            if level is None or size is None or size[-1] not in _CACHE_UNITS:
                continue
            last = max(last, int(level))
            found[level, shared or str(each)] = int(size[:-1]) * _CACHE_UNITS[size[-1]]
    return sum(size for (level, _), size in found.items() if int(level) == last) or FALLBACK_CACHE_BYTES


def memory_bytes(field: str, info: Path = Path("/proc/meminfo")) -> int | None:
    """`MemTotal` or `MemAvailable` of this machine."""
    for line in (_read(info) or "").splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0]) << 10
    return None


def free_bytes(device: torch.device) -> int:
    """Memory that a case may take on the device: what is free, on a CPU within the control group's limit."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0]) + _cached_bytes(device)
    free = memory_bytes("MemAvailable") or 1 << 30
    limit, used = _read(Path("/sys/fs/cgroup/memory.max")), _read(Path("/sys/fs/cgroup/memory.current"))
    if limit and limit.isdigit() and used and used.isdigit():
        free = min(free, int(limit) - int(used))
    return max(0, free)


def _cached_bytes(device: torch.device) -> int:
    """What torch holds of the device and uses for nothing."""
    return int(torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None
