"""The torch kernels: right in every shape and format, different from each other, and honest about their extra work.

Shape letters: B batch, Q query tokens, H query heads, S tokens.
"""

from itertools import combinations

import pytest

torch = pytest.importorskip("torch", reason="needs torch: pip install 'kvcalc[profile]'")

from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

from kvcalc.architecture.attention import GroupedAttention, LatentAttention  # noqa: E402
from kvcalc.profiling.case import Case  # noqa: E402
from kvcalc.profiling.correctness import check  # noqa: E402
from kvcalc.profiling.inputs import UNUSED_PAGE, make_inputs  # noqa: E402
from kvcalc.profiling.kernels import Output, load, torch_absorbed, torch_sdpa, workers  # noqa: E402

CPU = torch.device("cpu")
KERNELS = ("torch-expanded", "torch-absorbed", "torch-sdpa")
ATTENTIONS = {
    "mla": LatentAttention(n_heads=4, kv_lora_rank=64, qk_nope_head_dim=32, qk_rope_head_dim=16, v_head_dim=24),
    "mla without rope": LatentAttention(
        n_heads=2, kv_lora_rank=32, qk_nope_head_dim=32, qk_rope_head_dim=0, v_head_dim=32
    ),
    "gqa": GroupedAttention(n_heads=6, n_kv_heads=2, head_dim=32, v_head_dim=32),
    "gqa of two widths": GroupedAttention(n_heads=4, n_kv_heads=2, head_dim=24, v_head_dim=16),
    "mqa": GroupedAttention(n_heads=5, n_kv_heads=1, head_dim=32, v_head_dim=32),
    "mha": GroupedAttention(n_heads=3, n_kv_heads=3, head_dim=32, v_head_dim=32),
}
WORKLOADS = {
    "decode": {"phase": "decode", "batch": 2, "context_tokens": 300},
    "one token": {"phase": "decode", "batch": 1, "context_tokens": 1},
    "ragged, several query tokens": {
        "phase": "decode",
        "batch": 5,
        "context_tokens": 1100,
        "query_tokens": 3,
        "seq_lens": (1100, 0, 2, 129, 1100),
    },
    "small pages": {"phase": "decode", "batch": 2, "context_tokens": 70, "page_tokens": 16, "seq_lens": (70, 33)},
    "prefill": {"phase": "prefill", "batch": 2, "context_tokens": 160},
    "ragged prefill": {"phase": "prefill", "batch": 3, "context_tokens": 290, "seq_lens": (290, 0, 41)},
    "chunk of a prompt": {"phase": "prefill", "batch": 1, "context_tokens": 300, "query_tokens": 130},
}


@pytest.fixture(autouse=True)
def many_splits(monkeypatch):
    """Splits so short that small contexts have several; one thread, since on tensors so small two only wait."""
    monkeypatch.setattr(torch_absorbed, "CHUNK_TOKENS", 128)
    monkeypatch.setattr(torch_absorbed, "_chunk_tokens", lambda count, tokens, device: -(-tokens // -(-tokens // 80)))
    monkeypatch.setattr(torch_sdpa, "LEAST_SPLIT_TOKENS", 64)
    monkeypatch.setattr(torch_sdpa, "SPLITS_A_THREAD", 8)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def outcome(kernel, case, inputs):
    call = kernel.prepare(case, inputs)
    call()
    return call()  # the second call works on what the first one left behind


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("workload", WORKLOADS.values(), ids=WORKLOADS)
@pytest.mark.parametrize("attention", ATTENTIONS.values(), ids=ATTENTIONS)
def test_kernels_are_right(attention, workload, dtype):
    case = Case(attention=attention, dtype=dtype, **workload)
    inputs = make_inputs(case)
    for name in KERNELS:
        kernel = load(name)
        assert kernel.supports(case, CPU) is None
        result = check(case, inputs, outcome(kernel, case, inputs), form=kernel.form(case))
        assert result.passed, f"{name}: {result.reason}"
        assert result.rows > 0


@pytest.mark.parametrize("name", KERNELS)
def test_deepseek_dimensions_in_fp32(name):
    attention = LatentAttention(n_heads=16, kv_lora_rank=512, qk_nope_head_dim=128, qk_rope_head_dim=64, v_head_dim=128)
    case = Case(attention=attention, phase="decode", batch=1, context_tokens=700, dtype="fp32")
    inputs, kernel = make_inputs(case), load(name)
    assert check(case, inputs, outcome(kernel, case, inputs), form=kernel.form(case)).passed


@pytest.mark.parametrize("name", ["torch-absorbed", "torch-sdpa"])
def test_formats_without_units_are_widened_and_still_right(name, monkeypatch):
    from kvcalc.profiling.kernels import torch_common

    for module in (torch_absorbed, torch_common):
        monkeypatch.setattr(module, "product_dtype", lambda dtype, device: torch.float32)
    for attention in (ATTENTIONS["mla"], ATTENTIONS["gqa"]):
        case = Case(attention=attention, phase="decode", batch=2, context_tokens=300, query_tokens=2)
        inputs, kernel = make_inputs(case), load(name)
        assert check(case, inputs, outcome(kernel, case, inputs), form=kernel.form(case)).passed


def test_expanded_and_absorbed_are_the_same_operator():
    """Latent outputs times W_UV are the expanded outputs."""
    case = Case(attention=ATTENTIONS["mla"], phase="decode", batch=2, context_tokens=200, query_tokens=2, dtype="fp32")
    inputs = make_inputs(case)
    expanded = outcome(load("torch-expanded"), case, inputs)
    absorbed = outcome(load("torch-absorbed"), case, inputs)
    raised = torch.einsum("bqhr,hrv->bqhv", absorbed.out, inputs.w_uv)  # [B, Q, H, V]
    assert torch.allclose(raised, expanded.out, atol=1e-5)
    assert torch.allclose(absorbed.lse, expanded.lse, atol=1e-5)


@pytest.mark.parametrize("workload", WORKLOADS.values(), ids=WORKLOADS)
@pytest.mark.parametrize("attention", [ATTENTIONS["mla"], ATTENTIONS["gqa"]], ids=["mla", "gqa"])
def test_what_runs_on_cuda_is_right_on_tensors_of_the_cpu(attention, workload, monkeypatch):
    """Layouts, masks and splits of the CUDA paths; which backend a GPU takes, and its speed, need a GPU."""
    for name in ("cpu_decode", "cpu_prefill"):
        monkeypatch.setattr(torch_sdpa, name, torch_sdpa.cuda_step)
    monkeypatch.setattr(torch_absorbed, "_one_by_one", lambda case, device: False)
    case = Case(attention=attention, dtype="fp32", **workload)
    inputs = make_inputs(case)
    for name in ("torch-sdpa", "torch-absorbed"):
        kernel = load(name)
        output = outcome(kernel, case, inputs)
        given = Output(output.out, output.lse if name == "torch-absorbed" else None)
        result = check(case, inputs, given, form=kernel.form(case))
        assert result.passed, f"{name}: {result.reason}"


def test_more_threads_than_one_give_the_same_result():
    case = Case(attention=ATTENTIONS["mla"], phase="decode", batch=2, context_tokens=1000, dtype="fp32")
    inputs, before, outs = make_inputs(case), torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            outs.append(outcome(load("torch-absorbed"), case, inputs).out.clone())
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert torch.allclose(outs[0], outs[1], atol=1e-6)
    assert torch.allclose(outs[0], outs[2], atol=1e-6)


def test_what_a_worker_raises_is_raised():
    def fail(worker):
        if worker == 1:
            raise RuntimeError("a worker failed")

    with pytest.raises(RuntimeError, match="a worker failed"):
        workers.side_by_side(fail, 2)


# --- really different computations, and how much they compute ---------------------------------------------------------

VIEWS = {
    "view",
    "transpose",
    "slice",
    "select",
    "t",
    "expand",
    "unsqueeze",
    "_unsafe_view",
    "detach",
    "permute",
    "alias",
}


class Watch(TorchDispatchMode):
    """Operators that run, and the FLOPs of their matrix products from the shapes that they are given."""

    def __init__(self):
        super().__init__()
        self.names, self.flop, self.largest_elements = set(), 0, 0

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        out = operator(*args, **(kwargs or {}))
        name = operator.__name__.partition(".")[0]
        if name not in VIEWS:
            self.names.add(name)
            made = out if isinstance(out, torch.Tensor) else out[0]
            self.largest_elements = max(self.largest_elements, made.numel())
        self.flop += product_flop(name, args)
        return out


def product_flop(name, args):
    if name in ("mm", "bmm"):
        return 2 * args[0].numel() * args[1].shape[-1]
    if name == "_linear_pointwise":
        return 2 * args[0].numel() * args[1].shape[0]
    if name == "_scaled_dot_product_flash_attention_for_cpu":
        batch, heads, queries, width = args[0].shape
        tokens = args[1].shape[2]
        is_causal = args[4] if len(args) > 4 else False
        pairs = queries * (queries + 1) // 2 if is_causal else queries * tokens
        return 2 * batch * heads * pairs * (width + args[2].shape[-1])
    return 0


@pytest.fixture
def watched():
    """Runs a kernel on one thread (`many_splits`), the one that is watched."""

    def watch(name, case):
        call = load(name).prepare(case, make_inputs(case))
        with Watch() as watch:
            call()
        return watch

    return watch


@pytest.mark.parametrize("attention", ["mla", "gqa"])
def test_the_kernels_run_different_operators(attention, watched):
    case = Case(attention=ATTENTIONS[attention], phase="decode", batch=1, context_tokens=500, dtype="fp32")
    watches = {name: watched(name, case) for name in KERNELS}
    for one, other in combinations(watches.values(), 2):
        assert one.names != other.names
    flash = "_scaled_dot_product_flash_attention_for_cpu"
    assert [name for name, watch in watches.items() if flash in watch.names] == ["torch-sdpa"]
    assert [name for name, watch in watches.items() if "_softmax" in watch.names] == ["torch-expanded"]
    assert {"exp_", "amax"} <= watches["torch-absorbed"].names
    assert not {"mm", "bmm", "_linear_pointwise", "_softmax"} & watches["torch-sdpa"].names


def test_only_the_expanded_kernel_builds_full_keys(watched):
    attention = ATTENTIONS["mla"]
    case = Case(attention=attention, phase="decode", batch=1, context_tokens=500, dtype="fp32")
    full_keys = 500 * attention.n_heads * (attention.qk_nope_head_dim + attention.qk_rope_head_dim)
    assert watched("torch-expanded", case).largest_elements >= full_keys * 2 // 3
    assert watched("torch-absorbed", case).largest_elements < full_keys // 3
    assert watched("torch-sdpa", case).largest_elements < full_keys // 3


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("workload", WORKLOADS.values(), ids=WORKLOADS)
@pytest.mark.parametrize("attention", ATTENTIONS.values(), ids=ATTENTIONS)
def test_the_products_are_the_flop_of_the_form_and_the_declared_extra(name, attention, workload, watched):
    case, kernel = Case(attention=attention, dtype="fp32", **workload), load(name)
    declared = case.flop(kernel.form(case)) + kernel.kernel_extra_flop(case, CPU)
    assert watched(name, case).flop == declared
    assert kernel.kernel_extra_bytes(case, CPU) >= 0
    assert kernel.workspace_bytes(case, CPU) > 0


def test_v3_decompression_is_declared_as_its_33_million_flop_a_token():
    attention = LatentAttention(
        n_heads=128, kv_lora_rank=512, qk_nope_head_dim=128, qk_rope_head_dim=64, v_head_dim=128
    )
    case = Case(attention=attention, phase="decode", batch=1, context_tokens=1000)
    assert load("torch-expanded").kernel_extra_flop(case, CPU) == 33_554_432 * 1000


# --- inputs -----------------------------------------------------------------------------------------------------------


def test_inputs_are_poisoned_shuffled_and_the_same_for_the_same_seed():
    case = Case(attention=ATTENTIONS["mla"], phase="decode", batch=3, context_tokens=1000, seq_lens=(1000, 0, 65))
    inputs, again, other = (make_inputs(case, seed=seed) for seed in (0, 0, 1))
    used = inputs.page_table[0, :16].tolist()
    assert sorted(used) != used
    assert (inputs.page_table[1] == UNUSED_PAGE).all()
    rows_of_tokens = int((~inputs.cache_pages.isnan().any(-1)).sum())
    assert rows_of_tokens == 1065
    assert inputs.cache_pages[inputs.page_table[2, 1], 1:].isnan().all()
    assert torch.equal(inputs.q, again.q)
    assert torch.equal(inputs.cache_pages.nan_to_num(), again.cache_pages.nan_to_num())
    assert not torch.equal(inputs.q, other.q)


def test_an_fp8_cache_is_scaled_and_poisoned():
    case = Case(attention=ATTENTIONS["gqa"], phase="decode", batch=1, context_tokens=100, kv_dtype="fp8")
    inputs = make_inputs(case)
    values = inputs.k_pages.float() * inputs.k_scale
    assert int(values.isnan().any(-1).any(-1).sum()) == 3 * 64 + 28 - 64
    assert 0.9 < float(values[values.isfinite()].std()) < 1.1


def test_what_torch_kernels_can_not_run_has_a_reason():
    fp8 = Case(attention=ATTENTIONS["mla"], phase="decode", batch=1, context_tokens=8, kv_dtype="fp8")
    window = GroupedAttention(n_heads=4, n_kv_heads=2, head_dim=16, v_head_dim=16, window_tokens=8)
    for name in KERNELS:
        assert "fp8_e4m3" in load(name).supports(fp8, CPU)
        reason = load(name).supports(Case(attention=window, phase="decode", batch=1, context_tokens=8), CPU)
        assert "window" in reason
