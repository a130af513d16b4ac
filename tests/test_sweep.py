"""Sweeps: every row equals the estimate of the same workload, and there is one for every combination."""

import csv
import json
import time
from io import StringIO
from itertools import islice, product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvcalc import api
from kvcalc.errors import UsageError
from kvcalc.sweep import SIZES, TIMES, Space, Sweep
from kvcalc.timing.step import DECODE
from kvcalc.workload import Parallelism
from tests.command_line import call

GPU = api.load_gpu("h200-sxm-141gb")
ONE = Parallelism()
MODELS = ("deepseek-v3", "deepseek-v3.2", "gpt-oss-120b", "kimi-linear-48b-a3b", "llama-4-scout", "deepseek-v4-flash")


def swept(name, *, batches=(1,), contexts=(4096,), query_tokens=(1,), mix=ONE, engine="generic", gpu=GPU):
    model = api.load_model(name)
    return Sweep(
        model=model,
        layout_for=lambda query: api.layout_for(
            model, engine=engine, parallelism=mix, gpu=gpu, speculative_tokens=query - 1
        ),
        parallelism=mix,
        space=Space(batches=list(batches), contexts=list(contexts), query_tokens=list(query_tokens)),
        gpu=gpu,
        usable_bytes=int(GPU.memory_reported_bytes * 0.9),
    )


@settings(max_examples=40, deadline=None)
@given(
    name=st.sampled_from(MODELS),
    batch=st.integers(1, 200),
    context=st.integers(8, 300_000),
    query=st.integers(1, 4),
    mix=st.sampled_from([Parallelism(), Parallelism(tp=8), Parallelism(tp=2, dp=4, ep=8), Parallelism(pp=2)]),
    engine=st.sampled_from(["generic", "sglang", "vllm", "vllm@0.13"]),
)
def test_a_row_is_the_estimate_of_its_workload(name, batch, context, query, mix, engine):
    if name == "deepseek-v4-flash":
        engine = "generic"
    sweep = swept(name, batches=[batch], contexts=[context], query_tokens=[query], mix=mix, engine=engine)
    (row,) = sweep.rows()
    found = dict(zip(sweep.columns, row, strict=True))
    result = api.estimate(
        name,
        batch=batch,
        context_tokens=context,
        query_tokens=query,
        gpu=GPU,
        engine=engine,
        memory_utilization=0.9,
        tp=mix.tp,
        pp=mix.pp,
        dp=mix.dp,
        ep=mix.ep,
    )
    work, bound = result.attention(DECODE), result.rooflines[DECODE]
    assert found["stored_bytes"] == result.cache.stored_bytes
    assert found["allocated_bytes"] == result.cache.allocated_bytes
    assert found["per_rank_allocated_bytes"] == result.memory.cache_bytes_per_gpu
    assert found["attention_flop"] == work.flop
    assert found["attention_read_bytes"] == work.read_bytes
    assert found["roofline_s"] == pytest.approx(bound.roofline_s, rel=1e-9)
    assert found["bound"] == bound.bound
    assert found["fits"] == result.memory.fits
    assert found["max_batch"] == result.memory.max_batch


def test_one_row_for_every_combination_in_order():
    sweep = swept("llama-3.1-8b", batches=[1, 2], contexts=[100, 200, 300], query_tokens=[1, 2], gpu=None)
    assert sweep.columns == SIZES
    rows = list(sweep.rows())
    assert len(rows) == sweep.space.rows == 12
    assert [(row[2], row[1], row[0]) for row in rows] == list(product([1, 2], [100, 200, 300], [1, 2]))


def test_rows_are_made_as_they_are_asked_for():
    sweep = swept("llama-3.1-8b", batches=range(1, 1001), contexts=range(1, 1_000_001), gpu=None)
    assert sweep.space.rows == 1_000_000_000
    assert len(list(islice(sweep.rows(), 2_500))) == 2_500


def test_a_hundred_thousand_rows_take_no_time():
    """CPU time of this process, with much room: a million rows take 1 to 2 s on one core."""
    sweep = swept("deepseek-v3", batches=range(1, 1001), contexts=range(1024, 102_401, 1024), mix=Parallelism(tp=8))
    started = time.process_time()
    assert sum(1 for _ in sweep.rows()) == 100_000
    assert time.process_time() - started < 3


def test_more_query_tokens_than_context_is_an_error():
    with pytest.raises(UsageError, match="query_tokens"):
        Space(batches=[1], contexts=[1, 100], query_tokens=[4])


# --- the command ------------------------------------------------------------------------------------------------------

SWEEP = ("estimate", "deepseek-v3", "--batch", "1,8", "--context", "4k:16k:x2", "--gpu", "h200-sxm-141gb", "--tp", "8")


def test_csv_and_json_lines_and_a_table(capsys):
    done = call(capsys, *SWEEP)
    assert done.code == 0, done.err
    rows = list(csv.DictReader(StringIO(done.out)))
    assert [(row["batch"], row["context_tokens"]) for row in rows] == [
        (batch, context) for context in ("4096", "8192", "16384") for batch in ("1", "8")
    ]
    assert list(rows[0]) == [*SIZES, *TIMES]
    lines = [json.loads(line) for line in call(capsys, *SWEEP, "--json").out.splitlines()]
    assert [str(line["stored_bytes"]) for line in lines] == [row["stored_bytes"] for row in rows]
    assert "16,384" in call(capsys, *SWEEP, "--format", "text").out


def test_a_file_is_whole(capsys, tmp_path):
    target = tmp_path / "rows.csv"
    assert call(capsys, *SWEEP, "-o", str(target)).code == 0
    assert len(target.read_text().splitlines()) == 7
    assert list(tmp_path.iterdir()) == [target]


def test_what_must_fit(capsys):
    fits = ("estimate", "llama-3.1-8b", "--gpu", "h200-sxm-141gb", "--fail-if-oom", "--batch")
    assert call(capsys, *fits, "1,2").code == 0
    assert call(capsys, *fits, "1,2000").code == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--batch", "1,2", "--explain"), "--explain"),
        (("--batch", "1:20000:1", "--format", "text"), "too many"),
        (("--batch", "8:1:1"), "empty"),
        (("--batch", "1:8"), "not a range"),
    ],
)
def test_what_a_sweep_refuses(capsys, options, message):
    done = call(capsys, "estimate", "llama-3.1-8b", *options)
    assert done.code == 2
    assert message in done.err
