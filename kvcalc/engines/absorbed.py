"""Copies of MLA's kv_b_proj that engines keep for the absorbed products: W_UK into the query, W_UV out of the result.

    W_UK   [n_heads, kv_lora_rank, qk_nope_head_dim]
    W_UV   [n_heads, kv_lora_rank, v_head_dim]          (arXiv 2405.04434 sec. 2.1)

kv_b_proj itself, both of them in one matrix, stays: prefill rebuilds K and V with it. DeepSeek-V3 in bf16 on one rank:
128 x 512 x (128 + 128) x 2 B x 61 layers = 2,046,820,352 B.
"""

from kvcalc.architecture.attention import Attention, LatentAttention

SIXTEEN_BIT_BYTES = 2
UNQUANTISED = frozenset({"bf16", "fp16", "fp32"})
"""Weight formats that are multiplied as they are stored."""


def absorbed_elements(attention: Attention, *, tp: int) -> tuple[int, int]:
    """Elements of W_UK and of W_UV on the rank that holds most; nothing where attention is not over MLA's latents."""
    base = getattr(attention, "base", attention)
    if not isinstance(base, LatentAttention):
        return 0, 0
    heads = -(-base.n_heads // tp)
    return heads * base.kv_lora_rank * base.qk_nope_head_dim, heads * base.kv_lora_rank * base.v_head_dim
