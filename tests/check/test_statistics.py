"""The test on samples: its pieces against published values, and what it must not be taken in by."""

import math
import random

import pytest

from kvcalc.check.statistics import (
    correlation_time,
    difference,
    holm,
    shared_correlation_time,
    student_above,
    trimmed_means,
)


@pytest.mark.parametrize(
    ("t", "freedom", "p"),
    [  # critical values of Student's distribution as tables print them
        (12.706, 1, 0.025),
        (2.920, 2, 0.05),
        (2.228, 10, 0.025),
        (2.764, 10, 0.01),
        (3.646, 30, 0.0005),
        (1.980, 120, 0.025),
        (0.0, 7, 0.5),
        (-2.228, 10, 0.975),
    ],
)
def test_students_distribution(t, freedom, p):
    assert student_above(t, freedom) == pytest.approx(p, rel=2e-3)


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_yuens_trimmed_mean_and_variance_by_hand():
    values = [2.0, 9.0, 1.0, 3.0, 100.0]  # 1 cut on each side: 2, 3, 9; winsorised 2, 2, 3, 9, 9
    (mean,) = trimmed_means(values)
    assert mean.value == pytest.approx(14 / 3)
    spread = sum((value - 5) ** 2 for value in (2, 2, 3, 9, 9))
    assert mean.variance >= spread / (3 * 2) - 1e-12


def test_outliers_do_not_decide():
    rng = random.Random(4)
    base = [rng.lognormvariate(0, 0.01) for _ in range(30)]
    now = [rng.lognormvariate(0, 0.01) for _ in range(30)]
    clean = difference(base, now)
    now[3], now[17] = 40.0, 90.0
    found = difference(base, now)
    assert found.mean == pytest.approx(clean.mean, abs=0.002)
    assert found.error < 2 * clean.error


def test_independent_samples_are_not_widened_and_clinging_ones_are():
    rng = random.Random(9)
    independent = [[rng.gauss(0, 1) for _ in range(400)] for _ in range(2)]
    assert correlation_time(independent) == pytest.approx(1, abs=0.3)
    clinging = [[value for value in (rng.gauss(0, 1) for _ in range(40)) for _ in range(10)] for _ in range(2)]
    assert 5 < correlation_time(clinging) < 20
    assert correlation_time([[0.0] * 30, [0.0] * 30]) == 1


def test_unequal_variances_keep_the_level():
    """One side ten times as wide: five in a hundred p values are below 0.05, give or take."""
    rng = random.Random(2)
    below = 0
    for _ in range(1000):
        base = [rng.lognormvariate(0, 0.01) for _ in range(30)]
        now = [rng.lognormvariate(0, 0.1) for _ in range(20)]
        below += difference(base, now).p_above() < 0.05
    assert 20 <= below <= 70


def test_several_processes_make_the_process_the_unit():
    """Within each process all is still, but the processes differ: 150 samples a side are no evidence."""
    rng = random.Random(7)
    sides = []
    for shift in (0.0, 0.04):
        offsets = [rng.gauss(shift, 0.05) for _ in range(5)]
        sides.append([math.exp(offset + rng.gauss(0, 0.001)) for offset in offsets for _ in range(30)])
    processes = [index // 30 for index in range(150)]
    as_one = difference(*sides)
    as_five = difference(*sides, baseline_processes=processes, current_processes=processes)
    assert as_five.p_above() > 0.01
    assert as_five.freedom <= 8
    assert as_five.error > 2 * as_one.error or as_five.p_above() > as_one.p_above()


def test_constant_samples():
    assert difference([1.0] * 30, [1.0] * 30).p_above() == 1
    assert difference([1.0] * 30, [2.0] * 30).p_above() == 0


def test_other_cases_tell_what_a_clock_that_stayed_can_not():
    """Two still sides 4 % apart are strong evidence alone, and less where other cases saw a clock jump."""
    rng = random.Random(3)
    still = [[math.exp(shift + rng.gauss(0, 0.01)) for _ in range(30)] for shift in (0.0, 0.04)]
    jumping = [[math.exp(0.04 * (index // 8 % 2) + rng.gauss(0, 0.01)) for index in range(30)] for _ in range(8)]
    shared = shared_correlation_time([*still, *jumping])
    assert shared > 2
    alone, among = difference(*still), difference(*still, shared_time=shared)
    assert among.mean == alone.mean
    assert among.error > 1.3 * alone.error
    assert among.p_above() > 10 * alone.p_above()
