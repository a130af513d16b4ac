"""Hugging Face transformers: dynamic caches of tensors, without blocks."""

from collections.abc import Callable
from dataclasses import replace

from kvcalc.architecture.attention import (
    Attention,
    Component,
    CompressedAttention,
    GroupedAttention,
    LatentAttention,
    Role,
    SelectedAttention,
)
from kvcalc.architecture.formats import CACHE_FORMATS
from kvcalc.architecture.slots import Window
from kvcalc.engines.base import (
    ChangedLayout,
    Engine,
    Known,
    Request,
    Rule,
    Version,
    attentions,
    check_format,
    full_heads,
)
from kvcalc.errors import UsageError

_V3 = "transformers/models/deepseek_v3/modeling_deepseek_v3.py"
_V32 = "transformers/models/deepseek_v32/modeling_deepseek_v32.py"

MLA = Rule(
    name="MLA",
    history=(
        Known(
            since="4.57.1",
            value=True,
            says="keys and values of all heads, expanded: 71 times the latent for DeepSeek-V3",
            source=f"4.57.1 {_V3}:421; 5.14.1 line 449",
        ),
        Known(since="5.15.0", value=False, says="the latent", source=f"5.15.0 {_V3}:461; 5.23.0 line 459"),
    ),
)
SPARSE_MLA = Rule(
    name="sparse MLA",
    history=(
        Known(
            since="5.14.1",
            value=True,
            says="keys and values of all heads, expanded",
            source=f"5.14.1 {_V32}:434; 5.17.0 line 460",
        ),
        Known(since="5.18.0", value=False, says="the latent", source=f"5.18.0 {_V32}:442; 5.23.0 line 428"),
    ),
)
INDEX = Rule(
    name="index keys",
    history=(
        Known(
            since="5.14.1",
            says="in the model's dtype, without scales",
            source=f"5.14.1 {_V32}:244; 5.23.0 transformers/cache_utils.py:337",
        ),
    ),
)
WINDOWS = Rule(
    name="windows",
    history=(
        Known(
            since="4.57.1",
            says="window - 1 tokens: the newest token brings itself",
            source="5.23.0 transformers/cache_utils.py:196-245 (DynamicSlidingWindowLayer)",
        ),
    ),
)
FALCON = Rule(
    name="Falcon's new architecture",
    history=(
        Known(
            since="4.57.1",
            says="each KV head is kept once for every query head: 16 times for Falcon-40B",
            source="4.57.1 transformers/models/falcon/modeling_falcon.py:246, 300; 5.23.0 lines 260, 313",
        ),
    ),
)
CONVOLUTIONS = Rule(
    name="convolution states",
    history=(
        Known(
            since="4.57.1",
            says="as many columns as the kernel has, one more than the next token needs",
            source="5.23.0 transformers/cache_utils.py:1160-1180 (LinearAttentionLayer)",
        ),
    ),
)
FORMATS = Rule(
    name="cache formats",
    history=(
        Known(
            since="4.57.1",
            value=frozenset({"fp32", "bf16", "fp16"}),
            says="the model's dtype; quantised caches are not known here",
            source="5.23.0 transformers/cache_utils.py (DynamicLayer)",
        ),
    ),
)


def _change(*, expanded: bool, sparse_expanded: bool, falcon: bool) -> Callable[..., tuple[Component, ...]]:
    def change(attention: Attention, components: tuple[Component, ...]) -> tuple[Component, ...]:
        base = attention.base if isinstance(attention, SelectedAttention) else attention
        if isinstance(attention, CompressedAttention):
            raise UsageError(
                f"how transformers keeps compressed attention ({attention.label}) is not known to kvcalc",
                hint="--engine generic gives its stored bytes",
            )
        if isinstance(base, LatentAttention) and (expanded if base is attention else sparse_expanded):
            rest = tuple(component for component in components if component.role is Role.INDEX)
            components = (*full_heads(base, components[0]), *rest)
        kernel = getattr(attention, "conv_kernel", None)
        return tuple(_changed(component, attention, kernel, falcon) for component in components)

    return change


def _changed(component: Component, attention: Attention, kernel: int | None, falcon: bool) -> Component:
    if component.role is Role.CONVOLUTION and kernel and kernel > 1:
        return replace(component, width=component.width // (kernel - 1) * kernel)
    if isinstance(component.slots, Window) and component.slots.tokens > 1:
        return replace(component, slots=replace(component.slots, tokens=component.slots.tokens - 1))
    if falcon and isinstance(attention, GroupedAttention) and attention.n_kv_heads > 1:
        return replace(component, heads=attention.n_heads)
    return component


def layout(request: Request, version: Version) -> ChangedLayout:
    """transformers' layout in a version."""
    name = ENGINE.label(version)
    check_format(name, request, FORMATS.at(version))
    kinds = list(attentions(request.model))
    sparse = any(isinstance(each, SelectedAttention) for each in kinds)
    precision = request.precision
    if sparse and request.index_dtype is None:
        precision = replace(precision, index=precision.kv)
    if request.parallelism.dcp > 1:
        raise UsageError("transformers does not share a sequence's tokens over ranks", hint="leave --dcp at 1")
    return ChangedLayout(
        name=name,
        precision=replace(precision, convolution=CACHE_FORMATS["fp32" if request.kv_dtype == "fp32" else "bf16"]),
        block_tokens=1,
        notes=("the dynamic cache; a static one takes the longest sequence at once",),
        change=_change(
            expanded=MLA.at(version),
            sparse_expanded=SPARSE_MLA.at(version) if sparse else False,
            falcon=request.model.name.startswith("falcon"),
        ),
    )


ENGINE = Engine(
    name="transformers",
    title="Hugging Face transformers",
    covers=(("4.57.1", "4.57.1"), ("5.0.0", "5.23.0")),
    rules=(MLA, SPARSE_MLA, INDEX, WINDOWS, FALCON, CONVOLUTIONS, FORMATS),
    make=layout,
)
