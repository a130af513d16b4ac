"""The work of one step, decode or prefill, as terms of traffic that add up to the whole.

A term is the same part of every layer of one kind: attention, index scores, projections, feed-forward, experts, head.
Weights are read once a step whatever the batch; a mixture of experts reads the distinct experts that its tokens are
expected to take. Communication between GPUs is not a term here: what `roofline` makes of these is a bound, and links
have latencies that no datasheet states. `step_time` adds it (kvcalc.timing.exchange).
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from kvcalc.architecture import attention as kinds
from kvcalc.architecture.attention import Attention, Form
from kvcalc.architecture.feed_forward import FeedForward, MixtureOfExperts
from kvcalc.architecture.formats import WEIGHT_COMPUTE, Packing
from kvcalc.architecture.layout import Layout, tokens_on_rank
from kvcalc.architecture.model import Model
from kvcalc.architecture.traffic import Traffic
from kvcalc.architecture.weights import Part, Use, Weight
from kvcalc.sizing import (
    attention_counts,
    head_shards,
    packed_bytes,
    weight_elements_on_rank,
    weight_format,
    weight_packing,
)
from kvcalc.workload import Parallelism, Workload

DECODE, PREFILL = "decode", "prefill"
ACTIVATION_BYTES = 2
"""Queries, outputs and hidden states are bf16 between kernels."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Term:
    """One part of a step.

    name     what it is; `detail` says of which kind
    layers   layers (or attentions, or networks) that it sums over
    compute  the number format that it multiplies in
    weights  what it multiplies with, each with how many there are
    tokens   that it multiplies; experts: those of all replicas, which `network` spreads
    of       the attention whose projections they are
    """

    name: str
    detail: str
    layers: int
    traffic: Traffic
    compute: str
    source: str
    weights: tuple[tuple[Weight, int], ...] = ()
    tokens: int = 0
    network: MixtureOfExperts | None = None
    of: Attention | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """A step of the whole batch, on one rank of `parallelism` (one full copy: Parallelism())."""

    model: Model
    layout: Layout
    workload: Workload
    phase: str
    parallelism: Parallelism = Parallelism()
    weights_dtype: str | None = None
    mtp: bool = False

    @property
    def sequences(self) -> int:
        return self.parallelism.batch_on_rank(self.workload.batch)

    @property
    def query_tokens(self) -> int:
        """New tokens of a sequence: in prefill, all of its context."""
        return self.workload.context_tokens if self.phase == PREFILL else self.workload.query_tokens

    @property
    def tokens(self) -> int:
        """New tokens of the rank's sequences."""
        return self.sequences * self.query_tokens

    def terms(self) -> tuple[Term, ...]:
        """All terms, in the order in which a token meets them."""
        return tuple(self._terms())

    def _terms(self) -> Iterator[Term]:
        layers = self.model.distinct_layers + (self.model.distinct_mtp_layers if self.mtp else ())
        networks: Counter[FeedForward] = Counter()
        others: list[tuple[Weight, int]] = []
        for layer, count in layers:
            for network in layer.feed_forwards:
                networks[network] += count
            others += [(weight, count) for weight in layer.other]
            if layer.norms:
                others.append((self.model.norm_weight("norms"), count * layer.norms))
        yield self._weights_term("embedding", "", 1, [(weight, 1) for weight in self.model.embedding_weights])
        for attention, count in attention_counts(layers).items():
            yield from self._attention_terms(attention, count)
        for network, count in networks.items():
            yield from self._network_terms(network, count)
        others += [(weight, 1) for weight in self.model.other_weights]
        yield self._weights_term("norms and other", "", 1, others)
        yield self._weights_term(
            "head",
            "one position a sequence" if self.phase == PREFILL else "",
            1,
            [(weight, 1) for weight in self.model.head_weights],
            tokens=self.sequences if self.phase == PREFILL else self.tokens,
        )

    def _attention_terms(self, attention: Attention, count: int) -> Iterator[Term]:
        parallelism, context = self.parallelism, self.workload.context_tokens
        cache = {False: 0, True: 0}
        new_entries = 0
        for record in self.layout.records(attention, shards=head_shards(attention, parallelism)):
            share = tokens_on_rank(record, context, parallelism.dcp)
            is_index = record.components[0].role is kinds.Role.INDEX
            cache[is_index] += record.read_bytes(share, min(share, self.query_tokens))
            new_entries += record.write_bytes(self.query_tokens)
        compute = self.layout.compute
        queries_outputs = -(-self.query_output_bytes(attention) // parallelism.tp)
        yield Term(
            name="attention",
            detail=attention.label,
            layers=count,
            traffic=Traffic(
                flop=self.attention_flop(attention),
                read_bytes=self.sequences * cache[False],
                write_bytes=self.sequences * (new_entries + queries_outputs),
            )
            * count,
            compute=compute,
            source=attention.source,
        )
        if cache[True]:
            flop = kinds.flop(
                attention.components(), context_tokens=context, query_tokens=self.query_tokens, index=True
            )
            yield Term(
                name="index scores",
                detail=attention.label,
                layers=count,
                traffic=Traffic(flop=self.sequences * flop, read_bytes=self.sequences * cache[True]) * count,
                compute=compute,
                source=attention.source,
            )
        weights = attention.weights(self.model.hidden_size)
        products = [(weight, count) for weight in weights]
        yield self._weights_term("projections", attention.label, count, products, of=attention)

    def form(self, attention: Attention) -> Form | None:
        """The form that the phase computes in, where it is not the one that the components tell of."""
        form = attention.expanded() if self.phase == PREFILL else None
        return form if form is not None and form.serves_prefill else None

    def query_output_bytes(self, attention: Attention) -> int:
        """Queries and outputs of one sequence in one attention, all heads."""
        width = (self.form(attention) or attention).query_output_elements
        return width * ACTIVATION_BYTES * self.query_tokens

    def attention_flop(self, attention: Attention) -> int:
        """FLOPs of one attention of the rank's sequences, in the form that the phase computes in."""
        shards, context, query = self.parallelism.tp, self.workload.context_tokens, self.query_tokens
        form = self.form(attention)
        if form is not None:
            return self.sequences * form.flop(context, query, shards=shards)
        return self.sequences * kinds.flop(
            attention.components(), context_tokens=context, query_tokens=query, shards=shards
        )

    def _network_terms(self, network: FeedForward, count: int) -> Iterator[Term]:
        hidden = self.model.hidden_size
        if not isinstance(network, MixtureOfExperts):
            dense = [(weight, count) for weight in network.weights(hidden)]
            yield self._weights_term("feed forward", "dense", count, dense)
            return
        common = network.common_weights(hidden)
        for part in dict.fromkeys(weight.part for weight in common):
            weights = [(weight, count) for weight in common if weight.part is part]
            yield self._weights_term(f"MoE {part.value.replace('_', ' ')}", "", count, weights)
        yield self._experts_term(network, count)

    def _experts_term(self, network: MixtureOfExperts, count: int) -> Term:
        """Tokens of all dp replicas meet the experts, which are spread over all tp x dp ranks."""
        tokens = self.workload.batch * self.query_tokens
        ranks = self.parallelism.tp * self.parallelism.dp
        weights = network.expert_weights(self.model.hidden_size)
        flop = sum(weight.flop_per_token for weight in weights) * network.active_experts / network.experts
        bytes_of_all = sum(packed_bytes(weight.elements, self._packing(weight)) for weight in weights)
        distinct = network.distinct_experts(tokens)
        return Term(
            name="experts",
            detail=f"{distinct:,.1f} of {network.experts} read",
            layers=count,
            traffic=Traffic(
                flop=round(count * tokens * flop / ranks),
                read_bytes=round(count * bytes_of_all * distinct / network.experts / ranks),
            ),
            compute=self._compute(Part.EXPERTS),
            source=network.source,
            weights=tuple((weight, count) for weight in weights),
            tokens=tokens,
            network=network,
        )

    def _weights_term(
        self,
        name: str,
        detail: str,
        layers: int,
        weights: list[tuple[Weight, int]],
        tokens: int | None = None,
        of: Attention | None = None,
    ) -> Term:
        """Weights, each with how many there are, read once; and the products of `tokens` tokens with them."""
        tokens = self.tokens if tokens is None else tokens
        flop = read = 0
        for weight, count in weights:
            elements = weight_elements_on_rank(weight, self.parallelism)
            if weight.use is Use.LOOKUP:  # one row a token, no more rows than there are
                rows = min(self.tokens, weight.shape[0])
                elements = rows * weight.elements // weight.shape[0]
            read += count * packed_bytes(elements, self._packing(weight))
            flop += count * weight.flop_per_token_on_rank(self.parallelism.tp) * tokens
        part = weights[0][0].part if weights else Part.OTHER
        return Term(
            name=name,
            detail=detail,
            layers=layers,
            traffic=Traffic(flop=flop, read_bytes=read),
            compute=self._compute(part),
            source="2 FLOPs an element and token; every weight is read once a step",
            weights=tuple(weights),
            tokens=tokens,
            of=of,
        )

    def weight_format(self, part: Part) -> str:
        """The format that a part's weights are stored in."""
        return weight_format(self.model, part, self.weights_dtype)

    def _packing(self, weight: Weight) -> Packing:
        return weight_packing(self.model, weight.part, self.weights_dtype)

    def _compute(self, part: Part) -> str:
        return WEIGHT_COMPUTE.get(self.weight_format(part), "bf16")


def total(terms: tuple[Term, ...]) -> Traffic:
    """The sum of the terms' traffic."""
    return sum((term.traffic for term in terms), Traffic())
