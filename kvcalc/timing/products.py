"""The matrix products of a step's term on one rank, by shape: which weights are one product, and how they are cut.

Tensor parallelism cuts the columns of what widens a token and the inner width of what narrows it again (output and down
projections). Weights that multiply the same vector are one product, as engines fuse them: q, k and v; gate and up; the
two down projections of MLA. Decoding, MLA's kv_b is absorbed: two batched products, a head each. The experts that a
step reads are one grouped product; `ep` ranks hold whole experts, the other ranks of tp x dp cut their width.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from kvcalc.architecture.attention import LatentAttention, SelectedAttention
from kvcalc.architecture.feed_forward import MixtureOfExperts
from kvcalc.architecture.weights import Use, Weight
from kvcalc.sizing import weight_packing
from kvcalc.timing.gemm import Product
from kvcalc.timing.step import PREFILL, Step, Term

NARROWING = ("o_proj", "out_proj", "o_b_proj", "down")
"""Names, or their ends, of the weights whose inner width tensor parallelism cuts."""

INPUT_BYTES = {"fp8": 1.0, "int8": 1.0, "fp4": 0.5625, "fp32": 4.0}
"""Of an element of the rows, by the format that is multiplied in; 2 for all others."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Launched:
    """A product, how many layers launch it, and the format of its weights."""

    product: Product
    layers: int
    weights: str


def products(term: Term, step: Step, compute: str) -> Iterator[Launched]:
    """The products of a term. `compute` is the format that the GPU multiplies in."""
    input_bytes = INPUT_BYTES.get(compute, 2.0)
    if term.network is not None:
        yield from _experts(term, term.network, step, input_bytes)
        return
    fused: dict[tuple[object, ...], list[tuple[Weight, int]]] = {}
    for weight, count in term.weights:
        if weight.use is not Use.MATMUL or weight.elements <= 1:
            continue
        if weight.name == "kv_b_proj" and step.phase != PREFILL and (latent := _latent(term)) is not None:
            yield from _absorbed(weight, count, latent, term, step, input_bytes)
            continue
        alone = weight.name if weight.name.endswith(NARROWING) else ""
        cut = min(step.parallelism.tp, weight.shards) > 1
        fused.setdefault((weight.part, weight.shape[0], cut, count, alone), []).append((weight, count))
    for members in fused.values():
        yield _product(members, term, step, input_bytes)


def _product(members: list[tuple[Weight, int]], term: Term, step: Step, input_bytes: float) -> Launched:
    first, count = members[0]
    tp, narrowing = step.parallelism.tp, first.name.endswith(NARROWING)
    inner, columns = first.shape[0], 0
    for weight, _ in members:
        share = -(-weight.shards // tp) / weight.shards
        if narrowing:
            inner = max(1, round(inner * share))
            columns = weight.elements // weight.shape[0]
        else:
            columns += max(1, round(weight.elements // weight.shape[0] * share))
    return Launched(
        product=Product(
            name=" + ".join(weight.name for weight, _ in members),
            rows=term.tokens,
            inner=inner,
            columns=columns,
            weight_bytes=_weight_bytes(first, step),
            input_bytes=input_bytes,
        ),
        layers=count,
        weights=step.weight_format(first.part),
    )


def _latent(term: Term) -> LatentAttention | None:
    base = term.of.base if isinstance(term.of, SelectedAttention) else term.of
    return base if isinstance(base, LatentAttention) else None


def _absorbed(
    weight: Weight, count: int, latent: LatentAttention, term: Term, step: Step, input_bytes: float
) -> Iterator[Launched]:
    """Queries into the latent's space, and outputs out of it: heads of the rank, a product each."""
    heads = -(-latent.n_heads // step.parallelism.tp)
    for name, inner, columns in (
        ("queries to latent", latent.qk_nope_head_dim, latent.kv_lora_rank),
        ("latent to outputs", latent.kv_lora_rank, latent.v_head_dim),
    ):
        yield Launched(
            product=Product(
                name=f"{name}, {heads} heads",
                rows=term.tokens,
                inner=inner,
                columns=columns,
                weight_bytes=_weight_bytes(weight, step),
                input_bytes=input_bytes,
                groups=heads,
            ),
            layers=count,
            weights=step.weight_format(weight.part),
        )


def _experts(term: Term, network: MixtureOfExperts, step: Step, input_bytes: float) -> Iterator[Launched]:
    """Grouped products over the experts that a rank is expected to read."""
    mix = step.parallelism
    cut = mix.tp * mix.dp // mix.ep
    distinct = network.distinct_experts(term.tokens)
    rows = term.tokens * float(network.active_experts) / distinct if distinct else 0.0
    for weight, count in term.weights:
        if weight.use is not Use.MATMUL:
            continue
        inner, columns = weight.shape
        if weight.name.endswith(NARROWING):
            inner = -(-inner // cut)
        else:
            columns = -(-columns // cut)
        yield Launched(
            product=Product(
                name=f"{weight.name}, {distinct / mix.ep:,.1f} experts",
                rows=rows,
                inner=inner,
                columns=columns,
                weight_bytes=_weight_bytes(weight, step),
                input_bytes=input_bytes,
                groups=distinct / mix.ep,
            ),
            layers=count,
            weights=step.weight_format(weight.part),
        )


def _weight_bytes(weight: Weight, step: Step) -> float:
    return float(weight_packing(step.model, weight.part, step.weights_dtype).bytes_per_element)
