"""A product's time by shape: never below what bytes and FLOPs take, steps at tiles and waves, measured values met."""

from dataclasses import replace

import pytest

from kvcalc import load_gpu
from kvcalc.timing.gemm import RATES, TILES, Product, gemm_rates, gemm_s, grouped_s, machine_family, quantise_s, tiled_s

H200, B200 = load_gpu("h200-sxm-141gb"), load_gpu("b200-sxm-180gb")


def product(rows, inner, columns, size=2.0, groups=1.0):
    return Product(
        name="p", rows=rows, inner=inner, columns=columns, weight_bytes=size, input_bytes=size, groups=groups
    )


def seconds(gpu, weights, peak, *shape, size):
    one = product(*shape, size=size)
    rates = gemm_rates(gpu, weights)
    return gemm_s(one, gpu, rates, gpu.peak(peak)) + quantise_s(one, gpu, rates)


@pytest.mark.parametrize(
    ("gpu", "weights", "peak", "size", "shape", "measured_us"),
    [  # aiconfigurator-core 0.12.0, gemm_perf.parquet: TensorRT-LLM 1.3.0rc20 in bf16, vLLM 0.24.0 in fp8 and nvfp4
        (H200, "bf16", "bf16", 2, (8, 8192, 8192), 35.5),
        (H200, "bf16", "bf16", 2, (8, 16384, 51200), 428.9),
        (H200, "bf16", "bf16", 2, (4096, 8192, 8192), 760.9),
        (H200, "fp8", "fp8", 1, (8, 8192, 8192), 23.4),
        (H200, "fp8", "fp8", 1, (64, 8192, 10240), 32.3),
        (B200, "bf16", "bf16", 2, (8, 16384, 16384), 89.4),
        (B200, "fp8", "fp8", 1, (8, 8192, 8192), 18.9),
        (B200, "nvfp4", "fp4", 0.5625, (8, 8192, 51200), 49.2),
    ],
)
def test_measured_products_are_met_within_their_error(gpu, weights, peak, size, shape, measured_us):
    assert seconds(gpu, weights, peak, *shape, size=size) * 1e6 == pytest.approx(measured_us, rel=0.2)


@pytest.mark.parametrize("slug", ["a100-sxm4-80gb", "h200-sxm-141gb", "b200-sxm-180gb", "l40s", "mi300x"])
@pytest.mark.parametrize("shape", [(1, 4096, 4096), (64, 8192, 1280), (8192, 8192, 28672), (1, 32, 32)])
def test_no_product_is_faster_than_its_roofline(slug, shape):
    gpu, one = load_gpu(slug), product(*shape)
    time = gemm_s(one, gpu, gemm_rates(gpu, "bf16"), gpu.peak("bf16"))
    assert time > one.moved_bytes / gpu.memory_bandwidth_bytes_per_s
    assert time > one.flop / gpu.peak("bf16")


@pytest.mark.parametrize("axis", range(3))
def test_more_of_anything_is_never_faster_by_more_than_a_tiling(axis):
    times = []
    for size in (64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384):
        shape = [512, 4096, 4096]
        shape[axis] = size
        times.append(gemm_s(product(*shape), H200, gemm_rates(H200, "bf16"), H200.peak("bf16")))
    assert times == sorted(times)


def test_rows_are_padded_to_a_tile_and_waves_to_all_sms():
    rates, peak = RATES["9.0"]["bf16"], H200.peak("bf16")
    whole = tiled_s(product(256, 512, 256 * 132), 132, rates, peak)
    assert tiled_s(product(200, 512, 256 * 132), 132, rates, peak) == whole
    ragged = tiled_s(product(256, 512, 256 * 133), 132, rates, peak)  # a tile more is up to a wave more
    assert whole < ragged < 2 * whole


def test_a_large_product_reaches_the_achieved_share_of_the_peak():
    rates = gemm_rates(H200, "bf16")
    one = product(65536, 16384, 16384)
    share = one.flop / gemm_s(one, H200, rates, H200.peak("bf16")) / H200.peak("bf16")
    assert 0.9 * rates.matrix_fraction < share < rates.matrix_fraction
    assert all(2 * rows * columns for rows, columns in TILES)


def test_units_moved_bytes_and_flop_of_a_group():
    one = product(3.5, 100, 200, size=1, groups=4)
    assert one.moved_bytes == 4 * (100 * 200 + 3.5 * (100 + 200 * 2))
    assert one.flop == 2 * 4 * 3.5 * 100 * 200
    assert replace(one, groups=1).flop == one.flop / 4


def test_narrow_formats_take_a_pass_that_quantises_and_wide_ones_none():
    one = product(1024, 8192, 8192, size=1)
    fp8, bf16 = gemm_rates(H200, "fp8"), gemm_rates(H200, "bf16")
    assert quantise_s(one, H200, bf16) == 0
    assert quantise_s(one, H200, fp8) - quantise_s(one, H200, fp8, fused=True) == pytest.approx(fp8.quantise_launch_s)
    assert quantise_s(one, H200, fp8) > 1024 * 8192 * 3 / H200.memory_bandwidth_bytes_per_s


@pytest.mark.parametrize(
    ("slug", "family"),
    [
        ("a10", "8.0"),
        ("l4", "8.9"),
        ("h20-96gb", "9.0"),
        ("gb300-279gb", "10.3"),
        ("rtx-5090", "12.0"),
        ("mi300x", "9.0"),
    ],
)
def test_the_nearest_measured_architecture_stands_in(slug, family):
    assert machine_family(load_gpu(slug)) == family


def test_weights_that_a_gpu_widens_are_bf16_products():
    a100 = load_gpu("a100-sxm4-80gb")
    assert gemm_rates(a100, "fp8") is gemm_rates(a100, "bf16")
    assert gemm_rates(H200, "nvfp4") is gemm_rates(H200, "bf16")
    assert gemm_rates(H200, "int4") is gemm_rates(H200, "bf16")
    assert gemm_rates(H200, "mxfp8") is gemm_rates(H200, "fp8")


def test_experts_take_longer_than_their_products_and_more_for_more_of_them():
    rates, peak = gemm_rates(H200, "bf16"), H200.peak("bf16")
    times = [
        grouped_s([product(4, 2048, 1536, groups=n), product(4, 768, 2048, groups=n)], H200, rates, peak)
        for n in (1, 8, 64, 256)
    ]
    assert times == sorted(times)
    weights = 256 * (2048 * 1536 + 768 * 2048) * 2
    assert times[-1] > weights / H200.memory_bandwidth_bytes_per_s
