"""Time of what GPUs send each other, by message size, ranks and link.

    all-reduce     a + min((n - 1) S / (f1 L), b + 2 (n - 1) / n x S / (f2 L))
                   one shot: every rank reads all others' messages; or two: reduce-scatter and all-gather (Thakur et al.
                   2005, sec. 3.4), which takes b more
    all-to-all     a + min(3 w, b + w), w = (n - 1) / n x S / (f L): S is what a rank sends, itself included
    all-gather     the same form: S is what every rank ends with; reduce-scatter: what every rank begins with

L is the link's stated rate in one direction; PCIe's where GPUs have no link, or it joins fewer than so many. The
constants are of an architecture; they come of `benchmarks/exchange.py --fit`, on a fifth of the rows of
aiconfigurator-core 0.12.0's all-reduce tables (TensorRT-LLM, vLLM and SGLang in CUDA graphs) and NCCL tables;
benchmarks/results/exchange.md has the error on the others.

Experts under data parallel attention: tokens go to the ranks that hold their experts, and what those give comes back to
be summed (arXiv 2412.19437 sec. 3.2.1). Decoding, DeepEP's low latency kernels send a copy for each expert; in prefill
its normal ones send a copy a rank, and k experts drawn evenly are on n (1 - (1 - 1/n)^k) of n ranks
(github.com/deepseek-ai/DeepEP README).
"""

from dataclasses import dataclass

from kvcalc.hardware import Gpu, Link
from kvcalc.timing.gemm import machine_family

RACKS = {"NVLink 5 + NVSwitch (rack, 72 GPUs)": 72}
"""GPUs that a link joins beyond a node."""

SOURCE = "fit on aiconfigurator-core 0.12.0 all-reduce and NCCL tables, benchmarks/results/exchange.md"


@dataclass(frozen=True, kw_only=True, slots=True)
class ReduceRates:
    """latency_s (a), two_shot_s (b), and the shares of the link in one shot and in two."""

    latency_s: float
    two_shot_s: float
    one_shot_fraction: float
    two_shot_fraction: float


@dataclass(frozen=True, kw_only=True, slots=True)
class ExchangeRates:
    """latency_s (a), large_s (b, what large messages take more), and the share of the link."""

    latency_s: float
    large_s: float
    fraction: float


def link_bytes_per_s(gpu: Gpu, ranks: int) -> int | None:
    """What a GPU sends a second to the other ranks, as stated; None where neither link nor PCIe is.

    Across nodes a network is as fast as PCIe at best, and is taken to be, for all ranks.
    """
    if (link := _joining(gpu, ranks)) is not None:
        return link.bytes_per_s_per_direction
    return gpu.pcie_bytes_per_s_per_direction


def link_name(gpu: Gpu, ranks: int) -> str:
    """What `link_bytes_per_s` is of."""
    link = _joining(gpu, ranks)
    return "PCIe" if link is None else link.type


def _joining(gpu: Gpu, ranks: int) -> Link | None:
    """The GPU's link where it joins so many ranks."""
    if gpu.link is None:
        return None
    joined = RACKS.get(gpu.link.type, gpu.link.gpus_per_node)
    return gpu.link if joined is None or ranks <= joined else None


def all_reduce_s(message_bytes: float, ranks: int, gpu: Gpu) -> float | None:
    """Seconds of a sum of `message_bytes` over ranks; 0 for one rank, None where no link is stated."""
    link = link_bytes_per_s(gpu, ranks)
    if ranks == 1 or link is None:
        return 0.0 if ranks == 1 else None
    rates = REDUCE[machine_family(gpu)]
    one = (ranks - 1) * message_bytes / (rates.one_shot_fraction * link)
    two = rates.two_shot_s + 2 * (ranks - 1) / ranks * message_bytes / (rates.two_shot_fraction * link)
    return rates.latency_s + min(one, two)


def all_to_all_s(message_bytes: float, ranks: int, gpu: Gpu) -> float | None:
    """Seconds in which every rank sends `message_bytes`, an equal part to each."""
    return _exchange_s(ALL_TO_ALL[machine_family(gpu)], message_bytes, ranks, gpu)


def all_gather_s(message_bytes: float, ranks: int, gpu: Gpu) -> float | None:
    """Seconds after which every rank has all `message_bytes`; a reduce-scatter of them takes as long."""
    return _exchange_s(ALL_GATHER[machine_family(gpu)], message_bytes, ranks, gpu)


def _exchange_s(rates: ExchangeRates, message_bytes: float, ranks: int, gpu: Gpu) -> float | None:
    link = link_bytes_per_s(gpu, ranks)
    if ranks == 1 or link is None:
        return 0.0 if ranks == 1 else None
    wire = (ranks - 1) / ranks * message_bytes / (rates.fraction * link)
    return rates.latency_s + min(3 * wire, rates.large_s + wire)


def ranks_reached(ranks: int, experts: float) -> float:
    """Ranks that a token's experts are expected on, when they are drawn evenly."""
    return float(ranks * (1 - (1 - 1 / ranks) ** experts))


def _reduce(latency: float, two_shot: float, one: float, two: float) -> ReduceRates:
    return ReduceRates(
        latency_s=latency * 1e-6, two_shot_s=two_shot * 1e-6, one_shot_fraction=one, two_shot_fraction=two
    )


def _rates(latency: float, large: float, fraction: float) -> ExchangeRates:
    return ExchangeRates(latency_s=latency * 1e-6, large_s=large * 1e-6, fraction=fraction)


# us, us, shares of the link; 8.9 and 12.0 are of PCIe. 8.9 gathers by the fit's other optimum, which overshoots less
REDUCE = {
    "8.0": _reduce(5.19, 57.9, 0.555, 0.742),
    "8.9": _reduce(11.5, 0, 0.298, 0.0542),
    "9.0": _reduce(3.84, 12.5, 0.555, 0.738),
    "10.0": _reduce(5.4, 19.9, 0.484, 0.622),
    "10.3": _reduce(6.85, 15.9, 0.433, 0.686),
    "12.0": _reduce(12.8, 113, 0.393, 0.479),
}
ALL_TO_ALL = {
    "8.0": _rates(13.7, 8.95, 0.545),
    "8.9": _rates(10.1, 0, 0.148),
    "9.0": _rates(8.28, 8.89, 0.648),
    "10.0": _rates(11.1, 6.58, 0.48),
    "10.3": _rates(11.9, 5.24, 0.503),
    "12.0": _rates(8.11, 0.117, 0.394),
}
ALL_GATHER = {
    "8.0": _rates(13.3, 26.6, 0.622),
    "8.9": _rates(12.9, 2, 0.14),
    "9.0": _rates(7.53, 17.4, 0.72),
    "10.0": _rates(11.9, 19.8, 0.647),
    "10.3": _rates(10.8, 20.6, 0.625),
    "12.0": _rates(14.4, 9.77, 0.372),
}
