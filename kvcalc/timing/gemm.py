"""Time of a matrix product by its shape: tiles over SMs in waves, bytes at an achieved bandwidth, a launch.

    t = launch + norm_2.5(bytes / (b BW), min over tiles and splits of waves x max(load, multiply) + split)
    waves     ceil(groups x ceil(rows / tile rows) x ceil(columns / tile columns) x splits / SMs)
    load      a tile's two operands over its part of the inner width, at what one SM streams
    multiply  2 x tile rows x tile columns x its part of the inner width, at the achieved share of an SM's peak
    split     reduction of partial sums, where the inner width is cut over SMs

So rows are padded to a tile, the last wave may be ragged, and a narrow product streams no faster than its few SMs do
(wave quantisation: NVIDIA, Matrix Multiplication Background User's Guide, sec. 4). Grouped products (experts, heads)
share waves. A product of 8-bit or narrower numbers is preceded by a pass that quantises its rows, a kernel of its own
unless an engine fuses it with the one before.

`RATES` holds six numbers for each GPU architecture and number format. They come of `benchmarks/gemm.py --fit`, on 2,500
rows for each of aiconfigurator-core 0.12.0's GEMM tables (Apache-2.0); benchmarks/results/gemm.md has the error on the
others.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import ceil, inf

from kvcalc.hardware import Gpu

SOURCE = "fit on aiconfigurator-core 0.12.0 gemm tables, benchmarks/results/gemm.md"
GROUPED_SOURCE = "fit on aiconfigurator-core 0.12.0 moe tables, benchmarks/results/experts.md"
TILES = ((64, 64), (64, 128), (128, 128), (128, 256), (256, 256))
SPLITS = (1, 2, 4, 8, 16)
NORM = 2.5
OUTPUT_BYTES = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class GemmRates:
    """What products achieve on an architecture in one format.

    launch_s             from one kernel of a CUDA graph to the next
    split_s              partial sums of a split inner width added up
    bandwidth_fraction   of the stated bandwidth
    sm_bytes_per_s       what one SM streams
    matrix_fraction      of the stated peak
    quantise_launch_s    the pass that quantises the rows, and its share of the bandwidth; 0 and 1 where there is none
    """

    launch_s: float
    split_s: float
    bandwidth_fraction: float
    sm_bytes_per_s: float
    matrix_fraction: float
    quantise_launch_s: float = 0.0
    quantise_fraction: float = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Product:
    """`groups` products of [rows, inner] with [inner, columns], launched at once.

    rows            of each group, a mean where it is not whole
    weight_bytes    of an element of [inner, columns], scales included
    input_bytes     of an element of [rows, inner]
    """

    name: str
    rows: float
    inner: int
    columns: int
    weight_bytes: float
    input_bytes: float
    groups: float = 1.0

    @property
    def moved_bytes(self) -> float:
        """Both operands read and the result written, once each."""
        weights = self.inner * self.columns * self.weight_bytes
        rows = self.rows * (self.inner * self.input_bytes + self.columns * OUTPUT_BYTES)
        return self.groups * (weights + rows)

    @property
    def flop(self) -> float:
        return 2 * self.groups * self.rows * self.inner * self.columns

    @property
    def shape(self) -> str:
        """`o_proj 64 x 8,192 x 1,024`: rows, inner width, columns."""
        return f"{self.name} {self.rows:,.4g} x {self.inner:,} x {self.columns:,}"


def gemm_s(product: Product, gpu: Gpu, rates: GemmRates, peak: int) -> float:
    """Seconds of one launch. `peak`: FLOP/s of the format that it multiplies in."""
    memory = product.moved_bytes / (rates.bandwidth_fraction * gpu.memory_bandwidth_bytes_per_s)
    tiles = tiled_s(product, gpu.num_sms or 1, rates, peak)
    return float(rates.launch_s + (memory**NORM + tiles**NORM) ** (1 / NORM))


def quantise_s(product: Product, gpu: Gpu, rates: GemmRates, *, fused: bool = False) -> float:
    """Seconds of the pass that quantises the rows, 0 for wide formats. `fused` with a kernel that runs anyway."""
    if not rates.quantise_launch_s:
        return 0.0
    moved = product.groups * product.rows * product.inner * (2 + product.input_bytes)
    pass_s = moved / (rates.quantise_fraction * gpu.memory_bandwidth_bytes_per_s)
    return pass_s if fused else rates.quantise_launch_s + pass_s


@lru_cache(maxsize=8192)
def tiled_s(product: Product, sms: int, rates: GemmRates, peak: int) -> float:
    """Seconds of the tiles on SMs, in the best of the tilings."""
    rows, columns, inner = product.rows, product.columns, product.inner
    per_sm = rates.matrix_fraction * peak / sms
    depths = [(splits, ceil(inner / splits), rates.split_s if splits > 1 else 0.0) for splits in SPLITS]
    best = inf
    for tile_rows, tile_columns in TILES:
        tiles = product.groups * ceil(rows / tile_rows) * ceil(columns / tile_columns)
        row_bytes = min(rows, tile_rows) * product.input_bytes
        load = (row_bytes + min(columns, tile_columns) * product.weight_bytes) / rates.sm_bytes_per_s
        deep = max(load, 2 * tile_rows * tile_columns / per_sm)
        for splits, depth, reduction in depths:
            seconds = ceil(tiles * splits / sms) * depth * deep + reduction
            if seconds < best:
                best = seconds
    return best


def grouped_s(products: Sequence[Product], gpu: Gpu, rates: GemmRates, peak: int) -> float:
    """Seconds of a layer's experts: grouped products, what routes tokens to them and what passes between them.

    Rows are gathered for the experts, activated between two products, and summed: each input and output of a product
    is written and read once more.
    """
    around_s, share = GROUPED[machine_family(gpu)]
    passed = sum(2 * OUTPUT_BYTES * each.groups * each.rows * (each.inner + each.columns) for each in products)
    passes_s = passed / (rates.bandwidth_fraction * gpu.memory_bandwidth_bytes_per_s)
    return around_s + passes_s + share * sum(gemm_s(each, gpu, rates, peak) - rates.launch_s for each in products)


def gemm_rates(gpu: Gpu, weights: str) -> GemmRates:
    """What products with weights of that format achieve on a GPU, or on the nearest kind that was measured.

    Formats that a GPU has no units for, and weights that are widened before they are multiplied, are bf16 products.
    """
    rates = RATES[machine_family(gpu)]
    name = MEASURED_AS.get(weights, weights)
    needs = "fp4" if name == "nvfp4" else "fp8"
    return rates[name] if name in rates and needs in gpu.peak_flop_per_s else rates["bf16"]


def machine_family(gpu: Gpu) -> str:
    """The compute capability that a GPU's products are timed as."""
    known = gpu.compute_capability or OTHER
    return known if known in RATES else FAMILY.get(known.partition(".")[0], OTHER)


def _rates(*numbers: float) -> GemmRates:
    """Of us, us, a share, GB/s, a share; and us and a share for the pass that quantises."""
    launch, split, bandwidth, sm, matrix, *quantise = numbers
    return GemmRates(
        launch_s=launch * 1e-6,
        split_s=split * 1e-6,
        bandwidth_fraction=bandwidth,
        sm_bytes_per_s=sm * 1e9,
        matrix_fraction=matrix,
        quantise_launch_s=quantise[0] * 1e-6 if quantise else 0.0,
        quantise_fraction=quantise[1] if quantise else 1.0,
    )


GROUPED = {
    "8.0": (43e-6, 1.33),
    "8.9": (9e-6, 0.976),
    "9.0": (42e-6, 0.986),
    "10.0": (29e-6, 1.04),
    "10.3": (31e-6, 0.897),
    "12.0": (27e-6, 0.859),
}
"""Of a layer's experts: s around the products, and how much longer grouped products take than dense ones.

Fitted by `benchmarks/experts.py --fit` on a fifth of rows drawn of aiconfigurator-core 0.12.0's MoE tables;
benchmarks/results/experts.md has the error on the others.
"""

OTHER = "9.0"
FAMILY = {"8": "8.0", "10": "10.0", "12": "12.0"}
MEASURED_AS = {"mxfp8": "fp8", "int8": "fp8"}
RATES: dict[str, dict[str, GemmRates]] = {
    "8.0": {
        "bf16": _rates(3.83, 4.81, 0.766, 48.2, 0.795),
    },
    "8.9": {
        "bf16": _rates(1.5, 0.5, 0.813, 582, 0.589),
        "fp8": _rates(1.5, 1.91, 0.742, 105, 0.498, 0.5, 0.904),
        "fp8_block": _rates(1.5, 0.5, 0.833, 26.8, 0.319, 0.5, 1),
    },
    "9.0": {
        "bf16": _rates(2.97, 3.85, 0.864, 189, 0.809),
        "fp8": _rates(2.97, 5.04, 0.859, 46.6, 0.651, 0.895, 0.418),
        "fp8_block": _rates(2.97, 8.94, 0.882, 54.9, 0.652, 1.07, 0.528),
    },
    "10.0": {
        "bf16": _rates(2.85, 5.22, 0.815, 357, 0.699),
        "fp8": _rates(2.85, 3.72, 0.752, 82.2, 0.791, 1.92, 0.244),
        "fp8_block": _rates(2.85, 28.6, 0.862, 168, 0.681, 3.49, 1),
        "nvfp4": _rates(2.85, 2.65, 0.658, 72.1, 1.05, 3.67, 0.579),
    },
    "10.3": {
        "bf16": _rates(2.86, 4.21, 0.813, 485, 0.774),
        "fp8": _rates(2.86, 5.41, 0.729, 124, 0.72, 2.17, 0.257),
        "fp8_block": _rates(2.86, 4.4, 0.809, 154, 0.744, 2.89, 0.951),
        "nvfp4": _rates(2.86, 3.75, 0.609, 83.6, 0.536, 3.51, 0.586),
    },
    "12.0": {
        "bf16": _rates(1.5, 2.97, 0.933, 395, 0.806),
        "fp8": _rates(1.5, 30, 0.899, 559, 0.811, 3.5, 0.752),
        "fp8_block": _rates(1.5, 30, 0.999, 32.8, 0.626, 4.29, 0.536),
        "nvfp4": _rates(1.5, 30, 0.703, 599, 0.755, 6.34, 1),
    },
}
"""By compute capability and format of the weights."""
