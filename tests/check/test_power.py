"""A small run of benchmarks/check_power.py, whose 2,000 comparisons are in benchmarks/results/check_power.md."""

import sys

from tests.command_line import ROOT

sys.path.insert(0, str(ROOT))

from benchmarks.check_power import NOISES, simulate


def test_few_false_alarms_and_most_slowdowns_found():
    """Drift, outliers and bimodal clocks: 60 runs of 12 cases, in which one false alarm would be over 1 %."""
    rates = simulate(NOISES[3], runs=60)
    assert rates.false_alarms == 0
    assert rates.found_other_cases == 0
    assert rates.found >= 0.9


def test_the_page_says_what_was_asked_for():
    """1 % or less in whole runs, and a slowdown of 5 % found 95 % of the time, at 30 samples and 2 % noise."""
    page = (ROOT / "benchmarks" / "results" / "check_power.md").read_text()
    rows = [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("| ")]
    found = {(name, slower): (alarms, hits) for name, slower, alarms, hits in rows[1:]}
    for noise in NOISES[:4]:
        alarms, hits = (float(share.strip("%")) for share in found[noise.name, "5%"])
        assert alarms <= 1
        assert hits >= 95
