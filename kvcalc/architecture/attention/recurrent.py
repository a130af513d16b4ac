"""Recurrent mixing: a state of constant size instead of a cache that grows.

State updates are counted per state element and token, 2 FLOPs a multiply-add:
    decay, add an outer product, read out    1 + 2 + 2 = 5    Mamba-1, Mamba-2, lightning attention
    the delta rule reads the old value too   2 more  = 7      Gated DeltaNet, KDA
A short convolution over k tokens keeps the last k - 1 inputs of each channel.
"""

from dataclasses import dataclass
from typing import ClassVar

from kvcalc.architecture.attention.base import Component, Form, Role
from kvcalc.architecture.slots import Constant
from kvcalc.architecture.weights import Part, Weight, matrix, vector

_LINEAR_UPDATE_FLOP = 5
_DELTA_UPDATE_FLOP = 7


def _state(*, heads: int, width: int, symbol: str, flop: int) -> Component:
    """One recurrent state a sequence, `width` elements a head, `flop` FLOPs an element and token."""
    return Component(
        name="state",
        role=Role.STATE,
        width=width,
        symbol=symbol,
        heads=heads,
        slots=Constant(),
        record="state",
        query_heads=heads,
        flop_per_pair=flop * width,
    )


def _convolution(name: str, *, heads: int, channels: int, kernel: int) -> Component:
    """The last kernel - 1 inputs of `channels` channels a head. The products are counted with the kernel's weights."""
    return Component(
        name=name,
        role=Role.CONVOLUTION,
        width=channels * (kernel - 1),
        symbol=f"{channels:,} x ({kernel} - 1)",
        heads=heads,
        slots=Constant(),
        record="convolution",
        query_heads=heads,
        flop_per_pair=0,
    )


class _Recurrent:
    __slots__ = ()

    def expanded(self) -> Form | None:
        return None


@dataclass(frozen=True, kw_only=True, slots=True)
class Mamba1(_Recurrent):
    """Selective state space model: state [d_inner, d_state].

    `input_norms` are the norms on dt, B and C that Jamba adds.
    """

    kind: ClassVar[str] = "mamba-1"
    source: ClassVar[str] = "arXiv 2312.00752 sec. 3"

    d_inner: int
    d_state: int
    conv_kernel: int
    dt_rank: int
    conv_bias: bool = True
    proj_bias: bool = False
    input_norms: bool = False

    @property
    def label(self) -> str:
        return "Mamba-1"

    def components(self) -> tuple[Component, ...]:
        return (
            _state(heads=self.d_inner, width=self.d_state, symbol="d_state", flop=_LINEAR_UPDATE_FLOP),
            _convolution("convolution", heads=self.d_inner, channels=1, kernel=self.conv_kernel),
        )

    @property
    def query_output_elements(self) -> int:
        return 2 * self.d_inner + 2 * self.d_state

    def weights(self, hidden_size: int) -> tuple[Weight, ...]:
        part, inner = Part.ATTENTION, self.d_inner
        weights = [
            matrix("in_proj", hidden_size, 2 * inner, part=part, shards=inner),
            matrix("conv1d", self.conv_kernel, inner, part=part, shards=inner),
            matrix("x_proj", inner, self.dt_rank + 2 * self.d_state, part=part, shards=inner),
            matrix("dt_proj", self.dt_rank, inner, part=part, shards=inner),
            matrix("out_proj", inner, hidden_size, part=part, shards=inner),
            vector("dt_bias", inner, part=part, shards=inner),
            vector("A_log", inner * self.d_state, part=part, shards=inner),
            vector("D", inner, part=part, shards=inner),
        ]
        if self.conv_bias:
            weights.append(vector("conv1d_bias", inner, part=part, shards=inner))
        if self.proj_bias:
            weights.append(vector("in_proj_bias", 2 * inner, part=part, shards=inner))
            weights.append(vector("out_proj_bias", hidden_size, part=part))
        if self.input_norms:
            weights.append(vector("dt_b_c_norms", self.dt_rank + 2 * self.d_state, part=Part.NORM))
        return tuple(weights)


@dataclass(frozen=True, kw_only=True, slots=True)
class Mamba2(_Recurrent):
    """State space duality: state [n_heads, head_dim, d_state], B and C shared by the heads of a group.

    kernel_chunk_tokens  that its kernel computes together; it changes nothing that is kept, but engines may make their
                         blocks whole multiples of it. None: not stated
    """

    kind: ClassVar[str] = "mamba-2"
    source: ClassVar[str] = "arXiv 2405.21060 sec. 7"

    n_heads: int
    head_dim: int
    n_groups: int
    d_state: int
    conv_kernel: int
    conv_bias: bool = True
    proj_bias: bool = False
    gated_norm: bool = True
    kernel_chunk_tokens: int | None = None

    def __post_init__(self) -> None:
        if self.n_heads % self.n_groups:
            raise ValueError(f"n_heads {self.n_heads} is not a multiple of n_groups {self.n_groups}")

    @property
    def label(self) -> str:
        return "Mamba-2"

    def components(self) -> tuple[Component, ...]:
        return (
            _state(
                heads=self.n_heads,
                width=self.head_dim * self.d_state,
                symbol="head_dim x d_state",
                flop=_LINEAR_UPDATE_FLOP,
            ),
            _convolution("convolution x", heads=self.n_heads, channels=self.head_dim, kernel=self.conv_kernel),
            _convolution("convolution B, C", heads=self.n_groups, channels=2 * self.d_state, kernel=self.conv_kernel),
        )

    @property
    def query_output_elements(self) -> int:
        return 2 * self.n_heads * self.head_dim + 2 * self.n_groups * self.d_state

    def weights(self, hidden_size: int) -> tuple[Weight, ...]:
        part, heads = Part.ATTENTION, self.n_heads
        inner, groups = heads * self.head_dim, 2 * self.n_groups * self.d_state
        weights = [
            matrix("in_proj_z_x_dt", hidden_size, 2 * inner + heads, part=part, shards=heads),
            matrix("in_proj_b_c", hidden_size, groups, part=part, shards=self.n_groups),
            matrix("conv1d_x", self.conv_kernel, inner, part=part, shards=heads),
            matrix("conv1d_b_c", self.conv_kernel, groups, part=part, shards=self.n_groups),
            matrix("out_proj", inner, hidden_size, part=part, shards=heads),
            vector("dt_bias_A_log_D", 3 * heads, part=part, shards=heads),
        ]
        if self.gated_norm:
            weights.append(vector("gated_norm", inner, part=Part.NORM, shards=heads))
        if self.conv_bias:
            weights.append(vector("conv1d_bias", inner + groups, part=part, shards=self.n_groups))
        if self.proj_bias:
            weights.append(vector("in_proj_bias", 2 * inner + groups + heads, part=part, shards=self.n_groups))
            weights.append(vector("out_proj_bias", hidden_size, part=part))
        return tuple(weights)


@dataclass(frozen=True, kw_only=True, slots=True)
class GatedDeltaNet(_Recurrent):
    """Gated delta rule: state [n_v_heads, v_head_dim, k_head_dim]; q and k heads are shared by groups of v heads."""

    kind: ClassVar[str] = "gated-deltanet"
    source: ClassVar[str] = "arXiv 2412.06464 sec. 3.1"

    n_k_heads: int
    n_v_heads: int
    k_head_dim: int
    v_head_dim: int
    conv_kernel: int

    def __post_init__(self) -> None:
        if self.n_v_heads % self.n_k_heads:
            raise ValueError(f"n_v_heads {self.n_v_heads} is not a multiple of n_k_heads {self.n_k_heads}")

    @property
    def label(self) -> str:
        return "Gated DeltaNet"

    def components(self) -> tuple[Component, ...]:
        return (
            _state(
                heads=self.n_v_heads,
                width=self.v_head_dim * self.k_head_dim,
                symbol="v_head_dim x k_head_dim",
                flop=_DELTA_UPDATE_FLOP,
            ),
            _convolution(
                "convolution q, k", heads=self.n_k_heads, channels=2 * self.k_head_dim, kernel=self.conv_kernel
            ),
            _convolution("convolution v", heads=self.n_v_heads, channels=self.v_head_dim, kernel=self.conv_kernel),
        )

    @property
    def query_output_elements(self) -> int:
        return 2 * (self.n_k_heads * self.k_head_dim + self.n_v_heads * self.v_head_dim)

    def weights(self, hidden_size: int) -> tuple[Weight, ...]:
        part, k_heads, v_heads = Part.ATTENTION, self.n_k_heads, self.n_v_heads
        keys, values = k_heads * self.k_head_dim, v_heads * self.v_head_dim
        return (
            matrix("qk_proj", hidden_size, 2 * keys, part=part, shards=k_heads),
            matrix("v_z_proj", hidden_size, 2 * values, part=part, shards=v_heads),
            matrix("b_a_proj", hidden_size, 2 * v_heads, part=part, shards=v_heads),
            matrix("conv1d_qk", self.conv_kernel, 2 * keys, part=part, shards=k_heads),
            matrix("conv1d_v", self.conv_kernel, values, part=part, shards=v_heads),
            matrix("out_proj", values, hidden_size, part=part, shards=v_heads),
            vector("dt_bias_A_log", 2 * v_heads, part=part, shards=v_heads),
            vector("norm", self.v_head_dim, part=Part.NORM),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class KimiDeltaAttention(_Recurrent):
    """KDA: the delta rule with a decay a channel; state [n_heads, head_dim, head_dim].

    Its forget gate and its output gate have low rank; with `full_rank_gate` the output gate is one projection
    (Kimi-K3).
    """

    kind: ClassVar[str] = "kda"
    source: ClassVar[str] = "arXiv 2510.26692 sec. 3"

    n_heads: int
    head_dim: int
    conv_kernel: int
    gate_bias: bool = False
    full_rank_gate: bool = False

    @property
    def label(self) -> str:
        return "KDA"

    def components(self) -> tuple[Component, ...]:
        return (
            _state(
                heads=self.n_heads,
                width=self.head_dim * self.head_dim,
                symbol="head_dim x head_dim",
                flop=_DELTA_UPDATE_FLOP,
            ),
            _convolution(
                "convolution q, k, v", heads=self.n_heads, channels=3 * self.head_dim, kernel=self.conv_kernel
            ),
        )

    @property
    def query_output_elements(self) -> int:
        return 4 * self.n_heads * self.head_dim

    def weights(self, hidden_size: int) -> tuple[Weight, ...]:
        part, heads, width = Part.ATTENTION, self.n_heads, self.n_heads * self.head_dim
        weights = [
            matrix("qkv_proj", hidden_size, 3 * width, part=part, shards=heads),
            matrix("conv1d", self.conv_kernel, 3 * width, part=part, shards=heads),
            matrix("f_a_proj", hidden_size, self.head_dim, part=part),
            matrix("f_b_proj", self.head_dim, width, part=part, shards=heads),
            matrix("b_proj", hidden_size, heads, part=part, shards=heads),
            matrix("o_proj", width, hidden_size, part=part, shards=heads),
            vector("dt_bias", width, part=part, shards=heads),
            vector("A_log", heads, part=part, shards=heads),
            vector("o_norm", self.head_dim, part=Part.NORM),
        ]
        if self.full_rank_gate:
            weights.append(matrix("g_proj", hidden_size, width, part=part, shards=heads))
        else:
            weights.append(matrix("g_a_proj", hidden_size, self.head_dim, part=part))
            weights.append(matrix("g_b_proj", self.head_dim, width, part=part, shards=heads))
        if self.gate_bias:
            weights.append(vector("g_bias", width, part=part, shards=heads))
        return tuple(weights)


@dataclass(frozen=True, kw_only=True, slots=True)
class LightningAttention(_Recurrent):
    """Linear attention with a fixed decay: state [n_heads, head_dim, head_dim], no convolution."""

    kind: ClassVar[str] = "lightning"
    source: ClassVar[str] = "arXiv 2501.08313 sec. 2.2"

    n_heads: int
    head_dim: int

    @property
    def label(self) -> str:
        return "lightning"

    def components(self) -> tuple[Component, ...]:
        return (
            _state(
                heads=self.n_heads,
                width=self.head_dim * self.head_dim,
                symbol="head_dim x head_dim",
                flop=_LINEAR_UPDATE_FLOP,
            ),
        )

    @property
    def query_output_elements(self) -> int:
        return 4 * self.n_heads * self.head_dim

    def weights(self, hidden_size: int) -> tuple[Weight, ...]:
        part, heads, width = Part.ATTENTION, self.n_heads, self.n_heads * self.head_dim
        return (
            matrix("qkv_proj", hidden_size, 3 * width, part=part, shards=heads),
            matrix("output_gate", hidden_size, width, part=part, shards=heads),
            matrix("out_proj", width, hidden_size, part=part, shards=heads),
            vector("norm", width, part=Part.NORM, shards=heads),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class ShortConvolution(_Recurrent):
    """Gated short convolution (LFM2): only the last conv_kernel - 1 inputs are kept."""

    kind: ClassVar[str] = "short-conv"
    source: ClassVar[str] = "arXiv 2511.23404 sec. 2"

    channels: int
    conv_kernel: int
    bias: bool = False

    @property
    def label(self) -> str:
        return "short conv"

    def components(self) -> tuple[Component, ...]:
        return (_convolution("convolution", heads=self.channels, channels=1, kernel=self.conv_kernel),)

    @property
    def query_output_elements(self) -> int:
        return 2 * self.channels

    def weights(self, hidden_size: int) -> tuple[Weight, ...]:
        part, width = Part.ATTENTION, self.channels
        weights = [
            matrix("in_proj", hidden_size, 3 * width, part=part, shards=width),
            matrix("conv1d", self.conv_kernel, width, part=part, shards=width),
            matrix("out_proj", width, hidden_size, part=part, shards=width),
        ]
        if self.bias:
            weights.append(vector("in_proj_conv1d_bias", 4 * width, part=part, shards=width))
            weights.append(vector("out_proj_bias", hidden_size, part=part))
        return tuple(weights)
