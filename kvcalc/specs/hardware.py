"""Hardware specs: from YAML, where every number names its source, to a `Gpu`.

One file a GPU in kvcalc/data/hardware, its slug as its name. A file of a user's own has the same shape.
"""

import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from kvcalc.errors import NoDeviceError, Problem, SpecError, UsageError
from kvcalc.hardware import Gpu, Link, Quantity, find_gpu
from kvcalc.names import nearest
from kvcalc.specs.reader import Document, PathInDocument, read_file
from kvcalc.specs.schema import Source, Text
from kvcalc.specs.validation import Spec, json_schema, validate

DATA = Path(__file__).parent.parent / "data" / "hardware"

Slug = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.-]*$", max_length=100)]


class QuantitySpec(Spec):
    """A stated number and who states it. Plain digits: no underscores, no exponent."""

    value: Annotated[int, Field(ge=1, le=1 << 62)]
    """The number, in the unit that the key names."""
    source: Text
    """A key of `sources`."""
    note: Text | None = None
    """What a reader must know of the number; for a derived one, how."""


class PeakSpec(Spec):
    """Dense peaks with the accumulation that frameworks use, in FLOP/s (operations/s for int8 and int4)."""

    fp32: QuantitySpec | None = None
    """Vector FP32."""
    tf32: QuantitySpec | None = None
    """TF32 matrix."""
    bf16: QuantitySpec | None = None
    """BF16 matrix, FP32 accumulation."""
    fp16: QuantitySpec | None = None
    """FP16 matrix, FP32 accumulation; on GeForce half of the FP16-accumulation rate."""
    fp8: QuantitySpec | None = None
    """FP8 matrix, FP32 accumulation."""
    fp6: QuantitySpec | None = None
    """FP6 or MXFP6 matrix."""
    fp4: QuantitySpec | None = None
    """NVFP4 or MXFP4 matrix."""
    int8: QuantitySpec | None = None
    """INT8 matrix."""
    int4: QuantitySpec | None = None
    """INT4 matrix."""


class LinkSpec(Spec):
    """The link between GPUs. Left out where there is only PCIe."""

    type: Text
    """Its name, and what it joins where that is not a whole node."""
    bytes_per_s_per_direction: QuantitySpec
    """What one GPU sends while it receives as much. Vendors print both directions added up."""
    gpus_per_node: QuantitySpec | None = None
    """GPUs in one node on this link; left out where it joins pairs only."""


class HardwareSpec(Spec):
    """One GPU as software sees it."""

    slug: Slug
    """Its name in kvcalc: lower case, with form factor and memory where several share a product name."""
    name: Text
    """The product's name."""
    vendor: Literal["nvidia", "amd", "other"]
    """Who makes it."""
    architecture: Text
    """Hopper, CDNA3, ..."""
    device_names: list[Text] = []
    """Exactly what NVML, torch or ROCm print for it."""
    aliases: list[Text] = []
    """Other exact spellings; none that could mean another GPU."""
    sources: Annotated[dict[str, Source], Field(min_length=1)]
    """Short keys, and what each stands for."""
    memory_reported_bytes: QuantitySpec
    """What the driver reports (nvidia-smi's total, torch's total_memory), not the capacity on the box."""
    memory_bandwidth_bytes_per_s: QuantitySpec
    """Printed peak."""
    peak_flop_per_s: PeakSpec
    """Dense peaks. Half of a figure with 2:4 sparsity, except where the vendor says otherwise."""
    l2_cache_bytes: QuantitySpec | None = None
    """L2, all dies together."""
    last_level_cache_bytes: QuantitySpec | None = None
    """A cache between L2 and memory (Infinity Cache)."""
    num_sms: QuantitySpec | None = None
    """Streaming multiprocessors; compute units on AMD."""
    shared_memory_per_block_bytes: QuantitySpec | None = None
    """The most that one thread block can have (LDS on AMD)."""
    boost_clock_hz: QuantitySpec | None = None
    """Maximum boost clock, not the one that printed peaks are computed at."""
    tdp_watts: QuantitySpec | None = None
    """Board power limit."""
    compute_capability: Annotated[str, Field(pattern=r"^\d+\.\d$")] | None = None
    """CUDA compute capability, in quotes: "9.0"."""
    gfx_arch: Annotated[str, Field(pattern=r"^gfx[0-9a-f]+$")] | None = None
    """ROCm target: gfx942."""
    link: LinkSpec | None = None
    """The link between GPUs."""
    pcie_bytes_per_s_per_direction: QuantitySpec | None = None
    """PCIe line rate after encoding."""


def load_gpu(name: str) -> Gpu:
    """The GPU of that slug, alias or device name; of a YAML file, where `name` is a path; of this machine, for `auto`.

    Raises UsageError for a name that is unknown or ambiguous or a file that can't be read, SpecError for a wrong file,
    NoDeviceError where `auto` finds no GPU.
    """
    if name == "auto":
        return _this_machine()
    if name.lower().endswith((".yaml", ".yml", ".json")) or os.sep in name:
        return read_gpu(Path(name))
    slug = name.strip().lower()
    if slug in gpu_names():
        return _packaged(slug)
    return find_gpu(name, load_gpus())


@cache
def load_gpus() -> tuple[Gpu, ...]:
    """All GPUs in the package, by slug."""
    return tuple(_packaged(slug) for slug in gpu_names())


@cache
def gpu_names() -> tuple[str, ...]:
    """The slugs of all GPUs in the package."""
    return tuple(sorted(path.stem for path in DATA.glob("*.yaml")))


@cache
def _packaged(slug: str) -> Gpu:
    return read_gpu(DATA / f"{slug}.yaml")


def read_gpu(path: Path) -> Gpu:
    """The GPU that a file describes. Raises UsageError, or SpecError with every problem and its place."""
    return build_gpu(read_file(path))


def build_gpu(document: Document) -> Gpu:
    """The GPU that a document describes. Raises SpecError with every problem and its place."""
    spec = validate(document, HardwareSpec)
    problems = list(_problems(document, spec))
    if problems:
        raise SpecError(problems)
    value = {path[0]: quantity.value for path, quantity in _quantities(spec) if len(path) == 1}
    return Gpu(
        slug=spec.slug,
        name=spec.name,
        vendor=spec.vendor,
        architecture=spec.architecture,
        device_names=tuple(spec.device_names),
        aliases=tuple(spec.aliases),
        peak_flop_per_s={str(path[1]): peak.value for path, peak in _quantities(spec.peak_flop_per_s, ("peak",))},
        compute_capability=spec.compute_capability,
        gfx_arch=spec.gfx_arch,
        link=_link(spec.link),
        stated={".".join(path): _ground(spec, quantity) for path, quantity in _quantities(spec)},
        **value,
    )


def _quantities(spec: Spec, prefix: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], QuantitySpec]]:
    """Every stated number with its path."""
    for key, value in spec:
        if isinstance(value, QuantitySpec):
            yield (*prefix, key), value
        elif isinstance(value, Spec):
            yield from _quantities(value, (*prefix, key))


def _problems(document: Document, spec: HardwareSpec) -> Iterator[Problem]:
    for path, quantity in _quantities(spec):
        if quantity.source not in spec.sources:
            at: PathInDocument = (*path, "source")
            yield document.problem(at, f"unknown source '{quantity.source}'", nearest(quantity.source, spec.sources))
    if not list(_quantities(spec.peak_flop_per_s)):
        yield document.problem(("peak_flop_per_s",), "no peak is stated", "state bf16 at least")


def _ground(spec: HardwareSpec, quantity: QuantitySpec) -> Quantity:
    source = spec.sources[quantity.source]
    return Quantity(value=quantity.value, source=source.cite, date=source.date.isoformat(), note=quantity.note)


def _link(spec: LinkSpec | None) -> Link | None:
    if spec is None:
        return None
    return Link(
        type=spec.type,
        bytes_per_s_per_direction=spec.bytes_per_s_per_direction.value,
        gpus_per_node=spec.gpus_per_node.value if spec.gpus_per_node else None,
    )


def _this_machine() -> Gpu:
    names = _nvml_names()
    if len(names) > 1:
        raise UsageError(f"this machine has different GPUs: {', '.join(names)}", hint="name one instead of auto")
    try:
        return find_gpu(names[0], load_gpus())
    except UsageError:
        raise UsageError(
            f"this machine has the GPU {names[0]!r}, which kvcalc has no data on",
            hint="describe it in a file like those of kvcalc/data/hardware and pass that: ./my-gpu.yaml",
        ) from None


def _nvml_names() -> list[str]:
    """The distinct names of this machine's NVIDIA GPUs, as NVML prints them."""
    instead = "or name the GPU instead of auto, e.g. h100-sxm5-80gb"
    try:
        import pynvml
    except ImportError:
        raise NoDeviceError(
            "'auto' asks the NVIDIA driver through pynvml, which is not installed",
            hint=f"pip install 'kvcalc[profile]' (or nvidia-ml-py), {instead}",
        ) from None
    try:
        pynvml.nvmlInit()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
        names = [pynvml.nvmlDeviceGetName(handle) for handle in handles]
    except pynvml.NVMLError as error:
        raise NoDeviceError(
            f"'auto' finds no NVIDIA GPU on this machine: {error}", hint=f"install NVIDIA's driver, {instead}"
        ) from None
    if not names:
        raise NoDeviceError("'auto' finds no NVIDIA GPU on this machine", hint=instead.removeprefix("or "))
    # nvidia-ml-py before 11.5 prints bytes
    return list(dict.fromkeys(name.decode() if isinstance(name, bytes) else name for name in names))


def hardware_schema() -> dict[str, Any]:
    """The JSON Schema of a hardware YAML, for editors."""
    return json_schema(HardwareSpec, "kvcalc hardware spec")
