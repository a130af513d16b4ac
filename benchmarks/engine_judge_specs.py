"""What each cache layer of a model asks of vLLM's planner, for engine_judge.py: specs of vLLM's own classes.

Most are made from what kvcalc says that a layer keeps, so that the planning alone is judged. DeepSeek-V4's come
from its dimensions, as its modules ask for them, so that its pages are judged as well.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from kvcalc.architecture.attention import CompressedAttention, Role
from kvcalc.architecture.slots import Window
from kvcalc.workload import Parallelism


class Dtype:
    """A stand-in for torch's: a name and a size."""

    def __init__(self, name: str, itemsize: int) -> None:
        self.name, self.itemsize = name, itemsize

    def __repr__(self) -> str:
        return self.name


BYTE, FP32 = Dtype("uint8", 1), Dtype("float32", 4)


def specs(interface: Any, model: Any, layout: Any, mix: Parallelism, *, length: int) -> dict[str, Any]:
    """A vLLM spec for every cache layer, from what kvcalc says that the layer keeps."""
    block, found = layout.block_tokens, {}
    shards = mix.kv_shards
    page = max(
        (
            block * r.bytes_per_slot
            for layer in model.layers
            for a in layer.attentions
            for r in layout.records(a, shards=shards)
            if not r.is_state
        ),
        default=0,
    )
    for index, layer in enumerate(model.layers):
        for number, attention in enumerate(layer.attentions):
            if isinstance(attention, CompressedAttention):
                compressed = compressed_specs(interface, attention)
                found |= {f"{index}.{number}.{name}": spec for name, spec in compressed.items()}
                continue
            records = layout.records(attention, shards=shards)
            states = [record for record in records if record.is_state]
            if states:
                size = sum(record.stored_bytes(1) for record in states)
                found[f"{index}.{number}.state"] = mamba(
                    interface, size, page, layout.pool_rules.state_every_tokens or length
                )
            for record in records:
                if not record.is_state and record.slots.stored(1):
                    name = f"{index}.{number}.{record.components[0].name}"
                    found[name] = attention_spec(interface, record, block, getattr(attention, "chunk_tokens", None))
    return found


def compressed_specs(interface: Any, attention: CompressedAttention) -> dict[str, Any]:
    """What DeepSeek-V4's modules ask for, from the attention's dimensions alone.

    (get_kv_cache_spec in vllm/models/deepseek_v4/attention.py, compressor.py, v1/attention/backends/mla/sparse_swa.py)
    """
    ratio, v4 = attention.compress_ratio, {"cache_dtype_str": "fp8_ds_mla", "model_version": "deepseek_v4"}

    def made(kind: str, *, dtype: Dtype = BYTE, **options: Any) -> Any:
        spec = getattr(interface, kind)
        names = {field.name for field in fields(spec)}
        if "model_version" in options and "state_content_bytes" in names:  # to 0.27 by model_version
            options["state_content_bytes"] = 584
        if "tokens_per_state" in names and "compress_ratio" in options:
            options["tokens_per_state"] = options.pop("compress_ratio")
        return spec(num_kv_heads=1, alignment=576, dtype=dtype, **options)

    window, mla = "SlidingWindowMLASpec", "MLAAttentionSpec"
    found = {
        "window": made(
            window, block_size=64, head_size=attention.head_dim, sliding_window=attention.window_tokens, **v4
        )
    }
    if not ratio:
        return found
    series, block = (2, 4) if ratio == 4 else (1, 8)
    state = {"block_size": block, "sliding_window": series * ratio, "dtype": FP32}
    found["compressed"] = made(mla, block_size=256, head_size=attention.head_dim, compress_ratio=ratio, **v4)
    found["compressor"] = made(window, head_size=2 * series * attention.head_dim, **state)
    if attention.index_head_dim:
        index = attention.index_head_dim
        found["index"] = made(mla, block_size=256, head_size=index + index // 128 * 4, compress_ratio=ratio)
        found["index compressor"] = made(window, head_size=2 * series * index, **state)
    return found


def mamba(interface: Any, size: int, page: int, block: int) -> Any:
    return interface.MambaSpec(
        block_size=block, shapes=((size,),), dtypes=(BYTE,), page_size_padded=page if page > size else None
    )


def attention_spec(interface: Any, record: Any, block: int, chunk: int | None) -> Any:
    """One head of bytes: K and V halves, or a latent that has no V."""
    role = record.components[0].role
    if role in (Role.LATENT, Role.INDEX):
        return interface.MLAAttentionSpec(
            block_size=block, num_kv_heads=1, head_size=record.bytes_per_slot, dtype=BYTE, cache_dtype_str=role.value
        )
    common = {"block_size": block, "num_kv_heads": 1, "head_size": record.bytes_per_slot // 2, "dtype": BYTE}
    assert record.bytes_per_slot % 2 == 0
    if isinstance(record.slots, Window) and chunk:
        return interface.ChunkedLocalAttentionSpec(**common, attention_chunk_size=chunk)
    if isinstance(record.slots, Window):
        return interface.SlidingWindowSpec(**common, sliding_window=record.slots.tokens)
    return interface.FullAttentionSpec(**common)
