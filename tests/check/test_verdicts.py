"""What is a regression and what is not."""

import pytest

from kvcalc.check.baseline import render
from kvcalc.check.documents import Document, parse
from kvcalc.check.findings import GONE, IMPROVED, NEW, NOT_COMPARABLE, REGRESSED, SAME, WITHIN_NOISE, Finding, Settings
from kvcalc.check.results import rows_of
from kvcalc.check.verdicts import Check, compare
from tests.check.made import OTHER_GPU, case, profile

SLOWER, FASTER = 1.2e-4, 0.8e-4


def rows(document):
    command = document["schema"].removeprefix("kvcalc.").partition("/")[0]
    return rows_of([Document(source="made", command=command, data=document)])


def check(baseline, current, **settings) -> Check:
    return compare(rows(baseline), rows(current), Settings(**settings))


def time_of(found: Check) -> Finding:
    (finding,) = [each for each in found.findings if each.metric == "median_s"]
    return finding


@pytest.mark.parametrize(
    ("changes", "verdict", "exit_code"),
    [
        ({"median_s": 1e-4}, SAME, 0),
        ({"median_s": SLOWER}, REGRESSED, 1),
        ({"median_s": SLOWER, "spread": 0.6}, WITHIN_NOISE, 0),
        ({"median_s": FASTER}, IMPROVED, 0),
        ({"median_s": FASTER, "spread": 0.6}, WITHIN_NOISE, 0),
        ({"median_s": 1.02e-4}, SAME, 0),
        ({"median_s": SLOWER, "count": 19}, None, 0),
        ({"median_s": SLOWER, "count": 20}, REGRESSED, 1),
        ({"median_s": SLOWER, "suspect": "130% of the measured read bandwidth"}, None, 0),
        ({"median_s": SLOWER, "contended": True}, None, 0),
    ],
    ids=[
        "same",
        "20-percent-tight",
        "20-percent-wide",
        "20-percent-faster",
        "faster-wide",
        "2-percent",
        "19-samples",
        "20-samples",
        "suspect",
        "contended",
    ],
)
def test_a_measured_time(changes, verdict, exit_code):
    found = check(profile(case(seed=1, spread=changes.get("spread", 0.005))), profile(case(seed=2, **changes)))
    finding = time_of(found)
    assert (finding.verdict, found.exit_code) == (verdict, exit_code)
    assert finding.ratio is not None
    if verdict is None:
        assert finding.note


def test_a_slower_machine_is_not_a_slower_kernel():
    found = check(profile(case()), profile(case(median_s=SLOWER, seed=2), bandwidth=4.2e12 / 1.2))
    finding = time_of(found)
    assert finding.verdict == WITHIN_NOISE
    assert found.exit_code == 0
    assert finding.ratio == pytest.approx(1.2, rel=0.02)
    assert finding.fraction_ratio == pytest.approx(1.0, rel=0.02)
    assert "the machine" in finding.note


def test_a_ceiling_that_was_measured_badly_is_not_a_slower_kernel():
    found = check(profile(case()), profile(case(seed=2), bandwidth=4.2e12 * 1.2))
    assert time_of(found).verdict == WITHIN_NOISE
    assert found.exit_code == 0


def test_a_lower_clock_is_not_a_slower_kernel():
    def clock(hz: float) -> dict:
        return {"during": {"sm_clock_hz": {"least": hz, "mean": hz, "most": hz}}}

    before, now = case(telemetry=clock(1.98e9)), case(median_s=SLOWER, seed=2, telemetry=clock(1.65e9))
    finding = time_of(check(profile(before), profile(now)))
    assert finding.verdict == WITHIN_NOISE
    assert "the clock" in finding.note
    now = case(median_s=1.3e-4, seed=2, telemetry=clock(1.95e9))
    assert time_of(check(profile(before), profile(now))).verdict == REGRESSED


def test_a_slower_kernel_on_a_slower_machine_is_one():
    found = check(profile(case()), profile(case(median_s=1.3e-4, seed=2), bandwidth=4.2e12 / 1.1))
    assert time_of(found).verdict == REGRESSED


def test_the_correction_counts_the_cases(monkeypatch):
    """A p value that one case alone would pass on does not do among many."""
    monkeypatch.setattr("kvcalc.check.times.LEAST_SIDES", 1_000)
    borderline = {"spread": 0.045, "median_s": 1.045e-4}
    ids = [f"mla-512+64-h16-decode-b{batch}-n4096-q1-bf16" for batch in range(1, 60)]
    one = check(profile(case(ids[0], spread=0.045, seed=3)), profile(case(ids[0], seed=4, **borderline)))
    many = check(
        profile(case(ids[0], spread=0.045, seed=3), *(case(id) for id in ids[1:])),
        profile(case(ids[0], seed=4, **borderline), *(case(id, seed=2) for id in ids[1:])),
    )
    p_one = time_of(one).p_value
    p_many = next(each.p_value for each in many.findings if each.metric == "median_s")
    assert p_many == pytest.approx(min(1.0, p_one * 59), rel=1e-6)


def test_processes_must_be_on_both_sides_or_on_none():
    several = profile(case(count=60, processes=6))
    assert time_of(check(several, profile(case(median_s=SLOWER, seed=2)))).verdict is None
    slower = profile(case(count=60, processes=6, median_s=SLOWER, seed=2))
    assert time_of(check(several, slower)).verdict == REGRESSED
    two = profile(case(count=60, processes=2, median_s=SLOWER, seed=2))
    finding = time_of(check(profile(case(count=60, processes=2)), two))
    assert finding.verdict is None
    assert "--repeat-process" in finding.note


# --- what can't be compared -------------------------------------------------------------------------------------------


def test_another_gpu_is_refused_and_can_be_allowed():
    before, now = profile(case()), profile(case(median_s=SLOWER, seed=2), gpu=OTHER_GPU, bandwidth=4.2e12 / 1.2)
    refused = check(before, now)
    assert (refused.verdict, refused.exit_code) == (NOT_COMPARABLE, 3)
    assert OTHER_GPU in refused.findings[0].note
    allowed = check(before, now, allow_different_gpu=True)
    assert (time_of(allowed).verdict, allowed.exit_code) == (SAME, 0) or time_of(allowed).verdict == WITHIN_NOISE
    slower = profile(case(median_s=SLOWER, seed=2), gpu=OTHER_GPU)
    assert check(before, slower, allow_different_gpu=True).exit_code == 1


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"kernel": "flashmla"}, "kernel"),
        ({"id": "mla-512+64-h16-decode-b8-n4096-q1-fp16", "dtype": "fp16"}, "dtype"),
        ({"id": "mla-512+64-h16-decode-b8-n4096-q1-bf16-kv-fp8_e4m3", "kv_dtype": "fp8_e4m3"}, "dtype"),
        ({"clock": "events"}, "clock"),
    ],
    ids=["kernel", "dtype", "kv-dtype", "clock"],
)
def test_another_kernel_or_format_is_named(changes, word):
    found = check(profile(case()), profile(case(**changes)))
    assert (found.verdict, found.exit_code) == (NOT_COMPARABLE, 3)
    assert word in found.findings[0].note


def test_another_case_has_nothing_in_common():
    found = check(profile(case()), profile(case("mla-512+64-h16-decode-b8-n8192-q1-bf16")))
    assert found.exit_code == 3
    assert {finding.verdict for finding in found.findings} == {NEW, GONE}
    assert "no row stands on both sides" in found.sentence()


def test_a_vanished_row_is_named_and_fails_only_where_strict():
    other = case("mla-512+64-h16-decode-b8-n8192-q1-bf16")
    before, now = profile(case(), other), profile(case(seed=2))
    found = check(before, now)
    assert found.exit_code == 0
    assert [each.id for each in found.findings if each.verdict == GONE] == [
        "profile/deepseek-v3/tp8/triton-mla/mla-512+64-h16-decode-b8-n8192-q1/bf16"
    ]
    strict = check(before, now, strict=True)
    assert (strict.verdict, strict.exit_code) == (GONE, 1)


def test_a_crash_never_reads_as_a_regression():
    died = {"kernel": "triton-mla", "case": case()["id"], "reason": "died: signal 11", "failed": True}
    only = check(profile(case()), profile(cases=[], skipped=[died]))
    assert (only.verdict, only.exit_code) == (NOT_COMPARABLE, 3)
    assert "signal 11" in only.findings[0].note
    other = case("mla-512+64-h16-decode-b8-n8192-q1-bf16")
    among = check(profile(case(), other), profile(other, skipped=[died]))
    assert not among.count(REGRESSED)
    assert among.exit_code == 3


def test_a_run_that_was_cut_short_is_named():
    rest = {
        "kernel": "triton-mla",
        "case": case()["id"],
        "reason": "not reached: the run was still going",
        "failed": False,
    }
    found = check(profile(case()), profile(cases=[], skipped=[rest], state="interrupted"))
    assert found.exit_code == 3


def test_a_wrong_result_is_a_regression():
    found = check(profile(case()), profile(case(passed=False)))
    assert found.exit_code == 1
    assert [each.metric for each in found.findings if each.verdict == REGRESSED] == ["correctness.passed"]


# --- exact metrics ----------------------------------------------------------------------------------------------------


def estimate(**changes):
    found = {
        "schema": "kvcalc.estimate/1",
        "model": {"name": "m", "parameters": {"total": 1000}},
        "workload": {"batch": 1, "context_tokens": 32768, "query_tokens": 1},
        "precision": {"kv": "bf16", "index": "bf16", "state": "bf16", "weights": "bf16"},
        "parallel": {"tp": 1},
        "engine": {"name": "generic", "block_tokens": 16},
        "cache": {"bytes_per_token": 70272, "stored_bytes": 2302672896},
        "decode": {"time": {"roofline_s": 0.001}},
        "memory": {"fits": True, "max_batch": 21},
        "gpu": {"slug": "h200-sxm-141gb"},
    }
    return found | changes


@pytest.mark.parametrize(
    ("changes", "metric", "verdict", "exit_code"),
    [
        ({}, "cache.bytes_per_token", SAME, 0),
        ({"cache": {"bytes_per_token": 70273, "stored_bytes": 2302672896}}, "cache.bytes_per_token", REGRESSED, 1),
        ({"cache": {"bytes_per_token": 70271, "stored_bytes": 2302672896}}, "cache.bytes_per_token", IMPROVED, 0),
        ({"decode": {"time": {"roofline_s": 0.001 * (1 + 1e-12)}}}, "decode.time.roofline_s", SAME, 0),
        ({"decode": {"time": {"roofline_s": 0.0011}}}, "decode.time.roofline_s", REGRESSED, 1),
        ({"memory": {"fits": False, "max_batch": 21}}, "memory.fits", REGRESSED, 1),
        ({"memory": {"fits": True, "max_batch": 20}}, "memory.max_batch", REGRESSED, 1),
        ({"memory": {"fits": True, "max_batch": 22}}, "memory.max_batch", IMPROVED, 0),
        ({"model": {"name": "m", "parameters": {"total": 1001}}}, "model.parameters.total", REGRESSED, 1),
        ({"gpu": {"slug": "h20-96gb"}}, "*", NOT_COMPARABLE, 3),
        ({"gpu": None}, "*", NOT_COMPARABLE, 3),
    ],
    ids=range(11),
)
def test_an_exact_value(changes, metric, verdict, exit_code):
    found = check(estimate(), estimate(**changes))
    assert {each.metric: each.verdict for each in found.findings}[metric] == verdict
    assert found.exit_code == exit_code


@pytest.mark.parametrize(
    ("limits", "exit_code"),
    [
        ({"cache.bytes_per_token": 0.0}, 1),
        ({"cache.bytes_per_token": 0.05}, 1),
        ({"cache.bytes_per_token": 0.1}, 0),
        ({"cache.*": 0.1}, 0),
        ({"cache.bytes_per_token": 0.0, "*": 1.0}, 1),
        ({"*": 1.0}, 0),
        ({"decode.*": 1.0}, 1),
    ],
    ids=str,
)
def test_allowed_regressions(limits, exit_code):
    now = estimate(cache={"bytes_per_token": 76000, "stored_bytes": 2302672896})
    assert check(estimate(), now, max_regression=limits).exit_code == exit_code


def test_an_allowed_regression_of_a_time():
    before, now = profile(case()), profile(case(median_s=SLOWER, seed=2))
    assert check(before, now, max_regression={"median_s": 0.25}).exit_code == 0
    assert check(before, now, threshold=0.25).exit_code == 0


def test_compare_and_predict_rows():
    row = {"model": "m", "batch": 1, "context_tokens": 4096, "bytes_per_token": 100, "ratio": 1.0}
    first, second = ({"schema": "kvcalc.compare/1", "rows": [row | {"bytes_per_token": n}]} for n in (100, 101))
    assert check(first, second).exit_code == 1
    row = {"attention": "mla", "n_heads": 16, "window": None, "expected_us": 10.0, "latency_us": 9.0, "bound": "memory"}
    first, second = ({"schema": "kvcalc.predict/1", "rows": [row, row | {"expected_us": n}]} for n in (10.0, 11.0))
    found = check(first, second)
    assert [(each.id, each.verdict) for each in found.findings] == [
        ("predict/attention-mla/n_heads-16", SAME),
        ("predict/attention-mla/n_heads-16/#2", REGRESSED),
    ]


def test_predictions_of_another_gpu_are_refused():
    row = {"attention": "mla", "n_heads": 16, "roofline_us": 8.0, "expected_us": 10.0}
    slower = {"roofline_us": 12.0, "expected_us": 15.0}
    first, second = ({"schema": "kvcalc.predict/1", "rows": [each]} for each in (row, row | slower))
    assert check(first, second).exit_code == 3
    assert check(first, {**second, "rows": [row | {"expected_us": 11.0}]}).exit_code == 1
    assert check(first, second, allow_different_gpu=True).exit_code == 1


# --- the baseline file ------------------------------------------------------------------------------------------------


def test_a_baseline_says_the_same_as_the_results_it_is_made_of():
    telemetry = {"during": {"sm_clock_hz": {"mean": 1.98e9}}}
    now = rows(profile(case(telemetry=telemetry), case(kernel="flashmla", count=60, processes=6))) + rows(estimate())
    text = render(now)
    read = rows_of([parse(text, source="baseline.json")])
    assert [row.id for row in read] == sorted(row.id for row in now)
    found = compare(read, now, Settings())
    assert found.verdict == SAME
    assert not found.count(None)
    assert render(read) == text
    assert render(list(reversed(now))) == text


def test_a_baseline_changes_a_line_a_value():
    text, moved = (
        render(rows(estimate(cache={"bytes_per_token": value, "stored_bytes": 5}))) for value in (70272, 70273)
    )
    different = [pair for pair in zip(text.splitlines(), moved.splitlines(), strict=True) if pair[0] != pair[1]]
    assert different == [('        "cache.bytes_per_token": 70272,', '        "cache.bytes_per_token": 70273,')]


def test_a_wrong_result_is_no_baseline():
    with pytest.raises(Exception, match="wrong result"):
        render(rows(profile(case(passed=False))))
