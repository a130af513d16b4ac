"""FlashMLA and FlashInfer: why they can't run, and that they are called as documented, on stand-ins that compute in
torch.

The stand-ins take the documented arguments and attend what those describe; a wrong index pointer, page list, slice or
scale gives a wrong result. The real packages need a GPU: `-m gpu`.
"""

import sys
from dataclasses import replace
from types import ModuleType, SimpleNamespace

import pytest

torch = pytest.importorskip("torch", reason="needs torch: pip install 'kvcalc[profile]'")

from kvcalc.architecture.attention import GroupedAttention, LatentAttention  # noqa: E402
from kvcalc.profiling.case import Case  # noqa: E402
from kvcalc.profiling.correctness import check  # noqa: E402
from kvcalc.profiling.inputs import make_inputs  # noqa: E402
from kvcalc.profiling.kernels import load  # noqa: E402

CPU = torch.device("cpu")
MLA = LatentAttention(n_heads=3, kv_lora_rank=512, qk_nope_head_dim=128, qk_rope_head_dim=64, v_head_dim=128)
GQA = GroupedAttention(n_heads=4, n_kv_heads=2, head_dim=64, v_head_dim=64)


def case(attention=MLA, **options):
    chosen = {"phase": "decode", "batch": 2, "context_tokens": 100, "seq_lens": (100, 70)}
    return Case(**{"attention": attention, **chosen, **options})


def attend(q, k, v, scale):
    """Causal attention of the last queries: q [Q, H, D], k and v [S, G, *] -> [Q, H, *]."""
    group = q.shape[1] // k.shape[1]
    k, v = (each.double().repeat_interleave(group, 1) for each in (k, v))  # [S, H, *]
    scores = torch.einsum("qhd,shd->hqs", q.double(), k) * scale
    queries, tokens = q.shape[0], k.shape[0]
    future = torch.arange(tokens)[None] > tokens - queries + torch.arange(queries)[:, None]
    weights = scores.masked_fill(future, -torch.inf)
    out = torch.einsum("hqs,shd->qhd", weights.softmax(-1), v).to(q.dtype)
    return out, weights.logsumexp(-1)  # [Q, H, *] and [H, Q]


def rows_of(pages, ids, tokens):
    """The first tokens of pages [pages, T, ...]."""
    return pages[ids.long()].flatten(0, 1)[:tokens]


@pytest.mark.parametrize(
    ("name", "one", "reason"),
    [
        ("flashmla", case(GQA), "MLA only"),
        ("flashmla", case(phase="prefill", query_tokens=2), "decodes only"),
        ("flashmla", case(replace(MLA, kv_lora_rank=256)), "512+64"),
        ("flashmla", case(dtype="fp32"), "fp32"),
        ("flashmla", case(kv_dtype="fp8"), "fp8_e4m3 queries"),
        ("flashmla", case(page_tokens=16), "64 tokens"),
        ("flashmla", case(seq_lens=(100, 0)), "attend nothing"),
        ("flashmla", case(), "CUDA"),
        ("flashinfer", case(dtype="fp32"), "fp32"),
        ("flashinfer", case(kv_dtype="fp8"), "fp8_e4m3"),
        ("flashinfer", case(replace(MLA, kv_lora_rank=256)), "512+64"),
        ("flashinfer", case(replace(GQA, head_dim=48, v_head_dim=48)), "48"),
        ("flashinfer", case(replace(GQA, window_tokens=8)), "window"),
        ("flashinfer", case(seq_lens=(100, 0)), "every query"),
        ("flashinfer", case(), "CUDA"),
    ],
)
def test_what_can_not_run_has_a_reason(name, one, reason):
    assert reason in load(name).supports(one, CPU)


def test_a_package_that_is_not_installed_is_named_with_its_remedy():
    gpu = SimpleNamespace(type="cuda")
    for name, package in (("flashmla", "sgl-flash-mla"), ("flashinfer", "flashinfer-python")):
        kernel = load(name)
        if kernel.version() is None:
            assert f"{package}" in kernel.supports(case(), gpu)


class FlashMlaStandIn(ModuleType):
    """The legacy interface of sgl-flash-mla."""

    def get_mla_metadata(self):
        return object(), None

    def flash_mla_with_kvcache(
        self, q, k_cache, block_table, cache_seqlens, head_dim_v, metadata, splits, softmax_scale, causal, *, use_legacy
    ):
        assert use_legacy
        assert splits is None
        assert causal == (q.shape[1] > 1)
        assert k_cache.shape[1:] == (64, 1, 576)
        outs = []
        for place, tokens in enumerate(cache_seqlens.tolist()):
            rows = rows_of(k_cache, block_table[place, : -(-tokens // 64)], tokens)  # [S, 1, 576]
            outs.append(attend(q[place], rows, rows[..., :head_dim_v], softmax_scale))
        return torch.stack([out for out, _ in outs]), torch.stack([lse for _, lse in outs]).float()


@pytest.mark.parametrize("query_tokens", [1, 2])
def test_flashmla_is_called_as_documented(query_tokens, monkeypatch):
    monkeypatch.setitem(sys.modules, "flash_mla", FlashMlaStandIn("flash_mla"))
    one = case(query_tokens=query_tokens)
    inputs, kernel = make_inputs(one), load("flashmla")
    output = kernel.prepare(one, inputs)()
    result = check(one, inputs, output, form=kernel.form(one))
    assert result.passed, result.reason
    assert output.lse.shape == (2, query_tokens, 3)


class Wrapper:
    """What all of FlashInfer's wrappers share: a plan that is kept."""

    def __init__(self, workspace, *options, **named):
        assert workspace.numel() >= 128 << 20

    def plan(self, *plan, **named):
        self.args, self.named = plan, named

    def each(self, q, queries, pages, page_tokens):
        """Queries and page ids of each sequence, and its tokens where `pages` has them."""
        begins, ids, last = pages
        for place in range(len(begins) - 1):
            own = ids[begins[place] : begins[place + 1]]
            yield q[queries[place] : queries[place + 1]], own, (len(own) - 1) * page_tokens + int(last[place])


class MlaWrapper(Wrapper):
    def run(self, q_nope, q_pe, ckv, kpe, *, return_lse):
        queries, begins, ids, lengths, heads, rank, rope, _, causal, scale, *_ = self.args
        assert (q_nope.shape[1:], q_pe.shape[1:]) == ((heads, rank), (heads, rope))
        outs = []
        for place, tokens in enumerate(lengths.tolist()):
            own = ids[begins[place] : begins[place + 1]]
            latents, keys = rows_of(ckv, own, tokens), rows_of(kpe, own, tokens)
            q = torch.cat([q_nope, q_pe], -1)[queries[place] : queries[place + 1]]
            assert causal == (q.shape[0] > 1)
            outs.append(attend(q, torch.cat([latents, keys], -1)[:, None], latents[:, None], scale)[0])
        return torch.cat(outs)


class DecodeWrapper(Wrapper):
    def run(self, q, cache):
        begins, ids, last, _, _, _, page_tokens = self.args
        queries = torch.arange(len(begins))
        outs = [
            attend(own_q, *(rows_of(pages, own, tokens) for pages in cache), self.named["sm_scale"])[0]
            for own_q, own, tokens in self.each(q, queries, (begins, ids, last), page_tokens)
        ]
        return torch.cat(outs)


class PrefillWrapper(Wrapper):
    def run(self, q, cache):
        queries, begins, ids, last, _, _, _, page_tokens = self.args
        assert self.named["causal"]
        outs = [
            attend(own_q, *(rows_of(pages, own, tokens) for pages in cache), self.named["sm_scale"])[0]
            for own_q, own, tokens in self.each(q, queries, (begins, ids, last), page_tokens)
        ]
        return torch.cat(outs)


class RaggedWrapper(Wrapper):
    def run(self, q, k, v):
        queries, tokens, heads, kv_heads, width = self.args
        assert (heads, kv_heads, width, self.named["head_dim_vo"]) == (3, 3, 192, 128)
        outs = []
        for place in range(len(queries) - 1):
            own = slice(int(tokens[place]), int(tokens[place + 1]))
            own_q = q[queries[place] : queries[place + 1]]
            outs.append(attend(own_q, k[own], v[own], self.named["sm_scale"])[0])
        return torch.cat(outs)


@pytest.mark.parametrize(
    "one",
    [
        case(),
        case(query_tokens=2),
        case(phase="prefill", query_tokens=20),
        case(GQA),
        case(GQA, query_tokens=3),
        case(GQA, phase="prefill", query_tokens=20, page_tokens=16),
    ],
    ids=lambda one: one.id,
)
def test_flashinfer_is_called_as_documented(one, monkeypatch):
    stand_in = ModuleType("flashinfer")
    stand_in.mla = SimpleNamespace(BatchMLAPagedAttentionWrapper=MlaWrapper)
    stand_in.BatchDecodeWithPagedKVCacheWrapper = DecodeWrapper
    stand_in.BatchPrefillWithPagedKVCacheWrapper = PrefillWrapper
    stand_in.BatchPrefillWithRaggedKVCacheWrapper = RaggedWrapper
    monkeypatch.setitem(sys.modules, "flashinfer", stand_in)
    inputs, kernel = make_inputs(one), load("flashinfer")
    result = check(one, inputs, kernel.prepare(one, inputs)(), form=kernel.form(one))
    assert result.passed, result.reason
