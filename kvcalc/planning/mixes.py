"""Which mixes of parallelism there are: only those that divide a model's heads, experts and widths."""

from collections.abc import Iterator
from math import gcd

from kvcalc.architecture.feed_forward import DenseFeedForward, MixtureOfExperts
from kvcalc.architecture.model import Model
from kvcalc.errors import UsageError
from kvcalc.sizing import check_parallelism
from kvcalc.workload import Parallelism


def divisors(number: int) -> list[int]:
    return [each for each in range(1, number + 1) if number % each == 0]


def why_not(model: Model, mix: Parallelism) -> str | None:
    """Why a model can't be spread like this; None where it can."""
    try:
        check_parallelism(model, mix)
    except UsageError as error:
        return error.message
    if mix.pp > len(model.layers):
        return f"pp {mix.pp} is more than the model's {len(model.layers)} layers"
    ranks = mix.tp * mix.dp
    for layer, _ in model.distinct_layers:
        for network in layer.feed_forwards:
            if isinstance(network, DenseFeedForward) and network.intermediate_size % mix.tp:
                return f"tp {mix.tp} does not divide the feed-forward width {network.intermediate_size}"
            if isinstance(network, MixtureOfExperts) and network.intermediate_size % (ranks // mix.ep):
                return f"the expert width {network.intermediate_size} can't be cut for {ranks // mix.ep} ranks"
    return None


def shares_copies(model: Model, mix: Parallelism) -> bool:
    """Whether every rank of a dcp group had a copy of the same entries: there are at least so many ranks a KV head.

    Beyond that a rank only holds fewer tokens of more heads.
    """
    return mix.dcp == 1 or any(
        component.slots.spans_context and component.heads * mix.dcp <= mix.tp
        for layer, _ in model.distinct_layers
        for attention in layer.attentions
        for component in attention.components()
    )


def expert_ranks(model: Model, ranks: int) -> int:
    """The most expert parallel ranks that divide the experts; 1 for a model without."""
    counts = [
        network.experts
        for layer, _ in model.distinct_layers
        for network in layer.feed_forwards
        if isinstance(network, MixtureOfExperts)
    ]
    return gcd(ranks, *counts) if counts else 1


def all_mixes(model: Model, gpus: int) -> Iterator[Parallelism]:
    """Every valid mix of exactly so many GPUs, with as much expert parallelism as divides; no dcp without copies."""
    for pp in divisors(gpus):
        for tp in divisors(gpus // pp):
            dp = gpus // pp // tp
            for dcp in divisors(tp):
                mix = Parallelism(tp=tp, pp=pp, dp=dp, dcp=dcp, ep=expert_ranks(model, tp * dp))
                if shares_copies(model, mix) and why_not(model, mix) is None:
                    yield mix


def usual_mixes(model: Model, gpus: int) -> Iterator[Parallelism]:
    """The mixes that people weigh against each other: tp alone, with dcp, dp alone, half and half, and pipelines."""
    halves = [each for each in divisors(gpus) if 1 < each < gpus]
    middle = halves[len(halves) // 2] if halves else 1
    shapes = [(gpus, 1, 1), (1, 1, gpus), (middle, 1, gpus // middle), (gpus // middle, middle, 1), (1, gpus, 1)]
    seen = set()
    for tp, pp, dp in shapes:
        for dcp in [1] if tp < gpus else divisors(tp):
            mix = Parallelism(tp=tp, pp=pp, dp=dp, dcp=dcp, ep=expert_ranks(model, tp * dp))
            if mix not in seen and shares_copies(model, mix) and why_not(model, mix) is None:
                seen.add(mix)
                yield mix
