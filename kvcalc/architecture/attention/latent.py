"""Multi-head latent attention (MLA): one small latent vector a token instead of full keys and values.

Symbols (arXiv 2405.04434 sec. 2.1): d_c = kv_lora_rank, d_h^R = qk_rope_head_dim, d_h = qk_nope_head_dim,
d_v = v_head_dim, H = n_heads. A token keeps d_c + d_h^R elements, whatever the number of heads.

Two forms compute the same attention:
    absorbed   queries are moved into the latent space (W_UK is absorbed into q, W_UV into the output); each head then
               attends the latent itself: 2 (d_c + d_h^R) for QK and 2 d_c for PV a head and pair. The latent is read
               once and serves as K and as V. Decoding uses it.
    expanded   K and V are rebuilt from the latent, 2 d_c H (d_h + d_v) FLOPs a token; a head then costs
               2 (d_h + d_h^R) + 2 d_v a pair. Prefill uses it.
"""

from dataclasses import dataclass
from typing import ClassVar

from kvcalc.architecture.attention.base import Component, Form, Role
from kvcalc.architecture.slots import EveryToken
from kvcalc.architecture.weights import Part, Weight, matrix, vector


@dataclass(frozen=True, kw_only=True, slots=True)
class LatentAttention:
    """Multi-head latent attention.

    q_lora_rank is None where queries are projected in one step (DeepSeek-V2-Lite). `lora_norms` are the norms on the
    two low-rank vectors; a conversion such as TransMLA may have none.
    """

    kind: ClassVar[str] = "mla"
    source: ClassVar[str] = "arXiv 2405.04434 sec. 2.1.2 to 2.1.3; absorption: same, sec. 2.1.2"

    n_heads: int
    kv_lora_rank: int
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    v_head_dim: int
    q_lora_rank: int | None = None
    q_a_bias: bool = False
    kv_a_bias: bool = False
    o_bias: bool = False
    lora_norms: bool = True
    output_gate: bool = False

    @property
    def label(self) -> str:
        return f"MLA {self.kv_lora_rank}+{self.qk_rope_head_dim}"

    def components(self) -> tuple[Component, ...]:
        latent = Component(
            name="latent",
            role=Role.LATENT,
            width=self.kv_lora_rank,
            symbol="kv_lora_rank",
            slots=EveryToken(),
            record="latent",
            query_heads=self.n_heads,
            flop_per_pair=4 * self.kv_lora_rank,
        )
        if not self.qk_rope_head_dim:
            return (latent,)
        rope = Component(
            name="rope",
            role=Role.ROPE,
            width=self.qk_rope_head_dim,
            symbol="qk_rope_head_dim",
            slots=EveryToken(),
            record="latent",
            query_heads=self.n_heads,
            flop_per_pair=2 * self.qk_rope_head_dim,
        )
        return (latent, rope)

    @property
    def query_output_elements(self) -> int:
        return self.n_heads * (2 * self.kv_lora_rank + self.qk_rope_head_dim)

    def weights(self, hidden_size: int) -> tuple[Weight, ...]:
        part, heads = Part.ATTENTION, self.n_heads
        q_width = heads * (self.qk_nope_head_dim + self.qk_rope_head_dim)
        kv_a_width = self.kv_lora_rank + self.qk_rope_head_dim
        kv_b_width = heads * (self.qk_nope_head_dim + self.v_head_dim)
        o_width = heads * self.v_head_dim
        weights = [
            matrix("kv_a_proj", hidden_size, kv_a_width, part=part),
            matrix("kv_b_proj", self.kv_lora_rank, kv_b_width, part=part, shards=heads),
            matrix("o_proj", o_width, hidden_size, part=part, shards=heads),
        ]
        if self.q_lora_rank is None:
            weights.append(matrix("q_proj", hidden_size, q_width, part=part, shards=heads))
        else:
            weights.append(matrix("q_a_proj", hidden_size, self.q_lora_rank, part=part))
            weights.append(matrix("q_b_proj", self.q_lora_rank, q_width, part=part, shards=heads))
            if self.q_a_bias:
                weights.append(vector("q_a_bias", self.q_lora_rank, part=part))
        if self.output_gate:
            weights.append(matrix("output_gate", hidden_size, o_width, part=part, shards=heads))
        if self.kv_a_bias:
            weights.append(vector("kv_a_bias", kv_a_width, part=part))
        if self.o_bias:
            weights.append(vector("o_bias", hidden_size, part=part))
        if self.lora_norms:
            weights.append(vector("kv_a_norm", self.kv_lora_rank, part=Part.NORM))
            if self.q_lora_rank is not None:
                weights.append(vector("q_a_norm", self.q_lora_rank, part=Part.NORM))
        return tuple(weights)

    def expanded(self) -> Form:
        qk_width = self.qk_nope_head_dim + self.qk_rope_head_dim
        return Form(
            name="expanded",
            flop_per_pair=2 * self.n_heads * (qk_width + self.v_head_dim),
            decompress_flop_per_entry=2 * self.kv_lora_rank * self.n_heads * (self.qk_nope_head_dim + self.v_head_dim),
            elements_per_token=self.n_heads * (qk_width + self.v_head_dim),
            query_output_elements=self.n_heads * (qk_width + self.v_head_dim),
            slots=EveryToken(),
            query_heads=self.n_heads,
        )
