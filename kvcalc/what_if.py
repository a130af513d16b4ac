"""One model with its attention replaced: the comparison that DeepSeek's own papers draw.

K and V are as wide as the model's value heads, as in arXiv 2412.19437: for DeepSeek-V3 MHA keeps 2 x 128 x 128 = 32,768
numbers a layer and token against MLA's 576. Everything else of the model stays as it is.
"""

from dataclasses import replace

from kvcalc.architecture.attention import Attention, GroupedAttention, LatentAttention, SelectedAttention
from kvcalc.architecture.model import Layer, Model
from kvcalc.errors import UsageError
from kvcalc.names import nearest

DEFAULT_KV_LORA_RANK, DEFAULT_ROPE_DIM = 512, 64


def alternatives(model: Model, what_if: str) -> list[Model]:
    """The model once for each attention named in `mha,gqa:8,mqa,mla,mla:256+64`. Raises UsageError."""
    return [_replaced(model, part.strip().lower()) for part in what_if.split(",")]


def _replaced(model: Model, wanted: str) -> Model:
    layers = tuple(_layer(layer, wanted) for layer, count in _runs(model.layers) for _ in range(count))
    return replace(model, name=f"{model.name}+{wanted}", title=f"{model.title} with {wanted}", layers=layers)


def _runs(layers: tuple[Layer, ...]) -> list[tuple[Layer, int]]:
    runs: list[tuple[Layer, int]] = []
    for layer in layers:
        if runs and runs[-1][0] is layer:
            runs[-1] = (layer, runs[-1][1] + 1)
        else:
            runs.append((layer, 1))
    return runs


def _layer(layer: Layer, wanted: str) -> Layer:
    return replace(layer, attentions=tuple(_attention(attention, wanted) for attention in layer.attentions))


def _attention(attention: Attention, wanted: str) -> Attention:
    """The replacement; recurrent layers, windows and other kinds that keep no full cache are left as they are."""
    base = attention.base if isinstance(attention, SelectedAttention) else attention
    full = isinstance(base, LatentAttention) or (
        isinstance(base, GroupedAttention) and not (base.window_tokens or base.chunk_tokens or base.borrows_cache)
    )
    if not full:
        return attention
    assert isinstance(base, LatentAttention | GroupedAttention)
    kind, _, argument = wanted.partition(":")
    heads, width = base.n_heads, base.v_head_dim
    if kind == "mla":
        return _latent(base, argument)
    if kind in ("mha", "mqa") and not argument:
        kv_heads = heads if kind == "mha" else 1
    elif kind == "gqa" and (groups := _size(argument)):
        kv_heads = groups
        if heads % kv_heads:
            raise UsageError(f"--what-if gqa:{kv_heads}: the model's {heads} heads can't be put into {kv_heads} groups")
    else:
        raise UsageError(
            f"--what-if can't read '{wanted}'", hint=nearest(kind, ["mha", "mqa", "gqa:8", "mla", "mla:512+64"])
        )
    return GroupedAttention(n_heads=heads, n_kv_heads=kv_heads, head_dim=width, v_head_dim=width)


def _latent(base: LatentAttention | GroupedAttention, argument: str) -> LatentAttention:
    rank, plus, rope = argument.partition("+")
    if argument and not (_size(rank) and (not plus or rope == "0" or _size(rope))):
        raise UsageError(f"--what-if can't read 'mla:{argument}'", hint="write mla:RANK+ROPE, such as mla:512+64")
    kv_lora_rank = int(rank) if rank else DEFAULT_KV_LORA_RANK
    rope_dim = int(rope) if rope else DEFAULT_ROPE_DIM
    if isinstance(base, LatentAttention):
        return replace(base, kv_lora_rank=kv_lora_rank, qk_rope_head_dim=rope_dim)
    return LatentAttention(
        n_heads=base.n_heads,
        kv_lora_rank=kv_lora_rank,
        qk_nope_head_dim=base.head_dim,
        qk_rope_head_dim=rope_dim,
        v_head_dim=base.v_head_dim,
    )


def _size(text: str) -> int | None:
    """A dimension of at most seven digits, or None."""
    return int(text) if text.isdecimal() and len(text) <= 7 and int(text) > 0 else None
