"""Our Triton kernels run under the interpreter on the CPU, against a float64 reference.

The interpreter has to be switched on before the kernels are decorated, so this module runs itself again in a process of
its own with TRITON_INTERPRET=1: nothing of it reaches other tests. It proves indexing, masks and mathematics; it knows
no registers, shared memory or races.

Inputs are `make_inputs`: shuffled pages, NaN in every row that no sequence has, absurd ids in unused places of the page
table.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="torch is not installed: pip install kvcalc[profile]")
triton = pytest.importorskip("triton", reason="triton is not installed here (it has no wheel for this platform)")

from kvcalc.architecture.attention import GroupedAttention, LatentAttention  # noqa: E402
from kvcalc.profiling.case import Case  # noqa: E402
from kvcalc.profiling.inputs import gather, make_inputs  # noqa: E402
from kvcalc.profiling.kernels import load  # noqa: E402
from kvcalc.profiling.kernels.triton_common import INTERPRETED  # noqa: E402
from kvcalc.profiling.kernels.triton_gqa import gqa_decode  # noqa: E402
from kvcalc.profiling.kernels.triton_mla import mla_decode  # noqa: E402
from kvcalc.profiling.kernels.triton_schedule import Tile, fixed_schedule  # noqa: E402

interpreted = pytest.mark.skipif(
    not INTERPRETED, reason="runs in the interpreter's process, see test_in_its_own_process"
)
CPU = torch.device("cpu")
EXAMPLES = 30
RELATIVE_ERROR = {"fp32": 2e-6, "fp16": 2**-11, "bf16": 2**-8}
"""Norm of the error over norm of the reference: half a unit in the last place of the output format; fp32: its sums."""

lengths = st.lists(st.one_of(st.just(0), st.integers(1, 3), st.integers(4, 150)), min_size=1, max_size=3)
formats = st.sampled_from([
    ("fp32", "fp32"), ("fp16", "fp16"), ("bf16", "bf16"), ("bf16", "fp8_e4m3"), ("fp16", "fp8_e4m3"),
])  # fmt: skip
tiles = st.sampled_from([(16, 32), (16, 64), (64, 64), (64, 32), (32, 16)]).map(
    lambda shape: Tile(rows=shape[0], tokens=shape[1], stages=2, warps=4, programs_per_sm=1)
)
common = {
    "seq_lens": lengths,
    "query_tokens": st.sampled_from([1, 1, 1, 2, 4]),
    "page_tokens": st.sampled_from([1, 8, 32, 64, 128]),
    "splits": st.integers(1, 6),
    "formats": formats,
    "tile": tiles,
}


@pytest.mark.skipif(INTERPRETED, reason="this is that process")
def test_in_its_own_process():
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    command = [sys.executable, "-m", "pytest", "-o", "addopts=", "-p", "no:cacheprovider", "-rs", str(Path(__file__))]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=root, timeout=900)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert f"{EXAMPLE_TESTS} passed" in done.stdout, done.stdout[-2000:]


@pytest.mark.skipif(INTERPRETED or torch.cuda.is_available(), reason="without a GPU and without the interpreter")
@pytest.mark.parametrize("name", ["triton-mla", "triton-gqa"])
def test_without_gpu_or_interpreter_it_says_why(name):
    attention = latent(4, 64, 16) if name == "triton-mla" else grouped(4, 2, 64, 64)
    assert "needs a GPU" in load(name).supports(make_case(attention, [64]), CPU)


def latent(heads, rank, rope):
    return LatentAttention(n_heads=heads, kv_lora_rank=rank, qk_nope_head_dim=16, qk_rope_head_dim=rope, v_head_dim=16)


def grouped(heads, kv_heads, width, v_width):
    return GroupedAttention(n_heads=heads, n_kv_heads=kv_heads, head_dim=width, v_head_dim=v_width)


def make_case(attention, seq_lens, *, query_tokens=1, page_tokens=64, formats=("bf16", "bf16")):
    dtype, kv_dtype = formats
    return Case(
        attention=attention,
        phase="decode",
        batch=len(seq_lens),
        context_tokens=max([*seq_lens, query_tokens]),
        query_tokens=query_tokens,
        dtype=dtype,
        kv_dtype=kv_dtype,
        page_tokens=page_tokens,
        seq_lens=tuple(seq_lens),
    )


def cached(pages, inputs, sequence, tokens, scale):
    """A sequence's rows in float64."""
    if pages.dtype is torch.float8_e4m3fn:
        rows = gather(pages.view(torch.uint8), inputs.page_table, sequence, tokens).view(torch.float8_e4m3fn).float()
    else:
        rows = gather(pages, inputs.page_table, sequence, tokens)
    return rows.double() * scale


def attend(q, k, v, scale):
    """Float64 attention of one sequence: q [Q, H, D], k [N, H, D], v [N, H, V]; out [Q, H, V], lse [Q, H]."""
    queries, tokens = q.shape[0], k.shape[0]
    scores = torch.einsum("qhd,nhd->qhn", q.double(), k) * scale
    visible = tokens - queries + 1 + torch.arange(queries)  # [Q]
    scores = scores.masked_fill(torch.arange(tokens) >= visible[:, None, None], -torch.inf)
    if not tokens:
        return q.new_zeros((*q.shape[:2], v.shape[-1])).double(), torch.full(q.shape[:2], -torch.inf).double()
    weights = torch.nan_to_num(scores.softmax(-1))  # a query that attends nothing has 0
    return torch.einsum("qhn,nhv->qhv", weights, v), scores.logsumexp(-1)


def reference(case, inputs):
    outs, lses = [], []
    heads = case.n_heads
    for sequence, tokens in enumerate(case.seq_lens):
        if case.is_latent:
            q, rank = inputs.q_absorbed[sequence], case.attention.kv_lora_rank
            rows = cached(inputs.cache_pages, inputs, sequence, tokens, inputs.kv_scale)
            k = rows[:, None, :].expand(-1, heads, -1)
            v = k[..., :rank]
        else:
            q, each = inputs.q[sequence], heads // case.attention.n_kv_heads
            k = cached(inputs.k_pages, inputs, sequence, tokens, inputs.k_scale).repeat_interleave(each, 1)
            v = cached(inputs.v_pages, inputs, sequence, tokens, inputs.v_scale).repeat_interleave(each, 1)
        out, lse = attend(q, k, v, inputs.scale)
        outs.append(out)
        lses.append(lse)
    return torch.stack(outs), torch.stack(lses)


def check(case, inputs, output):
    out, lse = reference(case, inputs)
    assert output.out.dtype == (inputs.q_absorbed if case.is_latent else inputs.q).dtype
    assert torch.isfinite(output.out).all()
    nothing = torch.isinf(lse)
    assert torch.equal(torch.isinf(output.lse), nothing)
    assert (output.out[nothing] == 0).all()
    error = (output.out.double() - out).norm()
    assert error <= RELATIVE_ERROR[case.dtype] * out.norm(), float(error / out.norm())
    assert torch.allclose(output.lse[~nothing].double(), lse[~nothing], atol=1e-5, rtol=1e-5)


@interpreted
@given(
    heads=st.sampled_from([1, 5, 16, 17, 32, 64, 128]),
    widths=st.sampled_from([(32, 16), (64, 8), (64, 0), (16, 20), (128, 64)]),
    **common,
)
@settings(derandomize=True, max_examples=EXAMPLES, deadline=None)
def test_mla(heads, widths, seq_lens, query_tokens, page_tokens, splits, formats, tile):
    case = make_case(
        latent(heads, *widths), seq_lens, query_tokens=query_tokens, page_tokens=page_tokens, formats=formats
    )
    inputs = make_inputs(case)
    run = mla_decode(
        inputs.q_absorbed,
        inputs.cache_pages,
        inputs.page_table,
        inputs.seq_lens,
        kv_lora_rank=widths[0],
        scale=inputs.scale,
        kv_scale=inputs.kv_scale,
        tile=tile,
        schedule=fixed_schedule(seq_lens, block_tokens=tile.tokens, splits=splits),
    )
    check(case, inputs, run())


@interpreted
@given(
    heads=st.sampled_from([(1, 1), (4, 4), (8, 2), (20, 1), (64, 2), (6, 3)]),
    widths=st.sampled_from([(32, 32), (64, 16), (24, 16), (16, 40), (128, 128)]),
    **common,
)
@settings(derandomize=True, max_examples=EXAMPLES, deadline=None)
def test_gqa(heads, widths, seq_lens, query_tokens, page_tokens, splits, formats, tile):
    case = make_case(
        grouped(*heads, *widths), seq_lens, query_tokens=query_tokens, page_tokens=page_tokens, formats=formats
    )
    inputs = make_inputs(case)
    run = gqa_decode(
        inputs.q,
        inputs.k_pages,
        inputs.v_pages,
        inputs.page_table,
        inputs.seq_lens,
        scale=inputs.scale,
        k_scale=inputs.k_scale,
        v_scale=inputs.v_scale,
        tile=tile,
        schedule=fixed_schedule(seq_lens, block_tokens=tile.tokens, splits=splits),
    )
    check(case, inputs, run())


@interpreted
@pytest.mark.parametrize("kv_dtype", ["bf16", "fp8_e4m3"])
@pytest.mark.parametrize("attention", [latent(16, 512, 64), grouped(8, 2, 128, 128), grouped(4, 4, 192, 128)])
def test_as_the_profiler_calls_it(attention, kv_dtype):
    kernel = load("triton-mla" if isinstance(attention, LatentAttention) else "triton-gqa")
    case = make_case(attention, [300, 0, 65], formats=("bf16", kv_dtype))
    assert kernel.supports(case, CPU) is None
    assert kernel.version() == triton.__version__
    inputs = make_inputs(case)
    run = kernel.prepare(case, inputs)
    check(case, inputs, run())
    first = run().out.clone()
    assert torch.equal(run().out, first)
    assert kernel.kernel_extra_flop(case, CPU) > 0
    assert kernel.workspace_bytes(case, CPU) >= first.nbytes


@interpreted
def test_many_splits_are_combined():
    tokens, tile = 16 * 75, Tile(rows=16, tokens=16, stages=2, warps=4, programs_per_sm=1)
    case = make_case(latent(3, 32, 16), [tokens, 40], formats=("fp32", "fp32"))
    inputs = make_inputs(case)
    schedule = fixed_schedule(case.seq_lens, block_tokens=16, splits=75)
    assert schedule.max_splits == 75
    run = mla_decode(
        inputs.q_absorbed,
        inputs.cache_pages,
        inputs.page_table,
        inputs.seq_lens,
        kv_lora_rank=32,
        scale=inputs.scale,
        kv_scale=1.0,
        tile=tile,
        schedule=schedule,
    )
    check(case, inputs, run())


@interpreted
def test_what_is_not_supported_has_a_reason():
    mla, gqa = load("triton-mla"), load("triton-gqa")
    assert "power of two" in mla.supports(make_case(latent(4, 96, 16), [64]), CPU)
    assert "not MHA" in mla.supports(make_case(grouped(4, 4, 64, 64), [64]), CPU)
    assert "not MLA" in gqa.supports(make_case(latent(4, 64, 16), [64]), CPU)
    assert "more than" in gqa.supports(make_case(grouped(4, 4, 1024, 64), [64]), CPU)
    prefill = Case(attention=latent(4, 64, 16), phase="prefill", batch=1, context_tokens=64)
    assert "decode" in mla.supports(prefill, CPU)
    assert "fp16" in gqa.supports(make_case(grouped(4, 4, 64, 64), [64], formats=("bf16", "fp16")), CPU)


def test_moved_fp8_bits_are_the_numbers():
    """The conversion that the inline assembly makes, in integers, for every e4m3 number; NaN codes become 480."""
    from kvcalc.profiling.kernels.triton_common import BF16_BITS, FP16_BITS

    codes = torch.arange(256, dtype=torch.uint8)
    expected = codes.view(torch.float8_e4m3fn).float()
    is_nan = expected.isnan()
    for (shift, mask, factor, _), dtype in ((BF16_BITS, torch.bfloat16), (FP16_BITS, torch.float16)):
        lane = codes.int() << 8
        moved = (lane >> int(shift)) & (int(mask, 16) & 0xFFFF) | lane & 0x8000
        one = torch.tensor([int(factor, 16) & 0xFFFF], dtype=torch.int32)
        value = moved.to(torch.uint16).view(dtype) * one.to(torch.uint16).view(dtype)
        assert torch.equal(value.float()[~is_nan], expected[~is_nan])
        assert (value.float()[is_nan].abs() == 480).all()


EXAMPLE_TESTS = 11
"""Tests that run in the interpreter's process."""
