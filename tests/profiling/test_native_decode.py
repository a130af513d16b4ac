"""native-decode: right in every shape and format, on every kind of vector unit; where it is not built, a reason."""

import platform
from itertools import pairwise, product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="needs torch: pip install 'kvcalc[profile]'")

from kvcalc.architecture.attention import GroupedAttention, LatentAttention  # noqa: E402
from kvcalc.profiling.case import Case  # noqa: E402
from kvcalc.profiling.correctness import check  # noqa: E402
from kvcalc.profiling.inputs import make_inputs  # noqa: E402
from kvcalc.profiling.kernels import load, native_build, native_decode  # noqa: E402

CPU = torch.device("cpu")
KERNEL = load("native-decode")
MLA = LatentAttention(n_heads=13, kv_lora_rank=64, qk_nope_head_dim=32, qk_rope_head_dim=16, v_head_dim=24)
GQA = GroupedAttention(n_heads=6, n_kv_heads=2, head_dim=48, v_head_dim=32)
ATTENTIONS = {
    "mla": MLA,
    "mla of one head": LatentAttention(
        n_heads=1, kv_lora_rank=512, qk_nope_head_dim=128, qk_rope_head_dim=64, v_head_dim=128
    ),
    "gqa": GQA,
    "mqa": GroupedAttention(n_heads=5, n_kv_heads=1, head_dim=32, v_head_dim=32),
    "mha": GroupedAttention(n_heads=3, n_kv_heads=3, head_dim=16, v_head_dim=16),
}
RAGGED = {"batch": 5, "context_tokens": 1100, "query_tokens": 3, "seq_lens": (1100, 0, 2, 129, 1100), "page_tokens": 16}

try:
    native_build.compiler()
except native_build.BuildError as error:
    pytest.skip(str(error), allow_module_level=True)


def judged(case):
    inputs = make_inputs(case)
    call = KERNEL.prepare(case, inputs)
    call()
    return check(case, inputs, call(), form=KERNEL.form(case))  # the second call works on what the first left behind


@pytest.fixture
def fresh_build(monkeypatch, tmp_path):
    """No library is built yet, and what is built lies in a folder of the test's own."""
    cached = (native_build.compiler, native_build.compiler_version, native_build._library)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for each in cached:
        each.cache_clear()
    yield tmp_path / "kvcalc"
    for each in cached:
        each.cache_clear()


@pytest.mark.parametrize("kv_dtype", ["", "bf16", "fp16", "fp8_e4m3"])
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("attention", ATTENTIONS.values(), ids=ATTENTIONS)
def test_it_is_right(attention, dtype, kv_dtype):
    for workload in ({"batch": 2, "context_tokens": 700}, RAGGED):
        case = Case(attention=attention, phase="decode", dtype=dtype, kv_dtype=kv_dtype, **workload)
        assert KERNEL.supports(case, CPU) is None
        result = judged(case)
        assert result.passed, result.reason
        assert result.rows > 0


@settings(max_examples=40, deadline=None)
@given(
    heads=st.integers(1, 40),
    query_tokens=st.integers(1, 4),
    lengths=st.lists(st.integers(0, 400), min_size=1, max_size=4),
    page_tokens=st.sampled_from([1, 16, 64, 256]),
)
def test_it_is_right_for_any_heads_and_lengths(heads, query_tokens, lengths, page_tokens):
    attention = LatentAttention(n_heads=heads, kv_lora_rank=32, qk_nope_head_dim=16, qk_rope_head_dim=16, v_head_dim=16)
    case = Case(
        attention=attention,
        phase="decode",
        dtype="fp32",
        batch=len(lengths),
        context_tokens=max(*lengths, query_tokens, 1),
        query_tokens=query_tokens,
        seq_lens=tuple(lengths),
        page_tokens=page_tokens,
    )
    result = judged(case)
    assert result.passed, result.reason


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="builds for x86's vector units")
@pytest.mark.parametrize("target", ["x86-64", "x86-64-v3"])
def test_it_is_right_with_narrower_vectors(target, monkeypatch, fresh_build):
    if target == "x86-64-v3" and not torch.cpu._is_avx2_supported():
        pytest.skip("this CPU has no AVX2")
    monkeypatch.setattr(native_build, "FOR_THIS_CPU", (f"-march={target}",))
    for attention, query_tokens in product(ATTENTIONS.values(), (1, 3)):
        result = judged(
            Case(attention=attention, phase="decode", dtype="fp32", **RAGGED | {"query_tokens": query_tokens})
        )
        assert result.passed, result.reason


def test_what_is_attended_is_not_hidden():
    """A NaN among the attended keys or values is in the outputs of all rows that attend it, and in no other."""
    case = Case(attention=GQA, phase="decode", batch=2, context_tokens=300, dtype="fp32")
    for name in ("k_pages", "v_pages"):
        inputs = make_inputs(case)
        getattr(inputs, name)[inputs.page_table[1, 2].long(), 7, 1, 3] = torch.nan
        out = KERNEL.prepare(case, inputs)().out
        broken = out.isnan().any(-1)[:, 0]
        assert broken.tolist() == [[False] * 6, [False] * 3 + [True] * 3]


def test_numbers_of_narrow_formats_are_widened_exactly():
    """Attending one token returns its value: every number of a format, subnormal ones too."""
    attention = GroupedAttention(n_heads=1, n_kv_heads=1, head_dim=16, v_head_dim=256)
    for kv_dtype, torch_dtype in (("fp8_e4m3", torch.float8_e4m3fn), ("fp16", torch.float16), ("bf16", torch.bfloat16)):
        case = Case(attention=attention, phase="decode", batch=1, context_tokens=1, dtype="fp32", kv_dtype=kv_dtype)
        inputs = make_inputs(case)
        step = 1 if kv_dtype == "fp8_e4m3" else 251
        bits = (torch.arange(256) * step) % (1 << 8 * torch_dtype.itemsize)
        integers = bits.to(torch.uint8) if torch_dtype.itemsize == 1 else bits.to(torch.int32).to(torch.int16)
        values = integers.view(torch_dtype)
        values = torch.where(values.float().isfinite(), values.float(), 0.0).to(torch_dtype)
        raw = inputs.v_pages.view(integers.dtype)
        raw[inputs.page_table[0, 0].long(), 0, 0] = values.view(integers.dtype)
        out = KERNEL.prepare(case, inputs)().out[0, 0, 0]
        assert torch.equal(out, values.float() * torch.tensor(inputs.v_scale, dtype=torch.float32))


@given(
    lengths=st.lists(st.integers(0, 5000), min_size=1, max_size=6),
    heads=st.sampled_from([(4, 1), (4, 2), (4, 4)]),
    threads=st.integers(1, 8),
)
def test_pieces_cover_every_token_once(lengths, heads, threads):
    attention = GroupedAttention(n_heads=heads[0], n_kv_heads=heads[1], head_dim=16, v_head_dim=16)
    case = Case(
        attention=attention,
        phase="decode",
        batch=len(lengths),
        context_tokens=max(1, *lengths, 1),
        seq_lens=tuple(lengths),
    )
    plan = native_decode.cut(case, threads)
    assert [first for first, _ in plan.piece_range] == [0, *(end for _, end in plan.piece_range[:-1])]
    for sequence, (first, end) in enumerate(plan.piece_range):
        pieces = plan.pieces[first:end]
        assert {piece[0] for piece in pieces} == {sequence}
        assert (pieces[0][1], pieces[-1][2]) == (0, lengths[sequence])
        assert all(one[2] == other[1] for one, other in pairwise(pieces))
    longest = max(end - start for _, start, end in plan.pieces)
    assert longest <= max(native_decode.LEAST_PIECE_TOKENS, -(-sum(lengths) // (8 * threads)))


def test_threads_change_nothing():
    case = Case(attention=MLA, phase="decode", batch=2, context_tokens=2000, dtype="fp32")
    inputs, outs = make_inputs(case), []
    for threads in (1, 2, 3):
        call = native_decode._Call(case, inputs, threads=threads)
        outs.append(call().out.clone())
    for out in outs[1:]:
        torch.testing.assert_close(out, outs[0], rtol=1e-5, atol=1e-6)


def test_what_it_can_not_do_has_a_reason():
    decode = {"phase": "decode", "batch": 1, "context_tokens": 32}
    wide = GroupedAttention(n_heads=2, n_kv_heads=1, head_dim=24, v_head_dim=24)
    windowed = GroupedAttention(n_heads=2, n_kv_heads=1, head_dim=32, v_head_dim=32, window_tokens=16)
    for attention, workload, device, reason in (
        (GQA, decode, torch.device("meta"), "CPU cores only"),
        (GQA, {"phase": "prefill", "batch": 1, "context_tokens": 32}, CPU, "prefill is left to torch"),
        (wide, decode, CPU, "multiples of 16, not 24 and 24"),
        (windowed, decode, CPU, "has a window"),
    ):
        assert reason in KERNEL.supports(Case(attention=attention, **workload), device)


# --- the build --------------------------------------------------------------------------------------------------------

CASE = Case(attention=GQA, phase="decode", batch=1, context_tokens=32)


def test_without_a_compiler_it_says_so(monkeypatch, fresh_build):
    monkeypatch.setattr(native_build, "COMPILERS", ("no-such-compiler",))
    monkeypatch.delenv("CC", raising=False)
    assert KERNEL.supports(CASE, CPU) == "no C compiler: no-such-compiler not found"
    assert KERNEL.version() is None
    native_build._library.cache_clear()
    monkeypatch.setenv("CC", "my-own-compiler -x")
    assert KERNEL.supports(CASE, CPU) == "no C compiler: my-own-compiler -x not found"


def test_a_compiler_that_fails_is_quoted(monkeypatch, fresh_build, tmp_path):
    broken = tmp_path / "cc"
    broken.write_text('#!/bin/sh\necho "stdint.h: fatal error: no such file" >&2\nexit 1\n')
    broken.chmod(0o755)
    monkeypatch.setenv("CC", str(broken))
    assert "fatal error: no such file" in KERNEL.supports(CASE, CPU)
    assert not list(fresh_build.glob("*"))  # nothing half-built is left
    monkeypatch.setattr(native_build, "_run", None)
    assert "fatal error: no such file" in KERNEL.supports(CASE, CPU)  # and it is not asked again


def test_a_library_is_built_once_and_anew_for_another_source(monkeypatch, fresh_build, tmp_path):
    source = tmp_path / "one.c"
    source.write_text("int answer(void) { return 1; }")
    assert native_build.library(source).answer() == 1
    built = [path.name for path in fresh_build.glob("*.so")]
    assert len(built) == 1
    native_build._library.cache_clear()
    monkeypatch.setattr(native_build, "_build", None)
    assert native_build.library(source).answer() == 1
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    source.write_text("int answer(void) { return 2; }")
    native_build._library.cache_clear()
    assert native_build.library(source).answer() == 2
    assert len(list(fresh_build.glob("*.so"))) == 2


def test_a_cache_that_can_not_be_written_is_done_without(monkeypatch, fresh_build, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert KERNEL.supports(CASE, CPU) is None
    assert judged(CASE).passed
