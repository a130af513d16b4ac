# ruff: noqa: E402 - the imports below need numpy, which is an extra
"""Fits, intervals and calibration files, on points made from known parameters: no measurement is needed."""

from dataclasses import replace

import pytest

np = pytest.importorskip("numpy")
pytest.importorskip("scipy")

from kvcalc.api import load_calibrations, load_gpu
from kvcalc.errors import SpecError, UsageError
from kvcalc.specs.reader import read_document
from kvcalc.timing.attention_time import PARAMETERS, AttentionCase, machine
from kvcalc.timing.calibrated import BOUNDARIES_BYTES, Calibration, Fit, Interval, choose
from kvcalc.timing.calibration.arrays import rows, take
from kvcalc.timing.calibration.fit import choose_points, fit, leave_one_out, predict_s
from kvcalc.timing.calibration.interval import residual_interval, scale_to
from kvcalc.timing.calibration.store import build, everything, load, regime_errors, to_yaml
from kvcalc.timing.families import FAMILIES, MLA

GPU = load_gpu("h100-sxm5-80gb")
H100 = machine(GPU)
KERNEL = FAMILIES["flashmla"].kernels[MLA]
TRUTH = {
    **KERNEL.values,
    "launch_s": 10e-6,
    "bandwidth_fraction": 0.82,
    "matrix_fraction": 0.5,
    "item_s": 6e-6,
    "query_output_passes": 2.6,
    "cold_s": 7e-6,
}


def grid() -> AttentionCase:
    values = [
        (batch, heads, context)
        for batch in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
        for heads in (8, 16, 32, 64, 128)
        for context in (2, 64, 256, 1024, 4096, 16_384, 65_536, 131_072)
        if batch * context <= 1 << 22
    ]
    batch, heads, context = np.array(values, float).T
    return AttentionCase(
        batch=batch,
        n_heads=heads,
        n_kv_heads=1,
        context_tokens=context,
        query_tokens=1,
        entry_bytes=1152,
        flop_per_pair=2176,
        value_elements=512,
        query_output_elements=1088,
        eight_bit=False,
    )


def measured(noise: float = 0.02, seed: int = 0):
    case = grid()
    clean = predict_s(case, H100, KERNEL, TRUTH)
    return case, clean * np.exp(np.random.default_rng(seed).normal(0, noise, len(clean)))


def test_points_come_from_every_stratum_and_never_twice() -> None:
    case = grid()
    for seed in range(5):
        points = choose_points(case, 24, seed=seed)
        assert len(set(points.tolist())) == 24
        strata = np.searchsorted(BOUNDARIES_BYTES, case.cache_bytes[points], side="right")
        assert np.bincount(strata, minlength=4).min() >= 4
    assert choose_points(case, 24, seed=1).tolist() == choose_points(case, 24, seed=1).tolist()
    few = take(case, np.arange(10))
    assert len(choose_points(few, 24)) == 10


def test_24_points_recover_the_parameters_that_they_tell() -> None:
    case, seconds = measured()
    points = choose_points(case, 24, seed=3)
    found = fit(take(case, points), seconds[points], H100, KERNEL)
    for name, within in (("launch_s", 0.15), ("bandwidth_fraction", 0.04), ("matrix_fraction", 0.2), ("item_s", 0.25)):
        assert found.values[name] == pytest.approx(TRUTH[name], rel=within), name
    unseen = np.setdiff1d(np.arange(rows(case)), points)
    errors = np.abs(predict_s(case, H100, KERNEL, found.values) / seconds - 1)[unseen]
    assert errors.mean() < 0.05
    before = np.abs(predict_s(case, H100, KERNEL, KERNEL.values) / seconds - 1)[unseen]
    assert errors.mean() < before.mean() / 2
    for name, value in found.values.items():
        assert PARAMETERS[name].low <= value <= PARAMETERS[name].high


def test_corrupt_points_do_not_move_a_fit() -> None:
    case, seconds = measured()
    points = choose_points(case, 24, seed=4)
    spoiled = seconds[points].copy()
    spoiled[[5, 17]] *= 6
    found = fit(take(case, points), spoiled, H100, KERNEL)
    errors = np.abs(predict_s(case, H100, KERNEL, found.values) / seconds - 1)
    assert np.median(errors) < 0.08


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda seconds: seconds[:5], "too few"),
        (lambda seconds: -seconds, "not a time"),
        (lambda seconds: seconds / 1000, "times the stated memory bandwidth"),
        (lambda seconds: seconds * 1000, "the fit"),
        (lambda seconds: seconds[::-1] * 1.0, "the points reach"),
    ],
)
def test_implausible_points_are_refused(spoil, says: str) -> None:
    case, seconds = measured()
    points = choose_points(case, 24, seed=5)
    times = spoil(seconds[points])
    with pytest.raises(UsageError, match=says):
        fit(take(case, points[: len(times)]), times, H100, KERNEL)


def test_an_interval_covers_what_it_claims() -> None:
    random = np.random.default_rng(1)
    sizes = 10 ** random.uniform(4, 10, 8000)
    spread = np.where(sizes < 2e8, 0.08, 0.02)
    errors = random.normal(0, spread)
    interval = residual_interval(errors[::2], sizes[::2])
    low, high = np.array([interval.factors(size) for size in sizes[1::2]]).T
    ratio = np.exp(errors[1::2])
    assert np.mean((low <= ratio) & (ratio <= high)) == pytest.approx(0.90, abs=0.02)
    assert interval.high[3] - 1 < 0.5 * (interval.high[1] - 1)


def test_own_points_scale_an_interval_within_limits() -> None:
    shape = Interval(low=(0.9,) * 4, high=(1.1,) * 4)
    bad = [0.2, -0.25, 0.3, 0.22]
    wide, less = scale_to(shape, bad * 6, [1e9] * 24), scale_to(shape, bad, [1e9] * 4)
    assert wide.high[0] > 1.25
    assert 1.1 < less.high[0] < wide.high[0]
    narrow = scale_to(shape, [0.001] * 8, [1e9] * 8)
    assert 1.07 < narrow.high[0] < 1.1
    assert scale_to(shape, [], []) == shape


def test_leave_one_out_errors_are_of_unseen_points() -> None:
    case, seconds = measured()
    points = choose_points(case, 24, seed=6)
    errors = leave_one_out(take(case, points), seconds[points], H100, KERNEL)
    assert errors.shape == (24,)
    assert 0 < np.median(np.abs(errors)) < 0.15


def calibration() -> Calibration:
    case, seconds = measured()
    points = choose_points(case, 24)
    found = fit(take(case, points), seconds[points], H100, KERNEL)
    errors = np.abs(np.expm1(found.log_errors))
    regime = np.searchsorted(BOUNDARIES_BYTES, case.cache_bytes[points], side="right")
    return Calibration(
        gpu="h100-sxm5-80gb",
        family="flashmla",
        engine=None,
        source="made up",
        date="2026-11-24",
        fits=(
            Fit(
                kernel="mla",
                cache="16-bit",
                points=24,
                values=found.values,
                held_out=regime_errors(errors, regime),
                interval=Interval(low=(0.9, 0.9, 0.95, 0.97), high=(1.1, 1.12, 1.05, 1.03)),
                interval_from="made up",
            ),
        ),
    )


def test_a_calibration_survives_its_file(tmp_path) -> None:
    made = calibration()
    path = tmp_path / "mine.yaml"
    path.write_text(to_yaml(made))
    read = load(path)
    assert to_yaml(read) == to_yaml(made)
    assert read.fits[0].interval == made.fits[0].interval
    for name, value in made.fits[0].values.items():
        assert read.fits[0].values[name] == pytest.approx(value, rel=1e-3, abs=1e-12)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("    bandwidth_fraction:", "    bandwith_fraction:", "unknown parameter 'bandwith_fraction'"),
        ("    bandwidth_fraction: ", "    bandwidth_fraction: 3", "its physical range is 0.2 to 1"),
        ("family: flashmla", "family: flashmia", "unknown kernel family"),
        ("- 0.9\n", "- 1.9\n", "must hold the expected time"),
        ("schema: kvcalc.calibration/1", "schema: kvcalc.calibration/2", "schema"),
    ],
)
def test_a_wrong_file_is_refused_at_its_place(old: str, new: str, says: str) -> None:
    text = to_yaml(calibration()).replace(old, new, 1)
    with pytest.raises(SpecError, match=says):
        build(read_document("mine.yaml", text))


def test_packaged_calibrations_are_whole() -> None:
    for each in everything():
        gpu = load_gpu(each.gpu)
        assert each.source
        for found in each.fits:
            assert found.points <= 24
            assert sum(regime.rows for regime in found.held_out) > 100
            kernel = choose(
                found.kernel if found.kernel == "mla" else "gqa",
                shared_heads=found.kernel != "mha",
                eight_bit=found.cache == "8-bit",
                gpu=gpu,
                calibrations=[each],
                family=each.family,
            )
            assert kernel.fitted
            assert kernel.values == found.values


def test_choose_falls_back_to_a_wide_interval_and_says_so() -> None:
    made = calibration()
    other = choose("gqa", shared_heads=True, eight_bit=False, gpu=GPU, calibrations=[made], family="fa3")
    assert not other.fitted
    assert "no calibration" in other.origin
    only = choose(
        "mla", shared_heads=True, eight_bit=False, gpu=replace(GPU, architecture="CDNA3"), calibrations=[made]
    )
    assert only.fitted


def test_an_engine_is_timed_with_the_kernels_that_it_runs():
    gpu = load_gpu("h200-sxm-141gb")
    calibrations = load_calibrations(gpu)
    families = {
        (engine, attention): choose(
            attention, shared_heads=True, eight_bit=False, gpu=gpu, calibrations=calibrations, engine=engine
        ).family.name
        for engine in ("generic", "vllm", "sglang", "trtllm", "llama-cpp")
        for attention in ("mla", "gqa")
    }
    assert families == {
        ("generic", "mla"): "flashmla",
        ("generic", "gqa"): "fa3",
        ("vllm", "mla"): "fa3",
        ("vllm", "gqa"): "fa3-vllm",
        ("sglang", "mla"): "fa3",
        ("sglang", "gqa"): "fa3",
        ("trtllm", "mla"): "flashmla",
        ("trtllm", "gqa"): "trtllm-xqa",
        ("llama-cpp", "mla"): "flashmla",
        ("llama-cpp", "gqa"): "fa3",
    }
    # fa3's MLA kernel has no packaged fit with an 8-bit cache: the usual one stands in
    narrow = choose("mla", shared_heads=True, eight_bit=True, gpu=gpu, calibrations=calibrations, engine="sglang")
    assert (narrow.family.name, narrow.fitted) == ("flashmla", True)
