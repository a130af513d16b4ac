"""The checker: it passes what is right and catches every planted fault. A checker that finds nothing proves nothing.

Faults are planted into a right kernel by what it is given or by a patch of one step; the output is judged against the
untouched inputs.
"""

from dataclasses import replace

import pytest

torch = pytest.importorskip("torch", reason="needs torch: pip install 'kvcalc[profile]'")

from kvcalc.architecture.attention import GroupedAttention, LatentAttention  # noqa: E402
from kvcalc.profiling import correctness  # noqa: E402
from kvcalc.profiling.case import ABSORBED, EXPANDED, GROUPED, Case  # noqa: E402
from kvcalc.profiling.correctness import check, reference_rows  # noqa: E402
from kvcalc.profiling.inputs import make_inputs  # noqa: E402
from kvcalc.profiling.kernels import Output, load, torch_absorbed  # noqa: E402

MLA = LatentAttention(n_heads=4, kv_lora_rank=64, qk_nope_head_dim=32, qk_rope_head_dim=16, v_head_dim=32)
GQA = GroupedAttention(n_heads=4, n_kv_heads=2, head_dim=32, v_head_dim=32)
DTYPES = pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
ATTENTIONS = pytest.mark.parametrize("attention", [MLA, GQA], ids=["mla", "gqa"])
KERNEL = load("torch-absorbed")


@pytest.fixture(autouse=True)
def one_thread():
    """On tensors so small, two threads only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make(attention, dtype, **options):
    chosen = {"phase": "decode", "batch": 3, "context_tokens": 2000, "query_tokens": 2, "seq_lens": (2000, 0, 150)}
    case = Case(**{"attention": attention, "dtype": dtype, **chosen, **options})
    return case, make_inputs(case)


def run(case, inputs):
    """The right kernel's output, its own copy."""
    output = KERNEL.prepare(case, inputs)()
    return Output(output.out.clone(), output.lse.clone())


def judge(case, inputs, output):
    return check(case, inputs, output, form=KERNEL.form(case))


def pages_of(inputs):
    """Names of the tensors that hold pages."""
    return [name for name in ("cache_pages", "k_pages", "v_pages") if hasattr(inputs, name)]


@DTYPES
@ATTENTIONS
def test_what_is_right_passes(attention, dtype):
    case, inputs = make(attention, dtype)
    result = judge(case, inputs, run(case, inputs))
    assert result.passed
    assert result.reason is None
    assert 0 <= result.cosine_distance < 1e-4
    assert result.max_abs_error > 0
    assert result.rows == 2 * 2 * 4  # two sequences that attend something


def wrong_page(case, inputs):
    """Two pages of a sequence's table lead to one page."""
    table = inputs.page_table.clone()
    table[0, 5] = table[0, 6]
    return run(case, replace(inputs, page_table=table))


def stale_page(case, inputs):
    """A page still has what it had before it was given to the sequence."""
    page, fresh = int(inputs.page_table[0, 7]), {}
    for name in pages_of(inputs):
        fresh[name] = getattr(inputs, name).clone()
        fresh[name][page] = torch.randn(fresh[name][page].shape, generator=torch.Generator().manual_seed(9))
    return run(case, replace(inputs, **fresh))


def last_page_forgotten(case, inputs):
    """The partly filled page at the end is left out."""
    short = replace(case, seq_lens=tuple(tokens // 64 * 64 for tokens in case.seq_lens))
    return run(short, inputs)


def swapped_sequences(case, inputs):
    """Two sequences of one length get each other's pages."""
    return run(case, replace(inputs, page_table=inputs.page_table[[1, 0, 2]]))


def wrong_scale(case, inputs):
    """The scale of another width."""
    return run(case, replace(inputs, scale=inputs.scale * 0.9))


def no_causal_mask(case, inputs):
    """The first query token sees the second one."""
    one = replace(case, query_tokens=1)
    parts = []
    for query in range(case.query_tokens):
        name = "q_absorbed" if case.is_latent else "q"
        q = getattr(inputs, name)[:, query : query + 1]
        parts.append(run(one, replace(inputs, **{name: q})))
    return Output(torch.cat([part.out for part in parts], 1), torch.cat([part.lse for part in parts], 1))


def swapped_heads(case, inputs):
    """Outputs of heads change places."""
    output = run(case, inputs)
    return Output(output.out.flip(2), output.lse.flip(2))


def slightly_large(case, inputs):
    """All outputs are too large by four times the tolerance, as where a sum of exponentials misses a few terms."""
    output = run(case, inputs)
    return Output(output.out * (1 + 4 * correctness.ULPS[case.dtype] * correctness.EPS[case.dtype]), output.lse)


def one_element_off(case, inputs):
    """A single element of the last row is wrong by a tenth of its row's size."""
    output = run(case, inputs)
    row = output.out[0, -1, -1]
    row[3] += row.abs().max() / 10
    return output


def wrong_lse(case, inputs):
    """lse in base 2."""
    output = run(case, inputs)
    return Output(output.out, output.lse * 1.4427)


def lse_of_an_empty_sequence(case, inputs):
    """An empty sequence's lse is not -inf."""
    output = run(case, inputs)
    output.lse[1] = 0.0
    return output


def output_of_an_empty_sequence(case, inputs):
    """An empty sequence's output is what the memory held."""
    output = run(case, inputs)
    output.out[1, 0, 0, 0] = 1e-3
    return output


def nan_leak(case, inputs):
    """A row after a sequence's last token is read."""
    longer = replace(case, seq_lens=tuple(tokens + (tokens == 150) for tokens in case.seq_lens))
    return run(longer, inputs)


def one_nan_outside_the_sample(case, inputs):
    """A NaN in an element that no sample need contain."""
    output = run(case, inputs)
    output.out[2, 1, 2, -1] = torch.nan
    return output


def infinite(case, inputs):
    """An output overflowed."""
    output = run(case, inputs)
    output.out[0, 0, 1, 0] = torch.inf
    return output


def transposed(case, inputs):
    """Heads and query tokens have changed places."""
    output = run(case, inputs)
    return Output(output.out.transpose(1, 2), output.lse)


FAULTS = (
    wrong_page,
    stale_page,
    last_page_forgotten,
    swapped_sequences,
    wrong_scale,
    no_causal_mask,
    swapped_heads,
    slightly_large,
    one_element_off,
    wrong_lse,
    lse_of_an_empty_sequence,
    output_of_an_empty_sequence,
    nan_leak,
    one_nan_outside_the_sample,
    infinite,
    transposed,
)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
@DTYPES
@ATTENTIONS
def test_planted_faults_are_caught(fault, attention, dtype):
    options = {"seq_lens": (2000, 2000, 150)} if fault is swapped_sequences else {}
    if fault is last_page_forgotten:
        options = {"seq_lens": (2000, 64, 150)}
    case, inputs = make(attention, dtype, **options)
    result = judge(case, inputs, fault(case, inputs))
    assert not result.passed
    assert result.reason


@DTYPES
@ATTENTIONS
@pytest.mark.parametrize("split", [0, -1])
def test_a_dropped_split_is_caught(split, attention, dtype, monkeypatch):
    """One split's partial output does not reach the combination."""
    monkeypatch.setattr(torch_absorbed, "CHUNK_TOKENS", 256)
    monkeypatch.setattr(torch_absorbed, "LEAST_CHUNK_TOKENS", 256)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    case, inputs = make(attention, dtype)
    assert judge(case, inputs, run(case, inputs)).passed
    combine = torch_absorbed.combine

    def dropping(parts, peaks, sums):
        if len(parts) == 1:
            return combine(parts, peaks, sums)
        kept = [place for place in range(len(parts)) if place != split % len(parts)]
        return combine(parts[kept], peaks[kept], sums[kept])

    monkeypatch.setattr(torch_absorbed, "combine", dropping)
    assert not judge(case, inputs, run(case, inputs)).passed


@DTYPES
def test_a_forgotten_rope_part_is_caught(dtype):
    case, inputs = make(MLA, dtype)
    q = inputs.q_absorbed.clone()
    q[..., 64:] = 0
    assert not judge(case, inputs, run(case, replace(inputs, q_absorbed=q))).passed


def test_a_forgotten_fp8_scale_is_caught():
    case, inputs = make(MLA, "bf16", kv_dtype="fp8", seq_lens=(200, 0, 150), context_tokens=200)
    heads, queries = list(range(4)), [0, 1]
    out = torch.zeros(3, 2, 4, 64, dtype=torch.bfloat16)
    forgotten = out.clone()
    for sequence in (0, 2):
        tokens = case.seq_lens[sequence]
        right, _ = reference_rows(case, inputs, sequence, queries, heads, tokens, form=ABSORBED)
        wrong, _ = reference_rows(case, replace(inputs, kv_scale=1.0), sequence, queries, heads, tokens, form=ABSORBED)
        out[sequence], forgotten[sequence] = right, wrong
    assert judge(case, inputs, Output(out)).passed
    assert not judge(case, inputs, Output(forgotten)).passed


def dense_reference(case, inputs, form):
    """Attention in float64 by a route of its own: token by token from the page table, one softmax, no chunks."""
    width = MLA.kv_lora_rank if form == ABSORBED else case.attention.v_head_dim
    out = torch.zeros(case.batch, case.query_tokens, case.n_heads, width, dtype=torch.float64)
    for b, tokens in enumerate(case.seq_lens):
        places = [(int(inputs.page_table[b, t // case.page_tokens]), t % case.page_tokens) for t in range(tokens)]
        for t in range(case.query_tokens):
            seen = places[: max(0, tokens - case.query_tokens + 1 + t)]
            for h in range(case.n_heads) if seen else ():
                if form == GROUPED:
                    g = h // (case.n_heads // inputs.k_pages.shape[2])
                    keys = torch.stack([inputs.k_pages[place][g] for place in seen]).double()
                    values = torch.stack([inputs.v_pages[place][g] for place in seen]).double()
                    q = inputs.q[b, t, h].double()
                else:
                    rows = torch.stack([inputs.cache_pages[place] for place in seen]).double()
                    latents, rope = rows[:, : MLA.kv_lora_rank], rows[:, MLA.kv_lora_rank :]
                    keys, values = rows, latents
                    q = inputs.q_absorbed[b, t, h].double()
                    if form == EXPANDED:
                        keys = torch.cat([latents @ inputs.w_uk[h].double().T, rope], 1)
                        values, q = latents @ inputs.w_uv[h].double(), inputs.q[b, t, h].double()
                out[b, t, h] = torch.softmax(keys @ q * inputs.scale, 0) @ values
    return out


@pytest.mark.parametrize(("attention", "form"), [(MLA, ABSORBED), (MLA, EXPANDED), (GQA, GROUPED)])
def test_the_reference_agrees_with_one_written_token_by_token(attention, form, monkeypatch):
    monkeypatch.setattr(correctness, "CHUNK_TOKENS", 64)  # three pieces
    case, inputs = make(attention, "fp32", context_tokens=150, seq_lens=(150, 0, 1))
    wanted = dense_reference(case, inputs, form)
    got, _ = reference_rows(case, inputs, 0, [0, 1], [0, 3], 150, form=form)
    assert torch.allclose(got, wanted[0][:, [0, 3]], atol=1e-12)
    assert check(case, inputs, Output(wanted.float()), form=form).passed


def test_nothing_attended_at_all_passes_only_with_zeros():
    case, inputs = make(MLA, "fp32", batch=1, seq_lens=(0,))
    output = run(case, inputs)
    assert judge(case, inputs, output).passed
    output.out[0, 0, 0, 0] = 1.0
    assert not judge(case, inputs, output).passed


def test_the_sample_has_the_extremes_and_is_the_same_every_time():
    case, _ = make(MLA, "fp32", batch=9, seq_lens=(5, 0, 9, 2000, 7, 1, 8, 6, 4), context_tokens=2000)
    sample, again = correctness._Sample(case, 0), correctness._Sample(case, 0)
    assert {3, 5, 0, 8} == set(sample.sequences)
    assert (sample.sequences, sample.queries, sample.heads) == (again.sequences, again.queries, again.heads)
