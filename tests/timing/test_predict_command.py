"""`kvcalc predict` and `kvcalc calibrate`: the CSV contract, errors that name the row, and a whole round trip."""

import csv
import io
import subprocess
import sys

import pytest

np = pytest.importorskip("numpy")
pytest.importorskip("scipy")

GPU = "h100-sxm5-80gb"
HEADER = (
    "attention,n_heads,n_kv_heads,head_dim,kv_lora_rank,qk_rope_head_dim,batch,context_tokens,query_tokens,kv_dtype,"
    "window_tokens"
)
ADDED = ["roofline_us", "expected_us", "low_us", "high_us", "bound"]
ROWS = [
    "mla,128,,,512,64,8,32768,1,bf16,",
    "mla,16,1,,512,64,1,131072,1,fp8,0",
    "gqa,64,8,128,,,16,8192,1,bf16,",
    "gqa,8,8,128,,,16,8192,1,bf16,",
    "gqa,8,1,128,,,16,8192,1,bf16,",
    "mha,32,32,128,,,4,1024,1,bf16,",
    "mqa,8,,64,,,4,1024,2,bf16,",
    "gqa,64,8,64,,,16,8192,1,bf16,128",
    "mla,16,,,512,64,4,4096,1,fp8_ds_mla,",
]


def kvcalc(*arguments: str, stdin: str | None = None) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "kvcalc", *arguments], input=stdin, capture_output=True, text=True, check=False
    )


def predict(text: str, *options: str) -> list[dict[str, str]]:
    done = kvcalc("predict", "-", "--gpu", GPU, *options, stdin=text)
    assert done.returncode == 0, done.stderr
    return list(csv.DictReader(io.StringIO(done.stdout)))


def test_a_row_is_repeated_with_its_prediction() -> None:
    rows = predict("\n".join([HEADER, *ROWS]))
    assert len(rows) == len(ROWS)
    assert list(rows[0]) == HEADER.split(",") + ADDED
    for row, text in zip(rows, ROWS, strict=True):
        assert list(row.values())[: len(HEADER.split(","))] == text.split(",")
        low, expected, high = (float(row[name]) for name in ("low_us", "expected_us", "high_us"))
        assert 0 < low < expected < high
        assert float(row["roofline_us"]) > 0
        assert row["bound"] in ("latency", "memory", "compute")
    assert float(rows[7]["expected_us"]) < 0.5 * float(rows[2]["expected_us"])  # a window of 128 tokens


def test_gqa_with_one_or_all_kv_heads_is_mqa_and_mha() -> None:
    spelled = predict(
        "attention,n_heads,n_kv_heads,head_dim,batch,context_tokens\n"
        "gqa,8,8,128,4,4096\nmha,8,,128,4,4096\ngqa,8,1,128,4,4096\nmqa,8,,128,4,4096\n"
    )
    times = [row["expected_us"] for row in spelled]
    assert times[0] == times[1]
    assert times[2] == times[3]


def test_columns_in_any_order_and_quoted() -> None:
    plain = predict("batch,context_tokens,attention,n_heads,kv_lora_rank,qk_rope_head_dim\n8,4096,mla,64,512,64\n")
    quoted = predict(
        '"batch","context_tokens",attention,n_heads,kv_lora_rank,qk_rope_head_dim\n"8",4096,"mla",64,512,64\n'
    )
    assert plain[0]["expected_us"] == quoted[0]["expected_us"]


def test_agrees_with_the_scalar_model() -> None:
    from kvcalc.api import load_calibrations, load_gpu
    from kvcalc.timing.attention_time import AttentionCase
    from kvcalc.timing.calibrated import choose

    gpu = load_gpu(GPU)
    kernel = choose("mla", shared_heads=True, eight_bit=False, gpu=gpu, calibrations=load_calibrations(gpu))
    case = AttentionCase(
        batch=8,
        n_heads=128,
        n_kv_heads=1,
        context_tokens=32768,
        query_tokens=1,
        entry_bytes=1152,
        flop_per_pair=2176,
        value_elements=512,
        query_output_elements=1088,
    )
    row = predict(f"{HEADER}\n{ROWS[0]}\n")[0]
    assert float(row["expected_us"]) == pytest.approx(kernel.time(case).total_s * 1e6, rel=1e-5)


def test_a_window_knows_the_context_that_splits_are_counted_by() -> None:
    text = "\n".join([HEADER, *(f"gqa,64,8,64,,,16,{context},1,fp8,128" for context in (256, 8192))])
    xqa = [float(row["expected_us"]) for row in predict(text, "--family", "trtllm-xqa")]
    assert xqa[1] > xqa[0]
    fa3 = [row["expected_us"] for row in predict(text, "--family", "fa3")]
    assert fa3[0] == fa3[1]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("attention,n_heads,batchs\nmla,1,1", "unknown column 'batchs'"),
        ("attention,n_heads,n_heads\nmla,1,1", "is there twice"),
        ("", "is empty"),
        (HEADER, "no rows"),
        (f"{HEADER}\n{ROWS[0]}\nmla,1,2", "row 2: 3 cells"),
        (f"{HEADER}\n{ROWS[0]}\nmlaa,128,,,512,64,8,32768,1,bf16,", "row 2: attention 'mlaa'"),
        (f"{HEADER}\n{ROWS[0]}\nmla,0,,,512,64,8,32768,1,bf16,", "row 2: n_heads is missing or 0"),
        (f"{HEADER}\n{ROWS[0]}\nmla,16,,,512,64,0,32768,1,bf16,", "row 2: batch is missing or 0"),
        (f"{HEADER}\n{ROWS[0]}\nmla,16,,,512,64,8,32768,1,bf16,128", "row 2: a window over mla is not modelled"),
        (f"{HEADER}\nmla,128,,,512,64,-8,32768,1,bf16,", "row 1: batch '-8'"),
        (f"{HEADER}\nmla,128,,,512,64,8,3e9999,1,bf16,", "row 1: context_tokens"),
        (f"{HEADER}\nmla,128,,,512,64,8,nan,1,bf16,", "row 1: context_tokens"),
        (f"{HEADER}\nmla,128,,,,64,8,32768,1,bf16,", "row 1: mla needs kv_lora_rank"),
        (f"{HEADER}\n{ROWS[2]}\ngqa,64,7,128,,,16,8192,1,bf16,", "row 2: n_heads is not a multiple"),
        (f"{HEADER}\ngqa,64,,128,,,16,8192,1,bf16,", "row 1: gqa needs n_kv_heads"),
        (f"{HEADER}\nmha,64,8,128,,,16,8192,1,bf16,", "row 1: mha has as many"),
        (f"{HEADER}\n{ROWS[0]}\nmla,128,,,512,64,8,32768,1,bf61,", "row 2: unknown cache format 'bf61'"),
        (f"{HEADER}\nmla,128,,,512,64,8,1,2,bf16,", "row 1: query_tokens is above"),
    ],
)
def test_an_error_names_the_row_and_nothing_is_written(tmp_path, text: str, says: str) -> None:
    source, out = tmp_path / "cases.csv", tmp_path / "out.csv"
    source.write_text(text)
    done = kvcalc("predict", str(source), "--gpu", GPU, "-o", str(out))
    assert done.returncode == 2, done.stderr
    assert says in done.stderr
    assert not out.exists()


def test_points_calibrate_and_the_calibration_predicts(tmp_path) -> None:
    cases = [f"mla,{heads},,,512,64,{batch},{context},1,bf16," for heads, batch, context in _sizes()]
    true = predict("\n".join([HEADER, *cases]))
    slower = [1.15 * float(row["expected_us"]) for row in true]
    points = tmp_path / "points.csv"
    lines = [f"{case},{latency:.3f}" for case, latency in zip(cases, slower, strict=True)]
    points.write_text("\n".join([f"{HEADER},latency_us", *lines]))
    made = tmp_path / "mine.yaml"
    done = kvcalc("calibrate", str(points), "--gpu", GPU, "-o", str(made))
    assert done.returncode == 0, done.stderr
    again = predict("\n".join([HEADER, *cases]), "--calibration", str(made))
    ratios = [float(row["expected_us"]) / latency for row, latency in zip(again, slower, strict=True)]
    assert np.mean(np.abs(np.array(ratios) - 1)) < 0.04
    other = kvcalc("predict", "-", "--gpu", "h200-sxm-141gb", "--calibration", str(made), stdin=f"{HEADER}\n{ROWS[0]}")
    assert other.returncode == 2
    assert "calibrates h100-sxm5-80gb" in other.stderr
    used = kvcalc(
        "estimate", "deepseek-v3", "--gpu", GPU, "--tp", "8", "--calibration", str(made), "--json", "--explain"
    )
    assert used.returncode == 0, used.stderr
    assert "points.csv" in used.stdout


def _sizes() -> list[tuple[int, int, int]]:
    return [
        (heads, batch, context)
        for heads in (16, 128)
        for batch, context in (
            (1, 64), (1, 4096), (1, 131072), (8, 1024), (8, 16384), (32, 32768), (64, 256), (64, 8192),
            (128, 2048), (128, 32768), (256, 64), (256, 8192),
        )
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (f"{HEADER}\n{ROWS[0]}", "no column latency_us"),
        (f"{HEADER},latency_us\n{ROWS[0]},", "row 1: latency_us is missing"),
        (f"{HEADER},latency_us\n{ROWS[0]},-4", "row 1: latency_us '-4' is not a time"),
        (f"{HEADER},latency_us\n{ROWS[0]},100\n{ROWS[0]},101", "no kernel has 8 points"),
    ],
)
def test_points_that_can_not_be_fitted_are_refused(text: str, says: str) -> None:
    done = kvcalc("calibrate", "-", "--gpu", GPU, stdin=text)
    assert done.returncode == 2
    assert says in done.stderr


def test_an_unknown_family_is_an_error_with_the_nearest() -> None:
    done = kvcalc("predict", "-", "--gpu", GPU, "--family", "flashmia", stdin=f"{HEADER}\n{ROWS[0]}")
    assert done.returncode == 2
    assert "flashmla" in done.stderr


def test_profiled_cases_become_a_calibration(tmp_path) -> None:
    from types import SimpleNamespace

    from kvcalc.api import load_gpu
    from kvcalc.architecture.attention import LatentAttention
    from kvcalc.commands.save_calibration import points_csv, save_calibration
    from kvcalc.errors import UsageError

    latent = LatentAttention(n_heads=16, kv_lora_rank=512, qk_nope_head_dim=128, qk_rope_head_dim=64, v_head_dim=128)
    sizes = [(batch, context) for batch in (1, 8, 64) for context in (1024, 8192, 32_768, 65_536)]
    true = predict(f"{HEADER}\n" + "\n".join(f"mla,16,,,512,64,{batch},{context},1,bf16," for batch, context in sizes))
    timed = [
        SimpleNamespace(
            kernel="flashmla",
            planned=SimpleNamespace(
                case=SimpleNamespace(
                    attention=latent,
                    phase="decode",
                    batch=batch,
                    context_tokens=context,
                    query_tokens=1,
                    kv_dtype="bf16",
                    seq_lens=(context,) * batch,
                )
            ),
            timing=SimpleNamespace(median_s=float(row["expected_us"]) * 1.1e-6),
        )
        for (batch, context), row in zip(sizes, true, strict=True)
    ]
    results = SimpleNamespace(timed=timed, gpu=load_gpu(GPU))
    family, text = points_csv(results)
    assert family == "flashmla"
    assert len(text.splitlines()) == 1 + len(sizes)
    made = tmp_path / "mine.yaml"
    save_calibration(results, made, date="2026-11-24")
    assert "family: flashmla" in made.read_text()
    with pytest.raises(UsageError, match="no timed decode case"):
        points_csv(SimpleNamespace(timed=[], gpu=results.gpu))
