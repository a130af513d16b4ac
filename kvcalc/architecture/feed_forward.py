"""Feed-forward networks: dense and mixture of experts."""

from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

from kvcalc.architecture.weights import Part, Weight, matrix, vector


def _mlp(
    prefix: str, hidden_size: int, intermediate_size: int, *, gated: bool, bias: bool, part: Part, count: int = 1
) -> tuple[Weight, ...]:
    """`count` networks of up (and gate) and down projection."""
    inputs = 2 if gated else 1
    weights = [
        Weight(
            name=f"{prefix}up{'_gate' if gated else ''}",
            part=part,
            shape=(hidden_size, inputs * intermediate_size),
            shards=intermediate_size,
            count=count,
        ),
        Weight(
            name=f"{prefix}down",
            part=part,
            shape=(intermediate_size, hidden_size),
            shards=intermediate_size,
            count=count,
        ),
    ]
    if bias:
        weights.append(
            vector(f"{prefix}up_bias", count * inputs * intermediate_size, part=part, shards=intermediate_size)
        )
        weights.append(vector(f"{prefix}down_bias", count * hidden_size, part=part))
    return tuple(weights)


@dataclass(frozen=True, kw_only=True, slots=True)
class DenseFeedForward:
    """One network: gated (SwiGLU, GeGLU; three matrices) or plain (two)."""

    kind: ClassVar[str] = "dense"
    source: ClassVar[str] = "arXiv 1706.03762 sec. 3.3; gated: arXiv 2002.05202"

    intermediate_size: int
    gated: bool = True
    bias: bool = False

    def weights(self, hidden_size: int) -> tuple[Weight, ...]:
        return _mlp("", hidden_size, self.intermediate_size, gated=self.gated, bias=self.bias, part=Part.FEED_FORWARD)


@dataclass(frozen=True, kw_only=True, slots=True)
class MixtureOfExperts:
    """Routed experts, `experts_per_token` of `experts` for each token, and a shared network that all tokens take.

    shared_intermediate_size  width of the shared network (all shared experts together), 0 for none
    shared_gate               the shared network's output is scaled by a gate projected from the hidden state
    zero_experts              entries of the router that do nothing (LongCat): a token that draws one skips an expert
    latent_size               experts work on a projection of the hidden state of this width
    latent_norm               a norm on the experts' output before it is projected back (Kimi-K3)
    router_bias               the router has a trained bias; a balancing correction, which no gradient reaches, is none
    """

    kind: ClassVar[str] = "moe"
    source: ClassVar[str] = "arXiv 2401.06066 sec. 3; distinct experts read: a coupon count with uniform routing"

    experts: int
    experts_per_token: int
    intermediate_size: int
    gated: bool = True
    shared_intermediate_size: int = 0
    shared_gate: bool = False
    zero_experts: int = 0
    latent_size: int | None = None
    latent_norm: bool = False
    expert_bias: bool = False
    router_bias: bool = False

    def __post_init__(self) -> None:
        if self.experts_per_token > self.experts:
            raise ValueError(f"experts_per_token {self.experts_per_token} is more than experts {self.experts}")

    @property
    def active_experts(self) -> Fraction:
        """Experts that a token takes on average: fewer than it draws where some do nothing."""
        return Fraction(self.experts_per_token * self.experts, self.experts + self.zero_experts)

    def distinct_experts(self, tokens: int) -> float:
        """Expected number of experts that at least one of `tokens` tokens takes, when all are equally likely."""
        return self.experts * (1 - (1 - float(self.active_experts) / self.experts) ** tokens)

    def expert_weights(self, hidden_size: int) -> tuple[Weight, ...]:
        """Weights of all routed experts; one expert's are an `experts`-th of each."""
        return _mlp(
            "expert_",
            self.latent_size or hidden_size,
            self.intermediate_size,
            gated=self.gated,
            bias=self.expert_bias,
            part=Part.EXPERTS,
            count=self.experts,
        )

    def common_weights(self, hidden_size: int) -> tuple[Weight, ...]:
        """Weights that every token takes: router, shared network, latent projections."""
        outputs = self.experts + self.zero_experts
        weights = [matrix("router", hidden_size, outputs, part=Part.ROUTER)]
        if self.router_bias:
            weights.append(vector("router_bias", outputs, part=Part.ROUTER))
        if self.shared_intermediate_size:
            weights += _mlp(
                "shared_",
                hidden_size,
                self.shared_intermediate_size,
                gated=self.gated,
                bias=False,
                part=Part.SHARED_EXPERTS,
            )
        if self.shared_gate:
            weights.append(matrix("shared_gate", hidden_size, 1, part=Part.SHARED_EXPERTS))
        if self.latent_size:
            weights.append(matrix("latent_down", hidden_size, self.latent_size, part=Part.FEED_FORWARD))
            weights.append(matrix("latent_up", self.latent_size, hidden_size, part=Part.FEED_FORWARD))
            if self.latent_norm:
                weights.append(vector("latent_norm", self.latent_size, part=Part.NORM))
        return tuple(weights)

    def weights(self, hidden_size: int) -> tuple[Weight, ...]:
        return self.common_weights(hidden_size) + self.expert_weights(hidden_size)


FeedForward = DenseFeedForward | MixtureOfExperts
FEED_FORWARDS: tuple[type[FeedForward], ...] = (DenseFeedForward, MixtureOfExperts)
