"""What a selection of tokens adds to attention: index scores, the top k of them, and attending tokens one by one.

Index scores have a kernel of their own, DeepGEMM's fp8_paged_mqa_logits (54e2261, scheduler/sm90_paged_mqa_logits.cuh,
csrc/apis/attention.hpp): no softmax, no output but an fp32 number a (query, token) pair, no combine. Each query is a
request with segments of SEGMENT_TOKENS index keys, and all segments are dealt out evenly over the SMs:

    rounds = ceil(B x query tokens x ceil(N / 256) / SMs)
    time = launch + (requests an SM beyond its first) x request + rounds x segment
    segment = norm_3(memory, products)
        memory = keys and logits of all SMs at work / achieved bandwidth, faster by `l2_speedup` for what is in L2:
                 keys from memory are read once, and again from L2 by each further query of a request
        products = 256 x heads x (FLOPs of a pair / (achieved fp8 rate / SMs) + 1 / pairs_per_s): ReLU and sum of heads

Its values are fits of `launch_s`, `request_s`, `l2_speedup` and `pairs_per_s` to every fifth row of SGLang 0.5.14's
tables of H100 and of B200 in aiconfigurator-core 0.12.0 (Apache-2.0), rounded. vLLM 0.24.0 takes a fifth to a half
longer there, and the intervals were widened to hold it.

The top k is picked by a thread block for each query, which passes over its scores (SGLang fast_topk_transform_fused,
vLLM top_k_per_row): launch + max(1, queries / SMs) x (row + N / rate), and nothing but the launch where all are
selected. How often it passes depends on the scores: nearly equal ones take twice as long as well parted ones, and the
values, fits to every fifth row of H100's and B200's tables of both kinds, lie between them.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from kvcalc.architecture.attention import SelectedAttention
from kvcalc.hardware import Gpu
from kvcalc.timing.attention_time import AttentionCase, Machine, norm, warm_share
from kvcalc.timing.parts import LAUNCH_S, REST, TimedPart, other_part, sum_each
from kvcalc.timing.schedule import SCALAR, Number, Operations

SEGMENT_TOKENS = 256
LOGIT_BYTES = 4
SEGMENT_OVERLAP = 3.0
INDEX_SOURCE = "DeepGEMM fp8_paged_mqa_logits; fitted to SGLang's tables in aiconfigurator-core 0.12.0"

ROW_S, SCORES_PER_S = 1.4e-6, 2.4e9
TOP_K_ENDS = (0.45, 2.7)
TOP_K_SOURCE = "a thread block a query: SGLang fast_topk_transform_fused"

SMALL_KERNELS = 4
"""Beside the scores and the top k: rotary embedding and quantising of the queries, and of the keys with their norm and
their write, weights of the heads, positions turned into addresses (vLLM, models/deepseek_v2.py, Indexer)."""
SMALL_SOURCE = "small kernels in a CUDA graph"

GATHER_SLOWDOWN = 660 / 410
"""FlashMLA's README: 660 TFLOP/s of its dense decode kernel, 410 of the one that gathers tokens by an index list. Reads
of memory are taken to slow down as much: modules of H100 and B200 tell of 1 to 3 times the dense attention."""


@dataclass(frozen=True, kw_only=True, slots=True)
class IndexKernel:
    """Index scores on an architecture: fitted values, and the ends of the interval as shares of what is expected."""

    launch_s: float
    request_s: float
    l2_speedup: float
    pairs_per_s: float
    ends: tuple[float, float]
    bandwidth_fraction: float = 0.85
    matrix_fraction: float = 0.8


HOPPER = IndexKernel(launch_s=3.1e-6, request_s=0.63e-6, l2_speedup=2.7, pairs_per_s=270e9, ends=(0.8, 1.5))
BLACKWELL = IndexKernel(launch_s=3.8e-6, request_s=0.31e-6, l2_speedup=2.3, pairs_per_s=110e9, ends=(0.85, 2.0))
ELSEWHERE = IndexKernel(launch_s=3.1e-6, request_s=0.63e-6, l2_speedup=2.7, pairs_per_s=270e9, ends=(0.5, 3.0))
"""Where DeepGEMM has no kernel: Hopper's values and a wide interval."""


class IndexTime(NamedTuple):
    """The terms of one layer's index scores, in seconds."""

    launch_s: Number
    requests_s: Number
    segments_s: Number

    @property
    def total_s(self) -> Number:
        return self.launch_s + self.requests_s + self.segments_s


def index_kernel(gpu: Gpu) -> IndexKernel:
    """The index scores' kernel on a GPU."""
    workstation = (gpu.compute_capability or "").startswith("12.")
    if gpu.architecture in ("Blackwell", "Blackwell Ultra") and not workstation:
        return BLACKWELL
    return HOPPER if gpu.architecture == "Hopper" else ELSEWHERE


def index_time(case: AttentionCase, machine: Machine, kernel: IndexKernel, ops: Operations = SCALAR) -> IndexTime:
    """One layer's index scores: `entry_bytes` is an index key's, `n_heads` the index heads."""
    least, most, up = ops.minimum, ops.maximum, ops.ceil
    requests, each = case.batch * case.query_tokens, up(case.context_tokens / SEGMENT_TOKENS)
    busy = least(requests * each, machine.sms)
    cold = (1 - warm_share(case.cache_bytes / (0.9 * machine.l2_bytes), ops)) / case.query_tokens
    moved = case.entry_bytes * (cold + (1 - cold) / kernel.l2_speedup) + LOGIT_BYTES
    bandwidth = kernel.bandwidth_fraction * machine.bandwidth_bytes_per_s
    memory_s = case.context_tokens / each * moved * busy / bandwidth
    rate = ops.where(case.eight_bit, machine.fp8_flop_per_s, machine.matrix_flop_per_s)
    pair_s = case.flop_per_pair * machine.sms / (kernel.matrix_fraction * rate) + 1 / kernel.pairs_per_s
    segment_s = norm(memory_s, SEGMENT_TOKENS * case.n_heads * pair_s, SEGMENT_OVERLAP, ops)
    return IndexTime(
        launch_s=kernel.launch_s,
        requests_s=most(0.0, requests / machine.sms - 1) * kernel.request_s,
        segments_s=up(requests * each / machine.sms) * segment_s,
    )


def top_k_s(queries: Number, tokens: Number, top_k: int, sms: int, ops: Operations = SCALAR) -> Number:
    """Picking the `top_k` of each query's `tokens` scores, without the launch."""
    return ops.where(tokens > top_k, ops.maximum(1.0, queries / sms) * (ROW_S + tokens / SCORES_PER_S), 0.0)


def gathered(values: Mapping[str, float]) -> dict[str, float]:
    """A calibrated kernel's values where it reads single tokens through a list of indices."""
    slower = ("bandwidth_fraction", "matrix_fraction", "block_bytes_per_s")
    return {**values, **{name: values[name] / GATHER_SLOWDOWN for name in slower}}


def parts(
    attention: SelectedAttention, scores: AttentionCase, machine: Machine, count: int, gpu: Gpu
) -> Iterator[TimedPart]:
    """What `count` layers of a selection take beside attention; `scores` is the call against the index keys."""
    kernel = index_kernel(gpu)
    time = index_time(scores, machine, kernel)
    picked_s = top_k_s(scores.batch * scores.query_tokens, scores.context_tokens, attention.top_k, machine.sms)
    for name, each_s, symbols, source, ends in (
        ("index scores", time, "launch + requests + segments", INDEX_SOURCE, kernel.ends),
        ("top k", (LAUNCH_S, picked_s), "launch + passes over the scores", TOP_K_SOURCE, TOP_K_ENDS),
        ("indexer", (SMALL_KERNELS * LAUNCH_S,), f"{SMALL_KERNELS} launches", SMALL_SOURCE, REST),
    ):
        seconds, formula = count * sum(each_s), sum_each(count, *each_s)
        yield other_part(name, attention.label, seconds, f"layers x ({symbols})", formula, source, ends)
